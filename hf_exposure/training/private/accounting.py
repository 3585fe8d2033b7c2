"""What DP-SGD spends: epsilon of so many steps, and the noise that holds an epsilon.

The accountants are Opacus'.
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats

from hf_exposure.utils.checks import check_choice, check_count, check_number, check_share, kind_of
from hf_exposure.utils.typed import typed

ACCOUNTANTS = ("rdp", "prv")

# Renyi orders: Opacus' own, and larger ones, which are the best where there is much noise.
ORDERS: tuple[float, ...] = (
    *(1 + x / 10 for x in range(1, 100)),
    *range(11, 65),
    *(80, 96, 128, 192, 256, 384, 512, 768, 1024),
)
_COARSE, _FINE = 2e-2, 1e-3  # steps of privacy losses
_NO_GUARANTEE = 20.0  # an epsilon above it need not be told to a thousandth
_PRV_LIMIT = 50.0  # above it the numerical accountant needs gigabytes, for no guarantee at all
_MOST_ROWS, _MOST_STEPS = 10_000, 10**7  # of a group, within seconds
_LEAST_NOISE, _MOST_NOISE = 1e-5, 1e5  # that are looked for to hold an epsilon
_CLOSE = 1e-3  # how near to the least noise, as a share of it

# (noise multiplier, sampling rate, steps), in the order in which they were taken
Spent = Sequence[tuple[float, float, int]]


def _check_spent(what: str, spent: Spent) -> None:
    """Raise where the stretches of a training are none."""
    if isinstance(spent, (str, bytes, Mapping)) or not isinstance(spent, Collection):
        raise TypeError(
            f"{what} must be a list of (noise multiplier, sampling rate, steps), "
            f"not {kind_of(spent)}"
        )
    for entry in spent:
        if not isinstance(entry, (tuple, list)) or len(entry) != 3:
            raise ValueError(
                f"{what} has an entry that is not (noise multiplier, sampling rate, steps)"
            )
        noise, rate, steps = entry
        check_number(f"{what}: the noise multiplier", noise, least=0)
        check_number(f"{what}: the sampling rate", rate, 0, 1)
        check_count(f"{what}: steps", steps, least=0)


@typed
def spent_epsilon(spent: Spent, delta: float, accountant: str = "rdp") -> float:
    """The epsilon of steps of DP-SGD, at a delta.

    Poisson-sampled Gaussian mechanisms, composed; neighbours differ by one row that is there or
    not. "rdp": Mironov, Talwar, Zhang 2019, "Renyi Differential Privacy of the Sampled Gaussian
    Mechanism", section 3.3, converted as Canonne, Kamath, Steinke 2020, Proposition 12. "prv":
    Gopi, Lee, Wutschitz 2021, "Numerical Composition of Differential Privacy", its upper end.

    Args:
        spent: (noise multiplier, sampling rate, steps) of each stretch of the training.
        delta: between 0 and 1.
        accountant: "rdp" or "prv".

    Returns:
        0 if there are no steps, infinity if any had no noise.

    Raises:
        ImportError: Opacus is not installed.
        TypeError: an entry of `spent` is no number.
        ValueError: a value is out of range.

    Example:
        >>> round(spent_epsilon([(1.0, 0.01, 1000)], delta=1e-5), 3)
        2.101
    """
    _check_spent("spent_epsilon: spent", spent)
    check_share("spent_epsilon: delta", delta)
    check_choice("spent_epsilon: accountant", accountant, ACCOUNTANTS)
    return _epsilon(tuple((float(s), float(q), int(n)) for s, q, n in spent), delta, accountant)


@functools.lru_cache(maxsize=1024)
def _epsilon(spent: tuple[tuple[float, float, int], ...], delta: float, accountant: str) -> float:
    spent = tuple(entry for entry in spent if entry[2] > 0)
    if not spent:
        return 0.0
    if any(noise == 0 for noise, _, _ in spent):
        return math.inf
    total = np.sum([np.array(_renyi(noise, rate)) * steps for noise, rate, steps in spent], axis=0)
    orders = np.array(ORDERS)
    found = total + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    epsilon = max(0.0, float(found.min()))
    if accountant == "rdp" or epsilon > _PRV_LIMIT:
        return epsilon
    # Both are upper bounds; with few steps the numerical one may be the looser.
    numerical = opacus("accountants").create_accountant(mechanism="prv")
    numerical.history = list(spent)
    with warnings.catch_warnings():  # of logarithms of 0, and of orders that it tries on its way
        warnings.simplefilter("ignore")
        return min(epsilon, max(0.0, float(numerical.get_epsilon(delta=delta))))


@functools.lru_cache(maxsize=256)
def _renyi(noise: float, rate: float) -> tuple[float, ...]:
    """The divergence of one step, for each of ORDERS."""
    analysis = opacus("accountants.analysis.rdp")
    found = analysis.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=list(ORDERS))
    return tuple(float(value) for value in found)


@typed
def noise_for_epsilon(
    target_epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    accountant: str = "rdp",
    spent: Spent = (),
) -> float:
    """The least noise multiplier with which `steps` steps spend no more than `target_epsilon`.

    Args:
        spent: what earlier steps have spent of it.

    Returns:
        To a thousandth of itself, on the safe side.

    Raises:
        TypeError: an entry of `spent` is no number.
        ValueError: a value is out of range, or no noise is enough, as earlier steps have spent it
            all.
    """
    what = "noise_for_epsilon"
    check_number(f"{what}: target_epsilon", target_epsilon, 0, math.inf, open_ends=True)
    check_share(f"{what}: delta", delta)
    check_number(f"{what}: sampling_rate", sampling_rate, math.ulp(0.0), 1)
    check_count(f"{what}: steps", steps, least=1)
    check_choice(f"{what}: accountant", accountant, ACCOUNTANTS)
    _check_spent(f"{what}: spent", spent)

    def beyond(log_noise: float, method: str) -> float:
        """How far the target is exceeded, as a logarithm: nearly straight in that of the noise."""
        after = [*spent, (math.exp(log_noise), sampling_rate, steps)]
        return math.log(max(spent_epsilon(after, delta, method) / target_epsilon, 1e-9))

    low, high = math.log(_LEAST_NOISE), math.log(_MOST_NOISE)
    if beyond(high, accountant) > 0:
        raise ValueError(
            f"noise_for_epsilon: target_epsilon={target_epsilon} cannot be held with {steps} more "
            f"steps at delta={delta}: {spent_epsilon(spent, delta, accountant):.4g} is spent "
            "already; allow more, or take fewer steps"
        )
    for method in dict.fromkeys(("rdp", accountant)):
        if method == "prv":  # dear, and a little below what the other one has found
            low = high - 0.1
            while beyond(low, method) <= 0:
                low, high = 2 * low - high, low
        if beyond(low, method) <= 0:
            return math.exp(low)
        high = optimize.brentq(beyond, low, high, args=(method,), xtol=_CLOSE / 2)
        while beyond(high, method) > 0:
            high += _CLOSE / 2
    return math.exp(high)


@typed
def group_epsilon(spent: Spent, delta: float, rows: int) -> float:
    """The epsilon of several rows together, such as those in which one secret stands.

    At the same delta it is more than `rows` times that of one row. Each row is in a batch by a coin
    of its own, so that a step moves by Binomial(rows, rate) norms at most: a mixture of Gaussians
    (Choquette-Choo, Ganesh, Steinke, Thakurta 2024, "Privacy Amplification for Matrix Mechanisms",
    section 4), composed by dp-accounting's privacy loss distributions, which round up.

    Args:
        spent: (noise multiplier, sampling rate, steps) of each stretch of the training.
        delta: between 0 and 1.
        rows: how many, at most 10,000.

    Returns:
        Infinity where a single row spends more than 50, which is no guarantee for one. Above 20
        it is rounded up more coarsely.

    Raises:
        ImportError: dp-accounting or Opacus is not installed.
        TypeError: an entry of `spent` is no number.
        ValueError: a value is out of range.

    Example:
        >>> round(group_epsilon([(5.0, 0.1, 10)], delta=1e-4, rows=4), 2)
        0.87
    """
    _check_spent("group_epsilon: spent", spent)
    check_share("group_epsilon: delta", delta)
    check_count("group_epsilon: rows", rows, 1, _MOST_ROWS)
    one = spent_epsilon(spent, delta)
    if one > _PRV_LIMIT:
        return math.inf
    several = 0.0
    for interval in (_COARSE, _FINE):
        several = _group_epsilon(spent, delta, rows, interval)
        if several > _NO_GUARANTEE:
            break
    return max(one, several)


def _group_epsilon(spent: Spent, delta: float, rows: int, interval: float) -> float:
    """The same by losses that are rounded up to multiples of `interval`."""
    distributions = _extra("dp_accounting.pld.privacy_loss_distribution")
    total = None
    for noise, rate, steps in (entry for entry in spent if entry[2] > 0):
        taken = stats.binom.pmf(np.arange(rows + 1), rows, rate)
        check_count("group_epsilon: spent: steps", steps, most=_MOST_STEPS)
        step = distributions.from_mixture_gaussian_mechanism(
            min(noise, 1e4),  # more would spend no more, and takes far longer
            [float(count) for count in range(rows + 1)],
            taken.tolist(),
            value_discretization_interval=interval,
        ).self_compose(steps)
        total = step if total is None else total.compose(step)
    return 0.0 if total is None else float(total.get_epsilon_for_delta(delta))


def opacus(module: str) -> Any:
    """A module of Opacus, which is an extra."""
    return _extra(f"opacus.{module}")


def _extra(module: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        name = {"opacus": "Opacus"}.get(module.partition(".")[0], "dp-accounting")
        raise ImportError(
            f'hf_exposure.training.private.trainer needs {name}: pip install "hf-exposure[private]"'
        ) from error
