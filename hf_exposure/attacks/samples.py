"""What follows from the probability that one sample is a certain text, for many samples."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from hf_exposure.utils.arrays import Floats

_LN2 = math.log(2)


def log2_extractable(log2_p: ArrayLike, n: ArrayLike) -> Floats:
    """log2 of 1 - (1 - p)^n: the probability that at least one of n samples is the suffix.

    Hayes et al. 2024, section 3: a suffix is (n, p)-discoverably extractable if that is at least p.

    Args:
        log2_p: log2 of the probability that one sample is it; -inf if it cannot be.
        n: how many samples are drawn, above 0. Both may be arrays, which are broadcast.

    Example:
        >>> f"{2 ** float(log2_extractable(math.log2(1e-20), 1e6)):.9g}"
        '1e-14'
        >>> float(log2_extractable(-10_000.0, 2.0**64))  # far below the smallest float
        -9936.0
    """
    log_n = np.log(np.asarray(n, dtype=float))
    with np.errstate(divide="ignore", over="ignore"):
        log_x = log_n + _log_hazard(log2_p)  # (1 - p)^n = e^-x
        x = np.exp(log_x)
        small = np.log(-np.expm1(-np.minimum(x, 1.0)))
        out = np.where(x > 1, np.log1p(-np.exp(-x)), np.where(log_x < -100, log_x, small))
    return np.asarray(out / _LN2)


def log2_queries(log2_p: ArrayLike, p: ArrayLike) -> Floats:
    """log2 of the number of samples after which the suffix has come out with probability p.

    It is the n with 1 - (1 - p_z)^n = p, so log(1 - p) / log(1 - p_z) for the p_z of one sample;
    not rounded, and less than 1 where a single sample is more likely than p. Infinite if a sample
    cannot be the suffix.

    Args:
        log2_p: log2 of p_z.
        p: between 0 and 1. Both may be arrays, which are broadcast.

    Example:
        >>> round(float(2 ** log2_queries(math.log2(0.001), 0.5)), 1)
        692.8
    """
    p = np.asarray(p, dtype=float)
    if not ((p > 0) & (p < 1)).all():
        raise ValueError("log2_queries: p must lie between 0 and 1, such as 0.5")
    return np.asarray((np.log(-np.log1p(-p)) - _log_hazard(log2_p)) / _LN2)


def _log_hazard(log2_p: ArrayLike) -> Floats:
    """log(-log(1 - p)): infinite for p = 1, and log p where p is tiny."""
    log_p = np.minimum(np.asarray(log2_p, dtype=float), 0.0) * _LN2
    with np.errstate(divide="ignore"):
        large = np.log(-np.log(-np.expm1(np.maximum(log_p, -1.0))))
        small = np.log(-np.log1p(-np.exp(np.clip(log_p, -100.0, -1.0))))
    return np.asarray(np.where(log_p > -1, large, np.where(log_p < -100, log_p, small)))
