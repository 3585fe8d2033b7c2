"""Visitor that takes all prefixes up to a bound, for exploring and for searching."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field

from hf_exposure.tree.frontier import Nodes
from hf_exposure.tree.proposals import Rows, powers_of
from hf_exposure.utils.arrays import Floats, Ints


@dataclass
class Explorer:
    """All prefixes that cost at most `bound` bits, as far as the walk comes.

    Args:
        bound: children that cost more are left out, with all that lies under them.
        propose: keep the proposals' probabilities of each node, from the root on; see `powers`.
        wanted: stop when so many leaves cost no more than anything that waits.
        most: stop when so many nodes were kept, for each takes memory.

    Attributes:
        log_perplexities: those of the leaves that were met, in the order of the walk.
        paths: their paths.
    """

    bound: float = math.inf
    propose: bool = False
    wanted: float = math.inf
    most: float = math.inf
    log_perplexities: list[float] = field(default_factory=list)
    paths: list[tuple[int, ...]] = field(default_factory=list)
    _kept: int = 0
    _sorted: list[float] = field(default_factory=list)
    _log2_powers: Rows = field(default_factory=Rows)

    def select(self, parents: Ints, nodes: Nodes) -> Nodes:
        inside = nodes.log_perplexities <= self.bound
        every = bool(inside.all())
        kept = nodes if every else nodes[inside]
        self._kept += len(kept)
        if self.propose:
            step = powers_of(nodes, inside)
            step = step if every else step[inside]
            kept.tags = self._log2_powers.add(self.powers(parents[kept.rows]) + step)
        return kept

    def powers(self, tags: Ints) -> Floats:
        """(n, 5) log2 of the proposals' probabilities of coming by nodes with these tags."""
        return self._log2_powers[tags]

    def leaves(self, nodes: Nodes) -> None:
        self.log_perplexities.extend(nodes.log_perplexities.tolist())
        self.paths.extend(map(tuple, nodes.paths.tolist()))
        if math.isfinite(self.wanted):
            for log_perplexity in nodes.log_perplexities.tolist():
                bisect.insort(self._sorted, log_perplexity)

    def certain(self, least: float) -> int:
        """How many leaves cost no more than `least`; counted only with `wanted`."""
        return bisect.bisect_right(self._sorted, least)

    def done(self, least: float) -> bool:
        """Whether enough leaves are cheaper than all that waits, or nodes are too many."""
        if self._kept >= self.most:
            return True
        return math.isfinite(self.wanted) and self.certain(least) >= self.wanted
