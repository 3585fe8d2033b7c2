"""Can it be told which texts a model was trained on? A test on texts of one's own.

Texts have no secret space that they were drawn from, so false alarms are counted among non-members:
texts of the same kind that the model has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from hf_exposure.attacks.texts import OF_BASE, SCORES, TextScores
from hf_exposure.exposure.documents import Result
from hf_exposure.exposure.estimators import clopper_pearson
from hf_exposure.exposure.membership import percent
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.checks import check_choice, check_share
from hf_exposure.utils.typed import typed

_WHERE = "membership_test:"
_GIVEN = "given"  # what scores from elsewhere are called


@typed
@dataclass(frozen=True)
class MembershipTestRow:
    """How well one score tells members from non-members.

    Attributes:
        score: its name, one of `TextScore.score`'s.
        fpr: the false-positive rate.
        members, non_members: how many texts there were.
        detected: members that only a share of at most `fpr` of non-members would outdo: above so
            few of these n that (1 + how many reach it) / (1 + n) <= fpr. None where n is too small.
        tpr: detected / members.
        low, high: its interval (Clopper and Pearson 1934), for this threshold.
        fpr_high: the upper end of the interval of the false-positive rate at this threshold.
        auc: the probability that a member scores higher than a non-member, ties at one half.
        auc_low, auc_high: its interval; see `auc_interval`.
    """

    score: str
    fpr: float
    members: int
    non_members: int
    detected: int | None
    tpr: float | None
    low: float | None
    high: float | None
    fpr_high: float | None
    auc: float
    auc_low: float
    auc_high: float


@typed
class MembershipTest(Result[MembershipTestRow]):
    """How well each score tells members from non-members; see `membership_test`.

    Attributes:
        settings: `by`, the score of the headline, with `fpr` and `confidence`.
    """

    kind = "membership_test"
    entries = "scores"
    right = frozenset(range(1, 5))

    @property
    def by(self) -> str:
        """The score that was chosen beforehand."""
        return str(self.settings["by"])

    @property
    def headline(self) -> MembershipTestRow:
        """The row of that score."""
        return next(row for row in self if row.score == self.by)

    @property
    def tpr(self) -> float | None:
        """Its true-positive rate; None if there are too few non-members to tell."""
        return self.headline.tpr

    @property
    def auc(self) -> float:
        """Its AUC."""
        return self.headline.auc

    @typed
    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text; no text of members is in it."""
        level = f"{self.settings['confidence']:.0%} interval"
        headings = ["score", "non-members", "detected", "true positives", level, "AUC"]
        rows = []
        for row in self:
            told = ["–", "–", "–"]
            if row.tpr is not None:
                told = [f"{row.detected:,}", f"{row.tpr:.1%}", f"{row.low:.1%}–{row.high:.1%}"]
            told[0] += f" of {row.members:,}"
            auc = f"{row.auc:.2f} ({row.auc_low:.2f}–{row.auc_high:.2f})"
            rows.append([row.score, f"{row.non_members:,}", *told, auc])
        return headings, rows

    def summary(self) -> str:
        """What the headline says, in one sentence, or why there is none."""
        row, rate = self.headline, percent(self.settings["fpr"])
        if row.tpr is None:
            return (
                f"no true-positive rate: at {rate} false positives it needs at least "
                f"{_enough(row.fpr)} non-members, and there are {row.non_members}; give more, or "
                "allow a larger fpr"
            )
        return (
            f"by {row.score}, {row.detected} of {row.members:,} members are detected at {rate} "
            f"false positives ({row.tpr:.1%}, {row.low:.1%} to {row.high:.1%}); with "
            f"{row.non_members:,} non-members the false-positive rate is at most "
            f"{row.fpr_high:.1%} at this confidence"
        )

    def _entry(self, item: MembershipTestRow, reveal: bool) -> dict[str, Any]:
        return asdict(item)

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Any) -> MembershipTest:
        rows = [MembershipTestRow(**entry) for entry in data["scores"]]
        return cls(rows, **cls._read_took(data))


