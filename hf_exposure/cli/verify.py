"""`hf-exposure verify`: whether evidence is that of a manifest, and as it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_exposure.cli.options import AsJson
from hf_exposure.cli.terminal import out, print_json


def verify(
    report: Annotated[Path, typer.Argument(help="What report --evidence has written.")],
    canaries: Annotated[Path, typer.Option("--canaries", help="The manifest.")],
    model: Annotated[
        Path | None, typer.Option("--model", help="Also compare the weights in this folder.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Also compare files of training data.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check evidence with the manifest: exit code 0 if all agrees, else 1; 2 where nothing could be
    checked.
    """
    from hf_exposure.canaries.loading import load_manifest
    from hf_exposure.reports.evidence import Evidence

    found = Evidence.load(report).verify(load_manifest(canaries), weights=model, data=data or None)
    if as_json:
        print_json({"verified": not found, "problems": found})
    else:
        told = "; ".join(found) or "it is about these canaries, and as it was made"
        out.print(f"{'not verified' if found else 'verified'}: {told}", soft_wrap=True)
    raise typer.Exit(1 if found else 0)
