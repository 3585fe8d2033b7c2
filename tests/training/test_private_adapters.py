"""DP-SGD where people train: adapters, data of TRL, parts, resuming, several processes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
import torch
from datasets import Dataset
from dp_accounting import pld
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments

from hf_exposure.training.private.arguments import PrivacyArguments
from hf_exposure.training.private.per_sample import PerSampleGradients
from hf_exposure.training.private.trainer import PrivateTrainer
from tests.processes import launched
from tests.tiny import TOKENIZERS, corpus, llama

TOKENIZER = TOKENIZERS["digits_one_by_one"]()


def completions() -> list[dict[str, list[int]]]:
    """What TRL's preparation leaves of prompts and completions: labels of the completion only."""
    rows = []
    for i, line in enumerate(corpus()[:24]):
        ids = TOKENIZER(line)["input_ids"][: 14 - i % 5]
        rows.append({"input_ids": ids, "labels": [-100] * 5 + ids[5:]})
    return rows


ROWS = completions()


def adapted(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(
            llama(len(TOKENIZER), hidden_size=16, intermediate_size=24),
            LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
        )
    for name, p in model.named_parameters():
        if "lora_B" in name:  # 0 at first, so that A would have no gradient
            nn.init.normal_(p, std=0.1)
    return model


def trained(model: Any) -> list[torch.Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def flat(model: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained(model)]).clone()


def make_trainer(folder: Path, model: Any, rows: Any = None, **options: Any) -> PrivateTrainer:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as OfTrl  # seconds

    privacy = {
        "noise_multiplier": 1.0,
        "noise_seed": 5,
        "per_sample_max_grad_norm": 0.5,
        **options.pop("privacy", {}),
    }
    return PrivateTrainer(
        model,
        TrainingArguments(
            str(folder),
            **{
                "per_device_train_batch_size": 8,
                "max_steps": 4,
                "optim": "sgd",
                "learning_rate": 0.1,
                "lr_scheduler_type": "constant",
                "use_cpu": True,
                "report_to": "none",
                "save_strategy": "no",
                "disable_tqdm": True,
                **options,
            },
        ),
        OfTrl(pad_token_id=TOKENIZER.pad_token_id),
        ROWS if rows is None else rows,
        privacy=PrivacyArguments(**privacy),
    )


def by_hand(model: Any, rows: list[dict[str, list[int]]], norm: float) -> torch.Tensor:
    """The sum of the clipped gradients of rows, each by a pass of its own."""
    total = torch.zeros(1)
    for row in rows:
        model.zero_grad()
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        model(input_ids=ids, labels=labels).loss.backward()
        grad = torch.cat([p.grad.flatten() for p in trained(model)])
        total = total + grad * (norm / grad.norm()).clamp(max=1.0)
    return total


def test_adapters_learn_completions_and_nothing_else_has_gradients_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, held = adapted(), []
    clip = PerSampleGradients._clip_and_accumulate

    def watched(self: PerSampleGradients) -> None:
        everything = [p for p in model.parameters() if getattr(p, "grad_sample", None) is not None]
        assert {id(p) for p in everything} == {id(p) for p in trained(model)}
        held.append(sum(p.grad_sample.numel() for p in everything))
        clip(self)

    monkeypatch.setattr(PerSampleGradients, "_clip_and_accumulate", watched)
    before = flat(model)
    expected = by_hand(adapted(), ROWS, 0.5)
    privacy = {"noise_multiplier": 0.0, "max_physical_batch_size": 2}
    make_trainer(
        tmp_path, model, privacy=privacy, max_steps=1, per_device_train_batch_size=24
    ).train()
    moved = (before - flat(model)) / 0.1 * 24
    assert torch.allclose(moved, expected, atol=1e-3 * float(expected.norm()))
    assert max(held) == 2 * before.numel()  # two rows at once, of the adapters only


def test_rows_that_trl_s_trainer_prepares_are_trained_on(tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list(
        [{"prompt": line[:20], "completion": line[20:]} for line in corpus()[:8]]
    )
    prepared = SFTTrainer(
        model=llama(len(TOKENIZER), hidden_size=16, intermediate_size=24),
        args=SFTConfig(
            str(tmp_path),
            completion_only_loss=True,
            use_cpu=True,
            report_to="none",
            bf16=False,
            activation_checkpointing=False,
        ),
        train_dataset=data,
        processing_class=TOKENIZER,
    )
    rows = prepared.train_dataset
    assert all(-100 in row["labels"] for row in rows)
    model, expected = adapted(), by_hand(adapted(), list(rows), 0.5)
    before = flat(model)
    trainer = PrivateTrainer(
        model,
        make_trainer(tmp_path, adapted(), rows, max_steps=1, learning_rate=1.0).args,
        prepared.data_collator,
        rows,
        privacy=PrivacyArguments(noise_multiplier=0.0, per_sample_max_grad_norm=0.5),
    )
    trainer.train()
    moved = (before - flat(model)) * 8
    assert torch.allclose(moved, expected, atol=1e-3 * float(expected.norm()))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 4])
