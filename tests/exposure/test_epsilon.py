"""Lower bounds on epsilon, against mechanisms whose epsilon is known and formulas written again."""

from __future__ import annotations

import itertools
import math
from typing import Any

import mpmath
import numpy as np
import pytest
from scipy import optimize, special, stats

from hf_exposure import estimate_epsilon as public_estimate_epsilon
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.canary_scores import canary_scores
from hf_exposure.exposure.epsilon import (
    METHODS,
    EpsilonBound,
    estimate_epsilon,
)
from hf_exposure.exposure.independent import log_gaussian_order_tail, log_order_tail
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.refuting import (
    gaussian_epsilon,
    gaussian_refutes,
    least_log_level,
    log_p_value,
    rate_bounds,
)
from hf_exposure.exposure.results import Exposures
from tests.selection import rest_slow

RUNS = 250


def quantiles(n: int) -> np.ndarray:
    """n evenly spaced quantiles of the standard normal distribution."""
    return stats.norm.ppf((np.arange(n) + 0.5) / n)


def at_most(share: float, runs: int = RUNS) -> int:
    """What a count of events of that probability exceeds once in a thousand times."""
    return int(stats.binom.ppf(0.999, runs, share))


# The p-value of one run


def naive_p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 of Steinke, Nasr and Jagielski 2023, in 50 digits, sum by sum."""
    with mpmath.workdps(50):
        q = mpmath.exp(epsilon) / (1 + mpmath.exp(epsilon))

        def f(at_least: int) -> Any:
            counts = range(max(at_least, 0), r + 1)
            return mpmath.fsum(mpmath.binomial(r, j) * q**j * (1 - q) ** (r - j) for j in counts)

        steepest = max((f(v - i) - f(v)) / i for i in range(1, m + 1))
        return float(mpmath.log(min(1, f(v) + 2 * m * delta * steepest)))


@pytest.mark.parametrize("delta", [0.0, 1e-6, 1e-2])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 5.0])
@pytest.mark.parametrize(("m", "r", "v"), [(5, 5, 5), (20, 12, 9), (20, 20, 0), (60, 30, 29)])
def test_the_p_value_is_that_of_the_theorem(
    m: int, r: int, v: int, epsilon: float, delta: float
) -> None:
    expected = naive_p_value(m, r, v, epsilon, delta)
    assert log_p_value(m, r, v, epsilon, delta) == pytest.approx(expected, abs=1e-10)


def test_the_p_value_is_the_exact_probability_for_randomized_response() -> None:
    # All coins and all flips of 4 canaries, one after the other; every canary is guessed.
    m, epsilon = 4, 1.2
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    probability = np.zeros(m + 1)
    for coins in itertools.product([0, 1], repeat=m):
        for answers in itertools.product([0, 1], repeat=m):
            right = sum(a == b for a, b in zip(coins, answers, strict=True))
            probability[right] += 0.5**m * truth**right * (1 - truth) ** (m - right)
    for v in range(m + 1):
        expected = math.log(probability[v:].sum())
        assert log_p_value(m, m, v, epsilon, 0.0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("delta", [1e-3, 0.05])
def test_the_p_value_is_no_smaller_than_the_probability_of_mechanisms_that_use_delta(
    delta: float,
) -> None:
    m, epsilon = 12, 0.5
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    for v in range(m + 1):
        # One gives everything away with probability delta, the other each bit on its own.
        all_at_once = delta + (1 - delta) * stats.binom.sf(v - 1, m, truth)
        one_by_one = stats.binom.sf(v - 1, m, delta + (1 - delta) * truth)
        bound = math.exp(log_p_value(m, m, v, epsilon, delta))
        assert bound >= max(all_at_once, one_by_one) - 1e-12


def test_p_values_that_underflow_are_kept_in_logarithms() -> None:
    assert log_p_value(20_000, 20_000, 20_000, 0.0, 0.0) == pytest.approx(-20_000 * math.log(2))
    found = estimate_epsilon(np.arange(5000) + 1e4, np.arange(5000), delta=0)
    assert found.p_value == 0
    assert found.log_p_value == pytest.approx(-10_000 * math.log(2) + math.log(found.tests))
    digits = found.log_p_value / math.log(10) - math.floor(found.log_p_value / math.log(10))
    assert f"p = {10**digits:.1f}e-30" in str(found)


# Its refinement for a Gaussian curve


def largest_probability(m: int, c: int, v: int, mu: float) -> float:
    """The most that Pr(v or more of c guesses correct) can be under mu-GDP, by linear programming.

    The constraints are r_i <= f(h_{i-1}) with a concave f; tangents are added where the solution
    violates one, until none is violated.
    """
    j = np.arange(c + 1)
    r = np.array([np.where(j >= i, j / m, 0) for i in range(c + 1)])
    h = np.array([np.where(j >= i, (c - j) / m, 0) for i in range(c + 1)])

    def tangent(i: int, at: float) -> tuple[np.ndarray, float]:
        z = special.ndtri(at)
        slope = math.exp(-((z + mu) ** 2) / 2 + z**2 / 2)
        return r[i] - slope * h[i - 1], float(special.ndtr(z + mu)) - slope * at

    rows = [tangent(i, at) for i in range(1, c + 1) for at in np.geomspace(1e-9, 0.9, 30)]
    for _ in range(60):
        left, right = (np.array(side) for side in zip(*rows, strict=True))
        result = optimize.linprog(
            -(j >= v).astype(float), left, right, np.ones((1, c + 1)), [1.0], bounds=(0, 1)
        )
        used = np.maximum(h @ result.x, 1e-300)
        off = [
            i
            for i in range(1, c + 1)
            if r[i] @ result.x > special.ndtr(special.ndtri(used[i - 1]) + mu) + 1e-9
        ]
        if not off:
            break
        rows += [tangent(i, max(float(used[i - 1]), 1e-12)) for i in off]
    return float(-result.fun)


@pytest.mark.parametrize(
    ("m", "c", "v", "mu"), [(8, 8, 8, 1.0), (12, 8, 7, 0.5), (30, 10, 9, 1.0), (20, 20, 16, 0.2)]
)
def test_the_gaussian_test_is_the_optimum_of_the_constraints_it_comes_from(
    m: int, c: int, v: int, mu: float
) -> None:
    found = math.exp(least_log_level(lambda level: gaussian_refutes(m, c, v, mu, level)))
    assert 0 < found < 1
    assert found == pytest.approx(largest_probability(m, c, v, mu), rel=1e-3)


def test_the_gaussian_test_is_no_smaller_than_the_probability_under_a_gaussian_mechanism() -> None:
    # Each canary's noisy coin is published; those with the two most extreme sums are guessed.
    m, mu, draw = 6, 1.5, np.random.default_rng(0)
    coins = draw.integers(2, size=(100_000, m))
    seen = mu * (coins - 0.5) + draw.normal(size=coins.shape)
    order = np.argsort(seen, axis=1)
    ranked = np.take_along_axis(coins, order, axis=1)
    correct = ranked[:, -1] + (1 - ranked[:, 0])
    share = float(np.mean(correct == 2))
    bound = math.exp(least_log_level(lambda level: gaussian_refutes(m, 2, 2, mu, level)))
    assert share - 0.005 < bound <= 1


@pytest.mark.parametrize("delta", [1e-6, 1e-2])
@pytest.mark.parametrize("mu", [0.2, 1.0, 4.0])
def test_epsilon_of_a_gaussian_curve_is_where_the_integral_is_delta(
    mu: float, delta: float
) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    with mpmath.workdps(30):
        density = mpmath.npdf
        edge = mpmath.mpf(epsilon) / mu + mpmath.mpf(mu) / 2  # the densities' ratio is e^epsilon
        mass = mpmath.quad(
            lambda x: density(x, mu) - mpmath.exp(epsilon) * density(x),
            [edge, edge + 1, edge + 3, edge + 10, edge + 30],
        )
    assert float(mass) == pytest.approx(delta, rel=1e-6)


def test_epsilon_of_a_gaussian_curve_that_delta_covers_is_zero() -> None:
    assert gaussian_epsilon(0.01, 0.1) == gaussian_epsilon(0.0, 1e-6) == 0


# Many runs


def test_error_rates_have_the_interval_of_clopper_and_pearson() -> None:
    for true, false in [(0, 0), (7, 3), (20, 30), (20, 0)]:
        low, high = rate_bounds(true, 20, false, 30, alpha=0.1)
        assert low == pytest.approx(stats.binomtest(true, 20).proportion_ci(0.9).low, abs=1e-12)
        assert high == pytest.approx(stats.binomtest(false, 30).proportion_ci(0.9).high, abs=1e-12)


@pytest.mark.parametrize(("tp", "fp"), [(90, 5), (99, 60)])
def test_many_runs_give_the_better_one_of_both_directions(tp: int, fp: int) -> None:
    ins, outs = np.arange(100) >= 100 - tp, np.arange(100) >= 100 - fp
    found = estimate_epsilon(
        ins, outs, delta=0.01, confidence=0.9, method="clopper_pearson", threshold=0.5
    )
    tpr = stats.binomtest(tp, 100).proportion_ci(0.9).low
    fpr = stats.binomtest(fp, 100).proportion_ci(0.9).high
    both = math.log((tpr - 0.01) / fpr), math.log((1 - fpr - 0.01) / (1 - tpr))
    assert found.epsilon == pytest.approx(max(both), abs=1e-7)
    assert (found.guesses, found.correct, found.tests) == (tp + fp, tp, 1)


def test_the_p_value_of_many_runs_is_the_level_at_which_the_bound_becomes_positive() -> None:
    ins, outs = np.arange(100) >= 40, np.arange(100) >= 60
    given: dict[str, Any] = {"delta": 0.01, "method": "clopper_pearson", "threshold": 0.5}
    level = estimate_epsilon(ins, outs, **given).p_value
    assert estimate_epsilon(ins, outs, confidence=1 - 1.01 * level, **given).epsilon > 0
    assert estimate_epsilon(ins, outs, confidence=1 - 0.99 * level, **given).epsilon == 0


# Sound


RULES = {
    "default": {},
    "guesses": {"guesses": 20},
    "highest": {"guesses": (10, 0)},
    "threshold": {"threshold": 0.3},
}
CHOICES = [
    (method, rule)
    for method in METHODS
    for rule in RULES
    if "order" not in method or rule in ("default", "highest")
    if method != "clopper_pearson" or "guesses" not in RULES[rule]
]


def coin_scores(
    draw: np.random.Generator, m: int, leak: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores of m canaries, of which those in by their own coins are higher by `leak`."""
    coins = draw.random(m) < 0.5
    scores = draw.normal(size=m) + leak * coins
    return scores[coins], scores[~coins]


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("method", "rule"), rest_slow(CHOICES, 2))
def test_without_a_leak_false_positives_are_as_rare_as_stated(
    method: str, rule: str, ties: bool
) -> None:
    draw = np.random.default_rng(1)
    positives, runs = 0, 60 if "order" in method else RUNS
    for _ in range(runs):
        ins, outs = coin_scores(draw, 80)
        if ties:
            ins, outs = np.round(ins), np.round(outs)
        found = estimate_epsilon(ins, outs, delta=1e-6, method=method, **RULES[rule])
        positives += found.epsilon > 0
        assert (found.epsilon > 0) == (found.p_value < 0.05) or method.endswith("fdp")
    assert positives <= at_most(0.05, runs)


