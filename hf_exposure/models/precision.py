"""How far costs of tokens may differ by rounding, in the numbers that a model computes with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_exposure.utils.arrays import Floats

_HALF = (torch.float16, torch.bfloat16)
_TRUSTED = dict.fromkeys(_HALF, 0.5)  # bits of one token; other types 0.01


def single(logits: torch.Tensor) -> torch.Tensor:
    """The same in single precision, or in double if that is what they are."""
    return logits.float() if logits.dtype in _HALF else logits


def precision_of(logits: torch.Tensor) -> torch.dtype:
    """The type of logits, or the shorter one that all of them come from: `autocast` and some
    models give back in single precision what they have computed in half."""
    for dtype in _HALF if logits.dtype == torch.float32 else ():
        if torch.equal(logits.to(dtype).float(), logits):
            return dtype
    return logits.dtype


def coarsest(model: Any, shown: torch.dtype, quantized: bool) -> torch.dtype:
    """The coarsest numbers that a model computes with, as far as its modules and its logits, which
    are `shown`, tell. Weights of 8 and 4 bits are exact, what they are multiplied with is not: that
    is taken for bfloat16 if they do not say it."""
    kinds, told = {shown}, False
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if weight.dtype.itemsize > 1:
                kinds.add(weight.dtype)
                continue
            kinds.add(getattr(module, "compute_dtype", None) or torch.bfloat16)
            told = True
    if quantized and not told:
        kinds.add(torch.bfloat16)
    return max((k for k in kinds if k.is_floating_point), key=lambda k: torch.finfo(k).eps)


def agree(costs: Floats, truth: Floats, dtype: torch.dtype) -> bool:
    """Whether the costs of tokens differ by no more than rounding in `dtype` explains."""
    with np.errstate(invalid="ignore"):
        allowed = _TRUSTED.get(dtype, 0.01) + 8 * torch.finfo(dtype).eps * np.abs(truth)
    return bool((np.abs(difference(costs, truth)) <= allowed).all())


def difference(costs: Floats, truth: Floats) -> Floats:
    """costs - truth; none where both are infinite, as for a token of probability 0."""
    with np.errstate(invalid="ignore"):
        return np.where(costs == truth, 0.0, costs - truth)


def largest_difference(costs: Floats, truth: Floats) -> float:
    """The largest difference in bits between the costs of tokens."""
    return float(np.abs(difference(costs, truth)).max(initial=0.0))


def rounding(costs: Floats, dtype: torch.dtype) -> float:
    """Bits by which the cost of a token may move when a number in `dtype` is rounded the other
    way, about. That is rare where only some numbers are in it, so that a few paths may not show
    it."""
    largest = float(costs[np.isfinite(costs)].max(initial=0.0))
    return torch.finfo(dtype).eps / 8 * largest
