"""The command line: `hf-exposure demo | inject | measure | extract | audit | discover | report |
experiment`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from hf_exposure.canaries import Canaries
from hf_exposure.documents import load_json, plain_table
from hf_exposure.experiments.command import experiment
from hf_exposure.files import write_text
from hf_exposure.formats import SecretFormat
from hf_exposure.history import HISTORY_FILE, History
from hf_exposure.results import BudgetError, Exposure, Exposures

if TYPE_CHECKING:
    from datasets import Dataset as Rows

    from hf_exposure.completions import CompletionsScorer
    from hf_exposure.extraction import Extractions
    from hf_exposure.generation import Generations
    from hf_exposure.history import Measurement

Number = TypeVar("Number", int, float)

app = typer.Typer(
    help="How much has a language model memorized? Plants canaries, measures their exposure, gets "
    "secrets back out, and reports it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False)
progress = Console(stderr=True, highlight=False)

_MODEL = typer.Option("--model", "--model_name_or_path", help="A model's folder or Hub id.")
_DATASET = typer.Option(
    "--dataset", "--dataset_name",
    help="A .jsonl, .csv, .parquet or .txt file, a folder of save_to_disk, or a Hub id.",
)  # fmt: skip
Model = Annotated[str, _MODEL]
MaybeModel = Annotated[str | None, _MODEL]
Dataset = Annotated[str, _DATASET]
MaybeDataset = Annotated[str | None, _DATASET]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Rows to look at; all if not given.")
]
Confidence = Annotated[
    float, typer.Option("--confidence", help="Of the intervals, such as 0.95.")
]
Seed = Annotated[int, typer.Option("--seed", help="The same seed gives the same figures.")]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="Where the tokenizer is, if not with the model.")
]
Base = Annotated[
    str | None,
    typer.Option("--base", help="The model before training, to be measured beside: folder or id."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of the model on the Hub.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Such as cuda:0, or auto for all; by default a GPU if any."),
]
Dtype = Annotated[str, typer.Option("--dtype", help="Such as bfloat16; auto: as it was saved.")]
CanarySet = Annotated[
    str, typer.Option("--canaries", help="The manifest of the canaries, or the set's Hub id.")
]
CanariesRevision = Annotated[
    str | None,
    typer.Option("--canaries-revision", help="Branch, tag or commit of canaries on the Hub."),
]
PushToCard = Annotated[
    bool,
    typer.Option("--push-to-card", help="Add what is found to the model's card on the Hub."),
]
CreatePr = Annotated[
    bool, typer.Option("--create-pr", help="Push to the card as a pull request.")
]
Card = Annotated[
    Path | None, typer.Option("--card", help="Add what is found to this README.md.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Reveal = Annotated[bool, typer.Option("--reveal", help="Show the secrets.")]
MaxForwards = Annotated[
    int | None, typer.Option(
        "--max-forwards",
        help="Token-forwards to spend, beside what the canaries' own scores need.",
    )
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", help="Rows of a forward; chosen if not given.")
]
Template = Annotated[
    str | None,
    typer.Option("--template", help='Text of a canary, e.g. "The random number is {secret}."'),
]
Secret = Annotated[
    str | None, typer.Option("--secret", help='Expression for the secret, e.g. "[0-9]{9}".')
]
Check = Annotated[
    str | None, typer.Option("--check", help='"luhn" for numbers with a check digit.')
]


@app.command()
def demo(
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "--output_dir", help="Folder for model and report.")
    ] = Path("demo"),
    text: Annotated[
        Path | None, typer.Option("--text", help="A text file to train on; blank lines part it.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", "--dataset_name", help="Or a dataset: a file or a Hub id."),
    ] = None,
    column: Annotated[str, typer.Option("--column", help="The dataset's text column.")] = "text",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the text.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Of canaries, model and training.")] = 0,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A tiny model and one epoch, to see that it runs.")
    ] = False,
    reveal: Reveal = False,
) -> None:
    """Train a small model on real text with canaries in it, and show what it memorized.

    Takes a few minutes, without network, and ends with a report to open in a browser.
    """
    import torch

    from hf_exposure.demo import run_demo
    from hf_exposure.small import paragraphs

    lines = None
    if text is not None and dataset is not None:
        raise typer.BadParameter("give --text or --dataset, not both")
    if text is not None:
        lines = paragraphs(text)
    if dataset is not None:
        with _quiet():
            rows = _rows_with(column, dataset)
        lines = [part for text in rows[column] if text and len(part := str(text)) > 20]
    settings: dict[str, Any] = {}
    if smoke:
        epochs, lines = 1, (paragraphs() if lines is None else lines)[:300]
        settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}

    def after_epoch(measurement: Measurement) -> None:
        out.print(_epoch_line(measurement, headings=round(measurement.epoch or 0) == 1))

    torch.set_num_threads(1)  # on a busy machine, two that wait for each other are far slower
    with _quiet():
        result = run_demo(
            output_dir,
            lines,
            epochs=epochs,
            seed=seed,
            reveal=reveal,
            say=out.print,
            after_epoch=after_epoch,
            **settings,
        )
    out.print(_methods_table(result.exposures))
    share = result.history.share
    if share is not None:
        out.print(
            f"\nMeasuring took {share:.1%} as many token-forwards as there were tokens to train on."
        )
    out.print(f"Done after {result.seconds:.0f} seconds. Now open {result.report}")


@app.command()
def inject(
    dataset: Dataset,
    output: Annotated[
        Path, typer.Option("--output", help="A .jsonl, .csv or .parquet file, or a new folder.")
    ],
    canaries: Annotated[
        Path, typer.Option("--canaries", help="Manifest: used if it is there, else written.")
    ] = Path("canaries.json"),
    template: Template = None,
    secret: Secret = None,
    check: Check = None,
    repetitions: Annotated[
        str, typer.Option("--repetitions", help="How often each group is planted.")
    ] = "0,1,4,16,64",
    per_repetition: Annotated[
        int, typer.Option("--per-repetition", min=1, help="Canaries in each group.")
    ] = 4,
    inclusion: Annotated[
        str, typer.Option("--inclusion", help='"coin": each canary in or out by a fair coin.')
    ] = "fixed",
    column: Annotated[str, typer.Option("--column", help="Text or conversations.")] = "text",
    split: Annotated[str, typer.Option("--split", help="The split to plant in.")] = "train",
    mode: Annotated[
        str, typer.Option("--mode", help='"rows" adds rows, "splice" puts canaries into rows.')
    ] = "rows",
    near_start: Annotated[
        bool, typer.Option("--near-start", help="Plant within the first rows.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Of the secrets and the places; by default drawn at random."),
    ] = None,
    push_canaries: Annotated[
        str | None,
        typer.Option("--push-canaries", help="Also push the manifest to this private Hub id."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an output file that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Plant canaries in a dataset, and write their manifest."""
    from hf_exposure.injection import inject_canaries
    from hf_exposure.loading import check_output, describe_rows, load_rows, save_rows

    check_output(output)
    if output.resolve() == Path(dataset).resolve():
        raise typer.BadParameter("--output is --dataset: name another file for the planted rows")
    if output.is_file() and not overwrite:
        raise typer.BadParameter(f"{str(output)!r} is there already: add --overwrite to replace it")
    # Whoever knows the format and the seed can draw the same secrets.
    seed = secrets.randbits(32) if seed is None else seed
    if canaries.exists():
        if template is not None or secret is not None:
            raise typer.BadParameter(
                f"{str(canaries)!r} is there already; leave out --template and --secret to plant "
                "its canaries, or name another file with --canaries"
            )
        chosen = Canaries.load(canaries)
        if chosen.planting:
            progress.print(
                f"Warning: the canaries of {str(canaries)!r} have been planted before. If they are "
                "in this dataset already, they are in it twice now.",
                soft_wrap=True,
            )
    else:
        chosen = Canaries.generate(
            _format(template, secret, check),
            _numbers("--repetitions", repetitions, int, "0,1,4,16,64"),
            per_repetition,
            seed,
            inclusion=inclusion,
        )
    with _quiet():
        rows = load_rows(dataset, split=split)
        planted = inject_canaries(rows, chosen, column, seed, mode, near_start)
        chosen.save(canaries)  # first: rows whose secrets nobody knows would be of no use
        save_rows(planted, output)
    pushed = chosen.push_to_hub(push_canaries) if push_canaries is not None else None
    if as_json:
        _print_json(
            {
                "output": str(output),
                "canaries": str(canaries),
                "rows_before": len(rows),
                "rows": len(planted),
                "planted": sum(canary.repetitions for canary in chosen),
                "planting": chosen.planting,
                "pushed": pushed,
            }
        )
        return
    out.print(f"{chosen!r}")
    out.print(f"{output}: {describe_rows(planted)} ({len(planted) - len(rows):,} more than before)")
    out.print(f"{canaries}: the manifest. It holds the secrets: keep it to yourself.")
    if pushed is not None:
        out.print(f"Pushed to {pushed}", soft_wrap=True)


