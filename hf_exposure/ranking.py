"""Ranks of canaries in their secret space, by exploring the token tree and sampling the rest.

Puts the walk and the formulas of `rank` together for one group of canaries: those that share a
format and a context, so that one exploration and one sample serve all of them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from hf_exposure.decoder import Decoder
from hf_exposure.frontier import CheapestFirst, DepthFirst, Frontier, Nodes
from hf_exposure.rank import RankEstimate, last_rank, weighted_rank
from hf_exposure.tokens import TokenTree
from hf_exposure.walk import POWERS, Explorer, Sampler, unvisited, walk

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_MODEL = int(np.flatnonzero(POWERS == 1.0)[0])  # the proposal that is the model's distribution
_AIMS = 4  # canaries at most that proposals aim at
_COMMON = 0.1  # where so many uniform draws cost no more than a canary, it needs no aim
_PILOT_SHARE = 40  # one draw of so many is for finding out where to aim
_LOOKS = 64  # leaves that a draw looks at from their parent


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
        frontier_paths, frontier_costs, frontier_states: (f,) those prefixes one by one.
        powers: (f, 5) log2 of the powers' probabilities of coming by them.
    """

    bound: float
    costs: Floats
    inner: list[Nodes]
    explorer: Explorer
    canaries: set[tuple[int, ...]]
    frontier_paths: list[Ints] = field(init=False)
    frontier_costs: Floats = field(init=False)
    frontier_states: Ints = field(init=False)
    powers: Floats = field(init=False)

    def __post_init__(self) -> None:
        nodes = [
            (tuple(path), cost, state, tag)
            for some in self.inner
            for path, cost, state, tag in zip(
                some.paths.tolist(), some.costs, some.states, some.tags, strict=True
            )
        ]
        # In an order of its own, whatever the order of the walk was: draws go by it.
        nodes.sort(key=lambda node: node[0])
        self.frontier_paths = [np.array(path, dtype=np.int64) for path, *_ in nodes]
        self.frontier_costs = np.array([cost for _, cost, _, _ in nodes], dtype=np.float64)
        self.frontier_states = np.array([state for _, _, state, _ in nodes], dtype=np.int64)
        self.powers = self.explorer.powers(np.array([tag for *_, tag in nodes], dtype=np.int64))


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


@dataclass(frozen=True)
class Aims:
    """Proposals that go where strings as costly as given canaries are.

    A child is drawn in proportion to the number of strings under it that are expected to cost no
    more than the target, as if what they have yet to cost were normally distributed, with mean and
    variance linear in log2 of their number (fitted to a few uniform draws). However rough that
    is, the draws are weighted by what was really done.

    Attributes:
        targets: (a,) bits.
        offset, per_bit, variance: of the fit.
        log2_counts: (states,) log2 of the number of strings that lead on from a state.
    """

    targets: Floats
    offset: float
    per_bit: float
    variance: float
    log2_counts: Floats

    def __call__(self, costs: Floats, states: Ints) -> Floats:
        """(n, a) log2 of the number of strings under each node within each target, about."""
        bits = self.log2_counts[states]
        mean = costs + np.where(bits > 0, self.offset + self.per_bit * bits, 0.0)
        spread = np.sqrt(self.variance * np.maximum(bits, 1.0))
        z = (self.targets - mean[:, None]) / spread[:, None]
        return np.asarray(bits[:, None] + special.log_ndtr(z) / math.log(2))


