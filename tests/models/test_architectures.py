"""The decoder on many architectures of transformers, and on models of somebody's own.

`python -m pytest tests/test_architectures.py` prints the table of docs/architectures.md.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn
from transformers.modeling_outputs import CausalLMOutput, CausalLMOutputWithPast

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.measure import measure_exposure
from hf_exposure.models.causal import CausalModel
from hf_exposure.models.continuations import token_signals
from hf_exposure.models.undisturbed import undisturbed
from tests.architectures import (
    ARCHITECTURES,
    FORMAT,
    TOKENIZER,
    WINDOW,
    Comparison,
    compare,
    logits_of,
    made,
    make,
    spread,
    table,
    tree,
)
from tests.tiny import llama

TOLERANCE = 1e-3  # bits; the layers are so strong that rounding grows to a tenth of it

# One of each kind; all of them together take minutes.
EVERY_DAY = {
    "llama",
    "gpt2",
    "gpt_neox",
    "bloom",
    "mamba",
    "mixtral",
    "gemma3_text",
    "qwen3",
    "phi3",
}
each_architecture = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.slow)
        for name in ARCHITECTURES
    ],
)


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[dict[str, Comparison]]:
    """What was compared, printed as a table in the end."""
    compared: dict[str, Comparison] = {}
    yield compared
    if request.config.get_verbosity() >= 0 and compared:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\n" + table(compared))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def all_costs(model: Any) -> dict[str, float]:
    """Bits of every secret with what follows it, by plain forwards of whole texts."""
    secrets = list(FORMAT.enumerate())
    ids = TOKENIZER()([FORMAT.render(secret) for secret in secrets])["input_ids"]
    assert len({len(row) for row in ids}) == 1
    begin = len(tree().prompt)
    assert all(row[:begin] == list(tree().prompt) for row in ids)
    totals = []
    for tokens in torch.tensor(ids).split(250):
        logs = torch.log_softmax(logits_of(model(input_ids=tokens)).double(), -1)
        step = logs[:, :-1].gather(2, tokens[:, 1:, None])[:, :, 0]
        totals += (-step[:, begin - 1 :].sum(dim=1) / math.log(2)).tolist()
    return dict(zip(secrets, totals, strict=True))


def some_canaries(costs: dict[str, float]) -> Canaries:
    """Planted ones and controls, from the most likely secret to a rather unlikely one."""
    ordered = sorted(costs, key=costs.__getitem__)
    times = {0: 4, 1: 0, 2: 1, 30: 2, 31: 0, 200: 1, 400: 0}
    return Canaries([Canary(FORMAT, ordered[place], k) for place, k in times.items()])


def check_ranks(model: Any, *, told: str = "") -> None:
    """Exact ranks are those of brute force, and the decoder warns of what it must."""
    costs = all_costs(model)
    canaries = some_canaries(costs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = measure_exposure(model, TOKENIZER(), canaries, method="exact")
    messages = [str(one.message) for one in caught if "cache" in str(one.message)]
    assert len(messages) == (1 if told else 0), messages
    assert all(told in message for message in messages)
    assert found.formats[FORMAT].cached is not bool(told)
    tie = float(found.formats[FORMAT].tie_bits)
    assert tie < TOLERANCE
    single = 0
    for item in found:
        own = costs[item.canary.secret]
        assert item.exact and abs(item.log_perplexity - own) < TOLERANCE
        left_out = {one.secret for one in canaries if one.inserted} | {item.canary.secret}
        others = np.array([cost for secret, cost in costs.items() if secret not in left_out])
        least, most = (1 + int(np.sum(others <= own + sign * 2 * tie)) for sign in (-1, 1))
        assert least <= item.rank <= most
        single += least == most
    assert single >= 5  # otherwise this would show little


# The matrix


@each_architecture
def test_cached_reordered_and_joined_steps_cost_what_a_full_forward_says(
    name: str, rows: dict[str, Comparison]
) -> None:
    one = ARCHITECTURES[name]
    rows[name] = compared = compare(made(name))
    assert compared.difference < TOLERANCE
    assert compared.cached is one.cached
    assert compared.joined is (one.cached and one.joined)
    if one.cached:
        assert not compared.told
    else:
        assert compared.told.startswith(f"{type(made(name)).__name__}: scoring with its cache")
        assert "measuring without a cache" in compared.told


@each_architecture
def test_exact_ranks_are_those_of_brute_force(name: str) -> None:
    told = "" if ARCHITECTURES[name].cached else type(made(name)).__name__
    check_ranks(made(name), told=told)


@each_architecture
def test_a_text_has_the_figure_in_company_that_it_has_alone(name: str) -> None:
    lengths = (
        9,
        5,
        23,
        14,
        20,
    )  # beyond windows, chunks and convolutions, and on either side of them
    ids = np.random.default_rng(0).integers(3, 60, size=(len(lengths), max(lengths)))
    rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    with undisturbed(made(name)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scored = dict(token_signals(CausalModel(made(name)), rows, np.full(len(rows), 2)))
    for place, row in enumerate(rows):
        logits = logits_of(made(name)(input_ids=torch.tensor(row[None, :-1])))[0, 1:].double()
        bits = -torch.log_softmax(logits, -1) / math.log(2)
        own = bits.gather(1, torch.tensor(row[2:, None]))[:, 0].numpy()
        assert np.abs(scored[place].bits - own).max() < TOLERANCE


@each_architecture
def test_a_mistake_would_show(name: str) -> None:
    """Costs hang on tokens before the last one, far more than the tests let differ."""
    ids = torch.tensor([[*tree().prompt, *tree().token_ids[tree().paths(["123"])[0]]]])
    swapped = ids.clone()
    swapped[0, -4:-1] = ids[0, [-2, -4, -3]]
    both = [logits_of(made(name)(input_ids=tokens))[0, -1] for tokens in (ids, swapped)]
    bits = [torch.log_softmax(logits, dim=-1) / math.log(2) for logits in both]
    assert (bits[0] - bits[1]).abs().max() > 10 * TOLERANCE


WINDOWS = [name for name, one in ARCHITECTURES.items() if "sliding_window" in one.settings]


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_shorter_than_the_text(name: str) -> None:
    assert len(tree().prompt) > WINDOW
    one = ARCHITECTURES[name]
    wide = make(replace(one, settings={**one.settings, "sliding_window": 60}))
    ids = torch.arange(3, 3 + len(tree().prompt))[None]
    logits = [logits_of(model(input_ids=ids))[0, -1] for model in (made(name), wide)]
    assert (logits[0] - logits[1]).abs().max() > 0.01


def test_the_matrix_has_what_people_use() -> None:
    assert len({one.model_type for one in ARCHITECTURES.values()}) >= 130
    assert len(WINDOWS) >= 20
    assert sum("num_experts_per_tok" in one.settings for one in ARCHITECTURES.values()) >= 30


# What is refused


_TINY = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
_TINY_SEQ2SEQ = {
    "vocab_size": 512,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 64,
}


def encoder_decoder(name: str) -> Any:
    if name == "EncoderDecoderModel":
        config = hf.EncoderDecoderConfig.from_encoder_decoder_configs(
            hf.BertConfig(**_TINY), hf.BertConfig(**_TINY)
        )
        return hf.EncoderDecoderModel(config)
    if name == "T5ForConditionalGeneration":
        return hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=512, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
        )
    config_class = getattr(hf, name.replace("ForConditionalGeneration", "Config"))
    return getattr(hf, name)(config_class(**_TINY_SEQ2SEQ))


@pytest.mark.parametrize(
    "name",
    [
        "T5ForConditionalGeneration",
        "BartForConditionalGeneration",
        "MBartForConditionalGeneration",
        "PegasusForConditionalGeneration",
        "EncoderDecoderModel",
    ],
)
def test_an_encoder_decoder_is_refused_in_one_line(name: str) -> None:
    canaries = Canaries.generate(FORMAT, repetitions=[1], per_repetition=2, seed=0)
    with pytest.raises(ValueError, match=f"{name} is an encoder-decoder") as caught:
        measure_exposure(encoder_decoder(name), TOKENIZER(), canaries)
    assert "\n" not in str(caught.value)


def test_a_model_that_asks_for_an_image_is_refused_in_one_line() -> None:
    vision = {**_TINY, "image_size": 28, "patch_size": 14}
    text = {**_TINY, "model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 32}
    config = hf.Blip2Config(text_config=text, vision_config=vision, qformer_config=dict(_TINY))
    canaries = Canaries.generate(FORMAT, repetitions=[1], per_repetition=2, seed=0)
    with pytest.raises(ValueError, match="asks for pixel_values") as caught:
        measure_exposure(hf.Blip2ForConditionalGeneration(config), TOKENIZER(), canaries)
    assert "\n" not in str(caught.value)


def not_causal(name: str) -> Any:
    if name == "XLNetLMHeadModel":
        return spread(
            hf.XLNetLMHeadModel(
                hf.XLNetConfig(vocab_size=512, d_model=32, n_layer=2, n_head=4, d_inner=48)
            ).eval()
        )
    if name == "PaliGemmaForConditionalGeneration":  # it looks at the whole prompt at once
        text = {**_TINY, "model_type": "gemma", "num_key_value_heads": 2, "head_dim": 8}
        vision = {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        }
        config = hf.PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=32)
        return spread(hf.PaliGemmaForConditionalGeneration(config).eval())
    family = name.removesuffix("ForMaskedLM").removesuffix("LMHeadModel")
    config_class = getattr(hf, f"{family}Config")
    return spread(getattr(hf, name)(config_class(**_TINY)).eval())


@pytest.mark.parametrize(
    "name",
    [
        "BertLMHeadModel",  # with is_decoder=False, as its checkpoints have it
        "BertForMaskedLM",
        "RobertaForMaskedLM",
        "XLNetLMHeadModel",
        "PaliGemmaForConditionalGeneration",
    ],
)
def test_a_model_that_looks_at_what_follows_is_refused_in_one_line(name: str) -> None:
    canaries = Canaries.generate(FORMAT, repetitions=[1], per_repetition=2, seed=0)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="not a causal") as caught:
        warnings.simplefilter("ignore")
        measure_exposure(not_causal(name), TOKENIZER(), canaries)
    assert name in str(caught.value) and "\n" not in str(caught.value)


# Models of somebody's own, such as come with trust_remote_code


class OwnConfig(hf.PretrainedConfig):
    model_type = "own"

    def __init__(self, vocab_size: int = 512, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        super().__init__(**kwargs)


class Recurrent(hf.PreTrainedModel):
    """An LSTM: logits from tokens, and nothing else."""

    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, 32)
        self.lstm = nn.LSTM(32, 48, num_layers=2, batch_first=True)
        self.head = nn.Linear(48, config.vocab_size)
        self.post_init()

    def forward(self, input_ids: torch.Tensor) -> Any:
        return CausalLMOutput(logits=self.head(self.lstm(self.words(input_ids))[0]))


class RecurrentTuple(Recurrent):
    def forward(self, input_ids: torch.Tensor, labels: Any = None, **kwargs: Any) -> Any:
        return (super().forward(input_ids).logits, None)


class RecurrentTensor(Recurrent):
    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> Any:
        return super().forward(input_ids).logits


class RecurrentDictionary(Recurrent):
    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return {"loss": None, "logits": super().forward(input_ids).logits}


class RecurrentForgetful(Recurrent):
    """Accepts all that a decoder may give, and returns no cache."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: bool = True,
        return_dict: bool = True,
        logits_to_keep: int = 0,
    ) -> Any:
        logits = super().forward(input_ids).logits[:, -logits_to_keep:]
        return CausalLMOutputWithPast(logits=logits, past_key_values=None)


