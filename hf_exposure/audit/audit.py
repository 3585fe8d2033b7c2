"""Audit of real data: the secrets that stand in a dataset, and how exposed each is in a model.

Nothing of a row is ever shown: neither the secrets nor the text around them, in tables, files,
errors or warnings, unless `reveal=True`.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hf_exposure.audit.detectors import check_kinds, check_region, libraries
from hf_exposure.audit.scan import Hit, LeftOut, Skipped, scan, texts_of
from hf_exposure.canaries.canary import MASK, Canary, MaskedCanary
from hf_exposure.canaries.formats import HOLE, SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.vocabulary import common_length
from hf_exposure.exposure.documents import Document, Rows, Tabular, versions
from hf_exposure.exposure.measure import measure_exposure, measure_plan
from hf_exposure.exposure.planning import Plan, Settings, plan_measurement
from hf_exposure.exposure.records import NUMBERS, Exposure, interval
from hf_exposure.models.causal import ContextError
from hf_exposure.models.continuations import TextModel, token_bits
from hf_exposure.models.undisturbed import undisturbed

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_OTHERS = 64  # random strings of a space that show where the context's tokens end
_SHOWN = 40  # rows of a table that is looked at


@dataclass(frozen=True)
class AuditEntry:
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

    def label(self, reveal: bool = False) -> str:
        """The secret part, masked unless `reveal`."""
        return self.secret if reveal and self.secret is not None else MASK * self.length


class Audit(Tabular, Document, Rows[AuditEntry]):
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
    right = frozenset({1, 2, 4, 6, 7, 8})

    def __init__(
        self,
        items: Iterable[AuditEntry],
        *,
        rows: int = 0,
        found: Mapping[str, int] | None = None,
        false: Mapping[str, int] | None = None,
        skipped: Iterable[Skipped] = (),
        forwards: int = 0,
        seconds: float = 0.0,
        scan_seconds: float = 0.0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._items = tuple(items)
        self.rows = rows
        self.found = dict(found or {})
        self.false = dict(false or {})
        self.skipped = list(skipped)
        self.forwards = forwards
        self.seconds = seconds
        self.scan_seconds = scan_seconds
        self.settings = dict(settings or {})

    @property
    def measured(self) -> list[AuditEntry]:
        """Those whose exposure was measured, and not only bounded."""
        return [item for item in self if item.exposure is not None]

    @property
    def has_base(self) -> bool:
        """Whether a base model was measured beside."""
        return any(item.base_log_perplexity is not None for item in self)

    def to_pandas(self, reveal: bool = False) -> pd.DataFrame:
        """A row for each secret: `kind`, `row` (the first), `rows`, `occurrences`, `secret` (masked
        unless `reveal`), `bits`, `low`, `high`, `measured`, `space_bits`, `log_perplexity`, and of
        the base model `base_bits`, `base_log_perplexity`, `gained`, `surely_gained`; with `reveal`
        also `template`."""
        import pandas as pd

        def numbers(item: AuditEntry) -> dict[str, Any]:
            one, base = item.exposure, item.base_exposure
            return {
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

        rows = [
            {
                "kind": item.kind,
                "row": item.rows[0],
                "rows": list(item.rows),
                "occurrences": item.occurrences,
                "secret": item.label(reveal),
                **numbers(item),
                **({"template": item.format.template if item.format else None} if reveal else {}),
            }
            for item in self
        ]
        names = [
            "kind",
            "row",
            "rows",
            "occurrences",
            "secret",
            "bits",
            "low",
            "high",
            "measured",
            "space_bits",
            "log_perplexity",
            "base_bits",
            "base_log_perplexity",
            "gained",
            "surely_gained",
            *(["template"] if reveal else []),
        ]
        frame: pd.DataFrame = pd.DataFrame(rows, columns=names)
        return frame

    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text: its headings, and a row of them for each of the most exposed."""
        headings = ["kind", "row", "times", "secret", "exposure", "interval", "of"]
        headings += ["base", "gained"] if self.has_base else []
        headings += ["context"] if reveal else []
        rows = []
        for item in self[:_SHOWN]:
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
            parts.append(f"{what} found in {self.rows:,} row{'s' * (self.rows != 1)}")
        else:
            parts.append(
                f"{self.rows:,} rows, {sum(self.found.values()):,} finds{_counts(self.found)}, "
                f"{len(self):,} different ones, {len(self.measured):,} of them measured"
            )
        if self.has_base:
            sure = sum(item.surely_gained for item in self)
            parts.append(f"{sure:,} gained exposure over the base model for certain")
        if self.false:
            parts.append(f"{sum(self.false.values()):,} false finds left out{_counts(self.false)}")
        for one in self.skipped:
            parts.append(f"{one.count:,} {one.what} left out: {one.why}, first in row {one.row}")
        if self.settings.get("shortened"):
            parts.append(
                f"{self.settings['shortened']:,} contexts shortened to what the model can take"
            )
        took = f"{self.seconds:.1f} s, {self.scan_seconds:.1f} s of it looking through the rows"
        shown = f"exposure in bits, {confidence:.0%} intervals; " if self else ""
        parts.append(f"{shown}{self.forwards:,} token-forwards in {took}")
        return "; ".join(parts)

    # Files

    def _content(self, reveal: bool) -> dict[str, Any]:
        def entry(item: AuditEntry) -> dict[str, Any]:
            out: dict[str, Any] = {
                name: getattr(item, name)
                for name in (
                    "kind",
                    "rows",
                    "occurrences",
                    "checked",
                    "length",
                    "space",
                    "check",
                    "space_bits",
                    "log_perplexity",
                    "base_log_perplexity",
                )
            }
            for name in ("exposure", "base_exposure"):
                one = getattr(item, name)
                out[name] = one and {number: getattr(one, number) for number in NUMBERS}
            if reveal and item.format is not None:
                out |= {"template": item.format.template, "secret": item.secret}
            return out

        return {
            "rows": self.rows,
            "found": self.found,
            "false": self.false,
            "skipped": [
                {"what": one.what, "why": one.why, "count": one.count, "row": one.row}
                for one in self.skipped
            ],
            "forwards": self.forwards,
            "seconds": self.seconds,
            "scan_seconds": self.scan_seconds,
            "settings": self.settings,
            "entries": [entry(item) for item in self],
        }

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Canaries | None) -> Audit:
        def entry(given: dict[str, Any]) -> AuditEntry:
            one = dict(given)
            template, secret = one.pop("template", None), one.pop("secret", None)
            fmt = None if template is None else SecretFormat(template, one["space"], one["check"])
            masked = _masked(one["space"], one["check"], one["length"], one["occurrences"])
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
            forwards=data["forwards"],
            seconds=data["seconds"],
            scan_seconds=data["scan_seconds"],
            settings=data["settings"],
        )


