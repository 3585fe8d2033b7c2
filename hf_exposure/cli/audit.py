"""`hf-exposure audit`: real secrets in real data, and how exposed they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_exposure.cli.inputs import check_file, check_names, model_and_base, rows_with
from hf_exposure.cli.options import (
    AsJson,
    Base,
    BatchSize,
    Column,
    Confidence,
    Dataset,
    Device,
    Dtype,
    Limit,
    MaxForwards,
    Model,
    Overwrite,
    Reveal,
    Revision,
    Seed,
    Split,
    Tokenizer,
)
from hf_exposure.cli.terminal import deliver, shows_progress
from hf_exposure.models.loading import quiet


def audit(
    dataset: Dataset,
    model: Model,
    base: Base = None,
    column: Column = "text",
    split: Split = "train",
    kinds: Annotated[
        str | None,
        typer.Option("--kinds", help="Some of api_key,iban,card,ssn,email,phone; all by default."),
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
            "--top",
            min=0,
            help="Secrets to measure, taking turns between kinds; others get a bound.",
        ),
    ] = 50,
    before: Annotated[
        int, typer.Option("--before", min=1, help="Characters of context before a secret.")
    ] = 100,
    samples: Annotated[
        int, typer.Option("--samples", help="Number of draws for each measurement.")
    ] = 500,
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
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    reveal: Reveal = False,
) -> None:
    """Find real secrets in a dataset, and measure how exposed they are in a model."""
    from hf_exposure.audit.audit import audit_dataset
    from hf_exposure.audit.detectors import check_kinds, check_region

    check_file(output, apart=[dataset], overwrite=overwrite)
    check_names(model, base)
    names = None if kinds is None else [name.strip() for name in kinds.split(",")]
    place = None if region.lower() == "none" else region
    if "phone" in check_kinds(names):  # before the model loads
        check_region(place)
    with quiet():
        rows = rows_with(column, dataset, split)
        loaded, tok, earlier = model_and_base(model, base, tokenizer, revision, device, dtype)
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
            progress=shows_progress(as_json),
        )
    deliver(result.to_dict(reveal), [result.table(reveal)], as_json, output)
