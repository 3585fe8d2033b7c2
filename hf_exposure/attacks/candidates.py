"""Which generated texts were memorized: deduplicated and ranked, as in *Extracting Training Data
from Large Language Models* (Carlini et al., USENIX Security 2021, section 5.2).

A text that the model finds likely may just be easy to guess. So its log-perplexity is held against
that of a reference model, against the size that zlib needs for it, and against that of the text in
lower case: whatever is likely for this model alone was probably learned from its data.
"""

from __future__ import annotations

import math
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure.attacks.generations import Generations
from hf_exposure.canaries.canary import MASK
from hf_exposure.exposure.documents import Result, Row, versions
from hf_exposure.models.causal import ContextError
from hf_exposure.models.continuations import TextModel
from hf_exposure.models.undisturbed import undisturbed
from hf_exposure.utils.arrays import Floats, Ints
from hf_exposure.utils.checks import check_choice, check_count
from hf_exposure.utils.progress import progress_bar
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import plural

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RANKINGS = ("log_perplexity", "per_token", "reference", "zlib", "lower")
_SHOWN = 20  # rows of a table
_NO_REFERENCE = "rank_candidates: by='reference' needs a reference model; give reference="


@typed
@dataclass(frozen=True, repr=False)
class Candidate(Row):
    """One text that came out, and what speaks for its having been memorized.

    Attributes:
        prefix: what the model was prompted with; not shown by `repr`.
        text: what it went on with; not shown by `repr`.
        times: how often it came out.
        tokens: of the text.
        log_perplexity: of the text given the prefix, in bits, summed over its tokens.
        reference: the same under the reference model; None without one.
        lower: the same of the text in lower case, under the model itself.
        zlib: bits that zlib needs for the text.
    """

    prefix: str = field(repr=False)
    text: str = field(repr=False)
    times: int
    tokens: int
    log_perplexity: float
    reference: float | None
    lower: float
    zlib: float

    @typed
    def score(self, by: str) -> float:
        """How much speaks for memorization, by one of `RANKINGS`; more is more.

        "log_perplexity" and "per_token" are negative bits, all others ratios to the text's
        log-perplexity.
        """
        check_choice("Candidate.score: by", by, RANKINGS)
        if by == "log_perplexity":
            return -self.log_perplexity
        if by == "per_token":
            return -self.log_perplexity / max(1, self.tokens)
        against = getattr(self, by)
        if against is None:
            return math.nan
        return float(against / self.log_perplexity) if self.log_perplexity > 0 else math.inf


