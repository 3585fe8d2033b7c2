from __future__ import annotations

import copy
import functools
import inspect
import json
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dp_accounting
import mpmath
import numpy as np
import pytest
import torch
from datasets import Dataset
from dp_accounting import pld, rdp
from scipy import stats
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    HfArgumentParser,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.history import History
from hf_exposure.reports.cards import privacy_section, rounded_up
from hf_exposure.training.callback import ExposureCallback
from hf_exposure.training.private.accounting import (
    ORDERS,
    group_epsilon,
    noise_for_epsilon,
    spent_epsilon,
)
from hf_exposure.training.private.arguments import PrivacyArguments
from hf_exposure.training.private.batches import PoissonBatches
from hf_exposure.training.private.per_sample import PerSampleGradients, row_losses
from hf_exposure.training.private.spending import PRIVACY_FILE
from hf_exposure.training.private.trainer import PrivateTrainer
from tests.architectures import ARCHITECTURES, make
from tests.processes import python
from tests.selection import rest_slow
from tests.tiny import TOKENIZERS, corpus, llama

TOKENIZER = TOKENIZERS["digits_one_by_one"]()
LENGTH = 12
HUGE = 1e6  # a norm that nothing reaches


def make_rows(count: int = 24) -> list[dict[str, list[int]]]:
    """Lines of different lengths, so that batches are padded."""
    lines = [TOKENIZER(line)["input_ids"] for line in corpus()[:count]]
    return [{"input_ids": ids[: LENGTH - i % 4]} for i, ids in enumerate(lines)]


ROWS = make_rows()


class Collator(DataCollatorForLanguageModeling):
    """Notes the rows of each batch."""

    def __init__(self) -> None:
        super().__init__(TOKENIZER, mlm=False)
        self.seen: list[list[list[int]]] = []

    def __call__(self, rows: list[Any], **options: Any) -> Any:  # type: ignore[override]
        self.seen.append([row["input_ids"] for row in rows])
        return super().__call__(rows, **options)


class Watch(TrainerCallback):
    """Notes the gradients that the optimizer is given, and the weights after each step."""

    def __init__(self) -> None:
        self.grads: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.grads.append(flat(p.grad for p in model.parameters() if p.requires_grad))

    def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.weights.append(weights(model))


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([t.detach().flatten() for t in tensors]).clone()


def weights(model: nn.Module) -> torch.Tensor:
    return flat(p for p in model.parameters() if p.requires_grad)


def make_model(**settings: Any) -> LlamaForCausalLM:
    return llama(len(TOKENIZER), **{"hidden_size": 16, "intermediate_size": 24, **settings})


def of_kind(name: str) -> Any:
    """A model of that architecture, without dropout, so that a step can be computed again."""
    model = make(ARCHITECTURES[name])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def make_args(folder: Path, **options: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "report_to": "none",
        "optim": "sgd",
        "lr_scheduler_type": "constant",
    }
    return TrainingArguments(**{**settings, **options})


def make_trainer(
    folder: Path,
    *callbacks: TrainerCallback,
    model: Any = None,
    privacy: dict[str, Any] | None = None,
    rows: Any = None,
    collator: Any = None,
    kind: type[PrivateTrainer] = PrivateTrainer,
    trainer_options: dict[str, Any] | None = None,
    **options: Any,
) -> PrivateTrainer:
    settings = {"noise_multiplier": 1.0, "noise_seed": 5, **(privacy or {})}
    if "target_epsilon" in settings:
        del settings["noise_multiplier"]
    return kind(
        model=make_model() if model is None else model,
        args=make_args(folder, **options),
        privacy=PrivacyArguments(**settings),
        train_dataset=ROWS if rows is None else rows,
        processing_class=TOKENIZER,
        data_collator=collator or DataCollatorForLanguageModeling(TOKENIZER, mlm=False),
        callbacks=list(callbacks),
        **(trainer_options or {}),
    )


def looped(model: Any, ids: list[list[int]]) -> torch.Tensor:
    """Each row's gradient (rows, parameters), by the model's own loss of that row alone."""
    model = copy.deepcopy(model).train()
    found = []
    for row in ids:
        model.zero_grad()
        tensor = torch.tensor([row])
        model(input_ids=tensor, labels=tensor).loss.backward()
        found.append(flat(p.grad for p in model.parameters() if p.requires_grad))
    return torch.stack(found) if found else torch.zeros(0, len(weights(model)))


def clipped(grads: torch.Tensor, norm: float) -> torch.Tensor:
    return grads * (norm / grads.norm(dim=1, keepdim=True)).clamp(max=1.0)


def batches_seen(collator: Collator, trainer: PrivateTrainer) -> list[list[list[int]]]:
    """The rows of each step, known from the sampler and checked against what was collated."""
    loader: Any = trainer.get_train_dataloader()
    sampler: PoissonBatches = loader.batch_sampler
    drawn = [sampler.batch(step).tolist() for step in range(trainer.private_steps)]
    rows = [[ROWS[i]["input_ids"] for i in batch] for batch in drawn]
    collated = [row for batch in collator.seen for row in batch]
    for batch in rows:
        assert all(row in collated for row in batch)
    return rows


# A real step: clipping


