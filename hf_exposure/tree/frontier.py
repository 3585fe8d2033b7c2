"""The nodes that a walk has met and not yet visited, and in which order it takes them.

Nodes wait in blocks, the children of one batch of branches, sorted by log-perplexity. Each order is
one class with the same three methods: `push` a block, `take` some nodes, look at what is `waiting`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hf_exposure.models.next_tokens import Branches, together
from hf_exposure.utils.arrays import Bools, Floats, Ints


@dataclass
class Nodes:
    """Some nodes of one depth.

    Attributes:
        parents: the branches that they continue.
        rows: (n,) each node's row in `parents`.
        tokens: (n,) its token.
        states: (n,) its state in the tree's automaton.
        log_perplexities: (n,) bits of the path up to and with its token.
        tags: (n,) numbers that whoever walks has given them.
    """

    parents: Branches
    rows: Ints
    tokens: Ints
    states: Ints
    log_perplexities: Floats
    tags: Ints

    def __len__(self) -> int:
        return len(self.log_perplexities)

    def __getitem__(self, place: Ints | slice | Bools) -> Nodes:
        return Nodes(
            self.parents,
            self.rows[place],
            self.tokens[place],
            self.states[place],
            self.log_perplexities[place],
            self.tags[place],
        )

    @property
    def paths(self) -> Ints:
        """(n, depth) tokens from the prompt to each node."""
        return np.concatenate([self.parents.paths[self.rows], self.tokens[:, None]], axis=1)

    def sorted(self) -> Nodes:
        """The same nodes, cheapest first."""
        return self[np.argsort(self.log_perplexities, kind="stable")]


def by_depth(pieces: Sequence[Nodes]) -> list[Nodes]:
    """Pieces of one depth put together, sorted by log-perplexity: each is then one forward.

    Those whose cache was dropped stay apart, since they cost more.
    """
    alike: dict[tuple[int, bool], list[Nodes]] = {}
    for nodes in pieces:
        parents = nodes.parents
        alike.setdefault((parents.paths.shape[1], parents.cache is None), []).append(nodes)
    return [_one(group) if len(group) > 1 else group[0] for group in alike.values()]


def _one(pieces: Sequence[Nodes]) -> Nodes:
    # Each node gets a row of its own; the rows' caches are put together by the step itself.
    return Nodes(
        together([(nodes.parents, nodes.rows) for nodes in pieces]),
        np.arange(sum(map(len, pieces))),
        np.concatenate([nodes.tokens for nodes in pieces]),
        np.concatenate([nodes.states for nodes in pieces]),
        np.concatenate([nodes.log_perplexities for nodes in pieces]),
        np.concatenate([nodes.tags for nodes in pieces]),
    ).sorted()


class Frontier(Protocol):
    """Nodes that wait, and the order in which they are taken."""

    def push(self, nodes: Nodes) -> None:
        """Add nodes, sorted by log-perplexity."""

    def take(self, limit: int) -> list[Nodes]:
        """Remove about `limit` nodes: the next ones, or none if nothing waits."""

    def waiting(self) -> Iterator[Nodes]:
        """What is left, the nodes that will be taken last first."""

    def least(self) -> float:
        """The log-perplexity of the cheapest node that waits, infinite if none does."""


class DepthFirst:
    """The newest block first: visits the same nodes as cheapest-first below a known bound, and
    holds few of them at a time."""

    def __init__(self) -> None:
        self._stack: list[Nodes] = []

    def push(self, nodes: Nodes) -> None:
        if len(nodes):
            self._stack.append(nodes)

    def take(self, limit: int) -> list[Nodes]:
        if not self._stack:
            return []
        nodes = self._stack.pop()
        if len(nodes) > limit:
            self._stack.append(nodes[limit:])
            nodes = nodes[:limit]
        return [nodes]

    def waiting(self) -> Iterator[Nodes]:
        return iter(self._stack)

    def least(self) -> float:
        return min((float(nodes.log_perplexities[0]) for nodes in self._stack), default=np.inf)


class CheapestFirst:
    """The cheapest nodes of all blocks first: a leaf that is taken before all else is the best."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []  # a block's next log-perplexity, the block
        self._blocks: dict[int, Nodes] = {}
        self._count = itertools.count()

    def push(self, nodes: Nodes) -> None:
        if len(nodes):
            # Newest first among equals, which goes deep rather than wide.
            name = -next(self._count)
            self._blocks[name] = nodes
            heapq.heappush(self._heap, (float(nodes.log_perplexities[0]), name))

    def take(self, limit: int) -> list[Nodes]:
        # Blocks by their cheapest node, as long as one may hold a node of the cheapest `limit`.
        names: list[int] = []
        pool, most = np.zeros(0), np.inf
        while self._heap and (len(pool) < limit or self._heap[0][0] <= most):
            names.append(heapq.heappop(self._heap)[1])
            pool = np.concatenate([pool, self._blocks[names[-1]].log_perplexities[:limit]])
            if len(pool) >= limit:
                pool = np.partition(pool, limit - 1)[:limit]
                most = float(pool[-1])
        left = limit - np.count_nonzero(pool < most) if len(pool) >= limit else limit
        # One piece for each block. Of nodes that cost as much as the last, the newest block's.
        taken = []
        for name in sorted(names):
            nodes = self._blocks.pop(name)
            below = int(np.searchsorted(nodes.log_perplexities, most, "left"))
            equal = int(np.searchsorted(nodes.log_perplexities, most, "right")) - below
            end = below + min(equal, left)
            left -= end - below
            if end:
                taken.append(nodes[:end])
            if end < len(nodes):
                self._blocks[name] = nodes[end:]
                heapq.heappush(self._heap, (float(nodes.log_perplexities[end]), name))
        return taken

    def waiting(self) -> Iterator[Nodes]:
        return (self._blocks[name] for _, name in sorted(self._heap, key=lambda item: -item[0]))

    def least(self) -> float:
        return self._heap[0][0] if self._heap else np.inf


class Beam(CheapestFirst):
    """Only the `width` cheapest nodes of a level go on, as in the paper's beam: no proof.

    Attributes:
        cut: whether any node was dropped; if none was, the search was complete after all.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.cut = False

    def take(self, limit: int) -> list[Nodes]:
        out = super().take(self.width)
        self.cut = self.cut or bool(self._heap)
        self._heap.clear()
        self._blocks.clear()
        return out
