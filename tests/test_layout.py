"""What import-linter cannot see of the layout: who runs a model, and what an import costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "hf_exposure"

# What a model is called; the names under which a call of one would show.
MODELS = {"model", "_model", "unwrapped", "bare_model"}


def model_calls(source: str) -> list[int]:
    """Lines that run a model: `model(...)`, `self.model(...)` or `model.forward(...)`."""

    def runs(called: ast.expr) -> bool:
        if isinstance(called, ast.Attribute) and called.attr in {"forward", "__call__"}:
            return runs(called.value)
        return (isinstance(called, ast.Name) and called.id in MODELS) or (
            isinstance(called, ast.Attribute) and called.attr in MODELS
        )

    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if runs(call.func)]


def test_only_one_file_runs_a_model() -> None:
    calls = {
        str(path.relative_to(ROOT)): lines
        for path in sorted(ROOT.rglob("*.py"))
        if (lines := model_calls(path.read_text(encoding="utf-8")))
    }
    assert calls.keys() == {"models/causal.py"}


@pytest.mark.parametrize(
    ("what", "unwanted"),
    [
        ("import hf_exposure", "torch transformers scipy numpy huggingface_hub"),
        ("import hf_exposure.cli", "torch transformers scipy numpy huggingface_hub"),
        ("from hf_exposure import Canaries, inject_canaries", "torch transformers"),
    ],
)
def test_an_import_does_not_wait_for_libraries_that_it_does_not_need(
    what: str, unwanted: str
) -> None:
    code = f"{what}; import sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert not set(unwanted.split()) & set(loaded.stdout.split())


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("model(ids)", True),
        ("self.model(input_ids=ids)", True),
        ("out = self._model(**batch)", True),
        ("model.forward(ids)", True),
        ("self.model.__call__(ids)", True),
        ("model.generate(ids)", False),
        ("make_model(config)", False),
    ],
)
def test_a_call_of_a_model_is_told_from_other_calls(source: str, found: bool) -> None:
    assert bool(model_calls(source)) is found