@pytest.mark.slow
def test_the_best_of_many_rules_uncorrected_would_be_wrong_far_too_often() -> None:
    # The test above can fail: this is what it is there to catch.
    draw = np.random.default_rng(1)
    positives = 0
    for _ in range(RUNS // 2):
        ins, outs = coin_scores(draw, 80)
        positives += any(
            estimate_epsilon(ins, outs, guesses=r).epsilon > 0 for r in (8, 12, 20, 30, 45, 60, 80)
        )
    assert positives > at_most(0.05, RUNS // 2)


@pytest.mark.parametrize("rule", ["default", "threshold"])
@pytest.mark.parametrize("method", rest_slow(["clopper_pearson", "one_run", "one_run_order"], 1))
def test_the_bound_is_below_the_epsilon_of_randomized_response(method: str, rule: str) -> None:
    # Pure epsilon = 1, and the test cannot do better: the bound must come close to it too.
    draw = np.random.default_rng(2)
    truth, runs, bounds = math.e / (1 + math.e), 120, []
    for _ in range(runs):
        coins = draw.random(1000) < 0.5
        answers = np.where(draw.random(1000) < truth, coins, ~coins).astype(float)
        found = estimate_epsilon(
            answers[coins],
            answers[~coins],
            delta=0,
            method=method,
            threshold=None if rule == "default" else 0.5,
        )
        bounds.append(found.epsilon)
    assert sum(bound > 1 for bound in bounds) <= at_most(0.05, runs)
    assert np.mean(bounds) > {"default": 0.65, "threshold": 0.8}[rule]


@pytest.mark.parametrize("rule", ["default", "given"])
@pytest.mark.parametrize(
    ("method", "delta", "given", "least"),
    rest_slow(
        [
            ("clopper_pearson", 0.05, {"threshold": 1.5}, 0.35),
            ("one_run", 1e-5, {"guesses": 40}, 0.9),
            ("one_run_fdp", 1e-5, {"guesses": 40}, 1.4),
            ("one_run_order", 1e-5, {"guesses": 40}, 0.9),
            ("one_run_order_fdp", 1e-5, {"guesses": 40}, 2.2),
        ],
        1,
    ),
)
def test_the_bound_is_below_the_epsilon_of_a_gaussian_mechanism(
    method: str, delta: float, given: dict[str, Any], least: float, rule: str
) -> None:
    # Noise of the size of the shift, 300 canaries: epsilon is 4.4 at delta 1e-5, 1.6 at 0.05.
    # `least` says how tight the bound is on average.
    draw, truth, bounds = np.random.default_rng(3), gaussian_epsilon(1.0, delta), list[float]()
    runs = 50 if "order" in method else 120
    for _ in range(runs):
        ins, outs = coin_scores(draw, 300, leak=1.0)
        rules = given if rule == "given" else {}
        bounds.append(estimate_epsilon(ins, outs, delta, method=method, **rules).epsilon)
    assert sum(bound > truth for bound in bounds) <= at_most(0.05, runs)
    assert np.mean(bounds) > least


def test_ties_are_broken_without_regard_to_who_is_in() -> None:
    same = np.zeros(500)
    for method in METHODS:
        assert estimate_epsilon(same, same, method=method).epsilon == 0
    # Half of the tied ones are in, so half of those guessed are, up to chance.
    correct = [estimate_epsilon(same, same, guesses=(200, 0), seed=s).correct for s in range(20)]
    assert 90 < np.mean(correct) < 110 and len(set(correct)) > 5


def test_the_order_of_the_scores_does_not_matter() -> None:
    draw = np.random.default_rng(4)
    ins, outs = np.round(draw.normal(1, 1, 200)), np.round(draw.normal(0, 1, 200))
    for method in METHODS:
        first = estimate_epsilon(ins, outs, method=method)
        assert first == estimate_epsilon(ins[::-1], draw.permutation(outs), method=method)
        assert first.epsilon > 0


def test_infinite_scores_are_the_highest_and_the_lowest() -> None:
    ins, outs = quantiles(300) + 2, quantiles(300)
    far = np.where(ins > 3, np.inf, ins), np.where(outs < -1, -np.inf, outs)
    for method in METHODS:
        bound = estimate_epsilon(*far, method=method, threshold=1.0)
        assert bound.epsilon == estimate_epsilon(ins, outs, method=method, threshold=1.0).epsilon
        assert estimate_epsilon(*far, method=method).epsilon > 1


# Agreement with others


def hull_of_counts(ins: np.ndarray, outs: np.ndarray) -> list[tuple[int, int]]:
    """True and false positives at the corners of the ROC curve's concave hull, both ends too."""
    labels = np.concatenate([np.ones(len(ins)), np.zeros(len(outs))])
    order = np.argsort(-np.concatenate([ins, outs]), kind="stable")
    hull: list[tuple[int, int]] = []
    tp = fp = 0
    for label in [None, *labels[order]]:
        if label is not None:
            tp, fp = (tp + 1, fp) if label else (tp, fp + 1)
        while len(hull) > 1 and (hull[-1][0] - hull[-2][0]) * (fp - hull[-1][1]) <= (
            tp - hull[-1][0]
        ) * (hull[-1][1] - hull[-2][1]):
            hull.pop()
        hull.append((tp, fp))
    return hull


# jax-privacy 2.0.0, CanaryScoreAuditor(quantiles(10_000) + shift, quantiles(10_000)), its default
# threshold_strategy=Bonferroni(): epsilon_one_run(0.05, 1e-6) and epsilon_one_run_fdp(0.05, 1e-6),
# to the digits that its own tests hold.
@pytest.mark.parametrize(
    ("shift", "one_run", "fdp"),
    [(1, 1.13346, 2.164749), (2, 2.311945, 4.7218075), (4, 4.395568, 9.133752)],
)
def test_jax_privacy_has_the_same_figures_by_its_own_rules(
    shift: float, one_run: float, fdp: float
) -> None:
    ins, outs = quantiles(10_000) + shift, quantiles(10_000)
    hull = hull_of_counts(ins, outs)
    # It tries the highest scores down to each corner of the hull, at alpha over their number.
    log_alpha = math.log(0.05 / len(hull))
    found = [(20_000, tp + fp, tp) for tp, fp in hull if tp + fp]

    def refuted(epsilon: float) -> bool:
        return any(log_p_value(*counts, epsilon, 1e-6) <= log_alpha for counts in found)

    def refuted_fdp(epsilon: float) -> bool:
        mu = optimize.brentq(lambda mu: gaussian_epsilon(mu, 1e-6) - epsilon, 0.01, 10, xtol=1e-12)
        return any(gaussian_refutes(*counts, mu, log_alpha) for counts in found)

    assert refuted(one_run - 2e-5) and not refuted(one_run + 2e-5)
    assert refuted_fdp(fdp - 2e-5) and not refuted_fdp(fdp + 2e-5)
    # Fewer rules have to be corrected for here, and both ends are used.
    truth = gaussian_epsilon(shift, 1e-6)
    assert one_run < estimate_epsilon(ins, outs).epsilon < truth
    assert fdp < estimate_epsilon(ins, outs, method="one_run_fdp").epsilon < truth


# jax-privacy 2.0.0 with threshold_strategy=Explicit(threshold), 500 quantiles each, delta 1e-6.
@pytest.mark.parametrize(
    ("shift", "threshold", "one_run", "fdp", "many_runs"),
    [
        (1, 1.5, 1.2150651, 2.1798281, 1.0744191),
        (1, 1.0, 0.9342448, 1.7711079, 0.8583467),
        (2, 2.0, 2.6049320, 4.8700449, 2.4567829),
    ],
)
def test_jax_privacy_has_the_same_figures_at_a_given_threshold(
    shift: float, threshold: float, one_run: float, fdp: float, many_runs: float
) -> None:
    ins, outs = quantiles(500) + shift, quantiles(500)
    guesses = int(np.sum(ins >= threshold) + np.sum(outs >= threshold)), 0
    for method, expected in [("one_run", one_run), ("one_run_fdp", fdp)]:
        found = estimate_epsilon(ins, outs, method=method, guesses=guesses)
        assert found.epsilon == pytest.approx(expected, abs=1e-6)
    found = estimate_epsilon(ins, outs, method="clopper_pearson", threshold=threshold)
    assert found.epsilon == pytest.approx(many_runs, abs=1e-6)


# opake-auditing 0.16.1, one_run(...).eps_delta().epsilon_at(delta=0, threshold=shift / 2), whose
# p-value is the same one where delta is 0; it searches to 1e-4.
@pytest.mark.parametrize(
    ("n", "shift", "expected"), [(500, 1, 0.69500), (500, 2, 1.52846), (10_000, 2, 1.63596)]
)
def test_opake_has_the_same_figures(n: int, shift: float, expected: float) -> None:
    found = estimate_epsilon(quantiles(n) + shift, quantiles(n), delta=0, threshold=shift / 2)
    assert found.guesses == 2 * n
    assert found.epsilon == pytest.approx(expected, abs=1.1e-4)


# Repetitions


@pytest.mark.parametrize("method", ["one_run", "clopper_pearson"])
def test_pure_epsilon_of_one_example_is_the_group_s_divided_by_its_size(method: str) -> None:
    ins, outs = quantiles(400) + 2, quantiles(400)
    alone = estimate_epsilon(ins, outs, delta=0, method=method)
    group = estimate_epsilon(ins, outs, delta=0, method=method, repetitions=16)
    assert alone.per_example == alone.epsilon == group.epsilon
    assert group.per_example == pytest.approx(group.epsilon / 16, abs=1e-7)


def test_delta_grows_with_the_group() -> None:
    # 3 examples of (epsilon, delta) are (3 epsilon, delta (1 + e^epsilon + e^(2 epsilon))).
    ins, outs = quantiles(400) + 2, quantiles(400)
    found = estimate_epsilon(ins, outs, delta=1e-5, guesses=100, repetitions=3)
    one = found.per_example
    delta = 1e-5 * (1 + math.exp(one) + math.exp(2 * one))
    assert log_p_value(800, 100, found.correct, 3 * one, delta) == pytest.approx(
        math.log(0.05), abs=1e-6
    )
    assert one < found.epsilon / 3


def test_a_group_under_a_gaussian_curve_has_the_shift_of_all_its_members() -> None:
    ins, outs = quantiles(400) + 2, quantiles(400)
    found = estimate_epsilon(ins, outs, method="one_run_fdp", repetitions=4)
    mu = optimize.brentq(lambda mu: gaussian_epsilon(mu, 1e-6) - found.epsilon, 0.01, 10)
    assert found.per_example == pytest.approx(gaussian_epsilon(mu / 4, 1e-6), abs=1e-6)


# Independent canaries


@pytest.mark.parametrize(("positives", "negatives"), [(10, 10), (20, 0), (60, 60), (120, 0)])
def test_the_surest_guesses_are_right_as_often_as_order_statistics_say(
    positives: int, negatives: int
) -> None:
    draw, m, mu, runs = np.random.default_rng(5), 120, 1.0, 10_000
    coins = draw.random((runs, m)) < 0.5
    leak = draw.normal(size=(runs, m)) + mu * coins - mu / 2
    if negatives:
        order = np.argsort(-np.abs(leak), axis=1)[:, : positives + negatives]
        right = (leak > 0) == coins
    else:
        order, right = np.argsort(-leak, axis=1)[:, :positives], coins
    correct = np.take_along_axis(right, order, axis=1).sum(axis=1)
    for quantile in (0.3, 0.8, 0.97):
        v = int(np.quantile(correct, quantile))
        found = math.exp(log_gaussian_order_tail(m, positives, negatives, v, mu))
        assert found == pytest.approx(np.mean(correct >= v), abs=0.025)


def test_shown_coins_are_guessed_first() -> None:
    draw, m, r, epsilon, delta, runs = np.random.default_rng(6), 100, 30, 1.0, 0.05, 20_000
    shown = np.minimum(draw.binomial(m, delta, size=runs), r)
    correct = shown + draw.binomial(r - shown, special.expit(epsilon))
    for v in (22, 26, 29, 30):
        found = math.exp(log_order_tail(m, r, v, epsilon, delta))
        assert found == pytest.approx(np.mean(correct >= v), abs=0.015)
    assert math.exp(log_order_tail(m, r, 22, epsilon, 0.0)) == pytest.approx(
        stats.binom.sf(21, r, special.expit(epsilon))
    )


def test_order_statistics_do_not_hold_for_a_mechanism_that_shows_all_coins_or_none() -> None:
    # Which is (0, 0.3)-private; the bounds for every mechanism allow for it.
    draw, above = np.random.default_rng(7), dict.fromkeys(("one_run", "one_run_order"), 0)
    for _ in range(100):
        coins = draw.random(100) < 0.5
        scores = coins + 0.0 if draw.random() < 0.3 else draw.normal(size=100)
        for method in above:
            found = estimate_epsilon(scores[coins], scores[~coins], delta=0.3, method=method)
            above[method] += found.epsilon > 0
    assert above["one_run"] <= at_most(0.05, 100) < above["one_run_order"]


# What so many canaries can show


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rule", ["default", "threshold"])
def test_no_scores_show_more_than_the_most(method: str, rule: str) -> None:
    ins, outs = quantiles(100), quantiles(110)
    given = {} if rule == "default" else {"threshold": 0.0}
    bounds = [
        estimate_epsilon(ins + leak, outs, delta=1e-3, method=method, **given) for leak in (0, 3, 9)
    ]
    assert [bound.most for bound in bounds] == pytest.approx([bounds[0].most] * 3, rel=2e-3)
    assert bounds[0].epsilon < bounds[1].epsilon <= bounds[1].most
    if rule == "default":
        assert bounds[2].epsilon == pytest.approx(bounds[2].most, rel=2e-3)


# What it says


def test_a_bound_prints_in_one_line_with_all_that_it_rests_on() -> None:
    ins, outs = quantiles(500) + 2, quantiles(500)
    line = str(estimate_epsilon(ins, outs, guesses=200, repetitions=8))
    assert "\n" not in line and line.startswith("epsilon >= 3.")
    for part in (
        "8 copies together",
        "for one",
        "delta=1e-06",
        "95% confidence",
        "one_run",
        "of 200 guesses correct",
        "500 canaries in and 500 out",
        "p = ",
    ):
        assert part in line
    assert "corrected" not in line
    assert "corrected for 12 tests" in str(estimate_epsilon(ins, outs))
    assert "if its trade-off curve is Gaussian" in str(
        estimate_epsilon(ins, outs, method="one_run_fdp")
    )
    assert "TPR >= " in str(estimate_epsilon(ins, outs, method="clopper_pearson"))
    assert "if no canary's score depends on another's coin" in str(
        estimate_epsilon(ins, outs, method="one_run_order")
    )
    assert "(at most 5.1" in str(estimate_epsilon(ins, outs))


def test_a_printed_bound_is_rounded_down() -> None:
    bound = EpsilonBound(1.9999, 1.9999, 0.95, 0.0, "one_run", 5, 5, 4, 4, 0.0, -3.0)
    assert str(bound).startswith("epsilon >= 1.999 ")


def test_the_package_has_the_bound() -> None:
    assert public_estimate_epsilon is estimate_epsilon


def test_the_threshold_and_the_counts_are_those_of_the_rule() -> None:
    ins, outs = np.array([9.0, 8.0, 6.0, 3.0]), np.array([7.0, 5.0, 2.0, 1.0])
    found = estimate_epsilon(ins, outs, guesses=(3, 2))
    assert (found.threshold, found.guesses, found.correct) == (7.0, 5, 4)
    assert (found.in_count, found.out_count, found.tests) == (4, 4, 1)
    all_of_them = estimate_epsilon(ins, outs, threshold=5.0)
    assert (all_of_them.threshold, all_of_them.guesses, all_of_them.correct) == (5.0, 8, 5)
    tiny = estimate_epsilon([1.0], [0.0])
    assert (tiny.epsilon, tiny.guesses, tiny.correct) == (0.0, 2, 2)


# Bad input


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"in_scores": []}, "in_scores is empty"),
        ({"out_scores": []}, "out_scores is empty"),
        ({"in_scores": [1.0, math.nan]}, "in_scores has 1 scores that are NaN"),
        ({"out_scores": [[1.0, 2.0]]}, "out_scores must be one list"),
        ({"in_scores": ["a"]}, "in_scores must be a list of numbers"),
        ({"delta": -0.1}, "delta=-0.1 is too small"),
        ({"delta": 1.0}, "delta=1.0 is out of range"),
        ({"delta": math.nan}, "delta=nan is out of range"),
        ({"delta": 0, "method": "one_run_fdp"}, "no finite epsilon"),
        ({"confidence": 1.0}, "confidence=1.0 is out of range"),
        ({"confidence": 0.0}, "confidence=0.0 is out of range"),
        (
            {"method": "magic"},
            "method='magic' is not known; use 'one_run', 'one_run_fdp', 'one_run_o",
        ),
        ({"guesses": 0}, "guesses=0 must be"),
        ({"guesses": 7}, "of 1 to 6 together"),
        ({"guesses": (1, -1)}, "must be a whole number"),
        ({"guesses": 2.5}, "must be a whole number"),
        ({"guesses": 2, "threshold": 1.0}, "guesses and threshold do not go together"),
        ({"guesses": 2, "method": "clopper_pearson"}, "do not go together"),
        ({"threshold": math.nan}, "threshold=nan is out of range"),
        ({"repetitions": 0}, "repetitions=0 is too small"),
        ({"out_scores": list(range(100))}, "cannot come from fair coins"),
    ],
)
def test_bad_input_gets_one_clear_line(given: dict[str, Any], words: str) -> None:
    usual: dict[str, Any] = {"in_scores": [1.0, 2.0, 3.0], "out_scores": [0.0, 1.0, 2.0]}
    with pytest.raises(ValueError, match=r"^estimate_epsilon: ") as error:
        estimate_epsilon(**{**usual, **given})
    assert words in str(error.value) and "\n" not in str(error.value)