@pytest.mark.parametrize("norm", rest_slow([1.0, 0.05, HUGE], 1))
@pytest.mark.parametrize("method", ["hooks", "functorch", "ghost", "loop"])
def test_a_step_sums_what_a_loop_over_rows_clips(tmp_path: Path, norm: float, method: str) -> None:
    model, collator, watch = make_model(), Collator(), Watch()
    before = copy.deepcopy(model)
    trainer = make_trainer(
        tmp_path,
        watch,
        model=model,
        collator=collator,
        max_steps=1,
        privacy={
            "noise_multiplier": 0.0,
            "per_sample_max_grad_norm": norm,
            "per_sample": method,
            "max_physical_batch_size": 3,
        },
    )
    trainer.train()
    (ids,) = batches_seen(collator, trainer)
    rows = looped(before, ids)
    norms = rows.norm(dim=1)
    assert len(ids) > 3 and (norms > 0.05).all() and (norms < HUGE).all()
    expected = clipped(rows, norm).sum(dim=0) / 8
    assert torch.allclose(watch.grads[0], expected, rtol=1e-4, atol=1e-6 * expected.abs().max())
    assert torch.allclose(weights(model), weights(before) - 1e-2 * expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_a_padding_token_within_a_text_is_trained_as_pytorch_does(
    tmp_path: Path, tied: bool
) -> None:
    """Texts end in the token that they are padded with, and PyTorch gives its embedding nothing."""
    end = TOKENIZER.pad_token_id
    rows = [{"input_ids": [end, *row["input_ids"][:-1], end]} for row in ROWS]
    rows = [{**row, "labels": row["input_ids"]} for row in rows]
    trained = []
    for method in ("hooks", "loop") if tied else ("hooks", "loop", "ghost"):
        model = make_model(pad_token_id=end, tie_word_embeddings=tied)
        privacy = {"noise_multiplier": 0.0, "per_sample": method}
        make_trainer(tmp_path, model=model, rows=rows, privacy=privacy).train()
        trained.append(weights(model))
    assert not torch.allclose(trained[0], weights(make_model(tie_word_embeddings=tied)))
    assert all(torch.allclose(trained[0], other, atol=1e-6) for other in trained[1:])


@pytest.mark.slow
def test_no_row_adds_more_than_the_norm_it_is_clipped_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[torch.Tensor] = []
    add = PerSampleGradients.add

    def watched(self: PerSampleGradients, batch: dict[str, Any]) -> float:
        before = flat(p.summed_grad for p in self.names)
        loss = add(self, batch)
        assert len(batch["labels"]) == 1
        added.append(flat(p.summed_grad for p in self.names) - before)
        return loss

    monkeypatch.setattr(PerSampleGradients, "add", watched)
    model, collator = make_model(), Collator()
    before = copy.deepcopy(model)
    trainer = make_trainer(
        tmp_path,
        model=model,
        collator=collator,
        max_steps=1,
        privacy={"per_sample_max_grad_norm": 2.0, "max_physical_batch_size": 1},
    )
    trainer.train()
    norms = torch.stack(added).norm(dim=1)
    truth = looped(before, batches_seen(collator, trainer)[0]).norm(dim=1)
    assert (truth > 2.0).any()  # so that there was something to clip
    assert (norms <= 2.0 * (1 + 1e-5)).all()
    # Not less than the norm either, where the gradient is larger.
    assert torch.allclose(norms, truth.clamp(max=2.0), rtol=1e-3)


# A real step: noise


@pytest.mark.slow
def test_noise_has_the_standard_deviation_that_the_accountant_counts(tmp_path: Path) -> None:
    clean, noisy, sigma, norm = Watch(), Watch(), 0.7, 0.3
    for watch, multiplier in ((clean, 0.0), (noisy, sigma)):
        privacy = {"noise_multiplier": multiplier, "per_sample_max_grad_norm": norm}
        # A learning rate of 0 leaves the weights, so that every step has the same clean gradient.
        make_trainer(tmp_path, watch, privacy=privacy, learning_rate=0.0).train()
    drawn = []
    for with_noise, without in zip(noisy.grads, clean.grads, strict=True):
        noise = ((with_noise - without) * 8).double().numpy()  # of the sum
        drawn.append(noise)
        count = len(noise)
        assert count > 10_000
        low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], count)
        assert low < (noise**2).sum() / (sigma * norm) ** 2 < high
        assert abs(noise.mean()) < 5 * sigma * norm / math.sqrt(count)
        assert stats.kstest(noise / (sigma * norm), "norm").pvalue > 1e-6
    # Steps do not share their noise, not even shifted.
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(np.corrcoef(drawn[i], drawn[j])[0, 1]) < 5 / math.sqrt(count)
        assert len(np.intersect1d(np.round(drawn[i], 6), np.round(drawn[j], 6))) < count / 10


@pytest.mark.slow
def test_noise_is_the_same_for_a_seed_and_another_without(tmp_path: Path) -> None:
    found = []
    for seed in (5, 5, 6, None, None):
        watch = Watch()
        make_trainer(tmp_path, watch, privacy={"noise_seed": seed}, max_steps=1).train()
        found.append(watch.grads[0])
    assert torch.equal(found[0], found[1])
    for i, j in ((0, 2), (0, 3), (3, 4)):
        assert not torch.equal(found[i], found[j])


# Sampling


def test_each_row_is_drawn_by_a_coin_of_its_own() -> None:
    rows, rate, steps = 40, 0.15, 4000
    sampler = PoissonBatches(rows, rate, steps, seed=3)
    drawn = np.zeros((steps, rows), dtype=bool)
    for step, batch in enumerate(sampler):
        drawn[step, batch] = True
    counts = drawn.sum(axis=0)
    expected, spread = steps * rate, steps * rate * (1 - rate)
    assert 1e-5 < stats.chi2.sf(((counts - expected) ** 2 / spread).sum(), rows) < 1 - 1e-5
    sizes = drawn.sum(axis=1)
    # Sizes are binomial, neither fixed nor those of a shuffled data set.
    assert abs(sizes.mean() - rows * rate) < 5 * math.sqrt(rows * rate * (1 - rate) / steps)
    assert sizes.var() == pytest.approx(rows * rate * (1 - rate), rel=0.15)
    # Neither rows nor steps hang together.
    pairs = np.corrcoef(drawn.T)[np.triu_indices(rows, 1)]
    assert np.abs(pairs).max() < 6 / math.sqrt(steps)
    assert abs(np.corrcoef(sizes[1:], sizes[:-1])[0, 1]) < 5 / math.sqrt(steps)


def test_parts_make_up_the_same_batches_and_a_later_start_goes_on() -> None:
    whole = list(PoissonBatches(30, 0.4, 6, seed=1))
    parts = list(PoissonBatches(30, 0.4, 6, parts=4, seed=1))
    assert len(parts) == len(PoissonBatches(30, 0.4, 6, parts=4)) == 24
    assert [[row for part in parts[i : i + 4] for row in part] for i in range(0, 24, 4)] == whole
    assert list(PoissonBatches(30, 0.4, 4, seed=1, first_step=lambda: 2)) == whole[2:]
    assert list(PoissonBatches(30, 0.4, 6, seed=2)) != whole


