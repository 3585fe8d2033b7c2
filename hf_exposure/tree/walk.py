"""The walk over the token tree: every question of the package is a visitor of this one loop.

explore   all prefixes up to a bound, cheapest first or depth first   -> `Explorer`
follow    given paths                                                -> `Sampler`, guided only
sample    leaves, from a mixture of proposals                        -> `Sampler`
search    the cheapest leaves                                        -> `Explorer` with `wanted`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from hf_exposure.models.next_tokens import Branches, NextTokens
from hf_exposure.tree.frontier import Frontier, Nodes, by_depth
from hf_exposure.utils.arrays import Bools, Floats, Ints

_BATCH = 512  # nodes that a search takes at once, at most


class Tree(Protocol):
    """What a walk asks of a tree of tokens; see `TokenTree`. Its root has state 0."""

    @property
    def leaf(self) -> Bools:
        """(states,) whether a state is the end of a path."""

    def key(self, states: Ints, last: Ints) -> Ints:
        """(n,) one number for each node, equal for nodes that have the same children."""

    def all_children(self, keys: Sequence[int]) -> list[tuple[Ints, Ints]]:
        """Tokens, ascending, and states of the children of each node, both (n,)."""

    def ends_within(self, states: Ints, tokens: float) -> Bools:
        """(n,) whether so many further tokens may lead from each state to a leaf."""

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
            nodes: their children, row by row; tokens ascend within a row.
        """

    def leaves(self, nodes: Nodes) -> None:
        """Leaves that were taken: whole, canonical secrets."""

    def done(self, least: float) -> bool:
        """Whether to stop; `least` is the log-perplexity of the cheapest node that waits."""


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
            for place, branches in decoder.step(nodes.parents, nodes.rows, nodes.tokens):
                part = nodes[place]
                _visit(
                    decoder,
                    tree,
                    visitor,
                    frontier,
                    branches,
                    part.states,
                    part.tags,
                    part.log_perplexities,
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
    log_perplexities: Floats,
) -> None:
    """Put the children of newly run branches into the frontier."""
    depth = branches.paths.shape[1]
    last = branches.paths[:, -1] if depth else np.full(len(states), -1, dtype=np.int64)
    keys, kind = np.unique(tree.key(states, last), return_inverse=True)
    children = tree.all_children(keys.tolist())
    sizes = np.array([len(tokens) for tokens, _ in children])[kind]
    row = np.repeat(np.arange(len(states)), sizes)
    token = np.concatenate([children[place][0] for place in kind])
    following = np.concatenate([children[place][1] for place in kind])
    # What does not fit the context is no canonical path, for those were found to fit.
    fits = tree.ends_within(following, decoder.room - depth - 1)
    if not fits.all():
        row, token, following = row[fits], token[fits], following[fits]
    total = log_perplexities[row] + decoder.next_bits(branches, row, token)
    nodes = visitor.select(tags, Nodes(branches, row, token, following, total, np.zeros_like(row)))
    frontier.push(nodes.sorted())
