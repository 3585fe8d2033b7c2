"""From log-perplexities to ranks and exposures: the formulas, each with its interval.

Knows no model and no tokens. Costs are log-perplexities in bits; what may be as large as the secret
space is held as its log2.

    weighted_rank       explored strings, and a weighted sample of the rest   our own estimator
    sampling_exposure   the place among uniform references                    the paper, section 4.3
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from hf_exposure.utils.arrays import Bools, Floats, Ints
from hf_exposure.utils.checks import check_number
from hf_exposure.utils.typed import typed

_NEAR = 10  # costlier strings that show how much one that was not drawn may weigh
_UNTOLD = 4.0  # bits by which one draw more would change an exposure that rests on none
_LN2 = math.log(2)


@dataclass(frozen=True)
class RankEstimate:
    """A rank among the strings of R, with its interval, as log2.

    Attributes:
        log2_rank: of the rank itself; ties count against the canary.
        log2_low, log2_high: its interval: the sampling error, and ties as the canary's or not.
        log2_upper_bound: no rank can be higher, whatever was drawn.
        ties: other strings of the same log-perplexity, explored or estimated.
        exact: nothing that may count was left unexplored.
        p_value: the probability that a string that was never trained on has such a rank or a
            lower one. Of an estimate with one draw more, as heavy as any, as usual for simulated
            ones: never 1 / |R| only because no draw happened to count.
    """

    log2_rank: float
    log2_low: float
    log2_high: float
    log2_upper_bound: float
    ties: int
    exact: bool
    p_value: float

    @property
    def rank(self) -> float:
        """The rank: whole if exact, infinite beyond 2^1024."""
        return self._plain(self.log2_rank)

    @property
    def low(self) -> float:
        """The lower end of its interval."""
        return self._plain(self.log2_low)

    @property
    def high(self) -> float:
        """The upper end of its interval."""
        return self._plain(self.log2_high)

    @property
    def upper_bound(self) -> float:
        """What it is at most."""
        return self._plain(self.log2_upper_bound)

    def _plain(self, log2_value: float) -> float:
        value = exp2(log2_value)
        return float(round(value)) if self.exact and value < 2**50 else value


def last_rank(strings: int) -> RankEstimate:
    """The rank of a string of probability 0 among `strings`: none is less likely, so it is last."""
    log2 = math.log2(strings)
    return RankEstimate(log2, log2, log2, log2, ties=0, exact=True, p_value=1.0)


class Unexplored:
    """How many strings may count under the prefixes that were met and not visited.

    A prefix of probability P has at most P / Pr(canary) strings as likely as the canary. Sorted and
    summed once, so that each of many canaries takes two searches.

    Args:
        log_perplexities: (f,) bits of the prefixes; finite.
        log2_strings: (f,) log2 of the number of strings under each.
    """

    def __init__(self, log_perplexities: Floats, log2_strings: Floats) -> None:
        in_order = np.sort(log_perplexities)
        whole = log_perplexities + log2_strings  # from here on, all strings under one may count
        order = np.argsort(whole, kind="stable")
        self._log_perplexities, self._whole = in_order, whole[order]
        # Sums run from the costliest on: what is taken off is then never larger by much.
        self._beyond = np.logaddexp2.accumulate(-in_order[::-1])[::-1]
        self._not_whole = np.logaddexp2.accumulate(-log_perplexities[order][::-1])[::-1]
        self._strings = np.logaddexp2.accumulate(log2_strings[order])

    def any(self, log_perplexity: float) -> bool:
        """Whether strings of at most this log-perplexity may be left."""
        return bool(len(self._log_perplexities)) and bool(
            self._log_perplexities[0] <= log_perplexity
        )

    def log2_strings(self, log_perplexity: float) -> float:
        """log2 of how many strings of at most this log-perplexity may be left: an upper bound."""
        within = int(np.searchsorted(self._log_perplexities, log_perplexity, "right"))
        whole = int(np.searchsorted(self._whole, log_perplexity, "right"))
        strings = float(self._strings[whole - 1]) if whole else -math.inf
        if within <= whole:
            return strings
        share = float(self._not_whole[whole])  # log2 of the probability of those within
        if within < len(self._log_perplexities):
            share += math.log2(max(-math.expm1((self._beyond[within] - share) * _LN2), 2.0**-52))
        return float(np.logaddexp2(strings, log_perplexity + share))


def weighted_rank(
    log_perplexity: float,
    found: Floats,
    unexplored: Unexplored,
    sample_log_perplexities: Floats,
    sample_log2_density: Floats,
    *,
    draws: Ints | None = None,
    groups: Ints | None = None,
    log2_size: float,
    tie: float,
    confidence: float,
    largest_log2_weight: float,
) -> RankEstimate:
    """The rank of a string from what was explored exactly and what was sampled of the rest.

        rank = 1 + found + sum over the sampled strings that count of draws(x) / g(x)

    It is unbiased: g(x) is how often x was to be drawn. But where no draw counts and one would have
    weighed far more than all that is known, the sum is taken to be the median of what it may be
    then, ln 2 times that weight: 0 would claim the highest exposure for want of draws. The
    interval is the gamma interval for weighted sums of Poisson counts (Fay and Feuer 1997,
    Statistics in Medicine 16), where a draw weighs as much as all strings that it brought.

    Args:
        log_perplexity: the string's, in bits.
        found: (m,) log-perplexities of explored strings, without those that must not count.
        unexplored: the prefixes that were not visited.
        sample_log_perplexities: (n,) of sampled strings, infinite for those that must not count.
        sample_log2_density: (n,) log2 of g(x), the number of times that x was to be drawn.
        draws: (n,) how often x was drawn; None: once each.
        groups: (n,) the same number for strings that the same draws brought; None: each its own.
        log2_size: log2 of the number of strings of R, without those that must not count.
        tie: log-perplexities closer than this count as equal.
        confidence: of the interval.
        largest_log2_weight: log2 of the largest 1 / g(x) that a draw that counts could have had.
    """
    known = 1 + int(np.sum(found <= log_perplexity + tie))
    known_below = 1 + int(np.sum(found < log_perplexity - tie))
    # All of R has at most 1 / Pr(canary) strings as likely as the canary.
    left = unexplored.log2_strings(log_perplexity + tie)
    upper = min(log2_size, log_perplexity + tie, float(np.logaddexp2(math.log2(known), left)))
    upper = max(upper, math.log2(known))

    def chance(log2_rank: float) -> float:
        return min(1.0, exp2(log2_rank - log2_size))

    if not unexplored.any(log_perplexity + tie):
        one, low = math.log2(known), math.log2(known_below)
        return RankEstimate(one, low, one, one, known - known_below, True, chance(one))
    counts = sample_log_perplexities <= log_perplexity + tie
    below = sample_log_perplexities < log_perplexity - tie
    if not len(sample_log_perplexities):
        low = math.log2(known_below)
        return RankEstimate(upper, low, upper, upper, known - known_below, False, chance(upper))
    times = np.ones(len(sample_log_perplexities), dtype=np.int64) if draws is None else draws
    group = np.arange(len(sample_log_perplexities)) if groups is None else groups

    def weighed(some: Bools) -> tuple[Floats, Ints]:
        """log2 of what one draw of each group weighs, and how many draws it had."""
        return _by_group(-sample_log2_density[some], times[some], group[some])

    weights, repeats = weighed(counts)
    weights_below, repeats_below = weighed(below)
    # A heavy string that counts may not have been drawn: what is a little costlier shows how
    # heavy such strings are.
    next_ones = np.sort(
        sample_log_perplexities[
            (sample_log_perplexities > log_perplexity + tie) & np.isfinite(sample_log_perplexities)
        ]
    )
    near = (next_ones[min(_NEAR, len(next_ones)) - 1] if len(next_ones) else log_perplexity) + tie
    heaviest = float(
        np.max(-sample_log2_density[sample_log_perplexities <= near], initial=-math.inf)
    )
    heaviest = min(heaviest, largest_log2_weight)
    _, most = _poisson_interval(weights, repeats, confidence, largest_log2_weight, heaviest)
    least, _ = _poisson_interval(weights_below, repeats_below, confidence, largest_log2_weight)
    one_more = heaviest if heaviest > -math.inf else largest_log2_weight
    counted = _log2_sum(math.log2(known), weights + np.log2(repeats))
    rank = min(counted, upper)
    if not len(weights) and one_more > counted + _UNTOLD:
        rank = min(float(np.logaddexp2(counted, one_more + math.log2(_LN2))), upper)
    tied = exp2(_log2_sum(-math.inf, weights + np.log2(repeats)))
    tied -= exp2(_log2_sum(-math.inf, weights_below + np.log2(repeats_below)))
    return RankEstimate(
        log2_rank=rank,
        log2_low=min(_log2_sum(math.log2(known_below), np.array([least])), rank),
        log2_high=max(min(_log2_sum(math.log2(known), np.array([most])), upper), rank),
        log2_upper_bound=upper,
        ties=known - known_below + (round(tied) if math.isfinite(tied) else 0),
        exact=False,
        p_value=chance(min(float(np.logaddexp2(counted, one_more)), upper)),
    )


def _by_group(log2_weights: Floats, draws: Ints, groups: Ints) -> tuple[Floats, Ints]:
    """Each group's sum of weights, as log2, and its number of draws."""
    if not len(groups):
        return log2_weights, draws
    _, first, place = np.unique(groups, return_index=True, return_inverse=True)
    unit = float(np.max(log2_weights))
    total = np.bincount(place, weights=np.exp2(np.maximum(log2_weights - unit, -1000)))
    return unit + np.log2(total), draws[first]


