"""Repetition groups against chance: what strings that were never trained on would show."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from hf_exposure.exposure.records import Exposure, by_repetitions, mean_bits

# The expected exposure, in bits, of a string that was never trained on: its rank is uniform on R,
# and -log2 of a uniform number is 1 / ln 2 on average.
CHANCE = 1 / math.log(2)


@dataclass(frozen=True)
class GroupFinding:
    """A repetition group against chance.

    Attributes:
        repetitions: how many times each was inserted.
        count: canaries in it.
        mean, least, most: of their exposures, in bits.
        higher: the probability that as many strings that were never trained on are together as
            exposed as these, or more (Fisher's method).
        lower: the probability that they are together as little exposed as the upper ends of these
            exposures, or less.
    """

    repetitions: int
    count: int
    mean: float
    least: float
    most: float
    higher: float
    lower: float


def group_findings(exposures: Sequence[Exposure]) -> list[GroupFinding]:
    """Every repetition group, fewest repetitions first, tested against uniform ranks.

    The p-value of a string that was never trained on is uniform. -2 ln of the product of n of them
    then has a chi-squared distribution with 2n degrees of freedom (Fisher's method): a test of the
    sum of the exposures. In a small space the p-values are coarse, which can only make `higher`
    larger than it should be; for `lower` each is the least that its rank and its interval allow.
    """
    out = []
    for times, group in by_repetitions(exposures).items():
        bits = [one.bits for one in group]
        null = stats.chi2(2 * len(group))
        out.append(
            GroupFinding(
                times,
                len(group),
                mean_bits(group),
                min(bits),
                max(bits),
                float(_fisher([one.p_value for one in group]).pvalue),
                float(null.cdf(_fisher([_least_p_value(one) for one in group]).statistic)),
            )
        )
    return out


def _fisher(p_values: Sequence[float]) -> Any:
    return stats.combine_pvalues(np.maximum(p_values, 1e-300), method="fisher")


def _least_p_value(one: Exposure) -> float:
    """The share of R that is certainly likelier: without the string itself, and without an estimate
    being taken for a rank. Of a string of probability 0 it is not known."""
    if math.isinf(one.log_perplexity):
        return 0.0
    return float(max(0.0, 2.0**-one.high - 2.0**-one.canary.format.bits))


def noticeable(count: int, level: float) -> float:
    """The least mean exposure in bits at which a group of `count` would be told from chance.

    Where ranks are exact and the space is large; the critical value of Fisher's method.
    """
    return float(stats.chi2.isf(level, 2 * count)) / (2 * count * math.log(2))


def expected_mean(exposures: Sequence[Exposure]) -> float:
    """The mean exposure of controls by chance: the inserted ones have no rank among them, which
    shows where they are a good part of a small space."""
    inserted = Counter(one.canary.format for one in exposures if one.canary.inserted)
    formats = [one.canary.format for one in exposures if not one.canary.inserted]
    left = [math.log2(max(1, fmt.size - inserted[fmt])) for fmt in formats]
    apart = math.fsum(fmt.bits - bits for fmt, bits in zip(formats, left, strict=True))
    return CHANCE + apart / len(formats)


def above_chance(
    groups: Iterable[GroupFinding], confidence: float
) -> tuple[float, list[GroupFinding]]:
    """The level at which inserted groups are judged, errors shared out (Bonferroni), and those of
    them that are more exposed than chance."""
    inserted = [group for group in groups if group.repetitions]
    level = (1 - confidence) / max(1, len(inserted))
    return level, [group for group in inserted if group.higher <= level]