@pytest.mark.slow
def test_the_trainer_draws_at_the_rate_that_it_counts(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    assert trainer.sampling_rate == 6 / 24 and trainer.expected_batch_size == 6
    loader: Any = trainer.get_train_dataloader()
    assert len(loader) == 8  # parts of 4 steps in an epoch
    assert loader.batch_sampler.rate == trainer.sampling_rate
    trainer.train()
    assert trainer.spent == [(1.0, 6 / 24, 3)]


@pytest.mark.slow
def test_a_batch_without_rows_is_a_step_of_noise(tmp_path: Path) -> None:
    rows = ROWS[:3]
    for multiplier in (0.0, 1.0):
        watch = Watch()
        trainer = make_trainer(
            tmp_path,
            watch,
            rows=rows,
            per_device_train_batch_size=1,
            max_steps=12,
            privacy={"noise_multiplier": multiplier},
        )
        loader: Any = trainer.get_train_dataloader()
        sizes = [len(loader.batch_sampler.batch(step)) for step in range(12)]
        assert 0 in sizes and max(sizes) > 1
        trainer.train()
        assert trainer.private_steps == trainer.state.global_step == 12
        norms = [float(grad.norm()) for grad in watch.grads]
        for size, norm in zip(sizes, norms, strict=True):
            assert (norm > 0) == (size > 0 or multiplier > 0)
        assert all(math.isfinite(row["loss"]) for row in trainer.state.log_history if "loss" in row)


@pytest.mark.slow
def test_rows_of_datasets_with_other_columns_are_read_by_workers_too(tmp_path: Path) -> None:
    rows = [{**row, "text": "not for the model"} for row in ROWS]
    found = []
    for data, workers in ((ROWS, 0), (Dataset.from_list(rows), 0), (Dataset.from_list(rows), 1)):
        model = make_model()
        make_trainer(
            tmp_path,
            model=model,
            rows=data,
            per_device_train_batch_size=1,
            max_steps=4,
            dataloader_num_workers=workers,
        ).train()
        found.append(weights(model))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.slow
def test_with_bf16_gradients_are_near_those_without(tmp_path: Path) -> None:
    found = []
    for bf16 in (False, True):
        watch = Watch()
        make_trainer(
            tmp_path, watch, privacy={"noise_multiplier": 0.0}, bf16=bf16, max_steps=1
        ).train()
        found.append(watch.grads[0])
    assert not torch.equal(*found)
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()


# Whole trainings


class Reference:
    """DP-SGD without clipping and noise, written out again."""

    def __init__(self, model: Any, batches: list[list[list[int]]], expected: int) -> None:
        self.model, self.batches, self.expected = copy.deepcopy(model), batches, expected

    def run(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        for ids in self.batches:
            total = looped(self.model, ids).sum(dim=0) / self.expected
            start = 0
            for p in self.model.parameters():
                p.grad = total[start : start + p.numel()].view_as(p).clone()
                start += p.numel()
            optimizer.step()
        return weights(self.model)


@pytest.mark.parametrize(
    ("optim", "make"),
    rest_slow(
        [
            ("adamw_torch", lambda p: torch.optim.AdamW(p, lr=1e-2, eps=1e-3, weight_decay=0.0)),
            ("sgd", lambda p: torch.optim.SGD(p, lr=1e-2)),
            ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=1e-2)),
        ],
        1,
    ),
)
def test_without_clipping_and_noise_it_is_the_optimizer_on_poisson_batches(
    tmp_path: Path, optim: str, make: Any
) -> None:
    model, collator = make_model(), Collator()
    before = copy.deepcopy(model)
    trainer = make_trainer(
        tmp_path,
        model=model,
        collator=collator,
        optim=optim,
        max_steps=5,
        adam_epsilon=1e-3,
        privacy={"noise_multiplier": 0.0, "per_sample_max_grad_norm": HUGE},
    )
    trainer.train()
    reference = Reference(before, batches_seen(collator, trainer), 8)
    expected = reference.run(make(reference.model.parameters()))
    moved = (expected - weights(before)).norm()
    assert moved > 1e-3
    assert (weights(model) - expected).norm() < 2e-3 * moved
    assert trainer.epsilon == math.inf


@pytest.mark.slow
def test_the_size_of_parts_and_pieces_changes_nothing(tmp_path: Path) -> None:
    found = []
    for size, parts, most in ((8, 1, None), (2, 4, None), (8, 1, 1), (8, 1, 5), (4, 2, 3)):
        model = make_model()
        make_trainer(
            tmp_path,
            model=model,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            privacy={"max_physical_batch_size": most},
        ).train()
        found.append(weights(model))
    for other in found[1:]:
        assert torch.allclose(found[0], other, atol=1e-5)


@pytest.mark.slow
def test_epochs_and_steps_are_those_of_a_plain_trainer(tmp_path: Path) -> None:
    data = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)
    for privacy, options in (
        ({}, {"num_train_epochs": 2, "max_steps": -1, "per_device_train_batch_size": 5}),
        ({}, {"num_train_epochs": 1.5, "max_steps": -1, "gradient_accumulation_steps": 2}),
        (
            {},
            {
                "num_train_epochs": 2,
                "max_steps": -1,
                "per_device_train_batch_size": 7,
                "dataloader_drop_last": True,
            },
        ),
        ({"target_epsilon": 5.0}, {"max_steps": 3}),
        ({"target_epsilon": 5.0}, {"num_train_epochs": 1, "max_steps": -1}),
    ):
        args = make_args(tmp_path, warmup_steps=2, lr_scheduler_type="linear", **options)
        plain = Trainer(model=make_model(), args=args, train_dataset=ROWS, data_collator=data)
        plain.train()
        trainer = make_trainer(
            tmp_path,
            privacy=privacy,
            warmup_steps=2,
            lr_scheduler_type="linear",
            **options,
        )
        trainer.train()
        assert trainer.state.global_step == plain.state.global_step == trainer.private_steps
        rates = [
            [r["learning_rate"] for r in t.state.log_history if "learning_rate" in r]
            for t in (plain, trainer)
        ]
        assert rates[0] == rates[1] and len(set(rates[0])) > 1
        if privacy:  # all of the budget is spent, and no more
            assert 5.0 * 0.99 < trainer.epsilon <= 5.0