def _poisson_interval(
    log2_weights: Floats,
    draws: Ints,
    confidence: float,
    largest_log2_weight: float,
    heaviest: float = -math.inf,
) -> tuple[float, float]:
    """log2 of the ends of the gamma interval for a sum of weighted Poisson counts.

    With y the sum of the weights, v that of their squares and w the largest weight,

        low = v / 2y chi2(alpha/2; 2 y^2 / v),
        high = (v + w^2) / 2(y + w) chi2(1 - alpha/2; 2 (y + w)^2 / (v + w^2))

    (Fay and Feuer 1997, section 3), w of the draws or `heaviest`; without any draw y = v = 0.
    """
    alpha = 1.0 - confidence
    if not len(log2_weights):
        if math.isinf(largest_log2_weight):
            return -math.inf, math.inf
        return -math.inf, largest_log2_weight + math.log2(stats.chi2.ppf(1 - alpha / 2, 2) / 2)
    unit = max(float(np.max(log2_weights)), heaviest)
    weights = np.exp2(log2_weights - unit)  # in units of the largest one, so w = 1
    y, v = float(draws @ weights), float(draws @ np.square(weights))
    low = v / (2 * y) * stats.chi2.ppf(alpha / 2, 2 * y**2 / v)
    high = (v + 1) / (2 * (y + 1)) * stats.chi2.ppf(1 - alpha / 2, 2 * (y + 1) ** 2 / (v + 1))
    return (unit + math.log2(low) if low > 0 else -math.inf), unit + math.log2(high)


