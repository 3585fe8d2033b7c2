"""The walk over the token tree: every question of the package is a visitor of this one loop.

    explore   all prefixes up to a cost, cheapest first or depth first   -> `Explorer`
    follow    given paths                                                -> `Sampler`, guided only
    sample    leaves, from a mixture of proposals                        -> `Sampler`
    search    the cheapest leaves                                        -> `Explorer`, and its order
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hf_exposure.decoder import Branches, Decoder
from hf_exposure.frontier import Frontier, Nodes
from hf_exposure.tokens import TokenTree

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Proposals draw each token with its probability to these powers: after strong memorization the
# model's own samples are all the same few strings, early in training they are nearly uniform.
POWERS = np.array([10.0, 3.0, 1.0, 0.3, 0.1])


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
    decoder: Decoder,
    tree: TokenTree,
    visitor: Visitor,
    frontier: Frontier,
    *,
    max_forwards: float = math.inf,
    eager: bool = True,
    progress: Callable[[], None] | None = None,
) -> bool:
    """Visit the tree from its root on.

    Args:
        frontier: empty; holds what was met and not visited when the walk ends.
        max_forwards: stop when `decoder.forwards` reaches this.
        eager: take whole batches from the start. Otherwise their size grows with the number of
            nodes visited, so that a search visits hardly more nodes than one by one.
        progress: called after every round.

    Returns:
        Whether nothing is left to visit, or the visitor was done.
    """
    visited = 0
    if decoder.forwards >= max_forwards:
        return False
    _visit(tree, visitor, frontier, decoder.root(), np.array([0]), np.array([0]), np.zeros(1))
    while not visitor.done(frontier.least()):
        batch = decoder.batch_size if eager else min(decoder.batch_size, 1 + visited // 8)
        room = max_forwards - decoder.forwards
        taken = frontier.take(int(min(batch, max(room, 1))))
        if not taken:
            return True
        for nodes in taken:
            nodes = nodes[tree.possible(nodes.paths)]
            leaf = tree.leaf[nodes.states]
            _hand_over(tree, visitor, nodes[leaf])
            nodes = nodes[~leaf]
            room = (max_forwards - decoder.forwards) // decoder.price(nodes.parents)
            if room < len(nodes):
                frontier.push(nodes[int(room) :])
                nodes = nodes[: int(room)]
            visited += len(nodes)
            for place, branches in decoder.step(nodes.parents, nodes.rows, nodes.columns):
                part = nodes[place]
                _visit(tree, visitor, frontier, branches, part.states, part.tags, part.costs)
        _drop_caches(frontier, decoder.slot_limit)
        if progress:
            progress()
        if room < 1:
            return visitor.done(frontier.least())
    return True


def unvisited(tree: TokenTree, visitor: Visitor, frontier: Frontier) -> list[Nodes]:
    """The inner nodes that a walk has left. Its leaves need no forward and are handed over."""
    inner = []
    for nodes in frontier.waiting():
        leaf = tree.leaf[nodes.states]
        ends = nodes[leaf]
        _hand_over(tree, visitor, ends[tree.possible(ends.paths)])
        if not leaf.all():
            inner.append(nodes[~leaf])
    return inner


def _hand_over(tree: TokenTree, visitor: Visitor, ends: Nodes) -> None:
    if len(ends):
        visitor.leaves(ends[tree.canonical(ends.paths)])


def _visit(
    tree: TokenTree,
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
    keys = tree.key(states, last)
    rows, columns, following = [], [], []
    for key in np.unique(keys):
        here = np.flatnonzero(keys == key)
        some_columns, some_states = tree.children(int(key))
        rows.append(np.repeat(here, len(some_columns)))
        columns.append(np.tile(some_columns, len(here)))
        following.append(np.tile(some_states, len(here)))
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")
    row, column = row[order], np.concatenate(columns)[order]
    total = costs[row] + branches.bits[row, column]
    nodes = Nodes(
        branches, row, column, np.concatenate(following)[order], total, np.zeros_like(row)
    )
    nodes = visitor.select(tags, nodes)
    # What is not needed any more should not wait in memory with the cache.
    branches.bits = branches.bits[:0]
    frontier.push(nodes.sorted())


def _drop_caches(frontier: Frontier, limit: int) -> None:
    """Let go of the caches of the nodes that will be taken last, until the rest fits."""
    used = sum(nodes.parents.slots for nodes in frontier.waiting())
    for nodes in frontier.waiting():
        if used <= limit:
            break
        used -= nodes.parents.slots
        nodes.parents.cache = None


def powers_of(nodes: Nodes, inside: NDArray[np.bool_], rows: int) -> Floats:
    """(n, 5) log2 of each proposal's probability of going from the parent to each child.

    A child outside has none. Children are row by row; `rows` is the number of parents.
    """
    out = np.full((len(nodes), len(POWERS)), -np.inf)
    if not inside.any():
        return out
    costs, row = nodes.costs[inside], nodes.rows[inside]
    least = np.full(rows, np.inf)
    np.minimum.at(least, row, costs)
    weight = np.exp2(-(costs - least[row])[:, None] * POWERS)
    total = np.zeros((rows, len(POWERS)))
    np.add.at(total, row, weight)
    with np.errstate(divide="ignore"):
        out[inside] = np.log2(weight) - np.log2(total[row])
    return out


@dataclass
class Explorer:
    """All prefixes that cost at most `bound` bits, as far as the walk comes.

    Args:
        bound: children that cost more are left out, with all that lies under them.
        propose: keep, for each node, the probabilities of the proposals from the root; see `powers`.
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
    _tags: int = 1
    _log2_powers: list[Floats] = field(default_factory=lambda: [np.zeros((1, len(POWERS)))])

    def select(self, parents: Ints, nodes: Nodes) -> Nodes:
        inside = nodes.costs <= self.bound
        if not self.propose:
            return nodes[inside]
        step = powers_of(nodes, inside, len(parents))[inside]
        kept = nodes[inside]
        before = self.powers(parents[kept.rows])
        kept.tags = np.arange(self._tags, self._tags + len(kept))
        self._tags += len(kept)
        self._log2_powers.append(before + step)
        return kept

    def powers(self, tags: Ints) -> Floats:
        """(n, 5) log2 of the proposals' probabilities of coming by nodes with these tags."""
        if len(self._log2_powers) > 1:
            self._log2_powers = [np.concatenate(self._log2_powers)]
        return np.asarray(self._log2_powers[0][tags])

    def leaves(self, nodes: Nodes) -> None:
        self.costs.extend(nodes.costs.tolist())
        self.paths.extend(map(tuple, nodes.paths.tolist()))

    def done(self, least: float) -> bool:
        """Whether enough leaves are known to be cheaper than all that waits."""
        if math.isinf(self.wanted):
            return False
        return sum(cost <= least for cost in self.costs) >= self.wanted


