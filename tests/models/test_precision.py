"""Half precision, weights of 8 and 4 bits: figures are right for the numbers that the model gives,
rounding is reported, and nothing that is not a number gets through."""

from __future__ import annotations

import importlib
import logging
import math
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from transformers import (
    BitsAndBytesConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.measure import measure_exposure
from hf_exposure.exposure.results import Exposures
from hf_exposure.models.causal import NotFiniteError
from hf_exposure.models.decoder import Decoder
from hf_exposure.models.precision import agree
from hf_exposure.models.undisturbed import undisturbed
from hf_exposure.training.callback import ExposureCallback
from hf_exposure.tree.tokens import TokenTree
from tests.selection import rest_slow
from tests.tiny import TOKENIZERS, corpus, llama

TOKENIZER = TOKENIZERS["digits_one_by_one"]()
NUMBER = SecretFormat("The random number is {secret}.", secret=r"[0-9]{3}")
CANARIES = Canaries.generate(NUMBER, repetitions=[0, 1], per_repetition=3, seed=3)
SECRETS = list(NUMBER.enumerate())
DIGITS = [TOKENIZER(digit, add_special_tokens=False)["input_ids"][0] for digit in "0123456789"]
each_precision = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["single", "bfloat16", "float16"]
)


def brute_force(model: Any) -> dict[str, float]:
    """Log-perplexities of all secrets, in bits, from full forwards without any of our code: the
    logits as the model gives them, all else in double precision."""
    ids = torch.tensor(TOKENIZER([NUMBER.render(secret) for secret in SECRETS])["input_ids"])
    begin = len(TOKENIZER(NUMBER.prefix)["input_ids"])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    scores = logits[:, begin - 1 : -1].double().log_softmax(-1)
    nats = -scores.gather(2, ids[:, begin:, None])[:, :, 0]
    return dict(zip(SECRETS, (nats.sum(1) / math.log(2)).tolist(), strict=True))


def exact(model: Any, canaries: Canaries = CANARIES) -> Exposures:
    return measure_exposure(model, TOKENIZER, canaries, method="exact")


def details(exposures: Exposures) -> FormatDetails:
    return exposures.formats[NUMBER]


def assert_right(exposures: Exposures, costs: dict[str, float], atol: float) -> None:
    """Costs are those of brute force, and so are ranks, up to what is reported as rounding."""
    inserted = {e.canary.secret for e in exposures if e.canary.inserted}
    assert len(exposures) == len(CANARIES)
    for e in exposures:
        own = costs[e.canary.secret]
        assert e.log_perplexity == pytest.approx(own, abs=atol)
        others = [c for s, c in costs.items() if s not in inserted | {e.canary.secret}]
        rank = 1 + sum(cost <= own for cost in others)
        assert e.rank_low <= rank <= e.rank_high
        tie = details(exposures).tie_bits
        assert e.rank_high - e.rank_low <= 1 + sum(abs(cost - own) <= 2 * tie for cost in others)


# Half precision


@each_precision
@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_figures_are_those_of_the_numbers_that_the_model_gives(
    dtype: torch.dtype, scale: float
) -> None:
    model = llama(len(TOKENIZER), scale=scale).to(dtype)
    exposures = exact(model)
    assert details(exposures).cached
    assert details(exposures).tie_bits >= 4 * details(exposures).noise_bits
    assert_right(exposures, brute_force(model), atol=1e-3 if dtype == torch.float32 else 0.02)


def test_ranks_in_single_precision_are_those_of_the_same_weights_in_double() -> None:
    model = llama(len(TOKENIZER))
    exposures = exact(model)
    assert_right(exposures, brute_force(model.double()), atol=1e-3)


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.02), (torch.float16, 0.002)])
def test_log_perplexities_in_half_precision_are_near_those_of_the_same_weights_in_double(
    dtype: torch.dtype, share: float
) -> None:
    model = llama(len(TOKENIZER)).to(dtype)
    found = {e.canary.secret: e.log_perplexity for e in exact(model)}
    expected = brute_force(model.double())
    for secret, bits in found.items():
        assert bits == pytest.approx(expected[secret], rel=share)


