"""The tree is walked behind vLLM and SGLang as at hand, whatever tokens are called."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from hf_exposure import (
    Canaries,
    CompletionsScorer,
    SecretFormat,
    extract_secrets,
    measure_exposure,
)
from hf_exposure.tree.tokens import TokenTree
from tests.endpoint import CANARIES, FORMAT, Endpoint
from tests.next_token_answers import MOST_CHOSEN, MOST_SHOWN
from tests.selection import rest_slow
from tests.tiny import TOKENIZERS, llama

pytestmark = pytest.mark.filterwarnings("ignore:.*less likely to the model than random tokens")
WALKED = ("vllm", "sglang")


@contextmanager
def served(dialect: str, **options: Any) -> Iterator[Endpoint]:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    with Endpoint(llama(len(tokenizer)), tokenizer, dialect, **options) as endpoint:
        yield endpoint


def scorer_of(endpoint: Endpoint) -> CompletionsScorer:
    return CompletionsScorer(endpoint.url, "tiny")


def figures(model: Any, endpoint: Endpoint, canaries: Canaries, method: str) -> list[Any]:
    found = measure_exposure(model, endpoint.tokenizer, canaries, method=method, samples=60)
    return [(one.rank, one.log_perplexity, one.bits) for one in found]


@pytest.mark.parametrize("method", rest_slow(["exact", "sampling", "auto"], 2))
@pytest.mark.parametrize("dialect", WALKED)
def test_figures_equal_those_of_the_model_at_hand(dialect: str, method: str) -> None:
    with served(dialect) as endpoint:
        there = figures(scorer_of(endpoint), endpoint, CANARIES, method)
        here = figures(endpoint.model, endpoint, CANARIES, method)
    for one, other in zip(there, here, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize("dialect", WALKED)
def test_the_likeliest_secrets_are_proved(dialect: str) -> None:
    with served(dialect) as endpoint:
        there = extract_secrets(scorer_of(endpoint), endpoint.tokenizer, FORMAT, count=2)
        here = extract_secrets(endpoint.model, endpoint.tokenizer, FORMAT, count=2)
    assert [(one.secret, one.proved) for one in there] == [(one.secret, True) for one in here]


@pytest.mark.parametrize("method", ["exact", "sampling"])
@pytest.mark.parametrize("dialect", WALKED)
def test_tokens_that_look_alike_are_told_apart(dialect: str, method: str) -> None:
    # All parts of these characters are written as "".
    fmt = SecretFormat("Key:{secret}.", secret="[日語☃☂]{2}")
    canaries = Canaries.generate(fmt, repetitions=[0, 1], per_repetition=2, seed=3)
    with served(dialect) as endpoint:
        there = figures(scorer_of(endpoint), endpoint, canaries, method)
        here = figures(endpoint.model, endpoint, canaries, method)
    for one, other in zip(there, here, strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_vllm_is_asked_within_its_limits() -> None:
    fmt = SecretFormat("the key is {secret}", secret="[ -~]{3}")  # letters, and pieces of words
    with served("vllm") as endpoint:
        tree = TokenTree(fmt, endpoint.tokenizer)
        decoder = scorer_of(endpoint).decoder(tree, None, None)
        every = np.arange(len(tree.token_ids))
        bits = decoder.next_bits(decoder.root(), np.zeros_like(every), every)
        asked = [body for body in endpoint.bodies if "logprob_token_ids" in body]
        with torch.no_grad():
            logits = endpoint.model(input_ids=torch.tensor([tree.prompt])).logits[0, -1]
        truth = -torch.log_softmax(logits, -1).numpy()[tree.token_ids] / math.log(2)
    assert [len(body["logprob_token_ids"]) for body in asked] == [MOST_CHOSEN, len(every) - 128]
    assert bits == pytest.approx(truth, abs=1e-4)
    assert all(body.get("logprobs", 0) <= MOST_SHOWN for body in endpoint.bodies)
    assert all(isinstance(prompt[0], int) for body in asked for prompt in body["prompt"])


def change(dialect: str, edit: Callable[[Any], None]) -> Callable[[Any], Any]:
    """Changes what is told of the next tokens of the first prompt."""

    def changed(answer: Any) -> Any:
        answer = copy.deepcopy(answer)
        if dialect == "vllm" and answer["choices"][0]["logprobs"]:
            edit(answer["choices"][0]["logprobs"]["top_logprobs"][0])
        if dialect == "sglang" and answer[0]["meta_info"]["output_token_ids_logprobs"][0]:
            edit(answer[0]["meta_info"]["output_token_ids_logprobs"][0])
        return answer

    return changed


@pytest.mark.parametrize("dialect", WALKED)
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda told: told.pop(next(reversed(told)) if isinstance(told, dict) else -1), "has no"),
        (lambda told: told.clear(), "has no"),
    ],
)
def test_a_server_that_leaves_out_tokens_is_refused(
    dialect: str, edit: Callable[[Any], None], said: str
) -> None:
    with (
        served(dialect, change=change(dialect, edit)) as endpoint,
        pytest.raises(ValueError, match=said),
    ):
        figures(scorer_of(endpoint), endpoint, CANARIES, "exact")


def test_prompts_of_other_tokens_than_were_asked_for_are_refused() -> None:
    def shifted(answers: Any) -> Any:
        answers = copy.deepcopy(answers)
        for one in answers:
            told = one["meta_info"]["input_token_logprobs"]
            one["meta_info"]["input_token_logprobs"] = told[:-1]
        return answers

    with (
        served("sglang", change=shifted) as endpoint,
        pytest.raises(ValueError, match="those of other tokens"),
    ):
        figures(scorer_of(endpoint), endpoint, CANARIES, "exact")


def test_a_list_of_what_was_written_tells_nothing_of_the_prompt() -> None:
    with served("content") as endpoint:
        for method, said in (("sampling", "no log-prob"), ("auto", "neither vLLM nor SGLang")):
            with pytest.raises(ValueError, match=said):
                figures(scorer_of(endpoint), endpoint, CANARIES, method)
