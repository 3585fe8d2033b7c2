"""The LSTM and GRU of the paper's kind: the same model with its state and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from paper.recurrent import RecurrentConfig, RecurrentForCausalLM
from small_model import train_tokenizer
from transformers import AutoModelForCausalLM

from hf_exposure import Canaries, SecretFormat, measure_exposure
from tests import tiny

kinds = pytest.mark.parametrize("kind", ["lstm", "gru"])


def model_of(kind: str, vocabulary: int = 257, **settings: object) -> RecurrentForCausalLM:
    torch.manual_seed(0)
    config = RecurrentConfig(
        vocab_size=vocabulary, kind=kind, hidden_size=24, num_hidden_layers=2, **settings
    )
    model = RecurrentForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight)  # far from uniform
    return model


@kinds
def test_ranks_are_those_of_scoring_every_text(kind: str) -> None:
    tokenizer = train_tokenizer(tiny.corpus(), 257)
    model = model_of(kind)
    fmt = SecretFormat("code {secret}.", secret="[0-9]{3}")
    canaries = Canaries.generate(fmt, [0], per_repetition=4, seed=1)
    ids = torch.tensor(tokenizer([fmt.render(secret) for secret in fmt.enumerate()])["input_ids"])
    with torch.no_grad():
        scores = model(input_ids=ids).logits.log_softmax(-1)
    begin = len(tokenizer("code ")["input_ids"])
    taken = scores[:, begin - 1 : -1].gather(2, ids[:, begin:, None]).sum((1, 2)).numpy()
    place = {secret: number for number, secret in enumerate(fmt.enumerate())}
    with torch.no_grad():
        measured = measure_exposure(model, tokenizer, canaries, method="exact")
    for one in measured:
        assert one.rank == np.sum(taken >= taken[place[one.canary.secret]] - 1e-6)


@kinds
def test_greedy_and_beam_generation_are_those_of_full_forwards(kind: str) -> None:
    model = model_of(kind)
    prompt = torch.tensor([[5, 9, 2], [7, 7, 1]])
    written = model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    again = prompt
    for _ in range(6):
        again = torch.cat([again, model(input_ids=again).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, again)
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    with_state = model.generate(prompt, **options)
    without = model.generate(prompt, use_cache=False, **options)
    assert torch.equal(with_state, without)


@kinds
def test_a_saved_model_is_loaded_by_its_folder(kind: str, tmp_path: object) -> None:
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is RecurrentForCausalLM
    ids = torch.tensor([[1, 2, 3]])
    assert torch.allclose(model(input_ids=ids).logits, again(input_ids=ids).logits, atol=1e-6)


def test_padding_at_the_end_changes_nothing_and_in_front_is_refused() -> None:
    model = model_of("lstm")
    row, padded = torch.tensor([[3, 4, 5]]), torch.tensor([[3, 4, 5, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    full = model(input_ids=padded, attention_mask=mask).logits[:, :3]
    assert torch.allclose(full, model(input_ids=row).logits, atol=1e-6)
    with pytest.raises(ValueError, match="pad on the right"):
        model(input_ids=padded, attention_mask=mask.flip(1))


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind='rnn' is not known; use lstm or gru"):
        model_of("rnn")


def test_the_loss_leaves_out_what_is_masked() -> None:
    model = model_of("gru")
    ids = torch.tensor([[3, 4, 5, 6]])
    labels = torch.tensor([[3, 4, -100, 6]])
    scores = model(input_ids=ids).logits.log_softmax(-1)
    wanted = -(scores[0, 0, 4] + scores[0, 2, 6]) / 2
    assert torch.isclose(model(input_ids=ids, labels=labels).loss, wanted)
