"""The walk over the token tree: every question of the package is a visitor of this one loop.

explore   all prefixes up to a cost, cheapest first or depth first   -> `Explorer`
follow    given paths                                                -> `Sampler`, guided only
sample    leaves, from a mixture of proposals                        -> `Sampler`
search    the cheapest leaves                                        -> `Explorer` with `wanted`
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hf_exposure.models.next_tokens import Branches, NextTokens
from hf_exposure.tree.frontier import Frontier, Nodes, by_depth
from hf_exposure.utils.arrays import Bools, Floats, Ints

# Proposals draw each token with its probability to these powers: after strong memorization the
# model's own samples are all the same few strings, early in training they are nearly uniform.
POWERS = np.array([10.0, 3.0, 1.0, 0.3, 0.1])
_BATCH = 512  # nodes that a search takes at once, at most
_DIGITS = 20.0  # binary digits of a draw's position to use up; a float has 53


class Tree(Protocol):
    """What a walk asks of a tree of tokens; see `TokenTree`. Its root has state 0."""

    @property
    def leaf(self) -> Bools:
        """(states,) whether a state is the end of a path."""

    def key(self, states: Ints, last: Ints) -> Ints:
        """(n,) one number for each node, equal for nodes that have the same children."""

    def children(self, key: int) -> tuple[Ints, Ints]:
        """Columns, ascending, and states of a node's children, both (n,)."""

    def possible(self, paths: Ints) -> Bools:
        """(n,) whether some path to a leaf may begin like each of the (n, depth) paths."""

    def canonical(self, paths: Ints) -> Bools:
        """(n,) whether each of the (n, depth) paths to leaves counts."""


class Visitor(Protocol):
    """What a walk is for."""

    def select(self, parents: Ints, nodes: Nodes) -> Nodes:
        """Which of the children to keep, with their tags.

        Args:
            parents: (B,) tags of the branches that were visited.
            nodes: their children, row by row; columns ascend within a row.
        """

    def leaves(self, nodes: Nodes) -> None:
        """Leaves that were taken: whole, canonical secrets."""

    def done(self, least: float) -> bool:
        """Whether to stop; `least` is the cost of the cheapest node that waits."""