@typed
class Candidates(Result[Candidate]):
    """Texts that came out by generation, the one that was most likely memorized first.

    Attributes:
        by: what they are ranked by, one of `RANKINGS`.
        forwards: token-forwards that the scoring took, both models together.
        seconds: how long it took.
        settings: how they were generated and scored.
    """

    kind = "candidates"
    entries = "candidates"
    right = frozenset({0, 2, 3, 4, 5, 6})

    def __init__(
        self, items: Iterable[Candidate], *, by: str = "log_perplexity", **took: Any
    ) -> None:
        self.by = check_choice("rank_candidates: by", by, RANKINGS)
        super().__init__(
            sorted(items, key=lambda one: _last_if_nan(one.score(by)), reverse=True), **took
        )

    @typed
    def ranked(self, by: str) -> Candidates:
        """The same texts in the order of another of `RANKINGS`; nothing is scored again.

        Raises:
            ValueError: it is not known, or needs a reference model and there was none.
        """
        if by == "reference" and any(one.reference is None for one in self):
            raise ValueError(_NO_REFERENCE)
        return Candidates(
            self, by=by, forwards=self.forwards, seconds=self.seconds, settings=self.settings
        )

    @typed
    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The first rows as text, texts masked unless `reveal`."""

        def ratio(one: Candidate, by: str) -> str:
            value = one.score(by)
            return "–" if math.isnan(value) else f"{value:.2f}"

        headings = [
            "",
            "text",
            "times",
            "log-perplexity",
            "to reference",
            "to zlib",
            "to lower case",
        ]
        rows = [
            [
                f"{number}",
                one.text if reveal else MASK * len(one.text),
                f"{one.times:,}",
                f"{one.log_perplexity:.1f}",
                *(ratio(one, by) for by in ("reference", "zlib", "lower")),
            ]
            for number, one in enumerate(self[:_SHOWN], 1)
        ]
        return headings, rows

    def summary(self) -> str:
        """One line about how many there are and what it took."""
        shown = f", the first {_SHOWN} shown" if len(self) > _SHOWN else ""
        return f"{plural(len(self), 'different text')} by {self.by}{shown}; {self.took}"

    def _entry(self, item: Candidate, reveal: bool) -> dict[str, Any]:
        return asdict(item if reveal else replace(item.coarse(), text=MASK * len(item.text)))

    def _content(self, reveal: bool) -> dict[str, Any]:
        return {"by": self.by, **super()._content(reveal)}

    @classmethod
    def _from_content(cls, data: dict[str, Any], canaries: Any) -> Candidates:
        return cls(
            [Candidate(**entry) for entry in data["candidates"]],
            by=data["by"],
            **cls._read_took(data),
        )


@typed
def rank_candidates(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    generated: Generations | Mapping[str, int] | Iterable[str],
    *,
    by: str = "log_perplexity",
    prefix: str = "",
    reference: Any | None = None,
    reference_tokenizer: PreTrainedTokenizerBase | None = None,
    bos: bool | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Candidates:
    """Deduplicate texts that a model has written, score them, and put the memorized ones first.

    Args:
        generated: what `generate_secrets` gave, or texts of any source, or how often each came.
        by: "log_perplexity", the least first; "per_token", the same divided by the number of
            tokens; or by its ratio to "reference" (log-perplexity under the reference model),
            "zlib" (size when compressed) or "lower" (log-perplexity in lower case), the largest
            first.
        prefix: what stood before each text; with `Generations` it is the template's own.
        reference: a second model, such as the base model or a smaller one; left as it was.
        reference_tokenizer: of the reference model; None takes the model's.
        bos: whether special tokens come first; None follows the tokenizer's default.

    Raises:
        TypeError: a text is no string. Empty ones are left out.
        ValueError: a bad argument, or a text that does not fit the model's context.

    Example:
        >>> written = generate_secrets(model, tokenizer, canaries)      # doctest: +SKIP
        >>> rank_candidates(model, tokenizer, written, by="zlib")[0]    # doctest: +SKIP
    """
    if check_choice("rank_candidates: by", by, RANKINGS) == "reference" and reference is None:
        raise ValueError(_NO_REFERENCE)
    start = time.perf_counter()
    counts = _counts(generated, prefix)
    pairs = list(counts)
    lowered = [(before, text.lower()) for before, text in pairs]
    with progress_bar(progress, "candidates") as tick:
        own, tokens, first = _score(model, tokenizer, [*pairs, *lowered], bos, batch_size, tick)
        other, second = None, 0
        if reference is not None:
            other, _, second = _score(
                reference, reference_tokenizer or tokenizer, pairs, bos, batch_size, tick
            )
    items = [
        Candidate(
            prefix=before,
            text=text,
            times=counts[before, text],
            tokens=int(tokens[place]),
            log_perplexity=float(own[place]),
            reference=None if other is None else float(other[place]),
            lower=float(own[len(pairs) + place]),
            zlib=8.0 * len(zlib.compress(text.encode())),
        )
        for place, (before, text) in enumerate(pairs)
    ]
    settings = dict(generated.settings) if isinstance(generated, Generations) else {}
    return Candidates(
        items,
        by=by,
        forwards=first + second,
        seconds=time.perf_counter() - start,
        settings=settings | {"bos": bos, "versions": versions("torch", "transformers")},
    )


def _counts(
    generated: Generations | Mapping[str, int] | Iterable[str], prefix: str
) -> Counter[tuple[str, str]]:
    """How often each text came, by what stood before it and the text."""
    out: Counter[tuple[str, str]] = Counter()
    if not isinstance(generated, Generations):
        for text, times in Counter(generated).items():
            if not isinstance(text, str):
                raise TypeError(
                    f"rank_candidates: a text of generated is of type {type(text).__name__}; give "
                    "strings only"
                )
            check_count("rank_candidates: generated: how often a text came", times)
            if text:
                out[prefix, text] += times
        return out
    constrained = bool(generated.settings.get("constrained", True))
    for fmt, texts in generated.texts.items():
        for text, times in texts.items():
            # Constrained texts are secrets alone, free ones have the prompt before them.
            whole = fmt.render(text) if constrained else text
            before = fmt.prefix if whole.startswith(fmt.prefix) else ""
            if whole[len(before) :]:
                out[before, whole[len(before) :]] += times
    return out


def _score(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    bos: bool | None,
    batch_size: int | None,
    tick: Any,
) -> tuple[Floats, Ints, int]:
    """(n,) bits of each text given what stands before it, (n,) its tokens, and the forwards."""
    total, tokens = np.zeros(len(pairs)), np.zeros(len(pairs), dtype=np.int64)
    with undisturbed(model):
        scorer = TextModel(model, tokenizer, bos=bos, batch_size=batch_size)
        try:
            for place, bits in scorer.continuation_bits(pairs):
                known = bits[~np.isnan(bits)]  # nothing is known of the very first token
                total[place], tokens[place] = float(known.sum()), len(known)
                tick(scorer.forwards)
        except ContextError as error:
            raise ValueError(
                f"rank_candidates: {error}; generate fewer with max_new_tokens"
            ) from None
    return total, tokens, scorer.forwards


def _last_if_nan(value: float) -> float:
    return -math.inf if math.isnan(value) else value
