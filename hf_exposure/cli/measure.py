"""`hf-exposure measure`: the exposures of canaries in a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_exposure.cli.inputs import add_to_card, check_card, check_file
from hf_exposure.cli.options import (
    AsJson,
    Base,
    BatchSize,
    CanariesRevision,
    CanarySet,
    Card,
    Confidence,
    CreatePr,
    Device,
    Dtype,
    MaxForwards,
    MaybeModel,
    Overwrite,
    PushToCard,
    Reveal,
    Revision,
    Seed,
    Tokenizer,
)
from hf_exposure.cli.terminal import out, print_json, progress, shows_progress
from hf_exposure.models.loading import quiet
from hf_exposure.utils.files import write_text

if TYPE_CHECKING:
    from hf_exposure.endpoints.completions import CompletionsScorer


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
        typer.Option("--whole-text", help="At an endpoint, also count the text before the secret."),
    ] = False,
    base: Base = None,
    method: Annotated[
        str, typer.Option("--method", help="auto, exact, sampling or skewnorm.")
    ] = "auto",
    samples: Annotated[
        int, typer.Option("--samples", help="Number of draws, or of references.")
    ] = 2000,
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
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    reveal: Reveal = False,
) -> None:
    """Measure how exposed canaries are in a model."""
    from hf_exposure.canaries.loading import load_canaries
    from hf_exposure.exposure.measure import measure_exposure
    from hf_exposure.exposure.planning import Settings
    from hf_exposure.models.loading import check_model_name, load_model

    check_file(output, overwrite=overwrite)
    check_file(card, "--card", apart=[output])
    canary_set = load_canaries(canaries, canaries_revision)
    Settings(method, samples, max_forwards, confidence, seed, batch_size)  # before the model loads
    if (model is None) == (endpoint is None):
        raise typer.BadParameter("give either --model, or --endpoint with --endpoint-model")
    of_endpoints = {"--endpoint-model": endpoint_model, "--api-key-env": api_key_env}
    for option, value in of_endpoints.items():
        if value is not None and model is not None:
            raise typer.BadParameter(f"{option} goes with --endpoint, not with --model")
    if base is not None and model is None:
        raise typer.BadParameter("--base is measured beside --model: leave out --endpoint")
    if base is not None:
        check_model_name(base, "--base")
    check_card(model, push_to_card, create_pr)
    if canary_set.inserted and not canary_set.insertions:
        progress.print(
            "Warning: these canaries have no record of having been inserted; a model that was not "
            "trained on them looks as if it memorized nothing",
            soft_wrap=True,
        )
    beside = None
    with quiet():
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
            "progress": shows_progress(as_json),
            "unscorable": "warn",
        }
        exposures = measure_exposure(loaded, tok, canary_set, **options)
        if not exposures:
            raise ValueError(f"no canary could be scored: {exposures.skipped[0][1]}")
        if base is not None:
            del loaded  # there may not be memory for two
            earlier, _ = load_model(
                base, tokenizer=tokenizer or model, device=device, dtype=dtype, argument="--base"
            )
            of_base = measure_exposure(earlier, tok, canary_set, **options)
            beside = exposures.beside(of_base)
    data = exposures.to_dict(reveal)
    if beside is not None:  # what reads exposures leaves this aside
        shown = beside if reveal else exposures.coarse().beside(of_base.coarse())
        data |= {"base": shown.base.to_dict(reveal), "gained": shown.gained}
    if as_json:
        print_json(data)
    else:
        out.print((beside or exposures).table(reveal))
    if output is not None:
        write_text(output, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if card is not None or push_to_card:
        add_to_card(card, model if push_to_card else None, revision, create_pr, exposures)


def _at_endpoint(
    address: str | None,
    model: str | None,
    variable: str | None,
    batch_size: int | None,
    whole_text: bool,
    tokenizer: str | None,
) -> tuple[CompletionsScorer, Any]:
    """The model at an endpoint, and a tokenizer if one was named, for its chat template."""
    from hf_exposure.endpoints.completions import CompletionsScorer
    from hf_exposure.models.loading import load_tokenizer

    if address is None or model is None:
        raise typer.BadParameter("--endpoint needs the model's name there: give --endpoint-model")
    key = None if variable is None else os.environ.get(variable, "").strip()
    if key == "":
        raise typer.BadParameter(f"--api-key-env: the environment has no {variable!r}, or no text")
    scorer = CompletionsScorer(
        address, model, api_key=key, batch_size=batch_size or 16, whole_text=whole_text
    )
    return scorer, None if tokenizer is None else load_tokenizer(tokenizer)