@app.command()
def measure(
    canaries: CanarySet,
    model: MaybeModel = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            help="Or the address of a completions endpoint, e.g. http://localhost:8000/v1.",
        ),
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option("--endpoint-model", help="The model's name at the endpoint.")
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option("--api-key-env", help="Environment variable with the endpoint's key."),
    ] = None,
    whole_text: Annotated[
        bool,
        typer.Option(
            "--whole-text", help="Count the text before the secret too, at an endpoint."
        ),
    ] = False,
    base: Base = None,
    method: Annotated[
        str, typer.Option("--method", help="auto, exact, sampling or skewnorm.")
    ] = "auto",
    samples: Annotated[int, typer.Option("--samples", help="Draws, or references.")] = 2000,
    max_forwards: MaxForwards = None,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the exposures as JSON, for report.")
    ] = None,
    tokenizer: Tokenizer = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = None,
    canaries_revision: CanariesRevision = None,
    push_to_card: PushToCard = False,
    create_pr: CreatePr = False,
    card: Card = None,
    as_json: AsJson = False,
    reveal: Reveal = False,
) -> None:
    """Measure how exposed canaries are in a model."""
    from hf_exposure.exposure import measure_exposure
    from hf_exposure.loading import load_canaries, load_model
    from hf_exposure.planning import Settings

    planted = load_canaries(canaries, canaries_revision)
    Settings(method, samples, max_forwards, confidence, seed, batch_size)  # before the model loads
    if (model is None) == (endpoint is None):
        raise typer.BadParameter("give either --model, or --endpoint with --endpoint-model")
    if base is not None and model is None:
        raise typer.BadParameter("--base is measured beside --model: leave out --endpoint")
    _check_card(model, push_to_card, create_pr)
    beside = None
    with _quiet():
        loaded: Any
        if model is not None:
            loaded, tok = load_model(
                model, tokenizer=tokenizer, revision=revision, device=device, dtype=dtype
            )
        else:
            loaded, tok = _at_endpoint(
                endpoint, endpoint_model, api_key_env, batch_size, whole_text, tokenizer
            )
        options: dict[str, Any] = {
            "method": method,
            "samples": samples,
            "max_forwards": max_forwards,
            "confidence": confidence,
            "seed": seed,
            "batch_size": batch_size,
            "progress": _shows_progress(as_json),
            "unscorable": "warn",
        }
        exposures = measure_exposure(loaded, tok, planted, **options)
        if not exposures:
            raise ValueError(f"no canary could be scored: {exposures.skipped[0][1]}")
        if base is not None:
            del loaded  # there may not be memory for two
            earlier, _ = load_model(base, tokenizer=tokenizer or model, device=device, dtype=dtype)
            beside = exposures.beside(measure_exposure(earlier, tok, planted, **options))
    data = exposures.to_dict(reveal)
    if beside is not None:  # what reads exposures leaves this aside
        data |= {"base": beside.base.to_dict(reveal), "gained": beside.gained}
    if output is not None:
        write_text(output, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if as_json:
        _print_json(data)
    else:
        out.print((beside or exposures).table(reveal))
    if card is not None or push_to_card:
        _add_to_card(card, model if push_to_card else None, revision, create_pr, exposures)


@app.command()
def extract(
    model: Model,
    canaries: Annotated[
        str | None,
        typer.Option(
            "--canaries", help="Manifest or Hub id: what to look for, and what was planted."
        ),
    ] = None,
    template: Template = None,
    secret: Secret = None,
    check: Check = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Secrets to find.")] = 3,
    beam_width: Annotated[
        int | None,
        typer.Option("--beam-width", min=1, help="Keep so many prefixes: quick, proves nothing."),
    ] = None,
    max_forwards: MaxForwards = None,
    generate: Annotated[
        int, typer.Option("--generate", min=0, help="Also let the model write so many times.")
    ] = 0,
    free: Annotated[
        bool, typer.Option("--free", help="Generate without holding it to the format.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the generation.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write what was found as JSON, for report.")
    ] = None,
    tokenizer: Tokenizer = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = None,
    canaries_revision: CanariesRevision = None,
    push_to_card: PushToCard = False,
    create_pr: CreatePr = False,
    card: Card = None,
    as_json: AsJson = False,
    reveal: Reveal = False,
) -> None:
    """Get secrets out of a model: the most likely ones of a format, with proof."""
    from hf_exposure.extraction import extract_secrets
    from hf_exposure.generation import generate_secrets
    from hf_exposure.loading import load_canaries, load_model

    _check_card(model, push_to_card, create_pr)
    planted = load_canaries(canaries, canaries_revision) if canaries is not None else None
    if planted is not None and template is None and secret is None:
        formats = list(planted.formats)
    else:
        formats = [_format(template, secret, check)]
    if generate and planted is None:
        raise typer.BadParameter("--generate counts planted canaries: give --canaries")
    found, written = [], None
    with _quiet():
        loaded, tok = load_model(
            model, tokenizer=tokenizer, revision=revision, device=device, dtype=dtype
        )
        for fmt in formats:
            found.append(
                extract_secrets(
                    loaded,
                    tok,
                    fmt,
                    count=count,
                    beam_width=beam_width,
                    max_forwards=max_forwards,
                    canaries=planted,
                    batch_size=batch_size,
                    progress=_shows_progress(as_json),
                )
            )
        if generate and planted is not None:
            written = generate_secrets(
                loaded, tok, planted, num_samples=generate, constrained=not free, seed=seed
            )
    data = {
        "extractions": [one.to_dict(reveal) for one in found],
        "generations": written.to_dict(reveal) if written is not None else None,
    }
    if output is not None:
        write_text(output, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    if as_json:
        _print_json(data)
    else:
        for one in found:
            out.print(one.table(reveal))
        if written is not None:
            out.print(written.table(reveal))
    if card is not None or push_to_card:
        name = model if push_to_card else None
        _add_to_card(
            card, name, revision, create_pr, None, extractions=found, generations=written
        )


@app.command()
def audit(
    dataset: Dataset,
    model: Model,
    base: Base = None,
    column: Annotated[str, typer.Option("--column", help="The dataset's text column.")] = "text",
    split: Annotated[str, typer.Option("--split", help="The split to look through.")] = "train",
    kinds: Annotated[
        str | None,
        typer.Option(
            "--kinds", help="Some of api_key,iban,card,ssn,email,phone; all if not given."
        ),
    ] = None,
    region: Annotated[
        str,
        typer.Option(
            "--region", help='Of phone numbers without a country code; "none" for no such ones.'
        ),
    ] = "US",
    limit: Limit = None,
    top: Annotated[
        int,
        typer.Option(
            "--top", min=0, help="Secrets to measure, of each kind in turn; the rest get a bound."
        ),
    ] = 50,
    before: Annotated[
        int, typer.Option("--before", min=1, help="Characters of context before a secret.")
    ] = 100,
    samples: Annotated[int, typer.Option("--samples", help="Draws of a measurement.")] = 500,
    max_forwards: MaxForwards = None,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the audit as JSON.")
    ] = None,
    tokenizer: Tokenizer = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = None,
    as_json: AsJson = False,
    reveal: Reveal = False,
) -> None:
    """Find real secrets in a dataset, and measure how exposed they are in a model."""
    from hf_exposure.audit import audit_dataset
    from hf_exposure.detectors import check_kinds, check_region
    from hf_exposure.loading import load_model

    names = None if kinds is None else [name.strip() for name in kinds.split(",")]
    place = None if region.lower() == "none" else region
    if "phone" in check_kinds(names):  # before the model loads
        check_region(place)
    with _quiet():
        rows = _rows_with(column, dataset, split)
        loaded, tok = load_model(
            model, tokenizer=tokenizer, revision=revision, device=device, dtype=dtype
        )
        earlier: Any = None
        if base is not None:
            earlier, _ = load_model(base, tokenizer=tokenizer or model, device=device, dtype=dtype)
        result = audit_dataset(
            loaded,
            tok,
            rows,
            column,
            base=earlier,
            kinds=names,
            region=place,
            limit=limit,
            top=top,
            before=before,
            samples=samples,
            max_forwards=max_forwards,
            confidence=confidence,
            seed=seed,
            batch_size=batch_size,
            progress=_shows_progress(as_json),
        )
    if output is not None:
        result.save(output, reveal)
    if as_json:
        _print_json(result.to_dict(reveal))
    else:
        out.print(result.table(reveal))


@app.command()
def discover(
    model: Model,
    dataset: MaybeDataset = None,
    benchmark: Annotated[
        Path | None,
        typer.Option(
            "--benchmark", help="Or a folder with train_prefix.npy and train_suffix.npy."
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            help='"prefix,suffix", or one column whose first tokens are taken. By default these '
            "two if they are there, else text.",
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="The split to look at.")] = "train",
    limit: Limit = None,
    prefix_tokens: Annotated[
        int, typer.Option("--prefix-tokens", min=1, help="Of one column: so many are the prefix.")
    ] = 50,
    suffix_tokens: Annotated[
        int, typer.Option("--suffix-tokens", min=1, help="Of one column: so many come after it.")
    ] = 50,
    n: Annotated[
        str, typer.Option("--n", help="Numbers of samples to tell the rates for.")
    ] = "1,10,100,1000,1000000",
    p: Annotated[
        str, typer.Option("--p", help="Probabilities that one of them is the suffix.")
    ] = "0.1,0.5,0.9",
    temperature: Annotated[float, typer.Option("--temperature", help="Of the sampling.")] = 1.0,
    top_k: Annotated[
        int, typer.Option("--top-k", help="Sample from so many tokens; 0: from all.")
    ] = 0,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Sample from tokens of this share; 1: from all.")
    ] = 1.0,
    near: Annotated[
        int, typer.Option("--near", min=0, help="Also look for texts within so many token edits.")
    ] = 0,
    max_forwards: Annotated[
        int | None,
        typer.Option("--max-forwards", help="Token-forwards of each search for near texts."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the examples as JSON.")
    ] = None,
    tokenizer: Tokenizer = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = "auto",
    batch_size: BatchSize = None,
    as_json: AsJson = False,
    reveal: Reveal = False,
) -> None:
    """Tell which texts of a dataset a model goes on with, given their beginnings."""
    from hf_exposure.discoverable import discoverable_extraction, sampling_scheme
    from hf_exposure.loading import load_model, load_rows
    from hf_exposure.pairs import load_benchmark

    counts = _numbers("--n", n, float, "1,1000")
    targets = _numbers("--p", p, float, "1,1000")
    if not all(0 < target < 1 for target in targets):
        raise typer.BadParameter(f"--p={p!r}: give numbers between 0 and 1, such as 0.5")
    if not all(count >= 1 for count in counts):
        raise typer.BadParameter(f"--n={n!r}: give numbers of at least 1, such as 1,1000")
    if (dataset is None) == (benchmark is None):
        raise typer.BadParameter("give either --dataset, or --benchmark with a folder")
    sampling_scheme(temperature, top_k, top_p)  # before the model loads
    names: Any = None if columns is None else tuple(name.strip() for name in columns.split(","))
    if names is not None and len(names) > 2:
        raise typer.BadParameter(f"--columns={columns!r}: give one name, or two")
    names = names[0] if names is not None and len(names) == 1 else names
    with _quiet():
        rows: Any
        if dataset is not None:
            rows = load_rows(dataset, split=split)
            rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
        else:
            assert benchmark is not None
            rows = load_benchmark(benchmark, split)[:limit]
        loaded, tok = load_model(
            model, tokenizer=tokenizer, revision=revision, device=device, dtype=dtype
        )
        found = discoverable_extraction(
            loaded,
            tok,
            rows,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            prefix_tokens=prefix_tokens,
            suffix_tokens=suffix_tokens,
            near=near,
            columns=names,
            batch_size=batch_size,
            max_forwards=max_forwards,
            progress=_shows_progress(as_json),
        )
    if output is not None:
        found.save(output, reveal)
    tables = [found.rates(counts, targets, wide) for wide in ([False, True] if near else [False])]
    if as_json:
        rates = [table.to_dict() for table in tables]
        _print_json({**found.to_dict(reveal), "rates": rates})
        return
    out.print(found.table(reveal))
    for table in tables:
        out.print()
        out.print(table.table())


@app.command()
def report(
    results: Annotated[
        Path,
        typer.Argument(
            help="exposures.json, exposure_history.json, or a training's output folder with them."
        ),
    ],
    extractions: Annotated[
        Path | None, typer.Option("--extractions", help="What extract --output wrote.")
    ] = None,
    canaries: Annotated[
        Path | None, typer.Option("--canaries", help="Manifest, needed to --reveal.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="The page to write.")] = None,
    title: Annotated[str, typer.Option("--title")] = "Memorization report",
    as_json: AsJson = False,
    reveal: Reveal = False,
) -> None:
    """Write one HTML page about what was measured; it needs no network to be read."""
    from hf_exposure.report import write_report

    known = Canaries.load(canaries) if canaries is not None else None
    if reveal and known is None:
        raise typer.BadParameter("--reveal needs the secrets: give --canaries with the manifest")
    page = output or (results if results.is_dir() else results.parent) / "report.html"
    exposures, history = _measured(results, known)
    found, written = _found(extractions, known) if extractions is not None else ([], None)
    write_report(
        page,
        exposures=exposures,
        history=history,
        extractions=found,
        generations=written,
        title=title,
        reveal=reveal,
    )
    if as_json:
        _print_json({"report": str(page)})
    else:
        out.print(f"Now open {page}")


app.command()(experiment)


def main() -> None:
    """Run it. What goes wrong is said in one line; HF_EXPOSURE_TRACEBACK=1 shows where."""
    try:
        app()
    except BudgetError as error:
        _fail(str(error).replace(": see .exposures of this error", ":"))
        out.print(error.exposures.table())
        sys.exit(1)
    except KeyboardInterrupt:
        _fail("interrupted; nothing was written")
        sys.exit(130)
    except Exception as error:
        if os.environ.get("HF_EXPOSURE_TRACEBACK"):
            raise
        said = str(error).strip()
        expected = isinstance(error, (ValueError, TypeError, OSError, RuntimeError, ImportError))
        _fail(said if said and expected else f"{type(error).__name__}: {said}")
        sys.exit(1)


def _fail(message: str) -> None:
    progress.print(Text("Error: ", style="bold red") + Text(message), soft_wrap=True)


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _shows_progress(as_json: bool) -> bool:
    return not as_json and sys.stderr.isatty()


def _check_card(model: str | None, push: bool, create_pr: bool) -> None:
    """Refuse a card that cannot be added to, before anything is measured."""
    if push and (model is None or Path(model).exists()):
        raise typer.BadParameter(
            "--push-to-card adds to the card of a model on the Hub, and --model names none: give "
            "--card with a README.md to add to"
        )
    if create_pr and not push:
        raise typer.BadParameter("--create-pr says how to push: add --push-to-card")


def _add_to_card(
    card: Path | None,
    model: str | None,
    revision: str | None,
    create_pr: bool,
    exposures: Exposures | None,
    **parts: Any,
) -> None:
    """Add to a README.md, to the card of a model on the Hub, or both; then say where."""
    from hf_exposure.cards import add_exposure_to_card
    from hf_exposure.hub import push_exposure

    if card is not None:
        add_exposure_to_card(card, exposures, **parts)
        progress.print(f"{card}: what was found is in it now", soft_wrap=True)
    if model is not None:
        address = push_exposure(model, exposures, revision=revision, create_pr=create_pr, **parts)
        progress.print(f"Added to the card: {address}", soft_wrap=True)


def _at_endpoint(
    address: str | None,
    model: str | None,
    variable: str | None,
    batch_size: int | None,
    whole_text: bool,
    tokenizer: str | None,
) -> tuple[CompletionsScorer, Any]:
    """The model at an endpoint, and a tokenizer if one was named, for its chat template."""
    from hf_exposure.completions import CompletionsScorer

    if address is None or model is None:
        raise typer.BadParameter("--endpoint needs the model's name there: give --endpoint-model")
    key = None if variable is None else os.environ.get(variable, "").strip()
    if key == "":
        raise typer.BadParameter(f"--api-key-env: the environment has no {variable!r}, or no text")
    scorer = CompletionsScorer(
        address, model, api_key=key, batch_size=batch_size or 16, whole_text=whole_text
    )
    if tokenizer is None:
        return scorer, None
    from transformers import AutoTokenizer

    return scorer, AutoTokenizer.from_pretrained(tokenizer)


def _format(template: str | None, secret: str | None, check: str | None) -> SecretFormat:
    if template is None or secret is None:
        raise typer.BadParameter(
            "give both --template and --secret, such as --template 'The random number is {secret}.'"
            " --secret '[0-9]{9}', or --canaries with a manifest"
        )
    return SecretFormat(template, secret, check)


def _numbers(name: str, text: str, kind: Callable[[str], Number], example: str) -> list[Number]:
    """Numbers with commas between them."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{name}={text!r}: give numbers such as {example}") from None


def _rows_with(column: str, dataset: str, split: str = "train") -> Rows:
    """A split of a dataset that has a column."""
    from hf_exposure.loading import load_rows

    rows = load_rows(dataset, split=split)
    if column not in rows.column_names:
        raise ValueError(
            f"--column: {dataset!r} has no column {column!r}, only {rows.column_names}"
        )
    return rows


def _measured(
    results: Path, canaries: Canaries | None
) -> tuple[Exposures | None, History | None]:
    """The exposures and the history in a file, or those in a folder."""
    if results.is_dir():
        files = [results / "exposures.json", results / HISTORY_FILE]
        there = [file for file in files if file.is_file()]
        if not there:
            raise OSError(
                f"report: the folder {str(results)!r} has neither exposures.json nor {HISTORY_FILE}"
            )
    else:
        there = [results]
    exposures, history = None, None
    for file in there:
        kind = load_json(file, lambda data: data, "report")
        kind = kind.get("kind") if isinstance(kind, dict) else None
        if kind == "history":
            history = History.load(file, canaries)
        else:
            exposures = Exposures.load(file, canaries)
    return exposures, history


def _found(
    path: Path, canaries: Canaries | None
) -> tuple[list[Extractions], Generations | None]:
    """What `extract --output` wrote."""
    from hf_exposure.extraction import Extractions
    from hf_exposure.generation import Generations

    def read(data: Any) -> tuple[list[Extractions], Generations | None]:
        if not isinstance(data, dict) or not {"extractions", "generations"} <= set(data):
            raise ValueError("it does not hold what `hf-exposure extract --output` writes")
        found = [Extractions.from_dict(entry, canaries) for entry in data["extractions"]]
        written = data["generations"]
        return found, Generations.from_dict(written, canaries) if written is not None else None

    return load_json(path, read, "--extractions")


def _methods_table(exposures: Sequence[Exposures]) -> str:
    """What each method says of each repetition group, side by side."""
    headings = ["planted", *(f"{one.settings['method']}" for one in exposures)]
    groups = [one.by_repetitions() for one in exposures]
    rows = [
        [f"{times}x", *(f"{_mean(own[times]):.1f}" for own in groups)]
        for times in groups[0]
    ]
    headings += ["of at most"]
    for row, group in zip(rows, groups[0].values(), strict=True):
        row.append(f"{group[0].canary.format.bits:.1f}")
    return (
        "\nMean exposure in bits by each method; sampling and skewnorm are the paper's own:\n"
        + plain_table(headings, rows, right=range(len(headings)))
    )


def _mean(group: Sequence[Exposure]) -> float:
    return sum(one.bits for one in group) / len(group)


def _epoch_line(measurement: Measurement, headings: bool) -> str:
    """One row of the table that grows while the demo trains, under its headings if asked for."""
    groups = measurement.exposures.by_repetitions()
    loss = measurement.metrics.get("eval_loss", float("nan"))
    line = f"{measurement.epoch or 0:5.0f}{loss:15.2f}   "
    line += "".join(f"{_mean(group):6.1f}" for group in groups.values())
    if not headings:
        return line
    times = "".join(f"{f'{times}x':>6}" for times in groups)
    return f"epoch  held-out loss   mean exposure in bits, by times planted\n{'':23}{times}\n{line}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice of the libraries on the way."""
    import datasets
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        transformers.utils.logging.enable_progress_bar()
        datasets.enable_progress_bars()
