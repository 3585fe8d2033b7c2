"""A text's figures are its own: whatever is measured beside it, by whichever way in."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM

from hf_exposure import (
    SecretFormat,
    audit_dataset,
    discoverable_extraction,
    generate_secrets,
    rank_candidates,
)
from hf_exposure.canaries.canary import Canary
from hf_exposure.models.causal import CausalModel, ContextError
from hf_exposure.models.continuations import TextModel, token_signals
from hf_exposure.models.undisturbed import undisturbed
from tests.tiny import TOKENIZERS, llama

TOKENIZER = TOKENIZERS["digits_one_by_one"]()
ROTARY: dict[str, dict[str, Any]] = {
    "plain": {},
    "longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 4.0,
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
            "original_max_position_embeddings": 32,
        }
    },
    "dynamic": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        "max_position_embeddings": 64,
    },
}
each_rotary = pytest.mark.parametrize("rotary", ROTARY)
# From 9 to 60 tokens, two of each length, so that some of them have company of their own length.
TEXTS = [
    (f"{start} number" + " random number" * count, f" is 47{count % 10}.")
    for count in (0, 2, 5, 9, 14, 22)
    for start in ("the", "my")
]


@functools.cache
def model(rotary: str, seed: int = 0) -> LlamaForCausalLM:
    return llama(
        len(TOKENIZER), scale=0.3, seed=seed, initializer_range=0.3, **ROTARY[rotary]
    ).eval()


def alone(made: Any, context: str, text: str) -> float:
    """Bits of a text after its context, by one forward over both and none of our code."""
    before = TOKENIZER(context)["input_ids"]
    ids = TOKENIZER(context + text)["input_ids"]
    begin = next((i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b), None)
    begin = len(before) if begin is None else begin
    with torch.no_grad():
        scores = made(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
    return -float(scores[range(begin - 1, len(ids) - 1), ids[begin:]].sum()) / math.log(2)


def tokens(text: str) -> int:
    return len(TOKENIZER(text)["input_ids"])


def by_discovery(made: Any, pairs: list[tuple[str, str]]) -> dict[str, float]:
    found = discoverable_extraction(made, TOKENIZER, pairs)
    return {whole_text(pairs[one.row]): -one.log2_p for one in found}


def by_candidates(made: Any, pairs: list[tuple[str, str]]) -> dict[str, float]:
    out = {}
    for context in {context for context, _ in pairs}:
        beside = [text for before, text in pairs if before == context]
        # The others are candidates too, behind the same context, and longer.
        others = [text + " random number" * count for text in beside for count in (1, 4, 7)]
        for one in rank_candidates(made, TOKENIZER, [*beside, *others], prefix=context):
            if one.text in beside:
                out[context + one.text] = one.log_perplexity
    return out


def by_texts(made: Any, pairs: list[tuple[str, str]]) -> dict[str, float]:
    with undisturbed(made):
        scored = TextModel(made, TOKENIZER).continuation_bits(pairs)
        return {whole_text(pairs[place]): float(bits.sum()) for place, bits in scored}


def whole_text(pair: tuple[str, str]) -> str:
    return pair[0] + pair[1]


@each_rotary
@pytest.mark.parametrize("way", [by_discovery, by_texts])
def test_a_text_has_the_figure_that_it_has_alone(
    rotary: str, way: Callable[[Any, list[tuple[str, str]]], dict[str, float]]
) -> None:
    made = model(rotary)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = way(made, TEXTS)
        reverse = way(made, TEXTS[::-1])
    assert len(found) == len(TEXTS)
    for pair in TEXTS:
        assert found[whole_text(pair)] == pytest.approx(alone(made, *pair), abs=2e-3)
        assert reverse[whole_text(pair)] == pytest.approx(found[whole_text(pair)], abs=2e-3)


@each_rotary
def test_a_candidate_has_the_figure_that_it_has_alone(rotary: str) -> None:
    made = model(rotary)
    pairs = [pair for pair in TEXTS if tokens(whole_text(pair)) < 32]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = by_candidates(made, pairs)
    for pair in pairs:
        assert found[whole_text(pair)] == pytest.approx(alone(made, *pair), abs=2e-3)


@each_rotary
def test_what_was_generated_is_scored_as_alone(rotary: str) -> None:
    made = model(rotary)
    fmt = SecretFormat("the number is {secret}", r"[0-9]{1,4}( random number){0,9}\.")
    written = generate_secrets(
        made, TOKENIZER, [Canary(fmt, "47.", 1)], num_samples=12, seed=1, temperature=30.0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        ranked = rank_candidates(made, TOKENIZER, written, reference=model(rotary, seed=1))
    assert len({one.tokens for one in ranked}) > 3
    for one in ranked:
        assert one.log_perplexity == pytest.approx(alone(made, one.prefix, one.text), abs=2e-3)
        assert one.reference == pytest.approx(
            alone(model(rotary, seed=1), one.prefix, one.text), abs=2e-3
        )


@each_rotary
def test_a_secret_of_the_audit_has_the_figure_that_it_has_in_its_row_alone(rotary: str) -> None:
    made = model(rotary)
    short = "you reach me at (212) 555-0147, always."
    rows = [short, "my code is 47. " * 3, "the number" * 3 + " (212) 555-0199, " + "random " * 9]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        options: dict[str, Any] = {"kinds": ["phone"], "top": 0}
        (own,) = audit_dataset(made, TOKENIZER, Dataset.from_dict({"text": [short]}), **options)
        beside = audit_dataset(made, TOKENIZER, Dataset.from_dict({"text": rows}), **options)
    (same,) = (one for one in beside if one.rows == (0,))
    assert same.log_perplexity == pytest.approx(own.log_perplexity, abs=1e-6)
    truth = alone(made, own.format.prefix, own.secret + own.format.suffix)
    assert own.log_perplexity == pytest.approx(truth, abs=2e-3)


def test_a_text_that_crosses_the_length_at_which_the_model_changes_is_told_of() -> None:
    made = model("longrope")
    whole = [("the", whole_text(pair)[3:]) for pair in TEXTS[::2]]
    longer = sum(tokens(whole_text(pair)) - 1 > 32 for pair in whole)
    assert 0 < longer < len(whole)
    with pytest.warns(UserWarning, match=f"{longer} texts? of more than 32 tokens"):
        by_discovery(made, whole)
    with pytest.warns(UserWarning, match="more than 32 tokens"):
        rank_candidates(made, TOKENIZER, [whole_text(pair) for pair in whole])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Short ones are not; nor those of which all that counts lies beyond.
        by_discovery(made, [pair for pair in whole if tokens(whole_text(pair)) <= 33])
        by_discovery(made, TEXTS[-2:])


def test_texts_longer_than_a_dynamic_model_was_made_for_are_left_out_or_refused() -> None:
    made, long = model("dynamic"), ("the number" + " random number" * 40, " is 47.")
    assert tokens(whole_text(long)) > 64
    with pytest.warns(UserWarning, match="longer than the model's context of 64"):
        found = discoverable_extraction(made, TOKENIZER, [*TEXTS, long])
    assert [one.row for one in found] == list(range(len(TEXTS)))
    for one, pair in zip(found, TEXTS, strict=True):
        assert -one.log2_p == pytest.approx(alone(made, *pair), abs=2e-3)
    with pytest.raises(ValueError, match="context of 64"):
        rank_candidates(made, TOKENIZER, [whole_text(TEXTS[0]), whole_text(long)])
    with pytest.raises(ContextError, match="context of 64"):
        by_texts(made, [long])


class Company(LlamaForCausalLM):
    """A model whose figures depend on the rows beside each, or on how wide the batch is."""

    rows = False

    def forward(self, input_ids: Any, **options: Any) -> Any:
        output = super().forward(input_ids, **options)
        size = len(input_ids) - 1 if self.rows else input_ids.shape[1]
        output.logits = output.logits * (1 + size / 16)
        return output


def changeful(rows: bool) -> Company:
    made = Company(llama(40).config).eval()
    made.rows = rows
    return made


@pytest.mark.parametrize(("rows", "beside"), [(False, "of its length"), (True, "run alone")])
def test_company_that_changes_figures_is_found_out_whatever_the_reason(
    rows: bool, beside: str
) -> None:
    made = changeful(rows)
    draw = np.random.default_rng(0)
    sequences = [draw.integers(40, size=size) for size in (9, 4, 9, 7, 5, 7, 9)]
    begins = np.full(len(sequences), 2)
    one_by_one = CausalModel(made)
    with undisturbed(made):
        truth = [next(token_signals(one_by_one, [s], begins[:1]))[1].bits for s in sequences]
        with pytest.warns(UserWarning, match=beside):
            found = {
                place: one.bits
                for place, one in token_signals(CausalModel(made), sequences, begins)
            }
    assert sorted(found) == list(range(len(sequences)))
    for place, bits in enumerate(truth):
        assert found[place] == pytest.approx(bits, abs=1e-3)


def test_company_that_changes_nothing_is_used() -> None:
    made, sizes = llama(40), []
    made.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    sequences = [np.arange(3 + size % 9) for size in range(60)]
    with undisturbed(made), warnings.catch_warnings():
        warnings.simplefilter("error")
        scored = list(token_signals(CausalModel(made), sequences, np.full(60, 1)))
    assert len(scored) == 60
    assert [rows for rows, _ in sizes] == [1, 1, 2, 58]


def test_bits_are_of_the_tokens_that_the_context_does_not_share() -> None:
    made = llama(len(TOKENIZER))
    model = TextModel(made, TOKENIZER, bos=False)
    with undisturbed(made):
        found = dict(
            model.continuation_bits([("the number is ", "47."), ("", "47."), ("the number", "")])
        )
    assert not np.isnan(found[0]).any()
    # Of a text's first token nothing is known if nothing comes before it.
    assert np.isnan(found[1][0]) and not np.isnan(found[1][1:]).any()
    assert len(found[2]) == 0
