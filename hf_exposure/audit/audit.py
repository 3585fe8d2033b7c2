"""Audit of real data: the secrets that stand in a dataset, and how exposed each is in a model.

Nothing of a row is ever shown: neither the secrets nor the text around them, in tables, files,
errors or warnings, unless `reveal=True`.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from hf_exposure.audit.detectors import check_kinds, check_region, libraries
from hf_exposure.audit.results import Audit, AuditEntry, masked_canary
from hf_exposure.audit.scan import Hit, LeftOut, scan, texts_of
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import HOLE, SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.vocabulary import common_length
from hf_exposure.exposure.documents import versions
from hf_exposure.exposure.measure import measure_exposure, measure_plan
from hf_exposure.exposure.planning import Plan, Settings, plan_measurement
from hf_exposure.exposure.records import Exposure
from hf_exposure.models.causal import ContextError
from hf_exposure.models.continuations import TextModel, token_signals
from hf_exposure.models.undisturbed import undisturbed
from hf_exposure.utils.checks import check_count
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_OTHERS = 64  # random strings of a space that show where the context's tokens end


@typed
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
    check_count("audit_dataset: before", before, least=1)
    check_count("audit_dataset: max_characters", max_characters, least=1)
    check_count("audit_dataset: samples", samples)
    limits = {"limit": (limit, 1), "top": (top, 0), "max_forwards": (max_forwards, 0)}
    for name, (value, least) in limits.items():
        if value is not None:
            check_count(f"audit_dataset: {name}", value, least)
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
            ((_, found),) = token_signals(model, [ids], np.array([begin]))
        self.forwards += model.forwards
        return float(found.bits.sum())


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
        masked = masked_canary(find.space, find.check, len(secret), self.hit.occurrences)
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
    kind = f"a {hit.find.kind} that was not measured"
    why = ""
    try:
        for side in models:
            name = id(side.tokenizer)
            if name not in plans:
                why = f"{kind}, for the tokenizer does not keep its text or its shape apart"
                plans[name] = plan_measurement(side.tokenizer, canaries, bos=side.bos)
            why = ""
            with warnings.catch_warnings():  # they quote the context
                warnings.simplefilter("ignore", UserWarning)
                measured = measure_plan(side.model, plans[name], settings)
            spent += measured.forwards
            exposures.append(measured[0])
    except Exception as error:  # quotes the context; arguments were checked before
        blamed = why and isinstance(error, ValueError)
        left_out.add("finds", why if blamed else f"{kind} ({type(error).__name__})", hit.rows[0])
        return spent
    target.exposures = exposures
    return spent


def _bar(items: Iterable[T], show: bool, what: str, total: int | None) -> Iterable[T]:
    if not show:
        return items
    from tqdm.auto import tqdm

    shown: Iterable[T] = tqdm(items, desc=what, total=total, unit=f" {what}")
    return shown