def audit_dataset(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Any,
    column: str = "text",
    base: Any | None = None,
    kinds: Collection[str] | None = None,
    *,
    region: str | None = "US",
    limit: int | None = None,
    top: int | None = 50,
    before: int = 100,
    max_characters: int = 500_000,
    samples: int = 500,
    max_forwards: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int | None = None,
    bos: bool | None = None,
    base_tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool = False,
) -> Audit:
    """Find the secrets in a dataset, and measure how exposed they are in a model.

    Every secret gets a format of its own: the text before it, and the strings that could stand in
    its place. Building the tree of such a format takes far longer than one forward. So all secrets
    get their log-perplexity from one forward, which bounds the exposure from below, and `top` of
    them are measured: of each kind in turn the one with the highest bound, or, beside a base, the
    one whose log-perplexity training has lowered most.

    Args:
        model: a causal language model of transformers, trained on the dataset.
        tokenizer: the one that it was trained with.
        dataset: a split of a dataset, or a list of texts or of dictionaries.
        column: the one with the text.
        base: the model before it was trained on the dataset, to be measured beside.
        kinds: what to look for, some of `hf_exposure.audit.detectors.KINDS`; None for all.
        region: the country whose phone numbers may stand without a country code; None for none.
        limit: rows to look at; None for all.
        top: secrets to measure; None for all.
        before: characters before a secret that the model is given, from the beginning of a word
            on; less where its context is too small.
        max_characters: longer rows are skipped.
        samples: draws of each measurement.
        max_forwards: token-forwards to spend on measuring, beside what the secrets' own scores
            need; all secrets and both models together.
        confidence: of all intervals.
        seed: of all draws.
        batch_size: rows of a forward; None chooses.
        bos: whether special tokens come before the text; None follows the tokenizer's default.
        base_tokenizer: the base model's if it has another one.
        progress: show a progress bar for rows, and one for the measurements.

    Returns:
        The secrets, the most exposed first, by the lower end of the interval. Those that are equal
        are one entry, in the context in which they come first.

    Raises:
        ImportError: `phonenumbers` or `python-stdnum` is not installed.
        TypeError, ValueError: a bad argument, an unknown column, or a model that cannot be
            measured at all. What is wrong with a single row or find is in `skipped`.

    Example:
        >>> audit = audit_dataset(model, tokenizer, rows, base=base)      # doctest: +SKIP
        >>> audit[0].kind, audit[0].rows[0], audit[0].gained              # doctest: +SKIP
        ('phone', 17, 24.3)
    """
    start = time.perf_counter()
    chosen = check_kinds(kinds)
    if "phone" in chosen:
        check_region(region)
    for name, value, least in (
        ("limit", limit, 1),
        ("top", top, 0),
        ("before", before, 1),
        ("max_characters", max_characters, 1),
    ):
        if value is not None and (isinstance(value, bool) or not value >= least):
            raise ValueError(
                f"audit_dataset: {name}={value!r} is too small; give a whole number of at least "
                f"{least}"
            )
    settings = Settings("auto", samples, max_forwards, confidence, seed, batch_size, bos)
    texts, total = texts_of(dataset, column)
    models = [_Side(model, tokenizer, bos)]
    if base is not None:
        models.append(_Side(base, base_tokenizer or tokenizer, bos))
    left_out = LeftOut()
    scan_start = time.perf_counter()
    rows, found, false, hits = scan(
        _bar(texts, progress, "rows", total if limit is None else min(limit, total or limit)),
        chosen,
        region,
        limit,
        before,
        max_characters,
        left_out,
    )
    scan_seconds = time.perf_counter() - scan_start
    for side in models if hits else []:
        side.check()
    targets = [
        target
        for hit in _bar(hits, progress, "finds", len(hits))
        if (target := _target(hit, models, left_out)) is not None
    ]
    picked = _in_turn(targets)[:top]
    spent, share = 0, settings
    for number, target in enumerate(_bar(picked, progress, "exposures", len(picked))):
        if max_forwards is not None:
            turns = len(models) * (len(picked) - number)
            share = replace(settings, max_forwards=max(0, max_forwards - spent) // turns)
        spent += _measure(target, models, share, left_out)
    entries = [target.entry() for target in targets]
    entries.sort(key=lambda one: (-one.low, -one.bits, one.log_perplexity, one.rows))
    return Audit(
        entries,
        rows=rows,
        found=found,
        false=false,
        skipped=left_out.list(),
        forwards=spent + sum(side.forwards for side in models),
        seconds=time.perf_counter() - start,
        scan_seconds=scan_seconds,
        settings={
            "column": column,
            "kinds": list(chosen),
            "region": region,
            "limit": limit,
            "top": top,
            "before": before,
            "max_characters": max_characters,
            "samples": samples,
            "max_forwards": max_forwards,
            "confidence": confidence,
            "seed": seed,
            "bos": bos,
            "shortened": sum(target.shortened for target in targets),
            "versions": versions("torch", "transformers", "outlines-core", *libraries(chosen)),
        },
    )


@dataclass
class _Side:
    """One of the models that are compared."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    bos: bool | None
    forwards: int = 0

    def check(self) -> None:
        """Measure something harmless: what is wrong with a model shows here, and not in errors
        that quote a row.

        Raises:
            TypeError, ValueError: the model or the tokenizer cannot be measured.
        """
        fmt = SecretFormat("The random number is {secret}.", "[0-9]{4}")
        with warnings.catch_warnings():  # of these words, which nobody has asked about
            warnings.filterwarnings("ignore", "measure_exposure: most canaries of")
            done = measure_exposure(
                self.model,
                self.tokenizer,
                [Canary(fmt, "1234")],
                samples=0,
                max_forwards=0,
                bos=self.bos,
            )
        self.forwards += done.forwards

    def log_perplexity(self, fmt: SecretFormat, secret: str) -> float:
        """Bits of a secret and what follows it, by one forward over its text.

        The context ends, as for the token tree, where no secret moves the boundary of a token:
        here, none of a few random ones.

        Raises:
            ContextError: it does not fit the model's context.
            ValueError: no token comes before the secret.
        """
        with undisturbed(self.model):
            model = TextModel(self.model, self.tokenizer, bos=self.bos)
            lead = model.encoder.lead
            encoded = model.encoder([fmt.render(one) for one in (secret, *fmt.sample(_OTHERS))])
            begin = len(lead) + min(common_length(encoded), len(encoded[0]) - 1)
            if not begin:
                raise ValueError("no token comes before it")
            ids = np.array([*lead, *encoded[0]], dtype=np.int64)
            ((_, bits, _),) = token_bits(model, [ids], np.array([begin]))
        self.forwards += model.forwards
        return float(bits.sum())


@dataclass
class _Target:
    """A secret that can be measured, with what is known of it so far."""

    hit: Hit
    format: SecretFormat
    costs: list[float]
    shortened: bool
    exposures: list[Exposure] = field(default_factory=list)

    def entry(self) -> AuditEntry:
        find, secret = self.hit.find, self.hit.secret
        masked = _masked(find.space, find.check, len(secret), self.hit.occurrences)
        measured = [replace(one, canary=masked) for one in self.exposures]
        costs = [one.log_perplexity for one in measured] or self.costs
        return AuditEntry(
            kind=find.kind,
            rows=tuple(self.hit.rows),
            occurrences=self.hit.occurrences,
            checked=find.checked,
            length=len(secret),
            space=find.space,
            check=find.check,
            space_bits=self.format.bits,
            log_perplexity=costs[0],
            base_log_perplexity=costs[1] if len(costs) > 1 else None,
            exposure=measured[0] if measured else None,
            base_exposure=measured[1] if len(measured) > 1 else None,
            format=self.format,
            secret=secret,
        )


def _target(hit: Hit, models: list[_Side], left_out: LeftOut) -> _Target | None:
    """The secret with its format and its log-perplexities; None, with a reason, if it has none."""
    find, prefix, shortened = hit.find, hit.prefix, False
    row = hit.rows[0]
    while True:
        try:
            fmt = SecretFormat(f"{prefix}{HOLE}{hit.suffix}", find.space, find.check)
            if not fmt.contains(hit.secret):
                left_out.add("finds", f"a {find.kind} that its expression does not match", row)
                return None
            if fmt.size == 1:
                left_out.add("finds", f"a {find.kind} of which nothing is left to guess", row)
                return None
            costs = [side.log_perplexity(fmt, hit.secret) for side in models]
            return _Target(hit, fmt, costs, shortened)
        except ContextError:
            if len(prefix) < 2:
                why = f"a {find.kind} that does not fit the model's context"
                left_out.add("finds", why, row)
                return None
            prefix, shortened = prefix[(len(prefix) + 1) // 2 :], True
        except Exception as error:  # tokenizers may raise anything, and quote what they got
            why = f"a {find.kind} that cannot be scored ({type(error).__name__})"
            if isinstance(error, ValueError) and not prefix:
                why = f"a {find.kind} at the beginning of a row, which nothing comes before"
            left_out.add("finds", why, row)
            return None


def _in_turn(targets: list[_Target]) -> list[_Target]:
    """In the order of being measured: the kinds take turns, for bits of one space are not those of
    another, and addresses with long names would leave no place for any number."""

    def promise(target: _Target) -> float:
        # What one forward tells: bits gained on the base, or else the bound of the exposure.
        cost, *base = target.costs
        return (base[0] if base else target.format.bits) - cost

    turns: Counter[str] = Counter()
    order: list[tuple[int, float, int, _Target]] = []
    for target in sorted(targets, key=promise, reverse=True):
        order.append((turns[target.hit.find.kind], -promise(target), len(order), target))
        turns[target.hit.find.kind] += 1
    return [target for *_, target in sorted(order, key=lambda one: one[:3])]


def _measure(target: _Target, models: list[_Side], settings: Settings, left_out: LeftOut) -> int:
    """Measure a secret in all models. Gives the token-forwards."""
    hit = target.hit
    canaries = Canaries([Canary(target.format, hit.secret, hit.occurrences)])
    spent = 0
    exposures: list[Exposure] = []
    plans: dict[int, Plan] = {}
    try:
        for side in models:
            name = id(side.tokenizer)
            if name not in plans:
                plans[name] = plan_measurement(side.tokenizer, canaries, bos=side.bos)
            with warnings.catch_warnings():  # they quote the context
                warnings.simplefilter("ignore", UserWarning)
                measured = measure_plan(side.model, plans[name], settings)
            spent += measured.forwards
            exposures.append(measured[0])
    except Exception as error:  # quotes the context
        kind = f"{hit.find.kind} that was not measured"
        why = f"a {kind}, for the tokenizer does not keep its text or its shape apart"
        if not isinstance(error, ValueError):
            why = f"a {kind} ({type(error).__name__})"
        left_out.add("finds", why, hit.rows[0])
        return spent
    target.exposures = exposures
    return spent


@functools.lru_cache(maxsize=256)
def _bare(space: str, check: str | None) -> SecretFormat:
    return SecretFormat(HOLE, space, check)


def _masked(space: str, check: str | None, length: int, occurrences: int) -> MaskedCanary:
    """What a result shows of a secret: neither itself nor its context."""
    return MaskedCanary(_bare(space, check), length, occurrences)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _counts(counts: Mapping[str, int]) -> str:
    """Counts by kind, the most first, in brackets."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return f" ({', '.join(f'{count:,} {kind}' for kind, count in ordered)})" if counts else ""


def _bar(items: Iterable[T], show: bool, what: str, total: int | None) -> Iterable[T]:
    if not show:
        return items
    from tqdm.auto import tqdm

    shown: Iterable[T] = tqdm(items, desc=what, total=total, unit=f" {what}")
    return shown
