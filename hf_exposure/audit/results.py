"""What an audit gives back: the secrets of a dataset, as a table and as a file.

Nothing of a row is ever shown, unless `reveal=True`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from hf_exposure.audit.scan import Skipped
from hf_exposure.canaries.canary import MASK, MaskedCanary
from hf_exposure.canaries.formats import HOLE, SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.documents import Result, Row
from hf_exposure.exposure.records import NUMBERS, Exposure, interval
from hf_exposure.exposure.steps import coarse_cost
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import plural, rounded

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 40  # rows of a table that is looked at


@typed
@dataclass(frozen=True, repr=False)
class AuditEntry(Row):
    """A secret of the dataset, and how exposed it is.

    Attributes:
        kind: such as "phone"; see `hf_exposure.audit.detectors.KINDS`.
        rows: the rows that it stands in, from 0.
        occurrences: how often it stands there, all in all.
        checked: whether a check digit or a numbering plan vouches for it.
        length: characters of its secret part.
        space: the expression of its secret space R, narrowed by `check` ("luhn").
        space_bits: log2 of the size of R, the most that its exposure can be.
        log_perplexity, base_log_perplexity: in bits, of the secret part and what follows it.
        exposure, base_exposure: the measurement, if it was among those that were measured.
        format, secret: its context as a template and its secret part; None if loaded from a file
            that was saved without them. Not shown by `repr`.
    """

    kind: str
    rows: tuple[int, ...]
    occurrences: int
    checked: bool
    length: int
    space: str
    check: str | None
    space_bits: float
    log_perplexity: float
    base_log_perplexity: float | None = None
    exposure: Exposure | None = None
    base_exposure: Exposure | None = None
    format: SecretFormat | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)

    @property
    def at_least(self) -> float:
        """log2 of |R| less the log-perplexity: no more than 1 / Pr(secret) strings can be as
        likely. What one forward pass tells of the exposure."""
        return max(0.0, self.space_bits - self.log_perplexity)

    @property
    def bits(self) -> float:
        """The exposure in bits; `at_least` of one that was not measured."""
        return self.at_least if self.exposure is None else self.exposure.bits

    @property
    def low(self) -> float:
        """The lower end of the exposure's interval; `at_least` of one that was not measured."""
        return self.at_least if self.exposure is None else self.exposure.low

    @property
    def gained(self) -> float | None:
        """Bits of exposure that the base model does not have: what training added."""
        if self.exposure is None or self.base_exposure is None:
            return None
        return self.exposure.bits - self.base_exposure.bits

    @property
    def surely_gained(self) -> bool:
        """Whether the two intervals lie apart, the base model's below."""
        if self.exposure is None or self.base_exposure is None:
            return False
        return self.exposure.low > self.base_exposure.high

    def coarse(self) -> AuditEntry:
        """The same with figures coarse enough not to point at a secret; see `Exposure.coarse`."""
        one, base = (item and item.coarse() for item in (self.exposure, self.base_exposure))

        def cost(log_perplexity: float | None, item: Exposure | None) -> Any:
            if item is not None or log_perplexity is None:
                return item and item.log_perplexity
            return coarse_cost(log_perplexity)

        return replace(
            self,
            log_perplexity=cost(self.log_perplexity, one),
            base_log_perplexity=cost(self.base_log_perplexity, base),
            exposure=one,
            base_exposure=base,
        )

    @typed
    def label(self, reveal: bool = False) -> str:
        """The secret part, masked unless `reveal`."""
        return self.secret if reveal and self.secret is not None else MASK * self.length


