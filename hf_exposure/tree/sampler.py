"""Visitor that follows given paths and draws leaves from a mixture of proposals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_exposure.tree.frontier import Nodes
from hf_exposure.tree.looking import Looking
from hf_exposure.tree.positions import Positions
from hf_exposure.tree.proposals import POWERS, Rows, normalized, powers_of
from hf_exposure.utils.arrays import Bools, Floats, Ints


@dataclass(frozen=True)
class Draws:
    """Draws that are to be made, n of them: each follows a path to its end and goes on freely.

    Attributes:
        guides: the path that each follows.
        powers: (n,) the proposal that each then goes on by, a place in `POWERS` or, behind those,
            among the aims; -1, as without any, for none.
        positions: (n,) in [0, 1): where each lies in its proposal's cumulative distribution,
            handed down from node to children (so that n slices give one draw each).
        known: (n,) the depth up to which each path has been explored.
        starts: (n, k) log2 of the proposals' probabilities of the node at the depth `known`, if
            they are not those of coming by it from the root.
    """

    guides: Sequence[Ints]
    powers: Ints | None = None
    positions: Floats | None = None
    known: Ints | None = None
    starts: Floats | None = None


class Sampler:
    """Draws that go down the tree together: guided along given paths, then free.

    Equal prefixes of several draws are run once. Every proposal's probability of each node is
    kept along the way, so that the mixture's density at a leaf is known exactly.

    Args:
        draws: what each draw does.
        bound: children that cost more bits are left out.
        aims: further proposals: gives for (n,) log-perplexities and states of children (n, a)
            scores, and the children of a node are drawn in proportion to 2^score.
        looking: at which leaves free draws look from their parent; None for none.

    Attributes:
        log_perplexities: (n,) bits of the leaf of each draw, infinite if it came to no canonical
            leaf within the bound, or only looked at some.
        paths: (n,) the leaf's path, or None.
        log2_powers: (n, k) log2 of each proposal's probability of the leaf, or of its parent if
            free draws look at it from there.
        visits: for each round the (j, k) `log2_powers` of inner nodes that were visited beyond
            what is known, their automaton states (j,), and how many draws came by (j,).
        trail: for each round the draws (j,) that went on, and the log-perplexities and states of
            the nodes that they came to, both (j,).
    """

    def __init__(
        self,
        draws: Draws,
        bound: float = math.inf,
        aims: Callable[[Floats, Ints], Floats] | None = None,
        looking: Looking | None = None,
    ) -> None:
        n, guides = len(draws.guides), draws.guides
        self.bound = bound
        self._known = np.zeros(n, dtype=np.int64) if draws.known is None else draws.known
        lengths = [len(guide) for guide in guides]
        self._guides = np.full((n, max(lengths, default=0) + 1), -1, dtype=np.int64)
        for place, guide in enumerate(guides):
            self._guides[place, : len(guide)] = guide
        self._power = np.full(n, -1, dtype=np.int64) if draws.powers is None else draws.powers
        self._positions = Positions(np.zeros(n) if draws.positions is None else draws.positions)
        self._at = np.zeros(n, dtype=np.int64)  # the tag of the node where each draw is
        self._starts, self._aims, self._looking = draws.starts, aims, looking
        width = len(POWERS) if draws.starts is None else draws.starts.shape[1]
        self._log2_powers = Rows(width)
        self.log_perplexities = np.full(n, np.inf)
        self.paths: list[tuple[int, ...] | None] = [None] * n
        self.log2_powers = np.full((n, width), -np.inf)
        self.visits: list[tuple[Floats, Ints, Ints]] = []
        self.trail: list[tuple[Ints, Floats, Ints]] = []

    def select(self, parents: Ints, nodes: Nodes) -> Nodes:
        depth = nodes.parents.paths.shape[1]
        here, rows = self._draws_at(parents)
        inside = nodes.log_perplexities <= self.bound
        steps = self._steps(nodes, inside)
        chosen = np.full(len(here), -1, dtype=np.int64)
        token = self._guides[here, min(depth, self._guides.shape[1] - 1)]
        guided = token >= 0
        chosen[guided] = self._guided(nodes, inside, rows[guided], token[guided])
        for power in range(steps.shape[1]):
            free = ~guided & (self._power[here] == power)
            if free.any():
                chosen[free] = self._positions.fall(nodes, steps[:, power], rows[free], here[free])
        looked = np.zeros(len(nodes), dtype=bool)
        if self._looking is not None:
            looked = self._looking.among(nodes, inside, len(parents))
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
        if self._looking is not None:
            self._looking.note(kept[seen[places]], came)
        new = depth + 1 >= self._known[here[alive]]
        draws = np.bincount(which[new], minlength=len(places))
        self.visits.append((powers[draws > 0], kept.states[draws > 0], draws[draws > 0]))
        self.trail.append((here[alive], kept.log_perplexities[which], kept.states[which]))
        return kept

    def _steps(self, nodes: Nodes, inside: Bools) -> Floats:
        """(n, k) log2 of each proposal's probability of going from the parent to each child."""
        if (self._power < 0).all():
            return np.zeros((len(nodes), self.log2_powers.shape[1]))
        steps = powers_of(nodes, inside)
        if self._aims is None:
            return steps
        inside = inside & np.isfinite(nodes.log_perplexities)
        scores = np.full((len(nodes), self.log2_powers.shape[1] - len(POWERS)), -np.inf)
        scores[inside] = self._aims(nodes.log_perplexities[inside], nodes.states[inside])
        return np.concatenate([steps, normalized(scores, nodes.rows, inside)], axis=1)

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
        self.log_perplexities[draws] = nodes.log_perplexities[places]
        self.log2_powers[draws] = self._log2_powers[nodes.tags[places]]
        paths = [tuple(path) for path in nodes.paths.tolist()]
        for draw, place in zip(draws.tolist(), places.tolist(), strict=True):
            self.paths[draw] = paths[place]
        if self._looking is not None:
            self._looking.meet(nodes, paths, self._log2_powers[nodes.tags])

    def done(self, least: float) -> bool:
        return False
