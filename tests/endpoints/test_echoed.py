"""Tokens of a prompt are laid against its text, however a server writes them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hf_exposure.endpoints.echo import NotOfferedError, lay, read_echo, read_prompt_logprobs


def echo_of(
    tokens: list[str], values: list[float | None] | None = None, **more: Any
) -> dict[str, Any]:
    values = [None, *[-1.0] * (len(tokens) - 1)] if values is None else values
    return {"logprobs": {"tokens": tokens, "token_logprobs": values, **more}}


@pytest.mark.parametrize(
    ("text", "tokens", "ends"),
    [
        ("the key is 12.", ["the", " key", " is", " ", "12", ".", "\n"], (3, 7, 10, 11, 13, 14)),
        # vLLM: with the begin-of-text token
        ("the key", ["<s>", "the", " key", "s"], (0, 3, 7)),
        # vLLM on SentencePiece: words without the space before them
        ("the key", ["<s>", "the", "key", "s"], (0, 3, 7)),
        # llama-cpp-python on SentencePiece: a space before the text
        ("the key", [" the", " key", "s"], (3, 7)),
        # older vLLM: tokens as the vocabulary has them
        ("the key", ["▁the", "▁key", "s"], (3, 7)),
        ("the key\n", ["the", "Ġkey", "Ċ", "s"], (3, 7, 8)),
        # parts of characters: "" or replacement characters
        ("key ü is", ["key", " ", "", "", " is", "s"], (3, 4, -1, 5, 8)),
        ("key ü is", ["key", " ", "�", "�", " is", "s"], (3, 4, -1, 5, 8)),
        ("key ü is", ["key", " ", "bytes:\\xc3", "bytes:\\xbc", " is", "s"], (3, 4, -1, 5, 8)),
        ("key €€.", ["key", " �", "��", "�", "��", ".", "s"], (3, -1, -1, -1, 6, 7)),
        (
            "a:☂☂.",
            ["a", ":", *(f"bytes:\\x{byte}" for byte in ("e2", "98", "82") * 2), ".", "s"],
            (1, 2, -1, -1, -1, -1, -1, 4, 5),
        ),
        # what closes the text, and then what was generated
        ("the key", ["the", " key", "</s>", "s"], (3, 7)),
        ("the key", ["the", " key", "", "s"], (3, 7)),
        # words of WordPiece
        ("the keys", ["the", "key", "##s", "x"], (3, 7, 8)),
    ],
)
def test_tokens_are_laid_against_the_text(
    text: str, tokens: list[str], ends: tuple[int, ...]
) -> None:
    assert lay(text, tokens, 1) == ends
    assert lay(text, tokens) == ends


def test_the_number_of_generated_tokens_decides_where_texts_cannot() -> None:
    tokens = ["key ", "�", "�", "�"]
    assert lay("key ü", tokens, 1) == (4, -1, 5)
    assert lay("key ü", tokens, 0) == (4, -1, -1, 5)


@pytest.mark.parametrize(
    "tokens", [["is 12.", "x"], ["the", " key", " is"], ["x"], [], ["key", " is", " 12", "."]]
)
def test_tokens_of_another_text_are_not_laid(tokens: list[str]) -> None:
    assert lay("the key is 12.", tokens) is None


@pytest.mark.parametrize(
    ("offsets", "ends"),
    [
        ([0, 3, 6, 9], (3, 6, 9)),
        ([0, 4, 7, 10], (3, 6, 9)),  # in bytes
        ([0, 3, 6, 8], None),  # the text was cut
        ([0, 6, 3, 9], None),
        ([1, 3, 6, 9], None),
        (None, None),
    ],
)
def test_offsets_decide_where_tokens_do_not_spell_the_text(
    offsets: list[int] | None, ends: tuple[int, ...] | None
) -> None:
    choice = echo_of(["token_id:1", "token_id:2", "token_id:3", "token_id:4"], text_offset=offsets)
    if ends is None:
        with pytest.raises(ValueError, match="do not spell"):
            read_echo(choice, "Aü.xyz123")
    else:
        assert read_echo(choice, "Aü.xyz123").ends == ends


def test_costs_are_in_bits_and_what_was_generated_is_left_out() -> None:
    tops = [None, {" key": -1.0}, {" is": -0.5, "s": -2.0}, {"x": -0.1}]
    echo = read_echo(
        echo_of(["the", " key", "s", "x"], [None, -1.0, -2.0, -0.1], top_logprobs=tops), "the keys"
    )
    assert math.isnan(echo.bits[0])
    assert echo.bits[1:].tolist() == pytest.approx([1 / math.log(2), 2 / math.log(2)])
    assert math.isnan(echo.tops[1]), "the only option there may be the prompt's token"
    assert echo.tops[2] == pytest.approx(0.5 / math.log(2))


def test_what_servers_write_for_no_probability_costs_infinitely_much() -> None:
    echo = read_echo(echo_of(["a", "b", "c", "x"], [None, -9999.0, -math.inf, -1.0]), "abc")
    assert echo.bits[1:].tolist() == [math.inf, math.inf]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([None, math.nan, -1.0, -1.0], "NaN"),
        ([None, 0.5, -1.0, -1.0], "above 0"),
        ([None, "-1", -1.0, -1.0], "else than a number"),
        ([None, -1.0], "4 tokens with 2"),
    ],
)
def test_impossible_log_probabilities_are_refused(values: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_echo(echo_of(["a", "b", "c", "x"], values), "abc")


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"logprobs": None},
        {"logprobs": {"content": [{"token": "x", "logprob": -1.0}]}},
        echo_of(["x"], [-1.0]),
    ],
)
def test_an_answer_without_the_prompts_tokens_is_told_apart(choice: dict[str, Any]) -> None:
    with pytest.raises(NotOfferedError):
        read_echo(choice, "abc")
    with pytest.raises(NotOfferedError):
        read_prompt_logprobs(choice, "abc")


@pytest.mark.parametrize("reverse", [False, True])
def test_the_prompts_token_is_found_in_any_order_of_prompt_logprobs(reverse: bool) -> None:
    options = {
        "7": {"logprob": -0.5, "decoded_token": "x", "rank": 1},
        "9": {"logprob": -3.0, "decoded_token": "b", "rank": 5},
    }
    if reverse:
        options = dict(reversed(options.items()))
    choice = {"prompt_logprobs": [None, options, {"3": {"logprob": -1.0, "decoded_token": "c"}}]}
    echo = read_prompt_logprobs(choice, "abc")
    assert echo.keys == (("text", "a"), "9", "3")
    assert echo.ends == (1, 2, 3)
    assert echo.bits[1:].tolist() == pytest.approx([3 / math.log(2), 1 / math.log(2)])
    assert echo.tops[1] == pytest.approx(0.5 / math.log(2))
    with pytest.raises(ValueError, match="do not spell"):
        read_prompt_logprobs(choice, "abcd")