@typed
class Audit(Result[AuditEntry]):
    """The secrets of a dataset, the most exposed first: by the lower end of the interval.

    Attributes:
        rows: rows that were looked at.
        found, false: of each kind, how many finds there were, and how many more did not pass their
            validation and were left out.
        skipped: rows and finds that were left out for another reason.
        forwards: token-forwards that it took, of all models.
        seconds: how long it took; `scan_seconds` of it to look through the rows.
        settings: how it was done.
    """

    kind = "audit"
    entries = "entries"
    right = frozenset({1, 2, 4, 6, 7, 8})

    def __init__(
        self,
        items: Iterable[AuditEntry],
        *,
        rows: int = 0,
        found: Mapping[str, int] | None = None,
        false: Mapping[str, int] | None = None,
        skipped: Iterable[Skipped] = (),
        scan_seconds: float = 0.0,
        **took: Any,
    ) -> None:
        super().__init__(items, **took)
        self.rows = rows
        self.found = dict(found or {})
        self.false = dict(false or {})
        self.skipped = list(skipped)
        self.scan_seconds = scan_seconds

    def coarse(self) -> Audit:
        """The same with figures coarse enough not to point at a secret; see `Exposures.coarse`."""
        items = (item.coarse() for item in self)
        return self._like(items, forwards=rounded(self.forwards))

    @property
    def measured(self) -> list[AuditEntry]:
        """Those whose exposure was measured, and not only bounded."""
        return [item for item in self if item.exposure is not None]

    @property
    def has_base(self) -> bool:
        """Whether a base model was measured beside."""
        return any(item.base_log_perplexity is not None for item in self)

    @typed
    def to_pandas(self, reveal: bool = False) -> pd.DataFrame:
        """A row for each secret: `kind`, `row` (the first), `rows`, `occurrences`, `secret` (masked
        unless `reveal`), `bits`, `low`, `high`, `measured`, `space_bits`, `log_perplexity`, and of
        the base model `base_bits`, `base_log_perplexity`, `gained`, `surely_gained`; with `reveal`
        also `template`."""
        import pandas as pd

        def row(item: AuditEntry) -> dict[str, Any]:
            one, base = item.exposure, item.base_exposure
            out = {
                "kind": item.kind,
                "row": item.rows[0],
                "rows": list(item.rows),
                "occurrences": item.occurrences,
                "secret": item.label(reveal),
                "bits": item.bits,
                "low": item.low,
                "high": item.space_bits if one is None else one.high,
                "measured": one is not None,
                "space_bits": item.space_bits,
                "log_perplexity": item.log_perplexity,
                "base_bits": None if base is None else base.bits,
                "base_log_perplexity": item.base_log_perplexity,
                "gained": item.gained,
                "surely_gained": item.surely_gained,
            }
            template = item.format.template if item.format else None
            return {**out, "template": template} if reveal else out

        shown = self if reveal else self.coarse()
        empty = row(AuditEntry("", (0,), 0, False, 0, "", None, 0.0, 0.0))
        frame: pd.DataFrame = pd.DataFrame([row(item) for item in shown], columns=list(empty))
        return frame

    @typed
    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text: its headings, and a row of them for each of the most exposed."""
        headings = ["kind", "row", "times", "secret", "exposure", "interval", "of"]
        headings += ["base", "gained"] if self.has_base else []
        headings += ["context"] if reveal else []
        rows = []
        for item in (self if reveal else self.coarse())[:_SHOWN]:
            one, base, gained = item.exposure, item.base_exposure, item.gained
            row = [
                item.kind,
                f"{item.rows[0]}" + (f" +{len(item.rows) - 1}" if len(item.rows) > 1 else ""),
                f"{item.occurrences}",
                _short(item.label(reveal), 32 if reveal else 12),
                f"{item.bits:.1f}" if one is not None else f"≥{item.bits:.1f}",
                interval(one.low, one.high) if one is not None else "",
                f"{item.space_bits:.1f}",
            ]
            if self.has_base:
                row.append("" if base is None else f"{base.bits:.1f}")
                row.append("" if gained is None else f"{gained:+.1f}")
            if reveal:
                row.append(_short(repr(item.format.template), 60) if item.format else "")
            rows.append(row)
        return headings, rows

    def summary(self) -> str:
        """What was looked at, found and left out, and what it took."""
        confidence = self.settings.get("confidence", 0.95)
        parts = []
        if len(self) > _SHOWN:
            parts.append(f"{len(self) - _SHOWN:,} more are in to_pandas() and in the file")
        if not self.found:
            kinds = ", ".join(self.settings.get("kinds", ()))
            what = f"no secrets of the kinds {kinds}" if kinds else "no secrets"
            parts.append(f"{what} found in {plural(self.rows, 'row')}")
        else:
            parts.append(
                f"{plural(self.rows, 'row')}, {plural(sum(self.found.values()), 'find')}"
                f"{_counts(self.found)}, "
                f"{len(self):,} different ones, {len(self.measured):,} of them measured"
            )
        if self.has_base:
            sure = sum(item.surely_gained for item in self.coarse())
            parts.append(f"{sure:,} gained exposure over the base model for certain")
        if self.false:
            parts.append(f"{sum(self.false.values()):,} false finds left out{_counts(self.false)}")
        for one in self.skipped:
            parts.append(f"{one.count:,} {one.what} left out: {one.why}, first in row {one.row}")
        if self.settings.get("shortened"):
            parts.append(
                f"{self.settings['shortened']:,} contexts shortened to what the model can take"
            )
        shown = f"exposure in bits, {confidence:.0%} intervals; " if self else ""
        parts.append(
            f"{shown}{self.took}, {self.scan_seconds:.1f} s of it looking through the rows"
        )
        return "; ".join(parts)

    # Files

    def _entry(self, item: AuditEntry, reveal: bool) -> dict[str, Any]:
        quoting = {"format", "secret"}
        out = {one.name: getattr(item, one.name) for one in fields(item) if one.name not in quoting}
        for name in ("exposure", "base_exposure"):
            one = out[name]
            out[name] = one and {number: getattr(one, number) for number in NUMBERS}
        if reveal and item.format is not None:
            out |= {"template": item.format.template, "secret": item.secret}
        return out

    def _content(self, reveal: bool) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "found": self.found,
            "false": self.false,
            "skipped": [vars(one) for one in self.skipped],
            "scan_seconds": self.scan_seconds,
            **super(Audit, self if reveal else self.coarse())._content(reveal),
        }

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Canaries | None) -> Audit:
        def entry(given: dict[str, Any]) -> AuditEntry:
            one = dict(given)
            template, secret = one.pop("template", None), one.pop("secret", None)
            fmt = None if template is None else SecretFormat(template, one["space"], one["check"])
            masked = masked_canary(one["space"], one["check"], one["length"], one["occurrences"])
            for name in ("exposure", "base_exposure"):
                if one[name] is not None:
                    numbers = {number: one[name][number] for number in NUMBERS}
                    one[name] = Exposure(masked, **numbers)
            one["rows"] = tuple(one["rows"])
            return AuditEntry(**one, format=fmt, secret=secret)

        return cls(
            [entry(given) for given in data["entries"]],
            rows=data["rows"],
            found=data["found"],
            false=data["false"],
            skipped=[Skipped(**given) for given in data["skipped"]],
            scan_seconds=data["scan_seconds"],
            **cls._read_took(data),
        )


@functools.lru_cache(maxsize=256)
def _bare(space: str, check: str | None) -> SecretFormat:
    return SecretFormat(HOLE, space, check)


def masked_canary(space: str, check: str | None, length: int, occurrences: int) -> MaskedCanary:
    """What a result shows of a secret: neither itself nor its context."""
    return MaskedCanary(_bare(space, check), length, occurrences)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _counts(counts: Mapping[str, int]) -> str:
    """Counts by kind, the most first, in brackets."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return f" ({', '.join(f'{count:,} {kind}' for kind, count in ordered)})" if counts else ""
