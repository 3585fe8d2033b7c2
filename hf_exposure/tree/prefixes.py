"""What an exploration has met and not visited, as plain arrays: it may be millions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hf_exposure.tree.explorer import Explorer
from hf_exposure.tree.frontier import Nodes
from hf_exposure.tree.proposals import POWERS
from hf_exposure.utils.arrays import Floats, Ints


@dataclass(frozen=True)
class Prefixes:
    """Prefixes of which none begins with another one.

    Attributes:
        paths: (f, depth) int32, their tokens, -1 behind the end of each.
        depths: (f,) how many tokens each has.
        log_perplexities: (f,) bits.
        states: (f,) their states in the tree's automaton.
        powers: (f, 5) log2 of the powers' probabilities of coming by them.
    """

    paths: npt.NDArray[np.int32]
    depths: Ints
    log_perplexities: Floats
    states: Ints
    powers: Floats

    @classmethod
    def of(cls, nodes: Nodes, explorer: Explorer) -> Prefixes:
        """Those of nodes that an explorer has tagged, as they come."""
        paths = nodes.paths.astype(np.int32)
        depths = np.full(len(nodes), paths.shape[1])
        return cls(paths, depths, nodes.log_perplexities, nodes.states, explorer.powers(nodes.tags))

    @classmethod
    def joined(cls, parts: Sequence[Prefixes]) -> Prefixes:
        """All of them, in the order that their paths have as tuples, whatever theirs was."""
        if not parts:
            nothing = np.zeros(0, dtype=np.int64)
            return cls(
                nothing[:, None].astype(np.int32),
                nothing,
                np.zeros(0),
                nothing,
                np.zeros((0, len(POWERS))),
            )
        depth = max(part.paths.shape[1] for part in parts)
        paths = np.full((sum(map(len, parts)), depth), -1, dtype=np.int32)
        begin = 0
        for part in parts:
            paths[begin : begin + len(part), : part.paths.shape[1]] = part.paths
            begin += len(part)
        order = np.lexsort(paths.T[::-1])
        return cls(
            paths[order],
            np.concatenate([part.depths for part in parts])[order],
            np.concatenate([part.log_perplexities for part in parts])[order],
            np.concatenate([part.states for part in parts])[order],
            np.concatenate([part.powers for part in parts])[order],
        )

    def __len__(self) -> int:
        return len(self.log_perplexities)

    def path(self, place: int) -> Ints:
        """(depth,) tokens of one."""
        return self.paths[place, : self.depths[place]].astype(np.int64)

    def place_of(self, path: Ints) -> int | None:
        """The place of the one that `path` begins with, if any."""
        first, last = 0, len(self)
        for depth, token in enumerate(path[: self.paths.shape[1]]):
            level = self.paths[first:last, depth]
            first, last = (
                first + int(np.searchsorted(level, token, "left")),
                first + int(np.searchsorted(level, token, "right")),
            )
            if first == last:
                return None
            if self.depths[first] == depth + 1:
                return first
        return None
