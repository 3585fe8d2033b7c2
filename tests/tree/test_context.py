"""Secrets that just fit the model's context: longer paths that no tokenizer writes are dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hf_exposure import (
    Canaries,
    Canary,
    SecretFormat,
    extract_secrets,
    generate_secrets,
    measure_exposure,
)
from tests.tiny import TOKENIZERS, llama

# "numbe" + "r" and other splits of what follows are longer paths of the same text.
FORMAT = SecretFormat("my code is {secret} number.", secret="[0-9]{3}")
TOKENIZER = TOKENIZERS["digits_one_by_one"]()
TOKENS = {len(TOKENIZER(FORMAT.render(secret))["input_ids"]) for secret in FORMAT.enumerate()}
CANARIES = Canaries.generate(FORMAT, [0, 1], 2, seed=0)
EXTRA = [0, 1, 2, 50]


def model(context: int) -> Any:
    return llama(len(TOKENIZER), max_position_embeddings=context)


QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "exact": lambda m: [
        one.rank for one in measure_exposure(m, TOKENIZER, CANARIES, method="exact")
    ],
    "auto": lambda m: [
        round(one.bits, 6) for one in measure_exposure(m, TOKENIZER, CANARIES, samples=300)
    ],
    "extraction": lambda m: [
        (one.secret, one.proved) for one in extract_secrets(m, TOKENIZER, FORMAT)
    ],
    "beam": lambda m: [
        one.secret for one in extract_secrets(m, TOKENIZER, FORMAT, beam_width=2000)
    ],
    "generation": lambda m: sum(
        generate_secrets(m, TOKENIZER, CANARIES, num_samples=40).texts[FORMAT].values()
    ),
}


def test_all_secrets_have_one_length() -> None:
    assert len(TOKENS) == 1


@pytest.mark.slow
@pytest.mark.parametrize("question", ["exact", "extraction", "beam"])
def test_answers_are_the_same_in_a_context_that_all_secrets_just_fit(question: str) -> None:
    (tokens,) = TOKENS
    answers = [QUESTIONS[question](model(tokens + extra)) for extra in EXTRA]
    assert all(answer == answers[-1] for answer in answers)


@pytest.mark.slow
def test_sampling_draws_from_the_secrets_that_fit() -> None:
    (tokens,) = TOKENS
    exact = QUESTIONS["exact"](model(tokens))
    for one, rank in zip(
        measure_exposure(model(tokens), TOKENIZER, CANARIES, samples=500, max_forwards=3000),
        exact,
        strict=True,
    ):
        assert one.rank_low <= rank <= one.rank_high


def test_constrained_generation_is_not_led_where_no_secret_fits() -> None:
    (tokens,) = TOKENS
    assert QUESTIONS["generation"](model(tokens)) == 40


@pytest.mark.parametrize("question", sorted(QUESTIONS))
def test_secrets_that_do_not_fit_are_refused(question: str) -> None:
    (tokens,) = TOKENS
    with pytest.raises(ValueError, match=rf"up to {tokens} tokens, more than .* {tokens - 1};"):
        QUESTIONS[question](model(tokens - 1))


@pytest.mark.parametrize("question", ["measure", "extract"])
def test_a_format_is_refused_where_only_some_of_its_secrets_fit(question: str) -> None:
    fmt = SecretFormat("my code is {secret}.", secret="[0-9]{1,6}")
    tokens = len(TOKENIZER(fmt.render("12"))["input_ids"])
    with pytest.raises(ValueError, match=r"SecretFormat: strings of .* have up to"):
        if question == "extract":
            extract_secrets(model(tokens), TOKENIZER, fmt)
        else:
            measure_exposure(model(tokens), TOKENIZER, [Canary(fmt, "12", 1)])