# What is spent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta"),
    [
        (1.0, 0.01, 1000, 1e-5),
        (0.6, 0.02, 500, 1e-6),
        (4.0, 0.1, 3000, 1e-5),
        (20.0, 0.05, 100, 1e-7),
        (1.5, 1.0, 10, 1e-5),
        (0.3, 0.05, 50, 1e-5),
    ],
)
def test_epsilon_is_that_of_dp_accounting(
    noise: float, rate: float, steps: int, delta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = dp_accounting.GaussianDpEvent(noise)
    if rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(rate, event)
    composed = dp_accounting.SelfComposedDpEvent(event, steps)
    tight = pld.PLDAccountant(value_discretization_interval=1e-3)
    truth = tight.compose(composed).get_epsilon(delta)
    found = spent_epsilon([(noise, rate, steps)], delta)
    theirs = rdp.RdpAccountant(list(ORDERS)).compose(composed).get_epsilon(delta)
    # Between whole orders dp-accounting adds up absolute values: an upper bound, where Opacus has
    # the divergence itself. On whole orders the two are equal.
    assert theirs * 0.95 < found <= theirs * (1 + 1e-9)
    assert truth * (1 - 1e-4) <= found < 1.6 * truth
    numerical = spent_epsilon([(noise, rate, steps)], delta, "prv")
    assert numerical == pytest.approx(truth, abs=0.03) or numerical == found > 50
    whole = [float(order) for order in range(2, 256)]
    monkeypatch.setattr("hf_exposure.training.private.accounting.ORDERS", tuple(whole))
    for cached in ("_renyi", "_epsilon"):
        function = getattr(sys.modules["hf_exposure.training.private.accounting"], cached)
        monkeypatch.setattr(
            f"hf_exposure.training.private.accounting.{cached}", function.__wrapped__
        )
    theirs = rdp.RdpAccountant(whole).compose(composed).get_epsilon(delta)
    assert spent_epsilon([(noise, rate, steps)], delta) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "rate"), [(0.5, 0.02), (1.0, 0.1), (3.0, 0.3)])
def test_divergences_are_those_of_the_integral(noise: float, rate: float) -> None:
    from hf_exposure.training.private.accounting import _renyi

    mpmath.mp.dps = 30
    found = dict(zip(ORDERS, _renyi(noise, rate), strict=True))
    for order in (1.1, 1.7, 2.5, 7.3, 20):
        ratio = lambda z: 1 - rate + rate * mpmath.exp((2 * z - 1) / (2 * noise**2))  # noqa: E731
        mean = mpmath.quad(
            lambda z, a=order: mpmath.npdf(z, 0, noise) * ratio(z) ** a,  # noqa: B023
            [-60 * noise, 0, 1, order, order + 60 * noise],
        )
        assert found[order] == pytest.approx(float(mpmath.log(mean) / (order - 1)), rel=1e-6)


def test_epsilon_of_several_stretches_is_that_of_their_composition() -> None:
    spent = [(1.0, 0.01, 200), (2.0, 0.05, 100)]
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    for noise, rate, steps in spent:
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        accountant.compose(event, steps)
    truth = accountant.get_epsilon(1e-5)
    assert spent_epsilon(spent, 1e-5, "prv") == pytest.approx(truth, abs=0.03)
    assert truth < spent_epsilon(spent, 1e-5) < 1.3 * truth
    assert spent_epsilon(spent, 1e-5) == spent_epsilon([*spent, (0.5, 0.01, 0)], 1e-5)
    assert spent_epsilon([], 1e-5) == 0
    assert spent_epsilon([*spent, (0.0, 0.01, 1)], 1e-5) == math.inf


@pytest.mark.slow
def test_epsilon_of_a_group_of_one_is_that_of_one_row() -> None:
    spent = [(4.0, 0.3, 40)]
    one = pld.privacy_loss_distribution.from_mixture_gaussian_mechanism(
        4.0, [0.0, 1.0], [0.7, 0.3], value_discretization_interval=1e-3
    )
    exact = one.self_compose(40).get_epsilon_for_delta(1e-5)
    # No less than what one row is said to spend, which is an upper bound.
    assert group_epsilon(spent, 1e-5, 1) == pytest.approx(spent_epsilon(spent, 1e-5))
    assert exact <= group_epsilon(spent, 1e-5, 1) <= 1.25 * exact


@pytest.mark.slow
def test_epsilon_of_rows_that_are_all_in_every_batch_is_that_of_a_larger_step() -> None:
    """Without sampling k rows move a step by k norms: noise 1 / k as large."""
    for rows in (2, 5):
        delta_of = stats.norm.cdf
        found = group_epsilon([(16.0, 1.0, 3)], 1e-4, rows)
        mu = rows * math.sqrt(3) / 16.0
        # Balle and Wang 2018: delta of a Gaussian mechanism at that epsilon.
        delta = delta_of(mu / 2 - found / mu) - math.exp(found) * delta_of(-mu / 2 - found / mu)
        assert delta == pytest.approx(1e-4, rel=0.05)


@pytest.mark.slow
def test_several_rows_spend_more_than_their_number_times_one_at_the_same_delta() -> None:
    spent = [(5.0, 0.1, 50)]
    assert group_epsilon(spent, 1e-4, 8) > 8 * spent_epsilon(spent, 1e-4)
    assert group_epsilon([(0.01, 0.1, 50)], 1e-4, 8) == math.inf


@pytest.mark.slow
def test_epsilon_falls_from_beyond_any_guarantee_to_below_one() -> None:
    noises = [0.001, 0.01, 0.1, 0.5, 1.0, 3.0, 30.0]
    for accountant in ("rdp", "prv"):
        found = [spent_epsilon([(n, 0.05, 300)], 1e-5, accountant) for n in noises]
        assert found == sorted(found, reverse=True)
        assert found[0] > 1e6 and found[-1] < 0.2


@pytest.mark.parametrize(
    ("target", "accountant"),
    rest_slow([(0.3, "rdp"), (3.0, "rdp"), (1e6, "rdp"), (3.0, "prv"), (1e4, "prv")], 1),
)
def test_the_least_noise_for_an_epsilon_is_found(target: float, accountant: str) -> None:
    noise = noise_for_epsilon(target, 1e-5, 0.05, 300, accountant)
    assert spent_epsilon([(noise, 0.05, 300)], 1e-5, accountant) <= target
    assert spent_epsilon([(noise * 0.998, 0.05, 300)], 1e-5, accountant) > target
    before = [(noise * 2, 0.05, 100)]
    rest = noise_for_epsilon(target, 1e-5, 0.05, 300, accountant, before)
    assert rest > noise
    with pytest.raises(ValueError, match=r"cannot be held with 300 more steps.*is spent already"):
        noise_for_epsilon(target, 1e-5, 0.05, 300, accountant, [(noise * 0.9, 0.05, 300)])
    assert spent_epsilon([*before, (rest, 0.05, 300)], 1e-5, accountant) <= target


