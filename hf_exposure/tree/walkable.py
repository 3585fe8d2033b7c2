"""The nodes of a token tree and their children, which is all that a walk asks of it.

The automaton of the format tells which tokens fit; which of them are canonical is told in one of
the four ways that `tokens` describes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from hf_exposure.canaries.automaton import Automaton
from hf_exposure.tree.canonical import PathTests
from hf_exposure.utils.arrays import Bools, Floats, Ints

# More allowed tokens than this are tested for being canonical only when taken. On a model of
# 135 M, 4,096 gave intervals of the same width in 1.4 times the time, 0 up to a fifth wider ones.
_EAGER = 512
_KEPT = 1 << 24  # children that are remembered, all nodes together
WAYS = ("single", "pairs", "text", "leaves")


class WalkableTree:
    """The nodes of a token tree.

    Args:
        automaton: of the secret space, its token steps by tokens of the tree.
        token_ids: (C,) the tokenizer's id of each token.
        tests: which paths are canonical.

    Attributes:
        way: how canonical paths are told, one of `WAYS`.
    """

    def __init__(self, automaton: Automaton, token_ids: Ints, tests: PathTests) -> None:
        self.token_ids = token_ids
        self.automaton = automaton
        self.tests = tests
        self.allowed = [_arrays(step) for step in automaton.token_steps]
        self.choose("leaves")

    def choose(self, way: str, proved: bool = False) -> None:
        """Tell canonical paths in one of `WAYS`; `proved` if no other path leads to a leaf."""
        self.way, self._proved = way, proved
        self.forget()

    def forget(self) -> None:
        """Forget children, which are asked for again."""
        self._children: dict[int, tuple[Ints, Ints]] = {}
        self._kept = 0

    @cached_property
    def leaf(self) -> Bools:
        """(states,) whether a state is the end of a secret."""
        out = np.zeros(len(self.automaton.steps), dtype=bool)
        out[list(self.automaton.accepting)] = True
        return out

    @cached_property
    def _shortest(self) -> Ints:
        """(states,) the fewest tokens from a state to a leaf."""
        steps = enumerate(self.automaton.token_steps)
        edges = [(state, to) for state, step in steps for to in set(step.values())]
        begin, end = np.array(edges, dtype=np.int64).reshape(-1, 2).T
        out = np.where(self.leaf, 0, len(self.leaf))
        while True:
            better = out.copy()
            np.minimum.at(better, begin, out[end] + 1)
            if np.array_equal(better, out):
                return out
            out = better

    def ends_within(self, states: Ints, tokens: float) -> Bools:
        """(n,) whether so many further tokens may lead from each state to a leaf."""
        return self._shortest[states] <= tokens

    @cached_property
    def log2_counts(self) -> Floats:
        """(states,) log2 of the number of strings that lead on from a state."""
        return np.array([math.log2(count) for count in self.automaton.counts])

    def key(self, states: Ints, last: Ints) -> Ints:
        """One number for each node, equal for nodes that have the same children.

        Args:
            states: (n,) states, 0 at the root.
            last: (n,) the last token, -1 at the root.
        """
        if self.way == "pairs":
            return states * (len(self.token_ids) + 1) + last + 1
        return states

    def children(self, key: int) -> tuple[Ints, Ints]:
        """Tokens and states of a node's children, both (n,). Some may turn out impossible."""
        return self.all_children([key])[0]

    def all_children(self, keys: Sequence[int]) -> list[tuple[Ints, Ints]]:
        """The children of several nodes; the tokenizer is asked once for all new pairs."""
        new = {}
        if self._kept > _KEPT:
            self.forget()
        for key in keys:
            if key not in self._children and key not in new:
                state, last = key, -1
                if self.way == "pairs":
                    state, last = divmod(key, len(self.token_ids) + 1)
                    last -= 1
                new[key] = last, *self.allowed[state]
        if self.way == "pairs":
            tested = {
                key: (last, tokens)
                for key, (last, tokens, _) in new.items()
                if last < 0 or len(tokens) <= _EAGER
            }
            sizes = [len(tokens) for _, tokens in tested.values()]
            if tested:
                fine = self.tests.pairs_fit(
                    np.repeat([last for last, _ in tested.values()], sizes),
                    np.concatenate([tokens for _, tokens in tested.values()]),
                )
                parts = np.split(fine, np.cumsum(sizes)[:-1])
                for key, part in zip(tested, parts, strict=True):
                    last, tokens, states = new[key]
                    new[key] = last, tokens[part], states[part]
                    self._kept += int(part.sum())
        self._children.update({key: found[1:] for key, found in new.items()})
        return [self._children[key] for key in keys]

    def possible(self, paths: Ints) -> Bools:
        """(n,) whether some canonical path may begin like each of the (n, depth) paths.

        Every beginning of a path is taken to have been asked for before.
        """
        if self.way == "pairs":
            first = paths[:, -2] if paths.shape[1] > 1 else np.full(len(paths), -1)
            return self.tests.pairs_fit(first, paths[:, -1])
        if self.way == "text":
            return self.tests.may_go_on(paths)
        return np.ones(len(paths), dtype=bool)

    def canonical(self, paths: Ints) -> Bools:
        """(n,) whether each of the (n, depth) paths to leaves is the tokenizer's own."""
        if self._proved:
            return np.ones(len(paths), dtype=bool)
        return self.tests.texts_fit(paths)

    def missed(self, paths: list[Ints]) -> list[Ints]:
        """The beginnings of these canonical paths at which the walk would stop."""
        out: list[Ints] = []
        for depth in range(1, max(map(len, paths), default=0) + 1):
            begun = {tuple(path[:depth].tolist()) for path in paths if len(path) >= depth}
            some = np.array(sorted(begun))
            out.extend(some[~self.possible(some)])
        return out


def _arrays(step: dict[int, int]) -> tuple[Ints, Ints]:
    tokens = sorted(step)
    return (
        np.array(tokens, dtype=np.int64),
        np.array([step[token] for token in tokens], dtype=np.int64),
    )
