"""Canaries in a large corpus: seconds and peak memory of each step.

    python benchmarks/large_corpora.py --documents 10_000_000 --tasks 8 --workers 2

Writes a corpus of JSON Lines, counts it, inserts and verifies canaries with datatrove, and does the
same for a corpus of token ids in Megatron's format. Each step runs in a process of its own, so that
its peak memory is known.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from hf_exposure import Canaries, SecretFormat
from hf_exposure.canaries.datatrove import CountDocuments, InsertCanaries, VerifyCanaries
from hf_exposure.canaries.token_files import HEADER

WORDS = "the a of and to in is was for that it on with as his her they at be this".split()


def canaries() -> Canaries:
    """Sixty canaries, 3,410 copies."""
    fmt = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
    return Canaries.generate(fmt, repetitions=[0, 1, 4, 16, 64, 256], per_repetition=10, seed=0)


def write_texts(work: Path, documents: int, tasks: int) -> None:
    """A corpus of JSON Lines, a file for each task."""
    (work / "texts").mkdir()
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=20)) for _ in range(1000)]
    for task in range(tasks):
        with (work / "texts" / f"{task:05d}.jsonl").open("w") as file:
            for number in range(documents // tasks):
                text = f"{number} {lines[number % 1000]}"
                file.write(json.dumps({"text": text, "id": f"{task}/{number}"}) + "\n")


def execute(work: Path, name: str, tasks: int, workers: int, steps: list[Any]) -> None:
    """Run a pipeline; each task leaves the peak of its process."""
    folder = str(work / "logs" / name)

    def note_peak(data: Any, rank: int = 0, world_size: int = 1) -> Any:
        yield from data
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (work / f"{rank}.peak").write_text(str(peak))

    LocalPipelineExecutor(
        [*steps, note_peak], tasks=tasks, workers=workers, logging_dir=folder
    ).run()


def count(work: Path, tasks: int, workers: int) -> None:
    """Count the documents of each task."""
    reader = JsonlReader(str(work / "texts"))
    execute(work, "count", tasks, workers, [reader, CountDocuments(str(work / "counts"))])


def insert(work: Path, tasks: int, workers: int, counts: list[int]) -> None:
    """Insert the canaries, of which the next step sees every copy, and write the documents."""
    step = InsertCanaries(work / "canaries.json", counts)
    seen = VerifyCanaries(work / "canaries.json", str(work / "seen"))
    writer = JsonlWriter(str(work / "out"), "${rank}.jsonl", compression=None)
    reader = JsonlReader(str(work / "texts"))
    execute(work, "insert", tasks, workers, [reader, step, seen, writer])
    seen.report().raise_if_lost()


def verify(work: Path, tasks: int, workers: int) -> None:
    """Look for them in what was written."""
    step = VerifyCanaries(work / "canaries.json", str(work / "found"))
    execute(work, "verify", tasks, workers, [JsonlReader(str(work / "out")), step])
    print(step.report().__repr__())
    step.report().raise_if_lost()


def tokenizer() -> Any:
    """A token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: place for place, token in enumerate(["</s>", *letters])}
    made = Tokenizer(models.BPE(vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def write_tokens(work: Path, documents: int) -> None:
    """Documents of 40 to 80 tokens, the last of them the end of the text."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(40, 80, documents).astype("<i4")
    with (work / "tokens.bin").open("wb") as file:
        for part in np.array_split(lengths, max(1, documents // 100_000)):
            ids = draw.integers(1, 257, int(part.sum())).astype("<u2")
            ids[np.cumsum(part) - 1] = 0
            file.write(ids.tobytes())
    with (work / "tokens.idx").open("wb") as file:
        file.write(HEADER + struct.pack("<BQQ", 8, documents, documents + 1) + lengths.tobytes())
        sizes = 2 * lengths.astype("<i8")
        file.write((np.cumsum(sizes) - sizes).tobytes())
        file.write(np.arange(documents + 1, dtype="<i8").tobytes())


def insert_tokens(work: Path) -> None:
    """Insert into the indexed file."""
    from hf_exposure.canaries.megatron import insert_into_megatron

    insert_into_megatron([str(work / "tokens")], work / "inserted", canaries(), tokenizer())


def verify_tokens(work: Path) -> None:
    """Look for them there."""
    from hf_exposure.canaries.megatron import verify_megatron

    report = verify_megatron([str(work / "inserted" / "tokens")], tokenizer(), canaries())
    print(repr(report))
    report.raise_if_lost()


def measured(name: str, function: Callable[..., None], *arguments: Any) -> None:
    """Run a step in a process of its own, and print its seconds and its largest process."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(
        target=_run, args=(sender, function, *arguments)
    )
    process.start()
    seconds, peak = receiver.recv()
    process.join()
    # Workers are no children of the process, so they say it themselves.
    peak = max([peak, *(int(file.read_text()) for file in arguments[0].glob("*.peak"))])
    print(f"{name:14} {seconds:8.1f} s {peak / 1024:8.0f} MB", flush=True)


def _run(sender: Any, function: Callable[..., None], *arguments: Any) -> None:
    start = time.perf_counter()
    try:
        function(*arguments)
    finally:
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak = max(resource.getrusage(one).ru_maxrss for one in who)
        sender.send((time.perf_counter() - start, peak))


def main() -> None:
    """All steps, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        canaries().save(work / "canaries.json")
        run = (work, args.tasks, args.workers)
        measured("write tokens", write_tokens, work, args.documents)
        measured("insert tokens", insert_tokens, work)
        measured("verify tokens", verify_tokens, work)
        measured("write texts", write_texts, work, args.documents, args.tasks)
        measured("insert texts", insert, *run, [args.documents // args.tasks] * args.tasks)
        measured("count texts", count, *run)
        measured("verify texts", verify, *run)


if __name__ == "__main__":
    main()
