"""The metric's arguments, checked and brought into one form."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

import hf_exposure

METHODS = ("sampling", "skewnorm")  # those that need no model
_SETTINGS = ("samples", "max_forwards", "seed", "batch_size", "bos", "accelerator", "progress")
_ROUNDING = 1e-3  # bits below zero that a sum of rounded log-probabilities may have


def loaded_model(
    model: Any, model_id: Any, canaries: Any, given: dict[str, Any]
) -> tuple[Any, Any]:
    """The model and its tokenizer, loaded if need be."""
    tokenizer = given["tokenizer"]
    if canaries is None:
        raise ValueError(
            "exposure: canaries is missing; give the canary set, or the path of its manifest"
        )
    if (model is None) == (model_id is None):
        what = "are missing" if model is None else "are both there"
        raise ValueError(f"exposure: model and model_id {what}; give one of them")
    if model is not None:
        for name in ("revision", "device"):
            if given[name] is not None:
                raise ValueError(f"exposure: {name} is for model_id; the model here is loaded")
        if isinstance(model, str):
            raise ValueError(f"exposure: model={model!r} is a string; give it as model_id")
        if tokenizer is None:
            raise ValueError(
                "exposure: tokenizer is missing; give the one that the model was trained with"
            )
        return model, tokenizer
    if tokenizer is not None and not isinstance(tokenizer, (str, os.PathLike)):
        raise ValueError(
            "exposure: with model_id the tokenizer is loaded too; give its folder or id, or give a "
            "loaded model as well, as model"
        )
    try:
        return hf_exposure.load_model(
            os.fspath(model_id),
            tokenizer=None if tokenizer is None else os.fspath(tokenizer),
            revision=given["revision"],
            device=given["device"],
            argument="model_id",
        )
    except OSError as error:
        raise OSError(f"exposure: {str(error).removeprefix('--')}") from error


def canary_set(given: Any, format: Any) -> Any:
    """The canary set in whatever form it was given. What may be a secret is not shown in errors."""
    if isinstance(given, (hf_exposure.Canaries, str, os.PathLike)):
        if format is not None:
            raise ValueError(
                "exposure: format is for a list of secrets; a canary set knows its own, so leave "
                "it out"
            )
        if isinstance(given, hf_exposure.Canaries):
            return given
        if not os.path.isfile(given) and os.fspath(given).count("/") != 1:
            raise ValueError(
                "exposure: canaries is a string that names no file; give the path of a manifest "
                "that Canaries.save wrote, the Hub id of a set, or a list of secrets with their "
                "format"
            )
        return hf_exposure.load_canaries(os.fspath(given), argument="exposure: canaries")
    if not isinstance(given, Iterable):
        raise TypeError(
            "exposure: canaries must be a canary set, the path of its manifest, or a list of "
            f"secrets, not {type(given).__name__}"
        )
    items = list(given)
    if isinstance(format, dict):
        if missing := {"template", "secret"} - format.keys():
            raise ValueError(f"exposure: format has no {sorted(missing)[0]!r}")
        format = hf_exposure.SecretFormat.from_dict(format)
    if format is None and any(isinstance(item, str) for item in items):
        raise ValueError(
            "exposure: canaries are strings, but format is missing; give their SecretFormat"
        )
    return hf_exposure.Canaries(
        hf_exposure.Canary(format, item, repetitions=1) if isinstance(item, str) else item
        for item in items
    )


def log_perplexities(name: str, values: Any) -> list[float]:
    """Log-perplexities as plain numbers, from a list, an array or a tensor on any device."""
    if values is None:
        return []
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()
    elif not hasattr(values, "__array__"):
        if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
            raise _no_numbers(name, type(values).__name__)
        values = [item.item() if hasattr(item, "item") else item for item in values]
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        raise _no_numbers(name, "nested lists") from None
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        kind = "other things" if array.dtype.kind not in "fiu" else f"{array.ndim} dimensions"
        raise _no_numbers(name, kind)
    array = array.astype(np.float64)
    for wrong, what in (
        (np.isnan(array), "NaN; look why the model gives no number there, or leave it out"),
        (array < -_ROUNDING, "negative; a log-perplexity is -log2 Pr, so turn the sign"),
    ):
        if wrong.any():
            raise ValueError(f"exposure: {name}[{int(np.argmax(wrong))}] is {what}")
    return [float(value) for value in array]


def _no_numbers(name: str, found: str) -> ValueError:
    return ValueError(
        f"exposure: {name} must be a flat list of numbers, log-perplexities in bits, not {found}"
    )


def check_method(method: Any) -> None:
    """Refuse a method that does not do with log-perplexities."""
    if method in ("auto", "exact"):
        raise ValueError(
            f"exposure: method={method!r} needs the model; give model= or model_id=, and "
            "canaries=, or use 'sampling' or 'skewnorm'"
        )
    if method not in METHODS:
        raise ValueError(
            f"exposure: method={method!r} is not known; use {' or '.join(map(repr, METHODS))}"
        )


def check_names(settings: dict[str, Any]) -> None:
    """Refuse an argument that `measure_exposure` does not have."""
    for name in settings:
        if name not in _SETTINGS:
            raise TypeError(
                f"exposure: {name} is no argument of compute; besides those that it names itself "
                f"there are {', '.join(_SETTINGS)}"
            )


def number(value: Any) -> float:
    """NaN, which no check lets through, for what is no number."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return float(value) if number else math.nan


def check_number(name: str, value: Any, holds: bool, wanted: str) -> None:
    """Refuse a number of which something does not hold."""
    if not holds:
        raise ValueError(f"exposure: {name}={value!r} is not {wanted}")
