"""Nothing is left in a model that was measured."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hf_exposure.models.undisturbed import undisturbed
from tests.architectures import ARCHITECTURES, compare, make
from tests.tiny import llama

IDS = torch.arange(3, 43)[None]  # longer than what is measured


def shown(value: Any) -> Any:
    """Something that differs when a value is replaced or changed in place."""
    if isinstance(value, torch.Tensor):
        return id(value), value.dtype, value.shape, value.detach().float().cpu().numpy().tobytes()
    if isinstance(value, dict):
        return [(key, shown(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [shown(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return value if isinstance(value, (bool, int, float, str)) else id(value)


def everything(model: nn.Module) -> dict[str, Any]:
    """Weights, buffers, hooks, modes and plain attributes of all modules, and random states."""
    found = {
        f"{place}.{name}": shown(value)
        for place, module in model.named_modules()
        for name, value in vars(module).items()
        if name != "_modules"
    }
    found |= {f"requires_grad {name}": p.requires_grad for name, p in model.named_parameters()}
    states = (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().numpy().tobytes(),
    )
    return found | {"random": states} | shown_state(model)


def shown_state(model: nn.Module) -> dict[str, Any]:
    return {name: shown(value)[1:] for name, value in model.state_dict().items()}


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or before[name] != after[name]
    )


def trained(name: str) -> Any:
    """A model that is in training and has seen a long text."""
    model = make(ARCHITECTURES[name]).train()
    model(input_ids=IDS)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_is_left_in_the_model(name: str) -> None:
    model = trained(name)
    before = everything(model)
    compare(model)
    left = changed(before, everything(model))
    if name == "rwkv":  # it scales its weights between training and evaluation, and back
        left = [each for each in left if not each.endswith("layers_are_rescaled")]
    assert left == []


@pytest.mark.parametrize("name", ["llama", "mamba", "qwen3_moe", "bloom"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_when_a_forward_is_broken_off(name: str, error: type) -> None:
    model = trained(name)
    last = [module for module in model.modules() if not list(module.children())][-1]
    calls = 0

    def breaks(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 2 and not model.training:
            raise error

    handle = last.register_forward_pre_hook(breaks)
    before = everything(model)
    with pytest.raises(error):
        compare(model)
    assert changed(before, everything(model)) == []
    handle.remove()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 4.0,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 12,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_frequencies_that_followed_a_long_text_are_put_back(rope: dict[str, Any]) -> None:
    model = llama(64, rope_parameters=rope, max_position_embeddings=12).train()
    model(input_ids=IDS)
    before = everything(model)
    frequencies = dict(model.named_buffers())["model.rotary_emb.inv_freq"].clone()
    with undisturbed(model):
        model(input_ids=IDS[:, :5])
        within = dict(model.named_buffers())["model.rotary_emb.inv_freq"]
        assert not torch.equal(within, frequencies)
    assert changed(before, everything(model)) == []


class Untidy(nn.Module):
    """Leaves something of every kind behind."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(2), persistent=False)
        self.register_buffer("replaced", torch.zeros(2))
        self.plain = torch.zeros(2)
        self.texts: list[int] = [1]
        self.known = {"a": 1}
        self.flag = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        self.register_buffer("replaced", torch.ones(3))
        self.register_buffer("new", torch.ones(3))
        self.plain.add_(1)
        self.texts.append(2)
        self.known["b"] = 2
        self.flag, self.other = True, "x"
        self.inner.register_forward_hook(lambda *args: None)
        return self.inner(x)


def test_whatever_a_model_leaves_behind_goes() -> None:
    model = Untidy()
    before = everything(model)
    with undisturbed(model):
        model(torch.ones(2))
        assert len(changed(before, everything(model))) > 8
    assert changed(before, everything(model)) == []


class Rescales(nn.Module):
    """Keeps account of what it did to its weights, as RWKV does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.halved = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.halved == self.training:
            with torch.no_grad():
                self.weight.mul_(2.0 if self.training else 0.5)
            self.halved = not self.training
        return x * self.weight


def test_a_model_that_rescales_its_weights_is_not_made_to_do_so_twice() -> None:
    model = Rescales().train()
    for _ in range(2):
        with undisturbed(model):
            model(torch.ones(2))
    model(torch.ones(2))
    assert model.weight.tolist() == [1.0, 1.0]
