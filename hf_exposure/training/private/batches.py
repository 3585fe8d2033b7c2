"""Batches of DP-SGD: each row is in one by a coin of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from hf_exposure.training.private.per_sample import rows_of


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
    """

    def __init__(
        self,
        rows: int,
        rate: float,
        steps: int,
        parts: int = 1,
        seed: int = 0,
        first_step: Callable[[], int] = lambda: 0,
    ) -> None:
        self.rows, self.rate, self.steps = rows, rate, steps
        self.parts, self.seed, self.first_step = parts, seed, first_step

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        first = self.first_step()
        for step in range(first, first + self.steps):
            for part in np.array_split(self.batch(step), self.parts):
                yield part.tolist()

    def batch(self, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows of one step, in order."""
        # Doubles: single precision would make a rate of 1e-5 wrong by up to half a percent.
        coins = np.random.default_rng([self.seed, step]).random(self.rows)
        return np.flatnonzero(coins < self.rate)


class Collate:
    """A collator that can also make an empty batch, and sees to it that rows stay rows."""

    def __init__(self, collate: Callable[[list[Any]], Any], rows: Any) -> None:
        self.collate, self.rows = collate, rows

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        batch = self.collate(rows or [self.rows[0]])
        size = max(1, len(rows))
        for name, value in batch.items():
            if isinstance(value, torch.Tensor) and (not value.dim() or len(value) != size):
                raise ValueError(
                    f"PrivateTrainer: the data collator made {name!r} of shape "
                    f"{tuple(value.shape)} of {size} rows; each row must stay a row of the batch, "
                    "so use one that pads, such as DataCollatorForLanguageModeling(tokenizer, "
                    "mlm=False)"
                )
        if "labels" not in batch:
            raise ValueError(
                "PrivateTrainer: the data collator made no 'labels'; use "
                "DataCollatorForLanguageModeling(tokenizer, mlm=False)"
            )
        return {name: rows_of(value, slice(0, len(rows))) for name, value in batch.items()}
