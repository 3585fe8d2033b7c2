"""`hf-exposure report`: one page of what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_exposure.cli.inputs import check_file
from hf_exposure.cli.options import (
    AsJson,
    Overwrite,
    Reveal,
)
from hf_exposure.cli.terminal import out, print_json
from hf_exposure.utils.checks import check_path
from hf_exposure.utils.files import load_json

if TYPE_CHECKING:
    from hf_exposure.attacks.extraction import Extractions
    from hf_exposure.attacks.generations import Generations
    from hf_exposure.canaries.sets import Canaries
    from hf_exposure.exposure.history import History
    from hf_exposure.exposure.results import Exposures


_WANTED = "what measure --output, ExposureCallback or Exposures.save has written"


def report(
    results: Annotated[
        Path,
        typer.Argument(
            help="exposures.json, exposure_history.json, or a training's output folder."
        ),
    ],
    extractions: Annotated[
        Path | None, typer.Option("--extractions", help="What extract --output wrote.")
    ] = None,
    canaries: Annotated[
        Path | None, typer.Option("--canaries", help="Manifest, needed to --reveal.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="The page to write.")] = None,
    evidence: Annotated[
        Path | None,
        typer.Option("--evidence", help="Write hashes and commitments as JSON; needs --canaries."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", help="For --evidence: folder of the weights.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="For --evidence: files of training data.")
    ] = None,
    title: Annotated[str, typer.Option("--title")] = "Memorization report",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    reveal: Reveal = False,
) -> None:
    """Write one HTML page about the results, readable without a network."""
    from hf_exposure.canaries.loading import load_manifest
    from hf_exposure.reports.evidence import Evidence
    from hf_exposure.reports.page import write_report

    if reveal and canaries is None:
        raise typer.BadParameter("--reveal needs the secrets: give --canaries with the manifest")
    if evidence is not None and canaries is None:
        raise typer.BadParameter("--evidence commits to the manifest: give --canaries")
    if evidence is None and (model is not None or data):
        raise typer.BadParameter("--model and --data are for --evidence: give a file to write")
    for what, path in ("report", results), ("--extractions", extractions), ("--canaries", canaries):
        if path is not None:
            check_path(what, path)
    page = output or (results if results.is_dir() else results.parent) / "report.html"
    check_file(page, apart=[results, extractions], overwrite=overwrite)
    check_file(evidence, "--evidence", apart=[results, extractions, page], overwrite=overwrite)
    known = load_manifest(canaries) if canaries is not None else None
    exposures, history = measured(results, known)
    found, written = _found(extractions, known) if extractions is not None else ([], None)
    made = None
    if evidence is not None and known is not None:
        last = history[-1].exposures if exposures is None and history else exposures
        if last is None:
            raise ValueError(f"report: {str(results)!r} holds no measurement")
        made = Evidence.of(
            last, known, weights=model, data=data or None, extractions=found, generations=written
        )
        made.save(evidence, overwrite=overwrite)
    write_report(
        page,
        exposures=exposures,
        history=history,
        extractions=found,
        generations=written,
        title=title,
        reveal=reveal,
        overwrite=True,
        evidence=made,
    )
    if as_json:
        print_json({"report": str(page)})
    else:
        out.print(f"Now open {page}")


def measured(
    results: Path, canaries: Canaries | None, where: str = "report"
) -> tuple[Exposures | None, History | None]:
    """The exposures and the history in a file, or those in a folder.

    Args:
        where: the command, to begin errors with.
    """
    from hf_exposure.exposure.history import HISTORY_FILE, History
    from hf_exposure.exposure.results import Exposures

    if results.is_dir():
        files = [results / "exposures.json", results / HISTORY_FILE]
        there = [file for file in files if file.is_file()]
        if not there:
            neither = f"neither exposures.json nor {HISTORY_FILE}"
            raise OSError(f"{where}: the folder {str(results)!r} has {neither}")
    else:
        there = [results]

    def read(data: Any) -> Exposures | History:
        of_training = isinstance(data, dict) and data.get("kind") == History.kind
        return (History if of_training else Exposures).from_dict(data, canaries)

    found = [load_json(file, read, where, _WANTED) for file in there]
    exposures = next((one for one in found if isinstance(one, Exposures)), None)
    return exposures, next((one for one in found if isinstance(one, History)), None)


def _found(path: Path, canaries: Canaries | None) -> tuple[list[Extractions], Generations | None]:
    """What `extract --output` wrote."""
    from hf_exposure.attacks.extraction import Extractions
    from hf_exposure.attacks.generations import Generations

    def read(data: Any) -> tuple[list[Extractions], Generations | None]:
        if not isinstance(data, dict) or not {"extractions", "generations"} <= set(data):
            raise ValueError("it does not hold what `hf-exposure extract --output` writes")
        found = [Extractions.from_dict(entry, canaries) for entry in data["extractions"]]
        written = data["generations"]
        return found, Generations.from_dict(written, canaries) if written is not None else None

    wanted = "what `hf-exposure extract --output` has written"
    return load_json(path, read, "--extractions", wanted)
