"""Steps of datatrove, run by its local executor: several tasks, killed and restarted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hf_exposure import Canaries, SecretFormat, inject_canaries
from tests.tiny import corpus, digits_in_threes

pytest.importorskip("datatrove")

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer, MegatronDocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter

from hf_exposure.canaries.datatrove import CountDocuments, InsertCanaries, VerifyCanaries

FMT = SecretFormat("My number is {secret}.", secret=r"[0-9]{9}")
SIZES = (7, 0, 30, 1, 12)  # documents of each task; one has none


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a corpus of as many files as tasks, and the manifest."""
    canaries().save(tmp_path / "canaries.json")
    lines = iter(corpus())
    (tmp_path / "corpus").mkdir()
    for task, size in enumerate(SIZES):
        rows = [{"text": next(lines), "id": f"{task}-{n}", "lang": "en"} for n in range(size)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "corpus" / f"{task}.jsonl").write_text(text)
    return tmp_path


def canaries() -> Canaries:
    return Canaries.generate(FMT, repetitions=[0, 1, 6], per_repetition=3, seed=5)


def execute(work: Path, name: str, *steps: Any, tasks: int = len(SIZES)) -> None:
    LocalPipelineExecutor(
        [*steps], tasks=tasks, workers=1, logging_dir=str(work / "logs" / name)
    ).run()


def reader(work: Path, folder: str = "corpus") -> JsonlReader:
    return JsonlReader(str(work / folder), glob_pattern="*.jsonl")


def writer(work: Path, folder: str = "out") -> JsonlWriter:
    return JsonlWriter(str(work / folder), "${rank}.jsonl", compression=None)


def rows(work: Path, folder: str = "out") -> list[dict[str, Any]]:
    files = sorted((work / folder).glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["rows", "splice"])
def test_the_documents_of_all_tasks_are_those_of_one_dataset(work: Path, mode: str) -> None:
    step = InsertCanaries(work / "canaries.json", str(work / "counts"), seed=3, mode=mode)
    verify = VerifyCanaries(work / "canaries.json", str(work / "found"))
    execute(work, "count", reader(work), CountDocuments(str(work / "counts")))
    execute(work, "insert", reader(work), step, verify, writer(work))
    before = Dataset.from_list([{"text": row["text"]} for row in rows(work, "corpus")])
    expected = inject_canaries(before, canaries(), seed=3, mode=mode)["text"]
    assert [row["text"] for row in rows(work)] == list(expected)
    assert verify.report().ok and verify.report().rows == len(expected)
    (recorded,) = Canaries.load(work / "canaries.json").insertions
    assert (recorded.shards, recorded.num_examples, recorded.mode) == (SIZES, sum(SIZES), mode)
    added = [row for row in rows(work) if row["id"].startswith("canary/")]
    assert len({row["id"] for row in added}) == len(added)
    assert all(set(row["metadata"]) == {"lang", "file_path"} for row in added)
    # Neither what the executor writes nor what the steps leave tells a secret.
    left = b"".join(
        data
        for folder in ("logs", "counts", "found")
        for data, _ in files_of(work / folder).values()
    )
    assert not any(canary.secret.encode() in left for canary in canaries())


