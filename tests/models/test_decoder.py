"""Costs from the decoder's cached, re-ordered and joined steps are those of a full forward."""

from __future__ import annotations

import functools
import math
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from hf_exposure.models.causal import NotFiniteError
from hf_exposure.models.decoder import Decoder
from hf_exposure.models.next_tokens import Branches, together
from hf_exposure.models.undisturbed import undisturbed
from tests.tiny import llama

VOCABULARY = 40
PROMPT = [1, 7, 30]
COLUMNS = np.array([3, 4, 5, 8, 20, 21, 39])

_SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "use_mamba_kernels": False}

# A tiny configuration of each architecture, and whether its cache can be used.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("Llama", {}, True),
    "mistral": ("Mistral", {"sliding_window": 4}, True),
    "qwen3": ("Qwen3", {}, True),
    "gemma2": ("Gemma2", {"sliding_window": 4, "query_pre_attn_scalar": 8}, True),
    "gemma3": ("Gemma3Text", {"sliding_window": 4, "query_pre_attn_scalar": 8}, True),
    "gpt_neox": ("GPTNeoX", {}, True),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, True),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}, True),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4}, True),
    "mamba": ("Mamba", {"state_size": 8}, True),
    "jamba": (
        "Jamba",
        {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            **_MAMBA,
        },
        True,
    ),
    "bamba": (
        "Bamba",
        {
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "attn_layer_indices": [1],
            "mamba_chunk_size": 8,
        },
        True,
    ),
    "minimax": (
        "MiniMax",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "block_size": 8,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
        False,
    ),
    "rwkv": ("Rwkv", {"attention_hidden_size": 32, "context_length": 64}, False),
    "recurrent_gemma": (
        "RecurrentGemma",
        {"lru_width": 32, "attention_window_size": 8, "num_hidden_layers": 3},
        False,
    ),
}


@functools.cache
def made(name: str) -> Any:
    kind, settings, _ = ARCHITECTURES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config_class = getattr(hf, f"{kind}Config")
        config = config_class(**{**_SMALL, **settings})
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0)  # so that probabilities, and mistakes in them, are large
    return model


each_architecture = pytest.mark.parametrize("name", sorted(ARCHITECTURES))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def truth(model: Any, path: np.ndarray) -> np.ndarray:
    """(C,) costs in bits of each column after a path, from a plain forward."""
    ids = torch.tensor([[*PROMPT, *COLUMNS[path].tolist()]])
    logits = model(input_ids=ids, use_cache=False).logits[0, -1].double()
    return (-torch.log_softmax(logits, dim=-1) / math.log(2)).numpy()[COLUMNS]


