"""How likely a sample comes within a few edits of a text: a walk over the tree of near texts."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from hf_exposure.attacks.levenshtein import NearTree
from hf_exposure.attacks.pairs import Pair
from hf_exposure.models.decoder import Decoder
from hf_exposure.tree.frontier import CheapestFirst, Nodes
from hf_exposure.tree.walk import walk
from hf_exposure.utils.arrays import Floats, Ints

_ENOUGH = math.log2(0.999)  # a search stops when so much is near: the rest cannot matter
_WORST = 64.0  # bits of a token, at most, in guessing what a path will cost


def near_bound(
    decoder: Decoder, pair: Pair, costs: Floats, edits: int, ends: Iterable[int], budget: int
) -> tuple[float, bool]:
    """A lower bound on the probability that a sample comes within `edits` edits of the suffix.

    It is the sum of the probabilities of those leaves of the `NearTree` that a walk comes to: they
    are disjoint events. What looks likely to hold most is visited first.

    Args:
        decoder: with the prefix as prompt and all tokens as columns.
        costs: (n,) bits of the suffix's own tokens, each given those before.
        ends: tokens that end a text.
        budget: token-forwards that the decoder may have made in the end.

    Returns:
        log2 of the bound, and whether it is the probability itself, for nothing was left out.
    """
    suffix = pair.suffix
    if edits >= len(suffix):
        return 0.0, True  # all texts of its length are near
    if set(suffix.tolist()) & set(ends):
        # Most near texts go on behind an end, which no sample does: only the suffix itself counts.
        return log2_of(costs), False
    tree = NearTree(suffix, edits, decoder.vocabulary, set(ends))
    own = log2_of(costs[: len(suffix) - edits])  # the leaf that the suffix itself lies under
    search = _NearSearch(tree, decoder, costs, budget)
    finished = False
    if budget > len(pair.prefix):
        finished = walk(decoder, tree, search, CheapestFirst(), max_forwards=budget, eager=False)
    found = search.log2_found
    if not search.own_found:
        found = float(np.logaddexp2(found, own))
    exact = finished and not search.cut and found < _ENOUGH
    return min(max(found, own), 0.0), exact


class _NearSearch:
    """Adds up the leaves among the children of all nodes that a walk visits.

    Nodes wait in the order of what their path has cost and, as a guess, the bits that the rest of
    the suffix costs at its own place, without the tokens that may still be replaced (as A* does
    with an estimate of the remaining way; the sum is a bound whatever the guess is worth).

    Args:
        costs: (n,) bits of the suffix's own tokens.
        budget: token-forwards that the decoder may have made in the end.

    Attributes:
        log2_found: log2 of the sum of the probabilities of the leaves.
        own_found: whether the leaf that the suffix lies under is one of them.
        cut: whether nodes were let go of that the budget cannot reach.
    """

    def __init__(self, tree: NearTree, decoder: Decoder, costs: Floats, budget: int) -> None:
        self._tree, self._decoder, self._budget = tree, decoder, budget
        self._costs = np.minimum(costs, _WORST)
        self._guesses = np.zeros(1)  # by state; the root's place in the order is of no account
        self.log2_found = -math.inf
        self.own_found = self.cut = False

    def select(self, parents: Ints, nodes: Nodes) -> Nodes:
        """A node's tag is its state, so that the guess of its parent can be taken off again."""
        guesses = self._all_guesses()
        costs = nodes.log_perplexities - guesses[parents[nodes.rows]]
        possible = np.isfinite(costs)
        leaf = self._tree.leaf[nodes.states] & possible
        if leaf.any():
            self.log2_found = float(
                np.logaddexp2(self.log2_found, np.logaddexp2.reduce(-costs[leaf]))
            )
            states = np.unique(nodes.states[leaf])
            self.own_found |= any(self._tree.on_target(int(state)) for state in states)
        inner = np.flatnonzero(possible & ~leaf)
        ranks = costs[inner] + guesses[nodes.states[inner]]
        room = max(0, self._budget - self._decoder.forwards)
        if len(inner) > room:  # no more of them can have their turn
            self.cut = True
            best = np.argpartition(ranks, room - 1)[:room] if room else np.zeros(0, dtype=np.int64)
            inner, ranks = inner[best], ranks[best]
        kept = nodes[inner]
        kept.log_perplexities, kept.tags = ranks, kept.states
        return kept

    def leaves(self, nodes: Nodes) -> None:
        """None is left to take: they were added up when they were met."""

    def done(self, least: float) -> bool:
        return self.log2_found >= _ENOUGH

    def _all_guesses(self) -> Floats:
        """(states,) bits that the rest of a path may cost."""
        new = range(len(self._guesses), self._tree.states)
        if new:
            self._guesses = np.append(self._guesses, [self._guess(state) for state in new])
        return self._guesses

    def _guess(self, state: int) -> float:
        depth, row = self._tree.row(state)
        out = math.inf
        for j, used in enumerate(row):
            spare = self._tree.edits - used - abs(j - depth)
            if spare >= 0:
                rest = np.sort(self._costs[j : j + len(self._costs) - depth])
                out = min(out, float(rest[: max(0, len(rest) - spare)].sum()))
        return out if math.isfinite(out) else 0.0


def log2_of(costs: Floats) -> float:
    """log2 of the probability of tokens with these bits."""
    return -math.fsum(costs.tolist()) if np.isfinite(costs).all() else -math.inf
