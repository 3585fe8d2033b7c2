"""A lower bound on epsilon, from scores of canaries in and out of the training data.

NumPy and SciPy only; knows no model. Pure functions first, the one that arranges them last.

    one_run           guesses about the coins of one run      Steinke, Nasr, Jagielski 2023
    one_run_fdp       the same, if the curve is Gaussian      Mahloujifar, Melis, Chaudhuri 2024
    clopper_pearson   error rates over many runs              Clopper and Pearson 1934

A canary that is inserted k times is one unit: what is measured is the epsilon of all k copies.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from hf_exposure.exposure.results import Exposures
from hf_exposure.utils.arrays import Floats

METHODS = ("one_run", "one_run_fdp", "clopper_pearson")
_LEAST_GUESSES = 8  # with fewer, all of them right prove little: 1 / 2^8
_UNFAIR = 1e-6  # coins that fall so unevenly, or more, are taken to be no fair coins
_LARGEST = 1e6  # no bound is searched for above it
_MOST_LOG = 1e5  # no p-value is searched for below e to minus this


@dataclass(frozen=True)
class EpsilonBound:
    """A lower bound on epsilon, and what it comes from.

    Attributes:
        epsilon: whatever trained the model is not (epsilon', delta)-differentially private for any
            epsilon' < `epsilon`, at that confidence. One canary with all its copies is the unit:
            with `repetitions` k it is the epsilon of a group of k examples.
        per_example: the same for a single example, by group privacy; `epsilon` if k = 1.
        confidence: the probability that a bound of this kind is not above the truth.
        delta: that both are for.
        method: "one_run", "one_run_fdp" (only for a Gaussian trade-off curve) or "clopper_pearson".
        in_count, out_count: scores of canaries in and out of the training data.
        guesses, correct: how many canaries were guessed to be in or out, and how many rightly. With
            "clopper_pearson" those that are guessed to be in, and how many are.
        threshold: the lowest score guessed to be in.
        log_p_value: natural logarithm of `p_value`, which may be too small for a float.
        tests: rules of guessing that were tried, and corrected for (Bonferroni); 1 if the rule was
            given beforehand.
        repetitions: how many times each canary was inserted.
        tpr_low, fpr_high: with "clopper_pearson" the bounds on the true and false positive rate.
    """

    epsilon: float
    per_example: float
    confidence: float
    delta: float
    method: str
    in_count: int
    out_count: int
    guesses: int
    correct: int
    threshold: float
    log_p_value: float
    tests: int = 1
    repetitions: int = 1
    tpr_low: float | None = None
    fpr_high: float | None = None

    @property
    def p_value(self) -> float:
        """Probability of such guesses, or better ones, if epsilon were 0; corrected for `tests`.

        It is 0 where a float cannot hold it.
        """
        return math.exp(self.log_p_value)

    def __str__(self) -> str:
        unit = curve = tries = ""
        if self.repetitions > 1:
            unit = f" for {self.repetitions} copies together, >= {_down(self.per_example)} for one,"
        if self.method == "one_run_fdp":
            curve = " if its trade-off curve is Gaussian,"
        if self.tests > 1:
            tries = f", corrected for {self.tests} tests"
        found = f"{self.correct:,} of {self.guesses:,} guesses correct"
        if self.tpr_low is not None and self.fpr_high is not None:
            found = f"TPR >= {self.tpr_low:.3g}, FPR <= {self.fpr_high:.3g}"
        return (
            f"epsilon >= {_down(self.epsilon)}{unit}{curve} at delta={self.delta:g} with "
            f"{100 * self.confidence:.10g}% confidence ({self.method}: {found}, "
            f"{self.in_count:,} canaries in and {self.out_count:,} out{tries}, "
            f"p = {_show_p(self.log_p_value)})"
        )


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


def _down(bound: float) -> str:
    """A lower bound is rounded down."""
    return f"{math.floor(bound * 1000) / 1000:.3f}"


def _show_p(log_p: float) -> str:
    if log_p > math.log(1e-4):
        return f"{math.exp(log_p):.3g}"
    exponent = math.floor(log_p / math.log(10))
    return f"{10 ** (log_p / math.log(10) - exponent):.1f}e{exponent}"


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
    top = float(np.max(log_mass[correct:]))
    log_p = top + math.log(float(np.sum(np.exp(log_mass[correct:] - top))))
    if delta > 0 and correct > 0:
        # f(v - i) - f(v) is the mass of the i values below v; beyond i = v it stays the same.
        below = log_mass[:correct][::-1]
        top = float(np.max(below))
        steepest = np.max(np.cumsum(np.exp(below - top)) / np.arange(1, correct + 1))
        slope = math.log(2 * canaries * delta) + top + math.log(float(steepest))
        log_p = _log_add(log_p, slope)
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
            r = _log_add(r, more + math.log(i / (guesses - i)))
        if _log_add(r, h) > log_all:
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

    return _largest(above, precision=1e-12) if mu > 0 else 0.0


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _log_add(a: float, b: float) -> float:
    """log(e^a + e^b), of which at least one is finite."""
    return max(a, b) + math.log1p(math.exp(-abs(a - b)))


def _largest(
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


def _group_delta(epsilon: float, delta: float, repetitions: int) -> float:
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


def clopper_pearson(
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


# Rules: who is guessed to be in, and who out


@dataclass(frozen=True)
class _Rule:
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


class _Ranked:
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

    def rule(self, first: int, last: int) -> _Rule:
        """The first ones are guessed to be in, the last ones to be out; the others not at all."""
        right = last - (self.in_count - int(self._in_before[self.size - last]))
        threshold = float(self.scores[first - 1]) if first else math.inf
        return _Rule(first, int(self._in_before[first]), last, right, threshold)

    def at(self, threshold: float) -> _Rule:
        """Whoever scores `threshold` or more is guessed to be in, everybody else to be out."""
        first = int(np.sum(self.scores >= threshold))
        return replace(self.rule(first, self.size - first), threshold=threshold)


def _one_run_rules(ranked: _Ranked) -> list[_Rule]:
    """The ends of the ranking, ever shorter: both of them, and the first alone."""
    rules: list[_Rule] = []
    guesses = ranked.size
    while guesses >= _LEAST_GUESSES or not rules:
        rules.append(ranked.rule(guesses - guesses // 2, guesses // 2))
        if _LEAST_GUESSES <= guesses <= ranked.size // 4:
            rules.append(ranked.rule(guesses, 0))
        guesses //= 2
    return rules


def _many_runs_rules(ranked: _Ranked) -> list[_Rule]:
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


@dataclass(frozen=True)
class _Audit:
    """The test of one method. What it refutes are values of epsilon, or of mu for a Gaussian."""

    method: str
    size: int
    in_count: int
    delta: float

    def refutes(self, rule: _Rule, value: float, copies: int, log_level: float) -> bool:
        """Whether what was found refutes `value` for each of the copies that a canary has."""
        found = (self.size, rule.guesses, rule.correct)
        if self.method == "one_run_fdp":
            # k examples of mu-GDP are together k mu-GDP (Dong, Roth, Su 2019, theorem 2.14).
            return gaussian_refutes(*found, copies * value, log_level)
        unit = copies * value, _group_delta(value, self.delta, copies)
        if self.method == "one_run":
            return log_p_value(*found, *unit) <= log_level
        return rates_refute(*self.rates(rule, log_level), *unit)

    def rates(self, rule: _Rule, log_level: float) -> tuple[float, float]:
        """The bounds on the true and the false positive rate."""
        positives, negatives = self.in_count, self.size - self.in_count
        false_positives = rule.positives - rule.true_positives
        counts = (rule.true_positives, positives, false_positives, negatives)
        return clopper_pearson(*counts, math.exp(log_level))

    def largest(self, rules: list[_Rule], copies: int, log_level: float) -> tuple[float, _Rule]:
        """The largest epsilon for one of the copies that any rule refutes, and that rule."""
        best, by = 0.0, max(rules, key=lambda rule: rule.deviations)
        for rule in rules:

            def refuted(value: float, rule: _Rule = rule) -> bool:
                return self.refutes(rule, value, copies, log_level)

            value = _largest(refuted, best)
            if value > best:
                best, by = value, rule
        return (gaussian_epsilon(best, self.delta) if self.method == "one_run_fdp" else best), by

    def log_p_value(self, rule: _Rule) -> float:
        """Natural logarithm of the p-value of epsilon = 0, not corrected for other rules."""
        if self.method == "one_run":
            return log_p_value(self.size, rule.guesses, rule.correct, 0.0, self.delta)
        # The curve with epsilon 0 at delta: 2 Phi(mu / 2) - 1 = delta.
        nothing = 2 * float(special.ndtri((1 + self.delta) / 2))
        value = nothing if self.method == "one_run_fdp" else 0.0
        return _smallest_log(lambda level: self.refutes(rule, value, 1, level))


# The bound


def estimate_epsilon(
    in_scores: ArrayLike,
    out_scores: ArrayLike,
    delta: float = 1e-6,
    confidence: float = 0.95,
    method: str = "one_run",
    *,
    guesses: int | tuple[int, int] | None = None,
    threshold: float | None = None,
    repetitions: int = 1,
    seed: int = 0,
) -> EpsilonBound:
    """A lower bound on epsilon, from scores of canaries in and out of the training data.

    Of (epsilon, delta)-differential privacy where neighbours differ by one canary more or less. It
    holds with probability `confidence`, over the coins and the training, if the scores are what the
    method asks for:

    - "one_run" (Steinke, Nasr, Jagielski 2023): all scores are of one trained model, and each
      canary was put in or left out by its own fair coin, `Canaries.generate(...,
      inclusion="coin")`. A fixed half, or controls for which no coin was flipped, will not do. It
      holds for every mechanism.
    - "one_run_fdp" (Mahloujifar, Melis, Chaudhuri 2024): the same scores. It finds the largest mu
      for which the scores refute mu-GDP, the trade-off curve of N(0, 1) against N(mu, 1), and gives
      the epsilon of that curve at `delta`. It is closer to the truth than "one_run", *if* the
      mechanism has such a curve, as the Gaussian mechanism has and DP-SGD of many steps nearly so.
      Of another mechanism (randomized response, say) it may exceed the epsilon.
    - "clopper_pearson": each score is of a run of its own, trained independently of all others
      (many canaries of one run are not independent). It bounds the true and the false positive
      rate, and gives the larger of ln((TPR - delta) / FPR) and ln((TNR - delta) / FNR).

    One canary is one unit of privacy. If each was inserted k times, what is bounded is the epsilon
    of k examples together; say `repetitions=k`, and `per_example` has what follows for one. Nothing
    else may depend on the coins: packing texts into blocks moves every later block when a canary is
    left out, which voids the comparison. Nor may a score use who else is in.

    Trying several rules of guessing and keeping the best would give epsilon > 0 by chance far too
    often, so there are three sound ways:

    - by default a fixed list of rules is tried, each at (1 - confidence) divided by their number
      (Bonferroni; `tests` in the result). In one run: the m / 2^i most extreme scores at both ends
      for i = 0, 1, 2, ... (high ones in, low ones out), and the m / 2^i highest alone for i >= 2,
      never fewer than 8. That is about 2 log2(m / 16) rules, and costs far less than holding half
      of the canaries back. In many runs: the thresholds at the 2^i-th highest score out and the
      2^i-th lowest score in.
    - `guesses` or `threshold`, if they were chosen before the scores were seen;
    - the same, chosen on canaries that are not among these.

    How tight: of a Gaussian mechanism of epsilon 11.0 at delta 1e-6 (normal scores, some shifted by
    2), 1,000 canaries give about 3.1 with "one_run" and 4.9 with "one_run_fdp", and 20,000 give 4.3
    and 6.0.

    Args:
        in_scores, out_scores: (n,) and (m,) scores, higher for "more likely trained on", such as
            minus log-perplexities; infinite ones are allowed. Ties are broken at random. See
            `canary_scores`.
        delta: of the (epsilon, delta) that is bounded; above 0 for "one_run_fdp".
        confidence: of the bound, between 0 and 1.
        method: one of the three.
        guesses: in one run, how many canaries to guess, half of them in and half of them out (the
            odd one in); or a pair, how many in and how many out.
        threshold: guess those in that score this or more, and all others out.
        repetitions: how many times each canary was inserted.
        seed: breaks ties; without ties nothing is random.

    Raises:
        ValueError: scores are missing or NaN, an argument is out of range, or the coins of one run
            cannot have been fair (so few in or out have a probability below 1e-6).

    Example:
        >>> noise = np.random.default_rng(0).normal(size=2000)
        >>> bound = estimate_epsilon(noise[:1000] + 2, noise[1000:], delta=1e-6)
        >>> 2 < bound.epsilon < 11
        True
    """
    ranked = _Ranked(_checked("in_scores", in_scores), _checked("out_scores", out_scores), seed)
    _check(ranked, delta, confidence, method, guesses, threshold, repetitions)
    if threshold is not None:
        rules = [ranked.at(threshold)]
    elif guesses is not None:
        both = guesses if isinstance(guesses, tuple) else (guesses - guesses // 2, guesses // 2)
        rules = [ranked.rule(*both)]
    elif method == "clopper_pearson":
        rules = _many_runs_rules(ranked)
    else:
        rules = _one_run_rules(ranked)
    audit = _Audit(method, ranked.size, ranked.in_count, delta)
    log_level = math.log1p(-confidence) - math.log(len(rules))
    epsilon, rule = audit.largest(rules, 1, log_level)
    tpr_low = fpr_high = None
    guessed, correct = rule.guesses, rule.correct
    if method == "clopper_pearson":
        tpr_low, fpr_high = audit.rates(rule, log_level)
        guessed, correct = rule.positives, rule.true_positives
    return EpsilonBound(
        epsilon=epsilon,
        per_example=audit.largest(rules, repetitions, log_level)[0] if repetitions > 1 else epsilon,
        confidence=confidence,
        delta=delta,
        method=method,
        in_count=ranked.in_count,
        out_count=ranked.size - ranked.in_count,
        guesses=guessed,
        correct=correct,
        threshold=rule.threshold,
        log_p_value=min(audit.log_p_value(rule) + math.log(len(rules)), 0.0),
        tests=len(rules),
        repetitions=repetitions,
        tpr_low=tpr_low,
        fpr_high=fpr_high,
    )


def canary_scores(exposures: Exposures, repetitions: int | None = None) -> CanaryScores:
    """The scores to audit with, from a measurement of canaries drawn with `inclusion="coin"`.

    A score is minus the log-perplexity in bits. Those of different formats cannot be compared: with
    several formats each is taken from the median of its own format's coin canaries, in and out, and
    divided by their median distance from it, neither of which looks at the coins. Exposures are not
    used: an exposure leaves out the other canaries that were inserted, so it knows their coins.
    Canaries for which no coin was flipped, such as controls, are left out.

    Args:
        exposures: the measurement of one model.
        repetitions: only canaries that were to be inserted so many times; may be left out if all
            have the same number.

    Raises:
        ValueError: there are no coin canaries of that number of repetitions, or of several numbers.

    Example:
        >>> from hf_exposure import Canaries, SecretFormat
        >>> fmt = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
        >>> canaries = Canaries.generate(fmt, [4], per_repetition=1000, inclusion="coin")
        >>> # exposures = measure_exposure(model, tokenizer, canaries)
        >>> # scores = canary_scores(exposures)
        >>> # estimate_epsilon(scores.in_scores, scores.out_scores, repetitions=scores.repetitions)
    """
    coins = [item for item in exposures if item.canary.planned]
    planned = sorted({item.canary.planned for item in coins if item.canary.planned})
    if not coins:
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
    coins = [item for item in coins if item.canary.planned == chosen]
    scores = -np.array([item.log_perplexity for item in coins], dtype=np.float64)
    formats = [item.canary.format for item in coins]
    if len(set(formats)) > 1:
        for fmt in set(formats):
            own = np.array([other == fmt for other in formats])
            finite = scores[own][np.isfinite(scores[own])]
            middle = float(np.median(finite)) if len(finite) else 0.0
            spread = float(np.median(np.abs(finite - middle))) if len(finite) else 0.0
            scores[own] = (scores[own] - middle) / (spread or 1.0)
    is_in = np.array([item.canary.inserted for item in coins])
    return CanaryScores(scores[is_in], scores[~is_in], chosen)


def _listed(numbers: list[int]) -> str:
    *rest, last = map(str, numbers)
    return f"{', '.join(rest)} or {last}" if rest else last


def _smallest_log(refutes: Callable[[float], bool]) -> float:
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


def _checked(name: str, scores: ArrayLike) -> Floats:
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"estimate_epsilon: {name} must be a list of numbers") from None
    if values.ndim != 1:
        raise ValueError(f"estimate_epsilon: {name} must be one list, not of shape {values.shape}")
    if not len(values):
        raise ValueError(f"estimate_epsilon: {name} is empty; give at least one score")
    if np.isnan(values).any():
        raise ValueError(
            f"estimate_epsilon: {name} has {int(np.isnan(values).sum())} scores that are NaN; "
            "leave those canaries out, in and out alike"
        )
    return values


def _check(
    ranked: _Ranked,
    delta: float,
    confidence: float,
    method: str,
    guesses: int | tuple[int, int] | None,
    threshold: float | None,
    repetitions: int,
) -> None:
    where, size, ins = "estimate_epsilon", ranked.size, ranked.in_count
    if method not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ValueError(f"{where}: method={method!r} is not known; use one of {known}")
    if not 0 <= delta < 1:
        raise ValueError(f"{where}: delta={delta} is out of range; use 0 or more, and less than 1")
    if method == "one_run_fdp" and delta == 0:
        raise ValueError(
            f"{where}: delta=0 with method='one_run_fdp', but a Gaussian has no finite epsilon at "
            "delta 0; give a small delta such as 1e-6, or use 'one_run'"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"{where}: confidence={confidence} is out of range; use 0.95, say")
    if isinstance(repetitions, bool) or not isinstance(repetitions, int) or repetitions < 1:
        raise ValueError(f"{where}: repetitions={repetitions!r} must be a whole number from 1 on")
    if threshold is not None and math.isnan(threshold):
        raise ValueError(f"{where}: threshold is NaN; give a score")
    if guesses is not None:
        if threshold is not None or method == "clopper_pearson":
            other = "threshold" if threshold is not None else "method='clopper_pearson'"
            raise ValueError(f"{where}: guesses and {other} do not go together; leave guesses out")
        pair: Any = guesses if isinstance(guesses, tuple) else (guesses, 0)
        whole = len(pair) == 2 and all(isinstance(n, (int, np.integer)) and n >= 0 for n in pair)
        if not whole or not 0 < sum(pair) <= size:
            raise ValueError(
                f"{where}: guesses={guesses!r} must be a whole number, or a pair of them, of 1 to "
                f"{size} together, the number of canaries"
            )
    if method != "clopper_pearson" and stats.binomtest(ins, size).pvalue < _UNFAIR:
        raise ValueError(
            f"{where}: {ins} canaries in and {size - ins} out cannot come from fair coins, without "
            f"which method={method!r} means nothing; draw them with inclusion='coin', and give the "
            "scores of all for which a coin was flipped"
        )
