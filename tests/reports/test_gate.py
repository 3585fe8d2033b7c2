"""The gate: a verdict as exit code, JUnit and Markdown."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from typer.testing import CliRunner

from hf_exposure import cli
from hf_exposure.canaries.limits import Limits
from hf_exposure.canaries.sets import Canaries
from hf_exposure.cli.inputs import read_limits
from hf_exposure.exposure.history import History, Measurement
from hf_exposure.exposure.results import Exposures
from hf_exposure.reports.gate import to_junit, to_markdown
from tests.exposure.test_limits import controls, spread
from tests.exposure.test_membership import LARGE, exposure

KEPT = Exposures([*spread(), *controls()])
LEAKING = Exposures([exposure(LARGE, 200 + n, 1) for n in range(20)])
FEW = Exposures(spread(5))
OPTIONS = ["--max-exposure", "10", "--max-tpr", "0.05", "--fpr", "0.01"]


def run(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["gate", *map(str, arguments)])
    return done.exit_code, done.stdout


@pytest.mark.parametrize(
    ("measured", "code", "word", "counts"),
    [
        (KEPT, 0, "passed", (3, 0, 0)),
        (LEAKING, 1, "failed", (2, 2, 0)),
        (FEW, 3, "inconclusive", (2, 0, 1)),
    ],
)
def test_the_three_outcomes(
    measured: Exposures, code: int, word: str, counts: tuple[int, ...], tmp_path: Path
) -> None:
    file = measured.save(tmp_path / "exposures.json")
    junit, summary = tmp_path / "gate.xml", tmp_path / "summary.md"
    summary.write_text("# Another step\n")
    found, told = run(file, *OPTIONS, "--junit", junit, "--markdown", summary)
    assert found == code
    assert told.strip().endswith(f"Verdict: {word}")
    suite = ElementTree.parse(junit).getroot().find("testsuite")
    assert suite is not None
    names = ("tests", "failures", "errors")
    assert tuple(int(suite.attrib[name]) for name in names) == counts
    assert len(suite.findall("testcase")) == counts[0]
    assert len(suite.findall("testcase/failure")) == counts[1]
    assert len(suite.findall("testcase/error")) == counts[2]
    text = summary.read_text()
    assert text.startswith("# Another step\n") and f"gate: {word}" in text
    found, told = run(file, *OPTIONS, "--json")
    assert found == code and json.loads(told)["outcome"] == word


def test_limits_come_from_a_file_and_options_before_it(tmp_path: Path) -> None:
    file = KEPT.save(tmp_path / "exposures.json")
    limits = tmp_path / "limits.yaml"
    limits.write_text("max_exposure: 10\nmax_tpr: 0.05\n")
    assert run(file, "--limits", limits)[0] == 0
    assert run(file, "--limits", limits, "--max-exposure", "1", "--json")[0] == 3
    limits.write_text("max_exposure: [1\n")
    assert run(file, "--limits", limits)[0] == 1


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ("max_exposure: 10\nmax_exposure: 20\n", "max_exposure stands there twice"),
        ("max_exposures: 10\n", "'max_exposures' is not known"),
        ("max_exposure: -1\n", "is too small"),
        ("max_tpr: 5%\n", "must be a number"),
        ("", "must be names and numbers"),
        (None, "there is no file"),
    ],
)
def test_a_mistake_is_no_verdict(
    limits: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, exposures = tmp_path / "limits.yaml", KEPT.save(tmp_path / "exposures.json")
    if limits is None:
        file = exposures = tmp_path / "none"
    else:
        file.write_text(limits)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["hf-exposure", "gate", f"{exposures}", "--limits", f"{file}"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_limits_may_have_an_exponent(tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text("max_tpr: 5e-2\nfpr: 1e-3\n")
    assert read_limits(tmp_path / "limits.yaml", {}) == Limits(max_tpr=0.05, fpr=0.001)


def test_limits_that_stand_in_the_manifest_are_taken(tmp_path: Path) -> None:
    agreed = Limits(max_exposure=10).to_dict()
    file = Exposures(KEPT, settings={"limits": agreed}).save(tmp_path / "exposures.json")
    assert run(file)[0] == 0
    assert "not those that were set" in run(file, "--max-exposure", "12")[1]
    assert run(KEPT.save(tmp_path / "without.json"))[0] == 1


def test_a_measurement_in_doubt_is_an_error_for_junit() -> None:
    verdict = Exposures([*LEAKING, *controls(20)]).check(Limits(max_exposure=10))
    root = ElementTree.fromstring(to_junit(verdict).encode())
    assert (root.attrib["failures"], root.attrib["errors"]) == ("0", "2")
    assert "inconclusive" in to_markdown(verdict)


def test_the_workflow_runs_the_gate() -> None:
    text = (Path(__file__).parents[2] / "examples" / "release_gate.yml").read_text()
    steps = yaml.safe_load(text)["jobs"]["gate"]["steps"]
    assert any("hf-exposure gate exposures.json" in step.get("run", "") for step in steps)


def test_limits_are_written_into_the_manifest_at_insertion(tmp_path: Path) -> None:
    rows, limits, manifest = (tmp_path / name for name in ("rows.txt", "limits.yaml", "c.json"))
    rows.write_text("a line\n" * 30)
    limits.write_text("max_exposure: 10\n")
    options = ["--dataset", rows, "--output", tmp_path / "with.jsonl", "--canaries", manifest]
    form = ["--template", "My code is {secret}.", "--secret", "[0-9]{4}", "--limits", limits]
    done = CliRunner().invoke(cli.app, ["inject", *map(str, [*options, *form])])
    assert done.exit_code == 0, done.output
    assert Canaries.load(manifest).limits == Limits(max_exposure=10)


def test_what_packing_has_lost_makes_it_inconclusive_on_the_command_line(tmp_path: Path) -> None:
    file = KEPT.save(tmp_path / "exposures.json")
    report = tmp_path / "survival.json"
    rows = [{"repetitions": 1, "ok": True}, {"repetitions": 0, "ok": False}]
    report.write_text(json.dumps({"canaries": rows}))
    assert run(file, *OPTIONS, "--survival", report)[0] == 0  # a control is not looked for
    report.write_text(json.dumps({"canaries": [*rows, {"repetitions": 1, "ok": False}]}))
    code, said = run(file, *OPTIONS, "--survival", report)
    assert code == 3 and "1 of 2 inserted canaries are not in the training data" in said
    report.write_text("{}")
    done = CliRunner().invoke(
        cli.app, ["gate", str(file), *OPTIONS, "--survival", str(report)], catch_exceptions=True
    )
    assert done.exit_code == 1 and "survival" in str(done.exception)


def test_a_history_is_judged_at_its_last_evaluation_as_the_callback_does(tmp_path: Path) -> None:
    items = Exposures([*spread(), *controls()])
    history = History([Measurement(step, items) for step in (1, 2, 3)])
    file = history.save(tmp_path / "history.json")
    told = json.loads(run(file, *OPTIONS, "--json")[1])
    limits, coarse = Limits(max_exposure=10, max_tpr=0.05, fpr=0.01), Exposures(items.coarse())
    assert told == coarse.check(limits, look=3).to_dict() != coarse.check(limits).to_dict()