def aim(scorer: Scorer, explored: Explored, costs: Floats, n: int, seed: int) -> Aims | None:
    """Aims at canaries that uniform draws would hardly tell anything about, if there are any.

    Args:
        costs: the canaries' log-perplexities.
        n: uniform draws that the fit is made from.
    """
    tree = scorer.tree
    least = explored.frontier_costs.min(initial=math.inf)
    targets = np.unique(costs[(costs >= least) & np.isfinite(costs)])
    if not len(targets) or n < 8:
        return None
    pilot = Sampler(tree.paths(_uniform(scorer, n, seed, "pilot")))
    walk(scorer.decoder, tree, pilot, DepthFirst(), progress=scorer.progress)
    bits, rest = [np.full(n, tree.format.bits)], [pilot.costs]
    for draws, node_costs, states in pilot.trail:
        bits.append(tree.log2_counts[states])
        rest.append(pilot.costs[draws] - node_costs)
    x, y = np.concatenate(bits), np.concatenate(rest)
    fine = np.isfinite(y) & (x > 0)
    x, y = x[fine], y[fine]
    if len(y) < 8 or np.ptp(x) == 0:
        return None
    per_bit, offset = np.polyfit(x, y, 1)
    variance = float(np.sum((y - offset - per_bit * x) ** 2 * x) / np.sum(x**2))
    if variance <= 0:
        return None
    aims = Aims(targets, float(offset), float(per_bit), variance, tree.log2_counts)
    share = aims(np.zeros(1), np.zeros(1, dtype=np.int64))[0] - tree.format.bits
    targets = targets[share < math.log2(_COMMON)]
    if not len(targets):
        return None
    some = np.unique(np.linspace(0, len(targets) - 1, _AIMS).round().astype(np.int64))
    return replace(aims, targets=targets[some])


@dataclass
class Sampled:
    """Draws from the unexplored rest, and the leaves that they came to.

    Attributes:
        costs: (m,) bits of leaves; infinite for one that does not count: not canonical, or a
            canary.
        log2_density: (m,) log2 of g(x), the number of draws that were to come to it.
        draws: (m,) how many did.
        groups: (m,) equal for leaves that the same draws came to.
        log2_uniform: log2 of the number of times that uniform draws alone were to bring any string.
        log2_model: log2 of the number of draws from the model's own distribution, as if they had
            been made of all of R and not only of what was unexplored.
        inner: estimated number of prefixes within the bound that were not explored.
    """

    costs: Floats
    log2_density: Floats
    draws: Ints
    groups: Ints
    log2_uniform: float
    log2_model: float
    inner: float

    def largest_log2_weight(self, cost: float) -> float:
        """log2 of the largest 1 / g(x) that a leaf of at most this cost could have had.

        The uniform draws bound every weight. A draw from the model's own distribution, which is
        only ever renormalized upwards, brings x at least as often as its probability says.
        """
        return min(-self.log2_uniform, cost - self.log2_model)