@dataclass(frozen=True)
class ExposureEstimate:
    """An exposure in bits with its interval, from references.

    Attributes:
        bits: the exposure.
        low, high: its interval.
        p_value: the probability of such an exposure, or a higher one, by chance.
        raw_bits: what the method itself gave, before it was held to 0 and log2 of the size of R.
    """

    bits: float
    low: float
    high: float
    p_value: float
    raw_bits: float


@typed
def sampling_exposure(
    log_perplexity: float,
    references: Floats,
    confidence: float = 0.95,
    tie: float = 0.0,
    *,
    log2_size: float = math.inf,
) -> ExposureEstimate:
    """Exposure by sampling: log2(n) - log2(1 + k), with k of n uniform references not costlier.

    The paper, section 4.3, as TensorFlow Privacy computes it; at most log2(n), whatever the truth.
    It is held to 0 and log2 of the size of R; `raw_bits` is not (a canary costlier than all
    references has log2(n) - log2(1 + n) < 0).
    The interval is Clopper and Pearson's for the share of R that is not costlier.

    Args:
        log_perplexity: the canary's, in bits.
        references: (n,) log-perplexities in bits of uniform draws from R.
        confidence: confidence level of the interval.
        tie: log-perplexities closer than this, in bits, count as equal, and widen the interval.
        log2_size: log2 of the size of R, the most that an exposure can be.

    Returns:
        The exposure in bits, with its interval and p-value.

    Raises:
        ValueError: there are no references.
    """
    check_number("sampling_exposure: tie", tie, 0, sys.float_info.max)
    check_number("sampling_exposure: log2_size", log2_size, least=0)
    references = np.asarray(references)
    n = len(references)
    if n == 0:
        raise ValueError("sampling: there are no references; draw at least one")
    k = int(np.sum(references <= log_perplexity + tie))
    below = int(np.sum(references < log_perplexity - tie))
    _, most = clopper_pearson(k, n, confidence)
    least, _ = clopper_pearson(below, n, confidence)
    raw = math.log2(n) - math.log2(1 + k)
    bits = min(max(raw, 0.0), log2_size)
    return ExposureEstimate(
        bits=bits,
        low=min(bits, _share_to_bits(most, log2_size)),
        high=max(bits, _share_to_bits(least, log2_size)),
        p_value=(1 + k) / (1 + n),
        raw_bits=raw,
    )


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934)."""
    alpha = 1 - confidence
    low = special.betaincinv(successes, trials - successes + 1, alpha / 2) if successes else 0.0
    last = successes == trials
    high = 1.0 if last else special.betaincinv(successes + 1, trials - successes, 1 - alpha / 2)
    return float(low), float(high)


def _share_to_bits(share: float, log2_size: float) -> float:
    """The exposure of a string that a share of the others in R is not costlier than."""
    return max(0.0, -math.log2(share + (1 - share) * exp2(-log2_size))) if share else log2_size


def exp2(log2_value: float) -> float:
    """2 to the power of a value; infinite where a float cannot hold it."""
    return 2.0**log2_value if log2_value < 1024 else math.inf


def _log2_sum(first: float, rest: Floats) -> float:
    """log2 of 2^first plus the sum of 2^rest."""
    return float(np.logaddexp2.reduce(np.append(rest, first)))
