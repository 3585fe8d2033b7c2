"""Figures as they are shown and shared: coarse enough not to point at a secret.

Who has the model can compute the log-perplexity and the rank of every string of a secret space, so
a figure to the last digit is as good as the secret. What leaves without `reveal` is given in steps
that hold many strings each:

- exposures in steps of 0.1 bit, wider among the most likely 1,024 strings: 0.5 bits from rank 256,
  1 bit from 64, and then the ranks from 16 to 64 and from 2 to 16 together. Rank 1 is told: the
  model itself tells it;
- ranks follow from exposures, and p-values have the same steps;
- log-perplexities in whole bits, and not at all (NaN) where a rank below 1,024 is possible, since
  strings are far apart there; for a certain rank 1 in steps of 0.1 bit;
- token-forwards with two digits: how far a search went tells where it ended.

Made coarse once more, a figure stays what it is.
"""

from __future__ import annotations

import math

from hf_exposure.exposure.estimators import exp2
from hf_exposure.utils.words import digits

FIRST = math.log2(1.5)  # log2 of a rank below which it is 1
COARSE = 0.1  # bits: the ends of intervals may lie so far within what they stand for
FINE = 10.0  # log2 of the rank from which exposures are given in steps of 0.1 bit
_STEPS = ((8.0, 0.5), (6.0, 1.0), (4.0, 2.0))  # from this log2 of the rank on, so wide


def coarse_bits(bits: float, most: float) -> float:
    """An exposure: the middle of its step."""
    log2_rank = most - bits
    if log2_rank < FIRST:
        return round(most, 1)
    if log2_rank >= FINE - 1e-6:
        return max(0.0, min(round(bits, 1), _down(most - FINE)))
    begin, width = _step(log2_rank)
    return max(0.0, round(most - begin - width / 2, 1))


def coarse_end(bits: float, most: float, side: int) -> float:
    """The end of an interval of exposures, moved out to the end of its step.

    A tenth of a bit inside it, rather, so that it would stay in the same step.
    """
    bits = max(0.0, bits)  # an interval of one's own may be open
    log2_rank = most - bits
    if log2_rank < FIRST:
        return round(most, 1)
    if log2_rank >= FINE - 1e-6:
        out = _down(bits) if side < 0 else -_down(-bits)
        return max(0.0, min(out, _down(most - FINE)))
    begin, width = _step(log2_rank)
    out = _down(most - begin) if side > 0 else _down(most - begin - width) + 0.1
    return max(0.0, round(out, 1))


def coarse_rank(bits: float, most: float) -> float:
    """A rank as it follows from an exposure."""
    return 1.0 if most - bits < FIRST else digits(exp2(most - bits))


def coarse_cost(log_perplexity: float) -> float:
    """A log-perplexity alone, in bits: the upper end of a step, so that bounds stay bounds."""
    if not math.isfinite(log_perplexity):
        return log_perplexity
    return max(4.0, float(math.ceil(log_perplexity - 1e-6)))


def _step(log2_rank: float) -> tuple[float, float]:
    """Where a step among the most likely strings begins, in log2 of the rank, and its width."""
    for begin, width in _STEPS:
        if log2_rank >= begin - 1e-6:
            return begin + width * math.floor((log2_rank - begin + 1e-6) / width), width
    return 1.0, 3.0


def _down(bits: float) -> float:
    return math.floor(bits * 10 + 1e-6) / 10
