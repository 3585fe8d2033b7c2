"""Limits that are set beforehand, and whether a measurement keeps them: passed, failed or not told.

A limit is failed only by what chance does not explain. A canary that was never trained on has more
than L bits of exposure with probability 2^-L, so among n of them the most exposed one has them with
at most n 2^-L; and each is detected at a false-positive rate f with probability f. Where a training
is judged at every evaluation, look t has the share 1 / t (t + 1) of the error rate, so that all
looks together raise a false alarm as rarely as one would (a union bound, valid at any time).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hf_exposure.exposure.membership import MembershipRow, binomial_p_value, clopper_pearson
from hf_exposure.utils.checks import check_count, check_number, check_share
from hf_exposure.utils.words import plural, times


class Outcome(str, Enum):
    """What a check has come to."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Limits:
    """What a model must keep to be released; set before it is trained.

    Args:
        max_exposure: the most exposure in bits that an inserted canary may have.
        max_tpr: the largest share of the inserted canaries that may be detected.
        fpr: the false-positive rate of that detection.
        repetitions: judge only the canaries that were inserted so many times; None judges all.

    Raises:
        TypeError: an argument is no number.
        ValueError: no limit is given, or one is out of range.
    """

    max_exposure: float | None = None
    max_tpr: float | None = None
    fpr: float = 0.01
    repetitions: int | None = None

    def __post_init__(self) -> None:
        if self.max_exposure is None and self.max_tpr is None:
            raise ValueError(
                "Limits: there is no limit; give max_exposure=10, say, or max_tpr=0.05"
            )
        if self.max_exposure is not None:
            check_number("Limits: max_exposure", self.max_exposure, least=0)
        if self.max_tpr is not None:
            check_number("Limits: max_tpr", self.max_tpr, least=0, most=1)
        check_share("Limits: fpr", self.fpr)
        if self.repetitions is not None:
            check_count("Limits: repetitions", self.repetitions, least=1)

    def to_dict(self) -> dict[str, Any]:
        """The arguments, for JSON."""
        return {
            "max_exposure": self.max_exposure,
            "max_tpr": self.max_tpr,
            "fpr": self.fpr,
            "repetitions": self.repetitions,
        }

    @property
    def who(self) -> str:
        """The canaries that are judged, in words."""
        return f"canaries inserted {times(self.repetitions)}" if self.repetitions else "canaries"


@dataclass(frozen=True)
class Check:
    """One limit, or one condition without which limits say nothing.

    Attributes:
        name: such as "exposure" or "controls".
        outcome: passed, failed or inconclusive.
        reason: one sentence with the figure, its interval and the limit.
        figure, low, high, limit: the same as numbers; None where there is none.
    """

    name: str
    outcome: Outcome
    reason: str
    figure: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Verdict:
    """All checks of a measurement against limits.

    Attributes:
        limits: what was checked.
        checks: conditions first, then the limits.
    """

    limits: Limits
    checks: tuple[Check, ...] = field(default_factory=tuple)

    @property
    def outcome(self) -> Outcome:
        """Failed if a check is failed, else inconclusive if one is, else passed."""
        found = {check.outcome for check in self.checks}
        for outcome in (Outcome.FAILED, Outcome.INCONCLUSIVE):
            if outcome in found:
                return outcome
        return Outcome.PASSED

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 inconclusive."""
        return {Outcome.PASSED: 0, Outcome.FAILED: 1, Outcome.INCONCLUSIVE: 3}[self.outcome]

    def __str__(self) -> str:
        lines = [f"{check.outcome.value:<12}  {check.reason}" for check in self.checks]
        return "\n".join([*lines, f"Verdict: {self.outcome.value}"])


def check_exposure(
    limits: Limits, highest: Sequence[tuple[float, float, float]], alpha: float, look: int = 1
) -> Check:
    """Whether the most exposed canary keeps `limits.max_exposure`.

    Args:
        limits: with `max_exposure`.
        highest: (bits, low, high) of each canary that is judged; at least one.
        alpha: the error rate of all looks together.
        look: the number of this look, from 1 on.
    """
    assert limits.max_exposure is not None
    bits, low, high = (max(part) for part in zip(*highest, strict=True))
    least = math.log2(len(highest) / look_share(alpha, look))  # what chance would hardly give
    told = f"the most exposed of {plural(len(highest), 'canary')} has {bits:.1f} bits "
    told += f"({low:.1f} to {high:.1f}), the limit is {limits.max_exposure:g}"
    if high <= limits.max_exposure:
        outcome = Outcome.PASSED
    elif low <= limits.max_exposure:
        outcome, told = Outcome.INCONCLUSIVE, f"{told}, which lies within the interval"
    elif low <= least:
        outcome = Outcome.INCONCLUSIVE
        told += f"; by chance one of them may have up to {least:.1f}"
    else:
        outcome = Outcome.FAILED
    return Check("exposure", outcome, told, bits, low, high, limits.max_exposure)


def check_tpr(limits: Limits, row: MembershipRow, alpha: float, look: int = 1) -> Check:
    """Whether no larger share of the canaries is detected than `limits.max_tpr`.

    Failed if so many detections have a probability of at most `alpha` where each has that of the
    limit, or of the false-positive rate if that is larger. Passed if the upper end of the interval
    of the share keeps the limit.

    Args:
        limits: with `max_tpr`.
        row: the group that is judged, at `limits.fpr`.
        alpha: the error rate of all looks together.
        look: the number of this look, from 1 on.
    """
    assert limits.max_tpr is not None
    share = look_share(alpha, look)
    _, high = clopper_pearson(row.detected + row.undecided, row.count, 1 - 2 * share)
    low, _ = clopper_pearson(row.detected, row.count, 1 - 2 * share)
    allowed = max(limits.max_tpr, limits.fpr)
    told = f"{row.detected} of {plural(row.count, 'canary')} detected at a false-positive rate of "
    told += f"{limits.fpr:g} ({low:.0%} to {high:.0%}), the limit is {limits.max_tpr:.0%}"
    if row.undecided:
        told += f"; {row.undecided} undecided"
    if binomial_p_value(row.detected, row.count, allowed) <= share:
        outcome = Outcome.FAILED
    elif high <= limits.max_tpr:
        outcome = Outcome.PASSED
    else:
        outcome = Outcome.INCONCLUSIVE
        needed = _enough(limits.max_tpr, share)
        told += f"; with none detected {needed} canaries would have told" if needed else ""
    return Check("tpr", outcome, told, row.tpr, low, high, limits.max_tpr)


def look_share(alpha: float, look: int) -> float:
    """The part of an error rate that look number `look` may use: alpha / t (t + 1)."""
    return alpha / (look * (look + 1)) if look > 1 else alpha / 2


def _enough(share: float, alpha: float) -> int:
    """How many canaries, none of them detected, would bound the rate by `share`; 0 for never."""
    return math.ceil(math.log(alpha) / math.log1p(-share)) if 0 < share < 1 else 0
