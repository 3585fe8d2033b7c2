"""Canaries in datasets of token ids: rows that are documents, and packed ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from datasets import Dataset

from hf_exposure import Canaries, SecretFormat, inject_canaries, verify_injection
from tests.tiny import corpus, digits_in_threes

FMT = SecretFormat("My number is {secret}.", secret=r"[0-9]{9}")
LINES = corpus()[:60]


def canaries(most: int = 6) -> Canaries:
    return Canaries.generate(FMT, repetitions=[0, 1, most], per_repetition=3, seed=5)


def tokenized(texts: Any, ends: bool) -> list[list[int]]:
    """Documents of token ids; `ends`: between BOS and EOS."""
    tokenizer = digits_in_threes()
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    bos, eos = [tokenizer.bos_token_id] * ends, [tokenizer.eos_token_id] * ends
    return [[*bos, *ids, *eos] for ids in rows]


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
def test_rows_of_ids_get_what_texts_would_get(ends: bool, streamed: bool) -> None:
    rows = tokenized(LINES, ends)
    ds: Any = Dataset.from_dict(
        {
            "input_ids": rows,
            "attention_mask": [[1] * len(ids) for ids in rows],
            "labels": rows,
            "id": list(range(60)),
        }
    )
    if streamed:
        ds = ds.to_iterable_dataset()
    chosen = canaries()
    out = inject_canaries(
        ds, chosen, "input_ids", seed=3, num_examples=60, tokenizer=digits_in_threes()
    )
    texts = inject_canaries(Dataset.from_dict({"text": LINES}), canaries(), seed=3)["text"]
    found = list(out)
    assert [row["input_ids"] for row in found] == tokenized(texts, ends)
    assert all(row["labels"] == row["input_ids"] for row in found)
    assert all(row["attention_mask"] == [1] * len(row["input_ids"]) for row in found)
    assert sum(row["id"] is None for row in found) == 21
    assert verify_injection(out, digits_in_threes(), chosen).ok
    assert chosen.insertions[0].mode == "rows"


def packed(ends: str, size: int = 64) -> Dataset:
    """Documents end to end in rows of one length."""
    tokenizer = digits_in_threes()
    eos, bos = [tokenizer.eos_token_id], [tokenizer.bos_token_id]

    def stream() -> Iterator[int]:
        for ids in tokenized(corpus(), False):
            yield from [*bos * ("b" in ends), *ids, *eos * ("e" in ends)]

    ids = list(stream())
    rows = [ids[at : at + size] for at in range(0, len(ids) - size, size)]
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


@pytest.mark.parametrize("ends", ["e", "b", "be"])
def test_packed_rows_keep_their_length_and_copies_stand_between_documents(ends: str) -> None:
    tokenizer, chosen, ds = digits_in_threes(), canaries(30), packed(ends)
    out = inject_canaries(ds, chosen, "input_ids", seed=1, tokenizer=tokenizer)
    assert len(out) == len(ds) and {len(row["input_ids"]) for row in out} == {64}
    assert out["labels"][:] == out["input_ids"][:]
    assert verify_injection(out, tokenizer, chosen).ok
    marks = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    for canary in chosen.inserted:
        (ids,) = tokenized([canary.text], False)
        places = [
            (row, at)
            for row in out["input_ids"]
            for at in range(64)
            if row[at : at + len(ids)] == ids
        ]
        assert len(places) == canary.repetitions
        for row, at in places:
            assert at == 0 or row[at - 1] in marks
            assert at + len(ids) == 64 or row[at + len(ids)] in marks
    # What was there goes on behind a copy, and only the end is lost.
    changed = [(a, b) for a, b in zip(ds, out, strict=True) if a != b]
    assert 0 < len(changed) < len(ds)
    for old, new in changed:
        first = next(at for at in range(64) if old["input_ids"][at] != new["input_ids"][at])
        assert old["input_ids"][:first] == new["input_ids"][:first]


def test_packed_rows_without_a_boundary_get_one() -> None:
    tokenizer = digits_in_threes()
    eos = tokenizer.eos_token_id
    rows = [[5] * 40, [5] * 39 + [eos]]
    chosen = Canaries.generate(FMT, repetitions=[1], per_repetition=1)
    ds = Dataset.from_dict({"input_ids": rows * 4})
    out = inject_canaries(ds, chosen, "input_ids", tokenizer=tokenizer)
    assert verify_injection(out, tokenizer, chosen).ok
    (new,) = [row for row in out["input_ids"] if row not in rows]
    (ids,) = tokenized([chosen[0].text], False)
    assert new == [*[5] * (38 - len(ids)), eos, *ids, eos]


def test_ids_that_canaries_cannot_go_into_are_refused() -> None:
    tokenizer = digits_in_threes()

    def refused(ds: Any, why: str, most: int = 6, **given: Any) -> None:
        chosen = canaries(most)
        with pytest.raises((TypeError, ValueError), match=why):
            inject_canaries(ds, chosen, "input_ids", tokenizer=tokenizer, **given)
        assert not chosen.insertions

    refused(packed("e"), "mode='splice' is for texts", mode="splice")
    refused(packed(""), "not known where documents end")
    refused(packed("e").map(lambda row: {"position_ids": row["labels"]}), "'position_ids'")
    refused(Dataset.from_dict({"input_ids": ["some text", "more"]}), "must hold token ids")
    refused(packed("e").select(range(2)), "copies of .* tokens", most=60)
