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
from dataclasses import replace

import numpy as np

from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.estimators import exp2
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.skew_normal import SkewNormal
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.words import digits, rounded

FIRST = math.log2(1.5)  # log2 of a rank below which it is 1
FINE = 10.0  # log2 of the rank from which exposures are given in steps of 0.1 bit
_STEPS = ((8.0, 0.5), (6.0, 1.0), (4.0, 2.0))  # from this log2 of the rank on, so wide
_FEW = 16
_APART = 100  # references are kept if the space is so many times larger: few of them are canaries


def coarse_exposure(one: Exposure) -> Exposure:
    """An exposure with figures that many strings of the space share, or that of rank 1."""
    most = one.canary.format.bits
    bits, low, high = _bits(one.bits, most), _end(one.low, most, -1), _end(one.high, most, 1)
    if one.low == one.bits == one.high and most - bits >= FINE:
        low = high = bits  # the rank is known, and its step is all that is not
    elif one.low == one.bits == one.high and most - one.bits > FIRST:
        low, high = min(low, bits), max(high, bits)
    first = most - one.bits < FIRST
    certain = first and (one.exact or most - one.certified < FIRST)
    if certain:
        certified = bits
    elif one.exact:
        certified = low
    else:
        certified = max(0.0, float(math.floor(min(one.certified, most - FINE) + 1e-6)))
    log_perplexity = one.log_perplexity
    if math.isfinite(log_perplexity) and not certain:
        apart = most - one.high < FINE - 1e-6
        log_perplexity = math.nan if apart else float(round(log_perplexity))
    elif certain:
        log_perplexity = round(log_perplexity, 1)
    unlikely = -math.log2(max(one.p_value, 1e-300))
    chance = _bits(unlikely, most) if most - unlikely >= FINE else _end(unlikely, most, -1)
    return replace(
        one,
        bits=bits,
        low=low,
        high=high,
        rank=_rank(bits, most),
        rank_low=_rank(high, most),
        rank_high=_rank(low, most),
        certified=certified,
        ties=0 if one.ties < _FEW else 1 << (one.ties.bit_length() - 1),
        log_perplexity=log_perplexity,
        p_value=digits(exp2(-chance), 4),
        raw_bits=None if one.raw_bits is None else bits,
        cost=None if one.cost is None else math.nan,
    )


def coarse_cost(log_perplexity: float) -> float:
    """A log-perplexity alone, in bits: the upper end of a step, so that bounds stay bounds."""
    if not math.isfinite(log_perplexity):
        return log_perplexity
    return max(4.0, float(math.ceil(log_perplexity - 1e-6)))


def coarse_details(details: FormatDetails, exposures: list[Exposure]) -> FormatDetails:
    """What was found out about a format, made coarse.

    References without the inserted canaries would tell by what is missing: if they are the whole
    space, the canaries are put back among them; if the canaries are a good part of it, references
    are left out.

    Args:
        exposures: those of the format's canaries, not made coarse.
    """
    references, fit = details.references, details.fit
    size = exposures[0].canary.format.size if exposures else math.inf
    if references is not None and len(references):
        if details.whole_space:
            own = [one.ranked_by for one in exposures if one.canary.inserted]
            full = len(references) >= size or any(map(math.isnan, own))
            references = references if full else np.append(references, own)
        elif size < _APART * len(references):
            references, fit = None, None
    if references is not None:
        references = np.sort(np.round(references, _decimals(references, exposures)))
    if fit is not None and references is not None:
        shape, loc, scale, ks = (digits(x, 3) for x in (fit.shape, fit.loc, fit.scale, fit.ks))
        finite = references[np.isfinite(references)]
        fit = SkewNormal(shape=shape, loc=loc, scale=scale, ks=ks, references=finite)
    estimate, uniform = details.exact_forwards_estimate, details.uniform_bits
    return replace(
        details,
        forwards=rounded(details.forwards),
        noise_bits=digits(details.noise_bits, 1),
        tie_bits=digits(details.tie_bits, 1),
        uniform_bits=None if uniform is None else digits(uniform),
        explored=None if details.explored is None else rounded(details.explored),
        exact_forwards_estimate=None if estimate is None else rounded(estimate),
        references=references,
        fit=fit,
    )


def _decimals(references: Floats, exposures: list[Exposure]) -> int:
    """One, and of costs by another score, which may all lie within a tenth, two of their spread."""
    finite = references[np.isfinite(references)]
    spread = float(np.std(finite)) if len(finite) else 0.0
    if all(one.cost is None for one in exposures) or spread == 0:
        return 1
    return max(1, 1 - math.floor(math.log10(spread)))


def _bits(bits: float, most: float) -> float:
    """An exposure: the middle of its step."""
    log2_rank = most - bits
    if log2_rank < FIRST:
        return round(most, 1)
    if log2_rank >= FINE - 1e-6:
        return max(0.0, min(round(bits, 1), _down(most - FINE)))
    begin, width = _step(log2_rank)
    return max(0.0, round(most - begin - width / 2, 1))


def _end(bits: float, most: float, side: int) -> float:
    """The end of an interval of exposures, moved out to the end of its step.

    A tenth of a bit inside it, rather, so that it would stay in the same step.
    """
    log2_rank = most - bits
    if log2_rank < FIRST:
        return round(most, 1)
    if log2_rank >= FINE - 1e-6:
        out = _down(bits) if side < 0 else -_down(-bits)
        return max(0.0, min(out, _down(most - FINE)))
    begin, width = _step(log2_rank)
    out = _down(most - begin) if side > 0 else _down(most - begin - width) + 0.1
    return max(0.0, round(out, 1))


def _step(log2_rank: float) -> tuple[float, float]:
    """Where a step among the most likely strings begins, in log2 of the rank, and its width."""
    for begin, width in _STEPS:
        if log2_rank >= begin - 1e-6:
            return begin + width * math.floor((log2_rank - begin + 1e-6) / width), width
    return 1.0, 3.0


def _down(bits: float) -> float:
    return math.floor(bits * 10 + 1e-6) / 10


def _rank(bits: float, most: float) -> float:
    return 1.0 if most - bits < FIRST else digits(exp2(most - bits))