def test_many_runs_need_no_fair_coins() -> None:
    found = estimate_epsilon(quantiles(10) + 8, quantiles(300), method="clopper_pearson")
    assert found.epsilon > 0


# From a measurement


NUMBER = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
NAME = SecretFormat("Call {secret} now!", secret=r"[a-z]{7}")


def measured(canary: Canary, log_perplexity: float) -> Exposure:
    return Exposure(
        canary, 1.0, 0.5, 1.5, 9.0, 8.0, 10.0, 0.0, 0, False, log_perplexity, "auto", 0.5
    )


def test_scores_of_one_format_are_minus_log_perplexities_of_coin_canaries() -> None:
    canaries = Canaries.generate(NUMBER, [0, 4], per_repetition=50, inclusion="coin", seed=3)
    exposures = Exposures([measured(c, 30.0 - c.repetitions - i) for i, c in enumerate(canaries)])
    scores = canary_scores(exposures)
    coins = [e for e in exposures if e.canary.planned is not None]
    assert len(coins) == 50 == len(scores.in_scores) + len(scores.out_scores)
    assert list(scores.in_scores) == [-e.log_perplexity for e in coins if e.canary.inserted]
    assert list(scores.out_scores) == [-e.log_perplexity for e in coins if not e.canary.inserted]
    assert scores.repetitions == 4
    # A result that was saved without its secrets serves as well.
    again = canary_scores(Exposures.from_dict(exposures.to_dict()))
    assert list(again.in_scores) == list(scores.in_scores)


