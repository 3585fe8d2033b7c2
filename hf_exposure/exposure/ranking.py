"""Ranks of canaries in their secret space, by exploring the token tree and sampling the rest.

Puts the walk and the formulas of `rank` together for one group of canaries: those that share a
format and a context, so that one exploration and one sample serve all of them.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from hf_exposure.exposure.estimators import RankEstimate, Unexplored, last_rank, weighted_rank
from hf_exposure.models.decoder import Decoder
from hf_exposure.tree.frontier import CheapestFirst, DepthFirst, Frontier
from hf_exposure.tree.prefixes import Prefixes
from hf_exposure.tree.scoring import ScoredTree
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.tree.walk import POWERS, Explorer, Sampler, unvisited, walk
from hf_exposure.utils.arrays import Bools, Floats, Ints

_Draw = tuple[Ints, int, float, int]  # guide, proposal, position in it, place in the frontier

_MODEL = int(np.flatnonzero(POWERS == 1.0)[0])  # the proposal that is the model's distribution
_AIMS = 4  # canaries at most that proposals aim at
_COMMON = 0.1  # where so many uniform draws cost no more than a canary, it needs no aim
_PILOT_SHARE = 40  # one draw of so many is for finding out where to aim
_BEGIN = 32  # prefixes that all processes visit alike before they share the rest
_LOOKS = 64  # leaves that a draw looks at from their parent


@dataclass(frozen=True)
class Explored:
    """What is known of the strings that cost at most `bound`.

    Attributes:
        costs: (m,) costs of the leaves that were met, canaries left out.
        canaries: paths of all canaries of the group, which are counted apart.
        frontier: the prefixes that were met and not visited: the unexplored rest lies under them.
    """

    bound: float
    costs: Floats
    canaries: set[tuple[int, ...]]
    frontier: Prefixes

    @property
    def complete(self) -> bool:
        """Whether nothing is left unexplored."""
        return not len(self.frontier)


def explore(
    scored: ScoredTree,
    bound: float,
    canaries: list[Ints],
    *,
    max_forwards: float = math.inf,
    depth_first: bool = False,
) -> Explored:
    """Visit prefixes that cost at most `bound` bits, the cheapest first, as far as forwards last.

    Depth first visits the same ones if it comes to the end, and holds few at a time. Several
    processes begin alike and then go on under different prefixes each.
    """
    explorer = Explorer(bound=bound, propose=True)
    count = scored.processes.count
    budget = min(max_forwards, scored.room)
    begin = min(budget, _BEGIN if budget > 2 * _BEGIN * count else math.inf)
    frontier: Frontier = DepthFirst() if depth_first and count == 1 else CheapestFirst()
    if math.isfinite(bound) and (scored.processes.number == 0 or begin < budget):
        _walk_on(scored, explorer, frontier, budget if count == 1 else begin, depth_first)
    if count > 1 and begin < budget and not math.isinf(frontier.least()):
        frontier = _dealt(scored, explorer, frontier, depth_first)
        _walk_on(scored, explorer, frontier, budget / count - begin, depth_first)
    elif scored.processes.number > 0:  # all has been done by all, or by the first alone
        explorer, frontier = Explorer(), CheapestFirst()
    left = [Prefixes.of(nodes, explorer) for nodes in unvisited(scored.tree, explorer, frontier)]
    own = {tuple(path.tolist()) for path in canaries}
    costs = [
        cost for cost, path in zip(explorer.costs, explorer.paths, strict=True) if path not in own
    ]
    met = scored.gather((costs, left))
    return Explored(
        bound,
        np.array([cost for some, _ in met for cost in some], dtype=np.float64),
        own,
        # In an order of its own, whatever the order of the walk was: draws go by it.
        Prefixes.joined([some for _, parts in met for some in parts]),
    )


def every_leaf(decoder: Decoder, tree: TokenTree) -> tuple[list[tuple[int, ...]], Floats]:
    """All strings of a small secret space: their token paths, and log-perplexities in bits.

    Raises:
        RuntimeError: the token tree has left some out.
    """
    everything = Explorer()
    walk(decoder, tree, everything, DepthFirst())
    missing = tree.format.size - len(everything.paths)
    if missing:
        raise RuntimeError(f"{missing} of {tree.format.size} secrets were not enumerated")
    return everything.paths, np.array(everything.costs)


def _walk_on(
    scored: ScoredTree, explorer: Explorer, frontier: Frontier, forwards: float, eager: bool
) -> None:
    """Explore with at least one forward, from the root or from what waits."""
    walk(
        scored.decoder,
        scored.tree,
        explorer,
        frontier,
        max_forwards=scored.decoder.forwards + max(1, forwards),
        eager=eager,
        progress=scored.progress,
    )


def _dealt(
    scored: ScoredTree, explorer: Explorer, frontier: Frontier, depth_first: bool
) -> Frontier:
    """This process's share of the nodes that wait, and of the leaves that were met.

    Every process has come so far by itself. Should rounding have led them to different nodes,
    the first takes all of its own.
    """
    processes = scored.processes
    blocks = list(frontier.waiting())
    digest = hashlib.sha256(repr([nodes.paths.tolist() for nodes in blocks]).encode()).hexdigest()
    alike = len(set(scored.gather(digest))) == 1
    share: Frontier = DepthFirst() if depth_first else CheapestFirst()
    place = 0
    for nodes in blocks:  # cheapest first within each, so dealing them one by one is fair
        turn = np.arange(place, place + len(nodes)) % processes.count
        place += len(nodes)
        mine = turn == processes.number if alike else np.full(len(nodes), processes.number == 0)
        share.push(nodes[mine])
    if processes.number > 0:
        explorer.costs.clear()
        explorer.paths.clear()
    return share


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


def aim(scored: ScoredTree, explored: Explored, costs: Floats, n: int, seed: int) -> Aims | None:
    """Aims at canaries that uniform draws would hardly tell anything about, if there are any.

    Args:
        costs: the canaries' log-perplexities.
        n: uniform draws that the fit is made from.
    """
    # Found out by every process, but rounding must not make them differ: the first one's counts.
    return scored.gather(_aim(scored, explored, costs, n, seed))[0]


def _aim(scored: ScoredTree, explored: Explored, costs: Floats, n: int, seed: int) -> Aims | None:
    tree = scored.tree
    least = explored.frontier.costs.min(initial=math.inf)
    targets = np.unique(costs[(costs >= least) & np.isfinite(costs)])
    if not len(targets) or n < 8:
        return None
    pilot = Sampler(tree.paths(_uniform(scored, n, seed, "pilot")))
    walk(scored.decoder, tree, pilot, DepthFirst(), progress=scored.progress)
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
    scored: ScoredTree, explored: Explored, n: int, seed: int, costs: Floats | None = None
) -> Sampled:
    """Draw `n` times from the mixture of proposals: powers of the model, aims, and uniform.

    Each proposal has equal slices of its cumulative distribution and one position in each.

    Args:
        costs: the canaries' log-perplexities, to aim at.
    """
    fmt, tree = scored.tree.format, scored.tree
    draw = np.random.default_rng([seed, 1])
    pilot = n // _PILOT_SHARE
    aims = None if costs is None else aim(scored, explored, costs, pilot, seed)
    n = n if aims is None else n - pilot
    # (f, k) log2 of each proposal's probability of each frontier node.
    starts = explored.frontier.powers
    if aims is not None:
        scores = aims(explored.frontier.costs, explored.frontier.states)
        starts = np.concatenate([starts, scores], axis=1)
    totals = np.logaddexp2.reduce(starts, axis=0)
    usable = np.isfinite(totals)
    starts = np.where(usable, starts - np.where(usable, totals, 0.0), -np.inf)
    each = np.where(usable, _shares(n, starts.shape[1] - len(POWERS)), 0)
    uniform = n - int(each.sum())

    # Neighbouring draws of a proposal share prefixes, so each process takes a block of each.
    mine: list[_Draw] = []
    for k, count in enumerate(each):
        where, rest = _slices(starts[:, k], int(count), draw)
        mine += scored.processes.part(
            [
                (explored.frontier.path(place), k, position, place)
                for place, position in zip(where.tolist(), rest.tolist(), strict=True)
            ]
        )
    mine += scored.processes.part(_uniform_draws(scored, explored, uniform, seed))
    nodes = np.array([node for *_, node in mine], dtype=np.int64)
    sampler = Sampler(
        [guide for guide, *_ in mine],
        np.array([power for _, power, _, _ in mine], dtype=np.int64),
        np.array([position for _, _, position, _ in mine], dtype=np.float64),
        explored.frontier.depths[nodes],
        explored.bound,
        starts=starts[nodes],
        aims=aims,
        looks=_LOOKS,
        leaf=tree.leaf,
    )
    if mine:
        walk(scored.decoder, tree, sampler, DepthFirst(), progress=scored.progress)

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
    parts = scored.gather(
        (
            np.where(found, np.concatenate([sampler.costs, siblings.costs]), np.inf),
            density(np.concatenate([sampler.log2_powers, siblings.log2_proposals]), 0.0),
            np.concatenate([np.ones(len(mine), dtype=np.int64), siblings.draws]),
            np.concatenate([np.arange(len(mine)), len(mine) + siblings.parents]),
            inner,
        )
    )
    # Groups of one process are no groups of another.
    first = np.cumsum([0, *(1 + groups.max(initial=-1) for _, _, _, groups, _ in parts)])
    return Sampled(
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] for part in parts]),
        np.concatenate([part[3] + begin for part, begin in zip(parts, first, strict=False)]),
        log2_uniform,
        log2_model,
        sum(part[4] for part in parts),
    )


def _uniform_draws(scored: ScoredTree, explored: Explored, n: int, seed: int) -> list[_Draw]:
    """Of `n` uniform draws those that lie under the frontier, with the node that each is under.
    The others are explored, or cost too much."""
    out: list[_Draw] = []
    for path in scored.tree.paths(_uniform(scored, n, seed)):
        met = explored.frontier.place_of(path)
        if met is not None:
            out.append((path, -1, 0.0, met))
    return out


def _shares(n: int, aims: int) -> Ints:
    """How many of `n` draws each proposal gets; what is left over is uniform."""
    if not aims:
        return np.full(len(POWERS), n // (len(POWERS) + 1))
    each = [n // (6 * len(POWERS))] * len(POWERS) + [2 * n // (3 * aims)] * aims
    return np.array(each, dtype=np.int64)


def ranks(
    scored: ScoredTree,
    explored: Explored,
    sampled: Sampled | None,
    costs: Floats,
    controls: Bools,
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
    frontier = explored.frontier
    unexplored = Unexplored(frontier.costs, scored.tree.log2_counts[frontier.states])
    inserted = int(np.sum(~controls))
    out = []
    for place in range(len(costs)):
        others = controls.copy()
        others[place] = False
        strings = scored.tree.format.size - (inserted - int(not controls[place]))
        if math.isinf(costs[place]):
            out.append(last_rank(strings))
            continue
        out.append(
            weighted_rank(
                costs[place],
                np.concatenate([explored.costs, costs[others]]),
                unexplored,
                np.zeros(0) if sampled is None else sampled.costs,
                np.zeros(0) if sampled is None else sampled.log2_density,
                draws=None if sampled is None else sampled.draws,
                groups=None if sampled is None else sampled.groups,
                log2_size=math.log2(strings),
                tie=tie,
                confidence=confidence,
                largest_log2_weight=(
                    math.inf if sampled is None else sampled.largest_log2_weight(costs[place] + tie)
                ),
            )
        )
    return out


def _uniform(scored: ScoredTree, n: int, seed: int, purpose: str = "uniform") -> list[str]:
    """`n` secrets, one from each of n equal slices of the secret space."""
    size = scored.tree.format.size
    draw = random.Random(f"{seed} {purpose}")
    return [
        scored.tree.format.unrank(draw.randrange(i * size, (i + 1) * size) // n) for i in range(n)
    ]


def _slices(log2_weights: Floats, n: int, draw: np.random.Generator) -> tuple[Ints, Floats]:
    """One place from each of n equal slices of a distribution, and where within that place."""
    if n == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0)
    weights = np.exp2(log2_weights)
    ends = np.cumsum(weights)
    target = (np.arange(n) + draw.random(n)) / n * ends[-1]
    place = np.minimum(np.searchsorted(ends, target, "right"), len(ends) - 1)
    rest = (target - (ends[place] - weights[place])) / np.where(weights > 0, weights, 1.0)[place]
    return place, np.clip(rest, 0.0, np.nextafter(1.0, 0.0))
