"""Limits that are set beforehand, and whether a measurement keeps them: passed, failed or not told.

A limit is failed only by what chance does not explain. A canary that was never trained on has more
than L bits of exposure with probability 2^-L, so among n of them the most exposed one has them with
at most n 2^-L; and each is detected at a false-positive rate f with probability f. Where a training
is judged at every evaluation, look t has the share 1 / t (t + 1) of the error rate, so that all
looks together raise a false alarm as rarely as one would (a union bound, valid at any time).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from hf_exposure.canaries.limits import Limits
from hf_exposure.exposure.chance import group_findings
from hf_exposure.exposure.estimators import clopper_pearson
from hf_exposure.exposure.membership import MembershipRow, Ranks, binomial_p_value, membership_rows
from hf_exposure.exposure.records import Exposure
from hf_exposure.utils.checks import check_count
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import plural


class Outcome(str, Enum):
    """What a check has come to."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


@typed
@dataclass(frozen=True)
class Check:
    """One limit, or one condition without which limits say nothing.

    Attributes:
        name: such as "exposure" or "controls".
        outcome: passed, failed or inconclusive.
        reason: one sentence with the figure, its interval and the limit.
        voids: the measurement itself is in doubt, so that no limit can be failed by it either.
        figure, low, high, limit: the same as numbers; None where there is none.
    """

    name: str
    outcome: Outcome
    reason: str
    figure: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    voids: bool = False


@typed
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
        """Inconclusive if the measurement is in doubt; else failed if a check is failed, else
        inconclusive if one is, else passed."""
        found = {check.outcome for check in self.checks}
        if Outcome.FAILED in found and not any(check.voids for check in self.checks):
            return Outcome.FAILED
        return Outcome.PASSED if found <= {Outcome.PASSED} else Outcome.INCONCLUSIVE

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed, 3 inconclusive."""
        return {Outcome.PASSED: 0, Outcome.FAILED: 1, Outcome.INCONCLUSIVE: 3}[self.outcome]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: outcome, exit code, limits and all checks."""
        return {
            "outcome": self.outcome.value,
            "exit_code": self.exit_code,
            "limits": self.limits.to_dict(),
            "checks": [asdict(check) | {"outcome": check.outcome.value} for check in self.checks],
        }

    def __str__(self) -> str:
        lines = [f"{check.outcome.value:<12}  {check.reason}" for check in self.checks]
        return "\n".join([*lines, f"Verdict: {self.outcome.value}"])


@dataclass(frozen=True)
class Conditions:
    """What else is known of a measurement, without which limits say nothing.

    Attributes:
        on_record: whether the manifest says that the canaries were inserted.
        skipped: inserted canaries that could not be scored.
        bounds: places of exposures that are lower bounds only.
        strange: formats whose canaries are less likely than random tokens.
        ranked_by: the score that canaries are ranked by, in words.
        survival: how many inserted canaries are not in the training data as planned, and how many
            there are; None if that was not looked at.
        agreed: the limits that were written down with the canaries, as a dictionary.
    """

    on_record: bool = True
    skipped: int = 0
    bounds: frozenset[int] = frozenset()
    strange: int = 0
    ranked_by: str = "log-perplexity"
    survival: tuple[int, int] | None = None
    agreed: Mapping[str, Any] | None = None


def judge(
    limits: Limits,
    items: Sequence[Exposure],
    ranks: Ranks,
    measured: Conditions,
    confidence: float,
    look: int = 1,
) -> Verdict:
    """All checks of a measurement; see `Exposures.check`.

    Args:
        items: the exposures, coarse, since their figures are shown.
        ranks: theirs, as they were measured.
    """
    check_count("Exposures.check: look", look, least=1)
    checks = [*_conditions(items, measured, confidence)]
    if measured.agreed is not None and limits != (agreed := Limits.from_dict(measured.agreed)):
        told = f"these limits are not those that were set with the canaries ({agreed})"
        checks.append(Check("limits", Outcome.PASSED, told))
    if measured.ranked_by != "log-perplexity":
        told = f"canaries are ranked by {measured.ranked_by}, and not by log-perplexity"
        checks.append(Check("score", Outcome.PASSED, told))
    chosen = [
        place
        for place, one in enumerate(items)
        if one.canary.inserted and limits.repetitions in (None, one.canary.repetitions)
    ]
    if not chosen:
        told = f"none of the {limits.who} was measured, so nothing is known of a leak"
        return Verdict(limits, (*checks, Check("canaries", Outcome.INCONCLUSIVE, told)))
    if count := len(measured.bounds.intersection(chosen)):
        told = (
            f"{count} of {plural(len(chosen), 'exposure')} are lower bounds only, for want of "
            "token-forwards; give a larger max_forwards"
        )
        checks.append(Check("budget", Outcome.INCONCLUSIVE, told))
    judged = [items[place] for place in chosen]
    # The error rate is shared out among the limits.
    alpha = (1 - confidence) / ((limits.max_exposure is not None) + (limits.max_tpr is not None))
    if limits.max_exposure is not None:
        figures = [(one.bits, one.low, one.high) for one in judged]
        checks.append(check_exposure(limits, figures, alpha, look))
    if limits.max_tpr is not None:
        place = np.isin(np.arange(len(items)), chosen)
        row = membership_rows(ranks[place], [1] * len(chosen), [limits.fpr], confidence)[-1]
        checks.append(check_tpr(limits, row, alpha, look))
    return Verdict(limits, tuple(checks))


def _conditions(
    items: Sequence[Exposure], measured: Conditions, confidence: float
) -> Iterator[Check]:
    """What is known to be amiss, and what was looked at and is not."""
    unclear = Outcome.INCONCLUSIVE
    if measured.strange:
        told = "canaries are less likely to the model than random tokens: is this its tokenizer?"
        yield Check("text", unclear, told, voids=True)
    if not measured.on_record:
        told = "that these canaries were inserted is not on record (inject_canaries makes one)"
        yield Check("insertion", unclear, told)
    if measured.survival is not None:
        lost, every = measured.survival
        told = f"{lost} of {plural(every, 'inserted canary')} are not in the training data "
        told += "as planned"
        yield Check("survival", unclear if lost else Outcome.PASSED, told)
    if measured.skipped:
        told = f"{plural(measured.skipped, 'inserted canary')} could not be scored"
        yield Check("skipped", unclear, told)
    controls = [
        one
        for place, one in enumerate(items)
        if not one.canary.inserted and place not in measured.bounds
    ]
    if controls:
        group = group_findings(controls)[0]
        least = min(group.higher, group.lower)
        told = f"{plural(group.count, 'control')} with {group.mean:.2f} bits on average, "
        if least <= (1 - confidence) / 2:
            side = "more" if group.higher < group.lower else "less"
            told += (
                f"{side} than chance explains (p = {2 * least:.1g}): the measurement is biased, "
            )
            told += "or these secrets did reach the model"
            yield Check("controls", unclear, told, group.mean, voids=True)
        else:
            yield Check("controls", Outcome.PASSED, f"{told}as chance has it", group.mean)


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
