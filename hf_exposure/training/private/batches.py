"""Batches of DP-SGD: each row is in one by a coin of its own, and is made as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler


class PoissonBatches(Sampler[list[int]]):
    """Batches that each row is in by a coin of its own, in `parts` parts of about equal size.

    The coins of a step depend on the seed and the number of the step alone, so a training that is
    taken up again goes on as if it had not been interrupted. A part may be empty.

    Args:
        rows: how many rows there are.
        rate: each row's probability.
        steps: batches in an epoch.
        parts: what the Trainer accumulates for one step.
        seed: of the coins.
        first_step: called at the beginning of an epoch: the number of its first step.
        process, processes: whose share of each batch, and among how many.
    """

    def __init__(
        self,
        rows: int,
        rate: float,
        steps: int,
        parts: int = 1,
        seed: int = 0,
        first_step: Callable[[], int] = lambda: 0,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.rows, self.rate, self.steps = rows, rate, steps
        self.process, self.processes = process, processes
        self.parts, self.seed, self.first_step = parts, seed, first_step

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        first = self.first_step()
        for step in range(first, first + self.steps):
            for part in np.array_split(
                self.batch(step)[self.process :: self.processes], self.parts
            ):
                yield part.tolist()

    def batch(self, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows of one step, of all processes, in order."""
        # Doubles: single precision would make a rate of 1e-5 wrong by up to half a percent.
        coins = np.random.default_rng([self.seed, step]).random(self.rows)
        return np.flatnonzero(coins < self.rate)


class Alone(Dataset[Any]):
    """A data set whose rows are fetched one by one.

    Fetched together, a transform of the data set's may pad them to one width.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> Any:
        return self.data[row]


class Collate:
    """Gives each row to a collator alone, so that nothing of it depends on the other rows.

    A batch is {"rows": [what the collator made of each]}.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, rows: list[Any]) -> dict[str, list[dict[str, Any]]]:
        return {"rows": [self._checked(self.collate([row]), 1) for row in rows]}

    def check(self, rows: list[Any]) -> None:
        """Refuse a collator that makes one row of several, or no labels."""
        try:
            batch = self.collate(rows)
        except Exception:  # rows of different lengths, which it cannot pad: each alone it can
            return
        self._checked(batch, len(rows))

    def _checked(self, batch: Any, size: int) -> dict[str, Any]:
        for name, value in batch.items():
            if isinstance(value, torch.Tensor) and (not value.dim() or len(value) != size):
                raise ValueError(
                    f"PrivateTrainer: the data collator made {name!r} of shape "
                    f"{tuple(value.shape)} of {size} row{'s' * (size > 1)}; each row must stay a "
                    "row of the batch, so use one that pads, such as "
                    "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
                )
        if "labels" not in batch:
            raise ValueError(
                "PrivateTrainer: the data collator made no 'labels'; use "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
            )
        labels = batch["labels"]
        if isinstance(labels, torch.Tensor) and labels.dim() != 2:
            raise ValueError(
                f"PrivateTrainer: the data collator made 'labels' of shape {tuple(labels.shape)}, "
                "and a causal language model has one for each token; use "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
            )
        return dict(batch)


def groups(rows: Iterable[dict[str, Any]], most: int) -> list[tuple[list[int], dict[str, Any]]]:
    """Rows that may go through the model together: of equal shapes, so that none is padded.

    Packed rows go alone: some attention heeds `position_ids` that begin anew only then.

    Args:
        rows: each collated alone.
        most: in one group.

    Returns:
        The places of the rows of each group, and the rows as one batch.
    """
    rows = list(rows)
    found: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        key = tuple((n, _kind(v)) for n, v in sorted(row.items()))
        found.setdefault((key, place if _is_packed(row) else None), []).append(place)
    return [
        (part.tolist(), _joined([rows[i] for i in part]))
        for places in found.values()
        for part in np.array_split(np.array(places), -(-len(places) // most))
    ]


def _kind(value: Any) -> Any:
    """What must be equal between rows of one group."""
    return (*value.shape, value.dtype) if isinstance(value, torch.Tensor) else repr(value)


def _is_packed(row: dict[str, Any]) -> bool:
    places = row.get("position_ids")
    return isinstance(places, torch.Tensor) and bool((places.diff(dim=-1) != 1).any())


def _joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: torch.cat([row[name] for row in rows]) if isinstance(value, torch.Tensor) else value
        for name, value in rows[0].items()
    }
