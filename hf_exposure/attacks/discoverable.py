"""Discoverable extraction: does the model go on with the rest of a text that it is given a part of?

For pairs of a prefix and a suffix: whether the suffix comes out by greedy decoding; the exact
probability that one sample is the suffix, under temperature, top-k and top-p; what follows from it
for n samples, the (n, p)-discoverable extraction of Hayes et al. 2024 (arXiv 2410.19482); and a
lower bound on the probability that a sample comes within a few edits of it. One forward for each
pair gives all but the last, which is a walk over the tree of near texts.

Probabilities are log2 throughout: that of 50 tokens may be smaller than any float.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_exposure.attacks.near import log2_of, near_bound
from hf_exposure.attacks.pairs import Pair, count_reasons, read_pairs
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.documents import Document, Rows, Tabular, from_jsonable, versions
from hf_exposure.models.decoder import Decoder, undisturbed
from hf_exposure.utils.arrays import Bools, Floats
from hf_exposure.utils.checks import check_count
from hf_exposure.utils.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

Warp = Callable[[torch.Tensor], torch.Tensor]

_LN2 = math.log(2)
_SHOWN = 20  # examples in a table
_WIDTH = 48  # characters of a suffix in a table
_NEAR_FORWARDS = 1000  # token-forwards of one near-verbatim search unless told
_PROBED = 8  # tokens of a suffix to check the decoder with
_EQUAL = 1e-9  # a probability within so many bits of another is not lower

# What follows from the probability of one sample


def log2_extractable(log2_p: ArrayLike, n: ArrayLike) -> Floats:
    """log2 of 1 - (1 - p)^n: the probability that at least one of n samples is the suffix.

    Hayes et al. 2024, section 3: a suffix is (n, p)-discoverably extractable if that is at least p.

    Args:
        log2_p: log2 of the probability that one sample is it; -inf if it cannot be.
        n: how many samples are drawn, above 0. Both may be arrays, which are broadcast.

    Example:
        >>> f"{2 ** float(log2_extractable(math.log2(1e-20), 1e6)):.9g}"
        '1e-14'
        >>> float(log2_extractable(-10_000.0, 2.0**64))  # far below the smallest float
        -9936.0
    """
    log_n = np.log(np.asarray(n, dtype=float))
    with np.errstate(divide="ignore", over="ignore"):
        log_x = log_n + _log_hazard(log2_p)  # (1 - p)^n = e^-x
        x = np.exp(log_x)
        small = np.log(-np.expm1(-np.minimum(x, 1.0)))
        out = np.where(x > 1, np.log1p(-np.exp(-x)), np.where(log_x < -100, log_x, small))
    return np.asarray(out / _LN2)


def log2_queries(log2_p: ArrayLike, p: ArrayLike) -> Floats:
    """log2 of the number of samples after which the suffix has come out with probability p.

    It is the n with 1 - (1 - p_z)^n = p, so log(1 - p) / log(1 - p_z) for the p_z of one sample;
    not rounded, and less than 1 where a single sample is more likely than p. Infinite if a sample
    cannot be the suffix.

    Args:
        log2_p: log2 of p_z.
        p: between 0 and 1. Both may be arrays, which are broadcast.

    Example:
        >>> round(float(2 ** log2_queries(math.log2(0.001), 0.5)), 1)
        692.8
    """
    p = np.asarray(p, dtype=float)
    if not ((p > 0) & (p < 1)).all():
        raise ValueError("log2_queries: p must lie between 0 and 1, such as 0.5")
    return np.asarray((np.log(-np.log1p(-p)) - _log_hazard(log2_p)) / _LN2)


def _log_hazard(log2_p: ArrayLike) -> Floats:
    """log(-log(1 - p)): infinite for p = 1, and log p where p is tiny."""
    log_p = np.minimum(np.asarray(log2_p, dtype=float), 0.0) * _LN2
    with np.errstate(divide="ignore"):
        large = np.log(-np.log(-np.expm1(np.maximum(log_p, -1.0))))
        small = np.log(-np.log1p(-np.exp(np.clip(log_p, -100.0, -1.0))))
    return np.asarray(np.where(log_p > -1, large, np.where(log_p < -100, log_p, small)))


def sampling_scheme(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Warp | None:
    """What `generate(do_sample=True)` makes of (rows, vocabulary) logits before it draws.

    transformers' own logits warpers in the order in which `generate` applies them: temperature,
    then top-k, then top-p; minus infinity where a token is cut off. None if nothing is to be done.

    Raises:
        TypeError: `top_k` is not whole.
        ValueError: a value out of range.
    """
    check_count("discoverable_extraction: top_k", top_k, least=0)
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"discoverable_extraction: temperature={temperature!r} is not a positive number; "
            "for greedy decoding see the result's greedy_rate, at any temperature"
        )
    if not 0 < top_p <= 1:
        raise ValueError(
            f"discoverable_extraction: top_p={top_p!r} is not above 0 and at most 1; "
            "give 1.0 to cut nothing off"
        )
    warpers = LogitsProcessorList()
    if temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        warpers.append(TopKLogitsWarper(int(top_k)))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    if not warpers:
        return None
    no_ids: Any = None  # these look at nothing but the scores

    def warp(logits: torch.Tensor) -> torch.Tensor:
        return warpers(no_ids, logits)

    return warp


# Results


@dataclass(frozen=True)
class Rate:
    """A share of the examples.

    Attributes:
        value: the share, `count` / `total`.
        low, high: its Clopper-Pearson interval, if the examples are a random sample of a larger
            set, at the confidence that was asked for.
        count, total: how many examples it holds for, and how many there are.
    """

    value: float
    low: float
    high: float
    count: int
    total: int

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


@dataclass(frozen=True)
class Example:
    """What one pair has given.

    Attributes:
        row: where it stands in the data, counted from 0.
        prefix_tokens, suffix_tokens: their numbers, special tokens included.
        log2_p: log2 of the probability that one sample is the suffix; -inf if the sampling scheme
            cuts one of its tokens off.
        greedy: whether greedy decoding gives the suffix.
        matched: how many tokens greedy decoding gives before the first wrong one.
        log2_near: log2 of a lower bound on the probability that a sample is near the suffix; None
            if it was not asked for.
        near_exact: whether nothing was left to search, so that it is no bound but the probability.
        prefix, suffix: token ids; None if loaded from a file without them. Not shown by `repr`.
        text: the suffix as text, if there was a tokenizer. Not shown by `repr`.
    """

    row: int
    prefix_tokens: int
    suffix_tokens: int
    log2_p: float
    greedy: bool
    matched: int
    log2_near: float | None = None
    near_exact: bool | None = None
    prefix: tuple[int, ...] | None = field(default=None, repr=False)
    suffix: tuple[int, ...] | None = field(default=None, repr=False)
    text: str | None = field(default=None, repr=False)


class Discoverable(Tabular, Document, Rows[Example]):
    """What discoverable extraction has given, one `Example` for each pair that could be used.

    Prefixes and suffixes are not in what is printed or written, unless `reveal=True`.

    Attributes:
        skipped: why each row was left out that was, by its number.
        forwards: token-forwards spent: positions that the model has computed.
        seconds: how long it took.
        settings: how it was measured.

    Example:
        >>> some = [Example(0, 50, 50, -3.0, True, 50), Example(1, 50, 50, -90.5, False, 2)]
        >>> found = Discoverable(some, forwards=198, seconds=0.5)
        >>> print(found)
        row  prefix  suffix  log2 p  greedy    samples for p = 0.5
          0      50      50    -3.0  yes                         6
          1      50      50   -90.5  2 tokens              1.2e+27
        2 examples: 50.0% come out by greedy decoding, 50.0% in 1,000 samples with a probability \
