"""Positions of draws in a distribution that is only known node by node."""

from __future__ import annotations

import numpy as np

from hf_exposure.tree.frontier import Nodes
from hf_exposure.utils.arrays import Floats, Ints

_DIGITS = 20.0  # binary digits of a draw's position to use up; a float has 53


class Positions:
    """Where each draw lies in its proposal's cumulative distribution, handed down to children.

    Under nodes of a small probability it is drawn anew: the digits of one number would not last
    for a large secret space.

    Args:
        positions: (n,) in [0, 1).
    """

    def __init__(self, positions: Floats) -> None:
        self._position = np.array(positions, dtype=float)
        self._draw = np.random.default_rng(self._position.view(np.uint64))
        self._fresh: list[Floats] = []  # positions to go on with, (n,) each
        self._renewed = np.zeros(len(positions), dtype=np.int64)  # how many each draw has used
        self._used_bits = np.zeros(len(positions))  # binary digits that each has lost

    def fall(self, nodes: Nodes, log2_step: Floats, rows: Ints, draws: Ints) -> Ints:
        """The children that these draws fall on from the given rows, -1 for none."""
        # Whether to draw anew must hang on the node alone: were it to hang on where the other
        # draws fell, draws would no longer follow the proposal.
        worn = draws[self._used_bits[draws] > _DIGITS]
        # Nor on the order in which nodes are run: each draw has a row of numbers of its own.
        turns = self._renewed[worn]
        while len(self._fresh) <= turns.max(initial=-1):
            self._fresh.append(self._draw.random(len(self._position)))
        self._position[worn] = [
            self._fresh[turn][draw] for turn, draw in zip(turns, worn, strict=True)
        ]
        self._renewed[worn] += 1
        self._used_bits[worn] = 0.0
        step = np.exp2(log2_step)
        ends = np.cumsum(step)
        first = np.searchsorted(nodes.rows, rows, "left")
        last = np.searchsorted(nodes.rows, rows, "right") - 1
        # Where a row has children at all, and one of some probability.
        fine = last >= first
        first, last, rows, draws = first[fine], last[fine], rows[fine], draws[fine]
        begin = np.where(first > 0, ends[first - 1], 0.0)
        total = ends[last] - begin
        target = begin + self._position[draws] * total
        place = np.searchsorted(ends, target, "right")
        # Rounding may point just behind the row, or at a child of probability 0.
        positive = np.flatnonzero(step > 0)
        before = np.searchsorted(positive, np.minimum(place, last), "right") - 1
        place = positive[np.maximum(before, 0)] if len(positive) else first - 1
        some = (place >= first) & (place <= last)
        place, target, draws = place[some], target[some], draws[some]
        rest = (target - np.where(place > 0, ends[place - 1], 0.0)) / step[place]
        self._used_bits[draws] -= log2_step[place]
        self._position[draws] = np.clip(rest, 0.0, np.nextafter(1.0, 0.0))
        out = np.full(len(fine), -1, dtype=np.int64)
        out[np.flatnonzero(fine)[some]] = place
        return out
