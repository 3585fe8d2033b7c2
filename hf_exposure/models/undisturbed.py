"""A model that is measured and afterwards as it was: modes, gradients, random states."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from hf_exposure.models.snapshot import nothing_left


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model and all random states are as before.

    So they are when an error passes through; see `nothing_left`. What `torch.compile` has compiled
    runs as it was before: chunks and caches have a new shape at nearly every step, and compiling
    for each of them would take longer than all of the measurement.
    """
    modes = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    plainly: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if any(_is_compiled(module) for module, _ in modes):
        plainly = torch.compiler.set_stance("force_eager")
    try:
        fork = torch.random.fork_rng(devices=devices)
        with nothing_left(model), plainly, fork, torch.no_grad():
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])


def _is_compiled(module: Any) -> bool:
    """Whether `torch.compile` was told to compile a module, in one of the three ways there are."""
    return (
        hasattr(module, "_orig_mod")  # torch.compile(module)
        or getattr(module, "_compiled_call_impl", None) is not None  # module.compile()
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
    )


@contextlib.contextmanager
def said_of_base() -> Iterator[None]:
    """What is wrong with the model before training is said of `base`, and not of `model`."""
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("model: "):
            raise
        raise type(error)(f"base{str(error).removeprefix('model')}") from None
