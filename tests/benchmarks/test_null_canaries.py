"""The benchmark of canaries that no model was trained on runs, and detects none too many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import null_canaries


@pytest.mark.slow
def test_every_method_and_score_is_in_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    null_canaries.main(["--smoke", "--json", str(tmp_path / "figures.json")])
    rows = json.loads((tmp_path / "figures.json").read_text())
    assert {row["way"] for row in rows} == {*null_canaries.METHODS, *null_canaries.OTHERS}
    assert {row["model"] for row in rows} == {"flat", "sharp"}
    for cell in (cell for row in rows for cell in row["cells"]):
        assert cell["count"] == 20 and cell["detected"] <= max(2, cell["high"])
    shown = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| ") for line in shown) == 1 + len(rows)
    assert shown[-1].startswith("Of 28 figures: ")
