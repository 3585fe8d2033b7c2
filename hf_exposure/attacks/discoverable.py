"""Discoverable extraction: does the model go on with the rest of a text that it is given a part of?

For pairs of a prefix and a suffix: whether the suffix comes out by greedy decoding; the exact
probability that one sample is the suffix, under temperature, top-k and top-p; what follows from it
for n samples, the (n, p)-discoverable extraction of Hayes et al. 2024 (arXiv 2410.19482); and a
lower bound on the probability that a sample comes within a few edits of it. One forward for each
pair gives all but the last, which is a walk over the tree of near texts.

Probabilities are log2 throughout: that of 50 tokens may be smaller than any float.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hf_exposure.attacks.examples import Discoverable, Example
from hf_exposure.attacks.near import log2_of, near_bound
from hf_exposure.attacks.pairs import Pair, count_reasons, read_pairs
from hf_exposure.exposure.documents import versions
from hf_exposure.models.causal import CausalModel
from hf_exposure.models.continuations import token_signals
from hf_exposure.models.decoder import Decoder
from hf_exposure.models.undisturbed import undisturbed
from hf_exposure.utils.arrays import Bools, Floats
from hf_exposure.utils.checks import check_count, check_number, check_temperature
from hf_exposure.utils.progress import progress_bar
from hf_exposure.utils.typed import typed
from hf_exposure.utils.warn import warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Warp = Callable[[torch.Tensor], torch.Tensor]

_NEAR_FORWARDS = 1000  # token-forwards of one near-verbatim search unless told
_PROBED = 8  # tokens of a suffix to check the decoder with


def sampling_scheme(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Warp | None:
    """What `generate(do_sample=True)` makes of (rows, vocabulary) logits before it draws.

    transformers' own logits warpers in the order in which `generate` applies them: temperature,
    then top-k, then top-p; minus infinity where a token is cut off. None if nothing is to be done.

    Raises:
        TypeError: `top_k` is not whole.
        ValueError: a value out of range.
    """
    check_count("discoverable_extraction: top_k", top_k, least=0)
    check_temperature("discoverable_extraction: temperature", temperature)
    check_number("discoverable_extraction: top_p", top_p)
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


@typed
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
        told = CausalModel(model, batch_size=batch_size, warp=warp)
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
    limits = CausalModel(model)
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
        warn(f"pairs: {rows} left out: {why} (the first is row {first}); {usable:,} are measured")


def _costs(
    model: CausalModel, pairs: Sequence[Pair], tick: Callable[[], None]
) -> tuple[list[Floats], list[Bools]]:
    """For each pair the bits of its suffix's tokens, and which of them greedy decoding gets right
    if it has got all before."""
    whole = [np.concatenate([pair.prefix, pair.suffix]) for pair in pairs]
    begins = np.array([len(pair.prefix) for pair in pairs])
    costs = [np.zeros(0)] * len(pairs)
    right = [np.zeros(0, dtype=bool)] * len(pairs)
    for place, found in token_signals(model, whole, begins):
        costs[place], right[place] = found.bits, found.greedy == found.tokens
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
