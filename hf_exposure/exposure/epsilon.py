"""A lower bound on epsilon, from scores of canaries in and out of the training data.

NumPy and SciPy only; knows no model. Pure functions first, the one that arranges them last.

    one_run           guesses about the coins of one run      Steinke, Nasr, Jagielski 2023
    one_run_fdp       the same, if the curve is Gaussian      Mahloujifar, Melis, Chaudhuri 2024
    one_run_order     the same, if canaries are independent   order statistics, see independent.py
    one_run_order_fdp the same, if both hold
    clopper_pearson   error rates over many runs              Clopper and Pearson 1934

A canary that is inserted k times is one unit: what is measured is the epsilon of all k copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from hf_exposure.exposure.guesses import Ranked, Rule, many_runs_rules, one_run_rules
from hf_exposure.exposure.independent import log_gaussian_order_tail, log_order_tail
from hf_exposure.exposure.refuting import (
    gaussian_epsilon,
    gaussian_refutes,
    group_delta,
    largest_refuted,
    least_log_level,
    log_p_value,
    rate_bounds,
    rates_refute,
)
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.checks import check_choice, check_count, check_number
from hf_exposure.utils.typed import typed

METHODS = ("one_run", "one_run_fdp", "one_run_order", "one_run_order_fdp", "clopper_pearson")
_GAUSSIAN = ("one_run_fdp", "one_run_order_fdp")  # which test values of mu
_UNFAIR = 1e-6  # coins that fall so unevenly, or more, are taken to be no fair coins


@typed
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
        method: "one_run", "one_run_fdp" (for a Gaussian trade-off curve), "one_run_order" (only
            for independent canaries), "one_run_order_fdp" (for both) or "clopper_pearson".
        in_count, out_count: scores of canaries in and out of the training data.
        guesses, correct: how many canaries were guessed to be in or out, and how many rightly. With
            "clopper_pearson" those that are guessed to be in, and how many are.
        threshold: the lowest score guessed to be in.
        log_p_value: natural logarithm of `p_value`, which may be too small for a float.
        tests: rules of guessing that were tried, and corrected for (Bonferroni); 1 if the rule was
            given beforehand.
        repetitions: how many times each canary was inserted.
        tpr_low, fpr_high: with "clopper_pearson" the bounds on the true and false positive rate.
        most: the bound had all guesses been right: no attack can show more with so many canaries.
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
    most: float = math.inf

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
        if self.method in _GAUSSIAN:
            curve = " if its trade-off curve is Gaussian,"
        if "order" in self.method:
            curve += " if no canary's score depends on another's coin,"
        if self.tests > 1:
            tries = f", corrected for {self.tests} tests"
        most = ""
        if math.isfinite(self.most):
            most = f"at most {_down(self.most)} with so many canaries; "
        found = f"{self.correct:,} of {self.guesses:,} guesses correct"
        if self.tpr_low is not None and self.fpr_high is not None:
            found = f"TPR >= {self.tpr_low:.3g}, FPR <= {self.fpr_high:.3g}"
        return (
            f"epsilon >= {_down(self.epsilon)}{unit}{curve} at delta={self.delta:g} with "
            f"{100 * self.confidence:.10g}% confidence ({most}{self.method}: {found}, "
            f"{self.in_count:,} canaries in and {self.out_count:,} out{tries}, "
            f"p = {_show_p(self.log_p_value)})"
        )


def _down(bound: float) -> str:
    """A lower bound is rounded down."""
    return f"{math.floor(bound * 1000) / 1000:.3f}"


def _show_p(log_p: float) -> str:
    if log_p > math.log(1e-4):
        return f"{math.exp(log_p):.3g}"
    exponent = math.floor(log_p / math.log(10))
    return f"{10 ** (log_p / math.log(10) - exponent):.1f}e{exponent}"


@dataclass(frozen=True)
class _Audit:
    """The test of one method. What it refutes are values of epsilon, or of mu for a Gaussian."""

    method: str
    size: int
    in_count: int
    delta: float

    def refutes(self, rule: Rule, value: float, copies: int, log_level: float) -> bool:
        """Whether what was found refutes `value` for each of the copies that a canary has."""
        found = (self.size, rule.guesses, rule.correct)
        if self.method in _GAUSSIAN:
            # k examples of mu-GDP are together k mu-GDP (Dong, Roth, Su 2019, theorem 2.14).
            if self.method == "one_run_fdp":
                return gaussian_refutes(*found, copies * value, log_level)
            guesses = rule.positives, rule.negatives
            tail = log_gaussian_order_tail(self.size, *guesses, rule.correct, copies * value)
            return tail <= log_level
        unit = copies * value, group_delta(value, self.delta, copies)
        if self.method == "clopper_pearson":
            return rates_refute(*self.rates(rule, log_level), *unit)
        return (log_p_value if self.method == "one_run" else log_order_tail)(
            *found, *unit
        ) <= log_level

    def rates(self, rule: Rule, log_level: float) -> tuple[float, float]:
        """The bounds on the true and the false positive rate."""
        positives, negatives = self.in_count, self.size - self.in_count
        false_positives = rule.positives - rule.true_positives
        counts = (rule.true_positives, positives, false_positives, negatives)
        return rate_bounds(*counts, math.exp(log_level))

    def largest(
        self, rules: list[Rule], copies: int, log_level: float, precision: float = 1e-7
    ) -> tuple[float, Rule]:
        """The largest epsilon for one of the copies that any rule refutes, and that rule."""
        best, by = 0.0, max(rules, key=lambda rule: rule.deviations)
        for rule in rules:

            def refuted(value: float, rule: Rule = rule) -> bool:
                return self.refutes(rule, value, copies, log_level)

            value = largest_refuted(refuted, best, precision)
            if value > best:
                best, by = value, rule
        return (gaussian_epsilon(best, self.delta) if self.method in _GAUSSIAN else best), by

    def log_p_value(self, rule: Rule) -> float:
        """Natural logarithm of the p-value of epsilon = 0, not corrected for other rules."""
        if self.method == "one_run":
            return log_p_value(self.size, rule.guesses, rule.correct, 0.0, self.delta)
        # The curve with epsilon 0 at delta: 2 Phi(mu / 2) - 1 = delta.
        nothing = 2 * float(special.ndtri((1 + self.delta) / 2))
        value = nothing if self.method in _GAUSSIAN else 0.0
        return least_log_level(lambda level: self.refutes(rule, value, 1, level))


# The bound


@typed
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
    - "one_run_order", "one_run_order_fdp" (order statistics, after Xiang et al. 2025): the same
      scores, where in addition no canary's score depends on another's coin, for any mechanism and
      for a Gaussian curve. They are the tightest, and exact for a mechanism that treats each canary
      by itself, as noise on orthogonal gradients does. Scores of one model are not quite of that
      kind: a mechanism that shows all coins or none is beyond such a bound far too often.
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

    How tight: see docs/privacy.md. `most` in the result is what so many canaries can show at most,
    were all guesses right: the bounds for one run saturate.

    Args:
        in_scores, out_scores: (n,) and (m,) scores, higher for "more likely trained on", such as
            minus log-perplexities; infinite ones are allowed. Ties are broken at random. See
            `canary_scores`.
        delta: of the (epsilon, delta) that is bounded; above 0 where a curve is to be Gaussian.
        confidence: of the bound, between 0 and 1.
        method: one of the five.
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
    ranked = Ranked(_checked("in_scores", in_scores), _checked("out_scores", out_scores), seed)
    _check(ranked, delta, method, guesses, threshold, repetitions)
    audit = _Audit(method, ranked.size, ranked.in_count, delta)
    rules = _rules(ranked, method, guesses, threshold)
    log_level = math.log1p(-confidence) - math.log(len(rules))
    epsilon, rule = audit.largest(rules, 1, log_level)
    perfect = Ranked(np.ones(ranked.in_count), np.zeros(ranked.size - ranked.in_count), seed)
    best = _rules(perfect, method, guesses, None if threshold is None else 0.5)
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
        most=max(epsilon, audit.largest(best, 1, log_level, 1e-3)[0]),
    )


def _rules(
    ranked: Ranked, method: str, guesses: int | tuple[int, int] | None, threshold: float | None
) -> list[Rule]:
    """That which was given, or those that are tried by default."""
    if threshold is not None:
        return [ranked.at(threshold)]
    if guesses is not None:
        both = guesses if isinstance(guesses, tuple) else (guesses - guesses // 2, guesses // 2)
        return [ranked.rule(*both)]
    return many_runs_rules(ranked) if method == "clopper_pearson" else one_run_rules(ranked)


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
    ranked: Ranked,
    delta: float,
    method: str,
    guesses: int | tuple[int, int] | None,
    threshold: float | None,
    repetitions: int,
) -> None:
    where, size, ins = "estimate_epsilon", ranked.size, ranked.in_count
    check_choice(f"{where}: method", method, METHODS)
    if check_number(f"{where}: delta", delta, 0) >= 1:
        raise ValueError(f"{where}: delta={delta} is out of range; use 0 or more, and less than 1")
    if method in _GAUSSIAN and delta == 0:
        raise ValueError(
            f"{where}: delta=0 with method={method!r}, but a Gaussian has no finite epsilon at "
            f"delta 0; give a small delta such as 1e-6, or use {method.removesuffix('_fdp')!r}"
        )
    check_count(f"{where}: repetitions", repetitions, least=1)
    if guesses is not None:
        if threshold is not None or method == "clopper_pearson":
            other = "threshold" if threshold is not None else "method='clopper_pearson'"
            raise ValueError(f"{where}: guesses and {other} do not go together; leave guesses out")
        pair: Any = guesses if isinstance(guesses, tuple) else (guesses, 0)
        whole = len(pair) == 2 and all(
            isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 0 for n in pair
        )
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
