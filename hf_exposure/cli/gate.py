"""`hf-exposure gate`: whether a measurement keeps limits, as an exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_exposure.cli.inputs import check_file, read_limits
from hf_exposure.cli.options import AsJson
from hf_exposure.cli.report import measured
from hf_exposure.cli.terminal import out, print_json
from hf_exposure.utils.checks import check_path
from hf_exposure.utils.files import load_json, write_text

if TYPE_CHECKING:
    from hf_exposure.canaries.limits import Limits
    from hf_exposure.exposure.results import Exposures


def gate(
    results: Annotated[
        Path,
        typer.Argument(
            help="exposures.json, exposure_history.json, or a training's output folder."
        ),
    ],
    max_exposure: Annotated[
        float | None, typer.Option("--max-exposure", help="Most bits of an inserted canary.")
    ] = None,
    max_tpr: Annotated[
        float | None,
        typer.Option("--max-tpr", help="Largest share of the inserted canaries that is detected."),
    ] = None,
    fpr: Annotated[
        float | None,
        typer.Option("--fpr", help="False-positive rate of detection; 0.01 by default."),
    ] = None,
    repetitions: Annotated[
        int | None,
        typer.Option("--repetitions", help="Judge only canaries that were inserted so often."),
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option("--limits", help="A YAML file with such limits, as max_exposure: 10."),
    ] = None,
    survival: Annotated[
        Path | None,
        typer.Option("--survival", help="JSON of what verify_injection(...).to_dict() gave."),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Write JUnit XML for a CI job.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Add Markdown to this file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a measurement keeps limits: exit code 0 passed, 1 failed, 3 inconclusive; 2 where
    nothing could be judged.

    Without limits, those that were written into the manifest with the canaries are taken. Of a
    training's history the last evaluation is judged, by a bound that holds for all together.
    """
    from hf_exposure.reports.gate import to_junit, to_markdown

    check_path("gate", results)
    check_file(junit, "--junit", apart=[results, limits, survival])
    check_file(markdown, "--markdown", apart=[results, limits, survival, junit])
    exposures, history = measured(results, None, "gate")
    look = 1
    if exposures is None and history is not None and len(history):
        # As ExposureCallback(limits=...) judges it: who looks often must not see alarms more often.
        exposures, look = history[-1].exposures, len(history)
    if exposures is None:
        raise ValueError(f"gate: {str(results)!r} holds no measurement")
    given = {
        "max_exposure": max_exposure,
        "max_tpr": max_tpr,
        "fpr": fpr,
        "repetitions": repetitions,
    }
    agreed = _limits(given, limits, exposures)
    verdict = exposures.check(agreed, _survival(survival), look=look)
    if junit is not None:
        write_text(junit, to_junit(verdict))
    if markdown is not None:  # a CI job's summary has parts of other steps already
        markdown.parent.mkdir(parents=True, exist_ok=True)
        with open(markdown, "a", encoding="utf-8") as file:
            file.write(to_markdown(verdict))
    if as_json:
        print_json(verdict.to_dict())
    else:
        out.print(str(verdict), soft_wrap=True)
    raise typer.Exit(verdict.exit_code)


def _survival(path: Path | None) -> Any:
    """What `verify_injection` gave, from a file of its `to_dict()`."""
    from hf_exposure.canaries.survival import lost_and_all

    def read(data: Any) -> Any:
        lost_and_all(data)
        return data

    wanted = "JSON of verify_injection(...).to_dict()"
    return None if path is None else load_json(path, read, "--survival", wanted)


def _limits(given: dict[str, float | None], path: Path | None, exposures: Exposures) -> Limits:
    """The limits of the options, of a file, or of the manifest; the options come first."""
    from hf_exposure.canaries.limits import Limits

    some = {name: value for name, value in given.items() if value is not None}
    if path is not None:
        return read_limits(path, some)
    if set(some) <= {"fpr", "repetitions"} and exposures.settings.get("limits") is not None:
        return Limits.from_dict({**exposures.settings["limits"], **some})
    return Limits.from_dict(some)