class Sampler:
    """Draws that go down the tree together: guided along given paths, then free.

    Equal prefixes of several draws are run once. Every proposal's probability of each node is
    kept along the way, so that the mixture's density at a leaf is known exactly.

    Args:
        guides: for each draw the path to follow; a free draw goes on from its end.
        powers: (n,) for each draw the proposal in `POWERS` that it goes on by, -1 for none.
        positions: (n,) in [0, 1): where in its proposal's cumulative distribution it lies,
            handed down from node to children (so that n slices give one draw each).
        known: (n,) the depth up to which each draw's path has been explored; `visits` counts
            only nodes from there on.
        bound: children that cost more are left out.

    Attributes:
        costs: (n,) bits of the leaf of each draw, infinite if it came to no canonical leaf within
            the bound.
        paths: (n,) the leaf's path, or None.
        log2_powers: (n, 5) log2 of each proposal's probability of the leaf, from the root on.
        visits: for each round the (k, 5) `log2_powers` of inner nodes that were visited, their
            automaton states (k,), and how many draws came by (k,).
    """

    def __init__(
        self,
        guides: Sequence[Ints],
        powers: Ints | None = None,
        positions: Floats | None = None,
        known: Ints | None = None,
        bound: float = math.inf,
    ) -> None:
        n = len(guides)
        self.bound = bound
        self._known = np.zeros(n, dtype=np.int64) if known is None else known
        self._lengths = np.array([len(guide) for guide in guides], dtype=np.int64)
        self._guides = np.full((n, int(self._lengths.max(initial=0)) + 1), -1, dtype=np.int64)
        for place, guide in enumerate(guides):
            self._guides[place, : len(guide)] = guide
        self._power = np.full(n, -1, dtype=np.int64) if powers is None else powers
        self._position = np.zeros(n) if positions is None else positions.copy()
        self._at = np.zeros(n, dtype=np.int64)  # the tag of the node where each draw is
        self._log2_powers = np.zeros((1, len(POWERS)))
        self.costs = np.full(n, np.inf)
        self.paths: list[tuple[int, ...] | None] = [None] * n
        self.log2_powers = np.full((n, len(POWERS)), -np.inf)
        self.visits: list[tuple[Floats, Ints, Ints]] = []

    def select(self, parents: Ints, nodes: Nodes) -> Nodes:
        depth = nodes.parents.paths.shape[1]
        row_of = {int(tag): row for row, tag in enumerate(parents)}
        here = np.flatnonzero(np.isin(self._at, parents))
        rows = np.array([row_of[int(tag)] for tag in self._at[here]], dtype=np.int64)
        inside = nodes.costs <= self.bound
        if (self._power < 0).all():
            steps = np.zeros((len(nodes), len(POWERS)))
        else:
            steps = powers_of(nodes, inside, len(parents))
        chosen = np.full(len(here), -1, dtype=np.int64)
        guided = depth < self._lengths[here]
        chosen[guided] = self._guided(nodes, inside, rows[guided], self._guides[here[guided], depth])
        for power in range(len(POWERS)):
            free = ~guided & (self._power[here] == power)
            if free.any():
                chosen[free] = self._free(nodes, steps[:, power], rows[free], here[free])
        self._at[here] = -1
        alive = chosen >= 0
        places, which = np.unique(chosen[alive], return_inverse=True)
        kept = nodes[places]
        kept.tags = np.arange(len(places)) + len(self._log2_powers)
        self._at[here[alive]] = kept.tags[which]
        powers = self._log2_powers[parents[kept.rows]] + steps[places]
        self._log2_powers = np.concatenate([self._log2_powers, powers])
        new = depth + 1 >= self._known[here[alive]]
        draws = np.bincount(which[new], minlength=len(places))
        self.visits.append((powers[draws > 0], kept.states[draws > 0], draws[draws > 0]))
        return kept

    def _guided(
        self, nodes: Nodes, inside: NDArray[np.bool_], rows: Ints, columns: Ints
    ) -> Ints:
        """The children that guided draws go to, -1 where there is none within the bound."""
        if not len(rows) or not len(nodes):
            return np.full(len(rows), -1, dtype=np.int64)
        width = int(max(nodes.columns.max(), columns.max())) + 1
        keys = nodes.rows * width + nodes.columns
        wanted = rows * width + columns
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found = (keys[place] == wanted) & inside[place] & (columns >= 0)
        return np.where(found, place, -1)

    def _free(self, nodes: Nodes, log2_step: Floats, rows: Ints, draws: Ints) -> Ints:
        """The children that free draws fall on; their positions are handed down."""
        step = np.exp2(log2_step)
        ends = np.cumsum(step)
        first = np.searchsorted(nodes.rows, rows, "left")
        last = np.searchsorted(nodes.rows, rows, "right") - 1
        out = np.full(len(rows), -1, dtype=np.int64)
        open_rows = last >= first
        if not open_rows.any():
            return out
        begin = np.where(first > 0, ends[np.maximum(first - 1, 0)], 0.0)
        total = ends[np.maximum(last, 0)] - begin
        open_rows &= total > 0
        target = begin + self._position[draws] * total
        place = np.searchsorted(ends, target, "right")
        # Rounding may point just behind the row, or at a child of probability 0.
        place = np.clip(place, first, last)
        for _ in range(len(nodes)):
            bad = open_rows & (step[place] == 0) & (place > first)
            if not bad.any():
                break
            place[bad] -= 1
        open_rows &= step[np.clip(place, 0, len(step) - 1)] > 0
        low = np.where(place > 0, ends[np.maximum(place - 1, 0)], 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            rest = (target - low) / step[place]
        self._position[draws] = np.clip(np.nan_to_num(rest), 0.0, np.nextafter(1.0, 0.0))
        out[open_rows] = place[open_rows]
        return out

    def leaves(self, nodes: Nodes) -> None:
        paths = nodes.paths.tolist()
        for tag, cost, path in zip(nodes.tags.tolist(), nodes.costs.tolist(), paths, strict=True):
            for draw in np.flatnonzero(self._at == tag):
                self.costs[draw] = cost
                self.paths[draw] = tuple(path)
                self.log2_powers[draw] = self._log2_powers[tag]

    def done(self, least: float) -> bool:
        return False
