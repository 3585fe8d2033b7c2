"""Keeping the history of a training: in its checkpoints, and in a file that grows.

What belongs to a checkpoint is in the Trainer's own state, `trainer_state.json` of the checkpoint's
folder: it goes where the checkpoint goes, and the Trainer reads it when a training is resumed. The
file in the output folder is for people and for `hf-exposure report`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers.trainer_callback import TrainerState

from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.history import (
    BEFORE_LINE,
    BETWEEN_LINES,
    TAIL,
    History,
    Measurement,
    from_lines,
    lines_in,
    text_of,
)
from hf_exposure.utils.files import write_text
from hf_exposure.utils.warn import warn

STATE_FILE = "trainer_state.json"  # of the Trainer, in a checkpoint
STATE = "hf_exposure"  # our part of the Trainer's state, under `stateful_callbacks`

logger = logging.getLogger("hf_exposure")


class HistoryKeeper:
    """Keeps the history of one training, without the secrets.

    Guarantees:

    - A checkpoint holds the history up to it, wherever its folder is moved.
    - All processes go on from the same history.
    - The file of another training is never written over: it gets another name.
    - A measurement is written once, so that the work grows with the number of measurements, and
      the file is JSON after each write.
    """

    def __init__(self, canaries: Canaries) -> None:
        self.history = History()
        self._canaries = canaries
        self._begin()

    def _begin(self) -> None:
        self._lines: list[tuple[Measurement, str]] = []
        self._written: list[str] = []  # lines of the file, as this process has left it
        self._size: int | None = None  # of the file then; None before the first write

    def resume(self, state: TrainerState) -> None:
        """Take up the history that the checkpoint holds; at step 0 that of a new training.

        Every process must call it.
        """
        self._begin()
        if state.global_step > 0:
            self.history = self._stored(state)
        elif any(item.step > 0 for item in self.history):
            self.history = History()  # only a measurement before the training stays
        self.put_into(state)

    def _stored(self, state: TrainerState) -> History:
        states: Any = state.stateful_callbacks or {}
        if STATE not in states:
            logger.info(
                "ExposureCallback: the checkpoint holds no history of exposures, as it was saved "
                "without this callback, or uploaded without per_canary=True; the history begins "
                "after step %d",
                state.global_step,
            )
        (lines,) = broadcast_object_list([states.get(STATE, {"history": []})["history"]])
        try:
            history = from_lines(lines, self._canaries).upto(state.global_step)
        except ValueError as error:
            warn(
                f"ExposureCallback: the history in the checkpoint cannot be read ({error}); it "
                "begins anew, and the checkpoint keeps what it has",
            )
            return History()
        # What was written then is written again as it was, to the last digit.
        self._lines = list(zip(history, lines, strict=False))
        return history

    def note(self, metrics: Mapping[str, Any], state: TrainerState) -> None:
        """Keep what an evaluation gave, and the last training loss, with the latest measurement."""
        last = self.history[-1]
        losses = [row["loss"] for row in state.log_history if "loss" in row]
        kept = {**last.metrics, **({"loss": losses[-1]} if losses else {}), **metrics}
        numbers = {
            name: float(value)
            for name, value in kept.items()
            if isinstance(value, Real) and not isinstance(value, bool) and name != "epoch"
        }
        self.history.append(replace(last, metrics=numbers))

    def put_into(self, state: TrainerState) -> None:
        """Have the next checkpoint hold the history."""
        states: Any = state.stateful_callbacks or {}
        state.stateful_callbacks = {  # type: ignore[assignment]  # once made, it is a dictionary
            **states,
            STATE: {"history": self._all_lines()},
        }

    def write(self, path: Path) -> None:
        """Bring the file up to date.

        Raises:
            OSError: it cannot be written.
        """
        lines = self._all_lines()
        if lines == self._written:
            return
        if self._size is None:
            self._make_way(path, lines)
        if self._size is None or not path.is_file() or path.stat().st_size != self._size:
            write_text(path, text_of(lines))
            self._size = path.stat().st_size
        else:
            self._size = _grow(path, self._written, lines, self._size)
        self._written = lines

    def _all_lines(self) -> list[str]:
        made = {id(item): (item, line) for item, line in self._lines}
        self._lines = [made.get(id(item)) or (item, item.line()) for item in self.history]
        return [line for _, line in self._lines]

    def _make_way(self, path: Path, lines: Sequence[str]) -> None:
        """Give a file that holds more than this history another name."""
        if not path.is_file():
            return
        there = lines_in(path)
        if there is not None and there == list(lines[: len(there)]):
            return
        kept = set_aside(path)
        logger.info(
            "ExposureCallback: %s holds measurements of another training, or of later steps than "
            "the checkpoint; it is kept as %s",
            path,
            kept.name,
        )


def set_aside(path: Path) -> Path:
    """Give a file the first free of the names NAME.old, NAME.old2, ..., and return its new path."""
    number = 1
    while True:
        kept = path.with_name(f"{path.name}.old{'' if number == 1 else number}")
        try:
            os.link(path, kept)  # unlike a renaming, this never replaces a file
        except FileExistsError:
            number += 1
            continue
        except OSError:  # a file system without links
            if kept.exists():
                number += 1
                continue
            path.rename(kept)
            return kept
        path.unlink()
        return kept


def _grow(path: Path, old: Sequence[str], new: Sequence[str], size: int) -> int:
    """Replace the lines that differ and add those that are new, in one write; returns the size.

    The write begins at the end of the last line that stays. What it replaces there is at most the
    latest measurement and the end of the file, and spaces fill up what is then left.
    """
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    start = size - len(_tail_of(old, same))
    data = _tail_of(new, same)
    with open(path, "r+b", buffering=0) as file:
        file.seek(start)
        padded = data.ljust(size - start)
        if file.write(padded) != len(padded):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.truncate(start + len(data))
    return start + len(data)


def _tail_of(lines: Sequence[str], first: int) -> bytes:
    """The end of a file, from one of its lines on."""
    parts = [BEFORE_LINE + line for line in lines[first:]]
    if first and parts:
        parts[0] = BETWEEN_LINES + parts[0]
    return (BETWEEN_LINES.join(parts) + TAIL).encode()
