"""Tests that refute a value of epsilon: pure functions, which know no model and no scores.

log_p_value, one run          guesses about the coins        Steinke, Nasr, Jagielski 2023
gaussian_refutes, one run     if the curve is Gaussian       Mahloujifar, Melis, Chaudhuri 2024
rates_refute, many runs       bounds on the error rates      Clopper and Pearson 1934
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy import special

from hf_exposure.utils.arrays import Floats

_LARGEST = 1e6  # no bound is searched for above it
_MOST_LOG = 1e5  # no p-value is searched for below e to minus this

# One run: guesses about coins


def log_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Natural logarithm of the most likely that so many guesses are correct under (epsilon, delta).

    Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), theorem 5.2, for m canaries, at most r guesses
    and v correct ones. With f(v) = Pr(B >= v), where B is binomial of r trials, each a success with
    e^epsilon / (1 + e^epsilon),

        p = f(v) + 2 m delta max over i >= 1 of (f(v - i) - f(v)) / i

    It is computed in logarithms: no p-value underflows.
    """
    right = np.arange(guesses + 1)
    log_mass = (
        _log_choose(guesses)
        + right * special.log_expit(epsilon)
        + (guesses - right) * special.log_expit(-epsilon)
    )
    log_p = float(special.logsumexp(log_mass[correct:]))
    if delta > 0 and correct > 0:
        # f(v - i) - f(v) is the mass of the i values below v; beyond i = v it stays the same.
        below = log_mass[:correct][::-1]
        top = float(np.max(below))
        steepest = np.max(np.cumsum(np.exp(below - top)) / np.arange(1, correct + 1))
        slope = math.log(2 * canaries * delta) + top + math.log(float(steepest))
        log_p = float(np.logaddexp(log_p, slope))
    return min(log_p, 0.0)


@lru_cache(maxsize=64)
def _log_choose(n: int) -> Floats:
    """(n + 1,) logarithms of n over 0, 1, ..., n."""
    log_factorials = special.gammaln(np.arange(n + 1) + 1.0)
    return np.asarray(log_factorials[n] - log_factorials - log_factorials[::-1])


def gaussian_refutes(
    canaries: int, guesses: int, correct: int, mu: float, log_alpha: float
) -> bool:
    """Whether so many correct guesses, or more, have probability below alpha under mu-GDP.

    Mahloujifar, Melis, Chaudhuri 2024 (arXiv 2410.22235), their bound for c guesses at most and the
    algorithm that follows from it, with the trade-off curve of N(0, 1) against N(mu, 1). With p_j
    the probability of j correct guesses of c among m canaries, flipping one coin shows for every i

        r_i = sum over j >= i of (j / m) p_j  <=  Phi(Phi^-1(h_{i-1}) + mu),
        h_i = sum over j >= i of ((c - j) / m) p_j

    Let Pr(v correct or more) be alpha; the least r_0 + h_0 that these allow comes from all of alpha
    on v and then, downwards, no more on each number than must be. If it exceeds c / m, which is
    what it is, the probability of v or more cannot be alpha, nor any more than that.
    """
    log_all = math.log(guesses / canaries) + 1e-12  # so that rounding refutes nothing
    r = log_alpha + _log(correct / canaries)
    h = log_alpha + _log((guesses - correct) / canaries)
    for i in range(correct - 1, -1, -1):
        wanted = float(special.log_ndtr(special.ndtri_exp(r) - mu))
        if not wanted > h:
            return False  # and so at every i below
        more = wanted + _log(-math.expm1(h - wanted))
        h = wanted
        if i:
            r = float(np.logaddexp(r, more + math.log(i / (guesses - i))))
        if np.logaddexp(r, h) > log_all:
            return True
    return False


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon of mu-GDP at a delta > 0: where the curve

        delta(epsilon) = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu)

    (Dong, Roth, Su 2019, arXiv 1905.02383, corollary 2.13) comes down to it; 0 if it is below.
    """

    def above(epsilon: float) -> bool:
        first = float(special.log_ndtr(mu / 2 - epsilon / mu))
        second = epsilon + float(special.log_ndtr(-mu / 2 - epsilon / mu))
        return second < first and first + _log(-math.expm1(second - first)) > math.log(delta)

    return largest_refuted(above, precision=1e-12) if mu > 0 else 0.0


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def largest_refuted(
    refuted: Callable[[float], bool], start: float = 0.0, precision: float = 1e-7
) -> float:
    """The largest value that is refuted, from below; `start` if not even that is."""
    if not refuted(start):
        return start
    low, high = start, max(1.0, 2 * start)
    while refuted(high):
        low, high = high, 2 * high
        if high > _LARGEST:
            return low
    while high - low > precision * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def group_delta(epsilon: float, delta: float, repetitions: int) -> float:
    """The delta of k examples at k epsilon, if it is `delta` for one at epsilon.

    One example after the other: delta (1 + e^epsilon + ... + e^((k - 1) epsilon)), at most 1.
    """
    if delta == 0 or repetitions == 1:
        return delta
    if epsilon == 0:
        return min(delta * repetitions, 1.0)
    log_ratio = repetitions * epsilon + _log(-math.expm1(-repetitions * epsilon))
    log_ratio -= epsilon + _log(-math.expm1(-epsilon))
    return math.exp(min(math.log(delta) + log_ratio, 0.0))


# Many runs: error rates


def rate_bounds(
    true_positives: int, positives: int, false_positives: int, negatives: int, alpha: float
) -> tuple[float, float]:
    """A lower bound on the true positive rate, and an upper one on the false positive rate.

    Each fails with a probability of at most alpha / 2.
    """
    low, high = 0.0, 1.0
    if true_positives:
        low = _beta_quantile(true_positives, positives - true_positives + 1, alpha / 2)
    if false_positives < negatives:
        high = 1 - _beta_quantile(negatives - false_positives, false_positives + 1, alpha / 2)
    return low, high


def _beta_quantile(a: int, b: int, share: float) -> float:
    # As stats.beta.ppf, which takes a hundred times as long.
    return float(special.betaincinv(a, b, share))


def rates_refute(tpr_low: float, fpr_high: float, epsilon: float, delta: float) -> bool:
    """Whether (epsilon, delta)-differential privacy rules such error rates out.

    It asks for TPR <= e^epsilon FPR + delta and, guessing the other way round,
    1 - FPR <= e^epsilon (1 - TPR) + delta (Kairouz, Oh, Viswanath 2015, theorem 2.1).
    """
    one = _log(tpr_low - delta) > epsilon + _log(fpr_high)
    return one or _log(1 - fpr_high - delta) > epsilon + _log(1 - tpr_low)


# Searching


def least_log_level(refutes: Callable[[float], bool]) -> float:
    """The logarithm of the smallest level at which something is refuted; 0 if at none."""
    if not refutes(math.log(0.999999)):
        return 0.0
    low, high = -1.0, 0.0
    while refutes(low) and low > -_MOST_LOG:
        low, high = 2 * low, low
    while high - low > 1e-5 * max(1.0, -low):
        middle = (low + high) / 2
        low, high = (low, middle) if refutes(middle) else (middle, high)
    return high