@pytest.mark.slow
def test_a_budget_is_spent_once(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, privacy={"target_epsilon": 3.0})
    assert trainer.epsilon == 0
    trainer.train()
    assert 2.97 < trainer.epsilon <= 3
    with pytest.raises(ValueError, match=r"target_epsilon=3.0 was for one training.*spent already"):
        trainer.train()
    # With a noise multiplier, another training adds to what is spent, with batches of its own.
    watch = Watch()
    other = make_trainer(tmp_path, watch, max_steps=2)
    other.train()
    once = other.epsilon
    other.train()
    assert other.spent == [(1.0, 8 / 24, 4)]
    assert other.epsilon > once
    assert len({float(grad[0]) for grad in watch.grads}) == 4


def test_delta_is_a_tenth_of_a_row_unless_given(tmp_path: Path) -> None:
    assert make_trainer(tmp_path).delta == 1 / 240
    assert make_trainer(tmp_path, privacy={"delta": 1e-6}).delta == 1e-6
    with pytest.raises(ValueError, match=r"delta=0.05 is 1 / 24 or more"):
        make_trainer(tmp_path, privacy={"delta": 0.05})


def test_epsilon_is_logged_with_every_loss_and_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        max_steps=4,
        trainer_options={"eval_dataset": {"a": ROWS[:4], "b": ROWS[4:8]}},
    )
    out = trainer.train()
    history = trainer.state.log_history
    for row in history:
        expected = spent_epsilon([(1.0, 1 / 3, row["step"])], trainer.delta)
        names = [name for name in row if name.endswith("epsilon")]
        assert len(names) == 1 and row[names[0]] == expected
    names = [name for row in history for name in row if name.endswith("epsilon")]
    assert sorted(set(names)) == ["epsilon", "eval_a_epsilon", "eval_b_epsilon", "train_epsilon"]
    assert out.metrics["train_epsilon"] == trainer.epsilon
    assert trainer.evaluate()["eval_a_epsilon"] == trainer.epsilon


# The loss


def test_a_row_s_loss_is_its_own_mean_whatever_else_is_in_the_batch() -> None:
    model = make_model()
    data = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)
    batch = dict(data(ROWS[:6]))
    assert (batch["labels"] == -100).any()
    batch["labels"][3] = -100  # nothing to learn from
    losses = row_losses(model, batch)
    for i, row in enumerate(ROWS[:6]):
        ids = torch.tensor([row["input_ids"]])
        alone = model(input_ids=ids, labels=ids).loss if i != 3 else torch.tensor(0.0)
        assert torch.allclose(losses[i], alone, atol=1e-5)


