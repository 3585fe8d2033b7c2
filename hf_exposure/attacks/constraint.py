"""Generation that is held to a secret format: `generate` may only write what leads to a secret."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, StoppingCriteria

from hf_exposure.tree.tokens import TokenTree
from hf_exposure.utils.arrays import Ints


class Constraint(LogitsProcessor):
    """Lets only tokens through that lead on in the tree; after a leaf, padding at no cost.

    Args:
        room: how many tokens there may be.
    """

    def __init__(self, tree: TokenTree, pad: int, room: float = math.inf) -> None:
        self._tree = tree
        self._room = room
        self._pad = pad
        self._known: dict[tuple[int, ...], list[int]] = {}
        self._leads: dict[tuple[int, ...], bool] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(B, V) scores, minus infinity where a token is not allowed."""
        out = torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(self.new_tokens(input_ids)):
            allowed = self.allowed(tokens)
            if allowed:
                out[row, allowed] = scores[row, allowed]
            else:
                out[row, self._pad] = 0.0
        return out

    def new_tokens(self, input_ids: torch.Tensor) -> list[list[int]]:
        """The tokens of each sequence after the prompt."""
        new: list[list[int]] = input_ids[:, len(self._tree.prompt) :].tolist()
        return new

    def allowed(self, tokens: Sequence[int]) -> list[int]:
        """What may follow these tokens; nothing after a leaf."""
        name = tuple(tokens)
        if name not in self._known:
            self._known[name] = self._look_up(tokens)
        return self._known[name]

    def _look_up(self, tokens: Sequence[int]) -> list[int]:
        path, state = self._tree.descend(tokens)
        if state is None or self._tree.leaf[state]:
            return []
        columns, states = self._children(path, state)
        before = path.tolist()
        return [
            int(self._tree.token_ids[column])
            for column, following in zip(columns.tolist(), states.tolist(), strict=True)
            if self._leads_on(np.array([*before, column]), following)
        ]

    def _children(self, path: Ints, state: int) -> tuple[Ints, Ints]:
        tree = self._tree
        columns, states = tree.children(self._key(path, state))
        if len(columns):
            before = np.broadcast_to(path, (len(columns), len(path)))
            fine = tree.possible(np.column_stack([before, columns]))
            fine &= tree.ends_within(states, self._room - len(path) - 1)
            columns, states = columns[fine], states[fine]
        return columns, states

    def _key(self, path: Ints, state: int) -> int:
        last = int(path[-1]) if len(path) else -1
        return int(self._tree.key(np.array([state]), np.array([last]))[0])

    def _leads_on(self, path: Ints, state: int) -> bool:
        """Whether a secret lies under a node. A walk finds that out by going there, but who draws
        tokens must not be led into a dead end."""
        tree = self._tree
        if tree.leaf[state] or tree.way in ("single", "leaves"):
            return True
        # Where pairs decide, nodes of the same key and depth have the same children.
        pairs = tree.way == "pairs"
        name = (self._key(path, state), len(path)) if pairs else tuple(path.tolist())
        if name not in self._leads:
            columns, states = self._children(path, state)
            self._leads[name] = any(
                self._leads_on(np.array([*path, column]), following)
                for column, following in zip(columns.tolist(), states.tolist(), strict=True)
            )
        return self._leads[name]


class AtLeaf(StoppingCriteria):
    """Stops a sequence where nothing may follow."""

    def __init__(self, constraint: Constraint) -> None:
        self._constraint = constraint

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """(B,) whether each sequence is done."""
        ended = [
            not self._constraint.allowed(tokens)
            for tokens in self._constraint.new_tokens(input_ids)
        ]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def secret_of(tree: TokenTree, ids: Sequence[int]) -> str | None:
    """The secret with what follows it that a sequence begins with, None if it does not."""
    path, state = tree.descend(ids)
    return tree.secret(path) if state is not None and tree.leaf[state] else None
