"""The benchmark of set-ups runs, and what it says of them can be checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.setups import REPETITIONS, SEED, SETUPS, SMALL, make_material, make_model
from tests.processes import python

ROOT = Path(__file__).parents[2]


def run(name: str, folder: Path) -> tuple[dict[str, Any], str]:
    """The row of one set-up, and what was printed."""
    file = folder / "rows.json"
    command = [ROOT / "benchmarks" / "setups.py", "--small", "--only", name, "--json", file]
    done = python(command, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(file.read_text())
    return row, done.stdout


def check(row: dict[str, Any], printed: str) -> None:
    assert row["same_weights"] and row["cached"]
    assert [*row["exposures"]] == [f"x{times}" for times in REPETITIONS]
    assert len(row["history"]) == 4 and 0 < row["forwards"] <= 4.2 * SMALL.budget
    for name, bits in row["exposures"].items():
        low, high = row["intervals"][name]
        assert 0 <= low <= bits <= high < 30
        assert bits == row["history"][-1][f"eval_exposure_{name}"]
    (line,) = [line for line in printed.splitlines() if line.startswith(f"| {row['words']} |")]
    assert "bit for bit" in line and f"{row['forwards']:,}" in line


@pytest.mark.slow
def test_a_training_that_was_killed_and_resumed_has_every_measurement_and_the_same_weights(
    tmp_path: Path,
) -> None:
    check(*run("resume", tmp_path))


def test_all_set_ups_get_the_same_batches_in_the_same_order() -> None:
    one, other = make_material(SMALL), make_material(SMALL)
    assert one.batches["input_ids"] == other.batches["input_ids"]
    assert len(one.batches) == one.steps * SMALL.batch and one.steps % 4 == 0
    states = [make_model(SMALL, material).state_dict() for material in (one, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_base_of_the_adapters_has_not_seen_the_canaries() -> None:
    planted, without = make_material(SMALL), make_material(SMALL, planted=False)
    secrets = [canary.secret for canary in planted.canaries.inserted]
    seen = [planted.tokenizer.decode(ids) for ids in planted.rows["input_ids"]]
    clean = [without.tokenizer.decode(ids) for ids in without.rows["input_ids"]]
    assert all(any(secret in text for text in seen) for secret in secrets)
    assert not any(secret in text for text in clean for secret in secrets)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "alone"), [("bfd", True), ("wrapped", False)])
def test_a_packed_canary_sees_what_is_measured_unless_rows_are_cut_anywhere(
    tmp_path: Path, strategy: str, alone: bool
) -> None:
    from trl import SFTConfig, SFTTrainer

    material = make_material(SMALL)
    model = make_model(SMALL, material).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)  # so that context matters
    config = SFTConfig(
        str(tmp_path),
        packing=True,
        packing_strategy=strategy,
        max_length=128,
        max_steps=1,
        shuffle_dataset=True,
        seed=SEED,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    trainer = SFTTrainer(
        model, config, train_dataset=material.rows, processing_class=material.tokenizer
    )

    def nats(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return -torch.log_softmax(logits[:-1], -1).gather(1, ids[1:, None])[:, 0]

    differences = []
    for batch in trainer.get_train_dataloader():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            logits = model(**inputs).logits
        for canary in material.canaries.inserted:
            ids = torch.tensor(material.tokenizer(canary.text)["input_ids"])
            with torch.no_grad():
                truth = nats(model(ids[None]).logits[0], ids)
            for row, tokens in enumerate(batch["input_ids"]):
                windows = tokens.unfold(0, len(ids), 1) if len(tokens) >= len(ids) else ids[:0]
                for place in (windows == ids).all(-1).nonzero()[:, 0].tolist():
                    part = logits[row, place : place + len(ids)]
                    differences.append(float((nats(part, ids) - truth).abs().max()))
    if alone:
        assert len(differences) == sum(c.repetitions for c in material.canaries)
        assert max(differences) < 1e-4
    else:
        assert max(differences) > 0.1


def test_the_documents_show_every_set_up() -> None:
    text = (ROOT / "docs" / "setups.md").read_text(encoding="utf-8")
    for setup in SETUPS.values():
        assert f"\n| {setup.words} |" in text
