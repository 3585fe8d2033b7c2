"""What a forward may leave in a model, and how it is put back.

Some models write to themselves when they run: rotary frequencies that follow the longest text so
far, states of recurrent layers, masks that grow, hooks that are installed on first use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

_OF_TORCH = ("training", "_parameters", "_buffers", "_modules")
_LARGE = 1 << 20  # bytes of a buffer of integers that is taken for weights


@contextlib.contextmanager
def nothing_left(model: Any) -> Iterator[None]:
    """Buffers, plain attributes and hooks of all modules are afterwards what they were.

    They are put back also when an error or an interruption passes through. Parameters are not
    copied. Where a model changes them in its forward, as RWKV does between training and
    evaluation, it keeps account of that in its attributes, which are then left with them.
    """
    modules = list(model.modules())
    weights = _weights(model)
    buffers = [(module, dict(module._buffers)) for module in modules]
    tensors = [tensor for _, own in buffers for tensor in own.values() if tensor is not None]
    attributes = [(module, _attributes(module)) for module in modules]
    for _, own in attributes:
        tensors += [value for value in own.values() if isinstance(value, torch.Tensor)]
        containers = [value for value in own.values() if isinstance(value, (dict, list, set))]
        own[""] = [(value, value.copy()) for value in containers]
    values = [(one, _version(one), one.clone()) for one in tensors if not _like_weights(one)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, version, value in values:
                if version is None or _version(tensor) != version:
                    tensor.copy_(value)
        for module, own in buffers:
            _put_back(module._buffers, own)
        if _weights(model) == weights:
            for module, own in attributes:
                for container, items in own.pop(""):
                    _fill(container, items)
                _put_back(vars(module), own, _attributes(module))


def _weights(model: Any) -> list[Any]:
    """What differs after a parameter was changed or replaced."""
    found: list[Any] = []
    for weight in model.parameters():
        scales = getattr(weight, "SCB", None)  # of eight-bit weights
        for tensor in (weight, scales) if isinstance(scales, torch.Tensor) else (weight,):
            # What is offloaded is a new tensor after each forward.
            offloaded = tensor.device.type == "meta"
            found.append("offloaded" if offloaded else (id(tensor), _version(tensor)))
    return found


def _attributes(module: Any) -> dict[str, Any]:
    """What a forward may change besides buffers; of PyTorch's layers and wrappers, the hooks."""
    own = vars(module)
    if type(module).__module__.partition(".")[0] == "torch":
        return {name: value for name, value in own.items() if "_hooks" in name}
    return {name: value for name, value in own.items() if name not in _OF_TORCH}


def _put_back(
    place: dict[str, Any], old: dict[str, Any], new: dict[str, Any] | None = None
) -> None:
    new = place if new is None else new
    for name in [name for name in new if name not in old]:
        del place[name]
    for name, value in old.items():
        if name not in place or place[name] is not value:
            place[name] = value


def _fill(container: Any, items: Any) -> None:
    if len(container) == len(items) and all(
        one is other for one, other in zip(_flat(container), _flat(items), strict=True)
    ):
        return
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(items)


def _flat(container: Any) -> list[Any]:
    if isinstance(container, dict):
        return [*container.keys(), *container.values()]
    return list(container)


def _version(tensor: torch.Tensor) -> int | None:
    """A number that each change in place makes larger; None where PyTorch does not count."""
    return None if tensor.is_inference() else int(tensor._version)


def _like_weights(tensor: torch.Tensor) -> bool:
    """Packed weights of a quantized model, which are large, are buffers too."""
    packed = not tensor.is_floating_point() and tensor.nbytes > _LARGE
    return packed or tensor.device.type == "meta"