class Around(hf.PreTrainedModel):
    """A Llama whose cache is handed over in a way of its own."""

    config_class = OwnConfig

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.inner = spread(llama(config.vocab_size))

    def given(self, past: Any) -> Any:
        return past

    def returned(self, past: Any) -> Any:
        return past

    def forward(
        self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = False
    ) -> Any:
        past = self.given(past_key_values)
        output = self.inner(input_ids=input_ids, past_key_values=past, use_cache=use_cache)
        kept = self.returned(output.past_key_values) if use_cache else None
        return CausalLMOutputWithPast(logits=output.logits, past_key_values=kept)


class OldTuples(Around):
    """Keys and values as a tuple for each layer, as before transformers had caches."""

    def given(self, past: Any) -> Any:
        return None if past is None else hf.DynamicCache(past)

    def returned(self, past: Any) -> Any:
        return tuple((layer.keys, layer.values) for layer in past.layers)


class Stubborn(hf.DynamicCache):
    """A cache that is not re-ordered when asked to be, and says nothing."""

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        for layer in self.layers:  # as many rows as are wanted, but always the first ones
            layer.reorder_cache(torch.arange(len(beam_idx)) % layer.keys.shape[0])


class StubbornlyCached(Around):
    def forward(
        self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = False
    ) -> Any:
        if use_cache and past_key_values is None:
            past_key_values = Stubborn()
        return super().forward(input_ids, past_key_values, use_cache)