def test_log_probabilities_are_computed_in_single_precision_from_the_logits() -> None:
    """In bfloat16 itself a sum over the vocabulary would be off by much more."""
    model = llama(len(TOKENIZER)).to(torch.bfloat16)
    ids = torch.tensor(TOKENIZER([c.text for c in CANARIES])["input_ids"])
    begin = len(TOKENIZER(NUMBER.prefix)["input_ids"])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, begin - 1 : -1]
    assert logits.dtype == torch.bfloat16
    half = -logits.log_softmax(-1).gather(2, ids[:, begin:, None]).double().sum((1, 2))
    found = np.array([e.log_perplexity for e in exact(model)])
    right = np.array([brute_force(model)[c.secret] for c in CANARIES])
    assert np.abs(found - right).max() < 0.02
    assert np.abs(half.numpy() / math.log(2) - right).max() > 0.1


@each_precision
def test_the_interval_of_a_rank_among_ties_has_both_ends(dtype: torch.dtype) -> None:
    """Digits that look alike to the model make ten secrets equally likely, or all of them."""
    model = llama(len(TOKENIZER))
    for alike in (DIGITS[3:5], DIGITS):
        with torch.no_grad():
            for weight in (model.lm_head.weight, model.model.embed_tokens.weight):
                weight[alike] = weight[alike[0]].clone()
        costs = brute_force(model.to(dtype))
        canaries = Canaries([Canary(NUMBER, "343", 1), Canary(NUMBER, "190", 0)])
        exposures = exact(model, canaries)
        tie = max(1e-3, details(exposures).tie_bits)
        for e in exposures:
            others = [cost for s, cost in costs.items() if s not in ("343", e.canary.secret)]
            own = costs[e.canary.secret]
            below = sum(cost < own - tie for cost in others)
            equal = sum(abs(cost - own) <= tie for cost in others)
            assert equal >= (0 if len(alike) == 2 and e.canary.secret == "190" else 7)
            if len(alike) == len(DIGITS):
                assert (below, equal) == (0, len(others))
            # Ties count against the canary, and the interval has all places that it may have.
            assert e.rank == 1 + below + equal
            assert e.rank_low <= 1 + below
            assert e.rank_high >= 1 + below + equal
            assert e.ties == equal


def wrapped(model: Any) -> Any:
    """As accelerate prepares a model for a training with bf16=True."""
    forward = torch.autocast("cpu", torch.bfloat16)(type(model).forward)
    model.forward = types.MethodType(convert_outputs_to_fp32(forward), model)
    return model


def test_mixed_precision_is_measured_as_it_trains() -> None:
    model = wrapped(llama(len(TOKENIZER)))
    exposures = exact(model)
    assert_right(exposures, brute_force(model), atol=0.02)
    plain = llama(len(TOKENIZER))
    with torch.autocast("cpu", torch.bfloat16):
        outside = exact(plain)
    assert [e.log_perplexity for e in outside] == pytest.approx(
        [e.log_perplexity for e in exposures], abs=0.02
    )
    assert [e.log_perplexity for e in outside] != [e.log_perplexity for e in exact(plain)]


@pytest.mark.parametrize("mixed", [False, True])
def test_mixed_precision_shows_in_what_rounding_is_allowed(mixed: bool) -> None:
    """Its weights are in single precision, so that only the logits tell."""
    model = llama(len(TOKENIZER))
    tree = TokenTree(NUMBER, TOKENIZER)
    decoder = Decoder(wrapped(model) if mixed else model, tree.prompt, tree.token_ids)
    with undisturbed(model):
        decoder.probe(tree.random_paths(4))
    one, off = np.full((1, 1), 20.0), np.full((1, 1), 20.3)
    assert agree(off, one, decoder.precision) == mixed


# What is no number


