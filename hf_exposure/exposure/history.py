"""Exposures over training: one measurement after another, with the losses beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.documents import Document
from hf_exposure.exposure.results import Exposures

if TYPE_CHECKING:
    import pandas as pd

HISTORY_FILE = "exposure_history.json"  # under a training's output folder


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


class History(Document, Sequence[Measurement]):
    """Measurements in the order of training.

    Example:
        >>> history = History()
        >>> history.append(Measurement(step=10, exposures=Exposures([], forwards=50), tokens=1000))
        >>> history.share
        0.05
    """

    kind = "history"

    def __init__(self, items: Iterable[Measurement] = ()) -> None:
        self._items = list(items)

    def append(self, measurement: Measurement) -> None:
        """Add the newest one; measurements at its step or later ones, of a training that was since
        taken up again from an earlier checkpoint, are dropped."""
        self._items = [item for item in self._items if item.step < measurement.step]
        self._items.append(measurement)

    @overload
    def __getitem__(self, index: int) -> Measurement: ...
    @overload
    def __getitem__(self, index: slice) -> History: ...
    def __getitem__(self, index: int | slice) -> Measurement | History:
        return History(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self._items)

    def __repr__(self) -> str:
        steps = f"steps {self[0].step} to {self[-1].step}" if self else "empty"
        return f"<History of {len(self)} measurements: {steps}>"

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

    def _content(self, reveal: bool) -> dict[str, Any]:
        return {
            "measurements": [
                {
                    "step": item.step,
                    "epoch": item.epoch,
                    "tokens": item.tokens,
                    "metrics": dict(item.metrics),
                    "exposures": item.exposures._whole(reveal),
                }
                for item in self
            ],
        }

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