def walk(
    decoder: NextTokens,
    tree: Tree,
    visitor: Visitor,
    frontier: Frontier,
    *,
    max_forwards: float = math.inf,
    eager: bool = True,
    progress: Callable[[], None] | None = None,
) -> bool:
    """Visit the tree from its root on.

    Args:
        frontier: holds what was met and not visited when the walk ends. If anything waits in it
            already, the walk goes on from there.
        max_forwards: stop when `decoder.forwards` reaches this.
        eager: take whole batches from the start. Otherwise their size grows with the number of
            nodes visited, so that a search visits hardly more nodes than one by one; with a batch
            size of 1 it goes one by one.
        progress: called after every round.

    Returns:
        Whether nothing is left to visit, or the visitor was done: not if the forwards ran out.
    """
    visited, spent = 0, False
    if decoder.forwards >= max_forwards:
        return False
    if math.isinf(frontier.least()):
        root = np.array([0])
        _visit(decoder, tree, visitor, frontier, decoder.root(), root, root, np.zeros(1))
    while not visitor.done(frontier.least()):
        if spent:
            return False
        # What a search visits must not hang on how many rows a forward has, unless it is one.
        growing = decoder.batch_size > 1 and not eager
        batch = min(_BATCH, 1 + visited // 8) if growing else decoder.batch_size
        taken = frontier.take(int(max(1, min(batch, max_forwards - decoder.forwards))))
        if not taken:
            return True
        for nodes in by_depth(taken) if decoder.joins else taken:
            nodes = nodes[tree.possible(nodes.paths)]
            leaf = tree.leaf[nodes.states]
            _hand_over(tree, visitor, nodes[leaf])
            nodes = nodes[~leaf]
            price = decoder.price(nodes.parents)
            if price * len(nodes) > max_forwards - decoder.forwards:
                room = max(0, int((max_forwards - decoder.forwards) // price))
                frontier.push(nodes[room:])
                nodes, spent = nodes[:room], True
            visited += len(nodes)
            for place, branches in decoder.step(nodes.parents, nodes.rows, nodes.columns):
                part = nodes[place]
                _visit(
                    decoder, tree, visitor, frontier, branches, part.states, part.tags, part.costs
                )
        decoder.settle(nodes.parents for nodes in frontier.waiting())
        if progress:
            progress()
    return True


def unvisited(tree: Tree, visitor: Visitor, frontier: Frontier) -> list[Nodes]:
    """The inner nodes that a walk has left. Its leaves need no forward and are handed over."""
    inner = []
    for nodes in frontier.waiting():
        leaf = tree.leaf[nodes.states]
        ends = nodes[leaf]
        _hand_over(tree, visitor, ends[tree.possible(ends.paths)])
        if not leaf.all():
            inner.append(nodes[~leaf])
    return inner


def _hand_over(tree: Tree, visitor: Visitor, ends: Nodes) -> None:
    if len(ends):
        visitor.leaves(ends[tree.canonical(ends.paths)])


def _visit(
    decoder: NextTokens,
    tree: Tree,
    visitor: Visitor,
    frontier: Frontier,
    branches: Branches,
    states: Ints,
    tags: Ints,
    costs: Floats,
) -> None:
    """Put the children of newly run branches into the frontier."""
    depth = branches.paths.shape[1]
    last = branches.paths[:, -1] if depth else np.full(len(states), -1, dtype=np.int64)
    keys, kind = np.unique(tree.key(states, last), return_inverse=True)
    children = [tree.children(int(key)) for key in keys]
    sizes = np.array([len(columns) for columns, _ in children])[kind]
    row = np.repeat(np.arange(len(states)), sizes)
    column = np.concatenate([children[place][0] for place in kind])
    following = np.concatenate([children[place][1] for place in kind])
    total = costs[row] + decoder.next_bits(branches, row, column)
    nodes = visitor.select(tags, Nodes(branches, row, column, following, total, np.zeros_like(row)))
    frontier.push(nodes.sorted())


def powers_of(nodes: Nodes, inside: Bools) -> Floats:
    """(n, 5) log2 of each proposal's probability of going from the parent to each child.

    A child outside, or of probability 0, has none. Children are row by row.
    """
    inside = inside & np.isfinite(nodes.costs)
    scores = np.full((len(nodes), len(POWERS)), -np.inf)
    scores[inside] = -nodes.costs[inside, None] * POWERS
    return _normalized(scores, nodes.rows, inside)


def _normalized(scores: Floats, rows: Ints, inside: Bools) -> Floats:
    """(n, k) log2 of probabilities in proportion to 2^score among the children of each row; none
    for a child outside. Scores inside are finite."""
    out = np.full(scores.shape, -np.inf)
    if not inside.any():
        return out
    row = rows[inside]
    begin = np.flatnonzero(np.diff(row, prepend=-1))
    sizes = np.diff(begin, append=len(row))
    scaled = scores[inside]
    scaled = scaled - np.repeat(np.maximum.reduceat(scaled, begin, axis=0), sizes, axis=0)
    total = np.add.reduceat(np.exp2(scaled), begin, axis=0)
    out[inside] = scaled - np.repeat(np.log2(total), sizes, axis=0)
    return out


class _Rows:
    """(n, k) numbers to which rows are added; room is made by doubling."""

    def __init__(self, width: int = len(POWERS)) -> None:
        self._data = np.zeros((64, width))
        self._used = 1  # the root, whose probability is 1

    def __len__(self) -> int:
        return self._used

    def __getitem__(self, place: Ints) -> Floats:
        return np.asarray(self._data[place])

    def add(self, rows: Floats) -> Ints:
        """Add rows and return their places."""
        begin, self._used = self._used, self._used + len(rows)
        if self._used > len(self._data):
            grown = np.zeros((2 * self._used, self._data.shape[1]))
            grown[:begin] = self._data[:begin]
            self._data = grown
        self._data[begin : self._used] = rows
        return np.arange(begin, self._used)


@dataclass
class Explorer:
    """All prefixes that cost at most `bound` bits, as far as the walk comes.

    Args:
        bound: children that cost more are left out, with all that lies under them.
        propose: keep the proposals' probabilities of each node, from the root on; see `powers`.
        wanted: stop when so many leaves cost no more than anything that waits.

    Attributes:
        costs: costs of the leaves that were met, in the order of the walk.
        paths: their paths.
    """

    bound: float = math.inf
    propose: bool = False
    wanted: float = math.inf
    costs: list[float] = field(default_factory=list)
    paths: list[tuple[int, ...]] = field(default_factory=list)
    _sorted: list[float] = field(default_factory=list)
    _log2_powers: _Rows = field(default_factory=_Rows)

    def select(self, parents: Ints, nodes: Nodes) -> Nodes:
        inside = nodes.costs <= self.bound
        kept = nodes[inside]
        if self.propose:
            step = powers_of(nodes, inside)[inside]
            kept.tags = self._log2_powers.add(self.powers(parents[kept.rows]) + step)
        return kept

    def powers(self, tags: Ints) -> Floats:
        """(n, 5) log2 of the proposals' probabilities of coming by nodes with these tags."""
        return self._log2_powers[tags]

    def leaves(self, nodes: Nodes) -> None:
        self.costs.extend(nodes.costs.tolist())
        self.paths.extend(map(tuple, nodes.paths.tolist()))
        if math.isfinite(self.wanted):
            for cost in nodes.costs.tolist():
                bisect.insort(self._sorted, cost)

    def certain(self, least: float) -> int:
        """How many leaves cost no more than `least`; counted only with `wanted`."""
        return bisect.bisect_right(self._sorted, least)

    def done(self, least: float) -> bool:
        """Whether enough leaves are known to be cheaper than all that waits."""
        return math.isfinite(self.wanted) and self.certain(least) >= self.wanted


@dataclass(frozen=True)
class Siblings:
    """Leaves that free draws looked at from their parents; see `Sampler`.

    Attributes:
        costs: (m,) bits.
        paths: their paths.
        log2_proposals: (m, k) log2 of each proposal's probability of the parent.
        parents: (m,) a number for each parent.
        draws: (m,) how many free draws came by the parent.
    """

    costs: Floats
    paths: list[tuple[int, ...]]
    log2_proposals: Floats
    parents: Ints
    draws: Ints


class Sampler:
    """Draws that go down the tree together: guided along given paths, then free.

    Equal prefixes of several draws are run once. Every proposal's probability of each node is
    kept along the way, so that the mixture's density at a leaf is known exactly.

    The forward that a node takes gives the costs of all its children. So where a node has few
    leaves among them, a free draw does not end on one: it looks at all of them.

    Args:
        guides: for each draw the path to follow; a free draw goes on from its end.
        powers: (n,) for each draw the proposal that it goes on by, a place in `POWERS` or, behind
            those, among the aims; -1 for none.
        positions: (n,) in [0, 1): where in its proposal's cumulative distribution it lies,
            handed down from node to children (so that n slices give one draw each). Under nodes
            of a small probability it is drawn anew: the digits of one number would not last for a
            large secret space.
        known: (n,) the depth up to which each draw's path has been explored; `visits` counts
            only nodes from there on.
        bound: children that cost more are left out.
        starts: (n, k) log2 of the proposals' probabilities of the node at each draw's depth
            `known`, if they are not those of coming by it from the root.
        aims: further proposals: gives for (n,) costs and states of children (n, a) scores, and the
            children of a node are drawn in proportion to 2^score.
        looks: at so many leaves at most a free draw looks from their parent.
        leaf: (states,) whether a state is the end of a secret; needed if it looks at any.

    Attributes:
        costs: (n,) bits of the leaf of each draw, infinite if it came to no canonical leaf within
            the bound, or only looked at some.
        paths: (n,) the leaf's path, or None.
        log2_powers: (n, k) log2 of each proposal's probability of the leaf, or of its parent if
            free draws look at it from there.
        visits: for each round the (j, k) `log2_powers` of inner nodes that were visited, their
            automaton states (j,), and how many draws came by (j,).
        trail: for each round the draws (j,) that went on, and the costs and states of the nodes
            that they came to, both (j,).
    """

    def __init__(
        self,
        guides: Sequence[Ints],
        powers: Ints | None = None,
        positions: Floats | None = None,
        known: Ints | None = None,
        bound: float = math.inf,
        *,
        starts: Floats | None = None,
        aims: Callable[[Floats, Ints], Floats] | None = None,
        looks: int = 0,
        leaf: Bools | None = None,
    ) -> None:
        n = len(guides)
        self.bound = bound
        self._known = np.zeros(n, dtype=np.int64) if known is None else known
        self._lengths = np.array([len(guide) for guide in guides], dtype=np.int64)
        self._guides = np.full((n, int(self._lengths.max(initial=0)) + 1), -1, dtype=np.int64)
        for place, guide in enumerate(guides):
            self._guides[place, : len(guide)] = guide
        self._power = np.full(n, -1, dtype=np.int64) if powers is None else powers
        self._position = np.array(np.zeros(n) if positions is None else positions, dtype=float)
        self._draw = np.random.default_rng(self._position.view(np.uint64))
        self._fresh: list[Floats] = []  # positions to go on with, (n,) each
        self._renewed = np.zeros(n, dtype=np.int64)  # how many of them each draw has used
        self._used_bits = np.zeros(n)  # binary digits that each position has lost
        self._at = np.zeros(n, dtype=np.int64)  # the tag of the node where each draw is
        self._starts, self._aims = starts, aims
        self._looks, self._leaf = looks, leaf
        width = len(POWERS) if starts is None else starts.shape[1]
        self._log2_powers = _Rows(width)
        self._families: dict[int, tuple[int, int]] = {}  # by tag: parent, draws that came by it
        self._parents = 0
        self._siblings: list[tuple[float, tuple[int, ...], Floats, int, int]] = []
        self.costs = np.full(n, np.inf)
        self.paths: list[tuple[int, ...] | None] = [None] * n
        self.log2_powers = np.full((n, width), -np.inf)
        self.visits: list[tuple[Floats, Ints, Ints]] = []
        self.trail: list[tuple[Ints, Floats, Ints]] = []

    def select(self, parents: Ints, nodes: Nodes) -> Nodes:
        depth = nodes.parents.paths.shape[1]
        here, rows = self._draws_at(parents)
        inside = nodes.costs <= self.bound
        steps = self._steps(nodes, inside)
        chosen = np.full(len(here), -1, dtype=np.int64)
        column = self._guides[here, min(depth, self._guides.shape[1] - 1)]
        guided = column >= 0
        chosen[guided] = self._guided(nodes, inside, rows[guided], column[guided])
        for power in range(steps.shape[1]):
            free = ~guided & (self._power[here] == power)
            if free.any():
                chosen[free] = self._free(nodes, steps[:, power], rows[free], here[free])
        looked = self._looked_at(nodes, inside, len(parents))
        came = np.bincount(rows[~guided], minlength=len(parents))  # free draws at each parent
        seen = looked & (came[nodes.rows] > 0)
        ends = np.flatnonzero(~guided & (chosen >= 0))
        chosen[ends[looked[chosen[ends]]]] = -1
        steps[looked] = 0.0  # looking at a leaf is as likely as coming by its parent
        self._at[here] = -1
        alive = chosen >= 0
        places = np.union1d(chosen[alive], np.flatnonzero(seen)).astype(np.int64)
        which = np.searchsorted(places, chosen[alive])
        kept = nodes[places]
        powers = self._log2_powers[parents[kept.rows]] + steps[places]
        if self._starts is not None:
            enters = depth + 1 == self._known[here[alive]]
            powers[which[enters]] = self._starts[here[alive][enters]]
        kept.tags = self._log2_powers.add(powers)
        self._at[here[alive]] = kept.tags[which]
        looked_at = kept[seen[places]]
        for tag, row in zip(looked_at.tags.tolist(), looked_at.rows.tolist(), strict=True):
            self._families[tag] = self._parents + row, int(came[row])
        self._parents += len(parents)
        new = depth + 1 >= self._known[here[alive]]
        draws = np.bincount(which[new], minlength=len(places))
        self.visits.append((powers[draws > 0], kept.states[draws > 0], draws[draws > 0]))
        self.trail.append((here[alive], kept.costs[which], kept.states[which]))
        return kept

    @property
    def siblings(self) -> Siblings:
        """The leaves that free draws looked at."""
        nothing: list[list[Any]] = [[] for _ in range(5)]
        columns = list(zip(*self._siblings, strict=True)) or nothing
        costs, paths, log2, parents, draws = columns
        return Siblings(
            np.array(costs),
            list(paths),
            np.array(log2).reshape(-1, self.log2_powers.shape[1]),
            np.array(parents, dtype=np.int64),
            np.array(draws, dtype=np.int64),
        )

    def _steps(self, nodes: Nodes, inside: Bools) -> Floats:
        """(n, k) log2 of each proposal's probability of going from the parent to each child."""
        if (self._power < 0).all():
            return np.zeros((len(nodes), self.log2_powers.shape[1]))
        steps = powers_of(nodes, inside)
        if self._aims is None:
            return steps
        inside = inside & np.isfinite(nodes.costs)
        scores = np.full((len(nodes), self.log2_powers.shape[1] - len(POWERS)), -np.inf)
        scores[inside] = self._aims(nodes.costs[inside], nodes.states[inside])
        return np.concatenate([steps, _normalized(scores, nodes.rows, inside)], axis=1)

    def _looked_at(self, nodes: Nodes, inside: Bools, rows: int) -> Bools:
        """(n,) which children are leaves that a draw looks at from their parent."""
        if not self._looks or self._leaf is None:
            return np.zeros(len(nodes), dtype=bool)
        leaf = self._leaf[nodes.states] & inside & np.isfinite(nodes.costs)
        return leaf & (np.bincount(nodes.rows[leaf], minlength=rows)[nodes.rows] <= self._looks)

    def _draws_at(self, tags: Ints) -> tuple[Ints, Ints]:
        """The draws that are at nodes with these tags, and the place of each in `tags`."""
        order = np.argsort(tags)
        place = np.searchsorted(tags[order], self._at)
        place = order[np.minimum(place, len(tags) - 1)]
        here = np.flatnonzero(tags[place] == self._at)
        return here, place[here]

    def _guided(self, nodes: Nodes, inside: Bools, rows: Ints, columns: Ints) -> Ints:
        """The children that guided draws go to, -1 where there is none within the bound."""
        if not len(rows) or not len(nodes):
            return np.full(len(rows), -1, dtype=np.int64)
        width = int(max(nodes.columns.max(), columns.max())) + 1
        keys = nodes.rows * width + nodes.columns
        wanted = rows * width + columns
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found = (keys[place] == wanted) & inside[place]
        return np.where(found, place, -1)

    def _free(self, nodes: Nodes, log2_step: Floats, rows: Ints, draws: Ints) -> Ints:
        """The children that free draws fall on; their positions are handed down."""
        # Whether to draw anew must hang on the node alone: were it to hang on where the other
        # draws fell, draws would no longer follow the proposal.
        worn = draws[self._used_bits[draws] > _DIGITS]
        # Nor on the order in which nodes are run: each draw has a row of numbers of its own.
        turns = self._renewed[worn]
        while len(self._fresh) <= turns.max(initial=-1):
            self._fresh.append(self._draw.random(len(self._position)))
        self._position[worn] = [
            self._fresh[turn][draw] for turn, draw in zip(turns, worn, strict=True)
        ]
        self._renewed[worn] += 1
        self._used_bits[worn] = 0.0
        step = np.exp2(log2_step)
        ends = np.cumsum(step)
        first = np.searchsorted(nodes.rows, rows, "left")
        last = np.searchsorted(nodes.rows, rows, "right") - 1
        # Where a row has children at all, and one of some probability.
        fine = last >= first
        first, last, rows, draws = first[fine], last[fine], rows[fine], draws[fine]
        begin = np.where(first > 0, ends[first - 1], 0.0)
        total = ends[last] - begin
        target = begin + self._position[draws] * total
        place = np.searchsorted(ends, target, "right")
        # Rounding may point just behind the row, or at a child of probability 0.
        positive = np.flatnonzero(step > 0)
        before = np.searchsorted(positive, np.minimum(place, last), "right") - 1
        place = positive[np.maximum(before, 0)] if len(positive) else first - 1
        some = (place >= first) & (place <= last)
        place, target, draws = place[some], target[some], draws[some]
        rest = (target - np.where(place > 0, ends[place - 1], 0.0)) / step[place]
        self._used_bits[draws] -= log2_step[place]
        self._position[draws] = np.clip(rest, 0.0, np.nextafter(1.0, 0.0))
        out = np.full(len(fine), -1, dtype=np.int64)
        out[np.flatnonzero(fine)[some]] = place
        return out

    def leaves(self, nodes: Nodes) -> None:
        if not len(nodes):
            return
        draws, places = self._draws_at(nodes.tags)
        self.costs[draws] = nodes.costs[places]
        self.log2_powers[draws] = self._log2_powers[nodes.tags[places]]
        paths = [tuple(path) for path in nodes.paths.tolist()]
        for draw, place in zip(draws.tolist(), places.tolist(), strict=True):
            self.paths[draw] = paths[place]
        for tag, cost, path in zip(nodes.tags.tolist(), nodes.costs.tolist(), paths, strict=True):
            if tag in self._families:
                self._siblings.append((cost, path, self._log2_powers[tag], *self._families[tag]))

    def done(self, least: float) -> bool:
        return False
