"""Leaves that a draw looks at from their parent, all of them for one forward.

The forward that a node takes gives the log-perplexities of all its children. So where a node has
few leaves among them, a free draw does not end on one: it looks at all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_exposure.tree.frontier import Nodes
from hf_exposure.utils.arrays import Bools, Floats, Ints


@dataclass(frozen=True)
class Siblings:
    """Leaves that free draws looked at from their parents.

    Attributes:
        log_perplexities: (m,) bits.
        paths: their paths.
        log2_proposals: (m, k) log2 of each proposal's probability of the parent.
        parents: (m,) a number for each parent.
        draws: (m,) how many free draws came by the parent.
    """

    log_perplexities: Floats
    paths: list[tuple[int, ...]]
    log2_proposals: Floats
    parents: Ints
    draws: Ints


class Looking:
    """Which leaves free draws look at, and what they saw.

    Args:
        most: a node with more leaves than this among its children is not looked at.
        leaf: (states,) whether a state is the end of a secret.
    """

    def __init__(self, most: int, leaf: Bools) -> None:
        self._most, self._leaf = most, leaf
        self._families: dict[int, tuple[int, int]] = {}  # by tag: parent, draws that came by it
        self._parents = 0
        self._met: list[tuple[float, tuple[int, ...], Floats, int, int]] = []

    def among(self, nodes: Nodes, inside: Bools, rows: int) -> Bools:
        """(n,) which children are leaves to be looked at from their parent."""
        leaf = self._leaf[nodes.states] & inside & np.isfinite(nodes.log_perplexities)
        return leaf & (np.bincount(nodes.rows[leaf], minlength=rows)[nodes.rows] <= self._most)

    def note(self, seen: Nodes, came: Ints) -> None:
        """Draws look at these leaves, as many as came by each parent; once for each round."""
        for tag, row in zip(seen.tags.tolist(), seen.rows.tolist(), strict=True):
            self._families[tag] = self._parents + row, int(came[row])
        self._parents += len(came)

    def meet(self, nodes: Nodes, paths: list[tuple[int, ...]], log2_proposals: Floats) -> None:
        """Canonical leaves, with (n, k) log2 of each proposal's probability."""
        for tag, bits, path, log2 in zip(
            nodes.tags.tolist(), nodes.log_perplexities.tolist(), paths, log2_proposals, strict=True
        ):
            if tag in self._families:
                self._met.append((bits, path, log2, *self._families[tag]))

    def siblings(self, width: int) -> Siblings:
        """The leaves that were looked at, with `width` proposals."""
        nothing: list[list[Any]] = [[] for _ in range(5)]
        bits, paths, log2, parents, draws = list(zip(*self._met, strict=True)) or nothing
        return Siblings(
            np.array(bits),
            list(paths),
            np.array(log2).reshape(-1, width),
            np.array(parents, dtype=np.int64),
            np.array(draws, dtype=np.int64),
        )
