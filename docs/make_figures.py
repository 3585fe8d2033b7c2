"""The figures of docs/concepts.md, and the table of docs/meaning.md, from one real run.

Trains a small Llama on Python's help texts with canaries of five and of nine digits in them,
measures them, and tries to get them out. Nothing is downloaded; a few minutes of one core.

    python docs/make_figures.py              # into docs/
    python docs/make_figures.py --smoke      # one epoch of a tiny model, to see that it runs
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

from hf_exposure import (
    Canaries,
    Exposures,
    SecretFormat,
    extract_secrets,
    generate_secrets,
    inject_canaries,
    measure_exposure,
    plot_exposure_by_repetitions,
    plot_log_perplexities,
    verify_injection,
)
from hf_exposure.cli.small import paragraphs, small_llama, tokenize, train_tokenizer
from hf_exposure.reports.drawing import new_figure

CODE = SecretFormat("The door code is {secret}.", secret=r"[0-9]{5}")
NUMBER = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
REPETITIONS = (0, 1, 2, 4, 8, 16, 32)


def train(canaries: Canaries, smoke: bool, folder: Path) -> tuple[object, object]:
    """A Llama of 1.6 million parameters, eight epochs from scratch, and its tokenizer."""
    rows = Dataset.from_dict({"text": paragraphs()[: 300 if smoke else None]})
    inserted = inject_canaries(rows, canaries)
    tokenizer = train_tokenizer(inserted["text"])
    data = tokenize(inserted, tokenizer)
    verify_injection(data, tokenizer, canaries).raise_if_lost()
    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2} if smoke else {}
    model = small_llama(len(tokenizer), **tiny)
    args = TrainingArguments(
        str(folder),
        num_train_epochs=1 if smoke else 8,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        warmup_steps=50,
        train_sampling_strategy="group_by_length",
        logging_strategy="epoch",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    Trainer(model, args, train_dataset=data, data_collator=collator).train()
    return model, tokenizer


def draw_log_perplexities(exposures: Exposures, path: Path) -> None:
    """All strings of the five-digit space, and where the canaries stand among them."""
    ax = plot_log_perplexities(exposures)
    for text in ax.get_legend().get_texts():
        if "references" in text.get_text():  # the whole space, but for what was inserted
            text.set_text(f"all {len(exposures.references[CODE]):,} codes never inserted")
    ax.figure.savefig(path, dpi=150)


def draw_exposures(exposures: Exposures, path: Path) -> None:
    """Exposure against repetitions, for each of the two spaces."""
    figure = new_figure((9.5, 4.0))
    panels = figure.subplots(1, 2)
    for ax, fmt, name in zip(panels, (CODE, NUMBER), ("five digits", "nine digits"), strict=True):
        own = Exposures([one for one in exposures if one.canary.format == fmt])
        plot_exposure_by_repetitions(own, ax)
        ax.set_ylim(0, 1.09 * NUMBER.bits)
        ax.set_title(f"{name}: {fmt.size:,} strings", fontsize="medium")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="one epoch of a tiny model")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent)
    parser.add_argument("--model-dir", type=Path, default=Path("figures_run"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output_dir.mkdir(parents=True, exist_ok=True)

    canaries = Canaries.generate([CODE, NUMBER], REPETITIONS, per_repetition=4)
    model, tokenizer = train(canaries, options.smoke, options.model_dir)
    codes = Canaries(canaries.by_format(CODE))
    samples = 500 if options.smoke else CODE.size
    everything = measure_exposure(model, tokenizer, codes, method="sampling", samples=samples)
    draw_log_perplexities(everything, options.output_dir / "log_perplexities.png")
    exposures = measure_exposure(model, tokenizer, canaries)
    draw_exposures(exposures, options.output_dir / "exposure_by_repetitions.png")

    print(exposures)
    costs = np.array(everything.references[CODE])
    print(f"log-perplexities of all: {np.percentile(costs, [0, 5, 50, 95, 100]).round(1)}")
    for one in everything:
        print(one.canary.repetitions, round(one.log_perplexity, 2), one.rank, round(one.bits, 2))
    written = generate_secrets(
        model,
        tokenizer,
        canaries,
        num_samples=100 if options.smoke else 1000,
        constrained=False,
        seed=1,
    )
    print(written)
    for fmt in (CODE, NUMBER):
        print(
            extract_secrets(model, tokenizer, fmt, count=20, max_forwards=20_000, canaries=canaries)
        )
    model.save_pretrained(options.model_dir)
    tokenizer.save_pretrained(options.model_dir)
    exposures.save(options.model_dir / "exposures.json")
    everything.save(options.model_dir / "all_codes.json")


if __name__ == "__main__":
    main()