_KILLED = """
import os, signal, sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from hf_exposure.canaries.datatrove import InsertCanaries

def die(data, rank=0, world_size=1):
    for place, document in enumerate(data):
        if rank == 2 and place == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        yield document

assert "torch" not in sys.modules  # tasks that insert do not wait for it
os.chdir(sys.argv[1])
reader = JsonlReader("corpus", glob_pattern="*.jsonl")
writer = JsonlWriter("out", "${rank}.jsonl", compression=None)
step = InsertCanaries("canaries.json", "counts")
LocalPipelineExecutor(
    [reader, step, die, writer], tasks=5, workers=1, logging_dir="logs/insert"
).run()
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_run_goes_on_where_it_was_with_exact_counts(work: Path) -> None:
    execute(work, "count", reader(work), CountDocuments(str(work / "counts")))
    with open(work / "said", "wb") as said:
        command = [sys.executable, "-c", _KILLED, str(work)]
        run = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            assert run.wait() == -signal.SIGKILL, (work / "said").read_text()
        finally:  # the executor's manager outlives it
            os.killpg(run.pid, signal.SIGKILL)
    done = files_of(work / "out")
    complete = {path.name for path in (work / "logs/insert/completions").iterdir()}
    assert complete == {"00000", "00001"}  # task 2 was killed, 3 and 4 never began
    step = InsertCanaries(work / "canaries.json", str(work / "counts"))
    execute(work, "insert", reader(work), step, writer(work))
    first = str(work / "out" / "00000.jsonl")
    assert files_of(work / "out")[first] == done[first]  # what was complete is left alone
    texts = Counter(row["text"] for row in rows(work))
    assert [texts[canary.text] for canary in canaries()] == [0] * 3 + [1] * 3 + [6] * 3
    assert len(rows(work)) == sum(SIZES) + 21
    verify = VerifyCanaries(work / "canaries.json", str(work / "found"))
    execute(work, "verify", reader(work, "out"), verify, tasks=2)
    assert verify.report().ok
    assert len(Canaries.load(work / "canaries.json").insertions) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["megatron", "datatrove"])
def test_all_canaries_are_found_after_tokenization(work: Path, kind: str) -> None:
    tokenizer = digits_in_threes()
    tokenizer.save_pretrained(work / "tokenizer")
    step = {"megatron": MegatronDocumentTokenizer, "datatrove": DocumentTokenizer}[kind]
    tokenize = step(
        output_folder=str(work / "tokens"),
        tokenizer_name_or_path=str(work / "tokenizer" / "tokenizer.json"),
        eos_token="</s>",
    )
    chosen = canaries()
    insert = InsertCanaries(chosen, SIZES)
    execute(work, "insert", reader(work), insert, tokenize)
    verify = VerifyCanaries(
        chosen, str(work / "found"), tokenizer=tokenizer, tokenized=str(work / "tokens")
    )
    execute(work, "verify", verify, tasks=3)
    report = verify.report()
    assert report.ok and report.rows == sum(SIZES) + 21 and report.tokens > 500
    (work / "found" / "00001.json").unlink()
    with pytest.raises(ValueError, match="lack 1 of 3 tasks, the first of them 1"):
        verify.report()


def documents(*texts: str) -> list[Any]:
    from datatrove.data import Document

    return [Document(text, str(place)) for place, text in enumerate(texts)]


def test_a_task_that_reads_other_documents_than_were_counted_fails(tmp_path: Path) -> None:
    step = InsertCanaries(canaries(), [2, 3])
    assert len(list(step.run(documents("a", "b"), 0, 2))) >= 2
    for texts, found in (("ab", "only 2"), ("abcd", "more")):
        with pytest.raises(ValueError, match=f"counted to have 3 documents, but has {found}"):
            list(step.run(documents(*texts), 1, 2))
    with pytest.raises(ValueError, match="2 shards of 5 documents"):
        list(step.run(documents("a", "b"), 0, 3))


def test_counts_must_be_whole_and_of_this_number_of_tasks(tmp_path: Path) -> None:
    manifest = canaries().save(tmp_path / "canaries.json")
    count = CountDocuments(str(tmp_path / "counts"))
    step = InsertCanaries(manifest, str(tmp_path / "counts"))
    list(count.run(documents("a", "b"), 1, 2))
    with pytest.raises(ValueError, match="lack 1 of 2 tasks, the first of them 0"):
        step.record(2)
    stopped = count.run(documents("a", "b"), 0, 2)
    next(stopped)
    stopped.close()  # a count that was cut off is none
    with pytest.raises(ValueError, match="lack 1 of 2 tasks"):
        step.record(2)
    list(count.run(documents("a"), 0, 2))
    with pytest.raises(ValueError, match="are of 2 tasks, not 3"):
        step.record(3)
    assert step.record(2).shards == (1, 2)
    # Counted again: the manifest holds on to what finished tasks have gone by.
    list(count.run(documents("a", "b", "c"), 0, 2))
    assert step.record(2).shards == (1, 2)
    with pytest.raises(ValueError, match="other counts"):
        InsertCanaries(manifest, [3, 2]).record(2)
    with pytest.raises(ValueError, match="save it and give the path"):
        InsertCanaries(canaries(), str(tmp_path / "counts"))


def test_a_log_of_variables_shows_neither_secrets_nor_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loguru import logger  # with which datatrove logs what fails, values of variables included

    def broken(data: Any) -> Any:
        yield from data
        raise RuntimeError("a step before broke")

    manifest = canaries().save(tmp_path / "canaries.json")
    steps: list[tuple[Any, Any]] = [
        (InsertCanaries(manifest, [20]), documents(*"ab")),
        (InsertCanaries(manifest, [20]), broken(documents(*"ab"))),
        (InsertCanaries(manifest, [20]), documents(*"a" * 30)),
        (InsertCanaries(canaries(), [2], mode="splice"), documents(*[5, 5])),  # type: ignore[list-item]
        (VerifyCanaries(manifest, str(tmp_path / "found")), documents(5)),  # type: ignore[arg-type]
    ]
    said: list[str] = []
    handler = logger.add(said.append, diagnose=True, backtrace=True)
    try:
        for step, data in steps:
            with pytest.raises(Exception) as raised:
                list(step.run(data, 0, 1))
            logger.opt(exception=raised.value).error("a task failed")
        canaries().save(tmp_path / "new.json")
        monkeypatch.setattr(os, "replace", lambda *names: os.stat("/no/such/file"))
        with pytest.raises(OSError) as unwritten:
            list(InsertCanaries(tmp_path / "new.json", [1]).run(documents("a"), 0, 1))
        logger.opt(exception=unwritten.value).error("a task failed")
    finally:
        logger.remove(handler)
    logged = "".join(said)
    assert len(said) == len(steps) + 1 and "└" in logged and "Share(shard=0" in logged
    assert not any(canary.secret in logged for canary in canaries())
    assert "schema_version" not in logged


def test_results_of_another_manifest_and_other_files_are_told_apart(tmp_path: Path) -> None:
    manifest = canaries().save(tmp_path / "canaries.json")
    folder = tmp_path / "found"
    list(VerifyCanaries(manifest, str(folder)).run(documents("a"), 0, 1))
    (folder / "notes.json").write_text("{}")
    assert VerifyCanaries(manifest, str(folder)).report().rows == 1
    other = Canaries.generate(FMT, repetitions=[0, 1, 6], per_repetition=3, seed=6)
    with pytest.raises(ValueError, match="are of another manifest"):
        VerifyCanaries(other.save(tmp_path / "other.json"), str(folder)).report()
    (folder / "00000.json").write_text("[]")
    with pytest.raises(ValueError, match=r"00000.json .* is not whole"):
        VerifyCanaries(manifest, str(folder)).report()


@pytest.mark.slow
def test_the_benchmark_of_large_corpora_runs(tmp_path: Path) -> None:
    from benchmarks import large_corpora as steps

    steps.canaries().save(tmp_path / "canaries.json")
    steps.write_texts(tmp_path, 300, 2)
    steps.insert(tmp_path, 2, 1, [150, 150])
    steps.count(tmp_path, 2, 1)
    steps.verify(tmp_path, 2, 1)
    steps.write_tokens(tmp_path, 300)
    steps.insert_tokens(tmp_path)
    steps.verify_tokens(tmp_path)
