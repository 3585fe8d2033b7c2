"""A tokenizer that gives one text different tokens each time is refused wherever one is given."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import ByT5Tokenizer, GPTSw3Tokenizer

from hf_exposure import (
    Canaries,
    SecretFormat,
    audit_dataset,
    discoverable_extraction,
    extract_secrets,
    generate_secrets,
    measure_exposure,
    rank_candidates,
    verify_injection,
)
from hf_exposure.canaries import vocabulary
from hf_exposure.canaries.vocabulary import Encoder
from hf_exposure.exposure.planning import Settings
from hf_exposure.training.measuring import Meter
from tests.tiny import TOKENIZERS, llama, wrap
from tests.tree.test_slow_tokenizers import sentences


def dropping(share: float) -> Any:
    """Byte-level BPE with dropout."""
    whole = json.loads(TOKENIZERS["freely_merged"]().backend_tokenizer.to_str())
    whole["model"]["dropout"] = share
    return wrap(Tokenizer.from_str(json.dumps(whole)))


def unigram(**settings: Any) -> Any:
    tokenizer = copy.deepcopy(TOKENIZERS["unigram"]())
    for name, value in settings.items():  # which no file of it holds
        setattr(tokenizer.backend_tokenizer.model, name, value)
    return tokenizer


class Forgetful(ByT5Tokenizer):  # type: ignore[misc]
    """Loses the last token of some texts, by no setting that anybody knows of."""

    draw = random.Random(0)

    def _tokenize(self, text: str) -> list[str]:
        tokens: list[str] = super()._tokenize(text)
        return tokens[: len(tokens) - (self.draw.random() < 0.5)]


def test_every_way_in_refuses_it() -> None:
    tokenizer, model = dropping(0.1), llama(800)
    fmt = SecretFormat("my code is {secret}.", secret="[a-c]{2}")
    canaries = Canaries.generate(fmt, repetitions=[1], per_repetition=1, seed=0)
    data = Dataset.from_dict({"text": ["my card is 4111 1111 1111 1111."], "input_ids": [[1, 2]]})
    ways: list[Callable[[], Any]] = [
        lambda: measure_exposure(model, tokenizer, canaries),
        lambda: measure_exposure(model, tokenizer, canaries, unscorable="warn"),
        lambda: extract_secrets(model, tokenizer, fmt),
        lambda: generate_secrets(model, tokenizer, canaries),
        lambda: rank_candidates(model, tokenizer, ["a", "b"], prefix="my code is "),
        lambda: discoverable_extraction(model, tokenizer, ["my code is ab."]),
        lambda: verify_injection(data, tokenizer, canaries),
        lambda: audit_dataset(model, tokenizer, data),
        lambda: Meter(canaries, tokenizer, Settings(), "warn").prepare(None),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=r"different tokens each time, by dropout=0\.1"):
            way()


@pytest.mark.parametrize("nbest_size", [None, 0, 8])
def test_a_sampling_unigram_model_is_refused_by_its_settings(nbest_size: int | None) -> None:
    with pytest.raises(ValueError, match=r"alpha=0\.5"):
        Encoder(unigram(nbest_size=nbest_size, alpha=0.5))


def test_sampling_of_sentencepiece_is_refused_by_its_setting(tmp_path: Path) -> None:
    made = {"name_or_path": "test"}
    options = {"enable_sampling": True, "alpha": 0.1, "nbest_size": -1}
    file = sentences(tmp_path, "unigram")
    with pytest.raises(ValueError, match="enable_sampling"):
        Encoder(GPTSw3Tokenizer(file, sp_model_kwargs=options, **made))
    Encoder(GPTSw3Tokenizer(file, **made))


@pytest.mark.parametrize(
    "tokenizer",
    [lambda: dropping(0.01), lambda: unigram(alpha=0.5), Forgetful],
    ids=["dropout", "unigram", "python"],
)
def test_it_is_noticed_without_a_setting(
    tokenizer: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_sampling", lambda tokenizer: "")
    with pytest.raises(ValueError, match="different tokens each time, so"):
        Encoder(tokenizer())


def test_settings_that_draw_nothing_are_no_fault() -> None:
    for tokenizer in (dropping(0.0), unigram(nbest_size=1, alpha=0.5), unigram(nbest_size=5)):
        assert Encoder(tokenizer)(["my code"])