class Lazy(Around):
    """Takes the cache that it is given, and forgets to read it."""

    def given(self, past: Any) -> Any:
        return None


class Unjoinable(hf.DynamicCache):
    """A cache that knows its rows by something else than tensors, which joining cannot see."""

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        self.index = beam_idx.tolist()


class UnjoinablyCached(Around):
    def forward(
        self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = False
    ) -> Any:
        if use_cache and past_key_values is None:
            past_key_values = Unjoinable()
        index = getattr(past_key_values, "index", None)
        if index is not None and len(index) != len(input_ids):
            raise RuntimeError("rows were lost")
        return super().forward(input_ids, past_key_values, use_cache)


@functools.cache
def own(kind: type) -> Any:
    torch.manual_seed(0)
    model = kind(OwnConfig(vocab_size=len(TOKENIZER()))).eval()
    if not isinstance(model, Around):
        for weight in model.parameters():
            weight.data.mul_(5.0)
    return model


class Nameless(Recurrent):
    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


def test_a_model_that_tells_no_size_of_its_vocabulary_is_refused() -> None:
    canaries = Canaries.generate(FORMAT, repetitions=[1], per_repetition=2, seed=0)
    model = own(Nameless)
    assert not compare(model).cached
    del model.config.vocab_size
    with pytest.raises(ValueError, match="Nameless tells no size of its vocabulary"):
        measure_exposure(model, TOKENIZER(), canaries)


