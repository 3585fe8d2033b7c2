"""Exploring the token tree: what is known exactly of the likely strings."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from hf_exposure.tree.explorer import Explorer
from hf_exposure.tree.frontier import CheapestFirst, DepthFirst, Frontier
from hf_exposure.tree.prefixes import Prefixes
from hf_exposure.tree.scoring import ScoredTree
from hf_exposure.tree.walk import unvisited, walk
from hf_exposure.utils.arrays import Floats, Ints

# Nodes that an exploration keeps at most: with what is made of them each takes about 400 bytes, and
# a vocabulary of 256,000 has as many children of a prefix. What waits then is left to the draws.
_MOST = 1 << 21
_BEGIN = 32  # prefixes that all processes visit alike before they share the rest


@dataclass(frozen=True)
class Explored:
    """What is known of the strings that cost at most `bound`.

    Attributes:
        log_perplexities: (m,) bits of the leaves that were met, canaries left out.
        canaries: paths of all canaries of the group, which are counted apart.
        frontier: the prefixes that were met and not visited: the unexplored rest lies under them.
    """

    bound: float
    log_perplexities: Floats
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
    count = scored.processes.count
    one_way = depth_first and count == 1  # and few nodes at a time
    explorer = Explorer(bound=bound, propose=True, most=math.inf if one_way else _MOST)
    budget = min(max_forwards, scored.room)
    begin = min(budget, _BEGIN if budget > 2 * _BEGIN * count else math.inf)
    frontier: Frontier = DepthFirst() if one_way else CheapestFirst()
    if math.isfinite(bound) and (scored.processes.number == 0 or begin < budget):
        _walk_on(scored, explorer, frontier, budget if count == 1 else begin, depth_first)
    if count > 1 and begin < budget and not math.isinf(frontier.least()):
        frontier = _dealt(scored, explorer, frontier, depth_first)
        _walk_on(scored, explorer, frontier, budget / count - begin, depth_first)
    elif scored.processes.number > 0:  # all has been done by all, or by the first alone
        explorer, frontier = Explorer(), CheapestFirst()
    left = [Prefixes.of(nodes, explorer) for nodes in unvisited(scored.tree, explorer, frontier)]
    own = {tuple(path.tolist()) for path in canaries}
    log_perplexities = [
        log_perplexity
        for log_perplexity, path in zip(explorer.log_perplexities, explorer.paths, strict=True)
        if path not in own
    ]
    met = scored.gather((log_perplexities, left))
    return Explored(
        bound,
        np.array([log_perplexity for some, _ in met for log_perplexity in some], dtype=np.float64),
        own,
        # In an order of its own, whatever the order of the walk was: draws go by it.
        Prefixes.joined([some for _, parts in met for some in parts]),
    )


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
        explorer.log_perplexities.clear()
        explorer.paths.clear()
    return share
