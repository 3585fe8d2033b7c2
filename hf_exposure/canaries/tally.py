"""What was found of canaries, in numbers that many tasks can add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_NAMES = ("whole", "cut", "untrained")


@dataclass
class Tally:
    """Counts by a canary's place in the set; no secrets.

    Attributes:
        rows, tokens: that were looked at.
        whole, cut, untrained: see `Survival`.
        pieces: from which end pieces were seen, and which of its sorted canaries they fit.
    """

    rows: int = 0
    tokens: int = 0
    whole: Counter[int] = field(default_factory=Counter)
    cut: Counter[int] = field(default_factory=Counter)
    untrained: Counter[int] = field(default_factory=Counter)
    pieces: Counter[tuple[bool, int, int]] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        known: dict[str, Any] = {"rows": self.rows, "tokens": self.tokens}
        for name in _NAMES:
            known[name] = sorted(getattr(self, name).items())
        known["pieces"] = sorted((*piece, count) for piece, count in self.pieces.items())
        return known

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Tally:
        """The inverse of `to_dict`."""
        pieces = Counter({(bool(a), b, c): count for a, b, c, count in data["pieces"]})
        counts = {name: Counter(dict(data[name])) for name in _NAMES}
        return cls(data["rows"], data["tokens"], **counts, pieces=pieces)

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """All of them together."""
        out = cls()
        for one in tallies:
            out.rows += one.rows
            out.tokens += one.tokens
            for name in (*_NAMES, "pieces"):
                getattr(out, name).update(getattr(one, name))
        return out