@pytest.mark.slow
def test_the_logged_loss_is_the_mean_of_the_rows(tmp_path: Path) -> None:
    model, collator = make_model(), Collator()
    trainer = make_trainer(
        tmp_path,
        model=model,
        collator=collator,
        learning_rate=0.0,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    for ids, loss in zip(batches_seen(collator, trainer), logged, strict=True):
        each = [model(input_ids=t, labels=t).loss for t in (torch.tensor([row]) for row in ids)]
        assert loss == pytest.approx(float(torch.stack(each).mean().detach()), rel=1e-5)


# Models


def adapted() -> Any:
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(make_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


MODELS: dict[str, Any] = {
    "llama": make_model,
    "llama_tied": lambda: make_model(tie_word_embeddings=True),
    "lora": adapted,
    **{
        name: lambda name=name: of_kind(name)
        for name in ("gpt2", "gpt_neox", "qwen3", "mistral", "phi")
    },
}


@pytest.mark.parametrize("name", rest_slow(MODELS, 3))
def test_a_step_of_each_kind_of_model_is_that_of_a_loop(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    if name == "lora":  # B is 0 at first, and A would get no gradient
        for key, p in model.named_parameters():
            if "lora_B" in key:
                nn.init.normal_(p, std=0.1)
    before, collator, watch = copy.deepcopy(model), Collator(), Watch()
    trainer = make_trainer(
        tmp_path,
        watch,
        model=model,
        collator=collator,
        max_steps=1,
        privacy={"noise_multiplier": 0.0, "per_sample_max_grad_norm": 0.5},
    )
    trainer.train()
    rows = looped(before, batches_seen(collator, trainer)[0])
    expected = clipped(rows, 0.5).sum(dim=0) / 8
    assert (watch.grads[0] - expected).norm() < 1e-3 * expected.norm()
    assert not torch.equal(weights(model), weights(before))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method", "parameter"),
    [
        ("opt", "hooks", r"'model\.decoder\.embed_positions\.weight' in OPTForCausalLM"),
        ("opt", "functorch", r"'model\.decoder\.embed_positions\.weight' in OPTForCausalLM"),
        ("gemma3_text", "hooks", r"'model\.embed_tokens\.weight' in Gemma3ForCausalLM"),
        ("mixtral", "hooks", r"'model\.layers\.[01]\.mlp\.(gate|experts)\.\w+' in Mixtral"),
    ],
)
def test_what_opacus_gets_wrong_is_refused_by_name_and_trained_by_a_loop(
    tmp_path: Path, name: str, method: str, parameter: str
) -> None:
    with pytest.raises(ValueError, match=rf'{parameter}.*per_sample="loop"') as caught:
        make_trainer(tmp_path, model=of_kind(name), privacy={"per_sample": method}).train()
    assert "hooks twice" not in str(caught.value)
    model, collator, watch = of_kind(name), Collator(), Watch()
    before = copy.deepcopy(model)
    privacy = {"noise_multiplier": 0.0, "per_sample": "loop"}
    trainer = make_trainer(
        tmp_path, watch, model=model, collator=collator, max_steps=1, privacy=privacy
    )
    trainer.train()
    rows = looped(before, batches_seen(collator, trainer)[0])
    expected = clipped(rows, 1.0).sum(dim=0) / 8
    assert (watch.grads[0] - expected).norm() < 1e-3 * expected.norm()


class Mixing(LlamaForCausalLM):
    """Whose rows see each other."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + out.logits.mean(dim=0, keepdim=True)
        return out


class Counting(LlamaForCausalLM):
    """Whose buffer learns from the rows without noise."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        self.mean += out.logits.detach().mean()
        return out


def test_rows_that_see_each_other_are_refused(tmp_path: Path) -> None:
    model = Mixing(make_model().config)
    with pytest.raises(ValueError, match=r"per-sample gradient of '[\w.]+' in Mixing"):
        make_trainer(tmp_path, model=model).train()


def test_a_buffer_that_learns_is_refused(tmp_path: Path) -> None:
    model = Counting(make_model().config)
    model.register_buffer("mean", torch.zeros(()))
    with pytest.raises(ValueError, match=r"changes the buffer 'mean' of Counting"):
        make_trainer(tmp_path, model=model).train()


@pytest.mark.slow
def test_a_parameter_without_a_gradient_is_refused_by_name(tmp_path: Path) -> None:
    model = make_model()
    model.model.idle = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'model.idle.weight' \(2 of \d+ parameters\).*freeze"):
        make_trainer(tmp_path, model=model).train()
    # One row at a time it may be that of an expert that other rows need.
    trainer = make_trainer(tmp_path, model=model, privacy={"per_sample": "loop"})
    trainer.train()
    assert trainer.private_steps == 3


def test_an_optimizer_of_other_parameters_is_refused(tmp_path: Path) -> None:
    # As after an adapter or a move to another device that made new ones: nothing would change.
    other = torch.optim.SGD(make_model().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="parameters that are not the model's"):
        make_trainer(tmp_path, trainer_options={"optimizers": (other, None)}).train()
    model = make_model()
    some = torch.optim.SGD(model.model.layers.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"leaves out 'model.embed_tokens.weight'"):
        make_trainer(tmp_path, model=model, trainer_options={"optimizers": (some, None)}).train()


def with_layer(layer: nn.Module) -> LlamaForCausalLM:
    model = make_model()
    model.model.extra = layer
    return model


def frozen() -> LlamaForCausalLM:
    return make_model().requires_grad_(False)


def checkpointed() -> LlamaForCausalLM:
    model = make_model()
    (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )()
    return model


class OwnLoss(PrivateTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(*args, **kwargs)


class OwnSampler(PrivateTrainer):
    def _get_train_sampler(self, *args: Any) -> Any:
        return torch.utils.data.SequentialSampler(ROWS)


class OwnLoader(PrivateTrainer):
    def get_train_dataloader(self) -> Any:
        return Trainer.get_train_dataloader(self)


def forever() -> Iterator[dict[str, list[int]]]:
    yield from ROWS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": lambda: with_layer(nn.BatchNorm1d(4))}, r"'model.extra' is a BatchNorm1d"),
        (
            {"model": lambda: with_layer(nn.MultiheadAttention(4, 2))},
            r"'model.extra' is a MultiheadAttention.*per_sample=\"loop\"",
        ),
        ({"model": frozen}, "all parameters of LlamaForCausalLM are frozen"),
        ({"model": lambda: make_model().to(torch.bfloat16)}, r"of torch.bfloat16.*float32"),
        ({"model": checkpointed}, "gradient checkpointing"),
        ({"gradient_checkpointing": True}, "gradient checkpointing"),
        ({"kind": OwnLoss}, "OwnLoss has a compute_loss of its own"),
        ({"trainer_options": {"compute_loss_func": print}}, "compute_loss_func is not supported"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ({"torch_compile": True}, "torch_compile=True"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential'"),
        ({"per_device_train_batch_size": 25}, r"a batch of 25 rows.*of the 24"),
        ({"rows": forever()}, "train_dataset has no length"),
        ({"rows": []}, "train_dataset has no rows"),
        ({"model": lambda: nn.DataParallel(make_model())}, "DataParallel.*give model.module"),
        ({"kind": OwnSampler}, "OwnSampler has a _get_train_sampler of its own"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    made = {key: value() if key == "model" else value for key, value in options.items()}
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **made)


class Thaw(TrainerCallback):
    """Asks for a gradient of one more parameter, or of one less, after the first step."""

    def __init__(self, name: str, asks: bool) -> None:
        self.name, self.asks = name, asks

    def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        dict(model.named_parameters())[self.name].requires_grad_(self.asks)


@pytest.mark.parametrize("asks", [True, False])
def test_parameters_that_are_thawed_in_training_never_get_a_bare_gradient(
    tmp_path: Path, asks: bool
) -> None:
    model = make_model()
    name = "model.layers.0.mlp.up_proj.weight"
    weight = dict(model.named_parameters())[name].requires_grad_(not asks)
    was, optimizer = weight.detach().clone(), torch.optim.SGD(model.parameters(), lr=1.0)
    options = {"optimizers": (optimizer, None)}
    trainer = make_trainer(tmp_path, Thaw(name, asks), model=model, trainer_options=options)
    with pytest.raises(ValueError, match=f"'{name}' asks.* since training began"):
        trainer.train()
    assert trainer.private_steps == 1
    if asks:
        assert torch.equal(weight, was)


def test_what_changes_after_the_trainer_was_made_is_looked_at_again(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, kind=OwnLoader)
    with pytest.raises(ValueError, match="get_train_dataloader of OwnLoader"):
        trainer.train()
    trainer = make_trainer(tmp_path)
    trainer.train_dataset = ROWS[:10]
    with pytest.raises(ValueError, match="train_dataset has 10 rows, and had 24"):
        trainer.train()
    trainer = make_trainer(tmp_path, model=make_model())
    trainer.compute_loss = print  # type: ignore[assignment]
    with pytest.raises(ValueError, match="compute_loss was set"):
        trainer.train()
    model = make_model()
    trainer = make_trainer(tmp_path, model=model)
    (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )()
    with pytest.raises(ValueError, match="gradient checkpointing"):
        trainer.train()


@pytest.mark.slow
def test_a_training_that_is_made_longer_spends_no_more_than_its_target(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, privacy={"target_epsilon": 2.0})
    trainer.args.max_steps = 12
    trainer.train()
    assert trainer.private_steps == 12 and 1.9 < trainer.epsilon <= 2.0
    trainer = make_trainer(tmp_path, privacy={"target_epsilon": 2.0}, max_steps=3)
    trainer.train()
    with pytest.raises(ValueError, match=r"a step after the 3 .* target_epsilon=2.0"):
        trainer._check_budget()


def test_a_model_that_is_not_causal_is_refused(tmp_path: Path) -> None:
    from transformers import LlamaForTokenClassification

    model = LlamaForTokenClassification(make_model().config)
    rows = [{**row, "labels": [i % 2 for i in range(len(row["input_ids"]))]} for row in ROWS]
    collator = DataCollatorForTokenClassification(TOKENIZER)
    with pytest.raises(ValueError, match=r"LlamaForTokenClassification is .* only causal"):
        make_trainer(tmp_path, model=model, rows=rows, collator=collator).train()
    collator = DataCollatorWithPadding(TOKENIZER)
    with pytest.raises(ValueError, match=r"'labels' of shape .*one for each token"):
        make_trainer(tmp_path, rows=[{**r, "labels": 1} for r in ROWS], collator=collator).train()


def test_fp16_and_several_devices_in_one_process_are_refused(tmp_path: Path) -> None:
    from hf_exposure.training.private.refusals import refuse

    args = make_args(tmp_path)
    args.fp16 = True
    with pytest.raises(ValueError, match="fp16=True"):
        refuse(PrivateTrainer, PrivateTrainer, make_model(), args, ROWS, {})
    args = make_args(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="one process on one device or with DDP"):
        refuse(PrivateTrainer, PrivateTrainer, make_model(), args, ROWS, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one"),
        ({"target_epsilon": 1.0, "noise_multiplier": 1.0}, "exactly one"),
        ({"target_epsilon": 0.0}, "target_epsilon=0.0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier=-1.0"),
        ({"noise_multiplier": math.inf}, "noise_multiplier=inf"),
        ({"noise_multiplier": math.nan}, "noise_multiplier=nan"),
        ({"target_epsilon": math.inf}, "target_epsilon=inf"),
        ({"target_epsilon": "8"}, "target_epsilon must be a number, not str"),
        ({"noise_multiplier": 1.0, "delta": 0.0}, "delta=0.0"),
        ({"noise_multiplier": 1.0, "per_sample_max_grad_norm": 0.0}, "max_grad_norm=0.0"),
        ({"noise_multiplier": 1.0, "accountant": "gdp"}, "accountant='gdp'"),
        ({"noise_multiplier": 1.0, "per_sample": "magic"}, "per_sample='magic'"),
        ({"noise_multiplier": 1.0, "max_physical_batch_size": 0}, "max_physical_batch_size=0"),
        ({"noise_multiplier": 1.0, "max_physical_batch_size": 2.5}, "must be a whole number"),
        ({"noise_multiplier": 1.0, "noise_seed": -1}, "noise_seed=-1"),
    ],
)
def test_bad_privacy_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        PrivacyArguments(**options)


def test_arguments_are_parsed_beside_those_of_training(tmp_path: Path) -> None:
    parser = HfArgumentParser((TrainingArguments, PrivacyArguments))  # type: ignore[arg-type]
    line = ["--output_dir", str(tmp_path), "--target_epsilon", "8", "--accountant", "prv"]
    _, privacy = parser.parse_args_into_dataclasses(line)
    assert privacy == PrivacyArguments(target_epsilon=8.0, accountant="prv")


@pytest.mark.parametrize("flattening", [True, False])
def test_a_collator_that_loses_rows_or_labels_is_refused(tmp_path: Path, flattening: bool) -> None:
    from transformers import DataCollatorWithFlattening

    collator: Any = (
        DataCollatorWithFlattening() if flattening else DataCollatorWithPadding(TOKENIZER)
    )
    message = "each row must stay a row" if flattening else "made no 'labels'"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, collator=collator).train()


# What others see


NUMBER = SecretFormat("The random number is {secret}.", secret=r"[0-9]{4}")
CANARIES = Canaries.generate(NUMBER, repetitions=[0, 1], per_repetition=2, seed=3)


@pytest.mark.slow
def test_weights_are_the_same_bit_for_bit_with_and_without_the_callback(tmp_path: Path) -> None:
    found, callback = [], ExposureCallback(CANARIES, samples=50)
    for callbacks in ([], [callback]):
        model = make_model(attention_dropout=0.3)
        make_trainer(
            tmp_path,
            *callbacks,
            model=model,
            eval_strategy="steps",
            eval_steps=1,
            trainer_options={"eval_dataset": ROWS[:4]},
        ).train()
        found.append(weights(model))
    assert torch.equal(*found)
    assert [item.step for item in callback.history] == [1, 2, 3]
    assert all(item.metrics["eval_epsilon"] > 0 for item in callback.history)
    assert all(math.isfinite(e.bits) for e in callback.history[-1].exposures)


@pytest.mark.slow
def test_an_infinite_epsilon_is_logged_and_kept_too(tmp_path: Path) -> None:
    callback = ExposureCallback(CANARIES, samples=50)
    trainer = make_trainer(
        tmp_path,
        callback,
        privacy={"noise_multiplier": 0.0},
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="steps",
        save_steps=3,
        trainer_options={"eval_dataset": ROWS[:4]},
    )
    trainer.train()
    assert trainer.state.log_history[-2]["eval_epsilon"] == math.inf
    assert len(History.load(callback.file(trainer.args), CANARIES)) == 1
    stored = json.loads((tmp_path / "checkpoint-3" / PRIVACY_FILE).read_text())
    assert stored["epsilon"] is None and stored["steps"][0]["noise_multiplier"] == 0


class Nosy(TrainerCallback):
    """Runs the model in training mode at every event where it can."""

    def __init__(self) -> None:
        self.kinds: set[type] = set()
        self.left: set[str] = set()

    def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.kinds.add(type(model))
        model.train()
        ids = torch.tensor([ROWS[0]["input_ids"]])
        with torch.random.fork_rng():
            model(input_ids=ids, labels=ids).loss.backward()
        model.generate(ids[:, :3], max_new_tokens=2, do_sample=False)
        self.left |= {n for n, m in model.named_modules() if getattr(m, "activations", None)}
        self.left |= {n for n, p in model.named_parameters() if p.grad_sample is not None}
        model.zero_grad()

    on_evaluate = on_step_end


@pytest.mark.slow
def test_callbacks_see_the_model_itself_and_leave_nothing_in_it(tmp_path: Path) -> None:
    found, nosy = [], Nosy()
    for callbacks in ([], [nosy]):
        model = make_model()
        make_trainer(
            tmp_path,
            *callbacks,
            model=model,
            eval_strategy="steps",
            eval_steps=1,
            trainer_options={"eval_dataset": ROWS[:4]},
        ).train()
        found.append(weights(model))
    assert nosy.kinds == {LlamaForCausalLM} and not nosy.left
    assert torch.equal(*found)


def traces(model: nn.Module, folder: Path) -> set[str]:
    """What a model that a plain Trainer has trained does not have."""
    plain = make_model()
    data = DataCollatorForLanguageModeling(TOKENIZER, mlm=False)
    Trainer(plain, make_args(folder, max_steps=1), data, ROWS).train()
    fresh_modules = dict(plain.named_modules())
    extra = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        for key in module.__dict__.keys() - fresh_modules[name].__dict__.keys()
    }
    for name, module in model.named_modules():
        if module._forward_hooks or module._backward_hooks or module._forward_pre_hooks:
            extra.add(name)
    for name, p in model.named_parameters():
        extra |= {f"{name}.{key}" for key in p.__dict__}
        if p.grad is not None:
            extra.add(f"{name}.grad")
    return extra


@pytest.mark.slow
def test_no_trace_is_left_on_the_model(tmp_path: Path) -> None:
    model = make_model()
    assert not traces(model, tmp_path)
    trainer = make_trainer(tmp_path, model=model)
    trainer.train()
    assert trainer.model is model and not traces(model, tmp_path)
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert type(again) is LlamaForCausalLM
    assert torch.equal(weights(again), weights(model))
    stored = json.loads((tmp_path / "saved" / PRIVACY_FILE).read_text())
    assert stored["epsilon"] == trainer.epsilon and stored["delta"] == trainer.delta
    assert stored["rows"] == 24 and stored["steps"][0]["steps"] == 3
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model.generate(ids, max_new_tokens=3), again.generate(ids, max_new_tokens=3))

    # An error in the middle leaves none either.
    class Failing(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("stop")

    model = make_model()
    with pytest.raises(RuntimeError, match="stop"):
        make_trainer(tmp_path, Failing(), model=model).train()
    assert not traces(model, tmp_path)


# Taking up again


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 3, 5])
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path, stop: int, optim: str) -> None:
    options: dict[str, Any] = {
        "max_steps": 7,
        "save_strategy": "steps",
        "save_steps": stop,
        "optim": optim,
        "lr_scheduler_type": "linear",
        "privacy": {"target_epsilon": 4.0},
    }
    whole = make_model(attention_dropout=0.2)
    trainer = make_trainer(tmp_path, model=whole, **options)
    trainer.train()
    again = make_model(attention_dropout=0.2, seed=1)
    second = make_trainer(tmp_path, model=again, **options)
    second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert torch.equal(weights(whole), weights(again))
    assert second.spent == trainer.spent and second.epsilon == trainer.epsilon <= 4.0
    assert second.private_steps == second.state.global_step == 7
    row = next(r for r in second.state.log_history if r["step"] == stop + 1)
    assert row["epsilon"] == spent_epsilon(
        [(second.noise_multiplier, 1 / 3, stop + 1)], second.delta
    )


