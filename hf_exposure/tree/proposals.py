"""Proposals: how a draw goes from a node to one of its children, and how likely that is."""

from __future__ import annotations

import numpy as np

from hf_exposure.tree.frontier import Nodes
from hf_exposure.utils.arrays import Bools, Floats, Ints

# Proposals draw each token with its probability to these powers: after strong memorization the
# model's own samples are all the same few strings, early in training they are nearly uniform.
POWERS = np.array([10.0, 3.0, 1.0, 0.3, 0.1])


def powers_of(nodes: Nodes, inside: Bools) -> Floats:
    """(n, 5) log2 of each proposal's probability of going from the parent to each child.

    A child outside, or of probability 0, has none. Children are row by row.
    """
    inside = inside & np.isfinite(nodes.log_perplexities)
    if inside.all():
        return _shares(-nodes.log_perplexities[:, None] * POWERS, nodes.rows)
    scores = np.full((len(nodes), len(POWERS)), -np.inf)
    scores[inside] = -nodes.log_perplexities[inside, None] * POWERS
    return normalized(scores, nodes.rows, inside)


def normalized(scores: Floats, rows: Ints, inside: Bools) -> Floats:
    """(n, k) log2 of probabilities in proportion to 2^score among the children of each row; none
    for a child outside. Scores inside are finite."""
    if inside.all():
        return _shares(scores.copy(), rows)
    out = np.full(scores.shape, -np.inf)
    if inside.any():
        out[inside] = _shares(scores[inside], rows[inside])
    return out


def _shares(scores: Floats, rows: Ints) -> Floats:
    """The same for children that are all inside. The scores are written over."""
    if not len(rows):
        return scores
    begin = np.flatnonzero(np.diff(rows, prepend=-1))
    sizes = np.diff(begin, append=len(rows))
    scores -= np.repeat(np.maximum.reduceat(scores, begin, axis=0), sizes, axis=0)
    total = np.add.reduceat(np.exp2(scores), begin, axis=0)
    scores -= np.repeat(np.log2(total), sizes, axis=0)
    return scores


class Rows:
    """(n, k) numbers to which rows are added; room is made by doubling."""

    def __init__(self, width: int = len(POWERS)) -> None:
        self._data = np.zeros((64, width))
        self._used = 1  # the root, whose probability is 1

    def __len__(self) -> int:
        return self._used

    def __getitem__(self, place: Ints) -> Floats:
        return np.asarray(self._data[place])

    def add(self, rows: Floats) -> Ints:
        """Add rows and return their places."""
        begin, self._used = self._used, self._used + len(rows)
        if self._used > len(self._data):
            grown = np.zeros((2 * self._used, self._data.shape[1]))
            grown[:begin] = self._data[:begin]
            self._data = grown
        self._data[begin : self._used] = rows
        return np.arange(begin, self._used)
