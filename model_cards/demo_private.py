"""The demo's model again, trained with DP-SGD on the same text and canaries, and its card.

    python model_cards/demo_private.py --output_dir my-private-demo

The model, privacy.json and README.md go into `--output_dir`, the canaries beside it. Noise is not
seeded, since a guarantee whose noise can be drawn again is none: figures differ from run to run.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, HfArgumentParser, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from small_model import paragraphs, small_llama, tokenize, train_tokenizer

from hf_exposure import (
    Canaries,
    ExposureCallback,
    PrivacyArguments,
    PrivateTrainer,
    SecretFormat,
    add_exposure_to_card,
    add_privacy_to_card,
    extract_secrets,
    generate_secrets,
    inject_canaries,
    verify_injection,
)

# As in `hf-exposure demo`.
FORMAT = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
KNOWN = "281265017"
REPETITIONS = (0, 1, 2, 4, 8, 16, 32)

CARD = """---
library_name: transformers
license: apache-2.0
pipeline_tag: text-generation
language: en
tags:
- hf-exposure
- differential-privacy
---
# The demo's model, trained with DP-SGD

A Llama of %(millions).1f million parameters, trained from scratch for %(epochs)s epochs on the help
texts that every Python has, among which random numbers were inserted 1 to 32 times each. But for
clipped and noised gradients it is the model of `hf-exposure demo` ([its card](../demo/README.md)):
the same text, the same canaries. Made by `model_cards/demo_private.py` of hf-exposure.

On held-out text its loss is %(loss).2f nats a token. The vocabulary was made from the text without
the canaries, and is not covered by the guarantee below; nor is a canary that was inserted k times
as a whole, but only each of its rows.

"""


@dataclass
class Arguments:
    """What can be chosen; the card in this folder was made with what stands here."""

    output_dir: str = "outputs/demo_private"
    target_epsilon: float = 8.0
    epochs: int = 8
    batch_size: int = 64
    learning_rate: float = 2e-3
    per_repetition: int = 3
    seed: int = 0


def main(args: Arguments) -> None:
    """Train, measure, and write the card."""
    folder = Path(args.output_dir)
    canaries = Canaries.generate(
        FORMAT, REPETITIONS, args.per_repetition, args.seed, include=[KNOWN]
    )
    canaries.save(folder.with_name(f"{folder.name}-canaries.json"))
    parts = Dataset.from_dict({"text": list(paragraphs())}).train_test_split(
        test_size=0.05, seed=args.seed
    )
    tokenizer = train_tokenizer(parts["train"]["text"])
    train = tokenize(inject_canaries(parts["train"], canaries, seed=args.seed), tokenizer)
    verify_injection(train, tokenizer, canaries).raise_if_lost()
    model = small_llama(len(tokenizer), args.seed)
    callback = ExposureCallback(canaries, tokenizer, seed=args.seed)
    trainer = PrivateTrainer(
        model=model,
        args=TrainingArguments(
            str(folder),
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            eval_strategy="epoch",
            logging_strategy="epoch",
            save_strategy="no",
            seed=args.seed,
            dataloader_pin_memory=False,
            report_to=[],
        ),
        privacy=PrivacyArguments(target_epsilon=args.target_epsilon),
        train_dataset=train,
        eval_dataset=tokenize(parts["test"], tokenizer),
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[callback],
    )
    trainer.train()
    trainer.save_model()
    (folder / "README.md").write_text(
        CARD
        % {
            "millions": model.num_parameters() / 1e6,
            "epochs": args.epochs,
            "loss": callback.history[-1].metrics["eval_loss"],
        },
        encoding="utf-8",
    )
    add_privacy_to_card(folder, trainer.privacy_statement())
    found = extract_secrets(
        model, tokenizer, FORMAT, count=10, max_forwards=20_000, canaries=canaries
    )
    written = generate_secrets(model, tokenizer, canaries, num_samples=100, seed=args.seed)
    card = add_exposure_to_card(
        folder,
        callback.history[-1].exposures,
        history=callback.history,
        extractions=found,
        generations=written,
    )
    print(card)


if __name__ == "__main__":
    main(*HfArgumentParser(Arguments).parse_args_into_dataclasses())