@pytest.mark.slow
def test_a_longer_plan_shares_out_what_is_left(tmp_path: Path) -> None:
    privacy = {"target_epsilon": 4.0}
    make_trainer(
        tmp_path, max_steps=4, save_strategy="steps", save_steps=2, privacy=privacy
    ).train()
    longer = make_trainer(tmp_path, max_steps=9, privacy=privacy)
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    (first, _, two), (second, _, seven) = longer.spent
    assert (two, seven) == (2, 7) and second > first
    assert 3.96 < longer.epsilon <= 4.0


def test_a_checkpoint_that_does_not_tell_what_it_spent_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=1).train()
    with pytest.raises(ValueError, match=r"trained on 24 rows, and train_dataset has 20"):
        make_trainer(tmp_path, rows=ROWS[:20]).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-2" / PRIVACY_FILE).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-2' has no privacy.json.*not known"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="has no checkpoint"):
        make_trainer(tmp_path / "empty").train(resume_from_checkpoint=True)


# The card


@pytest.mark.slow
def test_a_model_card_says_what_was_spent_beside_what_was_memorized(tmp_path: Path) -> None:
    callback = ExposureCallback(CANARIES, samples=50)
    trainer = make_trainer(
        tmp_path,
        callback,
        eval_strategy="epoch",
        max_steps=3,
        trainer_options={"eval_dataset": ROWS[:4]},
    )
    trainer.train()
    for _ in range(2):
        trainer.create_model_card()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.count("## Differential privacy") == text.count("## Memorization") == 1
    told = f"({rounded_up(trainer.epsilon)}, {rounded_up(trainer.delta)})-differential privacy"
    assert told in text
    assert "one row of the training set, added or removed" in text
    assert f"there are {len(ROWS)}." in text
    assert "| 3 | 1 | 0.3333 |" in text and "norm of 1; accountant `rdp`" in text
    # A seed that somebody may know is no secret.
    assert "known seed" in text
    assert "known seed" not in privacy_section(
        {**trainer.privacy_statement(), "noise_can_be_repeated": False}
    )


