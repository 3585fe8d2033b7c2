"""Ranks of canaries in their secret space, by exploring the token tree and sampling the rest.

Puts the walk and the formulas of `rank` together for one group of canaries: those that share a
format and a context, so that one exploration and one sample serve all of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hf_exposure.decoder import Decoder
from hf_exposure.frontier import CheapestFirst, DepthFirst, Frontier, Nodes
from hf_exposure.rank import RankEstimate, weighted_rank
from hf_exposure.tokens import TokenTree
from hf_exposure.walk import POWERS, Explorer, Sampler, unvisited, walk

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MODEL = int(np.flatnonzero(POWERS == 1.0)[0])  # the proposal that is the model's distribution


@dataclass
class Scorer:
    """One token tree under one model, with the forwards that it may spend.

    Attributes:
        max_forwards: token-forwards that all questions together may take; the canaries' own
            log-perplexities and the decoder's probe are always done.
        progress: called now and then while forwards are made.
    """

    tree: TokenTree
    decoder: Decoder
    max_forwards: float = math.inf
    progress: Callable[[], None] | None = None

    @property
    def room(self) -> float:
        """Forwards that are left."""
        return max(0.0, self.max_forwards - self.decoder.forwards)

    def follow(self, paths: list[Ints]) -> Floats:
        """(n,) log-perplexities in bits of given leaves. Shared prefixes are run once."""
        sampler = Sampler(paths)
        walk(self.decoder, self.tree, sampler, DepthFirst(), progress=self.progress)
        return sampler.costs


@dataclass
class Explored:
    """What is known of the strings that cost at most `bound`.

    Attributes:
        costs: (m,) costs of the leaves that were met, canaries left out.
        inner: the prefixes that were met and not visited: the unexplored rest lies under them.
        canaries: paths of all canaries of the group, which are counted apart.
    """

    bound: float
    costs: Floats
    inner: list[Nodes]
    explorer: Explorer
    canaries: set[tuple[int, ...]]
    frontier_costs: Floats = field(init=False)
    frontier_states: Ints = field(init=False)
    powers: Floats = field(init=False)

    def __post_init__(self) -> None:
        nothing = np.zeros(0)
        self.frontier_costs = np.concatenate([nothing, *(nodes.costs for nodes in self.inner)])
        self.frontier_states = np.concatenate(
            [np.zeros(0, dtype=np.int64), *(nodes.states for nodes in self.inner)]
        )
        tags = np.concatenate(
            [np.zeros(0, dtype=np.int64), *(nodes.tags for nodes in self.inner)]
        )
        self.powers = self.explorer.powers(tags)

    def paths(self) -> list[Ints]:
        """The path of each unvisited prefix."""
        return [path for nodes in self.inner for path in nodes.paths]


def explore(
    scorer: Scorer,
    bound: float,
    canaries: list[Ints],
    *,
    max_forwards: float = math.inf,
    depth_first: bool = False,
) -> Explored:
    """Visit prefixes that cost at most `bound` bits, the cheapest first, as far as forwards last.

    Depth first visits the same ones if it comes to the end, and holds few at a time.
    """
    explorer = Explorer(bound=bound, propose=True)
    frontier: Frontier = DepthFirst() if depth_first else CheapestFirst()
    upto = min(scorer.decoder.forwards + max_forwards, scorer.max_forwards)
    if math.isfinite(bound):
        walk(
            scorer.decoder,
            scorer.tree,
            explorer,
            frontier,
            max_forwards=max(upto, scorer.decoder.forwards + 1),
            eager=depth_first,
            progress=scorer.progress,
        )
    inner = unvisited(scorer.tree, explorer, frontier)
    own = {tuple(path.tolist()) for path in canaries}
    costs = [
        cost for cost, path in zip(explorer.costs, explorer.paths, strict=True) if path not in own
    ]
    return Explored(bound, np.array(costs), inner, explorer, own)


@dataclass
class Sampled:
    """Draws from the unexplored rest.

    Attributes:
        costs: (n,) bits; infinite for a draw that does not count: explored, above the bound, not
            canonical, or a canary.
        log2_density: (n,) log2 of g(x), the number of times that x was to be expected.
        log2_uniform: log2 of the number of times that uniform draws alone were to bring any string.
        log2_model: log2 of the number of draws from the model's own distribution, as if they had
            been made of all of R and not only of what was unexplored.
        inner: estimated number of prefixes within the bound that were not explored.
    """

    costs: Floats
    log2_density: Floats
    log2_uniform: float
    log2_model: float
    inner: float

    def largest_log2_weight(self, cost: float) -> float:
        """log2 of the largest 1 / g(x) that a draw of at most this cost could have had.

        The uniform draws bound every weight. A draw from the model's own distribution, which is
        only ever renormalized upwards, brings x at least as often as its probability says.
        """
        return min(-self.log2_uniform, cost - self.log2_model)


def sample(scorer: Scorer, explored: Explored, n: int, seed: int) -> Sampled:
    """Draw `n` leaves from the mixture of six proposals (five powers and uniform), stratified.

    Each proposal has n slices of its cumulative distribution and one position in each.
    """
    fmt, tree = scorer.tree.format, scorer.tree
    draw = np.random.default_rng([seed, 1])
    usable = np.isfinite(explored.powers.max(axis=0, initial=-np.inf))
    each = np.where(usable, n // (len(POWERS) + 1), 0)
    uniform = n - int(each.sum())
    totals = np.array([_log2_sum(explored.powers[:, k]) for k in range(len(POWERS))])

    frontier_paths = explored.paths()
    guides: list[Ints] = []
    powers: list[int] = []
    positions: list[float] = []
    known: list[int] = []
    for k, count in enumerate(each):
        where, rest = _slices(explored.powers[:, k] - totals[k], int(count), draw)
        for place, position in zip(where.tolist(), rest.tolist(), strict=True):
            guides.append(frontier_paths[place])
            powers.append(k)
            positions.append(position)
            known.append(len(frontier_paths[place]))
    ancestor = {tuple(path.tolist()): len(path) for path in frontier_paths}
    depths = sorted(set(ancestor.values()))
    for path in tree.paths(_uniform(scorer, uniform, seed)):
        begun = path.tolist()
        met = next((d for d in depths if tuple(begun[:d]) in ancestor), None)
        if met is not None:  # otherwise it is explored, or costs too much
            guides.append(path)
            powers.append(-1)
            positions.append(0.0)
            known.append(met)

    sampler = Sampler(
        guides, np.array(powers, dtype=np.int64), np.array(positions),
        np.array(known, dtype=np.int64), explored.bound,
    )
    walk(scorer.decoder, tree, sampler, DepthFirst(), progress=scorer.progress)

    log2_uniform = math.log2(uniform) - fmt.bits if uniform else -math.inf
    with np.errstate(divide="ignore"):
        share = np.log2(each) - totals

    def density(log2_powers: Floats, log2_strings: Floats | float) -> Floats:
        parts = np.where(usable, log2_powers + np.where(usable, share, 0.0), -np.inf)
        return np.logaddexp2(
            np.logaddexp2.reduce(parts, axis=1), log2_uniform + np.asarray(log2_strings)
        )

    inner = 0.0
    for log2_powers, states, draws in sampler.visits:
        open_nodes = ~tree.leaf[states]
        log2_g = density(log2_powers[open_nodes], tree.log2_counts[states[open_nodes]])
        inner += float(np.sum(draws[open_nodes] * np.exp2(-log2_g)))
    costs = np.array(
        [
            cost if path is not None and path not in explored.canaries else math.inf
            for cost, path in zip(sampler.costs, sampler.paths, strict=True)
        ]
    )
    log2_model = float(share[_MODEL]) if usable[_MODEL] else -math.inf
    return Sampled(costs, density(sampler.log2_powers, 0.0), log2_uniform, log2_model, inner)


def ranks(
    scorer: Scorer,
    explored: Explored,
    sampled: Sampled | None,
    costs: Floats,
    controls: NDArray[np.bool_],
    tie: float,
    confidence: float,
) -> list[RankEstimate]:
    """The rank of each canary of the group.

    Every canary's cost is known, so canaries are left out of what was explored and sampled, and
    the controls, which are ordinary strings of R, are put back one by one. The inserted ones do
    not count for each other.

    Args:
        costs: (m,) the canaries' log-perplexities.
        controls: (m,) which of them were never inserted.
        tie: costs closer than this count as equal.
    """
    out = []
    for place in range(len(costs)):
        others = controls.copy()
        others[place] = False
        out.append(
            weighted_rank(
                costs[place],
                np.concatenate([explored.costs, costs[others]]),
                explored.frontier_costs,
                scorer.tree.log2_counts[explored.frontier_states],
                np.zeros(0) if sampled is None else sampled.costs,
                np.zeros(0) if sampled is None else sampled.log2_density,
                log2_size=scorer.tree.format.bits,
                tie=tie,
                confidence=confidence,
                largest_log2_weight=(
                    math.inf if sampled is None else sampled.largest_log2_weight(costs[place] + tie)
                ),
            )
        )
    return out


def _uniform(scorer: Scorer, n: int, seed: int) -> list[str]:
    """`n` secrets, one from each of n equal slices of the secret space."""
    size = scorer.tree.format.size
    draw = random.Random(f"{seed} uniform")
    return [
        scorer.tree.format.unrank(draw.randrange(i * size, (i + 1) * size) // n) for i in range(n)
    ]


def _slices(
    log2_weights: Floats, n: int, draw: np.random.Generator
) -> tuple[Ints, Floats]:
    """One place from each of n equal slices of a distribution, and where within that place."""
    if n == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    weights = np.exp2(log2_weights)
    ends = np.cumsum(weights)
    target = (np.arange(n) + draw.random(n)) / n * ends[-1]
    place = np.minimum(np.searchsorted(ends, target, "right"), len(ends) - 1)
    rest = (target - (ends[place] - weights[place])) / np.where(weights > 0, weights, 1.0)[place]
    return place, np.clip(rest, 0.0, np.nextafter(1.0, 0.0))


def _log2_sum(values: Floats) -> float:
    return float(np.logaddexp2.reduce(values)) if len(values) else -math.inf
