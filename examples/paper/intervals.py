"""Means over seeds with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

# The expected exposure, in bits, of a string that was never trained on: its rank is uniform, and
# -log2 of a uniform number is 1 / ln 2 on average.
CHANCE = 1 / math.log(2)


@dataclass(frozen=True)
class Mean:
    """A mean and its interval by Student's t distribution.

    Attributes:
        value: the mean.
        low, high: the interval; infinite for a single value.
        count: number of values.
    """

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float], confidence: float = 0.95) -> Mean:
        """The mean of independent values, such as one of each seed.

        Raises:
            ValueError: there are none.
        """
        numbers = np.array(list(values), dtype=np.float64)
        if not len(numbers):
            raise ValueError("Mean.of: values is empty")
        value = float(numbers.mean())
        if len(numbers) == 1:
            return cls(value, -math.inf, math.inf, 1)
        half = float(stats.sem(numbers) * stats.t.ppf(0.5 + confidence / 2, len(numbers) - 1))
        return cls(value, value - half, value + half, len(numbers))

    def above(self, level: float) -> bool | None:
        """Whether it is more than that: None if the interval holds both."""
        return True if self.low > level else False if self.high < level else None

    def below(self, level: float) -> bool | None:
        """Whether it is less than that: None if the interval holds both."""
        return True if self.high < level else False if self.low > level else None

    def __str__(self) -> str:
        return self.show()

    def show(self, digits: int = 1) -> str:
        """Such as "12.3 (11.0 to 13.6)"; what is too little for an interval is said to be so."""
        if self.count == 1:
            return f"{self.value:.{digits}f} (one seed)"
        if math.isinf(self.low):
            return f"{self.value:.{digits}f} (of {self.count}, too few for an interval)"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """Whether all hold: False if one does not, None if one cannot be told."""
    found = list(verdicts)
    return False if False in found else None if None in found else True


def correlation_interval(x: Iterable[float], y: Iterable[float], confidence: float = 0.95) -> Mean:
    """Pearson's correlation with its interval by Fisher's transformation."""
    one, other = list(x), list(y)
    found = stats.pearsonr(one, other)
    if len(one) < 4:  # scipy gives -1 to 1
        return Mean(float(found.statistic), -math.inf, math.inf, len(one))
    interval = found.confidence_interval(confidence)
    return Mean(float(found.statistic), float(interval.low), float(interval.high), len(one))


def share_interval(found: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Clopper-Pearson interval of a share, of independent cases."""
    interval = stats.binomtest(found, of).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)
