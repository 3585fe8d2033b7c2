"""Log-perplexities of given texts: what every model can tell, at hand or served.

A text's figures do not depend on its company. What stands to its right has no say in a causal
model, so rows may be filled up and run together; whether this model keeps to that is found out
first, on the shortest text beside the longest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_exposure.canaries.vocabulary import Encoder, common_length
from hf_exposure.models.causal import CausalModel, ContextError
from hf_exposure.models.precision import agree, largest_difference, single
from hf_exposure.utils.arrays import Floats, Ints
from hf_exposure.utils.warn import warn
from hf_exposure.utils.words import plural

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class TokenSignals:
    """What a model says of n tokens, each given all that come before it.

    Attributes:
        tokens: (n,) the tokens.
        bits: (n,) their costs.
        greedy: (n,) the tokens that greedy decoding would choose in their places: of equally likely
            ones that which `torch.argmax` names, on a CPU the one with the lowest id.
        means, spreads: (n,) mean and standard deviation of the cost, in bits, if the model draws
            the token itself; empty unless asked for.
    """

    tokens: Ints
    bits: Floats
    greedy: Ints
    means: Floats
    spreads: Floats

    @classmethod
    def none(cls) -> TokenSignals:
        """Those of no token."""
        nothing, none = np.zeros(0), np.zeros(0, dtype=np.int64)
        return cls(none, nothing, none, nothing, nothing)


class TextModel(CausalModel):
    """A model at hand with its tokenizer. Use within `undisturbed`.

    Args:
        tokenizer: any tokenizer of transformers.
        bos: whether special tokens come first; None follows the tokenizer's default.
        model, batch_size: see `CausalModel`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        bos: bool | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(model, batch_size=batch_size)
        self.encoder = Encoder(tokenizer, bos)

    def continuation_bits(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, Floats]]:
        """Costs of texts, each given the one before it.

        Args:
            pairs: (context, continuation) each.

        Yields:
            A place in `pairs`, and the (n,) bits of the tokens of its continuation. Where the
            context's last tokens merge with the continuation's first, those count with it. NaN for
            a text's first token, if nothing comes before it.

        Raises:
            ContextError: a text does not fit the model's context.
            ValueError: the model does not know a token.
        """
        encoded = zip(
            self.encoder([context for context, _ in pairs]),
            self.encoder([context + text for context, text in pairs]),
            strict=True,
        )
        sequences, begins = [], []
        for before, whole in encoded:
            sequences.append(np.array([*self.encoder.lead, *whole], dtype=np.int64))
            begins.append(len(self.encoder.lead) + common_length([before, whole]))
        known = np.maximum(np.array(begins, dtype=np.int64), 1)
        for place, found in token_signals(self, sequences, known):
            yield place, found.bits if begins[place] else np.array([math.nan, *found.bits])

    def text_signals(self, texts: Sequence[str]) -> Iterator[tuple[int, TokenSignals]]:
        """A place in `texts` and what the model says of that text's tokens, with moments; of a
        text's first token nothing, if no special token comes before it.

        Raises:
            ContextError, ValueError: see `continuation_bits`.
        """
        lead = self.encoder.lead
        sequences = [np.array([*lead, *ids], dtype=np.int64) for ids in self.encoder(texts)]
        begins = np.full(len(sequences), max(1, len(lead)), dtype=np.int64)
        return token_signals(self, sequences, begins, moments=True)


