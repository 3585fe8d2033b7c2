"""Scores of canaries whose coins are to be guessed, from measurements of one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hf_exposure.exposure.results import Exposures
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.typed import typed


class CanaryScores(NamedTuple):
    """Scores of canaries of which each was put in or left out by its own coin.

    Attributes:
        in_scores, out_scores: of those that were inserted, and of those that were not; higher means
            more likely trained on.
        repetitions: how many times each of the former was inserted.
    """

    in_scores: Floats
    out_scores: Floats
    repetitions: int


@typed
def canary_scores(
    exposures: Exposures | Sequence[Exposures],
    repetitions: int | None = None,
    *,
    base: Exposures | None = None,
) -> CanaryScores:
    """The scores to audit with, from a measurement of canaries drawn with `inclusion="coin"`.

    A score is minus the log-perplexity in bits; with `base` how far it fell in training, which
    leaves out that some secrets are likelier than others from the start. Scores of several formats
    cannot be compared: each is then taken from the median of its own format's coin canaries, in and
    out, and divided by their median distance from it, neither of which looks at the coins.
    Exposures are not used: an exposure leaves out the other canaries that were inserted, so it
    knows their coins. Canaries for which no coin was flipped, such as controls, are left out.

    Choose the score before you look at the bounds: the best of several is not one of them.

    Args:
        exposures: the measurement of one model; or of several checkpoints of one training, such as
            the last ones, whose scores are averaged.
        repetitions: only canaries that were to be inserted so many times; may be left out if all
            have the same number.
        base: the measurement of the same canaries before training.

    Raises:
        ValueError: there are no coin canaries of that number of repetitions, or of several numbers;
            or the measurements are not of the same canaries.

    Example:
        >>> from hf_exposure import Canaries, SecretFormat
        >>> fmt = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
        >>> canaries = Canaries.generate(fmt, [4], per_repetition=1000, inclusion="coin")
        >>> # before = measure_exposure(model, tokenizer, canaries)
        >>> # after = measure_exposure(trained, tokenizer, canaries)
        >>> # scores = canary_scores(after, base=before)
        >>> # estimate_epsilon(scores.in_scores, scores.out_scores, repetitions=scores.repetitions)
    """
    measured = [exposures] if isinstance(exposures, Exposures) else list(exposures)
    if not measured:
        raise ValueError("canary_scores: exposures is empty; give at least one measurement")
    first = measured[0]
    planned = sorted({item.canary.planned for item in first if item.canary.planned})
    if not planned:
        raise ValueError(
            "canary_scores: no coin was flipped for any of these canaries; draw them with "
            'Canaries.generate(..., inclusion="coin")'
        )
    if repetitions is None and len(planned) > 1:
        raise ValueError(
            f"canary_scores: the canaries were to be inserted {_listed(planned)} times; choose one "
            "number with repetitions="
        )
    chosen = planned[0] if repetitions is None else repetitions
    if chosen not in planned:
        raise ValueError(
            f"canary_scores: repetitions={chosen} was planned for no canary; use {_listed(planned)}"
        )
    for other in [*measured[1:], *([base] if base is not None else [])]:
        if [item.canary for item in other] != [item.canary for item in first]:
            raise ValueError(
                "canary_scores: the measurements are of different canaries, or in another order; "
                "give measurements of one set"
            )
    kept = [item.canary.planned == chosen for item in first]
    items = [item for item, keep in zip(first, kept, strict=True) if keep]
    scores = np.mean([_scores(one, kept) for one in measured], axis=0)
    if base is not None:
        scores = scores - _scores(base, kept)
    formats = [item.canary.format for item in items]
    if len(set(formats)) > 1:
        for fmt in set(formats):
            own = np.array([other == fmt for other in formats])
            finite = scores[own][np.isfinite(scores[own])]
            middle = float(np.median(finite)) if len(finite) else 0.0
            spread = float(np.median(np.abs(finite - middle))) if len(finite) else 0.0
            scores[own] = (scores[own] - middle) / (spread or 1.0)
    is_in = np.array([item.canary.inserted for item in items])
    return CanaryScores(scores[is_in], scores[~is_in], chosen)


def _scores(exposures: Exposures, kept: Sequence[bool]) -> Floats:
    items = [item for item, keep in zip(exposures, kept, strict=True) if keep]
    scores = -np.array([item.log_perplexity for item in items], dtype=np.float64)
    if np.isnan(scores).any():  # of a file without secrets, which does not tell them all
        scores = np.array([item.bits for item in items], dtype=np.float64)
    return scores


def _listed(numbers: list[int]) -> str:
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} or {last}" if rest else last