def test_scores_of_several_formats_are_brought_to_one_scale_without_looking_at_the_coins() -> None:
    canaries = list(
        Canaries.generate([NUMBER, NAME], [4], per_repetition=400, inclusion="coin", seed=1)
    )
    draw = np.random.default_rng(0)
    noise = draw.normal(size=len(canaries))
    # Names cost far more than numbers, so that costs as they are would hide the leak.
    items = [
        measured(c, (10 if c.format == NUMBER else 300) + (1 if c.format == NUMBER else 20) * x)
        for c, x in zip(
            canaries, noise - 2.0 * np.array([c.inserted for c in canaries]), strict=True
        )
    ]
    scores = canary_scores(Exposures(items))
    good = estimate_epsilon(scores.in_scores, scores.out_scores).epsilon
    costs = np.array([item.log_perplexity for item in items])
    is_in = np.array([c.inserted for c in canaries])
    assert good > estimate_epsilon(-costs[is_in], -costs[~is_in]).epsilon + 0.5
    # All coins the other way round: the same canaries have the same scores.
    turned = [
        measured(Canary(c.format, c.secret, 0 if c.inserted else 4, planned=4), item.log_perplexity)
        for c, item in zip(canaries, items, strict=True)
    ]
    other = canary_scores(Exposures(turned))
    assert np.array_equal(other.in_scores, scores.out_scores)
    assert np.array_equal(other.out_scores, scores.in_scores)


