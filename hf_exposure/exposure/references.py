"""The paper's two estimators: where canaries stand among uniform references (sections 4.2 to 4.4).

They ask a model for nothing but log-perplexities, so any `Scorer` will do.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np

from hf_exposure.canaries.canary import Canary
from hf_exposure.exposure.details import FormatDetails, GroupResult
from hf_exposure.exposure.estimators import (
    RankEstimate,
    Unexplored,
    sampling_exposure,
    weighted_rank,
)
from hf_exposure.exposure.planning import Group, Settings
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.skew_normal import SkewNormal, skewnorm_exposure
from hf_exposure.models.causal import CausalModel
from hf_exposure.models.next_tokens import NextTokens
from hf_exposure.tree.scoring import Scorer
from hf_exposure.utils.arrays import Floats


def by_references(
    scorer: Scorer,
    canaries: list[Canary],
    log_perplexities: Floats,
    tie: float,
    settings: Settings,
    before: str = "",
) -> GroupResult:
    """Exposures by `settings.method`, "sampling" or "skewnorm".

    A space no larger than the sample is taken whole, and then "sampling" gives the exact rank; so
    does "skewnorm" where fewer than 10 strings are left for a fit.

    Args:
        canaries: of one format.
        log_perplexities: (m,) their log-perplexities in bits, by the same scorer.
        tie: log-perplexities closer than this count as equal.
        before: text before the template.
    """
    fmt = canaries[0].format
    inserted = {canary.secret for canary in canaries if canary.inserted}
    whole = fmt.size <= settings.samples
    drawn = list(fmt.enumerate()) if whole else fmt.sample(settings.samples, settings.seed)
    secrets = [secret for secret in drawn if secret not in inserted]
    references = scorer.log_perplexities(fmt, secrets, before) if secrets else np.zeros(0)
    fit = None
    finite = references[np.isfinite(references)]
    # A space of a handful of strings needs no fit: it is known whole.
    if settings.method == "skewnorm" and not (whole and len(finite) < 10):
        fit = SkewNormal.fit(finite)
    names, times = np.array(secrets, dtype=object), Counter(drawn)
    out = []
    for canary, log_perplexity in zip(canaries, log_perplexities.tolist(), strict=True):
        others = references[names != canary.secret]
        if not whole:
            # A draw of the canary itself is one of R like any other, and ties with it: without it
            # p-values would come out too small in small spaces.
            others = np.append(others, np.full(times[canary.secret], log_perplexity))
        if fit is not None:
            estimate = skewnorm_exposure(log_perplexity, fit, fmt.bits, settings.confidence)
        elif whole:
            out.append(
                Exposure.of_rank(
                    canary, log_perplexity, _whole_rank(log_perplexity, others, tie), "sampling"
                )
            )
            continue
        else:
            estimate = sampling_exposure(
                log_perplexity, others, settings.confidence, tie, log2_size=fmt.bits
            )
        ties = int(np.sum((others <= log_perplexity + tie) & (others >= log_perplexity - tie)))
        out.append(Exposure.of_estimate(canary, log_perplexity, estimate, ties, settings.method))
    return GroupResult(out, FormatDetails(references=references, whole_space=whole, fit=fit))


def tie_of(noise: float, costs: Floats) -> float:
    """Costs closer than this are equal, as far as can be told."""
    # Single precision keeps 24 bits of each log-probability, whatever was seen of the noise.
    largest = float(np.abs(costs[np.isfinite(costs)]).max(initial=0.0))
    return max(4 * noise, 2.0**-20 * max(largest, 1.0))


def noise_of(costs: Floats, again: Floats) -> float:
    """The largest difference between (n,) costs and the same scored again, infinite ones apart."""
    finite = np.isfinite(costs) & np.isfinite(again)
    return float(np.abs(costs[finite] - again[finite]).max(initial=0.0))


def with_tree(
    measured: GroupResult, group: Group, model: CausalModel | NextTokens, noise: float, tie: float
) -> GroupResult:
    """The same with what is known of a group's tree, and of its scoring."""
    tree, length = group.tree, float(np.mean(list(map(len, group.paths))))
    details = replace(
        measured.details,
        noise_bits=noise,
        tie_bits=tie,
        uniform_bits=math.log2(model.vocabulary) * length,
        paths=tree.way,
        false_share=tree.false_share,
        prompt_tokens=len(tree.prompt),
        batch_size=model.batch_size,
        halved=model.halved,
    )
    return replace(measured, details=details)


def _whole_rank(log_perplexity: float, others: Floats, tie: float) -> RankEstimate:
    """The rank among all other strings of R."""
    nothing = np.zeros(0)
    return weighted_rank(
        log_perplexity,
        others,
        Unexplored(nothing, nothing),
        nothing,
        nothing,
        tie=tie,
        confidence=0.95,
        log2_size=math.log2(1 + len(others)),
        largest_log2_weight=math.inf,
    )
