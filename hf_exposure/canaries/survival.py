"""What has become of canaries in data that was tokenized and packed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_exposure.canaries.canary import Canary
from hf_exposure.utils.tables import plain_table

_LINES = 40  # of a report's table


@dataclass(frozen=True)
class Survival:
    """What became of one canary.

    Attributes:
        canary: the canary.
        whole: copies that stand whole in one row.
        cut: copies that begin in one row and go on in the next.
        truncated: further copies of which a row has the beginning at its end, or the end at its
            start. A piece that fits several canaries is counted for one that lacks copies.
        missing: copies of which nothing was found, because they were removed (de-duplication,
            filters) or never inserted.
        extra: copies found, whole or cut, beyond `canary.repetitions`.
        untrained: of the whole ones, those whose secret has the label -100 in some of its tokens.
    """

    canary: Canary
    whole: int = 0
    cut: int = 0
    truncated: int = 0
    missing: int = 0
    extra: int = 0
    untrained: int = 0

    @property
    def ok(self) -> bool:
        """Whether the canary is there whole, exactly as often as planned, and trained on."""
        return self.whole == self.canary.repetitions and not (
            self.cut or self.extra or self.untrained
        )


@dataclass(frozen=True)
class InjectionReport(Sequence[Survival]):
    """What became of each canary, in the order of the set. Secrets are masked when printed.

    Attributes:
        canaries: one `Survival` for each canary.
        rows: rows that were looked at; of rows with "seq_lengths", the documents in them.
        tokens: tokens that were looked at; 0 of texts that are not tokenized yet.
    """

    canaries: tuple[Survival, ...]
    rows: int
    tokens: int

    @property
    def ok(self) -> bool:
        """Whether all canaries are there as planned; controls are not there at all."""
        return all(row.ok for row in self.canaries)

    @property
    def lost(self) -> list[Survival]:
        """The canaries that are not as planned."""
        return [row for row in self.canaries if not row.ok]

    def raise_if_lost(self) -> None:
        """Do nothing if all canaries are as planned.

        Raises:
            ValueError: some are not; the message is the report, and what to do about it.
        """
        if not self.ok:
            advice = "".join(
                f"\n{name}: {ADVICE[name]}"
                for name in ADVICE
                if any(getattr(row, name) for row in self.canaries)
            )
            raise ValueError(f"verify_injection: {self}{advice}")

    def to_dict(self, reveal: bool = False) -> dict[str, Any]:
        """The report for JSON, secrets masked unless `reveal`."""
        return {
            "ok": self.ok,
            "rows": self.rows,
            "tokens": self.tokens,
            "canaries": [
                {
                    "canary": row.canary.label(reveal),
                    "repetitions": row.canary.repetitions,
                    "ok": row.ok,
                    **{name: getattr(row, name) for name in ("whole", *ADVICE)},
                }
                for row in self.canaries
            ],
        }

    def __getitem__(self, index: Any) -> Any:
        return self.canaries[index]

    def __len__(self) -> int:
        return len(self.canaries)

    def __iter__(self) -> Iterator[Survival]:
        return iter(self.canaries)

    def __str__(self) -> str:
        planned = sum(row.canary.repetitions for row in self)
        whole = sum(min(row.whole, row.canary.repetitions) for row in self)
        head = (
            f"{whole} of {planned} copies of {len(self)} canaries are whole "
            f"in {self.rows} rows" + f" of {self.tokens} tokens" * bool(self.tokens)
        )
        # Where not all fit, those that are as planned are left out.
        shown = list(self) if len(self) <= _LINES else self.lost
        if not shown:
            return f"{head}, all as planned"
        names = ("whole", *ADVICE)
        rows = [
            [
                row.canary.label(),
                str(row.canary.repetitions),
                *(str(getattr(row, name) or "-") for name in names),
            ]
            for row in shown[:_LINES]
        ]
        table = plain_table(["canary", "planned", *names], rows, right=range(1, 2 + len(names)))
        if len(shown) > _LINES:
            table += f"... and {len(shown) - _LINES} more"
        elif len(shown) < len(self):
            table += f"... and {len(self) - len(shown)} more, all as planned"
        return f"{head}\n{table.rstrip()}"

    def __repr__(self) -> str:
        state = "ok" if self.ok else f"{len(self.lost)} not as planned"
        return f"InjectionReport({len(self)} canaries in {self.rows} rows: {state})"


def lost_and_all(report: InjectionReport | Mapping[str, Any]) -> tuple[int, int]:
    """How many inserted canaries are not as planned, and how many there are.

    Args:
        report: what `verify_injection` gave, or its `to_dict()`.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if isinstance(report, InjectionReport):
        found = [row.ok for row in report if row.canary.inserted]
        return found.count(False), len(found)
    wanted = "survival must be what verify_injection gave, or its to_dict()"
    if not isinstance(report, Mapping):
        raise TypeError(f"{wanted}, not {type(report).__name__}")
    rows = report.get("canaries")
    if not isinstance(rows, list) or not all(
        isinstance(row, Mapping) and {"ok", "repetitions"} <= set(row) for row in rows
    ):
        raise ValueError(f"{wanted}; this dictionary has no such canaries")
    found = [row["ok"] is True for row in rows if row["repetitions"]]
    return found.count(False), len(found)


ADVICE = {
    "cut": "packing split the row; pack whole documents, or tokenize to shorter rows first",
    "truncated": "the row was too long; raise max_length, or split texts instead of truncating",
    "missing": "removed, or never inserted; insert after de-duplication and filters, and with "
    "num_examples=len(ds)",
    "extra": "inserted twice, or part of the data already; start from the data without canaries",
    "untrained": "the labels leave it out of the loss; insert it where training reads",
}
