"""Tables of exposures: a row for each canary, alone or beside the base model's figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hf_exposure.canaries.canary import Canary, MaskedCanary
from hf_exposure.exposure.documents import Result, Tabular
from hf_exposure.exposure.records import (
    Exposure,
    interval,
    known_rank,
    show_log_perplexity,
    show_rank,
)
from hf_exposure.utils.words import rounded


def table_of(
    items: Iterable[Exposure], labels: Iterable[str], bounds: Iterable[bool], confidence: float
) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row for each canary, with its place.

    Args:
        items: the exposures.
        labels: how each canary is shown.
        bounds: whether each figure is a bound and no estimate.
        confidence: of the intervals.
    """
    headings = [
        "#",
        "canary",
        "inserted",
        "exposure",
        f"{confidence:.0%} interval",
        "rank",
        "log-perplexity",
    ]
    rows = []
    for place, (item, label, bound) in enumerate(zip(items, labels, bounds, strict=True)):
        exact = item.exact and item.low == item.high
        rows.append(
            [
                f"{place}",
                label,
                f"{item.canary.repetitions}",
                f"≥{item.bits:.1f}" if bound else f"{item.bits:.1f}",
                "exact" if exact else interval(item.low, item.high),
                show_rank(item.rank, known_rank(item)).replace("~", "≤" if bound else "~"),
                show_log_perplexity(item.log_perplexity),
            ]
        )
    return headings, rows


def gained_bits(items: Sequence[Exposure], base: Sequence[Exposure]) -> list[float]:
    """Bits of exposure that each canary has among `items` and not in `base`, in any order there.

    Raises:
        ValueError: they are of different canaries.
    """
    waiting: dict[Canary | MaskedCanary, list[Exposure]] = {}
    for other in base:
        waiting.setdefault(other.canary, []).append(other)
    same = [waiting[item.canary].pop(0) for item in items if waiting.get(item.canary)]
    if len(same) != len(items) or len(base) != len(items):
        raise ValueError(
            f"Exposures.gained: {len(items) - len(same)} of these {len(items)} canaries are not "
            f"among the {len(base)} of base; measure both models with the same canaries"
        )
    return [item.bits - other.bits for item, other in zip(items, same, strict=True)]


class Beside(Tabular):
    """Exposures with those of the base model beside them; see `Exposures.beside`."""

    right = frozenset({0, 2, 5, 6})

    def __init__(self, exposures: Result[Exposure], base: Result[Exposure]) -> None:
        self.exposures = exposures
        self.base = base
        self.gained = gained_bits(exposures, base)

    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The first columns of the exposures' own table, and "base" and "gained"."""
        headings, rows = self.exposures.cells(reveal)
        items, gained = list(self.exposures), self.gained
        if not reveal:
            items = [item.coarse() for item in items]
            gained = gained_bits(items, [item.coarse() for item in self.base])
        more = [
            [*row[:5], f"{item.bits - bits:.1f}", f"{bits:+.1f}"]
            for row, item, bits in zip(rows, items, gained, strict=True)
        ]
        return [*headings[:5], "base", "gained"], more

    def summary(self) -> str:
        """What the exposures' own says, and what the base model took."""
        return (
            f"{self.exposures.summary()}; of the base model {rounded(self.base.forwards):,} "
            f"token-forwards in {self.base.seconds:.1f} s"
        )
