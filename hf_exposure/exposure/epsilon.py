"""A lower bound on epsilon, from scores of canaries in and out of the training data.

NumPy and SciPy only; knows no model. Pure functions first, the one that arranges them last.

    one_run           guesses about the coins of one run      Steinke, Nasr, Jagielski 2023
    one_run_fdp       the same, if the curve is Gaussian      Mahloujifar, Melis, Chaudhuri 2024
    clopper_pearson   error rates over many runs              Clopper and Pearson 1934

A canary that is inserted k times is one unit: what is measured is the epsilon of all k copies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from hf_exposure.exposure.guesses import Ranked, Rule, many_runs_rules, one_run_rules
from hf_exposure.exposure.refuting import (
    clopper_pearson,
    gaussian_epsilon,
    gaussian_refutes,
    group_delta,
    largest_refuted,
    least_log_level,
    log_p_value,
    rates_refute,
)
from hf_exposure.exposure.results import Exposures
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.checks import check_choice, check_count, check_number, check_share
from hf_exposure.utils.typed import typed

METHODS = ("one_run", "one_run_fdp", "clopper_pearson")
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
        if self.method == "one_run_fdp":
            # k examples of mu-GDP are together k mu-GDP (Dong, Roth, Su 2019, theorem 2.14).
            return gaussian_refutes(*found, copies * value, log_level)
        unit = copies * value, group_delta(value, self.delta, copies)
        if self.method == "one_run":
            return log_p_value(*found, *unit) <= log_level
        return rates_refute(*self.rates(rule, log_level), *unit)

    def rates(self, rule: Rule, log_level: float) -> tuple[float, float]:
        """The bounds on the true and the false positive rate."""
        positives, negatives = self.in_count, self.size - self.in_count
        false_positives = rule.positives - rule.true_positives
        counts = (rule.true_positives, positives, false_positives, negatives)
        return clopper_pearson(*counts, math.exp(log_level))

    def largest(self, rules: list[Rule], copies: int, log_level: float) -> tuple[float, Rule]:
        """The largest epsilon for one of the copies that any rule refutes, and that rule."""
        best, by = 0.0, max(rules, key=lambda rule: rule.deviations)
        for rule in rules:

            def refuted(value: float, rule: Rule = rule) -> bool:
                return self.refutes(rule, value, copies, log_level)

            value = largest_refuted(refuted, best)
            if value > best:
                best, by = value, rule
        return (gaussian_epsilon(best, self.delta) if self.method == "one_run_fdp" else best), by

    def log_p_value(self, rule: Rule) -> float:
        """Natural logarithm of the p-value of epsilon = 0, not corrected for other rules."""
        if self.method == "one_run":
            return log_p_value(self.size, rule.guesses, rule.correct, 0.0, self.delta)
        # The curve with epsilon 0 at delta: 2 Phi(mu / 2) - 1 = delta.
        nothing = 2 * float(special.ndtri((1 + self.delta) / 2))
        value = nothing if self.method == "one_run_fdp" else 0.0
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
    ranked = Ranked(_checked("in_scores", in_scores), _checked("out_scores", out_scores), seed)
    _check(ranked, delta, confidence, method, guesses, threshold, repetitions)
    if threshold is not None:
        rules = [ranked.at(threshold)]
    elif guesses is not None:
        both = guesses if isinstance(guesses, tuple) else (guesses - guesses // 2, guesses // 2)
        rules = [ranked.rule(*both)]
    elif method == "clopper_pearson":
        rules = many_runs_rules(ranked)
    else:
        rules = one_run_rules(ranked)
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


@typed
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
    if np.isnan(scores).any():  # of a file without secrets, which does not tell them all
        scores = np.array([item.bits for item in coins], dtype=np.float64)
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
    confidence: float,
    method: str,
    guesses: int | tuple[int, int] | None,
    threshold: float | None,
    repetitions: int,
) -> None:
    where, size, ins = "estimate_epsilon", ranked.size, ranked.in_count
    check_choice(f"{where}: method", method, METHODS)
    if check_number(f"{where}: delta", delta, 0) >= 1:
        raise ValueError(f"{where}: delta={delta} is out of range; use 0 or more, and less than 1")
    if method == "one_run_fdp" and delta == 0:
        raise ValueError(
            f"{where}: delta=0 with method='one_run_fdp', but a Gaussian has no finite epsilon at "
            "delta 0; give a small delta such as 1e-6, or use 'one_run'"
        )
    check_share(f"{where}: confidence", confidence)
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
