"""The demo, small: everything that it promises is there afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_exposure.canaries.sets import Canaries
from hf_exposure.cli import app
from hf_exposure.cli.demo_run import FORMAT, KNOWN, REPETITIONS, run_demo
from hf_exposure.cli.small import paragraphs, train_tokenizer
from hf_exposure.exposure.history import History
from hf_exposure.exposure.results import Exposures


def test_the_text_of_the_demo_is_real_and_comes_with_python() -> None:
    text = paragraphs()
    assert len(text) > 2000
    assert sum(map(len, text)) > 400_000


def test_the_tokenizer_of_the_demo_writes_digits_one_by_one() -> None:
    tokenizer = train_tokenizer(paragraphs()[:100], vocab_size=400)
    digits = tokenizer(f" {KNOWN}")["input_ids"]
    assert [tokenizer.decode([number]).strip() for number in digits if number][-9:] == [*KNOWN]


@pytest.mark.slow
def test_the_demo_leaves_a_model_a_history_and_a_report_without_secrets(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["demo", "--smoke", "--output-dir", str(tmp_path)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    canaries = Canaries.load(tmp_path / "canaries.json")
    assert KNOWN in {canary.secret for canary in canaries if canary.repetitions == 32}
    assert sorted({canary.repetitions for canary in canaries}) == list(REPETITIONS)
    assert len(Exposures.load(tmp_path / "exposures.json", canaries)) == len(canaries)
    assert len(History.load(tmp_path / "exposure_history.json", canaries)) == 1
    assert (tmp_path / "config.json").is_file()
    written = result.output + (tmp_path / "report.html").read_text(encoding="utf-8")
    for canary in canaries:
        assert canary.secret not in written
    assert f"Now open {tmp_path / 'report.html'}" in result.output.replace("\n", "")


def test_too_little_text_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only 3 paragraphs"):
        run_demo(tmp_path / "out", ["one", "two", "three"])
    assert not (tmp_path / "out").exists()
    assert FORMAT.contains(KNOWN)
