"""What was found out about a format, with figures in the steps of `hf_exposure.exposure.steps`."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.skew_normal import SkewNormal
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.words import digits

_APART = 100  # references are kept if the space is so many times larger: few of them are canaries


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
    return replace(details.coarse(), references=references, fit=fit)


def _decimals(references: Floats, exposures: list[Exposure]) -> int:
    """One, and of costs by another score, which may all lie within a tenth, two of their spread."""
    finite = references[np.isfinite(references)]
    spread = float(np.std(finite)) if len(finite) else 0.0
    if all(one.cost is None for one in exposures) or spread == 0:
        return 1
    return max(1, 1 - math.floor(math.log10(spread)))
