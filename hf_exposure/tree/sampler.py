"""Visitor that follows given paths and draws leaves from a mixture of proposals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_exposure.tree.frontier import Nodes
from hf_exposure.tree.proposals import POWERS, Rows, normalized, powers_of
from hf_exposure.utils.arrays import Bools, Floats, Ints

_DIGITS = 20.0  # binary digits of a draw's position to use up; a float has 53


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


class _Positions:
    """Where each draw lies in its proposal's cumulative distribution, handed down to children.

    Under nodes of a small probability it is drawn anew: the digits of one number would not last
    for a large secret space.

    Args:
        positions: (n,) in [0, 1).
    """

    def __init__(self, positions: Floats) -> None:
        self._position = np.array(positions, dtype=float)
        self._draw = np.random.default_rng(self._position.view(np.uint64))
        self._fresh: list[Floats] = []  # positions to go on with, (n,) each
        self._renewed = np.zeros(len(positions), dtype=np.int64)  # how many each draw has used
        self._used_bits = np.zeros(len(positions))  # binary digits that each has lost

    def fall(self, nodes: Nodes, log2_step: Floats, rows: Ints, draws: Ints) -> Ints:
        """The children that these draws fall on from the given rows, -1 for none."""
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
            handed down from node to children (so that n slices give one draw each).
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
        self._positions = _Positions(np.zeros(n) if positions is None else positions)
        self._at = np.zeros(n, dtype=np.int64)  # the tag of the node where each draw is
        self._starts, self._aims = starts, aims
        self._looks, self._leaf = looks, leaf
        width = len(POWERS) if starts is None else starts.shape[1]
        self._log2_powers = Rows(width)
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
        token = self._guides[here, min(depth, self._guides.shape[1] - 1)]
        guided = token >= 0
        chosen[guided] = self._guided(nodes, inside, rows[guided], token[guided])
        for power in range(steps.shape[1]):
            free = ~guided & (self._power[here] == power)
            if free.any():
                chosen[free] = self._positions.fall(nodes, steps[:, power], rows[free], here[free])
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
        costs, paths, log2, parents, draws = list(zip(*self._siblings, strict=True)) or nothing
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
        return np.concatenate([steps, normalized(scores, nodes.rows, inside)], axis=1)

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

    def _guided(self, nodes: Nodes, inside: Bools, rows: Ints, tokens: Ints) -> Ints:
        """The children that guided draws go to, -1 where there is none within the bound."""
        if not len(rows) or not len(nodes):
            return np.full(len(rows), -1, dtype=np.int64)
        width = int(max(nodes.tokens.max(), tokens.max())) + 1
        keys = nodes.rows * width + nodes.tokens
        wanted = rows * width + tokens
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found = (keys[place] == wanted) & inside[place]
        return np.where(found, place, -1)

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
