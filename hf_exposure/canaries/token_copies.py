"""Copies of canaries as token ids, in the form that the documents beside them have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure.canaries.masking import secrets_masked
from hf_exposure.canaries.places import Copies
from hf_exposure.canaries.sets import Canaries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PER_TOKEN = {
    **dict.fromkeys(("attention_mask", "completion_mask", "assistant_masks"), 1),
    **dict.fromkeys(("token_type_ids", "special_tokens_mask"), 0),
}


@dataclass(frozen=True)
class TokenCopies:
    """The ids of canaries, and how they stand among other documents.

    Attributes:
        ids: of each canary that is inserted, by its text, with the special tokens around it.
        head, tail: those special tokens.
        packed: whether rows hold several documents, or parts of them, and all have one length.
    """

    ids: dict[str, list[int]] = field(repr=False)
    head: list[int]
    tail: list[int]
    packed: bool

    def row(self, text: str, column: str, names: Sequence[str]) -> dict[str, Any]:
        """What the row of a copy has in the columns that go with token ids."""
        ids = self.ids[text]
        beside = {
            **{name: [value] * len(ids) for name, value in _PER_TOKEN.items()},
            "labels": ids,
            "position_ids": list(range(len(ids))),
            "seq_lengths": [len(ids)],
            "length": len(ids),
        }
        return {**{name: beside[name] for name in names if name in beside}, column: ids}

    def packed_row(self, row: Sequence[int], values: Sequence[int], copies: Copies) -> list[int]:
        """A packed row of the same length, with copies in it, at the cost of its last tokens.

        Args:
            row: the ids, (tokens,), which tell where documents begin.
            values: what is changed, (tokens,): the ids, or the labels.
            copies: a place within the row, from 0 to 1, and the canary of each copy.

        Raises:
            ValueError: they do not fit.
        """
        ordered = sorted(copies, key=lambda copy: (copy[0], copy[1].text))
        needed = sum(len(self.ids[canary.text]) for _, canary in ordered)
        room = len(row) - needed  # a copy that begins later could be cut
        # A document begins behind a `tail`, or with a `head` where there is no tail.
        mark, behind = (self.tail[0], 1) if self.tail else (self.head[0], 0)
        borders = np.flatnonzero(np.asarray(row) == mark) + behind
        borders = borders[borders <= room]
        out: list[int] = []
        if not len(borders):  # so one is made
            start = room - len(self.tail)
            if start < 0:
                raise ValueError(
                    f"inject_canaries: {len(copies)} copies of {needed} tokens are to go into a "
                    f"packed row of {len(row)}; insert before packing, or lower the repetitions"
                )
            out += [*values[:start], *self.tail]
            borders = np.array([len(out)])
        done = len(out)
        for fraction, canary in ordered:
            border = int(borders[int(fraction * len(borders))])
            out += [*values[done:border], *self.ids[canary.text]]
            done = border
        return [*out, *values[done:]][: len(row)]


def token_copies(
    canaries: Canaries,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Sequence[int]],
    packed: bool | None = False,
) -> TokenCopies:
    """The ids of each canary, with the special tokens that other documents have.

    Args:
        documents: some of the rows, whose special tokens at the beginning and end are taken over.
        packed: whether rows are packed; None finds out by their lengths.

    Raises:
        ValueError: rows are packed, and no special token tells where a document ends.
    """
    special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= {*tokenizer.all_special_ids}
    known = [list(map(int, ids)) for ids in documents if len(ids)]
    if packed is None:
        packed = len(known) > 1 and len({len(ids) for ids in known}) == 1
    if packed:
        head, tail = _separators(known, tokenizer)
    else:
        head, tail = (
            [*ends] if len(ends) == 1 and ends <= special else []
            for ends in ({ids[0] for ids in known}, {ids[-1] for ids in known})
        )
    texts = [canary.text for canary in canaries.inserted]
    with secrets_masked(canaries):  # a tokenizer's error may quote what it was given
        bare = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    ids = {text: [*head, *ids, *tail] for text, ids in zip(texts, bare, strict=True)}
    return TokenCopies(ids, head, tail, packed)


def _separators(
    rows: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[int]]:
    """The tokens that packed documents begin and end with."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    counts = Counter(token for row in rows for token in row)
    tail = [eos] if eos is not None and counts[eos] else []
    head = [bos] if bos is not None and bos != eos and counts[bos] else []
    if not head and not tail:
        raise ValueError(
            "inject_canaries: all rows have the same length, as packed ones do, but none has the "
            "tokenizer's EOS or BOS, so that it is not known where documents end; insert before "
            "packing"
        )
    return head, tail