@pytest.mark.parametrize("output", [(), {"loss": None}, torch.zeros(2, 3)], ids=str)
def test_a_model_that_gives_no_logits_is_refused(output: Any) -> None:
    class Silent(Recurrent):
        def forward(self, input_ids: torch.Tensor) -> Any:
            return output

    canaries = Canaries.generate(FORMAT, repetitions=[1], per_repetition=2, seed=0)
    with pytest.raises(ValueError, match="Silent gave no logits of shape"):
        measure_exposure(own(Silent), TOKENIZER(), canaries)


NO_CACHE = [
    Recurrent,
    RecurrentTuple,
    RecurrentTensor,
    RecurrentDictionary,
    RecurrentForgetful,
    OldTuples,
    StubbornlyCached,
    Lazy,
]


@pytest.mark.parametrize("kind", NO_CACHE, ids=lambda kind: kind.__name__)
def test_a_model_without_a_cache_that_can_be_trusted_is_measured_right(kind: type) -> None:
    compared = compare(own(kind))
    assert not compared.cached and compared.difference < TOLERANCE
    check_ranks(own(kind), told=kind.__name__)


def test_a_model_whose_forward_takes_no_masks_and_positions_is_cached_all_the_same() -> None:
    assert compare(own(Around)).joined
    check_ranks(own(Around))


def test_a_cache_whose_rows_cannot_be_joined_is_used_without_joining() -> None:
    compared = compare(own(UnjoinablyCached))
    assert compared.cached and not compared.joined and compared.difference < TOLERANCE
    check_ranks(own(UnjoinablyCached))