def test_adapters_resumed_in_mid_training_spend_what_one_training_spends(
    tmp_path: Path, stop: int
) -> None:
    options: dict[str, Any] = {
        "max_steps": 5,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "save_strategy": "steps",
        "save_steps": stop,
        "optim": "adamw_torch",
        "privacy": {"max_physical_batch_size": 3},
    }
    whole = adapted()
    first = make_trainer(tmp_path, whole, **options)
    first.train()
    again = adapted(seed=1)
    second = make_trainer(tmp_path, again, **options)
    second.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert torch.equal(flat(whole), flat(again))
    assert second.spent == first.spent == [(1.0, 8 / 24, 5)]
    assert second.epsilon == first.epsilon
    accountant = pld.PLDAccountant(value_discretization_interval=1e-3)
    event = dp_accounting.PoissonSampledDpEvent(8 / 24, dp_accounting.GaussianDpEvent(1.0))
    truth = accountant.compose(event, 5).get_epsilon(first.delta)
    assert truth * (1 - 1e-4) <= first.epsilon < 1.6 * truth


# Several processes


def in_two_processes(folder: str) -> None:
    """Trains with and without noise, and writes what each process has in the end."""
    found: dict[str, Any] = {}
    for noise in (0.0, 1.0):
        for parts in (1, 2):
            model = adapted(seed=0)
            trainer = make_trainer(
                Path(folder) / "out",
                model,
                per_device_train_batch_size=4 // parts,
                gradient_accumulation_steps=parts,
                logging_steps=1,
                privacy={"noise_multiplier": noise},
            )
            trainer.train()
            assert trainer.args.world_size == 2
            found[f"{noise} {parts}"] = {
                "weights": flat(model).tolist(),
                "spent": trainer.spent,
                "loss": [row["loss"] for row in trainer.state.log_history if "loss" in row],
            }
    model = adapted(seed=0)
    make_trainer(
        Path(folder) / "out",
        model,
        per_device_train_batch_size=4,
        bf16=True,
        privacy={"noise_multiplier": 0.0},
    ).train()
    found["bf16"] = flat(model).tolist()
    # Without a seed the processes still share one.
    model = adapted(seed=0)
    trainer = make_trainer(
        Path(folder) / "out", model, per_device_train_batch_size=4, privacy={"noise_seed": None}
    )
    trainer.train()
    found["secret"] = flat(model).tolist()
    (Path(folder) / f"{trainer.args.process_index}.json").write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    out = launched(in_two_processes, tmp_path)
    assert out.returncode == 0, out.stderr
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in (0, 1))
    assert first == second
    for noise in (0.0, 1.0):
        model = adapted(seed=0)
        trainer = make_trainer(
            tmp_path / "one", model, logging_steps=1, privacy={"noise_multiplier": noise}
        )
        before = flat(model)
        trainer.train()
        moved = (flat(model) - before).norm()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        for parts in (1, 2):
            one = first[f"{noise} {parts}"]
            # With noise too, which is in the sum once.
            assert (torch.tensor(one["weights"]) - flat(model)).norm() < 1e-4 * moved
            assert one["spent"] == [list(entry) for entry in trainer.spent]
            assert one["loss"] == pytest.approx(losses, rel=1e-4)
    model = adapted(seed=0)
    before = flat(model)
    make_trainer(tmp_path / "one", model, bf16=True, privacy={"noise_multiplier": 0.0}).train()
    moved = (flat(model) - before).norm()
    assert (torch.tensor(first["bf16"]) - flat(model)).norm() < 0.05 * moved
