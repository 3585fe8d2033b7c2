"""Scores of texts: the published formulas, and a peer's code on the same logits."""

from __future__ import annotations

import copy
import functools
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from hf_exposure import TextScores, score_texts
from tests.peers import peer_package
from tests.tiny import TOKENIZERS, corpus, llama

TOKENIZER = TOKENIZERS["digits_one_by_one"]()
TEXTS = [*corpus()[:12], "My code is 4071.", "the"]


@functools.cache
def model(steps: int = 30) -> LlamaForCausalLM:
    """Trained for so long that it gets some tokens right; in double precision."""
    made = llama(len(TOKENIZER), scale=0.05)
    batch = TOKENIZER(list(corpus()[:8]), padding=True, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(steps):
        made(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return made.double().eval()


@functools.cache
def scored() -> TextScores:
    return score_texts(model(), TOKENIZER, TEXTS, model(10))


def logs(made: Any, text: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, vocabulary) natural log-probabilities of one text alone, and its n tokens."""
    ids = TOKENIZER(text)["input_ids"]
    with torch.no_grad():
        logits = made(torch.tensor([ids])).logits[0, :-1].double()
    return logits.log_softmax(-1).numpy(), np.array(ids[1:])


@pytest.mark.parametrize("place", range(len(TEXTS)))
def test_scores_are_the_published_formulas(place: int) -> None:
    text, found = TEXTS[place], scored()[place]
    every, tokens = logs(model(), text)
    own = every[np.arange(len(tokens)), tokens]
    base_every, _ = logs(model(10), text)
    base = base_every[np.arange(len(tokens)), tokens]
    probs = np.exp(every)
    mean = (probs * every).sum(-1)
    spread = np.sqrt((probs * every**2).sum(-1) - mean**2)
    least = max(1, math.ceil(len(own) * 20 / 100))
    wrong = every.argmax(-1) != tokens
    gained = (own - base)[wrong]
    bits = 1 / math.log(2)

    assert found.tokens == len(own)
    assert found.log_perplexity == pytest.approx(-own.sum() * bits, abs=1e-6)
    assert found.score("per_token") == pytest.approx(own.mean() * bits, abs=1e-6)
    assert found.score("ratio") == pytest.approx((own - base).mean() * bits, abs=1e-6)
    size = len(zlib.compress(text.encode()))
    assert found.score("zlib") == pytest.approx(own.mean() / size * bits / 8, abs=1e-6)
    assert found.min_k == pytest.approx(np.sort(own)[:least].mean() * bits, abs=1e-6)
    z = np.sort((own - mean) / spread)[:least].mean()
    assert found.min_k_plus_plus == pytest.approx(z, abs=1e-6)
    zone = gained[gained > 0].sum() / max(-gained[gained < 0].sum(), 1e-12)
    if wrong.sum() < 2 or not (gained < 0).any():
        zone = 0.0
    assert found.error_zone == pytest.approx(zone, abs=1e-6)


def test_the_example_has_right_and_wrong_tokens() -> None:
    right = [every.argmax(-1) == tokens for every, tokens in (logs(model(), t) for t in TEXTS)]
    assert 0 < np.concatenate(right).mean() < 1
    assert sum(one.error_zone > 0 for one in scored() if one.error_zone is not None) > 3


@pytest.fixture(scope="module")
def peer() -> Iterator[Any]:
    with peer_package("memaudit"):
        from memaudit import scoring

        yield scoring


def test_scores_are_those_of_memaudit_on_the_same_logits(peer: Any) -> None:
    made = copy.deepcopy(model()).float()
    found = score_texts(made, TOKENIZER, TEXTS)
    for text, one in zip(TEXTS, found, strict=True):
        theirs = peer.score_sequence(made, TOKENIZER(text)["input_ids"])
        assert one.tokens == theirs["n_scored_tokens"]
        ours = {
            "mean_logprob": -one.per_token * math.log(2),
            "min_k": one.min_k * math.log(2),
            "min_k_plus_plus": one.min_k_plus_plus,
        }
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=1e-6, abs=1e-6), name


def test_a_text_scores_the_same_alone_and_in_company() -> None:
    for text, one in zip(TEXTS, scored(), strict=True):
        (alone,) = score_texts(model(), TOKENIZER, [text], model(10))
        for by in ("per_token", "ratio", "zlib", "min_k", "min_k_plus_plus", "error_zone"):
            assert alone.score(by) == pytest.approx(one.score(by), rel=1e-4, abs=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    made = llama(len(TOKENIZER)).train()
    state = torch.random.get_rng_state()
    score_texts(made, TOKENIZER, TEXTS[:3], made)
    assert made.training and torch.equal(torch.random.get_rng_state(), state)


def test_texts_are_masked_unless_revealed_and_come_back_from_a_file(tmp_path: Path) -> None:
    found = scored()
    shown = [str(found), repr(found), repr(found[0]), found._repr_html_()]
    shown += [found.save(tmp_path / "scores.json").read_text(), found.to_pandas().to_csv()]
    assert not any(text in page for text in TEXTS[:13] for page in shown)
    revealed = found.save(tmp_path / "whole.json", reveal=True)
    assert list(TextScores.load(revealed)) == list(found)
    again = TextScores.load(tmp_path / "scores.json")
    assert (again.scores("min_k") == found.scores("min_k").round(1)).all()
    page = (tmp_path / "scores.json").read_text() + str(found.to_pandas()["min_k"].tolist())
    assert not any(str(one.min_k) in page or str(one.log_perplexity) in page for one in found)
    assert found.to_pandas(reveal=True)["text"].tolist() == TEXTS


def test_what_cannot_be_scored_is_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"number 1 has no token.*bos=True"):
        score_texts(model(), TOKENIZER, ["a b", ""], bos=True)
    with pytest.raises(ValueError, match=r"does not fit.*give shorter ones"):
        score_texts(model(), TOKENIZER, ["word " * 5000])
    with pytest.raises(ValueError, match="needs a base model"):
        score_texts(model(), TOKENIZER, ["a b"])[0].score("ratio")
