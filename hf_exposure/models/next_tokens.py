"""What a walk over the token tree asks of a model: the next token's bits after given paths.

A branch is a path of tokens after the prompt. Branches of equal length go one token further
together. Costs are log-perplexities in bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hf_exposure.models.caches import Joined, bytes_of
from hf_exposure.utils.arrays import Floats, Ints


@dataclass
class Branches:
    """Some paths of one length, and what the model says after each.

    Attributes:
        paths: (B, depth) tokens after the prompt, as places among those of the tree.
        bits: (B, C) cost of each token as the next one.
        cache: the model's cache after them, None if it was dropped or there is none.
    """

    paths: Ints
    bits: Floats
    cache: Any | None = None
    _bytes: int | None = field(default=None, repr=False)

    @property
    def cache_bytes(self) -> int:
        """Memory that the cache holds."""
        if self.cache is None:
            return 0
        if self._bytes is None:
            self._bytes = bytes_of(self.cache)
        return self._bytes


def together(parts: Sequence[tuple[Branches, Ints]]) -> Branches:
    """Rows of several branches of one length as branches, without `bits`.

    Caches are not copied here but by the next step. All parts have a cache, or none has.
    """
    paths = np.concatenate([branches.paths[rows] for branches, rows in parts])
    cache = None
    if parts[0][0].cache is not None:
        cache = Joined([(branches.cache, rows) for branches, rows in parts])
    return Branches(paths, np.zeros((0, 0)), cache)


class NextTokens(Protocol):
    """A model that goes one token further at a time: `Decoder`, or one that is served.

    Attributes:
        forwards: token-forwards so far.
        batch_size: rows of a forward.
        joins: whether rows of branches that come from different places can be run together.
        noise: the largest difference in bits that `probe` saw between the costs of paths.
        cached, halved, peak_bytes: see `Decoder`.
    """

    forwards: int
    batch_size: int
    joins: bool
    noise: float
    cached: bool
    halved: bool
    peak_bytes: int

    @property
    def context(self) -> int | None:
        """The most tokens of a text, None without a limit."""

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""

    def probe(self, paths: Sequence[Ints]) -> None:
        """Compare the costs of paths with those found in another way, and set `noise`."""

    def idle(self) -> None:
        """The smallest forward there is, for a process that waits for others in step."""

    @property
    def room(self) -> float:
        """How many tokens a whole path may have; infinite where nothing limits it."""

    def root(self) -> Branches:
        """The empty path."""

    def price(self, parents: Branches) -> int:
        """Token-forwards that one step from one of these branches takes."""

    def step(self, parents: Branches, rows: Ints, tokens: Ints) -> Iterator[tuple[Ints, Branches]]:
        """Go one token further from some of the parents, in chunks that fit.

        Args:
            parents: where from.
            rows: (n,) rows of `parents`, repeats allowed.
            tokens: (n,) the token that each goes on with.

        Yields:
            Places in `rows` and the branches made from them.
        """

    def next_bits(self, branches: Branches, rows: Ints, tokens: Ints) -> Floats:
        """(n,) bits of the allowed next tokens, each after a row of the branches; asked for once,
        right after the step that has made them."""

    def settle(self, waiting: Iterable[Branches]) -> None:
        """Bound the memory of branches that wait, the first to be let go of first."""
