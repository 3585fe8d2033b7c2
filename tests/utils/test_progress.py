"""Progress bars: what they write, when, and that none is left."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from tqdm import tqdm

from hf_exposure.cli import main
from hf_exposure.utils.progress import progress_bar


def test_a_bar_is_shown_ten_times_a_second_and_closed_by_an_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyError), progress_bar(True) as tick:
        for done in range(20_000):
            tick(done)
        raise KeyError
    said = capsys.readouterr()
    assert not said.out and said.err.count("\r") < 20 and "20.0k token-forwards" in said.err
    assert said.err.endswith("\n") and not tqdm._instances
    with progress_bar(False) as tick:
        tick(1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_insert_shows_a_bar_on_a_terminal_alone(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Dataset.from_dict({"text": ["a b"] * 50})
    with open(tmp_path / f"a{ending}", "wb") as file:
        {".jsonl": rows.to_json, ".csv": rows.to_csv, ".parquet": rows.to_parquet}[ending](file)
    made = []
    for terminal, options in ((True, []), (True, ["--json"]), (False, [])):
        output, manifest = tmp_path / f"{len(made)}{ending}", tmp_path / f"{len(made)}.json"
        command = ["inject", "--dataset", str(tmp_path / f"a{ending}"), "--output", str(output)]
        command += ["--canaries", str(manifest), "--template", "My code is {secret}."]
        command += ["--secret", "[0-9]{9}", "--seed", "1", "--secrets-seed", "2", *options]
        out, said = io.StringIO(), io.StringIO()
        monkeypatch.setattr(said, "isatty", lambda is_one=terminal: is_one)
        for name, value in (("argv", ["hf-exposure", *command]), ("stdout", out), ("stderr", said)):
            monkeypatch.setattr(sys, name, value)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert ("inserting" in said.getvalue()) == (terminal and not options)
        if options:
            assert json.loads(out.getvalue())["rows"] == 50 + 85 * 4
        made.append(output.read_bytes())
    assert made[0] == made[1] == made[2]
