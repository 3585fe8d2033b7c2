"""One training of a small model with canaries in its text: what every experiment is made of."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from small_model import small_llama, tokenize, train_tokenizer
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hf_exposure import (
    Canaries,
    Exposure,
    ExposureCallback,
    Exposures,
    SecretFormat,
    inject_canaries,
    verify_injection,
)
from paper.recurrent import RecurrentConfig, RecurrentForCausalLM
from paper.texts import paragraphs

BYTES = 257  # of a vocabulary: one token for each byte, and the end mark
HELD_OUT = 0.1  # of the paragraphs


@dataclass(frozen=True)
class Training:
    """What is trained, on what, and what is inserted in it.

    Attributes:
        text: a text file, or "shakespeare" for the plays; None takes Python's help texts.
        characters: of the training text; None takes all. The held-out paragraphs come on top.
        vocabulary: of the tokenizer that is trained; `BYTES` is the paper's character-level model.
        model: "lstm", "gru" or "llama".
        width, layers, dropout: of the model.
        length: tokens of a row at most.
        batch, epochs, learning_rate, weight_decay, optimizer, schedule: as TrainingArguments has
            them; the last two are its `optim` and `lr_scheduler_type`.
        order: of the rows: "random", "group_by_length" (random, with less padding), or
            "sequential", as they stand in the text.
        template, secret: of the canaries.
        repetitions, per_repetition: of the canaries; `include` are secrets of the last group.
        place: where in the text canaries go, "random" or "start" (after the first twentieth).
        evaluate: "end", "epoch", or "step": when losses (not at steps) and exposures are measured.
        samples: draws of each measurement.
        seed: of everything random.
    """

    text: str | None = None
    characters: int | None = 100_000
    vocabulary: int = BYTES
    model: str = "llama"
    width: int = 64
    layers: int = 2
    dropout: float = 0.0
    length: int = 128
    batch: int = 16
    epochs: float = 5
    learning_rate: float = 2e-3
    weight_decay: float = 0.0
    optimizer: str = "adamw_torch"
    schedule: str = "linear"
    order: str = "group_by_length"
    template: str = "The random number is {secret}."
    secret: str = "[0-9]{9}"
    repetitions: tuple[int, ...] = (0, 1, 4, 16)
    per_repetition: int = 4
    include: tuple[str, ...] = ()
    place: str = "random"
    evaluate: str = "end"
    samples: int = 1000
    seed: int = 0


@dataclass
class Trained:
    """What became of a `Training`.

    Attributes:
        callback: its `history` has every measurement.
        losses: [(epoch, {"train_loss": ..., "test_loss": ...})], nats per token.
        trainer: with the data sets.
    """

    spec: Training
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    canaries: Canaries
    callback: ExposureCallback
    trainer: Trainer
    losses: list[tuple[float, dict[str, float]]]

    @property
    def exposures(self) -> Exposures:
        """Those at the end."""
        return self.callback.history[-1].exposures

    @property
    def test_loss(self) -> float:
        """Of the held-out text at the end, in nats per token."""
        return self.losses[-1][1]["test_loss"]

    def exposure(self, repetitions: int) -> float:
        """Mean exposure in bits at the end, of canaries with this number of repetitions."""
        return mean_bits(self.exposures.by_repetitions()[repetitions])

    def record(self) -> dict[str, Any]:
        """The figures for a record; no secret is in them."""
        return {
            "parameters": self.model.num_parameters(),
            "rows": len(self.trainer.train_dataset),  # type: ignore[arg-type]
            **self.losses[-1][1],
            "exposures": [
                {
                    "repetitions": one.canary.repetitions,
                    "bits": one.bits,
                    "low": one.low,
                    "high": one.high,
                    "log_perplexity": one.log_perplexity,
                }
                for one in self.exposures
            ],
        }


def mean_bits(group: Iterable[Exposure]) -> float:
    """The mean exposure of some canaries, in bits."""
    return fmean(one.bits for one in group)


def inserted_text(
    spec: Training, canaries: Canaries | None = None
) -> tuple[list[str], Dataset, Dataset, Canaries]:
    """The text to train on, rows of it with the canaries in them, held-out rows, and the canaries.

    Args:
        canaries: None draws those that `spec` tells of.

    Raises:
        ValueError: the text is too short.
    """
    lines = paragraphs(spec.text)
    order = list(range(len(lines)))
    random.Random(spec.seed).shuffle(order)
    held = max(20, int(HELD_OUT * len(lines)))
    if len(lines) < 2 * held:
        raise ValueError(
            f"Training: text has only {len(lines)} paragraphs of more than 20 characters; give at "
            "least 100"
        )
    train, total = [], 0
    for number in order[held:]:
        if spec.characters is not None and total >= spec.characters:
            break
        train.append(lines[number])
        total += len(lines[number])
    test = [lines[number] for number in order[:held]]
    if spec.characters is not None:
        # Losses on more text than was trained on cost more than they tell.
        test = test[: max(20, int(len(test) * min(1.0, spec.characters / 200_000)))]
    if canaries is None:
        fmt = SecretFormat(spec.template, secret=spec.secret)
        canaries = Canaries.generate(
            fmt, spec.repetitions, spec.per_repetition, spec.seed, include=spec.include
        )
    rows = Dataset.from_dict({"text": train})
    if spec.place == "random":
        rows = inject_canaries(rows, canaries, seed=spec.seed)
    else:
        rows = Dataset.from_dict({"text": _after_start(train, canaries)})
    return train, rows, Dataset.from_dict({"text": test}), canaries


def _after_start(lines: list[str], canaries: Canaries) -> list[str]:
    """The canaries after the first twentieth of the text, as the paper's section 5.2 has it."""
    inserted = [one.text for one in canaries for _ in range(one.repetitions)]
    at = max(1, len(lines) // 20)
    return [*lines[:at], *inserted, *lines[at:]]


def new_model(spec: Training, vocabulary: int) -> PreTrainedModel:
    """An untrained model of the sizes that are asked for.

    Raises:
        ValueError: the kind of model is not known.
    """
    if spec.model == "llama":
        return small_llama(
            vocabulary,
            spec.seed,
            hidden_size=spec.width,
            intermediate_size=3 * spec.width,
            num_hidden_layers=spec.layers,
            attention_dropout=spec.dropout,
            max_position_embeddings=max(256, spec.length),
        )
    if spec.model not in ("lstm", "gru"):
        raise ValueError(f"Training: model={spec.model!r} is not known; use llama, lstm or gru")
    torch.manual_seed(spec.seed)
    config = RecurrentConfig(
        vocab_size=vocabulary,
        kind=spec.model,
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        dropout=spec.dropout,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return RecurrentForCausalLM(config)


def train(
    spec: Training,
    canaries: Canaries | None = None,
    *,
    trainer_class: Any = None,
    **trainer_options: Any,
) -> Trained:
    """Train, and measure as `spec.evaluate` says.

    Args:
        canaries: None draws those that `spec` tells of.
        trainer_class: None is transformers' Trainer.
        trainer_options: more arguments for it.
    """
    plain, rows, held_out, canaries = inserted_text(spec, canaries)
    # A tokenizer that has seen the canaries gives their pieces away by itself.
    tokenizer = train_tokenizer(plain, spec.vocabulary)
    train_rows = tokenize(rows, tokenizer, spec.length)
    test_rows = tokenize(held_out, tokenizer, spec.length)
    verify_injection(train_rows, tokenizer, canaries).raise_if_lost()
    seen = train_rows.select(range(min(len(train_rows), len(test_rows))))
    model = new_model(spec, len(tokenizer))
    callback = ExposureCallback(
        canaries,
        tokenizer,
        samples=spec.samples,
        seed=spec.seed,
        errors="raise",
        every_n_steps=1 if spec.evaluate == "step" else None,
        # The canaries' own scores first, then room for all draws, for each format.
        max_forwards=len({one.format for one in canaries}) * 10 * spec.samples + 30 * len(canaries),
        batch_size=256,
    )
    arguments = {
        "num_train_epochs": spec.epochs,
        "per_device_train_batch_size": spec.batch,
        "per_device_eval_batch_size": 64,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": spec.schedule,
        "weight_decay": spec.weight_decay,
        "optim": spec.optimizer,
        "warmup_steps": 20 if spec.schedule == "linear" else 0,
        "eval_strategy": "epoch",
        "eval_delay": 0 if spec.evaluate == "epoch" else spec.epochs - 0.01,
        "seed": spec.seed,
        "train_sampling_strategy": spec.order,
    }
    trainer = run_trainer(
        trainer_class or Trainer,
        arguments,
        tokenizer,
        model=model,
        train_dataset=train_rows,
        eval_dataset={"test": test_rows, "train": seen},
        callbacks=[callback],
        **trainer_options,
    )
    losses = _losses(trainer.state.log_history)
    return Trained(spec, model, tokenizer, canaries, callback, trainer, losses)


def run_trainer(
    kind: Any, arguments: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, **options: Any
) -> Any:
    """Train quietly, and leave no file.

    Args:
        kind: the class of the Trainer.
        arguments: of TrainingArguments, besides.
        options: of the Trainer, besides.

    Returns:
        The Trainer.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = kind(
            args=TrainingArguments(
                folder,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_pin_memory=False,
                **arguments,
            ),
            processing_class=tokenizer,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            **options,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.train()
    return trainer


def _losses(log: list[dict[str, Any]]) -> list[tuple[float, dict[str, float]]]:
    """Losses by epoch, from the Trainer's log."""
    by_epoch: dict[float, dict[str, float]] = {}
    for row in log:
        for key in ("test", "train"):
            if f"eval_{key}_loss" in row:
                by_epoch.setdefault(row["epoch"], {})[f"{key}_loss"] = row[f"eval_{key}_loss"]
    return sorted(by_epoch.items())
