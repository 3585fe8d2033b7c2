"""Ray Data on this machine. Ray takes half a minute to start: `make test-ray` installs it."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_exposure import Canaries, SecretFormat, inject_canaries
from tests.tiny import corpus, digits_in_threes

pytest.importorskip("ray")
pytest.importorskip("ray.data")

import ray

from hf_exposure.canaries.ray import insert_canaries, verify_canaries

pytestmark = [pytest.mark.slow, pytest.mark.distributed]
FMT = SecretFormat("My number is {secret}.", secret=r"[0-9]{9}")
SIZES = (7, 1, 30, 12)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        num_cpus=2, include_dashboard=False, object_store_memory=10**8, log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}},
    )  # fmt: skip
    yield
    ray.shutdown()


def canaries() -> Canaries:
    return Canaries.generate(FMT, repetitions=[0, 1, 6], per_repetition=3, seed=5)


def files(folder: Path, ending: str = ".parquet") -> list[str]:
    lines, out = iter(corpus()), []
    for task, size in enumerate(SIZES):
        path = folder / f"{task}{ending}"
        ds = Dataset.from_list([{"text": next(lines), "id": n} for n in range(size)])
        ds.to_parquet(path) if ending == ".parquet" else ds.to_json(path)
        out.append(str(path))
    return out


def rows(ds: Any) -> Counter[str]:
    return Counter(row["text"] for row in ds.iter_rows())


@pytest.mark.parametrize("mode", ["rows", "splice"])
def test_the_rows_of_all_files_are_those_of_one_dataset(tmp_path: Path, mode: str) -> None:
    chosen = canaries()
    train = insert_canaries(files(tmp_path), chosen, seed=3, mode=mode).materialize()
    before = Dataset.from_dict({"text": corpus()[: sum(SIZES)]})
    expected = inject_canaries(before, canaries(), seed=3, mode=mode)["text"]
    assert rows(train) == Counter(expected)
    assert chosen.insertions[0].shards == SIZES
    assert verify_canaries(train, chosen).ok
    assert not verify_canaries(train.limit(20), chosen).ok
    tokenizer = digits_in_threes()
    # What a batch finds goes through JSON, pieces of canaries too.
    cut = {"input_ids": [ids[:-3] for ids in tokenizer(list(expected))["input_ids"]]}
    found = verify_canaries(
        ray.data.from_items([{"input_ids": ids} for ids in cut["input_ids"]]), chosen,
        column="input_ids", tokenizer=tokenizer,
    )  # fmt: skip
    if mode == "rows":
        assert sum(one.truncated for one in found) == 21

    def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": tokenizer(list(batch["text"]))["input_ids"]}

    report = verify_canaries(
        train.map_batches(tokenize), chosen, column="input_ids", tokenizer=tokenizer
    )
    assert report.ok and report.rows == len(expected)


def test_a_killed_worker_changes_no_count(tmp_path: Path) -> None:
    killed = tmp_path / "killed"

    def die(batch: dict[str, Any]) -> dict[str, Any]:
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    paths = files(tmp_path, ".jsonl")
    chosen = canaries()
    out = tmp_path / "out"
    insert_canaries(paths, chosen).map_batches(die).write_json(str(out))
    assert killed.exists()
    lines = [json.loads(line) for p in out.iterdir() for line in p.read_text().splitlines()]
    texts = Counter(row["text"] for row in lines)
    assert [texts[canary.text] for canary in chosen] == [0] * 3 + [1] * 3 + [6] * 3
    assert len(lines) == sum(SIZES) + 21


def test_files_that_are_not_as_counted_are_refused(tmp_path: Path) -> None:
    paths = files(tmp_path)
    with pytest.raises(ValueError, match="3 numbers for 4 files"):
        insert_canaries(paths, canaries(), counts=SIZES[:3])
    with pytest.raises(ValueError, match="'body' is not there"):
        insert_canaries(paths, canaries(), column="body")
    with pytest.raises(Exception, match="counted to have 8 documents, but has only 7"):
        insert_canaries(paths, canaries(), counts=(8, *SIZES[1:])).materialize()
