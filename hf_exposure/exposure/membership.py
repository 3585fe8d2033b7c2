"""Membership from ranks: which canaries betray that they were trained on, at an exact error rate.

A secret is drawn uniformly from R, so under any model that has not seen it p = rank / |R| is
uniform: "detected at a false-positive rate of alpha" is p <= alpha, for alpha = 10^-6 as for 1 %,
and no control is needed (DESIGN: the null is exact, whatever the model and the tokenizer).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.documents import Rows, Tabular
from hf_exposure.exposure.estimators import clopper_pearson, exp2
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.steps import COARSE
from hf_exposure.utils.arrays import Bools, Floats
from hf_exposure.utils.checks import check_share
from hf_exposure.utils.typed import typed


@typed
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


@typed
class Membership(Tabular, Rows[MembershipRow]):
    """Which canaries are detected; see `Exposures.membership`. A row for each group and rate."""

    right = frozenset({0, 1, 2, 3, 4, 5, 6})

    def __init__(
        self, items: Iterable[MembershipRow], confidence: float, extrapolated: bool = False
    ) -> None:
        self._items = tuple(items)
        self.confidence = confidence
        self.extrapolated = extrapolated

    @typed
    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text; no secret is in it."""
        level = f"{self.confidence:.0%} interval"
        headings = ["inserted", "false positives", "canaries", "detected", "undecided"]
        rows = [
            [
                "all inserted" if row.repetitions is None else f"{row.repetitions}",
                percent(row.fpr),
                f"{row.count}",
                f"{row.detected}",
                f"{row.undecided}",
                f"{row.tpr:.0%}",
                f"{row.low:.0%}–{row.high:.0%}",
                f"{row.auc:.2f} ({row.auc_low:.2f}–{row.auc_high:.2f})",
            ]
            for row in self
        ]
        return [*headings, "true positives", level, "AUC"], rows

    def summary(self) -> str:
        """What it means, in one sentence; and what of it was not measured."""
        line = (
            "detected: the model ranks the canary so high among all strings of its secret space as "
            "it would rank a string that it was never trained on only with the probability in the "
            "second column, whatever the model; so an attacker can tell that it was trained on"
        )
        if self.extrapolated:
            line += (
                "; of skewnorm, canaries are counted among the references, since the fitted tail "
                "is an extrapolation and gives no exact rate"
            )
        return line


def percent(share: float) -> str:
    """A small share as text: "1 %", "0.1 %", "0.0001 %"."""
    return f"{100 * share:.10g} %"


@dataclass(frozen=True)
class Ranks:
    """The p-values of m canaries and their places among the strings of R.

    Attributes:
        least, most: (m,) between them lies the p-value; equal where it is known. Detected is what
            has `most` <= the false-positive rate, undecided what has only `least` there.
        above, above_low, above_high: (m,) the share of the other strings that are likelier, ties at
            one half, and its interval.
    """

    least: Floats
    most: Floats
    above: Floats
    above_low: Floats
    above_high: Floats

    @classmethod
    def of(
        cls,
        items: Sequence[Exposure],
        formats: Mapping[SecretFormat, FormatDetails],
        coarse: bool = False,
    ) -> Ranks:
        """Those of measured canaries.

        N is the size of R less the other inserted canaries of its format. An exact rank gives the
        p-value itself, with ties against the canary; an estimated one its interval. Among n uniform
        references of which k are not less likely it is (1 + k) / (1 + n), which is valid as it
        stands; if none is, it may be any smaller one.

        Args:
            coarse: the figures are those of a masked file: a rank lies anywhere in its step.
        """
        inserted = Counter(one.canary.format for one in items if one.canary.inserted)
        rows = []
        for one in items:
            fmt = one.canary.format
            strings = max(1, fmt.size - inserted[fmt] + int(one.canary.inserted))
            others = max(1, strings - 1)
            shares = (one.rank - one.ties / 2, one.rank_low, one.rank_high)
            above = [min(1.0, max(0.0, (rank - 1) / others)) for rank in shares]
            low, high, certain = one.rank_low, one.rank_high, one.exact
            if coarse and not (one.exact and one.rank_high < 1.5):
                low = max(1.0, exp2(fmt.bits - one.high - COARSE))
                high, certain = exp2(fmt.bits - one.low + COARSE), False
            if certain:
                least = most = min(1.0, one.rank / strings)
            elif one.exact or one.method == "auto" or one.method == "exact":
                least, most = low / strings, high / strings
            else:
                most = one.p_value if one.method == "sampling" else _among(one, formats.get(fmt))
                least = 0.0 if one.rank_low <= 1 else most
                if coarse:
                    least, most = min(least, low / strings), most * exp2(COARSE)
                if math.isnan(most):
                    least, most = 0.0, 1.0
                if one.method == "skewnorm":
                    above = [most, least, most]
            rows.append((least, min(most, 1.0), above[0], min(above), max(above)))
        return cls(*np.array(rows, dtype=float).reshape(-1, 5).T)

    def __getitem__(self, place: Bools) -> Ranks:
        return Ranks(
            self.least[place],
            self.most[place],
            self.above[place],
            self.above_low[place],
            self.above_high[place],
        )


def _among(one: Exposure, found: FormatDetails | None) -> float:
    """The p-value among the references that a fit was made from; NaN if it is not known, as from a
    file without secrets."""
    references = None if found is None else found.references
    if found is None or references is None or not len(references):
        return math.nan
    if math.isnan(one.ranked_by):
        return math.nan
    limit = one.ranked_by + (found.tie_bits or 0.0)
    return (1 + int(np.sum(references <= limit))) / (1 + len(references))


def membership_of(
    items: Sequence[Exposure],
    formats: Mapping[SecretFormat, FormatDetails],
    fpr: float | Sequence[float],
    confidence: float,
    coarse: bool,
) -> Membership:
    """The rows of measured canaries; see `Exposures.membership` and `Ranks.of`."""
    rates = [fpr] if isinstance(fpr, float | int) else list(fpr)
    if not rates:
        raise ValueError("Exposures.membership: fpr is empty; give at least one rate")
    for rate in rates:
        check_share("Exposures.membership: fpr", rate)
    rows = membership_rows(
        Ranks.of(items, formats, coarse),
        [one.canary.repetitions for one in items],
        rates,
        confidence,
    )
    extrapolated = any(one.method == "skewnorm" and not one.exact for one in items)
    return Membership(rows, confidence, extrapolated)


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
    count = len(ranks.most)
    detected = int(np.sum(ranks.most <= fpr))
    undecided = int(np.sum((ranks.least <= fpr) & (ranks.most > fpr)))
    low, _ = clopper_pearson(detected, count, confidence)
    _, high = clopper_pearson(detected + undecided, count, confidence)
    return MembershipRow(
        repetitions,
        fpr,
        count,
        detected,
        undecided,
        detected / count,
        low,
        high,
        float(np.mean(1 - ranks.above)),
        mean_interval(1 - ranks.above_high, confidence)[0],
        mean_interval(1 - ranks.above_low, confidence)[1],
    )


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
    return float(special.bdtrc(successes - 1, trials, share)) if successes else 1.0