def test_a_model_that_gives_nan_for_one_of_many_rows_is_refused() -> None:
    model = llama(len(TOKENIZER))
    with torch.no_grad():
        model.model.embed_tokens.weight[DIGITS[7]] = math.nan
    canaries = Canaries([Canary(NUMBER, "123", 1), Canary(NUMBER, "456", 0)])
    for options in ({"method": "exact"}, {"samples": 300}, {"method": "sampling"}):
        with pytest.raises(NotFiniteError, match="NaN"):
            measure_exposure(model, TOKENIZER, canaries, **options)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_layer_that_gives_nan_for_one_row_of_a_batch_is_refused(rows: int) -> None:
    model = llama(len(TOKENIZER))

    def spoil(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        if len(output) > rows:
            output = output.clone()
            output[rows, -1, 0] = math.nan
        return output

    model.model.norm.register_forward_hook(spoil)
    with pytest.raises(NotFiniteError, match="NaN"):
        exact(model)


def test_an_overflow_in_half_precision_is_refused_and_fits_bfloat16() -> None:
    model = llama(len(TOKENIZER))
    with torch.no_grad():
        model.lm_head.weight[DIGITS] *= 1e4  # logits beyond 65,504, the largest of float16
    assert all(math.isfinite(e.log_perplexity) for e in exact(model.to(torch.bfloat16)))
    with pytest.raises(NotFiniteError, match="precision"):
        exact(model.to(torch.float16))


def test_an_overflow_during_a_training_is_warned_of_and_logged_as_nan(tmp_path: Path) -> None:
    class Overflow(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    kwargs["model"].lm_head.weight.fill_(3e38)

    ids = [torch.tensor(TOKENIZER(line)["input_ids"][:8]) for line in corpus()[:8]]
    rows = [{"input_ids": row, "labels": row} for row in ids]
    callback = ExposureCallback(CANARIES, samples=50)
    trainer = Trainer(
        model=llama(len(TOKENIZER)),
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=4,
            eval_strategy="steps",
            eval_steps=1,
            bf16=True,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=TOKENIZER,
        callbacks=[callback, Overflow()],
    )
    with pytest.warns(UserWarning, match="could not be measured at step 2"):
        trainer.train()
    first, second = (r for r in trainer.state.log_history if "eval_exposure" in r)
    assert math.isfinite(first["eval_exposure"]) and math.isnan(second["eval_exposure"])


# 8 and 4 bits


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers are large enough for blocks of 4-bit weights."""
    pytest.importorskip("bitsandbytes")
    # It tells of every cast of every layer.
    for name in ("bitsandbytes.autograd._functions", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folder = tmp_path_factory.mktemp("quantized")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4}
    llama(len(TOKENIZER), **sizes).save_pretrained(folder)
    return folder


QUANTIZED: dict[str, dict[str, Any]] = {
    "8-bit": {"load_in_8bit": True},
    "4-bit": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
    "nf4-bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.bfloat16,
        "bnb_4bit_use_double_quant": True,
    },
}


def quantized(folder: Path, kind: str, dtype: torch.dtype = torch.float32) -> Any:
    return LlamaForCausalLM.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(**QUANTIZED[kind]),
        device_map="cpu",
        dtype=dtype,
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["single", "bfloat16"])
@pytest.mark.parametrize("kind", rest_slow(QUANTIZED, 1))
def test_weights_of_few_bits_are_measured_with_the_cache_as_brute_force_does(
    stored: Path, kind: str, dtype: torch.dtype
) -> None:
    bits = importlib.import_module("bitsandbytes.nn")
    model = quantized(stored, kind, dtype)
    linear = bits.Linear8bitLt if kind == "8-bit" else bits.Linear4bit
    assert sum(isinstance(part, linear) for part in model.modules()) == 14
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*without a cache")
        exposures = exact(model)
    report = details(exposures)
    assert report.cached
    costs = brute_force(model)
    # Where anything is computed in bfloat16, a number that is rounded the other way moves a figure
    # by some hundredths of a bit, seldom and by chance: ties have to reach so far.
    apart = [abs(e.log_perplexity - costs[e.canary.secret]) for e in exposures]
    assert max(apart) <= report.tie_bits
    single = kind == "4-bit" and dtype == torch.float32
    assert single == (report.tie_bits < 1e-3)
    assert_right(exposures, costs, atol=1e-3 if single else 0.5)
    plain = exact(LlamaForCausalLM.from_pretrained(stored))
    assert (
        max(abs(a.log_perplexity - b.log_perplexity) for a, b in zip(plain, exposures, strict=True))
        > 0.05
    )


@pytest.mark.slow
def test_lora_on_weights_of_4_bits_is_measured_as_brute_force_does(stored: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = quantized(stored, "4-bit")
    adapted = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"])
    )
    before = [e.log_perplexity for e in exact(adapted)]
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    exposures = exact(adapted)
    assert_right(exposures, brute_force(adapted.eval()), atol=1e-2)
    assert [e.log_perplexity for e in exposures] != pytest.approx(before, abs=0.1)
