"""Rules of guessing which canaries were trained on, from the order of their scores."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np

from hf_exposure.utils.arrays import Floats

_LEAST_GUESSES = 8  # with fewer, all of them right prove little: 1 / 2^8


@dataclass(frozen=True)
class Rule:
    """One way of guessing, and how it fared.

    `positives` are guessed to be in, of which `true_positives` are; `negatives` are guessed to be
    out, of which `true_negatives` are.
    """

    positives: int
    true_positives: int
    negatives: int
    true_negatives: int
    threshold: float

    @property
    def guesses(self) -> int:
        return self.positives + self.negatives

    @property
    def correct(self) -> int:
        return self.true_positives + self.true_negatives

    @property
    def deviations(self) -> float:
        """How far above half of the guesses: which rule to show if none refutes anything."""
        return (2 * self.correct - self.guesses) / math.sqrt(self.guesses)


class Ranked:
    """All scores, highest first, ties in random order; knows how many of the first ones are in."""

    def __init__(self, in_scores: Floats, out_scores: Floats, seed: int) -> None:
        # Sorted, so that no order of the input matters. The generator depends on the scores too:
        # places among ties tell who is in, so that one fixed order of places, the same in every
        # audit, would be a bet on how many are in.
        parts = np.sort(in_scores) + 0.0, np.sort(out_scores) + 0.0  # no negative zeros
        scores = np.concatenate(parts)
        digest = hashlib.sha256(b"in".join(part.tobytes() for part in parts)).digest()
        ties = np.random.default_rng([seed, *digest]).random(len(scores))
        order = np.lexsort((ties, -scores))
        self.scores = scores[order]
        self.is_in = order < len(in_scores)
        self.size, self.in_count = len(scores), len(in_scores)
        self._in_before = np.concatenate([[0], np.cumsum(self.is_in)])

    def rule(self, first: int, last: int) -> Rule:
        """The first ones are guessed to be in, the last ones to be out; the others not at all."""
        right = last - (self.in_count - int(self._in_before[self.size - last]))
        threshold = float(self.scores[first - 1]) if first else math.inf
        return Rule(first, int(self._in_before[first]), last, right, threshold)

    def at(self, threshold: float) -> Rule:
        """Whoever scores `threshold` or more is guessed to be in, everybody else to be out."""
        first = int(np.sum(self.scores >= threshold))
        return replace(self.rule(first, self.size - first), threshold=threshold)


def one_run_rules(ranked: Ranked) -> list[Rule]:
    """The ends of the ranking, ever shorter: both of them, and the first alone."""
    rules: list[Rule] = []
    guesses = ranked.size
    while guesses >= _LEAST_GUESSES or not rules:
        rules.append(ranked.rule(guesses - guesses // 2, guesses // 2))
        if _LEAST_GUESSES <= guesses <= ranked.size // 4:
            rules.append(ranked.rule(guesses, 0))
        guesses //= 2
    return rules


def many_runs_rules(ranked: Ranked) -> list[Rule]:
    """Thresholds at the 1st, 2nd, 4th, ... highest of the scores out, and lowest of those in.

    The other set of scores does not know of such a threshold. And of a set of n, the part of its
    distribution that lies beyond its own j-th score has the distribution Beta(j, n - j + 1), or is
    smaller: the quantile of that is what Clopper and Pearson give for j - 1 of n. So both bounds
    hold as for a threshold that was given beforehand.
    """

    def powers(count: int) -> list[int]:
        return [2**i for i in range(max(1, int(math.log2(count))))]

    ins, outs = np.flatnonzero(ranked.is_in), np.flatnonzero(~ranked.is_in)
    firsts = [int(outs[j - 1]) for j in powers(len(outs))]
    firsts += [int(ins[-j]) + 1 for j in powers(len(ins))]
    return [ranked.rule(first, ranked.size - first) for first in firsts]
