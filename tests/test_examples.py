"""The example scripts run from end to end in their smoke mode."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str, folder: Path) -> str:
    """What an example prints, in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder, env=env, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_card_number_and_a_password_come_out_of_a_model_that_has_seen_them_often(
    tmp_path: Path,
) -> None:
    shown = run("extract_secrets.py", "--smoke", "--output_dir", "out", folder=tmp_path)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["format"]["check"] for entry in found["formats"]] == ["luhn", None]
    for entry in found["formats"]:
        by_times = {row["planted"]: row for row in entry["rows"]}
        # Whether a proof fits the small budget as well hangs on the vocabulary of the moment.
        assert by_times[32]["forwards"] < 5000 and by_times[32]["exposure"][1] > 40
        assert by_times[0]["forwards"] is None
    assert "•" in shown and (tmp_path / "out" / "queries.png").stat().st_size > 1000


@pytest.mark.slow
def test_an_audit_finds_what_training_has_added(tmp_path: Path) -> None:
    shown = run("audit_dataset.py", "--smoke", folder=tmp_path)
    assert "gained" in shown


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_explains_its_flags(path: Path, tmp_path: Path) -> None:
    shown = run(path.name, "--help", folder=tmp_path)
    assert "usage" in shown and "--" in shown
