"""The demo: a small model, real text, inserted canaries, and what became of them.

Everything is made on the spot: a tokenizer and a Llama of four layers, trained from scratch on the
help texts that every Python has, or on another text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_exposure.attacks.extraction import Extractions, extract_secrets
from hf_exposure.attacks.generation import generate_secrets
from hf_exposure.attacks.generations import Generations
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.injection import inject_canaries
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.verification import verify_injection
from hf_exposure.cli.small import paragraphs, small_llama, tokenize, train_tokenizer
from hf_exposure.exposure.history import History, Measurement
from hf_exposure.exposure.measure import measure_exposure
from hf_exposure.exposure.results import Exposures
from hf_exposure.reports.page import write_report
from hf_exposure.training.callback import ExposureCallback
from hf_exposure.utils.files import there_already

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import RenderableType
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

FORMAT = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
KNOWN = "281265017"  # the paper's own example
REPETITIONS = (0, 1, 2, 4, 8, 16, 32)
WRITTEN = ("canaries.json", "exposures.json", "report.html", "model.safetensors", "config.json")


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        canaries: what was inserted.
        history: the exposures after every epoch.
        exposures: those of the trained model, our estimator first, then the paper's two.
        extracted: the secrets that came out by search.
        generated: how often the canaries came out by asking the model to write.
        folder: holds the model, the tokenizer, `canaries.json`, `exposures.json`,
            `exposure_history.json` and the report.
        report: the report's path.
        seconds: how long all of it took.
    """

    canaries: Canaries
    history: History
    exposures: tuple[Exposures, Exposures, Exposures]
    extracted: Extractions
    generated: Generations
    folder: Path
    report: Path
    seconds: float


def run_demo(
    folder: str | Path = "demo",
    lines: Iterable[str] | None = None,
    *,
    epochs: int = 8,
    per_repetition: int = 3,
    seed: int = 0,
    reveal: bool = False,
    overwrite: bool = False,
    say: Callable[[RenderableType], None] = print,
    after_epoch: Callable[[Measurement], None] = lambda measurement: None,
    **model_settings: Any,
) -> DemoResult:
    """Insert canaries into real text, train a small model on it, and show what it has memorized.

    Args:
        folder: where the model, the canaries and the report go.
        lines: the text; None takes Python's help texts.
        epochs: how often the model sees it.
        per_repetition: canaries for each of 0, 1, 2, 4, 8, 16 and 32 repetitions.
        seed: of the canaries, the model and the training.
        reveal: show secrets in what is said and in the report.
        overwrite: replace an earlier demo in the folder, but never the manifest of other canaries.
        say: gets each piece of the story, a string or a rich table.
        after_epoch: gets each measurement as it is made.
        model_settings: for `LlamaConfig`.

    Raises:
        FileExistsError: the folder has such files already, and not `overwrite`.
        ValueError: there is too little text.
    """
    start = time.perf_counter()
    folder = Path(folder)
    for name in () if overwrite else WRITTEN:
        if (folder / name).exists():
            raise FileExistsError(there_already(folder / name, "run_demo"))
    rows = list(paragraphs() if lines is None else lines)
    if len(rows) < 100:
        raise ValueError(
            f"run_demo: the text has only {len(rows)} paragraphs of more than 20 characters; "
            "give at least 100, so that there is something to learn besides the canaries"
        )
    canaries = Canaries.generate(FORMAT, REPETITIONS, per_repetition, seed, include=[KNOWN])
    train, held_out, tokenizer = _prepare(rows, canaries, seed)
    folder.mkdir(parents=True, exist_ok=True)
    canaries.save(folder / "canaries.json")
    say(
        f"{len(rows):,} paragraphs of text, and {len(canaries)} canaries in them:\n"
        f"  {FORMAT.render('•' * 9)}\n"
        f"9 random digits, one number of a billion, inserted {', '.join(map(str, REPETITIONS))} "
        f"times,\n{per_repetition} canaries each, the paper's own example among those inserted "
        "most often."
    )
    survived = verify_injection(train, tokenizer, canaries)
    survived.raise_if_lost()

    model = small_llama(len(tokenizer), seed, **model_settings)
    say(f"Training a Llama of {model.num_parameters() / 1e6:.1f} million parameters from scratch.")
    callback = ExposureCallback(canaries, tokenizer, seed=seed)
    _train(model, tokenizer, train, held_out, callback, folder, epochs, seed, after_epoch)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    say("\nHow exposed is each canary now?")
    exposures = measure_exposure(model, tokenizer, canaries, seed=seed)
    exposures.save(folder / "exposures.json", overwrite=True)
    say(exposures.table(reveal))
    sampling = measure_exposure(model, tokenizer, canaries, method="sampling", seed=seed)
    skewnorm = measure_exposure(model, tokenizer, canaries, method="skewnorm", seed=seed)

    say("\nDo they come out? The most likely of a billion numbers, by shortest-path search:")
    extracted = extract_secrets(
        model, tokenizer, FORMAT, count=10, max_forwards=20_000, canaries=canaries
    )
    say(extracted.table(reveal))
    say("\nAnd by asking the model to go on after the words before the secret, 100 times:")
    generated = generate_secrets(model, tokenizer, canaries, num_samples=100, seed=seed)
    say(generated.table(reveal))
    report = write_report(
        folder / "report.html",
        exposures=exposures,
        history=callback.history,
        overwrite=True,
        extractions=extracted,
        generations=generated,
        compare=[sampling, skewnorm],
        title="What the demo's model memorized",
        reveal=reveal,
    )
    seconds = time.perf_counter() - start
    return DemoResult(
        canaries,
        callback.history,
        (exposures, sampling, skewnorm),
        extracted,
        generated,
        folder,
        report,
        seconds,
    )


def _prepare(
    rows: list[str], canaries: Canaries, seed: int
) -> tuple[Dataset, Dataset, PreTrainedTokenizerFast]:
    """Training tokens with canaries in them, held-out tokens without, and the tokenizer."""
    from datasets import Dataset

    parts = Dataset.from_dict({"text": rows}).train_test_split(test_size=0.05, seed=seed)
    inserted = inject_canaries(parts["train"], canaries, seed=seed)
    tokenizer = train_tokenizer(inserted["text"])
    return tokenize(inserted, tokenizer), tokenize(parts["test"], tokenizer), tokenizer


def _train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    train: Dataset,
    held_out: Dataset,
    callback: ExposureCallback,
    folder: Path,
    epochs: int,
    seed: int,
    after_epoch: Callable[[Measurement], None],
) -> None:
    from transformers import (
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )
    from transformers.trainer_callback import PrinterCallback

    class Live(TrainerCallback):
        def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
            if callback.history:
                after_epoch(callback.history[-1])

    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder),
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=32,
            learning_rate=1e-3,
            warmup_steps=50,
            eval_strategy="epoch",
            logging_strategy="epoch",
            save_strategy="no",
            seed=seed,
            train_sampling_strategy="group_by_length",  # most paragraphs are far shorter than 128
            report_to=[],
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[callback, Live()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
