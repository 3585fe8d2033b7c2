"""Texts that a model has written: their scores against plain forwards, their order, resuming."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_exposure.attacks.generation as generation
from hf_exposure.attacks.candidates import RANKINGS, Candidates, rank_candidates
from hf_exposure.attacks.generation import generate_secrets
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.sets import Canaries
from tests.tiny import TOKENIZERS, llama

KIND = "digits_one_by_one"
NUMBER = SecretFormat("The number is {secret}.", secret="[0-9]{3}")
CANARIES = Canaries.generate(NUMBER, repetitions=[0, 4], per_repetition=2, seed=3)
TEXTS = ["the file is 123.", "The code and YOUR key", "7", "words of no meaning"]


def model(seed: int = 0) -> Any:
    return llama(len(TOKENIZERS[KIND]()), seed=seed, scale=0.5)


def plain_bits(made: Any, tokenizer: Any, prefix: str, text: str) -> float:
    """Bits of a text after a prefix, by one forward and by hand."""
    ids = tokenizer(prefix + text)["input_ids"]
    begin = next(
        (
            i
            for i, (a, b) in enumerate(zip(tokenizer(prefix)["input_ids"], ids, strict=False))
            if a != b
        ),
        len(tokenizer(prefix)["input_ids"]),
    )
    with torch.no_grad():
        logs = made(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(-float(logs[i - 1, ids[i]]) for i in range(max(1, begin), len(ids))) / math.log(2)


@pytest.mark.parametrize("kind", ["digits_one_by_one", "sentencepiece_bpe", "freely_merged"])
@pytest.mark.parametrize("prefix", ["", "My key: "])
def test_scores_are_those_of_plain_forwards(kind: str, prefix: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    made, other = llama(len(tokenizer), seed=1), llama(len(tokenizer), seed=2)
    ranked = rank_candidates(made, tokenizer, TEXTS, prefix=prefix, reference=other)
    assert {one.text for one in ranked} == set(TEXTS)
    for one in ranked:
        truth = plain_bits(made, tokenizer, prefix, one.text)
        assert one.log_perplexity == pytest.approx(truth, abs=1e-3)
        assert one.reference == pytest.approx(
            plain_bits(other, tokenizer, prefix, one.text), abs=1e-3
        )
        lower = plain_bits(made, tokenizer, prefix, one.text.lower())
        assert one.lower == pytest.approx(lower, abs=1e-3)
        assert one.zlib == 8 * len(zlib.compress(one.text.encode()))


def test_each_ranking_puts_the_largest_score_first() -> None:
    ranked = rank_candidates(model(), TOKENIZERS[KIND](), TEXTS, reference=model(1))
    orders = set()
    for by in RANKINGS:
        again = ranked.ranked(by)
        scores = [one.score(by) for one in again]
        assert scores == sorted(scores, reverse=True) and len(again) == len(TEXTS)
        orders.add(tuple(one.text for one in again))
    assert len(orders) > 1
    first = ranked.ranked("zlib")[0]
    assert first.score("zlib") == first.zlib / first.log_perplexity


def test_what_was_generated_is_deduplicated_and_scored_as_the_canaries_are() -> None:
    from hf_exposure.exposure.measure import measure_exposure

    made, tokenizer = model(), TOKENIZERS[KIND]()
    written = generate_secrets(made, tokenizer, CANARIES, num_samples=40)
    ranked = rank_candidates(made, tokenizer, written)
    assert sum(one.times for one in ranked) == 40
    assert len({one.text for one in ranked}) == len(ranked) < 40
    costs = {
        one.canary.text: one.log_perplexity
        for one in measure_exposure(made, tokenizer, CANARIES, method="exact")
    }
    texts = [canary.text[len(NUMBER.prefix) :] for canary in CANARIES]
    scored = rank_candidates(made, tokenizer, texts, prefix=NUMBER.prefix)
    for one in scored:
        assert one.log_perplexity == pytest.approx(costs[one.prefix + one.text], abs=1e-3)


def test_free_texts_are_scored_after_the_prompt() -> None:
    made, tokenizer = model(), TOKENIZERS[KIND]()
    written = generate_secrets(made, tokenizer, CANARIES, num_samples=5, constrained=False)
    for one in rank_candidates(made, tokenizer, written):
        assert one.prefix == NUMBER.prefix and not one.text.startswith(NUMBER.prefix)


def test_no_text_is_shown_or_saved_unless_revealed(tmp_path: Path) -> None:
    ranked = rank_candidates(model(), TOKENIZERS[KIND](), TEXTS)
    shown = f"{ranked}{ranked!r}{ranked._repr_html_()}{json.dumps(ranked.to_dict())}"
    assert not any(text in shown for text in TEXTS if len(text) > 1)
    assert TEXTS[0] in json.dumps(ranked.to_dict(reveal=True))
    ranked.save(tmp_path / "candidates.json")
    again = Candidates.load(tmp_path / "candidates.json")
    found = [one.log_perplexity for one in ranked]
    assert [one.log_perplexity for one in again] == [round(bits, 1) for bits in found]


def test_bad_rankings_are_refused() -> None:
    tokenizer = TOKENIZERS[KIND]()
    with pytest.raises(ValueError, match="by='beauty' is not known"):
        rank_candidates(model(), tokenizer, TEXTS, by="beauty")
    with pytest.raises(ValueError, match="needs a reference model"):
        rank_candidates(model(), tokenizer, TEXTS, by="reference")
    with pytest.raises(ValueError, match="needs a reference model"):
        rank_candidates(model(), tokenizer, TEXTS).ranked("reference")
    assert len(rank_candidates(model(), tokenizer, [])) == 0
    with pytest.raises(TypeError, match=r"generated must be .* or a list of strings, not str"):
        rank_candidates(model(), tokenizer, TEXTS[0])
    with pytest.raises(TypeError, match="generated: each of them must be a string, not None"):
        rank_candidates(model(), tokenizer, ["a", None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="does not fit the model's context"):
        rank_candidates(model(), tokenizer, ["1" * 500])


# Resuming


@pytest.mark.parametrize("options", [{}, {"constrained": False}, {"num_beams": 4}])
def test_generation_goes_on_where_it_was_interrupted(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tokenizer = model(), TOKENIZERS[KIND]()
    settings = {"num_samples": 20, "batch_size": 6, "seed": 5, **options}
    whole = generate_secrets(made, tokenizer, CANARIES, **settings)
    kept, path = generation._Kept.save, tmp_path / "kept.json"

    def interrupted(self: Any) -> None:
        kept(self)
        if sum(map(len, self._batches.values())) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(generation._Kept, "save", interrupted)
    if options.get("num_beams"):  # there is only one batch
        generate_secrets(made, tokenizer, CANARIES, resume=path, **settings)
    else:
        with pytest.raises(KeyboardInterrupt):
            generate_secrets(made, tokenizer, CANARIES, resume=path, **settings)
    monkeypatch.setattr(generation._Kept, "save", kept)
    resumed = generate_secrets(made, tokenizer, CANARIES, resume=path, **settings)
    assert resumed.texts == whole.texts and resumed.forwards < whole.forwards
    assert [row.times for row in resumed] == [row.times for row in whole]
    again = generate_secrets(made, tokenizer, CANARIES, resume=path, **settings)
    assert again.texts == whole.texts and again.forwards == 0


def test_a_file_of_another_call_or_model_is_refused(tmp_path: Path) -> None:
    made, tokenizer = model(), TOKENIZERS[KIND]()
    path = tmp_path / "kept.json"
    generate_secrets(made, tokenizer, CANARIES, num_samples=4, resume=path)
    with pytest.raises(ValueError, match="something else"):
        generate_secrets(made, tokenizer, CANARIES, num_samples=5, resume=path)
    with pytest.raises(ValueError, match="something else"):
        generate_secrets(model(1), tokenizer, CANARIES, num_samples=4, resume=path)
    path.write_text("{")
    with pytest.raises(ValueError, match="something else"):
        generate_secrets(made, tokenizer, CANARIES, num_samples=4, resume=path)
