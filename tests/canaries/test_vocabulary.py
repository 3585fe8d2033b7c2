"""The encoder asks a tokenizer what it does: special tokens before a text, bytes of its tokens."""

from __future__ import annotations

import pytest
from transformers import ByT5Tokenizer

from hf_exposure.canaries.vocabulary import Encoder, align
from tests.tiny import TOKENIZERS

TEXTS = ["The number is 281265017.", "my code and your key", "a0b1 it's 42!"]
# What each says at its best: WordPiece drops spaces and the case of letters.
KEPT = {"wordpiece": ["number 281265017.", "code and your key"]}
each_tokenizer = pytest.mark.parametrize("kind", sorted(TOKENIZERS))


@each_tokenizer
def test_the_encoder_gives_what_the_tokenizer_gives_without_special_tokens(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert Encoder(tokenizer)(TEXTS) == expected
    assert Encoder(tokenizer)([]) == []


@each_tokenizer
def test_the_special_tokens_before_a_text_are_those_of_the_tokenizer(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    first = tokenizer("the")["input_ids"][0]
    begins = first == tokenizer.bos_token_id
    assert Encoder(tokenizer).lead == ((tokenizer.bos_token_id,) if begins else ())
    assert Encoder(tokenizer, bos=True).lead == (tokenizer.bos_token_id,)
    assert Encoder(tokenizer, bos=False).lead == ()


def test_bos_that_the_tokenizer_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="no bos_token"):
        Encoder(ByT5Tokenizer(), bos=True)


def test_truncation_and_padding_that_were_set_on_the_tokenizer_do_not_reach_the_encoder() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    encoder = Encoder(tokenizer)
    expected = encoder(TEXTS)
    tokenizer(TEXTS, truncation=True, max_length=3, padding="max_length")
    try:
        assert tokenizer.backend_tokenizer.truncation is not None
        assert encoder(TEXTS) == expected
    finally:
        tokenizer(TEXTS[0])


@each_tokenizer
def test_the_bytes_of_the_tokens_make_the_text(kind: str) -> None:
    encoder = Encoder(TOKENIZERS[kind]())
    texts = KEPT.get(kind, TEXTS if kind not in ("characters", "unigram") else TEXTS[1:2])
    samples = [
        (text, ids, len(text.encode())) for text, ids in zip(texts, encoder(texts), strict=True)
    ]
    readings = encoder.readings(samples)
    for text, ids, _ in samples:
        starts = align(ids, text.encode(), readings, len(text.encode()))
        assert starts is not None
        assert len(starts) == len(ids)
        surface, ends = b" " + text.encode(), [*starts[1:], 0]
        for number, start, end in zip(ids, starts, ends, strict=True):
            assert surface[len(surface) - start : len(surface) - end] in readings[number]


def test_no_special_token_has_a_reading() -> None:
    encoder = Encoder(TOKENIZERS["digits_one_by_one"]())
    readings = encoder.readings([("a1", encoder(["a1"])[0], 2)])
    assert encoder.special >= set(encoder.tokenizer.all_special_ids)
    assert not encoder.special & set(readings)


@pytest.mark.parametrize("text", ["code 5.", "é ü"])
def test_a_slow_tokenizer_is_read_too(text: str) -> None:
    encoder = Encoder(ByT5Tokenizer())
    (ids,) = encoder([text])
    readings = encoder.readings([(text, ids, len(text.encode()))])
    assert b"".join(readings[number][0] for number in ids) == text.encode()


def test_a_tokenizer_that_changes_the_text_is_told_by_the_characters_it_changes() -> None:
    encoder = Encoder(TOKENIZERS["wordpiece"]())
    text = "code BAD"
    with pytest.raises(ValueError, match="'ABD' come back otherwise") as caught:
        encoder.readings([(text, encoder([text])[0], 3)])
    assert "BAD" not in str(caught.value)


def test_alignment_stops_where_the_text_no_longer_fits() -> None:
    readings = {0: (b"a",), 1: (b"bc",), 2: (b"d",)}
    assert align([0, 1, 2], b"abcd", readings, 4) == [4, 3, 1]
    assert align([2, 1, 2], b"abcd", readings, 3) == [3, 1]  # what stands before may change
    assert align([2, 1, 2], b"abcd", readings, 4) is None
    assert align([9], b"abcd", readings, 1) is None


def test_a_space_before_the_text_may_belong_to_the_first_token() -> None:
    assert align([0, 1], b"ab", {0: (b" a",), 1: (b"b",)}, 2) == [3, 1]
    # A word's first piece, for which the space is optional, takes it where there is one.
    assert align([0, 0], b"a a", {0: (b"a", b" a")}, 3) == [4, 2]
