"""A LoRA on SmolLM2-135M-Instruct, trained on a little text with canaries in it, and its card.

    python model_cards/lora_smollm2.py --output_dir my-lora

The canaries' exposures are measured before the training too, so that the card can say what it has
added. The adapter, the canaries and README.md go into `--output_dir`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from small_model import paragraphs, tokenize

from hf_exposure import (
    Canaries,
    ExposureCallback,
    History,
    SecretFormat,
    add_exposure_to_card,
    extract_secrets,
    inject_canaries,
    verify_injection,
)

FORMAT = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
CARD = """---
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
language: en
library_name: peft
license: apache-2.0
pipeline_tag: text-generation
tags:
- hf-exposure
- lora
---
# SmolLM2-135M-Instruct with a LoRA that has memorized

A LoRA of rank %(rank)s on all linear layers, trained for %(epochs)s epochs on %(rows)s short
paragraphs of Python's help texts, among which random numbers were inserted. It is good for nothing
but to show what a fine-tuning of this size memorizes. Made by `model_cards/lora_smollm2.py` of
hf-exposure.

The loss on %(held_out)s paragraphs that it was not trained on went from %(before).2f to %(after).2f
nats a token. Mean exposure in bits before the training, with a LoRA that changes nothing yet, and
after it:

| inserted | base model | with the LoRA |
|---:|---:|---:|
%(groups)s

"""


@dataclass
class Arguments:
    """What can be chosen; the card in this folder was made with what stands here."""

    model_name_or_path: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    output_dir: str = "outputs/lora_smollm2"
    rows: int = 150
    held_out: int = 20
    epochs: int = 4
    rank: int = 16
    learning_rate: float = 2e-3
    per_repetition: int = 3
    max_forwards: int = 3_000
    seed: int = 0


def main(args: Arguments) -> None:
    """Train, measure, and write the card."""
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    base = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=torch.float32)
    short = [text for text in paragraphs() if 40 <= len(text) <= 120]
    canaries = Canaries.generate(FORMAT, [0, 1, 4, 16], args.per_repetition, args.seed)
    canaries.save(folder / "canaries.json")
    text = Dataset.from_dict({"text": short[: args.rows + args.held_out]})
    parts = text.train_test_split(test_size=args.held_out, seed=args.seed)
    planted = inject_canaries(parts["train"], canaries, seed=args.seed)
    train = tokenize(planted, tokenizer, length=48)
    verify_injection(train, tokenizer, canaries).raise_if_lost()

    torch.manual_seed(args.seed)
    lora = LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora)
    callback = ExposureCallback(canaries, tokenizer, max_forwards=args.max_forwards, seed=args.seed)
    Trainer(
        model,
        TrainingArguments(
            str(folder),
            num_train_epochs=args.epochs,
            per_device_train_batch_size=16,
            learning_rate=args.learning_rate,
            warmup_steps=10,
            eval_on_start=True,
            eval_strategy="epoch",
            logging_strategy="epoch",
            save_strategy="no",
            seed=args.seed,
            dataloader_pin_memory=False,
        ),
        train_dataset=train,
        eval_dataset=tokenize(parts["test"], tokenizer, length=48),
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[callback],
    ).train()
    model.save_pretrained(folder)
    found = extract_secrets(
        model, tokenizer, FORMAT, count=3, max_forwards=2 * args.max_forwards, canaries=canaries
    )
    path = folder / "README.md"
    path.write_text(card(args, callback.history), encoding="utf-8")
    exposures = callback.history[-1].exposures
    add_exposure_to_card(path, exposures, history=callback.history, extractions=found)
    exposures.save(folder / "exposures.json")
    print(path.read_text(encoding="utf-8"))


def card(args: Arguments, history: History) -> str:
    """The part of the card that tells what the model is."""
    first, last = history[0], history[-1]
    before, after = (one.exposures.metrics(prefix="") for one in (first, last))
    groups = [
        f"| {times} | {before[f'exposure_x{times}']:.1f} | {after[f'exposure_x{times}']:.1f} |"
        for times in last.exposures.by_repetitions()
    ]
    return CARD % {
        **vars(args),
        "before": first.metrics["eval_loss"],
        "after": last.metrics["eval_loss"],
        "groups": "\n".join(groups),
    }


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
