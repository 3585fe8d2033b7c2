"""Rows of a model's cache: selected, repeated, and put together from several caches.

A cache is selected with its own `reorder_cache`, which transformers' caches of all kinds have:
keys and values, sliding windows, recurrent states and mixtures of them. Rows of several caches are
put into one by joining those tensors that `reorder_cache` replaces, so that branches which come
from different places can still be run together. Nothing here knows whether a cache bears this:
`Decoder.probe` compares with a full forward.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_exposure.utils.arrays import Ints


@dataclass
class Joined:
    """Rows of several caches: parts of (cache, (n,) rows of it). Nothing is copied yet."""

    parts: list[tuple[Any, Ints]]


def can_be_selected(cache: Any) -> bool:
    """Whether it is a cache whose rows can be chosen."""
    return hasattr(cache, "reorder_cache")


def bytes_of(cache: Any) -> int:
    """Memory that a cache holds."""
    return sum(tensor.nbytes for tensor in _tensors(cache))


def select(cache: Any, rows: Ints, device: torch.device) -> Any:
    """A cache of the given rows, repeats allowed, without touching the one that it comes from.

    Args:
        cache: a model's cache, or a `Joined` one.
        rows: (n,) rows of it.
        device: where indices live.
    """
    if isinstance(cache, Joined):
        return _join(cache, rows, device)
    selected = _twin(cache)
    selected.reorder_cache(torch.as_tensor(rows, device=device))
    return selected


def _join(joined: Joined, rows: Ints, device: torch.device) -> Any:
    """A cache of the given rows of a joined one."""
    ends = np.cumsum([len(chosen) for _, chosen in joined.parts])
    part_of = np.searchsorted(ends, rows, "right")
    order, parts = [], []
    for number in np.unique(part_of):
        cache, chosen = joined.parts[number]
        here = np.flatnonzero(part_of == number)
        order.append(here)
        own = chosen[rows[here] - ends[number] + len(chosen)]
        parts.append((cache, select(cache, own, device)))
    if len(parts) == 1:
        return parts[0][1]
    back = np.argsort(np.concatenate(order))
    whole = _joined([old for old, _ in parts], [new for _, new in parts])
    if (back[1:] < back[:-1]).any():
        whole.reorder_cache(torch.as_tensor(back, device=device))
    return whole


def _has_parts(value: Any) -> bool:
    """Whether it is a cache or a layer of one, not the class of its layers to come."""
    return can_be_selected(value) and hasattr(value, "__dict__") and not isinstance(value, type)


def _twin(value: Any) -> Any:
    """A copy of a cache that shares its tensors, so that selecting rows leaves the cache alone."""
    if isinstance(value, list):
        return [_twin(item) for item in value]
    if isinstance(value, dict):
        return {key: _twin(item) for key, item in value.items()}
    if _has_parts(value):
        twin = copy.copy(value)
        twin.__dict__.update({key: _twin(item) for key, item in vars(value).items()})
        return twin
    return value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a cache, or of a joined one's parts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Joined):
        for cache, _ in value.parts:
            yield from _tensors(cache)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif _has_parts(value):
        yield from _tensors(list(vars(value).values()))


def _joined(before: list[Any], after: list[Any]) -> Any:
    """One cache of the rows of all in `after`.

    Args:
        before: the caches that those were selected from. What `reorder_cache` has replaced in
            them is one row for each branch, all else is the same for all.
    """
    old, new = before[0], after[0]
    if isinstance(new, torch.Tensor):
        return new if new is old else torch.cat(after)
    if isinstance(new, list):
        columns = zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)
        return [_joined(list(olds), list(news)) for olds, news in columns]
    if isinstance(new, dict):
        return {
            key: _joined([one[key] for one in before], [one[key] for one in after]) for key in new
        }
    if _has_parts(new):
        joined = copy.copy(new)
        joined.__dict__.update(_joined([vars(one) for one in before], [vars(one) for one in after]))
        return joined
    return new
