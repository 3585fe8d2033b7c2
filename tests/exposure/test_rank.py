"""The formulas from costs to ranks, against ones that are written out again here."""

from __future__ import annotations

import heapq
import math
import warnings

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hf_exposure.exposure.estimators import (
    RankEstimate,
    Unexplored,
    exp2,
    sampling_exposure,
    weighted_rank,
)
from hf_exposure.exposure.skew_normal import SkewNormal, skewnorm_exposure
from tests.selection import rest_slow

NOTHING = np.zeros(0)


# By sampling


@pytest.mark.parametrize("n", [1, 7, 2000])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 1.0])
def test_sampling_is_log2_n_less_log2_of_one_and_the_cheaper_ones(n: int, share: float) -> None:
    references = np.random.default_rng(n).normal(30, 4, n)
    cost = np.quantile(references, share) if share else references.min() - 1
    k = sum(reference <= cost for reference in references.tolist())
    found = sampling_exposure(float(cost), references, 0.9, log2_size=40.0)
    assert found.raw_bits == pytest.approx(math.log2(n) - math.log2(1 + k), abs=1e-12)
    assert found.bits == max(0.0, found.raw_bits)
    assert found.p_value == pytest.approx((1 + k) / (1 + n))
    # The share of R that is not costlier, by Clopper and Pearson; the string itself is one more.
    # At the upper end of the exposure, ties are not costlier.
    below = sum(reference < cost for reference in references.tolist())
    most = stats.binomtest(k, n).proportion_ci(0.9, method="exact").high
    least = stats.binomtest(below, n).proportion_ci(0.9, method="exact").low
    low, high = (40 - math.log2(1 + share * (2.0**40 - 1)) for share in (most, least))
    assert found.low == pytest.approx(min(low, found.bits), abs=1e-6)
    assert found.high == pytest.approx(max(high, found.bits), abs=1e-6)


def test_sampling_counts_ties_against_the_canary_and_widens_the_interval_by_them() -> None:
    references = np.array([10.0, 20.0, 20.0, 20.0, 30.0, 40.0])
    exact = sampling_exposure(20.0001, references, tie=0.0, log2_size=20)
    loose = sampling_exposure(20.0, references, tie=0.01, log2_size=20)
    assert loose.bits == exact.bits == math.log2(6) - math.log2(5)
    one = stats.binomtest(1, 6).proportion_ci(0.95, method="exact")
    assert loose.high == pytest.approx(20 - math.log2(1 + one.low * (2**20 - 1)), abs=1e-9)
    assert loose.low == exact.low


def test_sampling_never_exceeds_the_size_of_the_space() -> None:
    found = sampling_exposure(1.0, np.full(1000, 9.0), log2_size=math.log2(50))
    assert found.bits == found.high == math.log2(50)
    assert found.raw_bits == math.log2(1000)


def test_a_string_of_probability_0_has_no_exposure() -> None:
    references = np.array([10.0, 20.0, math.inf])
    assert sampling_exposure(math.inf, references, log2_size=9.0).bits == 0.0
    fit = SkewNormal.fit(np.random.default_rng(0).normal(30, 4, 100))
    found = skewnorm_exposure(math.inf, fit, 9.0)
    assert (found.bits, found.low, found.high) == (0.0, 0.0, 0.0)


def test_sampling_asks_for_a_reference() -> None:
    with pytest.raises(ValueError, match="draw at least one"):
        sampling_exposure(1.0, NOTHING)


# By a skew-normal fit


def tail_bits(z: float, shape: float) -> float:
    """-log2 of the standard skew-normal's mass below z, in 40 digits."""
    with mpmath.workdps(40):
        a, at = mpmath.mpf(shape), mpmath.mpf(z)

        def density(t: mpmath.mpf) -> mpmath.mpf:
            return 2 * mpmath.npdf(t) * mpmath.erfc(-a * t / mpmath.sqrt(2)) / 2

        # The mass lies within some lengths of the fall of the density.
        fall = 1 / (1 + abs(at) * (1 + max(a, 0) ** 2) + max(a, 0))
        ends = [at - fall * step for step in (2000, 300, 100, 30, 10, 3, 1, 0)]
        return float(-mpmath.log(mpmath.quad(density, ends), 2))