def test_scores_against_the_model_before_training_leave_out_what_was_likely_from_the_start() -> (
    None
):
    canaries = Canaries.generate(NUMBER, [1], per_repetition=40, inclusion="coin", seed=3)
    before = Exposures([measured(c, 30.0 + i % 7) for i, c in enumerate(canaries)])
    after = [
        Exposures(
            [measured(c, 30.0 + i % 7 - fall * c.repetitions) for i, c in enumerate(canaries)]
        )
        for fall in (2.0, 4.0)
    ]
    scores = canary_scores(after, base=before)  # the mean of two checkpoints
    assert set(scores.in_scores) == {3.0} and set(scores.out_scores) == {0.0}
    assert list(canary_scores(after[:1], base=before).in_scores) == [2.0] * len(scores.in_scores)
    others = Exposures(list(before)[::-1])
    with pytest.raises(ValueError, match="different canaries, or in another order"):
        canary_scores(after, base=others)
    with pytest.raises(ValueError, match="exposures is empty"):
        canary_scores([])


def test_canaries_of_different_repetitions_are_not_mixed() -> None:
    canaries = Canaries.generate(NUMBER, [1, 4, 16], per_repetition=20, inclusion="coin")
    exposures = Exposures([measured(c, math.inf) for c in canaries])
    with pytest.raises(ValueError, match=r"inserted 1, 4 or 16 times; choose one"):
        canary_scores(exposures)
    scores = canary_scores(exposures, repetitions=4)
    assert (len(scores.in_scores) + len(scores.out_scores), scores.repetitions) == (20, 4)
    with pytest.raises(ValueError, match="repetitions=5 was planned for no canary"):
        canary_scores(exposures, repetitions=5)
    fixed = Exposures([measured(c, 1.0) for c in Canaries.generate(NUMBER, [0, 4])])
    with pytest.raises(ValueError, match='inclusion="coin"'):
        canary_scores(fixed)


@pytest.mark.slow
@pytest.mark.parametrize("values", [2, 5])
def test_scores_with_many_ties_and_no_leak_raise_no_more_alarms_than_stated(values: int) -> None:
    alarms = 0
    for seed in range(400):
        draw = np.random.default_rng([values, seed])
        scores = draw.integers(values, size=100).astype(float)
        inside = draw.random(100) < 0.5
        bound = estimate_epsilon(scores[inside], scores[~inside], delta=1e-6)
        alarms += bound.epsilon > 0
    assert alarms <= 34  # 5 % are 20; more than 34 has a probability below 1 in 1000
