"""What generation brought out, as a table and as a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hf_exposure.canaries.canary import Canary, MaskedCanary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.documents import Result, Row
from hf_exposure.exposure.records import read_canaries, short_labels
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import plural


@dataclass(frozen=True, repr=False)
class Generated(Row):
    """How often one canary came out by generation.

    Attributes:
        canary: the canary; a `MaskedCanary` if it was loaded from a file without secrets.
        times: in how many of the sequences.
        attempts: how many sequences were generated for its format.
    """

    canary: Canary | MaskedCanary
    times: int
    attempts: int

    def coarse(self) -> Generated:
        """The same without a count that would tell the secret to those who repeat the generation:
        if it came out in up to half of the sequences, `times` is 1."""
        if 2 * self.times > self.attempts:
            return self
        return replace(self, times=min(self.times, 1))


@typed
class Generations(Result[Generated]):
    """What generation brought out, one row for each canary, in the order of the set.

    Attributes:
        attempts: sequences that were generated, all formats together.
        forwards: token-forwards spent: positions that the model has computed.
        seconds: how long it took.
        settings: how it was generated.
        texts: for each format the secrets or, unconstrained, the texts that came out, and how
            often. They hold secrets, and are not saved unless revealed.

    Example:
        >>> fmt = SecretFormat("My code is {secret}.", secret=r"[0-9]{4}")
        >>> print(Generations([Generated(Canary(fmt, "1234", 8), 71, 100)], attempts=100,
        ...                   forwards=900, seconds=0.5))
        canary          inserted  came out
        …code is ••••.         8  71 of 100
        1 of 1 canary came out; 100 sequences, 900 token-forwards in 0.5 s
    """

    kind = "generations"
    entries = "generations"
    right = frozenset({1})

    def __init__(
        self,
        rows: Iterable[Generated],
        *,
        attempts: int = 0,
        texts: Mapping[SecretFormat, Mapping[str, int]] | None = None,
        **took: Any,
    ) -> None:
        super().__init__(rows, **took)
        self.attempts = attempts
        self.texts = {fmt: Counter(dict(found)) for fmt, found in (texts or {}).items()}

    @property
    def rows(self) -> tuple[Generated, ...]:
        """A `Generated` for each canary."""
        return self._items

    @property
    def extracted(self) -> list[Canary | MaskedCanary]:
        """The canaries that came out at least once."""
        return [row.canary for row in self.rows if row.times]

    def coarse(self) -> Generations:
        """The same without counts that would tell a secret to those who repeat the generation: how
        often a canary came out is told if that is more than half of the time, and of others whether
        they did (`times` is 1)."""
        return self._like(one.coarse() for one in self)

    # Tables

    @typed
    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text: its headings, and a row of them for each canary."""
        labels = short_labels((row.canary for row in self.rows), reveal)
        shown = self.rows if reveal else self.coarse().rows
        rows = [
            [
                label,
                f"{row.canary.repetitions}",
                "yes" if row.times == 1 and not reveal else f"{row.times:,} of {row.attempts:,}",
            ]
            for row, label in zip(shown, labels, strict=True)
        ]
        return ["canary", "inserted", "came out"], rows

    def summary(self) -> str:
        """One line about what came out and what it took."""
        return (
            f"{len(self.extracted)} of {plural(len(self), 'canary')} came out; "
            f"{plural(self.attempts, 'sequence')}, {self.took}"
        )

    # Files

    def _entry(self, item: Generated, reveal: bool) -> dict[str, Any]:
        return {"times": item.times, "attempts": item.attempts}

    def _content(self, reveal: bool) -> dict[str, Any]:
        formats = list(dict.fromkeys(row.canary.format for row in self))
        shown = self if reveal else self.coarse()
        out = super(Generations, shown)._content(reveal)
        for row, entry in zip(self, out[self.entries], strict=True):
            entry |= row.canary.to_dict(formats, reveal)
        out |= {"attempts": self.attempts, "formats": [fmt.to_dict() for fmt in formats]}
        if reveal:  # one entry for each format
            out["texts"] = [dict(self.texts.get(fmt, Counter()).most_common()) for fmt in formats]
        return out

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Canaries | None) -> Generations:
        formats = [SecretFormat.from_dict(entry) for entry in data["formats"]]
        entries = data["generations"]
        texts = data.get("texts")
        return cls(
            [
                Generated(canary, entry["times"], entry["attempts"])
                for canary, entry in zip(
                    read_canaries(entries, formats, canaries), entries, strict=True
                )
            ],
            attempts=data["attempts"],
            texts=None if texts is None else dict(zip(formats, texts, strict=True)),
            **cls._read_took(data),
        )