@pytest.mark.parametrize("shape", [-8.0, -1.0, 0.0, 0.5, 3.0, 12.0, 50.0])
@pytest.mark.parametrize("z", rest_slow([-60.0, -3.5, 0.4, -37.0, -8.0, -1.0, -0.3], 3))
def test_the_tail_is_right_also_where_it_underflows(shape: float, z: float) -> None:
    fit = SkewNormal(shape, 100.0, 5.0, 0.0, NOTHING)
    expected = -math.log2(stats.skewnorm.cdf(z, shape)) if z > 0 else tail_bits(z, shape)
    assert fit.exposure(100.0 + 5.0 * z) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_the_tail_is_one_curve_where_two_ways_of_computing_it_meet() -> None:
    for shape in (-8.0, 0.0, 2.0, 50.0):
        fit = SkewNormal(shape, 0.0, 1.0, 0.0, NOTHING)
        bits = np.array([fit.exposure(z) for z in np.linspace(-4, 1, 400)])
        assert (np.diff(bits)[bits[:-1] > 1e-9] < 0).all()
        # The density's logarithm is concave, and so is that of its integral.
        assert (np.diff(bits, 2) > -1e-9).all()


def test_skewnorm_is_capped_at_the_space_and_keeps_what_the_fit_said() -> None:
    references = stats.skewnorm.rvs(3, 40, 6, size=500, random_state=0)
    fit = SkewNormal.fit(references)
    far = skewnorm_exposure(10.0, fit, 20.0)
    assert far.bits == far.high == 20.0
    assert 20.0 < far.raw_bits < math.inf
    z = (10.0 - fit.loc) / fit.scale
    assert far.raw_bits == pytest.approx(tail_bits(z, fit.shape), rel=1e-6)
    assert far.p_value == 2.0**-20
    near = skewnorm_exposure(42.0, fit, 20.0)
    expected = -math.log2(stats.skewnorm.cdf(42.0, fit.shape, fit.loc, fit.scale))
    assert near.bits == near.raw_bits == pytest.approx(expected, abs=1e-9)
    assert near.low <= near.bits <= near.high


def test_the_fit_finds_the_distribution_that_references_come_from() -> None:
    references = stats.skewnorm.rvs(4, 40, 6, size=20_000, random_state=1)
    fit = SkewNormal.fit(references)
    at = np.linspace(35, 60, 50)
    assert np.abs(fit.density(at) - stats.skewnorm.pdf(at, 4, 40, 6)).max() < 0.003
    assert fit.ks < 0.01


