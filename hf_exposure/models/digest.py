"""Which weights were measured, as a hash."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from hf_exposure.utils.files import chunks

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def weights_digest(model: Any) -> dict[str, Any]:
    """SHA-256 of a model's weights: of each file of a folder, or of a model at hand.

    Where a model is spread over processes (FSDP), all of them have to call this.

    Raises:
        TypeError: it is something else.
        ValueError: there are no weights, or not all of them are in memory.
    """
    if not isinstance(model, (str, os.PathLike)):
        if not hasattr(model, "state_dict"):
            kind = type(model).__name__
            raise TypeError(f"weights must be a folder, a file or a model, not {kind}")
        return {"state_dict": _of_tensors(model)}
    path = Path(model)
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [one for one in files if one.is_file() and one.suffix in _WEIGHTS]
    if not files:
        raise ValueError(f"weights: {str(path)!r} has no file of weights, such as .safetensors")
    names = [one.name if path.is_file() else one.relative_to(path).as_posix() for one in files]
    return {"files": dict(zip(names, map(_of_file, files), strict=True))}


def _of_file(path: Path) -> str:
    digest = hashlib.sha256()
    for part in chunks(path):
        digest.update(part)
    return digest.hexdigest()


def _of_tensors(model: Any) -> str:
    """Of names, types, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name, one in sorted(model.state_dict().items()):
        if not isinstance(one, torch.Tensor):
            continue
        if one.device.type == "meta":
            raise ValueError("weights: not all are in memory; give the folder of the model")
        digest.update(f"{name} {one.dtype} {tuple(one.shape)}\n".encode())
        whole = one.full_tensor() if hasattr(one, "full_tensor") else one  # spread by FSDP2
        flat = whole.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if len(flat) else b"")
    return digest.hexdigest()
