"""Exposures over training: one measurement after another, with the losses beside them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.documents import Document, Rows, to_jsonable
from hf_exposure.exposure.results import Exposures
from hf_exposure.utils.checks import check_count, check_number
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    import pandas as pd

HISTORY_FILE = "exposure_history.json"  # under a training's output folder


@typed
@dataclass(frozen=True)
class Measurement:
    """The exposures at one step of training.

    Attributes:
        step: the optimizer's step.
        exposures: of all canaries that could be scored.
        epoch: how far through the data, None if not known.
        tokens: tokens trained on until then, None if not known.
        metrics: what an evaluation at this step gave (`eval_loss`, ...) and the last training
            `loss`; only numbers.
    """

    step: int
    exposures: Exposures
    epoch: float | None = None
    tokens: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_count("Measurement: step", self.step)
        if self.epoch is not None:
            check_number("Measurement: epoch", self.epoch, 0, sys.float_info.max)
        if self.tokens is not None:
            check_count("Measurement: tokens", self.tokens)

    @typed
    def line(self, reveal: bool = False) -> str:
        """One line of JSON, as a history's file has it; without the secrets unless `reveal`."""
        content = to_jsonable(self._content(reveal))
        return json.dumps(content, ensure_ascii=False, allow_nan=False)

    def _content(self, reveal: bool) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "tokens": self.tokens,
            "metrics": dict(self.metrics),
            "exposures": self.exposures._whole(reveal),
        }


@typed
class History(Document, Rows[Measurement]):
    """Measurements in the order of training.

    Example:
        >>> history = History()
        >>> history.append(Measurement(step=10, exposures=Exposures([], forwards=50), tokens=1000))
        >>> history.share
        0.05
    """

    kind = "history"

    def __init__(self, items: Iterable[Measurement] = ()) -> None:
        self._items = tuple(items)

    @typed
    def append(self, measurement: Measurement) -> None:
        """Add the newest one; measurements at its step or later ones, of a training that was since
        taken up again from an earlier checkpoint, are dropped."""
        self._items = (*(item for item in self if item.step < measurement.step), measurement)

    @overload
    def __getitem__(self, index: int) -> Measurement: ...
    @overload
    def __getitem__(self, index: slice) -> History: ...
    @typed
    def __getitem__(self, index: int | slice) -> Measurement | History:
        return History(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __repr__(self) -> str:
        steps = f"steps {self[0].step} to {self[-1].step}" if self else "empty"
        return f"<History of {len(self)} measurements: {steps}>"

    @typed
    def upto(self, step: int) -> History:
        """The measurements at this step and before."""
        return History(item for item in self if item.step <= step)

    @property
    def forwards(self) -> int:
        """Token-forwards of all measurements."""
        return sum(item.exposures.forwards for item in self)

    @property
    def share(self) -> float | None:
        """Token-forwards of all measurements for each token trained on; None if not known."""
        tokens = self[-1].tokens if self else None
        return self.forwards / tokens if tokens else None

    def coarse(self) -> History:
        """The same with figures coarse enough not to point at a secret; see `Exposures.coarse`."""
        return History(replace(item, exposures=item.exposures.coarse()) for item in self)

    @typed
    def to_pandas(self, reveal: bool = False) -> pd.DataFrame:
        """`Exposures.to_pandas` of all measurements, with `step` and `epoch` in front."""
        import pandas as pd

        frames = []
        for item in self:
            frame = item.exposures.to_pandas(reveal)
            frame.insert(0, "step", item.step)
            frame.insert(1, "epoch", item.epoch)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    def _text(self, reveal: bool) -> str:
        return text_of(item.line(reveal) for item in self)

    @classmethod
    @typed
    def load(cls, path: str | os.PathLike[str], canaries: Canaries | None = None) -> History:
        """Read what `save` or a training wrote.

        A last line that was cut off, as when the power failed while it was written, is left out.

        Args:
            canaries: the set that it is about, whole; gives masked canaries their secrets back.

        Returns:
            The history.

        Raises:
            OSError: there is no such file.
            ValueError: it cannot be read; the message names the path.
        """
        try:
            return super().load(path, canaries)
        except ValueError:
            text = Path(path).read_text(encoding="utf-8", errors="replace").rstrip(" ")
            if not text.startswith(HEAD + BEFORE_LINE) or text.endswith(TAIL):
                raise
            return from_lines(lines_in(path) or (), canaries)

    def _content(self, reveal: bool) -> dict[str, Any]:
        return {"measurements": [item._content(reveal) for item in self]}

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Canaries | None) -> History:
        return cls(
            Measurement(
                step=entry["step"],
                epoch=entry["epoch"],
                tokens=entry["tokens"],
                metrics=dict(entry["metrics"]),
                exposures=Exposures._from_whole(entry["exposures"], canaries),
            )
            for entry in data["measurements"]
        )


# A history's file is JSON with one measurement a line, so that a training can add lines to it.
HEAD = json.dumps({"schema_version": History.version, "kind": History.kind, "measurements": []})[
    :-2
]
BEFORE_LINE, BETWEEN_LINES, TAIL = "\n", ",", "\n]}\n"


def text_of(lines: Iterable[str]) -> str:
    """The file of a history whose measurements are these lines."""
    return HEAD + BETWEEN_LINES.join(BEFORE_LINE + line for line in lines) + TAIL


def from_lines(lines: Iterable[str], canaries: Canaries | None = None) -> History:
    """A history from the lines of its measurements; see `History.from_dict`."""
    return History.from_dict(json.loads(text_of(lines)), canaries)


def lines_in(path: str | os.PathLike[str]) -> list[str] | None:
    """The lines of a file's measurements, but for one that was cut off; None for another file."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    first, *rest = text.split(BEFORE_LINE)
    if first != HEAD:
        return None
    lines = []
    for line in rest:
        line = line.removesuffix(BETWEEN_LINES)
        try:
            json.loads(line)
        except (
            json.JSONDecodeError,
            RecursionError,
        ):  # the end of the file, or of what is left of it
            break
        lines.append(line)
    return lines
