"""Scores of somebody's own texts: how much speaks for each having been trained on.

One forward of a text gives all of them; see `hf_exposure.exposure.scores` for the formulas.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure.canaries.canary import MASK
from hf_exposure.exposure.documents import Result, Row, versions
from hf_exposure.exposure.scores import LEAST, error_zone, min_k, min_k_plus_plus, zlib_bits
from hf_exposure.models.causal import ContextError
from hf_exposure.models.continuations import TextModel, TokenSignals
from hf_exposure.models.undisturbed import said_of_base, undisturbed
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.checks import check_choice, check_number
from hf_exposure.utils.progress import progress_bar
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import plural

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

SCORES = ("per_token", "ratio", "zlib", "min_k", "min_k_plus_plus", "error_zone")
OF_BASE = ("ratio", "error_zone")  # these need the base model
_SHOWN = 20  # rows of a table
_WHERE = "score_texts:"


@typed
@dataclass(frozen=True, repr=False)
class TextScore(Row):
    """One text, and what speaks for its having been trained on.

    Attributes:
        text: the text; not shown by `repr`.
        tokens: how many of its tokens were scored: all that have something before them.
        log_perplexity: in bits, summed over them.
        base: the same under the base model; None without one.
        zlib: bits that zlib needs for the text.
        min_k: the mean log-probability, in bits, of the k % least likely tokens (Min-K%).
        min_k_plus_plus: the same, each in units of its standard deviation under the model's own
            distribution and measured from its mean there (Min-K%++).
        error_zone: at mispredicted tokens, the sum of the log-probabilities' gains from the base
            model over that of their losses (EZ-MIA); None without a base model.
    """

    text: str = field(repr=False)
    tokens: int
    log_perplexity: float
    base: float | None
    zlib: float
    min_k: float
    min_k_plus_plus: float
    error_zone: float | None

    @property
    def per_token(self) -> float:
        """Log-perplexity for each token, in bits; NaN for a text without any."""
        return self.log_perplexity / self.tokens if self.tokens else math.nan

    @property
    def ratio(self) -> float | None:
        """What the base model pays more for each token, in bits: the logarithm of the ratio of both
        models' probabilities; None without a base model."""
        if self.base is None:
            return None
        return (self.base - self.log_perplexity) / self.tokens if self.tokens else math.nan

    @typed
    def score(self, by: str) -> float:
        """How much speaks for membership, by one of `SCORES`; more is more.

        "per_token" is negative bits, "zlib" the same divided by the bits that zlib needs.

        Raises:
            ValueError: it is not known, or needs a base model and there was none.
        """
        check_choice("TextScore.score: by", by, SCORES)
        if by in ("per_token", "zlib"):
            return -self.per_token / (self.zlib if by == "zlib" else 1.0)
        found = getattr(self, by)
        if found is None:
            raise ValueError(f"TextScore.score: by={by!r} needs a base model; give score_texts one")
        return float(found)


