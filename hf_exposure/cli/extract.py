"""`hf-exposure extract`: extract secrets from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_exposure.cli.inputs import (
    add_to_card,
    check_card,
    check_file,
    check_where,
    format_of,
    model_of,
)
from hf_exposure.cli.options import (
    ApiKeyEnv,
    AsJson,
    BatchSize,
    CanariesRevision,
    Card,
    Check,
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
    Secret,
    Template,
    Tokenizer,
)
from hf_exposure.cli.terminal import deliver, shows_progress
from hf_exposure.models.loading import quiet


def extract(
    model: MaybeModel = None,
    endpoint: Endpoint = None,
    endpoint_model: EndpointModel = None,
    api_key_env: ApiKeyEnv = None,
    journal: Journal = None,
    canaries: Annotated[
        str | None,
        typer.Option(
            "--canaries", help="Manifest or Hub id: what to look for, and what was inserted."
        ),
    ] = None,
    template: Template = None,
    secret: Secret = None,
    check: Check = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Secrets to find.")] = 3,
    beam_width: Annotated[
        int | None,
        typer.Option("--beam-width", min=1, help="Keep this many prefixes: fast, but no proof."),
    ] = None,
    max_forwards: MaxForwards = None,
    generate: Annotated[
        int, typer.Option("--generate", min=0, help="Also sample this many texts from the model.")
    ] = 0,
    free: Annotated[
        bool, typer.Option("--free", help="Generate without restriction to the format.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the generation.")] = 0,
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
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    reveal: Reveal = False,
) -> None:
    """Extract secrets from a model: the most likely ones of a format, with proof."""
    from hf_exposure.attacks.extraction import extract_secrets
    from hf_exposure.attacks.generation import generate_secrets
    from hf_exposure.canaries.loading import load_canaries

    check_file(output, overwrite=overwrite)
    check_file(card, "--card", apart=[output])
    check_where(model, endpoint, endpoint_model, api_key_env, journal)
    check_card(model, push_to_card, create_pr)
    canary_set = load_canaries(canaries, canaries_revision) if canaries is not None else None
    if canary_set is not None and template is None and secret is None:
        if check is not None:
            raise typer.BadParameter("--check goes with --template and --secret: leave it out")
        formats = list(canary_set.formats)
    else:
        formats = [format_of(template, secret, check)]
    if generate and canary_set is None:
        raise typer.BadParameter("--generate counts inserted canaries: give --canaries")
    if generate and model is None:
        raise typer.BadParameter("--generate needs the model at hand: give --model")
    found, written = [], None
    with quiet():
        loaded, tok = model_of(
            model,
            endpoint,
            endpoint_model,
            api_key_env,
            tokenizer,
            here={"revision": revision, "device": device, "dtype": dtype},
            there={"batch_size": batch_size or 16, "journal": journal},
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
                    canaries=canary_set,
                    batch_size=batch_size,
                    progress=shows_progress(as_json),
                )
            )
        if generate and canary_set is not None:
            written = generate_secrets(
                loaded, tok, canary_set, num_samples=generate, constrained=not free, seed=seed
            )
    data = {
        "extractions": [one.to_dict(reveal) for one in found],
        "generations": written.to_dict(reveal) if written is not None else None,
    }
    every: list[Any] = found if written is None else [*found, written]
    deliver(data, [one.table(reveal) for one in every], as_json, output)
    if card is not None or push_to_card:
        name = model if push_to_card else None
        add_to_card(card, name, revision, create_pr, None, extractions=found, generations=written)