of at least 0.5; 198 token-forwards in 0.5 s
        >>> found.rate(10, 0.5)
        Rate(value=0.5, low=0.0125..., high=0.987..., count=1, total=2)
    """

    kind = "discoverable"
    right = frozenset({0, 1, 2, 3, 5, 6, 7})

    def __init__(
        self,
        items: Iterable[Example],
        *,
        skipped: Mapping[int, str] | None = None,
        forwards: int = 0,
        seconds: float = 0.0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._items = tuple(items)
        self.skipped = dict(skipped or {})
        self.forwards = forwards
        self.seconds = seconds
        self.settings: dict[str, Any] = dict(settings or {})

    # Figures

    @property
    def near(self) -> int:
        """The edits within which a sample is near, 0 if only the suffix itself was looked for."""
        return int(self.settings.get("near", 0))

    def log2_p(self, near: bool = False) -> Floats:
        """(examples,) log2 of the probability of one sample, or of the bound for near ones.

        Raises:
            ValueError: near ones were not looked for.
        """
        if near and not self.near:
            raise ValueError("Discoverable: near=True, but it was measured with near=0")
        return np.array([one.log2_near if near else one.log2_p for one in self], dtype=float)

    def probability(self, n: float, near: bool = False) -> Floats:
        """(examples,) the probability that it comes out in n samples; see `log2_extractable`."""
        _check_samples(n)
        return np.asarray(np.exp2(log2_extractable(self.log2_p(near), n)))

    def queries(self, p: float, near: bool = False) -> Floats:
        """(examples,) samples after which it has come out with probability p; see
        `log2_queries`. Infinite where no float is large enough."""
        _check_probability(p)
        with np.errstate(over="ignore"):
            return np.asarray(np.exp2(log2_queries(self.log2_p(near), p)))

    def rate(self, n: float, p: float, near: bool = False, confidence: float = 0.95) -> Rate:
        """The share of examples that come out in n samples with a probability of at least p.

        Args:
            n: how many samples are drawn.
            p: the probability that one of them is to be the suffix.
            near: count samples near the suffix too; the rate is then a lower bound, and the
                interval reaches up to where all examples count whose search was cut short.
            confidence: of the interval over examples.

        Raises:
            ValueError: a value out of range, or nothing was measured.
        """
        _check_samples(n)
        _check_probability(p)
        holds = self._come_out(n, p, near)
        open_ones = [near and not one.near_exact for one in self]
        return self._rate(holds, confidence, int((~holds & np.array(open_ones)).sum()))

    def curve(self, n: ArrayLike, p: ArrayLike, near: bool = False) -> Floats:
        """(len(n), len(p)) the rates for all numbers of samples and all probabilities."""
        counts, targets = (np.atleast_1d(np.asarray(value, dtype=float)) for value in (n, p))
        rates = []
        for count in counts.tolist():
            _check_samples(count)
            for target in targets.tolist():
                _check_probability(target)
                rates.append(self._come_out(count, target, near).mean())
        return np.array(rates).reshape(len(counts), len(targets))

    @property
    def greedy_rate(self) -> Rate:
        """The share of examples whose suffix comes out by greedy decoding."""
        return self._rate(np.array([one.greedy for one in self]), 0.95)

    def rates(
        self,
        n: Iterable[float] = (1, 10, 100, 1000, 10**6),
        p: Iterable[float] = (0.1, 0.5, 0.9),
        near: bool = False,
    ) -> Rates:
        """The rates for some numbers of samples and probabilities, as a table."""
        counts, targets = list(n), list(p)
        cells = [[self.rate(count, target, near) for target in targets] for count in counts]
        return Rates(counts, targets, cells, self.near if near else 0)

    def _come_out(self, n: float, p: float, near: bool) -> Bools:
        return log2_extractable(self.log2_p(near), n) >= math.log2(p) - _EQUAL

    def _rate(self, holds: Bools, confidence: float, undecided: int = 0) -> Rate:
        if not len(self):
            raise ValueError("Discoverable: no example was measured")
        if not 0 < confidence < 1:
            raise ValueError(f"Discoverable: confidence={confidence!r} is not between 0 and 1")
        count, total = int(holds.sum()), len(self)
        low, high = (
            stats.binomtest(number, total).proportion_ci(confidence, method="exact")
            for number in (count, count + undecided)
        )
        return Rate(count / total, float(low.low), float(high.high), count, total)

    def to_pandas(self, reveal: bool = False) -> pd.DataFrame:
        """One row for each example; with the suffixes if `reveal`."""
        import pandas as pd

        hidden = {"prefix", "suffix", "text"}
        names = [name for name in Example.__dataclass_fields__ if reveal or name not in hidden]
        values = {name: [getattr(one, name) for one in self] for name in names}
        frame: pd.DataFrame = pd.DataFrame(values, columns=names)
        return frame

    # Tables

    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text: its headings, and a row of them for each example. Of many examples
        the most likely ones."""
        headings = ["row", "prefix", "suffix", "log2 p", "greedy", "samples for p = 0.5"]
        if self.near:
            headings += [f"log2 p within {_edits(self.near)}", "samples for p = 0.5"]
        if reveal:
            headings.append("suffix")
        chosen = list(self)
        if len(chosen) > _SHOWN:
            order = np.argsort(-self.log2_p(bool(self.near)), kind="stable")
            chosen = [chosen[place] for place in order[:_SHOWN]]
        return headings, [self._row(one, reveal) for one in chosen]

    def _row(self, one: Example, reveal: bool) -> list[str]:
        cells = [
            f"{one.row}",
            f"{one.prefix_tokens}",
            f"{one.suffix_tokens}",
            f"{one.log2_p:.1f}",
            "yes" if one.greedy else "1 token" if one.matched == 1 else f"{one.matched} tokens",
            _count(log2_queries(one.log2_p, 0.5)),
        ]
        if self.near and one.log2_near == -math.inf and not one.near_exact:
            cells += ["–", "–"]  # nothing was found, which says nothing
        elif self.near and one.log2_near is not None:
            sign = "" if one.near_exact else "≥ "
            most = "" if one.near_exact else "≤ "
            cells += [f"{sign}{one.log2_near:.1f}", most + _count(log2_queries(one.log2_near, 0.5))]
        if reveal:
            shown = repr(one.text) if one.text is not None else f"{one.suffix}"
            cells.append(shown if len(shown) <= _WIDTH else shown[: _WIDTH - 1] + "…")
        return cells

    def summary(self) -> str:
        """One line about the rates, what was left out, and what it took."""
        parts = ["1 example" if len(self) == 1 else f"{len(self):,} examples"]
        if len(self):
            parts[0] += (
                f": {self.greedy_rate.value:.1%} come out by greedy decoding, "
                f"{self.rate(1000, 0.5).value:.1%} in 1,000 samples with a probability of at least "
                "0.5"
            )
        if len(self) and self.near:
            rate = self.rate(1000, 0.5, near=True)
            parts[0] += f" (within {_edits(self.near)}: at least {rate.value:.1%})"
        if len(self) > _SHOWN:
            parts.append(f"the {_SHOWN} most likely are shown")
        if self.skipped:
            reasons = (f"{count:,} {why}" for why, count in count_reasons(self.skipped).items())
            parts.append(f"left out: {', '.join(reasons)}")
        parts.append(f"{self.forwards:,} token-forwards in {self.seconds:.1f} s")
        return "; ".join(parts)

    # Files

    def _content(self, reveal: bool) -> dict[str, Any]:
        def described(one: Example) -> dict[str, Any]:
            out: dict[str, Any] = {
                "row": one.row,
                "prefix_tokens": one.prefix_tokens,
                "suffix_tokens": one.suffix_tokens,
                "log2_p": one.log2_p,
                "greedy": one.greedy,
                "matched": one.matched,
            }
            if one.log2_near is not None:
                out |= {"log2_near": one.log2_near, "near_exact": one.near_exact}
            if reveal:
                out |= {"prefix": one.prefix, "suffix": one.suffix, "text": one.text}
            return out

        return {
            "forwards": self.forwards,
            "seconds": self.seconds,
            "settings": self.settings,
            "skipped": {str(row): why for row, why in self.skipped.items()},
            "examples": [described(one) for one in self],
        }

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Canaries | None) -> Discoverable:
        def example(entry: dict[str, Any]) -> Example:
            near = entry.get("log2_near")
            ids = {name: entry.get(name) for name in ("prefix", "suffix")}
            return Example(
                entry["row"],
                entry["prefix_tokens"],
                entry["suffix_tokens"],
                float(entry["log2_p"]),
                entry["greedy"],
                entry["matched"],
                None if near is None else float(near),
                entry.get("near_exact"),
                **{name: None if value is None else tuple(value) for name, value in ids.items()},
                text=entry.get("text"),
            )

        return cls(
            [example(entry) for entry in data["examples"]],
            skipped={int(row): why for row, why in data["skipped"].items()},
            forwards=data["forwards"],
            seconds=data["seconds"],
            settings=from_jsonable(data["settings"]),
        )


