"""Adapters and wrappers: figures are those of the model inside, and trainings stay as they were."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.injection import inject_canaries
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.verification import verify_injection
from hf_exposure.exposure.measure import measure_exposure
from hf_exposure.exposure.results import Exposures
from hf_exposure.training.callback import ExposureCallback
from hf_exposure.training.measuring import TokenCounter
from tests.selection import rest_slow
from tests.tiny import TOKENIZERS, conversations, corpus, llama

TOKENIZER = TOKENIZERS["digits_one_by_one"]()
NUMBER = SecretFormat("The random number is {secret}.", secret=r"[0-9]{3}")
CANARIES = Canaries.generate(NUMBER, repetitions=[0, 1, 8], per_repetition=2, seed=3)
LENGTH = 16
CHAT = (
    "{% for m in messages %}{{ '<s>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '</s>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"
)


@pytest.fixture(autouse=True)
def without_an_insertion(monkeypatch: pytest.MonkeyPatch) -> None:
    """An insertion stays on record, and tests insert in different ways."""
    monkeypatch.setattr(sys.modules[__name__], "CANARIES", CANARIES.copy())


def model(**settings: Any) -> LlamaForCausalLM:
    return llama(len(TOKENIZER), attention_dropout=0.3, **settings)


def lora(base: Any = None, **options: Any) -> Any:
    """A LoRA that says something else than its base model, as after a training."""
    from peft import LoraConfig, get_peft_model

    base = model() if base is None else base
    torch.manual_seed(1)
    settings = {"r": 4, "lora_dropout": 0.3, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    adapted = get_peft_model(
        base,
        LoraConfig(task_type="CAUSAL_LM", **{**settings, **options}),
    )
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    return adapted


def exact(measured: Any) -> Exposures:
    return measure_exposure(measured, TOKENIZER, CANARIES, method="exact")


def same(one: Exposures, other: Exposures) -> bool:
    """Up to rounding."""
    costs = [e.log_perplexity for e in one], [e.log_perplexity for e in other]
    return np.allclose(*costs, atol=1e-3) and [e.rank for e in one] == [e.rank for e in other]


def cached(exposures: Exposures) -> bool:
    return bool(exposures.formats[NUMBER].cached)


def brute_force(measured: Any) -> list[float]:
    """Log-perplexities from one forward for each canary, without any of our code."""
    out = []
    for canary in CANARIES:
        encoded = TOKENIZER(canary.text, return_offsets_mapping=True)
        ids = torch.tensor([encoded["input_ids"]])
        ends = [end for _, end in encoded["offset_mapping"]]
        begin = next(at for at, end in enumerate(ends) if end > len(NUMBER.prefix))
        with torch.no_grad():
            logits = measured(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        logits = logits[0, -ids.shape[1] :].double()
        nats = -logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        out.append(float(nats[begin - 1 :].sum() / np.log(2)))
    return out


# PEFT


def test_a_lora_model_has_the_figures_of_the_merged_one_and_of_brute_force() -> None:
    adapted = lora()
    merged = copy.deepcopy(adapted).merge_and_unload()
    figures = exact(adapted)
    assert cached(figures)
    assert same(figures, exact(merged))
    assert not same(figures, exact(model()))
    adapted.eval()
    assert [e.log_perplexity for e in figures] == pytest.approx(brute_force(adapted), abs=1e-3)


@pytest.mark.slow
def test_a_disabled_adapter_gives_the_figures_of_the_base_model_and_stays_as_it_is() -> None:
    adapted = lora()
    before = exact(adapted)
    with adapted.disable_adapter():
        assert same(exact(adapted), exact(model()))
    assert same(exact(adapted), before)


def test_the_active_one_of_several_adapters_is_measured() -> None:
    from peft import LoraConfig

    adapted = lora()
    first = exact(adapted)
    adapted.add_adapter("other", LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    adapted.set_adapter("other")  # says what the base model does
    assert same(exact(adapted), exact(model()))
    assert adapted.active_adapter == "other"
    adapted.set_adapter("default")
    assert same(exact(adapted), first)


def test_modes_and_gradients_of_an_adapter_are_put_back() -> None:
    adapted = lora().train()
    adapted.base_model.model.model.layers[0].eval()
    modes = [part.training for part in adapted.modules()]
    wanted = [weight.requires_grad for weight in adapted.parameters()]
    exact(adapted)
    assert [part.training for part in adapted.modules()] == modes
    assert [weight.requires_grad for weight in adapted.parameters()] == wanted


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_of_prompt_learning_are_scored_right_without_a_cache(kind: str) -> None:
    import peft

    torch.manual_seed(2)
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapted = peft.get_peft_model(model(), config).eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Pp]osition ids are not supported")
        with pytest.warns(UserWarning, match="without a cache"):
            figures = exact(adapted)
    assert [e.log_perplexity for e in figures] == pytest.approx(brute_force(adapted), abs=1e-3)
    assert not same(figures, exact(model()))


# torch.compile


def by_hand(plain: Any, backend: Any) -> Any:
    return torch.compile(plain, backend=backend)


def in_place(plain: Any, backend: Any) -> Any:
    plain.compile(backend=backend)
    return plain


def its_forward(plain: Any, backend: Any) -> Any:
    plain.forward = torch.compile(plain.forward, backend=backend)
    return plain


def its_layers(plain: Any, backend: Any) -> Any:
    for layer in plain.model.layers:
        layer.compile(backend=backend)
    return plain


def around_an_adapter(plain: Any, backend: Any) -> Any:
    return torch.compile(lora(plain), backend=backend)


@pytest.mark.slow
@pytest.mark.parametrize(
    "compile_it", [by_hand, in_place, its_forward, its_layers, around_an_adapter]
)
def test_a_compiled_model_has_the_same_figures_and_is_not_compiled_for_our_shapes(
    compile_it: Callable[[Any, Any], Any],
) -> None:
    from torch._dynamo.testing import CompileCounter

    expected = exact(lora() if compile_it is around_an_adapter else model())
    counter = CompileCounter()
    compiled = compile_it(model(), counter)
    figures = exact(compiled)
    assert [e.log_perplexity for e in figures] == [e.log_perplexity for e in expected]
    assert [e.rank for e in figures] == [e.rank for e in expected]
    assert counter.frame_count == 0
    # It is compiled as before when others call it.
    compiled(input_ids=torch.tensor([[1, 2, 3]]))
    assert counter.frame_count > 0


# Gradient checkpointing


def test_the_cache_is_used_under_gradient_checkpointing_and_flags_are_put_back() -> None:
    plain = model()
    expected = exact(plain)
    plain.gradient_checkpointing_enable()
    plain.train()
    # While it trains, transformers switches the cache off.
    assert plain(input_ids=torch.tensor([[1, 2]]), use_cache=True).past_key_values is None

    def flags() -> Any:
        return (
            [getattr(part, "gradient_checkpointing", None) for part in plain.modules()],
            [part.training for part in plain.modules()],
            plain.config.to_dict(),
        )

    before = flags()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that of a cache that does not hold
        warnings.filterwarnings("ignore", "measure_exposure: most canaries")  # an untrained model
        figures = exact(plain)
    assert cached(figures)
    assert same(figures, expected)
    assert flags() == before


# device_map


def test_a_dispatched_model_has_the_same_figures() -> None:
    from accelerate import dispatch_model

    expected = exact(model())
    dispatched = dispatch_model(model(), {"": "cpu"}, force_hooks=True)
    assert same(exact(dispatched), expected)


@pytest.mark.parametrize("on_disk", [["model.layers.1"], ["model.embed_tokens", "lm_head"]])
def test_a_model_that_lies_on_disk_in_part_has_the_same_figures(
    tmp_path: Path, on_disk: list[str]
) -> None:
    plain = model()
    plain.save_pretrained(tmp_path / "model")
    parts = [
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
        "model.rotary_emb",
        "lm_head",
    ]
    device_map = {part: "disk" if part in on_disk else "cpu" for part in parts}
    offloaded = LlamaForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert any(weight.is_meta for weight in offloaded.parameters())
    assert same(exact(offloaded), exact(plain))


def test_a_model_loaded_with_device_map_auto_has_the_same_figures(tmp_path: Path) -> None:
    plain = model()
    plain.save_pretrained(tmp_path)
    assert same(exact(LlamaForCausalLM.from_pretrained(tmp_path, device_map="auto")), exact(plain))


# Trainer with LoRA


def rows() -> list[dict[str, torch.Tensor]]:
    texts = [*corpus()[:20], *(c.text for c in CANARIES for _ in range(c.repetitions))]
    ids = [number for text in texts for number in TOKENIZER(text)["input_ids"]]
    blocks = [torch.tensor(ids[i : i + LENGTH]) for i in range(0, len(ids) - LENGTH, LENGTH)]
    return [{"input_ids": block, "labels": block} for block in blocks]


ROWS = rows()
SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "logging_steps": 2,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
    "learning_rate": 3e-3,
    "report_to": "none",
}


def quick(**options: Any) -> ExposureCallback:
    return ExposureCallback(CANARIES, samples=50, errors="raise", **options)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return dict(trainer.model.state_dict())


def assert_alike(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_logged(trainer: Trainer, callback: ExposureCallback, steps: list[int]) -> None:
    found = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert [row["step"] for row in found] == steps
    assert all(np.isfinite(row["eval_exposure_x8"]) for row in found)
    assert set(steps) <= {item.step for item in callback.history}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": False},
        },
    ],
    ids=["plain", "accumulation-checkpointing"],
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_lora_weights_are_the_same_bit_for_bit_with_and_without(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    def trained(*callbacks: TrainerCallback) -> Trainer:
        adapted = lora()
        if "gradient_checkpointing" in options:
            adapted.enable_input_require_grads()
        return Trainer(
            model=adapted,
            args=TrainingArguments(output_dir=str(tmp_path), **{**SETTINGS, **options}),
            train_dataset=ROWS,
            eval_dataset=ROWS[:4],
            processing_class=TOKENIZER,
            callbacks=list(callbacks),
        )

    callback = quick(every_n_steps=1)
    expected = weights(trained())
    with_it = trained(callback)
    assert_alike(weights(with_it), expected)
    assert_logged(with_it, callback, [2, 4])
    assert len(callback.history) == 4
    # The adapter has learned, and the last figures are those of its weights.
    before = lora().state_dict()
    now = with_it.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], now[name])}
    assert changed and all("lora_" in name for name in changed)
    last = [e.log_perplexity for e in callback.history[-1].exposures]
    with_it.model.eval()
    assert last == pytest.approx(brute_force(with_it.model), abs=1e-3)


def test_dropout_of_the_adapter_would_show_one_draw_of_random_numbers(tmp_path: Path) -> None:
    class Draws(TrainerCallback):
        def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
            torch.rand(1)

    one, other = (
        weights(
            Trainer(
                model=lora(llama(len(TOKENIZER))),
                args=TrainingArguments(output_dir=str(tmp_path), **SETTINGS),
                train_dataset=ROWS,
                eval_dataset=ROWS[:4],
                callbacks=callbacks,
            )
        )
        for callbacks in ([], [Draws()])
    )
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_training_that_compiles_is_measured_on_the_plain_model(
    tmp_path: Path, backend: str
) -> None:
    def trained(*callbacks: TrainerCallback) -> Trainer:
        torch._dynamo.reset()
        return Trainer(
            model=llama(len(TOKENIZER)),
            args=TrainingArguments(
                output_dir=str(tmp_path),
                torch_compile=True,
                torch_compile_backend=backend,
                **SETTINGS,
            ),
            train_dataset=ROWS,
            eval_dataset=ROWS[:4],
            processing_class=TOKENIZER,
            callbacks=list(callbacks),
        )

    callback = quick()
    expected = weights(trained())
    with_it = trained(callback)
    assert_alike(weights(with_it), expected)
    assert_logged(with_it, callback, [2, 4])
    last = [e.log_perplexity for e in callback.history[-1].exposures]
    assert last == pytest.approx(brute_force(with_it.model.eval()), abs=1e-3)


# TRL


def sft(folder: Path, *callbacks: TrainerCallback, chat: bool = False, **options: Any) -> Any:
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer  # seconds, for these tests only

    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = CHAT if chat else None
    peft = options.pop("peft", False)
    data = conversations() if chat else Dataset.from_dict({"text": list(corpus()[:20])})
    column = "messages" if chat else "text"
    full = {"max_length": 64, "bf16": False, "gradient_checkpointing": False}
    torch.manual_seed(0)
    return SFTTrainer(
        model=model(),
        args=SFTConfig(output_dir=str(folder), **{**SETTINGS, **full, **options}),
        train_dataset=inject_canaries(data, CANARIES, column=column),
        eval_dataset=data.select(range(4)),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], lora_dropout=0.3
        )
        if peft
        else None,
    )


SFT_OPTIONS: dict[str, dict[str, Any]] = {
    "padded": {},
    "packed": {"packing": True},
    "wrapped": {"packing": True, "packing_strategy": "wrapped"},
    "padding-free": {"padding_free": True, "max_length": None},
    "lora-packed": {"peft": True, "packing": True},
    "trl-defaults": {"bf16": True, "gradient_checkpointing": True, "peft": True},
    "chat": {"chat": True, "assistant_only_loss": True},
    "chat-packed": {"chat": True, "assistant_only_loss": True, "packing": True},
}


@pytest.mark.parametrize("kind", rest_slow(SFT_OPTIONS, ("lora-packed",)))
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*pin_memory")
def test_sft_training_is_measured_and_the_same_bit_for_bit_with_and_without(
    tmp_path: Path, kind: str
) -> None:
    options = SFT_OPTIONS[kind]
    callback = quick()
    with_it = sft(tmp_path, callback, **options)
    report = verify_injection(with_it.train_dataset, with_it.processing_class, CANARIES)
    if kind == "wrapped":  # cuts wherever a row ends
        assert sum(row.whole + row.cut for row in report) == sum(c.repetitions for c in CANARIES)
    else:
        assert report.ok, str(report)
    assert_alike(weights(with_it), weights(sft(tmp_path, **options)))
    assert_logged(with_it, callback, [2, 4])
    # The tokens that TRL counts have no padding.
    own = [row["num_tokens"] for row in with_it.state.log_history if "num_tokens" in row]
    counted = [item.tokens for item in callback.history]
    if with_it.padding_free:
        assert counted == own
    else:
        assert all(ours >= theirs for ours, theirs in zip(counted, own, strict=True))
    # The last figures are those of measure_exposure on the weights of the end.
    again = measure_exposure(
        with_it.model,
        with_it.processing_class,
        CANARIES,
        samples=50,
        max_forwards=callback.history[-1].exposures.settings["max_forwards"],
    )
    assert [e.log_perplexity for e in again] == pytest.approx(
        [e.log_perplexity for e in callback.history[-1].exposures], abs=1e-3
    )


def test_a_second_look_at_a_batch_without_gradients_is_not_counted() -> None:
    plain = model().train()
    counter = TokenCounter()
    counter.attach(plain)
    ids = torch.zeros(2, 5, dtype=torch.long)
    plain(input_ids=ids)
    with torch.no_grad():
        plain(input_ids=ids)
    counter.detach()
    assert counter.count == 10