@pytest.mark.parametrize(
    ("references", "words"),
    [
        (np.arange(9.0), "at least 10"),
        (np.full(50, 3.0), "same log-perplexity"),
        (np.array([*range(20), math.nan]), "not finite"),
    ],
)
def test_a_fit_that_makes_no_sense_is_refused(references: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SkewNormal.fit(references)


@pytest.mark.slow
def test_the_skewnorm_interval_holds_the_truth_where_the_model_is_right() -> None:
    draw = np.random.default_rng(5)
    held = dict.fromkeys((-2.0, 0.0), 0)
    runs = 20
    for _ in range(runs):
        fit = SkewNormal.fit(stats.skewnorm.rvs(2, 40, 6, size=200, random_state=draw))
        for z in held:
            truth = tail_bits(z, 2)
            found = skewnorm_exposure(40 + 6 * z, fit, 60.0)
            held[z] += found.low <= truth <= found.high
    assert min(held.values()) >= 0.8 * runs, held


@pytest.mark.slow
def test_the_p_value_of_the_fit_is_uniform_where_the_model_is_right() -> None:
    draw = np.random.default_rng(2)
    values = [
        SkewNormal.fit(stats.skewnorm.rvs(2, 40, 6, size=100, random_state=draw)).p_value(19, seed)
        for seed in range(20)
    ]
    # The usual Kolmogorov-Smirnov p-value has a mean of 0.8 here, and is never below 0.1.
    assert 0.3 < np.mean(values) < 0.7
    assert min(values) < 0.25


def test_the_p_value_of_the_fit_is_small_where_the_model_is_wrong() -> None:
    draw = np.random.default_rng(3)
    two_humps = np.concatenate([draw.normal(20, 1, 60), draw.normal(40, 1, 60)])
    assert SkewNormal.fit(two_humps).p_value(resamples=24) == 1 / 25


# From an exploration and a weighted sample


def rank_of(cost: float, found: np.ndarray = NOTHING, **changes: object) -> RankEstimate:
    """`weighted_rank` with nothing but what a test is about."""
    given: dict = {
        "frontier_log_perplexities": NOTHING,
        "frontier_log2_strings": NOTHING,
        "sample_log_perplexities": NOTHING,
        "sample_log2_density": NOTHING,
        "log2_size": 20.0,
        "tie": 1e-6,
        "confidence": 0.95,
        "largest_log2_weight": math.inf,
    }
    given |= changes
    unexplored = Unexplored(
        given.pop("frontier_log_perplexities"), given.pop("frontier_log2_strings")
    )
    return weighted_rank(cost, found, unexplored, **given)


def test_a_rank_is_exact_where_nothing_cheaper_is_left() -> None:
    found = np.array([3.0, 5.0, 5.0, 5.0 + 1e-9, 7.0])
    one = rank_of(
        5.0, found, frontier_log_perplexities=np.array([5.1]), frontier_log2_strings=np.array([9.0])
    )
    assert one.exact
    assert one.rank == 5 and one.low == 2 and one.high == 5 and one.upper_bound == 5
    assert one.ties == 3
    assert rank_of(1.0, found).rank == 1
    assert rank_of(9.0, found).rank == 6


def test_a_space_of_one_string_has_rank_1() -> None:
    one = rank_of(4.0, log2_size=0.0)
    assert one.exact and one.rank == one.low == one.high == one.upper_bound == 1


def test_without_draws_the_rank_is_its_bound() -> None:
    frontier = {
        "frontier_log_perplexities": np.array([2.0, 3.0, 9.0]),
        "frontier_log2_strings": np.array([6.0, 1.0, 6.0]),
    }
    one = rank_of(5.0, np.array([4.0]), **frontier)
    # 2^(5 - 2) strings of 64 can be as likely under the first, both under the second.
    assert one.rank == one.high == one.upper_bound == pytest.approx(1 + 1 + 8 + 2, rel=1e-5)
    assert one.low == 2 and not one.exact


def test_no_bound_exceeds_the_space_or_what_the_probability_allows() -> None:
    frontier = {"frontier_log_perplexities": np.zeros(1), "frontier_log2_strings": np.array([20.0])}
    assert rank_of(50.0, **frontier).log2_upper_bound == 20.0
    # Nothing explored: at most 1 / Pr(canary).
    assert rank_of(7.0, **frontier).log2_upper_bound == pytest.approx(7.0, abs=1e-5)


def test_where_no_draw_counts_the_interval_is_what_one_could_have_weighed() -> None:
    one = rank_of(
        10.0,
        np.array([4.0, 5.0]),
        frontier_log_perplexities=np.array([2.0]),
        frontier_log2_strings=np.array([18.0]),
        sample_log_perplexities=np.array([11.0, math.inf]),
        sample_log2_density=np.zeros(2),
        largest_log2_weight=4.0,
    )
    assert one.rank == one.low == 3
    # None of a Poisson count that is e with probability 2.5 %.
    assert one.high == pytest.approx(3 - 2**4 * math.log(0.025))
    assert one.upper_bound == pytest.approx(3 + 2**8, rel=1e-5)
    certain = rank_of(
        10.0,
        frontier_log_perplexities=np.array([9.0]),
        frontier_log2_strings=np.array([18.0]),
        sample_log_perplexities=np.array([11.0]),
        sample_log2_density=np.zeros(1),
        largest_log2_weight=10.0,
    )
    assert certain.high == certain.upper_bound == pytest.approx(3, rel=1e-5)


def test_the_gamma_interval_is_that_of_fay_and_feuer() -> None:
    densities = np.array([0.5, 0.1, 0.25, 2.0, 0.3])
    one = rank_of(
        10.0,
        frontier_log_perplexities=np.array([0.0]),
        frontier_log2_strings=np.array([20.0]),
        sample_log_perplexities=np.array([9.0, 9.0, 8.0, 3.0, 12.0]),
        sample_log2_density=np.log2(densities),
    )
    weights = 1 / densities[:4]
    y, v, w = weights.sum(), (weights**2).sum(), weights.max()
    low = stats.gamma.ppf(0.025, y**2 / v, scale=v / y)
    high = stats.gamma.ppf(0.975, (y + w) ** 2 / (v + w**2), scale=(v + w**2) / (y + w))
    assert one.rank == pytest.approx(1 + y)
    assert one.low == pytest.approx(1 + low)
    assert one.high == pytest.approx(1 + high)


def test_costlier_strings_show_how_much_an_undrawn_one_may_weigh() -> None:
    frontier = {
        "frontier_log_perplexities": np.array([0.0]),
        "frontier_log2_strings": np.array([20.0]),
    }
    given = np.log2([1.0, 2.0])
    alone = rank_of(
        10.0, **frontier, sample_log_perplexities=np.array([9.0, 8.0]), sample_log2_density=given
    )
    beside = rank_of(
        10.0,
        **frontier,
        sample_log_perplexities=np.array([9.0, 8.0, 10.5]),
        sample_log2_density=np.append(given, math.log2(0.125)),
    )
    y, v, w = 1.5, 1.25, 8.0
    high = stats.gamma.ppf(0.975, (y + w) ** 2 / (v + w**2), scale=(v + w**2) / (y + w))
    assert beside.high == pytest.approx(1 + high)
    assert beside.high > alone.high
    assert (beside.rank, beside.low) == (alone.rank, alone.low)


def test_equal_weights_give_the_exact_poisson_interval() -> None:
    one = rank_of(
        10.0,
        frontier_log_perplexities=np.array([0.0]),
        frontier_log2_strings=np.array([20.0]),
        sample_log_perplexities=np.full(7, 5.0),
        sample_log2_density=np.full(7, -3.0),
        log2_size=30.0,
    )
    assert one.low == pytest.approx(1 + 8 * stats.chi2.ppf(0.025, 14) / 2)
    assert one.high == pytest.approx(1 + 8 * stats.chi2.ppf(0.975, 16) / 2)


def test_strings_of_one_draw_weigh_together_and_repeated_draws_apart() -> None:
    """Three draws came to a group of two strings, one to a single one: the same as its sum."""
    grouped = rank_of(
        10.0,
        frontier_log_perplexities=np.array([0.0]),
        frontier_log2_strings=np.array([20.0]),
        sample_log_perplexities=np.array([5.0, 6.0, 12.0, 7.0]),
        sample_log2_density=np.array([-1.0, -1.0, -1.0, 2.0]),
        draws=np.array([3, 3, 3, 1]),
        groups=np.array([4, 4, 4, 9]),
    )
    apart = rank_of(
        10.0,
        frontier_log_perplexities=np.array([0.0]),
        frontier_log2_strings=np.array([20.0]),
        sample_log_perplexities=np.full(4, 5.0),
        sample_log2_density=np.array([-2.0, -2.0, -2.0, 2.0]),
    )
    assert grouped.rank == pytest.approx(apart.rank)
    assert (grouped.low, grouped.high) == pytest.approx((apart.low, apart.high))


def test_ties_widen_the_interval_to_one_side_of_all_and_the_other() -> None:
    one = rank_of(
        10.0,
        np.array([9.0, 10.0, 10.0]),
        tie=0.01,
        frontier_log_perplexities=np.array([0.0]),
        frontier_log2_strings=np.array([20.0]),
        sample_log_perplexities=np.array([10.0, 8.0]),
        sample_log2_density=np.zeros(2),
    )
    without = rank_of(
        10.0,
        np.array([9.0]),
        frontier_log_perplexities=np.array([0.0]),
        frontier_log2_strings=np.array([20.0]),
        sample_log_perplexities=np.array([8.0]),
        sample_log2_density=np.zeros(1),
    )
    assert one.rank == 1 + 3 + 2 and one.ties == 2 + 1
    assert one.low == pytest.approx(without.low)


def test_ranks_of_spaces_that_no_float_can_count_are_held_as_logarithms() -> None:
    one = rank_of(
        3000.0,
        frontier_log_perplexities=np.array([0.0]),
        frontier_log2_strings=np.array([4000.0]),
        sample_log_perplexities=np.array([100.0, 2000.0]),
        sample_log2_density=np.array([-2500.0, -2400.0]),
        log2_size=4000.0,
    )
    assert one.log2_rank == pytest.approx(2500.0, abs=1e-9)
    assert one.rank == math.inf and one.upper_bound == math.inf
    assert 2490 < one.log2_low < 2500 < one.log2_high < one.log2_upper_bound
    assert one.log2_upper_bound == pytest.approx(3000.0, abs=1e-5)


def test_a_rank_beyond_what_was_found_never_falls_below_it() -> None:
    """The bound from the canary's own probability counts the explored strings, too."""
    one = rank_of(
        2.0,
        np.full(4, 2.0),  # five strings of probability 1/4: rounding in a model may do that
        frontier_log_perplexities=np.array([1.9]),
        frontier_log2_strings=np.array([3.0]),
        sample_log_perplexities=np.array([1.9]),
        sample_log2_density=np.array([-20.0]),
    )
    assert one.rank == one.upper_bound == pytest.approx(5)


@pytest.mark.slow
def test_the_weighted_rank_is_unbiased_and_covers() -> None:
    """Draws of a known population, much unlike uniform, against its true ranks."""
    draw = np.random.default_rng(4)
    costs = np.sort(draw.normal(30, 5, 5000))
    proposal = np.exp2(-0.4 * costs)
    density = 300 * (0.7 * proposal / proposal.sum() + 0.3 / len(costs))
    for place in (30, 400, 3000):
        estimates, held = [], 0
        for _ in range(400):
            drawn = draw.choice(len(costs), 300, p=density / density.sum())
            drawn = drawn[drawn != place]
            one = rank_of(
                costs[place],
                frontier_log_perplexities=np.array([0.0]),
                frontier_log2_strings=np.array([math.log2(len(costs))]),
                sample_log_perplexities=costs[drawn],
                sample_log2_density=np.log2(density[drawn]),
                log2_size=math.log2(len(costs)),
                tie=0.0,
            )
            estimates.append(one.rank)
            held += one.low <= place + 1 <= one.high
        error = np.std(estimates) / 20
        assert abs(np.mean(estimates) - (place + 1)) < 3.5 * error
        assert held >= 0.92 * 400


def test_the_bound_holds_wherever_an_exploration_stops() -> None:
    draw = np.random.default_rng(6)
    depth, width = 5, 4
    steps = [-np.log2(draw.dirichlet(np.full(width, 0.5), width**d)) for d in range(depth)]
    costs = [np.zeros(1)]
    for step in steps:
        costs.append((costs[-1][:, None] + step).ravel())
    leaves = costs[-1]
    for visits in (1, 3, 10, 40, 150):
        heap, found, taken = [(0.0, 0, 0)], [], 0
        while heap and taken < visits:
            _, level, place = heapq.heappop(heap)
            if level == depth:
                found.append(place)
                continue
            taken += 1
            for child in range(width * place, width * (place + 1)):
                heapq.heappush(heap, (costs[level + 1][child], level + 1, child))
        found += [place for _, level, place in heap if level == depth]
        frontier = [(cost, depth - level) for cost, level, _ in heap if level < depth]
        for rank in (1, 2, 5, 30, 200, 900):
            place = int(np.argsort(leaves)[rank - 1])
            one = rank_of(
                leaves[place],
                leaves[[other for other in found if other != place]],
                frontier_log_perplexities=np.array([cost for cost, _ in frontier]),
                frontier_log2_strings=np.array([2.0 * left for _, left in frontier]),
                log2_size=2.0 * depth,
                tie=1e-9,
            )
            assert one.upper_bound >= rank - 1e-6
            assert one.low <= rank
            assert not one.exact or one.rank == rank


def test_no_formula_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rank_of(math.inf, np.array([1.0, math.inf]))
        sampling_exposure(3.0, np.array([math.inf]), log2_size=8)
        sampling_exposure(-1.0, np.array([0.0]), log2_size=8)
        fit = SkewNormal.fit(np.random.default_rng(0).normal(30, 4, 100))
        skewnorm_exposure(-1e6, fit, 8.0)
        skewnorm_exposure(1e6, fit, 8.0)


@given(
    st.lists(st.tuples(st.floats(0, 60), st.floats(0, 80)), min_size=0, max_size=40),
    st.floats(-1, 90),
)
def test_what_is_unexplored_is_bounded_as_the_sum_over_its_prefixes(
    prefixes: list[tuple[float, float]], cost: float
) -> None:
    costs, strings = np.array(prefixes).reshape(-1, 2).T
    unexplored = Unexplored(costs, strings)
    inside = costs <= cost
    assert unexplored.any(cost) == inside.any()
    each = np.exp2(np.minimum(strings, cost - costs)[inside])
    assert exp2(unexplored.log2_strings(cost)) == pytest.approx(each.sum(), rel=1e-9, abs=1e-9)


def test_a_bound_of_the_unexplored_keeps_its_digits_over_a_thousand_bits() -> None:
    costs = np.linspace(0.0, 3000.0, 2001)
    unexplored = Unexplored(costs, np.full(len(costs), 500.0))
    for cost in (0.0, 400.0, 499.9, 1500.0, 3000.0):
        each = np.minimum(500.0, cost - costs[costs <= cost])
        assert unexplored.log2_strings(cost) == pytest.approx(np.logaddexp2.reduce(each), abs=1e-9)


def test_an_estimate_without_draws_that_count_does_not_claim_the_highest_exposure() -> None:
    """Ten uniform draws of a billion, all costlier: one would have stood for 10^8 strings."""
    size, n = math.log2(1e9), 10
    frontier = {"frontier_log_perplexities": np.zeros(1), "frontier_log2_strings": np.array([size])}
    drawn = {"sample_log2_density": np.full(n, math.log2(n) - size), "log2_size": size}
    none = rank_of(25.0, **frontier, **drawn, sample_log_perplexities=np.full(n, 29.0))
    assert none.rank == pytest.approx(2**25, rel=1e-3)  # 1 / Pr(canary) at the most
    assert none.low == 1 and none.high <= 2**25 * 1.001
    costly = rank_of(40.0, **frontier, **drawn, sample_log_perplexities=np.full(n, 41.0))
    assert costly.rank == pytest.approx(1 + math.log(2) * 1e8)
    # Its p-value is that of a Monte Carlo test, (1 + k) / n with k = 0.
    assert costly.p_value == pytest.approx(1 / n, rel=1e-6)
    one = rank_of(
        40.0, **frontier, **drawn, sample_log_perplexities=np.array([39.0] + [41.0] * (n - 1))
    )
    assert one.rank == pytest.approx(1 + 1e8) and one.p_value == pytest.approx(2 / n, rel=1e-6)


@pytest.mark.slow
def test_p_values_of_random_strings_are_uniform_whatever_the_draws() -> None:
    """P(p <= alpha) <= alpha, for uniform draws from a space of which nothing was explored."""
    draw = np.random.default_rng(0)
    costs = np.sort(draw.normal(30, 3, 1000))
    for n in (5, 20, 100):
        p = []
        for _ in range(600):
            cost = costs[draw.integers(1000)]
            one = rank_of(
                cost,
                frontier_log_perplexities=np.zeros(1),
                frontier_log2_strings=np.array([math.log2(1000)]),
                sample_log_perplexities=draw.choice(costs, n),
                sample_log2_density=np.full(n, math.log2(n / 1000)),
                log2_size=math.log2(1000),
            )
            p.append(one.p_value)
        for alpha in (0.01, 0.05, 0.25):
            assert np.mean(np.array(p) <= alpha) <= alpha + 3.3 * math.sqrt(alpha / 600), (n, alpha)
