"""Ray Data on this machine. Ray takes half a minute to start: `make test-ray` installs it."""

from __future__ import annotations

import csv
import json
import os
import signal
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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


def test_texts_stay_as_they_stand_in_files_and_long_rows_are_read(tmp_path: Path) -> None:
    rows = [
        {"text": 'a line\nand "one"', "day": "2021-03-01", "code": "007"},
        {"text": "x " * 10**6},
    ]
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps({"day": "", "code": "", **row}) + "\n" for row in rows))
    table = tmp_path / "a.csv"
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "day", "code"])
        writer.writeheader()
        writer.writerows(rows)
    for path in (lines, table):
        train = insert_canaries([str(path)], canaries()).materialize()
        old = [row for row in train.iter_rows() if "My number" not in row["text"]]
        assert len(old) == 2 and rows[0] in old and train.count() == 23


def test_further_files_are_judged_and_what_stands_in_them_is_not_quoted(tmp_path: Path) -> None:
    first = files(tmp_path)[0]
    secret = canaries()[5].text

    def file(name: str, content: Any) -> str:
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content)
        else:
            pq.write_table(content, path)
        return str(path)

    required = pa.schema(
        [pa.field("text", pa.string()), pa.field("id", pa.int64(), nullable=False)]
    )
    cases = [
        (file("other.parquet", pa.table({"body": ["a"]})), "column='text' is not there"),
        (file("numbers.parquet", pa.table({"text": [1]})), "must hold text or conversations"),
        (
            file("required.parquet", pa.table({"text": ["a"], "id": [1]}, schema=required)),
            r"\['id'\] may hold no null",
        ),
        (file("ragged.csv", f"text,id\n{secret},1\n{secret}\n"), "not what its name says .* row 3"),
        (file("cut.jsonl", f'{{"text": "{secret}'), "not what its name says"),
        (file("empty.jsonl", ""), "is empty; leave it out"),
        (file("none.parquet", "no Parquet"), "not what its name says"),
    ]
    for path, message in cases:
        with pytest.raises(Exception, match=message) as raised:
            insert_canaries([first, path], canaries(), counts=[7, 1]).materialize()
        assert secret not in "".join(traceback.format_exception(raised.value))
    with pytest.raises(ValueError, match="does not fit the column, which holds int64"):
        insert_canaries([first], canaries(), fill={"id": "no number"})
    with pytest.raises(ValueError, match="ds has no rows"):
        verify_canaries(ray.data.from_items([]), canaries())
    with pytest.raises(TypeError, match="must hold text or conversations"):
        verify_canaries(ray.data.from_items([{"text": 1}]), canaries())
