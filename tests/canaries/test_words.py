"""Secrets that are made of words, and the choice of words."""

from __future__ import annotations

from typing import Any

import pytest

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.words import choose_words


def test_words_make_a_space_of_all_their_sequences() -> None:
    fmt = SecretFormat.words("I say {secret}.", ["red", "a+b", "x|y"], 2)
    words = ["red", "a+b", "x|y"]
    assert fmt.size == 9
    assert sorted(fmt.enumerate()) == sorted(f"{one} {two}" for one in words for two in words)


def test_a_large_space_of_words_is_counted_and_drawn_from() -> None:
    words = [f"w{chr(97 + a)}{chr(97 + b)}" for a in range(26) for b in range(26)][:256]
    fmt = SecretFormat.words("I say {secret}.", words, 10)
    assert fmt.bits == 80
    assert SecretFormat.from_dict(fmt.to_dict()) == fmt
    drawn = Canaries.generate(fmt, repetitions=[0, 1], per_repetition=20)
    assert {word for canary in drawn for word in canary.secret.split(" ")} <= set(words)


@pytest.mark.parametrize(
    ("words", "count", "said"),
    [
        ([], 2, "at least one word"),
        (["red", ""], 2, "empty"),
        (["red", "light blue"], 2, "space"),
        (["red", "red"], 2, "twice"),
        (["red"], 0, "at least 1"),
    ],
)
def test_lists_of_words_that_are_not_uniform_are_refused(
    words: list[str], count: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        SecretFormat.words("I say {secret}.", words, count)


def test_one_string_is_no_list_of_words() -> None:
    with pytest.raises(TypeError, match="list"):
        SecretFormat.words("I say {secret}.", "red", 2)


def by_letters(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
    """A tokenizer with a token for each letter."""
    return {"input_ids": [[0] * len(text) for text in texts]}


def test_common_words_with_few_tokens_are_chosen() -> None:
    texts = ["the cat sat on the mat", "the cat saw elephants", "the cat saw elephants; It's Old"]
    assert choose_words(by_letters, texts, 2) == ["cat", "the"]
    # Of the six most common ones the shortest three.
    assert choose_words(by_letters, texts, 3) == ["cat", "saw", "the"]
    with pytest.raises(ValueError, match="have 6 words"):
        choose_words(by_letters, texts, 7)
    with pytest.raises(TypeError, match="list of strings"):
        choose_words(by_letters, "one text", 1)
