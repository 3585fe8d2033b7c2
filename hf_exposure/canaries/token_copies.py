"""Copies of canaries as token ids, in the form that the documents beside them have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_exposure.canaries.sets import Canaries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PER_TOKEN = {"attention_mask": 1, "token_type_ids": 0, "completion_mask": 1, "assistant_masks": 1}


def token_copies(
    canaries: Canaries, tokenizer: PreTrainedTokenizerBase, documents: Sequence[Sequence[int]]
) -> dict[str, list[int]]:
    """The ids of each canary that is inserted, by its text.

    A special token that all `documents` begin with, or end with, is there as well.
    """
    special = {*tokenizer.all_special_ids}
    special |= {n for n, t in tokenizer.added_tokens_decoder.items() if t.special}
    texts = [canary.text for canary in canaries.inserted]
    bare = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    known = [list(map(int, ids)) for ids in documents if len(ids)]
    heads, tails = {ids[0] for ids in known}, {ids[-1] for ids in known}
    head = list(heads) if len(heads) == 1 and heads <= special else []
    tail = list(tails) if len(tails) == 1 and tails <= special else []
    return {text: [*head, *ids, *tail] for text, ids in zip(texts, bare, strict=True)}


def token_row(ids: list[int], column: str, names: Sequence[str]) -> dict[str, Any]:
    """What the row of a copy has in the columns that go with token ids."""
    row: dict[str, Any] = {
        name: [PER_TOKEN[name]] * len(ids) for name in names if name in PER_TOKEN
    }
    beside = {
        "labels": ids,
        "position_ids": list(range(len(ids))),
        "seq_lengths": [len(ids)],
        "length": len(ids),
        "special_tokens_mask": [0] * len(ids),
    }
    return {**row, **{name: beside[name] for name in names if name in beside}, column: ids}
