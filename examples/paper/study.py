"""A study: many runs, each with a seed and a record of its own, in parallel, to be resumed.

An experiment says which runs it needs, what one run does, and what all records together show. A
study does the rest: it runs those that have no record yet, in as many processes as wanted, and
each process writes a run's record when it is done. After a kill the same command goes on.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import datasets
import matplotlib
import torch
import transformers
from matplotlib.figure import Figure

from paper import texts
from paper.figures import new_figure
from paper.intervals import Mean

SEEDS = 3  # of each setting, unless told otherwise
Scale = Literal["smoke", "small", "large"]
SCALES: tuple[Scale, ...] = ("smoke", "small", "large")


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
        name: of the setting; letters, digits and hyphens.
        seed: of everything random in it.
        settings: what the experiment's `run` gets; plain values that JSON can hold.
    """

    name: str
    seed: int
    settings: dict[str, Any]

    @property
    def file(self) -> str:
        """The name of its record's file."""
        return f"{self.name}-{self.seed}.json"


@dataclass(frozen=True)
class Record:
    """What a run gave.

    Attributes:
        result: the experiment's figures; no secret is in them.
        seconds: of processor time: what it takes a core that does nothing else.
    """

    run: Run
    result: dict[str, Any]
    seconds: float

    @property
    def name(self) -> str:
        """Of the run's setting."""
        return self.run.name


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and whether it was seen here.

    Attributes:
        text: the claim.
        held: whether it was; None if these runs cannot tell.
        found: the figures, with their intervals.
    """

    text: str
    held: bool | None
    found: str


@dataclass(frozen=True)
class Table:
    """Figures in rows; cells are text."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""

    def markdown(self) -> str:
        """As a table of Markdown."""
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return f"{self.caption}\n\n{table}" if self.caption else table


