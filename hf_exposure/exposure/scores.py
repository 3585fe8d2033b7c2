"""Scores that tell members from others, each a formula over the signals of a text's tokens.

Of every score more speaks for a text that was trained on. Log-probabilities are in bits.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hf_exposure.models.continuations import TokenSignals
from hf_exposure.models.precision import difference
from hf_exposure.utils.arrays import Floats

SCORES = ("log_perplexity", "ratio", "min_k", "min_k_plus_plus", "zlib")  # of a canary
LEAST = 20.0  # % of the tokens that Min-K% looks at
_FLAT = 1e-8  # nats; a model that is sure of the next token has no spread to divide by
_FEWEST = 2  # tokens that have to be mispredicted


def min_k(log_probs: Floats, k: float = LEAST) -> float:
    """Min-K% (Shi et al. 2024, arXiv 2310.16789): the mean of the k % smallest, at least one."""
    if not len(log_probs):
        return math.nan
    count = max(1, math.ceil(len(log_probs) * k / 100))
    return float(np.mean(np.partition(log_probs, count - 1)[:count]))


def min_k_plus_plus(found: TokenSignals, k: float = LEAST) -> float:
    """Min-K%++ (Zhang et al. 2024, arXiv 2404.02936): the same of log-probabilities in units of
    their standard deviation under the model's own distribution, from their mean there."""
    spreads = np.maximum(found.spreads, _FLAT / math.log(2))
    return min_k((found.means - found.bits) / spreads, k)


def error_zone(found: TokenSignals, base: TokenSignals) -> float:
    """The error-zone score of EZ-MIA (Ilić et al. 2026, arXiv 2601.12104).

    At the tokens that greedy decoding gets wrong: the sum of what the log-probabilities have gained
    from the base model over the sum of what they have lost. 0, as in the authors' code, if fewer
    than two tokens are wrong, or none of them has lost.
    """
    wrong = found.greedy != found.tokens
    if wrong.sum() < _FEWEST:
        return 0.0
    gained = difference(base.bits, found.bits)[wrong]
    lost = -gained[gained < 0].sum()
    return float(gained[gained > 0].sum() / lost) if lost > 0 else 0.0


def zlib_bits(text: str) -> float:
    """Bits that zlib needs for a text."""
    return 8.0 * len(zlib.compress(text.encode()))


def ranked_by(settings: Mapping[str, Any]) -> str:
    """What a measurement has ranked its canaries by: "log-perplexity", "ratio", "min_k less the
    base model's".

    Args:
        settings: those that its result has.
    """
    score = str(settings.get("score", "log_perplexity"))
    less = settings.get("base") is True and score != "ratio"
    return score.replace("log_perplexity", "log-perplexity") + " less the base model's" * less
