"""What the README tells people to type works, block by block."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
from typer.testing import CliRunner

from hf_exposure.cli import app
from tests.tiny import TOKENIZERS, corpus, llama

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^ {4}hf-exposure (.*)$", README, re.MULTILINE)


def newcomer(folder: Path) -> dict[str, Any]:
    """What somebody has who reads the README: a model, its tokenizer, and data."""
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    lines = list(corpus()[:60])
    return {
        "dataset": Dataset.from_dict({"text": lines}),
        "held_out": Dataset.from_dict(dict(tokenizer(lines[:8]))).select_columns(["input_ids"]),
        "model": llama(len(tokenizer)),
        "tokenizer": tokenizer,
        "collator": DataCollatorForLanguageModeling(tokenizer, mlm=False),
        "args": TrainingArguments(
            str(folder / "out"), num_train_epochs=1, per_device_train_batch_size=32,
            eval_strategy="epoch", save_strategy="no", report_to=[], use_cpu=True,
        ),
        "Trainer": Trainer,
    }


@pytest.mark.slow
def test_the_blocks_of_the_readme_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(BLOCKS) >= 5
    monkeypatch.chdir(tmp_path)
    known = newcomer(tmp_path)
    for block in BLOCKS:
        if "tokenized" in block and "tokenized" not in known:
            tokenizer = known["tokenizer"]
            known["tokenized"] = known["train"].map(
                lambda batch, encode=tokenizer: {"input_ids": encode(batch["text"])["input_ids"]},
                batched=True, remove_columns=["text"],
            )
        exec(compile(block, "README.md", "exec"), known)
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "canaries.json").is_file()


@pytest.mark.slow
def test_the_commands_of_the_readme_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(COMMANDS) >= 4
    monkeypatch.chdir(tmp_path)
    known = newcomer(tmp_path)
    known["dataset"].to_json("train.jsonl")
    known["model"].save_pretrained("my-model")
    known["tokenizer"].save_pretrained("my-model")
    for command in COMMANDS:
        result = CliRunner().invoke(app, shlex.split(command), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "report.html").is_file()


def test_the_blocks_are_short_enough_to_be_read() -> None:
    assert max(block.count("\n") for block in BLOCKS) <= 12


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "make test" in README
    assert 'test_command="make test"' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_files_that_the_readme_links_to_are_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
