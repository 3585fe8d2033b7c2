"""Ranks of canaries in their secret space, by exploring the token tree and sampling the rest.

One exploration and one sample serve all canaries of a group: those that share a format and a
context.
"""

from __future__ import annotations

import math

import numpy as np

from hf_exposure.exposure.details import FormatDetails, GroupResult
from hf_exposure.exposure.draws import Sampled, sample
from hf_exposure.exposure.estimators import RankEstimate, Unexplored, last_rank, weighted_rank
from hf_exposure.exposure.exploring import Explored, explore
from hf_exposure.exposure.planning import Group, Settings
from hf_exposure.exposure.records import Exposure
from hf_exposure.tree.scoring import ScoredTree
from hf_exposure.utils.arrays import Bools, Floats
from hf_exposure.utils.warn import warn

_PILOT = 120  # draws that estimate how many prefixes an exact rank has to visit
_FEWEST = 20  # draws; what a budget has left for fewer gives no estimate worth the name
_MANY = 10**7  # forwards that are worth a warning before they are begun


def by_tree(
    scored: ScoredTree,
    group: Group,
    log_perplexities: Floats,
    tie: float,
    settings: Settings,
) -> GroupResult:
    """`auto` and `exact`: explore, and sample what is left unless all is certain."""
    bound = float(log_perplexities[np.isfinite(log_perplexities)].max(initial=-math.inf)) + tie
    depth = float(np.mean([len(path) for path in group.paths]))
    exact, unfinished = settings.method == "exact", ""
    needed: float | None = None
    if exact and math.isfinite(bound):
        root = explore(scored, bound, group.paths, max_forwards=1)
        needed = 0.0 if root.complete else sample(scored, root, _PILOT, settings.seed).inner
        if needed > 2 * scored.room:
            exact = False
            unfinished = f"it would take about {needed:.2g} token-forwards"
        elif needed > _MANY and math.isinf(scored.room):
            warn(
                f"measure_exposure: method='exact' will take about {needed:.2g} token-forwards; "
                "set max_forwards, or use method='auto'",
            )
    before = scored.forwards
    budget = scored.room if exact else _share_to_explore(scored, settings, depth)
    explored = explore(scored, bound, group.paths, max_forwards=budget, depth_first=exact)
    visited = scored.forwards - before
    if exact and not explored.complete:
        unfinished = f"{visited} prefixes were visited before it ran out"

    sampled: Sampled | None = None
    n = settings.samples
    if math.isfinite(scored.room):
        longest = max(len(path) for path in group.paths)
        n = min(n, max(settings.min_samples, int(scored.room / longest)))
        n = n if n >= min(_FEWEST, settings.samples) else 0
    if not explored.complete and n > 0:
        sampled = sample(scored, explored, n, settings.seed, log_perplexities)
    controls = np.array([not canary.inserted for canary in group.canaries])
    estimates = ranks(
        scored, explored, sampled, log_perplexities, controls, tie, settings.confidence
    )
    method = "exact" if settings.method == "exact" and not unfinished else "auto"
    return GroupResult(
        [
            Exposure.of_rank(canary, float(log_perplexity), estimate, method)
            for canary, log_perplexity, estimate in zip(
                group.canaries, log_perplexities, estimates, strict=True
            )
        ],
        FormatDetails(
            explored=visited,
            exact_forwards_estimate=None if needed is None else round(needed),
            samples=None if explored.complete else n,
        ),
        unfinished,
    )


def _share_to_explore(scored: ScoredTree, settings: Settings, depth: float) -> float:
    """Forwards to explore with: a third of what is there, or more where sampling leaves some."""
    if math.isinf(scored.room):
        return float(max(settings.samples, 100))
    sampling = settings.samples * depth
    return max(scored.room / 3, scored.room - sampling)


def ranks(
    scored: ScoredTree,
    explored: Explored,
    sampled: Sampled | None,
    log_perplexities: Floats,
    controls: Bools,
    tie: float,
    confidence: float,
) -> list[RankEstimate]:
    """The rank of each canary of the group.

    The canaries' own log-perplexities are known, so they are left out of what was explored and
    sampled, and the controls, which are ordinary strings of R, are put back one by one. The
    inserted ones do not count for each other.

    Args:
        log_perplexities: (m,) the canaries' log-perplexities.
        controls: (m,) which of them were never inserted.
        tie: log-perplexities closer than this count as equal.
    """
    frontier = explored.frontier
    unexplored = Unexplored(frontier.log_perplexities, scored.tree.log2_counts[frontier.states])
    inserted = int(np.sum(~controls))
    out = []
    for place in range(len(log_perplexities)):
        others = controls.copy()
        others[place] = False
        strings = scored.tree.format.size - (inserted - int(not controls[place]))
        if math.isinf(log_perplexities[place]):
            out.append(last_rank(strings))
            continue
        out.append(
            weighted_rank(
                log_perplexities[place],
                np.concatenate([explored.log_perplexities, log_perplexities[others]]),
                unexplored,
                np.zeros(0) if sampled is None else sampled.log_perplexities,
                np.zeros(0) if sampled is None else sampled.log2_density,
                draws=None if sampled is None else sampled.draws,
                groups=None if sampled is None else sampled.groups,
                log2_size=math.log2(strings),
                tie=tie,
                confidence=confidence,
                largest_log2_weight=(
                    math.inf
                    if sampled is None
                    else sampled.largest_log2_weight(log_perplexities[place] + tie)
                ),
            )
        )
    return out
