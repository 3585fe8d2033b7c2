"""Tests that refute a value of epsilon if each canary's score depends on its own coin alone.

By order statistics: of m independent canaries the r that an attacker is surest of are the r with
the largest log-likelihood ratios, and no attacker who guesses r coins does better than the one who
sees the two outputs that are hardest to keep apart (arXiv 2509.08704 has the idea; the proofs are
below). Canaries of one model share its parameters, so that this holds of a mechanism that treats
each by itself, and only about of a training.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from hf_exposure.utils.arrays import Floats

_POINTS = 200  # of an integral
_NEGLIGIBLE = 1e-13  # probability that an integral leaves out, and that is added to it


def log_order_tail(
    canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """Natural logarithm of the most likely that so many guesses are correct under (epsilon, delta).

    What is hardest to keep apart shows a coin with probability delta, and else gives the right
    answer with probability e^epsilon / (1 + e^epsilon) (Kairouz, Oh, Viswanath 2015). All coins
    that it shows, Binomial(m, delta) of them, are guessed first.
    """
    most = int(special.bdtrik(1 - _NEGLIGIBLE, canaries, delta)) + 1 if delta > 0 else 0
    shown = np.arange(min(most, guesses, correct) + 1)
    right = _tail(correct - shown, guesses - shown, float(special.expit(epsilon)))
    mass = special.bdtr(shown, canaries, delta)
    mass[1:] -= mass[:-1].copy()
    more = special.bdtrc(shown[-1], canaries, delta) if delta > 0 else 0.0
    return _log(float(mass @ right) + more)


def log_gaussian_order_tail(
    canaries: int, positives: int, negatives: int, correct: int, mu: float
) -> float:
    """Natural logarithm of the most likely that so many guesses are correct under mu-GDP.

    With y = x - mu / 2, where x is N(mu, 1) for a coin that fell "in" and else N(0, 1), the surest
    guesses are those with the largest |y|, or the largest y if all guesses are "in" (or all "out").
    Let V be the probability of a larger one than the r + 1st, which is Beta(r + 1, m - r). Given V,
    the r guesses are independent, and each is right with probability

        Phi(mu / 2 - c) / (Phi(mu / 2 - c) + Phi(-mu / 2 - c)),  c where V is that of y beyond c.

    It falls with V; the sum over pieces of the integral takes the larger end of each.
    """
    guesses = positives + negatives
    sides = 1 if positives and negatives else 0.5
    if guesses == canaries:
        if sides == 1:
            return _log(float(_tail(correct, guesses, float(special.ndtr(mu / 2)))))
        return _log(float(_tail(correct, guesses, 0.5)))
    ends = special.betaincinv(guesses + 1, canaries - guesses, [1 - _NEGLIGIBLE, _NEGLIGIBLE])
    low, high = _beyond(ends / sides, mu)
    at = np.linspace(low, high, _POINTS + 1)
    inside, outside = special.ndtr(mu / 2 - at), special.ndtr(-mu / 2 - at)
    below = special.betainc(
        guesses + 1, canaries - guesses, np.minimum(sides * (inside + outside), 1.0)
    )
    right = _tail(correct, guesses, inside / (inside + outside))[1:]  # the ends with smaller V
    return _log(float((below[:-1] - below[1:]) @ right) + 2 * _NEGLIGIBLE)


def _beyond(shares: ArrayLike, mu: float) -> Floats:
    """Where Phi(mu / 2 - c) + Phi(-mu / 2 - c) comes down to each of `shares`."""
    shares = np.asarray(shares, dtype=np.float64)
    low, high = np.full(len(shares), -mu / 2 - 9.0), np.full(len(shares), mu / 2 + 40.0)
    for _ in range(50):
        middle = (low + high) / 2
        above = special.ndtr(mu / 2 - middle) + special.ndtr(-mu / 2 - middle) > shares
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.asarray((low + high) / 2)


def _tail(correct: ArrayLike, guesses: ArrayLike, right: ArrayLike) -> Floats:
    """The probability of at least so many successes."""
    v, r, p = (np.asarray(one, dtype=np.float64) for one in (correct, guesses, right))
    found = special.betainc(np.maximum(v, 1.0), np.maximum(r - v + 1, 1.0), p)
    return np.where(v <= 0, 1.0, np.where(v > r, 0.0, found))


def _log(value: float) -> float:
    return math.log(min(value, 1.0)) if value > 0 else -math.inf
