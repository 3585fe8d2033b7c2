"""`hf-exposure measure`: the exposures of canaries in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_exposure.cli.inputs import add_to_card, check_card, check_file, check_where, model_of
from hf_exposure.cli.options import (
    ApiKeyEnv,
    AsJson,
    BatchSize,
    CanariesRevision,
    CanarySet,
    Card,
    Confidence,
    CreatePr,
    Device,
    Dtype,
    Endpoint,
    EndpointModel,
    Journal,
    MaxForwards,
    MaybeModel,
    Overwrite,
    PushToCard,
    Reveal,
    Revision,
    Seed,
    Tokenizer,
)
from hf_exposure.cli.terminal import deliver, progress, shows_progress
from hf_exposure.models.loading import quiet


def measure(
    canaries: CanarySet,
    model: MaybeModel = None,
    endpoint: Endpoint = None,
    endpoint_model: EndpointModel = None,
    api_key_env: ApiKeyEnv = None,
    journal: Journal = None,
    whole_text: Annotated[
        bool,
        typer.Option("--whole-text", help="At an endpoint, also count the text before the secret."),
    ] = False,
    score: Annotated[
        str,
        typer.Option(
            "--score",
            help="What canaries are ranked by: log_perplexity, ratio, min_k, min_k_plus_plus or "
            "zlib.",
        ),
    ] = "log_perplexity",
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="The model before training, folder or Hub id: to compare with; its score is "
            "subtracted with --score ratio, min_k and min_k_plus_plus.",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            help="auto, exact, sampling or skewnorm; with --score sampling (by default) or "
            "skewnorm.",
        ),
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
    check_where(model, endpoint, endpoint_model, api_key_env, journal)
    compared = base is not None and score == "log_perplexity"
    _check_score(score, base, model, max_forwards)
    Settings(
        method,
        samples,
        max_forwards,
        confidence,
        seed,
        batch_size,
        score=score,
        has_base=base is not None and not compared,
    )  # before the model loads
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
        loaded, tok = model_of(
            model,
            endpoint,
            endpoint_model,
            api_key_env,
            tokenizer,
            here={"revision": revision, "device": device, "dtype": dtype},
            there={"batch_size": batch_size or 16, "journal": journal, "whole_text": whole_text},
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
        given: dict[str, Any] = {"tokenizer": tokenizer or model, "device": device, "dtype": dtype}
        earlier: Any = None
        if base is not None and not compared:
            earlier, _ = load_model(base, argument="--base", **given)
        exposures = measure_exposure(loaded, tok, canary_set, **options, score=score, base=earlier)
        if not exposures:
            raise ValueError(f"no canary could be scored: {exposures.skipped[0][1]}")
        if base is not None and compared:
            del loaded  # there may not be memory for two
            earlier, _ = load_model(base, argument="--base", **given)
            of_base = measure_exposure(earlier, tok, canary_set, **options)
            beside = exposures.beside(of_base)
    data = exposures.to_dict(reveal)
    if beside is not None:  # what reads exposures leaves this aside
        shown = beside if reveal else exposures.coarse().beside(of_base.coarse())
        data |= {"base": shown.base.to_dict(reveal), "gained": shown.gained}
    deliver(data, [(beside or exposures).table(reveal)], as_json, output)
    if card is not None or push_to_card:
        add_to_card(card, model if push_to_card else None, revision, create_pr, exposures)


def _check_score(score: str, base: str | None, model: str | None, budget: int | None) -> None:
    """Refuse what a score does not go with, before anything loads."""
    from hf_exposure.exposure.scores import SCORES
    from hf_exposure.utils.checks import check_choice

    check_choice("--score", score, SCORES)
    if base is not None and model is None:
        raise typer.BadParameter("--base is measured beside --model: leave out --endpoint")
    if score == "log_perplexity":
        return
    if model is None:
        raise typer.BadParameter(
            f"--score {score} asks for all probabilities of each token, which a model at hand has: "
            "leave it out, or give --model in place of --endpoint"
        )
    if base is None and score == "ratio":
        raise typer.BadParameter(
            "--score ratio is log-perplexity less that of the model before training: give --base"
        )
    if base is not None and score == "zlib":
        raise typer.BadParameter(
            "--base has no part in --score zlib: use --score ratio, or leave out one of both"
        )
    if budget is not None:
        raise typer.BadParameter(
            f"--max-forwards bounds what exploring takes, and --score {score} scores all of "
            "--samples references: lower that instead"
        )