@typed
class TextScores(Result[TextScore]):
    """Scores of texts, in the order of the texts.

    Attributes:
        forwards: token-forwards that they took, both models together.
        seconds: how long it took.
        settings: how they were scored.
    """

    kind = "text_scores"
    entries = "texts"
    right = frozenset({0, *range(2, 10)})

    @property
    def has_base(self) -> bool:
        """Whether there was a base model."""
        return all(one.base is not None for one in self)

    @typed
    def scores(self, by: str) -> Floats:
        """(n,) how much speaks for each text's membership, by one of `SCORES`; more is more.

        Raises:
            ValueError: it is not known, or needs a base model and there was none.
        """
        return np.array([one.score(by) for one in self], dtype=np.float64)

    @typed
    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The first rows as text, texts masked unless `reveal`."""
        headings = ["#", "text", "tokens", "log-perplexity", "per token", "to zlib", "Min-K%"]
        headings += ["Min-K%++", *(["over base", "error zone"] if self.has_base else [])]
        rows = []
        for place, one in enumerate((self if reveal else self.coarse())[:_SHOWN]):
            figures = [
                one.log_perplexity,
                one.per_token,
                one.log_perplexity / one.zlib,
                one.min_k,
                one.min_k_plus_plus,
            ]
            figures += [x for x in (one.ratio, one.error_zone) if self.has_base and x is not None]
            text = one.text[:60] if reveal else MASK * min(len(one.text), 4)
            rows.append([f"{place}", text, f"{one.tokens:,}", *(f"{x:.2f}" for x in figures)])
        return headings, rows

    def summary(self) -> str:
        """One line about what the figures are and what they took."""
        shown = f", the first {_SHOWN} shown" if len(self) > _SHOWN else ""
        return f"{plural(len(self), 'text')}{shown}; log-probabilities in bits; {self.took}"

    @typed
    def to_pandas(self, reveal: bool = False) -> pd.DataFrame:
        """A row for each text: the text, masked unless `reveal`, and all figures by name."""
        import pandas as pd

        rows = [
            asdict(one)
            | {"text": one.text if reveal else MASK * len(one.text)}
            | {"per_token": one.per_token, "ratio": one.ratio}
            for one in (self if reveal else self.coarse())
        ]
        frame: pd.DataFrame = pd.DataFrame(rows)
        return frame

    def coarse(self) -> TextScores:
        """The same to one decimal: with the model, more would tell what stands in a text."""
        return self._like(one.coarse() for one in self)

    def _entry(self, item: TextScore, reveal: bool) -> dict[str, Any]:
        return asdict(item if reveal else replace(item.coarse(), text=MASK * len(item.text)))

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Any) -> TextScores:
        return cls([TextScore(**entry) for entry in data["texts"]], **cls._read_took(data))


@typed
def score_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    base: Any | None = None,
    *,
    k: float = LEAST,
    bos: bool | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> TextScores:
    """Score texts of your own by how much speaks for their having been trained on.

    Args:
        model: a causal language model of transformers; left as it was.
        tokenizer: the one that it was trained with.
        texts: whole, as in training.
        base: the model before it was trained, with the same tokenizer; left as it was.
        k: per cent of a text's tokens that Min-K% and Min-K%++ look at.
        bos: whether special tokens come first; None follows the tokenizer's default.
        batch_size: rows of a forward; None chooses, and memory running out halves it.
        progress: show a progress bar.

    Returns:
        One `TextScore` for each text, in order.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a text has no token that can be scored, or does not fit the model's context, or
            an argument is out of range.

    Example:
        >>> seen = score_texts(model, tokenizer, train["text"], base=base)        # doctest: +SKIP
        >>> unseen = score_texts(model, tokenizer, held_out["text"], base=base)   # doctest: +SKIP
        >>> membership_test(seen, unseen).tpr                                     # doctest: +SKIP
        0.31
    """
    for name, one in (("model", model), ("base", base)):
        if one is not None and not hasattr(one, "modules"):
            raise TypeError(
                f"{_WHERE} {name} is of type {type(one).__name__}; the scores need a model at "
                "hand, for they ask for the whole distribution of each token"
            )
    check_number(f"{_WHERE} k", k, 0, 100)
    if not k:
        raise ValueError(f"{_WHERE} k={k} looks at no token; give per cent, such as 20")
    start = time.perf_counter()
    every = list(texts)
    with progress_bar(progress, "texts") as tick:
        own, forwards = _signals(model, tokenizer, every, bos, batch_size, lambda n: tick(n))
        other = None
        if base is not None:
            with said_of_base():
                other, more = _signals(
                    base, tokenizer, every, bos, batch_size, lambda n: tick(forwards + n)
                )
            forwards += more
    return TextScores(
        [
            _scored(text, own[place], None if other is None else other[place], k)
            for place, text in enumerate(every)
        ],
        forwards=forwards,
        seconds=time.perf_counter() - start,
        settings={"k": k, "bos": bos, "versions": versions("torch", "transformers", "numpy")},
    )


def _scored(text: str, own: TokenSignals, base: TokenSignals | None, k: float) -> TextScore:
    return TextScore(
        text=text,
        tokens=len(own.bits),
        log_perplexity=float(own.bits.sum()),
        base=None if base is None else float(base.bits.sum()),
        zlib=zlib_bits(text),
        min_k=min_k(-own.bits, k),
        min_k_plus_plus=min_k_plus_plus(own, k),
        error_zone=None if base is None else error_zone(own, base),
    )


def _signals(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    bos: bool | None,
    batch_size: int | None,
    tick: Any,
) -> tuple[list[TokenSignals], int]:
    """The signals of each text, and the token-forwards that they took."""
    out = [TokenSignals.none()] * len(texts)
    with undisturbed(model):
        reader = TextModel(model, tokenizer, bos=bos, batch_size=batch_size)
        try:
            for place, found in reader.text_signals(texts):
                if not len(found.bits):
                    raise ValueError(
                        f"{_WHERE} texts: number {place} has no token that can be scored, for the "
                        "first needs something before it; leave it out, or give bos=True"
                    )
                out[place] = found
                tick(reader.forwards)
        except ContextError as error:
            raise ValueError(f"{_WHERE} texts: {error}; give shorter ones, or pieces") from None
    return out, reader.forwards
