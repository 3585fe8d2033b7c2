"""What trackers show: the exposures of every evaluation, under "eval/", read back from their files.

TensorBoard comes with the tests; trackio and Weights & Biases are tested where they are installed.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import python
from tests.training.test_callback import KEYS, board

ROOT = Path(__file__).parents[2]
# What a tracker is given for each key of an evaluation's row.
SHOWN = {key.replace("eval_", "eval/", 1): key for key in KEYS}
TRAINING = """
    import json, sys
    from pathlib import Path
    from hf_exposure import ExposureCallback
    from tests.training.test_callback import CANARIES, make_trainer

    trainer = make_trainer(
        Path(sys.argv[1]) / "out", ExposureCallback(CANARIES, samples=50), report_to=sys.argv[2],
        run_name="a-run", project="a-project",
    )
    trainer.train()
    print("LOG", json.dumps(trainer.state.log_history))
"""


def logged(folder: Path, tracker: str, **environ: str) -> dict[str, dict[int, float]]:
    """Train in a process of its own, with nothing but the tracker that is asked for.

    Returns:
        What the Trainer's own log has, by the names that trackers show, at each step.
    """
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = python(["-c", textwrap.dedent(TRAINING), folder, tracker], folder, environ)
    assert done.returncode == 0, done.stderr
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("LOG ")]
    rows = [row for row in json.loads(line.removeprefix("LOG ")) if "eval_exposure" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    return {shown: {row["step"]: row[key] for row in rows} for shown, key in SHOWN.items()}


def check(shown: dict[str, dict[int, float]], truth: dict[str, dict[int, float]]) -> None:
    for name, values in truth.items():
        assert shown[name] == pytest.approx(values, rel=1e-5), name
    assert not [name for name in shown if "exposure" in name and name not in truth]


@pytest.mark.slow
def test_tensorboard_shows_the_exposures(tmp_path: Path) -> None:
    truth = logged(tmp_path, "tensorboard", TENSORBOARD_LOGGING_DIR=str(tmp_path / "board"))
    check(board(tmp_path / "board"), truth)


@pytest.mark.slow
def test_trackio_shows_the_exposures(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    truth = logged(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    script = """
        import json
        from trackio.sqlite_storage import SQLiteStorage
        print(json.dumps(SQLiteStorage.get_logs("a-project", "a-run")))
    """
    environ = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    read = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    rows = json.loads(read.stdout.splitlines()[-1])
    shown: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, (int, float)):
                shown.setdefault(name, {})[row.get("train/global_step", row.get("step"))] = value
    check(shown, truth)


@pytest.mark.slow
def test_weights_and_biases_shows_the_exposures_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    truth = logged(
        tmp_path,
        "wandb",
        WANDB_MODE="offline",
        WANDB_DIR=str(tmp_path),
        WANDB_SILENT="true",
        WANDB_CACHE_DIR=str(tmp_path / "cache"),
        WANDB_CONFIG_DIR=str(tmp_path / "config"),
        WANDB_DATA_DIR=str(tmp_path / "data"),
    )
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    check(_history(file), truth)


def _history(file: Path) -> dict[str, dict[int, float]]:
    """The rows of a run's own file."""
    from wandb.proto import wandb_internal_pb2

    shown: dict[str, dict[int, float]] = {}
    for data in _records(file.read_bytes()):
        record: Any = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        row = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for name, value in row.items():
            if isinstance(value, (int, float)):
                shown.setdefault(name, {})[row.get("train/global_step", -1)] = value
    return shown


def _records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, after W&B's own seven bytes.

    A record has a checksum, its length and its kind: whole, or the first, a middle or the last part
    of one. None begins in the last six bytes of a block.
    """
    assert data.startswith(b":W&B")
    place, parts = 7, b""
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""