def test_clipping_alone_is_not_called_private_on_a_card(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, privacy={"noise_multiplier": 0.0})
    trainer.train()
    trainer.create_model_card()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "epsilon is infinite" in text and "DP-SGD" not in text


# The extra


def test_without_opacus_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "opacus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ImportError, match=r'pip install "hf-exposure\[private\]"'):
        make_trainer(tmp_path)


@pytest.mark.slow
def test_opacus_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, hf_exposure; "
        "hf_exposure.PrivateTrainer; hf_exposure.PrivacyArguments(noise_multiplier=1.0)"
    )
    code += "; print('opacus' in sys.modules)"
    assert python(["-c", code]).stdout.strip() == "False"


def test_the_parts_of_the_trainer_that_are_replaced_still_exist() -> None:
    for name in ("train", "get_train_dataloader", "training_step", "log", "save_model"):
        theirs = list(inspect.signature(getattr(Trainer, name)).parameters)
        ours = list(inspect.signature(getattr(PrivateTrainer, name)).parameters)
        assert "args" in ours or ours == theirs


@pytest.mark.parametrize("privacy", [None, {"target_epsilon": 8.0}])
def test_privacy_that_is_no_arguments_object_is_told_how_to_make_one(
    privacy: Any, tmp_path: Path
) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(TypeError, match=r"PrivacyArguments\(target_epsilon=8\.0\), not"):
        PrivateTrainer(llama(9), args, privacy=privacy)
