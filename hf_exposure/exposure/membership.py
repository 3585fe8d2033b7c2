"""Membership from ranks: which canaries betray that they were trained on, at an exact error rate.

A secret is drawn uniformly from R, so under any model that has not seen it p = rank / |R| is
uniform: "detected at a false-positive rate of alpha" is p <= alpha, for alpha = 10^-6 as for 1 %,
and no control is needed (DESIGN: the null is exact, whatever the model and the tokenizer).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from hf_exposure.utils.arrays import Bools, Floats


@dataclass(frozen=True)
class MembershipRow:
    """How many canaries of a group are detected at one false-positive rate.

    Attributes:
        repetitions: how many times each was inserted; None for all inserted ones together.
        fpr: the false-positive rate.
        count: canaries in the group.
        detected: those with p <= fpr, by the whole interval of their rank.
        undecided: those whose rank's interval lies across fpr; neither detected nor not.
        tpr: detected / count.
        low, high: the interval of the true-positive rate (Clopper and Pearson 1934), from `low`
            with no undecided canary detected to `high` with all of them.
        auc: the probability that a canary is likelier to the model than a string that was never
            trained on, ties at one half.
        auc_low, auc_high: its interval, with the ranks' own intervals in it; see `mean_interval`.
    """

    repetitions: int | None
    fpr: float
    count: int
    detected: int
    undecided: int
    tpr: float
    low: float
    high: float
    auc: float
    auc_low: float
    auc_high: float


@dataclass(frozen=True)
class Ranks:
    """The ranks of m canaries, and among how many strings each stands.

    Attributes:
        rank: (m,) strings that are not less likely, the canary itself included; ties count.
        low, high: (m,) the ends of its interval; equal to the rank where it is exact.
        ties: (m,) other strings that are as likely.
        strings: (m,) the strings among which it is ranked, itself included.
        exact_p: (m,) where this is not NaN, a p-value that is valid as it stands, as that of a
            rank among uniform references is: the interval is not asked.
    """

    rank: Floats
    low: Floats
    high: Floats
    ties: Floats
    strings: Floats
    exact_p: Floats

    def __getitem__(self, place: Bools) -> Ranks:
        return Ranks(
            self.rank[place],
            self.low[place],
            self.high[place],
            self.ties[place],
            self.strings[place],
            self.exact_p[place],
        )


def membership_rows(
    ranks: Ranks, repetitions: Sequence[int], fpr: Sequence[float], confidence: float
) -> list[MembershipRow]:
    """A row for each group and rate, then those of all inserted canaries together.

    Args:
        ranks: of m canaries.
        repetitions: (m,) how many times each was inserted; 0 is the control group.
        fpr: false-positive rates, between 0 and 1.
        confidence: confidence level of the intervals.
    """
    times = np.asarray(repetitions)
    groups: list[tuple[int | None, Bools]]
    groups = [(int(one), times == one) for one in np.unique(times)]
    if np.any(times > 0):
        groups.append((None, times > 0))
    return [
        _row(name, rate, ranks[members], confidence) for name, members in groups for rate in fpr
    ]


def _row(repetitions: int | None, fpr: float, ranks: Ranks, confidence: float) -> MembershipRow:
    count = len(ranks.rank)
    known = ~np.isnan(ranks.exact_p)
    most = np.where(known, ranks.exact_p, ranks.high / ranks.strings)
    least = np.where(known, ranks.exact_p, ranks.low / ranks.strings)
    detected = int(np.sum(most <= fpr))
    undecided = int(np.sum((least <= fpr) & (most > fpr)))
    low, _ = clopper_pearson(detected, count, confidence)
    _, high = clopper_pearson(detected + undecided, count, confidence)
    worse = np.maximum(ranks.strings - 1, 1)
    # The interval of a rank holds its ties: none of them counts at its low end.
    auc, auc_least, auc_most = (
        np.clip(1 - (place - 1) / worse, 0.0, 1.0)
        for place in (ranks.rank - ranks.ties / 2, ranks.high, ranks.low)
    )
    return MembershipRow(
        repetitions,
        fpr,
        count,
        detected,
        undecided,
        detected / count,
        low,
        high,
        float(np.mean(auc)),
        mean_interval(np.minimum(auc_least, auc), confidence)[0],
        mean_interval(np.maximum(auc_most, auc), confidence)[1],
    )


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934)."""
    alpha = 1 - confidence
    low = special.betaincinv(successes, trials - successes + 1, alpha / 2) if successes else 0.0
    last = successes == trials
    high = 1.0 if last else special.betaincinv(successes + 1, trials - successes, 1 - alpha / 2)
    return float(low), float(high)


def mean_interval(shares: Floats, confidence: float) -> tuple[float, float]:
    """An interval for the expectation of what lies between 0 and 1.

    Student's t of the shares with one more at 0 and one more at 1, as Agresti and Coull (1998) add
    to coins: a handful of equal shares is no proof that all are equal.
    """
    padded = np.concatenate([shares, [0.0, 1.0]])
    spread = float(np.std(padded, ddof=1)) / math.sqrt(len(padded))
    half = float(stats.t.ppf((1 + confidence) / 2, len(padded) - 1)) * spread
    middle = float(np.mean(padded))
    return max(0.0, middle - half), min(1.0, middle + half)


def binomial_p_value(successes: int, trials: int, share: float) -> float:
    """The probability of so many successes or more, each with probability `share`."""
    return float(stats.binom.sf(successes - 1, trials, share)) if successes else 1.0
