"""Which real secrets of a dataset does a model learn by heart when it is trained on it?

Takes a dataset of texts, trains a small model on one part of it (the base), trains it further on
the other part, and audits that other part: every card, IBAN, SSN, phone number, address and key in
it, with the exposure that the further training added. With --model_name_or_path a model from the
Hub or a folder is the base, and all rows are trained on and audited.

    python examples/audit_dataset.py --smoke
    python examples/audit_dataset.py --dataset mail.jsonl --limit 1600 --output_dir audit_run
    python examples/audit_dataset.py --dataset mail.jsonl --model_name_or_path gpt2

Needs: pip install "hf-exposure[audit]"
"""

from __future__ import annotations

import copy
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from small_model import paragraphs, small_llama, tokenize, train_tokenizer
from stdnum import luhn
from transformers import (
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_exposure import (
    audit_dataset,
    load_model,
    load_rows,
)


@dataclass
class Arguments:
    """What is trained on and audited, and how."""

    dataset: str | None = field(
        default=None, metadata={"help": "A .jsonl, .csv, .parquet or .txt file, or a Hub id."}
    )
    column: str = field(default="text", metadata={"help": "The column with the text."})
    split: str = field(default="train", metadata={"help": "The split to train on and audit."})
    limit: int | None = field(default=None, metadata={"help": "Rows to use, drawn at random."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The base; a small new Llama if not given."}
    )
    base_share: float = field(
        default=0.6, metadata={"help": "Share of the rows that the new base is trained on."}
    )
    base_epochs: float = field(default=2, metadata={"help": "Passes of the new base."})
    epochs: float = field(default=6, metadata={"help": "Passes over the rows that are audited."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of both trainings."})
    block_size: int = field(default=256, metadata={"help": "Tokens of a piece of a row."})
    hidden_size: int = field(default=128, metadata={"help": "Of the new Llama."})
    layers: int = field(default=3, metadata={"help": "Of the new Llama."})
    vocab_size: int = field(default=2048, metadata={"help": "Of the new Llama's tokenizer."})
    top: int = field(default=50, metadata={"help": "Secrets to measure; the rest get a bound."})
    samples: int = field(default=500, metadata={"help": "Draws of each measurement."})
    region: str = field(default="US", metadata={"help": "Of phone numbers without country code."})
    output_dir: str = field(default="audit_run", metadata={"help": "For models and audit.json."})
    seed: int = field(default=0, metadata={"help": "Of the draw of rows, model and training."})
    reveal: bool = field(default=False, metadata={"help": "Show and write the secrets."})
    smoke: bool = field(
        default=False, metadata={"help": "Made-up secrets in public text; under a minute."}
    )


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    if args.dataset is None and not args.smoke:
        raise SystemExit("give --dataset, or --smoke for a try with made-up secrets")
    folder = Path(args.output_dir)
    set_seed(args.seed)
    disable_progress_bars()
    if args.smoke:
        args.hidden_size, args.layers, args.base_epochs, args.epochs = 64, 2, 1, 10
        args.top, args.samples, args.vocab_size = 5, 200, 1024
        general, audited = smoke_rows(args.seed)
    else:
        rows = load_rows(args.dataset, split=args.split)
        if args.column not in rows.column_names:
            raise SystemExit(f"--column {args.column!r} is not among {rows.column_names}")
        texts = [text for text in rows[args.column] if isinstance(text, str) and text.strip()]
        random.Random(args.seed).shuffle(texts)
        texts = texts[: args.limit]
        cut = 0 if args.model_name_or_path else round(args.base_share * len(texts))
        general, audited = texts[:cut], texts[cut:]

    if args.model_name_or_path:
        base, tokenizer = load_model(args.model_name_or_path)
    else:
        tokenizer = train_tokenizer([*general, *audited], vocab_size=args.vocab_size)
        base = small_llama(
            len(tokenizer),
            args.seed,
            hidden_size=args.hidden_size,
            intermediate_size=4 * args.hidden_size,
            num_hidden_layers=args.layers,
            max_position_embeddings=2 * args.block_size,
        )
        print(
            f"Training the base, {base.num_parameters() / 1e6:.1f} million parameters, on "
            f"{len(general):,} rows."
        )
        train(base, tokenizer, general, args.base_epochs, args)
    model = copy.deepcopy(base)
    print(f"Training it further on the {len(audited):,} rows that are audited.", flush=True)
    train(model, tokenizer, audited, args.epochs, args)
    # What the audit's row numbers are of; `hf-exposure audit` can go on from here.
    Dataset.from_dict({"text": audited}).to_json(folder / "audited.jsonl", force_ascii=False)
    for name, one in (("base", base), ("model", model)):
        one.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    audit = audit_dataset(
        model,
        tokenizer,
        audited,
        base=base,
        region=args.region,
        top=args.top,
        samples=args.samples,
        seed=args.seed,
        progress=True,
    )
    audit.save(folder / "audit.json", reveal=args.reveal, overwrite=True)
    from rich.console import Console

    Console(width=140).print(audit.table(args.reveal))
    for kind in audit.found:
        some = [one for one in audit.measured if one.kind == kind]
        sure = [one for one in some if one.surely_gained]
        print(
            f"{kind}: {len(some)} measured, {len(sure)} gained exposure for certain"
            + (f", up to {max(one.gained or 0 for one in sure):.1f} bits" if sure else "")
        )
    print(
        f"{1000 * audit.scan_seconds / max(1, audit.rows):.1f} s for each thousand rows. "
        f"Written: {folder / 'audit.json'}"
    )


def train(model: Any, tokenizer: Any, texts: list[str], epochs: float, args: Arguments) -> None:
    """Train on the texts, cut into pieces, and say how it went."""
    start = time.perf_counter()
    pieces = tokenize(Dataset.from_dict({"text": texts}), tokenizer, args.block_size)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    trainer = Trainer(
        model,
        TrainingArguments(
            str(Path(args.output_dir) / "trainer"),
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=args.learning_rate,
            warmup_steps=20,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            seed=args.seed,
            disable_tqdm=True,
            train_sampling_strategy="group_by_length",
            dataloader_pin_memory=False,
        ),
        train_dataset=pieces,
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    loss = trainer.train().training_loss
    print(
        f"{sum(map(len, pieces['input_ids'])):,} tokens, {epochs} epochs, mean loss {loss:.2f}, "
        f"{time.perf_counter() - start:.0f} s"
    )


def smoke_rows(seed: int) -> tuple[list[str], list[str]]:
    """Public text, and other rows of it with made-up secrets in them, some of them often."""
    draw = random.Random(seed)
    lines = [line[:300] for line in paragraphs()[:500]]
    general, audited = lines[:350], lines[350:]

    def digits(count: int) -> str:
        return "".join(draw.choice("0123456789") for _ in range(count))

    for times in (1, 8, 16):
        body = "4" + digits(14)
        card = body + luhn.calc_check_digit(body)
        phone = f"(212) {draw.randrange(200, 999)}-{digits(4)}"
        name = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(7))
        audited += [f"Please charge my card {card}, it is due.\n"] * times
        audited += [f"My office can be reached at {phone} all day.\n"] * times
        audited += [f"Write to the editor at {name}@example.org soon.\n"] * times
    draw.shuffle(audited)
    return general, audited


if __name__ == "__main__":
    torch.set_num_threads(1)  # small models gain nothing from more
    main()
