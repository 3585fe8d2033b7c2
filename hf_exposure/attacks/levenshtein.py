"""The tree of all token sequences within some edits of a given one, for the walk.

Its states are those of the Levenshtein automaton of the sequence: after d tokens, how many edits
(insertions, deletions, substitutions of one token) turn them into the first j tokens of the
sequence, for each j (a row of the usual table, of which only the band |j - d| <= edits matters).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from hf_exposure.utils.arrays import Bools, Ints

Row = tuple[int, ...]


class NearTree:
    """What a model may write in place of `target` within `edits` edits. A `Tree` of the walk.

    A path is a text of exactly as many tokens as the target, or one that a token of `ends` has
    ended before. Columns are token ids.

    Guarantees:
        - No leaf lies under another, and every path has at most one leaf on it: leaves are
          disjoint events.
        - A path is within `edits` edits of the target iff there is a leaf on it. A leaf comes as
          early as that is certain, however the path goes on: the first n - edits tokens of the
          target are a leaf already.

    Args:
        target: (n,) token ids.
        edits: how many tokens may be inserted, deleted or substituted, fewer than n.
        vocabulary: number of token ids.
        ends: tokens that end a text, and are no part of it. Those that occur in the target are
            tokens like others.

    Attributes:
        states: how many states have been met.

    Raises:
        ValueError: with so many edits every text is near.
    """

    def __init__(
        self, target: Sequence[int] | Ints, edits: int, vocabulary: int, ends: Collection[int] = ()
    ) -> None:
        self.target = [int(token) for token in target]
        if not 0 <= edits < len(self.target):
            raise ValueError(
                f"NearTree: edits={edits} with a target of {len(self.target)} tokens; "
                "every text of that length would be near: give a smaller number"
            )
        self.edits = edits
        self.vocabulary = vocabulary
        self.ends = sorted({end for end in ends if 0 <= end < vocabulary} - set(self.target))
        # State 0 is the root, state 1 a text that was ended early and is near.
        self._rows: list[tuple[int, Row]] = [(0, self._first()), (len(self.target), ())]
        self._numbers: dict[tuple[int, Row], int] = {self._rows[0]: 0}
        self._leaf = [False, True]
        self._steps: dict[int, tuple[int, dict[int, int]]] = {}

    def _first(self) -> Row:
        return tuple(min(j, self.edits + 1) for j in range(len(self.target) + 1))

    # What the walk asks

    @property
    def states(self) -> int:
        return len(self._rows)

    @property
    def leaf(self) -> Bools:
        """(states,) whether all that goes on from a state is near."""
        return np.array(self._leaf)

    def key(self, states: Ints, last: Ints) -> Ints:
        """Nodes of one state have the same children."""
        return states

    def children(self, key: int) -> tuple[Ints, Ints]:
        """Tokens, ascending, and states of a node's children, both (n,)."""
        other, special = self._following(key)
        if other < 0:
            some = {token: state for token, state in special.items() if state >= 0}
            tokens = np.array(sorted(some), dtype=np.int64)
            return tokens, np.array([some[token] for token in tokens.tolist()], dtype=np.int64)
        states = np.full(self.vocabulary, other, dtype=np.int64)
        states[list(special)] = list(special.values())
        tokens = np.flatnonzero(states >= 0)
        return tokens, states[tokens]

    def ends_within(self, states: Ints, tokens: float) -> Bools:
        """No path is longer than the target, which fits."""
        return np.ones(len(states), dtype=bool)

    def all_children(self, keys: Sequence[int]) -> list[tuple[Ints, Ints]]:
        """The same of several nodes."""
        return [self.children(key) for key in keys]

    def possible(self, paths: Ints) -> Bools:
        return np.ones(len(paths), dtype=bool)

    def canonical(self, paths: Ints) -> Bools:
        """A sample is what it is, whether the tokenizer would have split it so or not."""
        return np.ones(len(paths), dtype=bool)

    # What the states mean

    def row(self, state: int) -> tuple[int, Row]:
        """The number of tokens up to a state, and for each j the edits between them and the first
        j tokens of the target, `edits` + 1 standing for all that is more."""
        return self._rows[state]

    def on_target(self, state: int) -> bool:
        """Whether the tokens up to a state are those of the target itself."""
        depth, row = self._rows[state]
        return bool(row) and row[depth] == 0

    def _following(self, state: int) -> tuple[int, dict[int, int]]:
        """The state after any other token, and after certain ones; -1 where nothing is near."""
        if state not in self._steps:
            depth, row = self._rows[state]
            band = range(max(0, depth - self.edits), min(len(row) - 1, depth + self.edits + 1))
            tokens = {self.target[j] for j in band}
            special = {token: self._after(state, token) for token in tokens}
            near = 1 if row[-1] <= self.edits else -1
            special.update(dict.fromkeys(self.ends, near))
            self._steps[state] = self._after(state, -1), special
        return self._steps[state]

    def _after(self, state: int, token: int) -> int:
        """The state that a token leads to."""
        depth, row = self._rows[state]
        most = self.edits + 1
        new = [min(depth + 1, most)]
        for j, wanted in enumerate(self.target, 1):
            edits = min(row[j] + 1, new[j - 1] + 1, row[j - 1] + (wanted != token))
            new.append(min(edits, most))
        depth += 1
        rest = len(self.target) - depth
        # From the first j tokens of the target on a text may go on with the next ones; what is then
        # too much or too little of it are edits. One that ends early need not be too long.
        least = min(value + abs(j - depth) for j, value in enumerate(new))
        if self.ends and rest:
            ended = min(value + max(0, depth + 1 - j) for j, value in enumerate(new))
            least = min(least, ended)
        if least > self.edits:
            return -1
        name = depth, tuple(new)
        if name not in self._numbers:
            self._numbers[name] = len(self._rows)
            self._rows.append(name)
            # From its first j tokens on, j >= depth, `rest` edits always do: what comes is
            # substituted for what is left, and is inserted where nothing is left. Nor is less
            # enough for tokens that do not occur in the target.
            self._leaf.append(min(new[depth:]) + rest <= self.edits)
        return self._numbers[name]