def ready(model: Any, **settings: Any) -> Decoder:
    decoder = Decoder(model, PROMPT, COLUMNS, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decoder.probe([np.arange(5), np.arange(5)[::-1]])
    return decoder


def grow(decoder: Decoder, depth: int, seed: int = 0, drop: bool = False) -> Iterator[Branches]:
    """Random branches, level by level: rows swapped, repeated, left out, joined from chunks."""
    draw = np.random.default_rng(seed)
    branches = decoder.root()
    yield branches
    for _ in range(depth):
        n = 7
        rows, columns = draw.integers(len(branches.paths), size=n), draw.integers(7, size=n)
        steps = list(decoder.step(branches, rows, columns))
        assert np.array_equal(np.concatenate([place for place, _ in steps]), np.arange(n))
        bits = np.concatenate([part.bits for _, part in steps])
        if len(steps) == 1:
            branches = steps[0][1]
        else:
            branches = together([(part, np.arange(len(part.paths))) for _, part in steps])
            branches.bits = bits
        if drop:
            branches.cache = None
        yield branches


def check(decoder: Decoder, model: Any, *, drop: bool = False, tolerance: float = 2e-3) -> None:
    for branches in grow(decoder, 5, drop=drop):
        for bits, path in zip(branches.bits, branches.paths, strict=True):
            assert np.abs(bits - truth(model, path)).max() < tolerance


# Right costs


@each_architecture
def test_costs_equal_a_full_forward(name: str) -> None:
    check(ready(made(name)), made(name))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "mamba", "jamba", "bamba"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_costs_are_the_same_when_caches_of_several_chunks_are_joined(
    name: str, batch_size: int
) -> None:
    decoder = ready(made(name), batch_size=batch_size)
    assert decoder.joins
    check(decoder, made(name))


@pytest.mark.parametrize("name", ["llama", "mamba", "minimax"])
def test_costs_are_the_same_when_caches_were_dropped(name: str) -> None:
    check(ready(made(name)), made(name), drop=True)


@pytest.mark.parametrize("name", ["llama", "jamba"])
def test_a_step_leaves_the_cache_that_it_starts_from_as_it_was(name: str) -> None:
    decoder = ready(made(name))
    root = decoder.root()
    rows, columns = np.zeros(3, dtype=np.int64), np.arange(3)
    (_, first), (_, again) = (next(decoder.step(root, rows, columns)) for _ in range(2))
    assert np.array_equal(first.bits, again.bits)
    next(decoder.step(first, rows[:2], columns[:2]))
    _, third = next(decoder.step(first, np.arange(3), columns))
    _, alike = next(decoder.step(again, np.arange(3), columns))
    assert np.array_equal(third.bits, alike.bits)


# The probe


@each_architecture
def test_the_probe_finds_out_whether_the_cache_can_be_used(name: str) -> None:
    decoder = Decoder(made(name), PROMPT, COLUMNS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoder.probe([np.array([0, 1, 2, 3])])
    assert decoder.cached is ARCHITECTURES[name][2]
    told = [str(one.message) for one in caught if "without a cache" in str(one.message)]
    assert len(told) == (0 if decoder.cached else 1)
    assert all(type(made(name)).__name__ in text for text in told)
    assert 0 <= decoder.noise < 1e-3


@pytest.mark.parametrize("path", [[0], [1, 2], [0, 1, 2, 3, 4, 5]])
def test_the_probe_swaps_rows_however_few_and_short_the_paths_are(path: list[int]) -> None:
    """MiniMax is right as long as there is only one row, or one step, or rows keep their places."""
    decoder = Decoder(made("minimax"), PROMPT, COLUMNS)
    with pytest.warns(UserWarning, match=r"MiniMaxForCausalLM: .* differs by \d"):
        decoder.probe([np.array(path)])
    assert not decoder.cached


def test_noise_is_that_of_the_given_paths() -> None:
    model = made("llama")
    decoder = Decoder(model, PROMPT, COLUMNS)
    paths = [np.array([0, 1, 2]), np.array([3, 3, 3, 3, 3, 3])]
    decoder.probe(paths)
    assert 0 < decoder.noise < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_noisier_and_says_so(dtype: torch.dtype) -> None:
    model = llama(VOCABULARY, scale=0.3, num_hidden_layers=4).to(dtype)
    draw, paths = np.random.default_rng(0), 4
    decoder = Decoder(model, PROMPT, COLUMNS)
    decoder.probe([draw.integers(len(COLUMNS), size=40) for _ in range(paths)])
    assert decoder.cached
    assert 1e-4 < decoder.noise < 2
    check(decoder, model, tolerance=0.5)


def test_long_paths_of_half_precision_are_no_reason_to_refuse_the_model() -> None:
    """Rounding adds up along a path, and is larger where logits are."""
    model = llama(VOCABULARY, scale=1.0, num_hidden_layers=4, hidden_size=256).to(torch.bfloat16)
    decoder = Decoder(model, PROMPT, COLUMNS)
    draw = np.random.default_rng(0)
    decoder.probe([draw.integers(len(COLUMNS), size=60) for _ in range(4)])
    assert decoder.cached


class Changeful(nn.Module):
    """A Llama that a given function meddles with, after each forward."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner = llama(VOCABULARY)
        self.config = self.inner.config
        self.change = change

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
        logits_to_keep: int = 0,
    ) -> Any:
        output = self.inner(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )
        output.logits = self.change(output.logits)
        return output


def test_a_model_that_sees_what_follows_is_refused() -> None:
    def shift(logits: torch.Tensor) -> torch.Tensor:
        out = logits.clone()
        out[..., 3] += logits.shape[1]  # hangs on how much is scored at once
        return out

    decoder = Decoder(Changeful(shift), PROMPT, COLUMNS)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="not a causal language model"):
        decoder.probe([np.zeros(4, dtype=np.int64)])


def test_a_token_of_probability_zero_costs_infinitely_much_and_is_no_noise() -> None:
    def forbid(logits: torch.Tensor) -> torch.Tensor:
        out = logits.clone()
        out[..., COLUMNS[2]] = -math.inf
        return out

    decoder = Decoder(Changeful(forbid), PROMPT, COLUMNS)
    decoder.probe([np.array([0, 2, 1, 1])])
    assert decoder.cached
    assert decoder.noise < 1e-3
    bits = decoder.root().bits[0]
    assert math.isinf(bits[2])
    assert np.isfinite(np.delete(bits, 2)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_an_error(value: float) -> None:
    def spoil(logits: torch.Tensor) -> torch.Tensor:
        out = logits.clone()
        out[..., 11] = value  # none of the columns
        return out

    decoder = Decoder(Changeful(spoil), PROMPT, COLUMNS)
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        decoder.root()
    with pytest.raises(NotFiniteError, match="Changeful"):
        decoder.probe([np.arange(3)])


# What is refused


def test_an_encoder_decoder_is_refused() -> None:
    config = hf.T5Config(
        vocab_size=VOCABULARY, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2
    )
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        Decoder(hf.T5ForConditionalGeneration(config), PROMPT, COLUMNS)


def test_a_masked_language_model_is_refused() -> None:
    config = hf.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with pytest.raises(ValueError, match="BertForMaskedLM is not a causal language model but"):
        Decoder(hf.BertForMaskedLM(config), PROMPT, COLUMNS)


@pytest.mark.parametrize(("prompt", "columns"), [(PROMPT, [3, 39]), ([39], [3])])
def test_a_vocabulary_that_is_too_small_is_refused(prompt: list[int], columns: list[int]) -> None:
    with pytest.raises(ValueError, match=r"vocabulary of 39.*token 39 is needed"):
        Decoder(llama(39), prompt, np.array(columns))
    Decoder(llama(40), prompt, np.array(columns))


def test_a_path_beyond_the_context_is_an_error_before_the_model_is_run() -> None:
    model = llama(VOCABULARY, max_position_embeddings=5)
    decoder = Decoder(model, PROMPT, COLUMNS)
    assert decoder.context == 5
    branches = decoder.root()
    zero = np.zeros(1, dtype=np.int64)
    for _ in range(2):
        _, branches = next(decoder.step(branches, zero, zero))
    spent = decoder.forwards
    with pytest.raises(ValueError, match=r"context of 5 tokens, but 6 are needed"):
        next(decoder.step(branches, zero, zero))
    assert decoder.forwards == spent


def test_the_probe_keeps_within_the_context() -> None:
    decoder = Decoder(llama(VOCABULARY, max_position_embeddings=5), PROMPT, COLUMNS)
    decoder.probe([np.array([0, 1])])
    assert decoder.cached


def test_a_model_without_a_limit_has_no_context() -> None:
    config = hf.MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1)
    assert Decoder(hf.MambaForCausalLM(config), PROMPT, COLUMNS).context is None


# Counting and memory


@pytest.mark.parametrize("name", ["llama", "mamba", "recurrent_gemma"])
@pytest.mark.parametrize("batch_size", [2, 100])
def test_forwards_are_the_positions_that_the_model_has_computed(
    name: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, positions = made(name), []
    forward = model.forward

    @functools.wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        positions.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    decoder = ready(model, batch_size=batch_size)
    for _ in grow(decoder, 3):
        assert decoder.forwards == sum(positions)
    before = decoder.forwards
    decoder.root()
    assert decoder.forwards == before  # the prompt is run once


@pytest.mark.parametrize("name", ["llama", "recurrent_gemma"])
@pytest.mark.parametrize("drop", [True, False])
def test_the_price_of_a_step_is_what_it_takes(name: str, drop: bool) -> None:
    decoder = ready(made(name))
    for branches in grow(decoder, 3, drop=drop):
        before, n = decoder.forwards, len(branches.paths)
        list(decoder.step(branches, np.arange(n), np.zeros(n, dtype=np.int64)))
        assert decoder.forwards - before == n * decoder.price(branches)


class Narrow(Changeful):
    """Runs out of memory above some rows."""

    def __init__(self, rows: int, error: Exception) -> None:
        super().__init__(lambda logits: logits)
        self.rows, self.error = rows, error

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        use_cache: Any = None,
        logits_to_keep: int = 0,
    ) -> Any:
        if len(input_ids) > self.rows:
            raise self.error
        return super().forward(
            input_ids, attention_mask, position_ids, past_key_values, use_cache, logits_to_keep
        )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    ],
)
def test_the_chunk_is_halved_and_kept_when_memory_runs_out(error: Exception) -> None:
    model = Narrow(3, error)
    decoder = Decoder(model, PROMPT, COLUMNS, batch_size=16)
    rows, columns = np.zeros(14, dtype=np.int64), np.arange(14) % 7
    before = len(PROMPT)
    steps = list(decoder.step(decoder.root(), rows, columns))
    assert [len(place) for place, _ in steps] == [3, 3, 3, 3, 2]
    assert decoder.batch_size == 3
    assert decoder.forwards == before + 14  # what failed was not computed
    wide = Decoder(model.inner, PROMPT, COLUMNS)
    ((_, expected),) = wide.step(wide.root(), rows, columns)
    for place, branches in steps:
        assert np.abs(branches.bits - expected.bits[place]).max() < 1e-4
        assert np.array_equal(branches.paths, expected.paths[place])


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_the_probe_takes_fewer_rows_when_memory_runs_out(rows: int) -> None:
    decoder = Decoder(
        Narrow(rows, torch.OutOfMemoryError("out of memory")), PROMPT, COLUMNS, batch_size=16
    )
    decoder.probe([np.array([1, 2, 3])])
    assert decoder.cached
    assert decoder.noise < 1e-3
    assert decoder.halved == (rows < 3)  # the last of four rows is run by itself
    assert decoder.batch_size == (2 if rows < 3 else 16)


def test_what_waits_does_not_hold_the_bits_that_were_read() -> None:
    decoder = Decoder(Narrow(9, ValueError()), PROMPT, COLUMNS)
    root = decoder.root()
    ((_, branches),) = decoder.step(root, np.zeros(3, dtype=np.int64), np.arange(3))
    decoder.next_bits(branches, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))
    assert branches.bits.nbytes == 0
    assert branches.bits.base is None


def test_memory_that_does_not_suffice_for_one_row_is_an_error() -> None:
    decoder = Decoder(Narrow(0, torch.OutOfMemoryError("out of memory")), PROMPT, COLUMNS)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.root()


def test_other_errors_of_the_model_are_passed_on() -> None:
    model = Narrow(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    decoder = Decoder(model, PROMPT, COLUMNS)
    zeros = np.zeros(2, dtype=np.int64)
    with pytest.raises(RuntimeError, match="shapes"):
        list(decoder.step(decoder.root(), zeros, zeros))


def test_the_bytes_of_a_cache_are_those_of_its_keys_and_values() -> None:
    decoder = ready(made("llama"))
    for branches in grow(decoder, 3):
        rows, positions = branches.paths.shape
        heads, width, layers = 2, 8, 2
        expected = rows * (positions + len(PROMPT)) * heads * width * layers * 2 * 4
        assert branches.cache_bytes == expected
    branches.cache = None
    assert branches.cache_bytes == 0


def test_no_double_precision_tensor_of_the_whole_vocabulary_is_made() -> None:
    """Memory would be twice that of the logits."""
    made_here = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                made_here.append((out.dtype, out.numel()))
            return out

    model = llama(4000)
    decoder = Decoder(model, PROMPT, COLUMNS)
    zeros = np.zeros(5, dtype=np.int64)
    with Watch():
        list(decoder.step(decoder.root(), zeros, zeros))
    assert (torch.float32, 5 * 4000) in made_here
    assert max(size for dtype, size in made_here if dtype == torch.float64) <= 5 * len(COLUMNS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_vocabulary_is_held_once(dtype: torch.dtype) -> None:
    """1,024 branches of Gemma 3's 262,144 tokens: of all tensors only the logits are that large,
    those that torch makes inside of logsumexp included."""
    vocabulary, width = 1 << 18, dtype.itemsize
    model = llama(
        vocabulary, hidden_size=8, num_attention_heads=2, num_key_value_heads=1, intermediate_size=8
    ).to(dtype)
    decoder = Decoder(model, PROMPT, COLUMNS)
    zeros = np.zeros(1024, dtype=np.int64)
    root = decoder.root()
    steps = decoder.step(root, zeros, zeros)
    with torch.profiler.profile(profile_memory=True) as profile:
        place, branches = next(steps)
    logits = len(place) * vocabulary * width
    made = [event.self_cpu_memory_usage for event in profile.events()]
    assert logits == 128 * vocabulary * width
    assert [size for size in made if size > logits // 2] == [logits]
    assert branches.bits.shape == (128, len(COLUMNS))


def test_the_batch_is_smaller_for_large_vocabularies_and_many_columns() -> None:
    assert Decoder(llama(VOCABULARY), PROMPT, COLUMNS).batch_size == 512
    large = llama(200_000, hidden_size=8, num_attention_heads=2, num_key_value_heads=1)
    assert Decoder(large, PROMPT, COLUMNS).batch_size == (1 << 25) // 200_000
    assert Decoder(large, PROMPT, np.arange(100_000)).batch_size == (1 << 20) // 100_000
    assert Decoder(large, PROMPT, COLUMNS, batch_size=9).batch_size == 9


# Wrappers


def test_a_compiled_model_is_looked_through() -> None:
    model = made("bamba")  # silently wrong without mask and positions
    compiled = torch.compile(model)
    with torch.compiler.set_stance("force_eager"):  # the wrapper, without the compiler's seconds
        decoder = ready(compiled)
        assert decoder.cached
        check(decoder, model)


class Parallel(nn.Module):
    """As DDP wraps a model: no embeddings of its own, and any arguments."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def test_a_wrapped_model_is_looked_through() -> None:
    decoder = ready(Parallel(made("bamba")))
    assert decoder.cached
    check(decoder, made("bamba"))


# Leaving things as they were


@pytest.mark.parametrize("fails", [True, False])
def test_modes_and_random_states_are_put_back(fails: bool) -> None:
    model = llama(VOCABULARY)
    model.train()
    model.model.layers[0].eval()  # as when a part is frozen
    modes = [module.training for module in model.modules()]
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    try:
        with undisturbed(model):
            assert not any(module.training for module in model.modules())
            random.random(), np.random.rand(), torch.rand(1)
            assert not model(torch.tensor([[1]])).logits.requires_grad
            if fails:
                raise KeyError("something")
    except KeyError:
        assert fails
    assert [module.training for module in model.modules()] == modes
    after = random.random(), np.random.rand(), float(torch.rand(1))
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    assert after == (random.random(), np.random.rand(), float(torch.rand(1)))


def test_gradients_are_as_before_after_a_measurement() -> None:
    model = llama(VOCABULARY)
    with torch.enable_grad():
        with undisturbed(model):
            assert not torch.is_grad_enabled()
        assert torch.is_grad_enabled()