class Rates(Tabular):
    """(n, p)-discoverable rates for some numbers of samples and probabilities.

    Attributes:
        n, p: the numbers of samples, one for each row, and the probabilities, one for each column.
        values: the `Rate` of each row and column.
        near: the edits within which a sample counts; the rates are then lower bounds.
    """

    def __init__(
        self, n: Sequence[float], p: Sequence[float], rates: Sequence[Sequence[Rate]], near: int = 0
    ) -> None:
        self.n, self.p, self.near = tuple(n), tuple(p), near
        self.values = tuple(map(tuple, rates))

    right = frozenset({0})

    def to_dict(self) -> dict[str, Any]:
        """For JSON: a list of rates for each number of samples."""
        rates = [[vars(rate) for rate in row] for row in self.values]
        return {"n": list(self.n), "p": list(self.p), "near": self.near, "rates": rates}

    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text: its headings, and a row of them for each number of samples."""
        sign = "≥ " if self.near else ""
        rows = [
            [_count(np.log2(n)), *(sign + str(rate) for rate in row)]
            for n, row in zip(self.n, self.values, strict=True)
        ]
        return ["samples", *(f"p = {target:g}" for target in self.p)], rows

    def summary(self) -> str:
        """One line about what the shares are."""
        what = f"within {_edits(self.near)} of the suffix" if self.near else "the suffix"
        return (
            f"Share of the examples for which at least one of so many samples is {what} with a "
            "probability of at least p, and its interval over examples"
        )


# The measurement


def discoverable_extraction(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    pairs: Iterable[Any],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prefix_tokens: int = 50,
    suffix_tokens: int = 50,
    near: int = 0,
    columns: str | tuple[str, str] | None = None,
    bos: bool | None = None,
    batch_size: int | None = None,
    max_forwards: int | None = None,
    progress: bool = False,
) -> Discoverable:
    """Whether a model goes on with the suffixes of some texts, given their prefixes.

    Guarantees:
        - `log2_p` is exact, up to the rounding of the model: it is the log2 of the share of
          samples of `generate(do_sample=True, temperature=, top_k=, top_p=)` whose next tokens are
          the suffix, if nothing else of a generation_config has a say.
        - `greedy` says what `generate(do_sample=False)` would give: each token is the most likely
          one. Of equally likely ones it is that which `torch.argmax` names.
        - `log2_near` is never above the log2 of the probability that a sample comes within `near`
          edits of the suffix (Levenshtein, in tokens), nor below that of the suffix without its
          last `near` tokens. A sample is as long as the suffix, or ends before, with a token that
          ends texts, which is then no part of it.
        - A token that ends texts and stands in a suffix counts there as any other: figures of such
          a suffix are of samples that do not stop at it (`eos_token_id=None`), and `log2_near` is
          `log2_p`, without a search.

    Args:
        model: a causal language model; left as it was.
        tokenizer: for pairs that are texts; may be None for token ids.
        pairs: a `datasets.Dataset`, or any rows: (prefix, suffix), which are taken whole, or one
            text or one sequence of token ids, of which the first tokens are taken; or what
            `load_benchmark` returns. See `read_pairs`.
        temperature, top_k, top_p: of the sampling, as in `generate`; 0 and 1.0 cut nothing off.
        prefix_tokens, suffix_tokens: of one text or sequence; special tokens before it do not
            count.
        near: how many tokens may be inserted, deleted or substituted in a near-verbatim sample; 0
            looks for none.
        columns: names of the columns of prefix and suffix, or of the one that is cut; None takes
            "prefix" and "suffix" if they are there, else "text".
        bos: whether special tokens come before a text; None follows the tokenizer's default.
        batch_size: rows of a forward; None chooses, and memory running out halves it.
        max_forwards: token-forwards that the search for near texts may spend on each example, its
            prefix included; 1,000 if None. The exact figures are always measured.
        progress: show a progress bar.

    Returns:
        An `Example` for each pair. Rows that are too short, not text, longer than the model's
        context, or of tokens that it does not have are left out, with one warning for each reason.

    Raises:
        TypeError: `pairs` holds no rows, or a number is not whole.
        ValueError: a bad argument, no row that can be used, or a model that gives NaN or is not
            causal.

    Example:
        >>> found = discoverable_extraction(model, tokenizer, texts, top_k=40)  # doctest: +SKIP
        >>> found.greedy_rate.value, found.rate(1000, 0.5).value                # doctest: +SKIP
        (0.25, 0.5)
    """
    for name, value, least in (
        ("prefix_tokens", prefix_tokens, 1),
        ("suffix_tokens", suffix_tokens, 1),
        ("near", near, 0),
        ("batch_size", batch_size, 1),
        ("max_forwards", max_forwards, 1),
    ):
        if value is not None:
            check_count(f"discoverable_extraction: {name}", value, least)
    warp = sampling_scheme(temperature, top_k, top_p)
    start = time.perf_counter()
    usable, skipped = read_pairs(
        pairs,
        tokenizer,
        columns=columns,
        prefix_tokens=prefix_tokens,
        suffix_tokens=suffix_tokens,
        bos=bos,
    )
    with undisturbed(model), progress_bar(progress, "discoverable extraction") as tick:
        usable = _that_fit(model, usable, skipped)
        _warn(skipped, len(usable))
        probed = Decoder(model, usable[0].prefix.tolist(), None, batch_size=batch_size)
        probed.probe([usable[0].suffix[:_PROBED]])
        told = Decoder(model, usable[0].prefix.tolist(), None, batch_size=batch_size, warp=warp)
        costs, greedy = _costs(told, usable, lambda: tick(probed.forwards + told.forwards))
        forwards = probed.forwards + told.forwards
        bounds: list[tuple[float | None, bool | None]] = [(None, None)] * len(usable)
        if near:
            ends = _ends(model, tokenizer)
            budget = _NEAR_FORWARDS if max_forwards is None else max_forwards
            for place, pair in enumerate(usable):
                decoder = Decoder(
                    model, pair.prefix.tolist(), None, batch_size=batch_size, warp=warp
                )
                decoder.trust(probed)
                bounds[place] = near_bound(decoder, pair, costs[place], near, ends, budget)
                batch_size = decoder.batch_size if decoder.halved else batch_size
                forwards += decoder.forwards
                tick(forwards)
    return Discoverable(
        [
            _example(pair, own, wrong, *bound, tokenizer)
            for pair, own, wrong, bound in zip(usable, costs, greedy, bounds, strict=True)
        ],
        skipped=skipped,
        forwards=forwards,
        seconds=time.perf_counter() - start,
        settings={
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "prefix_tokens": prefix_tokens,
            "suffix_tokens": suffix_tokens,
            "near": near,
            "max_forwards": max_forwards,
            "bos": bos,
            "batch_size": batch_size,
            "cached": probed.cached,
            "noise_bits": probed.noise,
            "versions": versions("torch", "transformers"),
        },
    )


def _that_fit(model: Any, pairs: Sequence[Pair], skipped: dict[int, str]) -> list[Pair]:
    """The pairs that the model can take. Why the others are left out goes into `skipped`.

    Raises:
        ValueError: none is left.
    """
    limits = Decoder(model, [0], None)
    out = []
    for pair in pairs:
        if max(pair.prefix.max(), pair.suffix.max()) >= limits.vocabulary:
            skipped[pair.row] = f"with tokens beyond the model's vocabulary of {limits.vocabulary}"
        elif limits.context is not None and len(pair.prefix) + len(pair.suffix) > limits.context:
            skipped[pair.row] = f"longer than the model's context of {limits.context} tokens"
        else:
            out.append(pair)
    if not out:
        why = (f"{count:,} {reason}" for reason, count in count_reasons(skipped).items())
        raise ValueError(
            f"pairs: there is nothing to measure: {', '.join(why) or 'no rows at all'}; give pairs "
            "of texts or token ids, or texts of at least prefix_tokens + suffix_tokens tokens"
        )
    return out


def _warn(skipped: Mapping[int, str], usable: int) -> None:
    """Says each reason for leaving rows out once."""
    for why, count in count_reasons(skipped).items():
        first = min(row for row, reason in skipped.items() if reason == why)
        rows = "1 row is" if count == 1 else f"{count:,} rows are"
        warnings.warn(
            f"pairs: {rows} left out: {why} (the first is row {first}); {usable:,} are measured",
            stacklevel=3,
        )


def _costs(
    decoder: Decoder, pairs: Sequence[Pair], tick: Callable[[], None]
) -> tuple[list[Floats], list[Bools]]:
    """For each pair the bits of its suffix's tokens, and which of them greedy decoding gets right
    if it has got all before."""
    whole = [np.concatenate([pair.prefix, pair.suffix]) for pair in pairs]
    begins = np.array([len(pair.prefix) for pair in pairs])
    costs = [np.zeros(0)] * len(pairs)
    right = [np.zeros(0, dtype=bool)] * len(pairs)
    for place, bits, greedy in decoder.forced(whole, begins):
        costs[place], right[place] = bits, greedy == pairs[place].suffix
        tick()
    return costs, right


def _example(
    pair: Pair,
    costs: Floats,
    right: Bools,
    log2_near: float | None,
    near_exact: bool | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Example:
    text = None if tokenizer is None else str(tokenizer.decode(pair.suffix.tolist()))
    wrong = np.flatnonzero(~right)
    return Example(
        pair.row,
        len(pair.prefix),
        len(pair.suffix),
        log2_of(costs),
        not len(wrong),
        int(wrong[0]) if len(wrong) else len(right),
        log2_near,
        near_exact,
        tuple(pair.prefix.tolist()),
        tuple(pair.suffix.tolist()),
        text,
    )


def _ends(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> set[int]:
    """The tokens at which `generate` stops."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None and tokenizer is not None:
        ends = tokenizer.eos_token_id
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, (list, tuple)) else {int(ends)}


# Small things


def _check_samples(n: float) -> None:
    if not 0 < n < math.inf:
        raise ValueError(f"Discoverable: n={n!r} is no number of samples; give 1 or more")


def _check_probability(p: float) -> None:
    if not 0 < p < 1:
        raise ValueError(f"Discoverable: p={p!r} is not between 0 and 1; 0.5 is usual")


def _edits(number: int) -> str:
    return "1 edit" if number == 1 else f"{number} edits"


def _count(log2: Any) -> str:
    """A number of samples, given as log2, rounded up."""
    if log2 == math.inf:
        return "never"
    if log2 < 20:
        return f"{max(1, math.ceil(2**log2 - 1e-6)):,}"
    exponent = math.floor(log2 * math.log10(2))
    return f"{10 ** (log2 * math.log10(2) - exponent):.1f}e+{exponent}"