@dataclass(frozen=True)
class Conclusion:
    """What all records of an experiment show."""

    claims: tuple[Claim, ...]
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One of the paper's results.

    Attributes:
        name: for the command line.
        title: for people.
        about: what is done, and what the paper found, in a few sentences.
        runs: the runs of a scale, for these seeds, on this text (None: Python's help texts).
        run: makes one run's figures; called in a process of its own.
        conclude: claims and tables from all records.
        draw: the figure.
        notes: what the runs on the page show beyond the claims, and what is left to do; Markdown.
        more: further runs that depend on the records so far; none by default.
        size: of the figure, in inches.
    """

    name: str
    title: str
    about: str
    runs: Callable[[Scale, Sequence[int], str | None], list[Run]]
    run: Callable[[Run], dict[str, Any]]
    conclude: Callable[[list[Record]], Conclusion]
    draw: Callable[[list[Record], Figure], None]
    more: Callable[[list[Record], Scale], list[Run]] = field(default=lambda records, scale: [])
    size: tuple[float, float] = (9.0, 4.0)
    notes: str = ""


class StudyError(RuntimeError):
    """Some runs have failed; the records of the others are kept."""


@dataclass
class Study:
    """The runs of an experiment, kept in a folder.

    Args:
        experiment: what is run.
        folder: holds `runs/`, `result.json`, `figure.png` and `figure.svg`.
        scale: "smoke" to see that it runs, "small" for minutes on two cores, "large" for a GPU.
        seeds: of the runs.
        text: what to train on, as `paper.texts` has it; None takes Python's help texts.
        workers: processes; 1 runs them in this one.
        tell: called after each run with how many are done, and of how many.

    Attributes:
        conclusion: what the records show, once they are complete.
    """

    experiment: Experiment
    folder: Path
    scale: Scale = "small"
    seeds: Sequence[int] = range(SEEDS)
    text: str | None = None
    workers: int = 1
    tell: Callable[[int, int], None] = lambda done, total: None
    conclusion: Conclusion | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise ValueError(f"Study: scale={self.scale!r} is not known; use {', '.join(SCALES)}")
        if not self.seeds:
            raise ValueError("Study: seeds is empty; give at least one")
        if self.workers < 1:
            raise ValueError(f"Study: workers={self.workers!r} must be at least 1")
        self.folder = Path(self.folder)

    def complete(self) -> list[Record]:
        """Run what has no record yet, then set `conclusion`, and write it and the figure.

        Raises:
            StudyError: runs have failed; all others are done and kept.
        """
        runs = self.experiment.runs(self.scale, self.seeds, self.text)
        records = self._run(runs, known=0)
        more = self.experiment.more(records, self.scale)
        if more:
            records += self._run(more, known=len(records))
        self._write(records)
        return records

    def _run(self, runs: list[Run], known: int) -> list[Record]:
        folder = self.folder / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        waiting = [run for run in runs if read(folder, run) is None]
        done = known + len(runs) - len(waiting)
        self.tell(done, known + len(runs))
        failed: list[tuple[Run, BaseException]] = []
        for run, error in _carried_out(self.experiment, waiting, folder, self.workers):
            if error is not None:
                failed.append((run, error))
                continue
            done += 1
            self.tell(done, known + len(runs))
        if failed:
            run, error = failed[0]
            raise StudyError(
                f"{self.experiment.name}: {len(failed)} of {len(runs)} runs failed; the others "
                f"are kept, and the same command goes on. The first, {run.name} with seed "
                f"{run.seed}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            ) from error
        records = [read(folder, run) for run in runs]
        return [record for record in records if record is not None]

    def _write(self, records: list[Record]) -> None:
        self.conclusion = conclusion = self.experiment.conclude(records)
        content = {
            "experiment": self.experiment.name,
            "title": self.experiment.title,
            "about": self.experiment.about,
            "notes": self.experiment.notes,
            "scale": self.scale,
            "text": texts.title(self.text),
            "seeds": list(self.seeds),
            "runs": len(records),
            "seconds": round(math.fsum(record.seconds for record in records), 1),
            "versions": {name: version(name) for name in ("torch", "transformers")},
            "claims": [asdict(claim) for claim in conclusion.claims],
            "tables": [asdict(table) for table in conclusion.tables],
        }
        write_json(self.folder / "result.json", content)
        draw(self.experiment, records, self.folder)


def draw(experiment: Experiment, records: list[Record], folder: Path) -> None:
    """Write `figure.png` and `figure.svg`."""
    figure = new_figure(experiment.size)
    experiment.draw(records, figure)
    for kind in ("png", "svg"):
        # The same records give the same file: no date in it, and ids that do not change.
        metadata = {"Date": None} if kind == "svg" else None
        with matplotlib.rc_context({"svg.hashsalt": experiment.name}):
            figure.savefig(folder / f"figure.{kind}", dpi=110, metadata=metadata)


def read(folder: Path, run: Run) -> Record | None:
    """The record of a run; None if there is none, or it is one of other settings."""
    try:
        content = json.loads((folder / run.file).read_text(encoding="utf-8"))
        same = content["settings"] == json.loads(json.dumps(run.settings))
        if not same or content["seed"] != run.seed:
            return None
        return Record(run, content["result"], content["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all. Infinity, which JSON has not, is written as a string."""
    names = {"Infinity": "inf", "-Infinity": "-inf", "NaN": "nan"}
    plain = json.loads(json.dumps(content), parse_constant=names.get)
    whole = path.with_name(f".{path.name}")
    whole.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    whole.replace(path)


def hush() -> None:
    """No progress bars and no advice of the libraries in this process."""
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def carry_out(experiment: Experiment, run: Run, folder: Path) -> None:
    """Make one run and write its record, whole or not at all."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries; what is wrong is raised
        result = experiment.run(run)
    content = {
        "experiment": experiment.name,
        "name": run.name,
        "seed": run.seed,
        "settings": run.settings,
        "seconds": round(time.process_time() - start, 2),
        "result": result,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    write_json(folder / run.file, content)


def _carried_out(
    experiment: Experiment, runs: list[Run], folder: Path, workers: int
) -> Iterator[tuple[Run, BaseException | None]]:
    """Each run as it is done, with what went wrong."""
    if workers == 1 or len(runs) < 2:
        for run in runs:
            try:
                carry_out(experiment, run, folder)
            except Exception as error:
                yield run, error
            else:
                yield run, None
        return
    # A server process loads the libraries once, and the workers are forked from it.
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(["datasets", "matplotlib.figure", "transformers.trainer"])
    pool = ProcessPoolExecutor(min(workers, len(runs)), context, initializer=_alone)
    try:
        futures: dict[Future[None], Run] = {
            pool.submit(_by_name, experiment.name, run, str(folder)): run for run in runs
        }
        for future in as_completed(futures):
            yield futures[future], future.exception()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _by_name(name: str, run: Run, folder: str) -> None:
    """In a worker process, which finds the experiment by its name."""
    from paper import find

    carry_out(find(name), run, Path(folder))


def _alone() -> None:
    """Each worker has one core: threads of several would wait for each other. And it ends with the
    study, however that ends: a worker whose study was killed would train on, for nobody."""
    hush()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_the_study, daemon=True).start()


def _end_with_the_study() -> None:
    study = multiprocessing.parent_process()
    if study is not None:
        study.join()
        os._exit(1)


def for_each_seed(
    name: str, settings: dict[str, Any], seeds: Sequence[int], text: str | None
) -> list[Run]:
    """One setting's runs."""
    return [Run(name, seed, {**settings, "text": text}) for seed in seeds]


def often(count: int) -> str:
    """Such as "once" and "16 times"."""
    return "once" if count == 1 else f"{count:,} times"


def counted(number: int, noun: str) -> str:
    """Such as "1 run" and "3 runs"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def mean(records: Iterable[Record], *keys: str) -> Mean:
    """The mean over records of a figure of their results; keys lead to it."""

    def figure(record: Record) -> float:
        found: Any = record.result
        for key in keys:
            found = found[key]
        return float(found)

    return Mean.of(figure(record) for record in records)


def by_name(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of each setting, in the order of the first ones."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.name, []).append(record)
    return groups