def token_signals(
    model: CausalModel, sequences: Sequence[Ints], begins: Ints, *, moments: bool = False
) -> Iterator[tuple[int, TokenSignals]]:
    """What a model says of given tokens, by full forwards that are told all that comes before each.

    Args:
        sequences: token ids, whole.
        begins: (n,) place of the first token in each that is asked about, at least 1.
        moments: also give `means` and `spreads`.

    Yields:
        A place in `sequences`, and the signals of its tokens from `begins` on.

    Raises:
        ContextError: a sequence does not fit the model's context.
        ValueError: the model does not know a token.
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    order = np.argsort(lengths, kind="stable")
    empty = lengths[order] <= begins[order]
    for place in order[empty].tolist():
        yield place, TokenSignals.none()
    order = order[~empty]
    if not len(order):
        return
    longest = int(lengths[order[-1]])
    if model.context is not None and longest > model.context:
        raise ContextError(
            f"a text of {longest} tokens does not fit the model's context of {model.context}"
        )
    model.check_tokens(max(int(sequences[place].max()) for place in order))
    model.fit_rows(longest - int(begins[order].min()))
    # Nothing is asked about what follows the last token, so that it is not run.
    limit = model.changes_at or longest
    short = lengths[order] - 1 <= limit
    crossing = int((begins[order[~short]] <= limit).sum())
    if crossing:
        warn(
            f"{model.name}: {plural(crossing, 'text')} of more than {limit} tokens, beyond which "
            "the model reads all of a text with other rotary frequencies: the figures of its first "
            "tokens depend on what follows and are not those of sampling; give shorter texts",
        )
    for block in (order[short], order[~short]):
        part = [sequences[i] for i in block]
        for place, scored in _in_company(model, part, begins[block], moments):
            yield int(block[place]), scored


def _in_company(
    model: CausalModel, sequences: list[Ints], begins: Ints, moments: bool
) -> Iterator[tuple[int, TokenSignals]]:
    """What `_filled_up` gives for each of the sequences, the shortest first, as many at once as
    fit and leave the figures as they are alone."""

    def run(places: Ints) -> list[TokenSignals]:
        return _filled_up(model, [sequences[place] for place in places], begins[places], moments)

    places = np.arange(len(sequences))
    ends, rest = places[:: max(1, len(places) - 1)], places[1:-1]
    alone = [run(ends[i : i + 1])[0] for i in range(len(ends))]
    yield from zip(ends.tolist(), alone, strict=True)
    if not len(rest):
        return
    groups = [rest]
    last = sequences[-1]
    apart = _apart(model, [sequences[0], last], begins[ends], alone)
    if apart:
        lengths = np.array([len(sequences[place]) for place in rest])
        beside = "only beside others of its length"
        groups = np.split(rest, np.flatnonzero(np.diff(lengths)) + 1)
        if _apart(model, [last, np.roll(last, 1)], begins[[-1, -1]], alone[1:]):
            beside, groups = "alone", np.split(rest, rest[:-1])
        warn(
            f"{model.name}: a text's figures differ by {apart:.2g} bits beside a longer text; each "
            f"is run {beside}, which is slower and right",
        )
    for group in groups:
        for part, scored in model.in_chunks(group, run):
            yield from zip(part.tolist(), scored, strict=True)


def _apart(
    model: CausalModel, sequences: list[Ints], begins: Ints, alone: Sequence[TokenSignals]
) -> float:
    """The largest difference in bits between two sequences in company and the first of them alone,
    0 if rounding explains it."""
    if model.batch_size == 1:
        return 0.0
    found = model.in_chunks(
        np.arange(2), lambda part: _filled_up(model, [sequences[i] for i in part], begins[part])
    )
    both = [one.bits for _, scored in found for one in scored]
    pairs = [(bits, own.bits) for bits, own in zip(both, alone, strict=False)]
    if all(agree(bits, own, model.precision) for bits, own in pairs):
        return 0.0
    return max(largest_difference(bits, own) for bits, own in pairs)


def _filled_up(
    model: CausalModel, sequences: list[Ints], begins: Ints, moments: bool = False
) -> list[TokenSignals]:
    """The signals of each sequence, by one forward of all."""
    width = max(map(len, sequences)) - 1
    ids = np.array([np.pad(one[:-1], (0, width + 1 - len(one))) for one in sequences])
    first = int(begins.min()) - 1
    logits, _ = model.call(ids, keep=width - first)
    out = []
    for row, tokens, begin in zip(
        logits[:, first - width :], sequences, begins.tolist(), strict=True
    ):
        own = row[begin - 1 - first : len(tokens) - 1 - first]
        bits = model.bits(own, torch.as_tensor(tokens[begin:])[:, None])[:, 0]
        greedy = np.asarray(single(own).argmax(-1).cpu().numpy())
        means, spreads = model.moments(own) if moments else (np.zeros(0), np.zeros(0))
        out.append(TokenSignals(tokens[begin:], bits, greedy, means, spreads))
    return out
