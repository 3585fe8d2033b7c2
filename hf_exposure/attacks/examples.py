"""What discoverable extraction gives back: examples, and rates for numbers of samples.

Probabilities are log2 throughout: that of 50 tokens may be smaller than any float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hf_exposure.attacks.pairs import count_reasons
from hf_exposure.attacks.samples import log2_extractable, log2_queries
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.documents import Result, Row, Tabular
from hf_exposure.exposure.estimators import clopper_pearson
from hf_exposure.utils.arrays import Bools, Floats
from hf_exposure.utils.checks import check_number, check_numbers, check_share
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import plural

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 20  # examples in a table
_WIDTH = 48  # characters of a suffix in a table
_SECRET = frozenset({"prefix", "suffix", "text"})  # fields of an example that quote it
_EQUAL = 1e-9  # a probability within so many bits of another is not lower


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


@dataclass(frozen=True, repr=False)
class Example(Row):
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


@typed
class Discoverable(Result[Example]):
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
of at least 0.5; 200 token-forwards in 0.5 s
        >>> found.rate(10, 0.5)
        Rate(value=0.5, low=0.0125..., high=0.987..., count=1, total=2)
    """

    kind = "discoverable"
    entries = "examples"
    right = frozenset({0, 1, 2, 3, 5, 6, 7})

    def __init__(
        self, items: Iterable[Example], *, skipped: Mapping[int, str] | None = None, **took: Any
    ) -> None:
        super().__init__(items, **took)
        self.skipped = dict(skipped or {})

    # Figures

    @property
    def near(self) -> int:
        """The edits within which a sample is near, 0 if only the suffix itself was looked for."""
        return int(self.settings.get("near", 0))

    @typed
    def log2_p(self, near: bool = False) -> Floats:
        """(examples,) log2 of the probability of one sample, or of the bound for near ones.

        Raises:
            ValueError: near ones were not looked for.
        """
        if near and not self.near:
            raise ValueError("Discoverable: near=True, but it was measured with near=0")
        return np.array([one.log2_near if near else one.log2_p for one in self], dtype=float)

    @typed
    def probability(self, n: float, near: bool = False) -> Floats:
        """(examples,) the probability that it comes out in n samples; see `log2_extractable`."""
        check_number("Discoverable: n", n, 0, math.inf, open_ends=True)
        return np.asarray(np.exp2(log2_extractable(self.log2_p(near), n)))

    @typed
    def queries(self, p: float, near: bool = False) -> Floats:
        """(examples,) samples after which it has come out with probability p; see
        `log2_queries`. Infinite where no float is large enough."""
        check_share("Discoverable: p", p)
        with np.errstate(over="ignore"):
            return np.asarray(np.exp2(log2_queries(self.log2_p(near), p)))

    @typed
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
        check_number("Discoverable: n", n, 0, math.inf, open_ends=True)
        check_share("Discoverable: p", p)
        holds = self._come_out(n, p, near)
        open_ones = [near and not one.near_exact for one in self]
        return self._rate(holds, confidence, int((~holds & np.array(open_ones)).sum()))

    @typed
    def curve(self, n: ArrayLike, p: ArrayLike, near: bool = False) -> Floats:
        """(len(n), len(p)) the rates for all numbers of samples and all probabilities."""
        for name, values in (("n", n), ("p", p)):
            check_numbers(f"Discoverable.curve: {name}", np.atleast_1d(np.asarray(values)))
        if not np.size(n) or not np.size(p):
            raise ValueError("Discoverable: n and p are empty; give at least one number of each")
        counts, targets = (np.atleast_1d(np.asarray(value, dtype=float)) for value in (n, p))
        rates = []
        for count in counts.tolist():
            check_number("Discoverable: n", count, 0, math.inf, open_ends=True)
            for target in targets.tolist():
                check_share("Discoverable: p", target)
                rates.append(self._come_out(count, target, near).mean())
        return np.array(rates).reshape(len(counts), len(targets))

    @property
    def greedy_rate(self) -> Rate:
        """The share of examples whose suffix comes out by greedy decoding."""
        return self._rate(np.array([one.greedy for one in self]), 0.95)

    @typed
    def rates(
        self,
        n: Iterable[float] = (1, 10, 100, 1000, 10**6),
        p: Iterable[float] = (0.1, 0.5, 0.9),
        near: bool = False,
    ) -> Rates:
        """The rates for some numbers of samples and probabilities, as a table."""
        counts, targets = list(n), list(p)
        if not counts or not targets:
            raise ValueError("Discoverable: n and p are empty; give at least one number of each")
        cells = [[self.rate(count, target, near) for target in targets] for count in counts]
        return Rates(counts, targets, cells, self.near if near else 0)

    def _come_out(self, n: float, p: float, near: bool) -> Bools:
        return log2_extractable(self.log2_p(near), n) >= math.log2(p) - _EQUAL

    def _rate(self, holds: Bools, confidence: float, undecided: int = 0) -> Rate:
        if not len(self):
            raise ValueError("Discoverable: no example was measured")
        count, total = int(holds.sum()), len(self)
        low, _ = clopper_pearson(count, total, confidence)
        _, high = clopper_pearson(count + undecided, total, confidence)
        return Rate(count / total, low, high, count, total)

    @typed
    def to_pandas(self, reveal: bool = False) -> pd.DataFrame:
        """One row for each example; with the suffixes if `reveal`."""
        import pandas as pd

        names = [one.name for one in fields(Example) if reveal or one.name not in _SECRET]
        shown = self if reveal else [one.coarse() for one in self]
        frame: pd.DataFrame = pd.DataFrame(
            {name: [getattr(one, name) for one in shown] for name in names}, columns=names
        )
        return frame

    # Tables

    @typed
    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text: its headings, and a row of them for each example. Of many examples
        the most likely ones."""
        headings = ["row", "prefix", "suffix", "log2 p", "greedy", "samples for p = 0.5"]
        if self.near:
            headings += [f"log2 p within {plural(self.near, 'edit')}", "samples for p = 0.5"]
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
            "yes" if one.greedy else plural(one.matched, "token"),
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
        parts = [plural(len(self), "example")]
        if len(self):
            parts[0] += (
                f": {self.greedy_rate.value:.1%} come out by greedy decoding, "
                f"{self.rate(1000, 0.5).value:.1%} in 1,000 samples with a probability of at least "
                "0.5"
            )
        if len(self) and self.near:
            rate = self.rate(1000, 0.5, near=True)
            parts[0] += f" (within {plural(self.near, 'edit')}: at least {rate.value:.1%})"
        if len(self) > _SHOWN:
            parts.append(f"the {_SHOWN} most likely are shown")
        if self.skipped:
            reasons = (f"{count:,} {why}" for why, count in count_reasons(self.skipped).items())
            parts.append(f"left out: {', '.join(reasons)}")
        parts.append(self.took)
        return "; ".join(parts)

    # Files

    def _entry(self, item: Example, reveal: bool) -> dict[str, Any]:
        left_out = set() if reveal else _SECRET
        if item.log2_near is None:
            left_out = left_out | {"log2_near", "near_exact"}
        shown = asdict(item if reveal else item.coarse())
        return {name: value for name, value in shown.items() if name not in left_out}

    def _content(self, reveal: bool) -> dict[str, Any]:
        skipped = {str(row): why for row, why in self.skipped.items()}
        return {**super()._content(reveal), "skipped": skipped}

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Canaries | None) -> Discoverable:
        def example(entry: dict[str, Any]) -> Example:
            values = dict(entry)
            for name in ("prefix", "suffix"):
                if values.get(name) is not None:
                    values[name] = tuple(values[name])
            return Example(**values)

        return cls(
            [example(entry) for entry in data["examples"]],
            skipped={int(row): why for row, why in data["skipped"].items()},
            **cls._read_took(data),
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
        what = f"within {plural(self.near, 'edit')} of the suffix" if self.near else "the suffix"
        return (
            f"Share of the examples for which at least one of so many samples is {what} with a "
            "probability of at least p, and its interval over examples"
        )


def _count(log2: Any) -> str:
    """A number of samples, given as log2, rounded up."""
    if log2 == math.inf:
        return "never"
    if log2 < 20:
        return f"{max(1, math.ceil(2**log2 - 1e-6)):,}"
    exponent = math.floor(log2 * math.log10(2))
    return f"{10 ** (log2 * math.log10(2) - exponent):.1f}e+{exponent}"