def sample(
    scorer: Scorer, explored: Explored, n: int, seed: int, costs: Floats | None = None
) -> Sampled:
    """Draw `n` times from the mixture of proposals: powers of the model, aims, and uniform.

    Each proposal has equal slices of its cumulative distribution and one position in each.

    Args:
        costs: the canaries' log-perplexities, to aim at.
    """
    fmt, tree = scorer.tree.format, scorer.tree
    draw = np.random.default_rng([seed, 1])
    pilot = n // _PILOT_SHARE
    aims = None if costs is None else aim(scorer, explored, costs, pilot, seed)
    n = n if aims is None else n - pilot
    # (f, k) log2 of each proposal's probability of each frontier node.
    starts = explored.powers
    if aims is not None:
        scores = aims(explored.frontier_costs, explored.frontier_states)
        starts = np.concatenate([starts, scores], axis=1)
    totals = np.logaddexp2.reduce(starts, axis=0)
    usable = np.isfinite(totals)
    starts = np.where(usable, starts - np.where(usable, totals, 0.0), -np.inf)
    each = np.where(usable, _shares(n, starts.shape[1] - len(POWERS)), 0)
    uniform = n - int(each.sum())

    frontier_paths = explored.frontier_paths
    guides: list[Ints] = []
    powers: list[int] = []
    positions: list[float] = []
    nodes: list[int] = []
    for k, count in enumerate(each):
        where, rest = _slices(starts[:, k], int(count), draw)
        for place, position in zip(where.tolist(), rest.tolist(), strict=True):
            guides.append(frontier_paths[place])
            powers.append(k)
            positions.append(position)
            nodes.append(place)
    ancestor = {tuple(path.tolist()): place for place, path in enumerate(frontier_paths)}
    depths = sorted({len(path) for path in ancestor})
    for path in tree.paths(_uniform(scorer, uniform, seed)):
        begun = path.tolist()
        met = next((ancestor[b] for d in depths if (b := tuple(begun[:d])) in ancestor), None)
        if met is not None:  # otherwise it is explored, or costs too much
            guides.append(path)
            powers.append(-1)
            positions.append(0.0)
            nodes.append(met)

    sampler = Sampler(
        guides,
        np.array(powers, dtype=np.int64),
        np.array(positions),
        np.array([len(frontier_paths[node]) for node in nodes], dtype=np.int64),
        explored.bound,
        starts=starts[np.array(nodes, dtype=np.int64)],
        aims=aims,
        looks=_LOOKS,
        leaf=tree.leaf,
    )
    walk(scorer.decoder, tree, sampler, DepthFirst(), progress=scorer.progress)

    log2_uniform = math.log2(uniform) - fmt.bits if uniform else -math.inf
    with np.errstate(divide="ignore"):
        log2_each = np.log2(each)

    def density(log2_proposals: Floats, log2_strings: Floats | float) -> Floats:
        """log2 of how many draws were to come by nodes with so many strings under them."""
        parts = np.where(usable, log2_proposals + log2_each, -np.inf)
        return np.logaddexp2(
            np.logaddexp2.reduce(parts, axis=1), log2_uniform + np.asarray(log2_strings)
        )

    inner = 0.0
    for log2_proposals, states, draws in sampler.visits:
        open_nodes = ~tree.leaf[states]
        log2_g = density(log2_proposals[open_nodes], tree.log2_counts[states[open_nodes]])
        inner += float(np.sum(draws[open_nodes] * np.exp2(-log2_g)))
    # Guided draws, and free ones that ended on a leaf, stand for themselves; siblings were
    # looked at by the same draws.
    siblings = sampler.siblings
    paths = [*sampler.paths, *siblings.paths]
    found = np.array([path is not None and path not in explored.canaries for path in paths], bool)
    log2_model = float(log2_each[_MODEL] - totals[_MODEL]) if usable[_MODEL] else -math.inf
    return Sampled(
        np.where(found, np.concatenate([sampler.costs, siblings.costs]), np.inf),
        density(np.concatenate([sampler.log2_powers, siblings.log2_proposals]), 0.0),
        np.concatenate([np.ones(len(guides), dtype=np.int64), siblings.draws]),
        np.concatenate([np.arange(len(guides)), len(guides) + siblings.parents]),
        log2_uniform,
        log2_model,
        inner,
    )


def _shares(n: int, aims: int) -> Ints:
    """How many of `n` draws each proposal gets; what is left over is uniform."""
    if not aims:
        return np.full(len(POWERS), n // (len(POWERS) + 1))
    each = [n // (6 * len(POWERS))] * len(POWERS) + [2 * n // (3 * aims)] * aims
    return np.array(each, dtype=np.int64)


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
        if math.isinf(costs[place]):
            left_out = int(np.sum(~controls)) - int(not controls[place])
            out.append(last_rank(scorer.tree.format.size - left_out))
            continue
        out.append(
            weighted_rank(
                costs[place],
                np.concatenate([explored.costs, costs[others]]),
                explored.frontier_costs,
                scorer.tree.log2_counts[explored.frontier_states],
                np.zeros(0) if sampled is None else sampled.costs,
                np.zeros(0) if sampled is None else sampled.log2_density,
                draws=None if sampled is None else sampled.draws,
                groups=None if sampled is None else sampled.groups,
                log2_size=scorer.tree.format.bits,
                tie=tie,
                confidence=confidence,
                largest_log2_weight=(
                    math.inf if sampled is None else sampled.largest_log2_weight(costs[place] + tie)
                ),
            )
        )
    return out


def _uniform(scorer: Scorer, n: int, seed: int, purpose: str = "uniform") -> list[str]:
    """`n` secrets, one from each of n equal slices of the secret space."""
    size = scorer.tree.format.size
    draw = random.Random(f"{seed} {purpose}")
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