@typed
def membership_test(
    members: TextScores | Iterable[float],
    non_members: TextScores | Iterable[float],
    *,
    by: str | None = None,
    fpr: float = 0.01,
    confidence: float = 0.95,
) -> MembershipTest:
    """Whether scores tell texts that a model was trained on from others of the same kind.

    Both must be alike in all but their use: drawn at random from the same source, as a held-out
    split is. Texts of another time or topic are told apart without any model.

    Args:
        members: scores of texts that it was trained on, or numbers of your own, more for members.
        non_members: the same of texts that it was not trained on.
        by: the score of the headline, to be chosen before looking: the best of several flatters.
            None takes "ratio" if there was a base model, else "min_k_plus_plus".
        fpr: the false-positive rate, between 0 and 1.
        confidence: confidence level of the intervals.

    Returns:
        A table with a row for each score, and the headline's `tpr` and `auc`. With fewer than
        1 / fpr non-members (100 at 1 %) no threshold has that rate: `tpr` is None then, and the
        summary says how many are needed; the AUC is given all the same.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there are no members or no non-members, a score is NaN, or an argument is out of
            range.

    Example:
        >>> test = membership_test([3.0, 4.0], [0.0] * 99 + [3.5], fpr=0.01)
        >>> test.headline.detected, test.tpr, round(test.auc, 3)
        (1, 0.5, 0.995)
    """
    check_share(f"{_WHERE} fpr", fpr)
    groups = {"members": members, "non_members": non_members}
    texts = [one for one in groups.values() if isinstance(one, TextScores)]
    if len(texts) == 1:
        raise TypeError(
            f"{_WHERE} members and non_members must both be of score_texts, or both numbers"
        )
    names = [_GIVEN]
    if texts:
        known = all(one.has_base for one in texts)
        names = [name for name in SCORES if known or name not in OF_BASE]
        by = ("ratio" if known else "min_k_plus_plus") if by is None else by
    by = check_choice(f"{_WHERE} by", _GIVEN if by is None else by, names)
    rows = []
    for name in names:
        ins, outs = (_numbers(group, what, name) for what, group in groups.items())
        rows.append(told_apart(name, ins, outs, fpr, confidence))
    return MembershipTest(
        rows,
        forwards=sum(one.forwards for one in texts),
        seconds=sum(one.seconds for one in texts),
        settings={"by": by, "fpr": fpr, "confidence": confidence},
    )


def _numbers(group: TextScores | Iterable[float], what: str, name: str) -> Floats:
    found = group.scores(name) if isinstance(group, TextScores) else _floats(group, what)
    if not len(found) or np.isnan(found).any():
        why = "is empty" if not len(found) else f"has a {name} score that is NaN"
        raise ValueError(f"{_WHERE} {what} {why}; give scores of at least one text")
    return found


def _floats(group: Iterable[float], what: str) -> Floats:
    try:
        found = np.asarray(group if isinstance(group, Sequence) else list(group), dtype=np.float64)
    except (TypeError, ValueError):
        found = np.zeros((0, 0))
    if found.ndim != 1:
        raise TypeError(f"{_WHERE} {what} must be what score_texts gives, or a list of numbers")
    return found


def told_apart(
    name: str, members: Floats, non_members: Floats, fpr: float, confidence: float
) -> MembershipTestRow:
    """How well one score tells (m,) members from (n,) non-members; more is more."""
    outs = np.sort(non_members)
    n = len(outs)
    reach = n - np.searchsorted(outs, members, "left")  # non-members that score as high
    below = (np.searchsorted(outs, members, "left") + np.searchsorted(outs, members, "right")) / (
        2 * n
    )
    detected = tpr = low = high = fpr_high = None
    if n >= _enough(fpr):
        allowed = math.floor(fpr * (1 + n) + 1e-9) - 1  # non-members that may score as high
        detected = int(np.sum(reach <= allowed))
        tpr = detected / len(members)
        low, high = clopper_pearson(detected, len(members), confidence)
        fpr_high = clopper_pearson(allowed, n, confidence)[1]
    auc_low, auc_high = auc_interval(members, non_members, confidence)
    return MembershipTestRow(
        name,
        fpr,
        len(members),
        n,
        detected,
        tpr,
        low,
        high,
        fpr_high,
        float(np.mean(below)),
        auc_low,
        auc_high,
    )


def _enough(fpr: float) -> int:
    """The least number of non-members for a false-positive rate: 100 at 1 %."""
    return math.ceil(1 / fpr - 1e-9)


def auc_interval(members: Floats, non_members: Floats, confidence: float) -> tuple[float, float]:
    """An interval for the AUC of (m,) members and (n,) non-members.

    DeLong, DeLong and Clarke-Pearson (1988), with one more text of each kind at either end, as
    Agresti and Coull (1998) add to coins: a handful of texts told apart is no proof that all are.
    """

    def shares(ours: Floats, others: Floats) -> Floats:
        """For each of ours the share of the others that are below it, ties at one half."""
        others = np.sort(others)
        found = np.searchsorted(others, ours, "left") + np.searchsorted(others, ours, "right")
        return np.concatenate([found / (2 * len(others)), [0.0, 1.0]])

    over, under = shares(members, non_members), 1 - shares(non_members, members)
    spread = math.sqrt(np.var(over, ddof=1) / len(over) + np.var(under, ddof=1) / len(under))
    half = float(stats.t.ppf((1 + confidence) / 2, min(len(over), len(under)) - 1)) * spread
    middle = float(np.mean(over))
    return max(0.0, middle - half), min(1.0, middle + half)
