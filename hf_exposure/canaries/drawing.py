"""Canaries drawn at random, with generators that share nothing but a seed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

from hf_exposure.canaries.canary import MOST_REPETITIONS, Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.utils.checks import check_count, check_type

WHERE = "Canaries.generate: "


def derived(seed: int, *purpose: str | None) -> random.Random:
    """A generator for one purpose: the same one on every machine, unrelated to any other."""
    data = json.dumps([seed, *purpose]).encode()
    return random.Random(int.from_bytes(hashlib.sha256(data).digest()[:16], "big"))


def draw_canaries(
    formats: SecretFormat | Sequence[SecretFormat],
    repetitions: Iterable[int],
    per_repetition: int,
    seed: int,
    include: Iterable[Canary | str],
) -> list[Canary]:
    """The canaries of all formats, in order; see `Canaries.generate`."""
    chosen = _check_formats(formats)
    groups = _check_repetitions(repetitions)
    given = [_included(item, chosen, max(groups)) for item in include]
    texts = {canary.text for canary in given}
    if len(texts) < len(given):
        raise ValueError(f"{WHERE}include has the same canary twice; give it once")
    out: list[Canary] = []
    for fmt in dict.fromkeys([*chosen, *(canary.format for canary in given)]):
        own = [canary for canary in given if canary.format == fmt]
        drawn = _draw(fmt, own, groups if fmt in chosen else [], per_repetition, seed, texts)
        texts.update(canary.text for canary in drawn)
        out += drawn
    return out


def _draw(
    fmt: SecretFormat,
    given: list[Canary],
    groups: list[int],
    per_repetition: int,
    seed: int,
    taken: set[str],
) -> list[Canary]:
    """The canaries of one format, `given` ones first in the group that they belong to."""
    waiting = list(given)
    firsts: list[list[Canary]] = []
    for times in groups:
        first = [canary for canary in waiting if _planned(canary) == times][:per_repetition]
        firsts.append(first)
        waiting = [canary for canary in waiting if canary not in first]
    wanted = per_repetition * len(groups) - sum(map(len, firsts))
    # A text that is there already, even from another format, is not drawn again.
    exclude = {text[len(fmt.prefix) : len(text) - len(fmt.suffix)] for text in taken}
    exclude = {secret for secret in exclude if fmt.render(secret) in taken and fmt.contains(secret)}
    if wanted > fmt.size - len(exclude):
        others = f", {len(exclude)} of them taken by include or another format" if exclude else ""
        raise ValueError(
            f"{WHERE}{per_repetition * len(groups)} distinct canaries are asked for, "
            f'but secret=r"{fmt.secret}" has only {fmt.size} strings{others}; lower '
            "per_repetition, or use a larger secret space"
        )
    source = derived(seed, "secrets", fmt.template, fmt.secret, fmt.check)
    bits = max(64, seed.bit_length())  # no fewer than the seed has
    secrets = iter(fmt.sample_distinct(wanted, seed=source.getrandbits(bits), exclude=exclude))
    out: list[Canary] = []
    for times, first in zip(groups, firsts, strict=True):
        rest = per_repetition - len(first)
        out += [*first, *(Canary(fmt, next(secrets), times) for _ in range(rest))]
    return out + waiting


def flip_coins(items: list[Canary], seed: int) -> list[Canary]:
    """Each canary in or out by its own coin; controls, and those flipped before, as they are."""
    coins = derived(seed, "coins")
    out = []
    for canary in items:
        heads = coins.random() < 0.5
        if canary.planned is None and canary.inserted:
            times = canary.repetitions
            canary = replace(canary, repetitions=times if heads else 0, planned=times)
        out.append(canary)
    return out


def _planned(canary: Canary) -> int:
    return canary.repetitions if canary.planned is None else canary.planned


def _included(item: Canary | str, formats: list[SecretFormat], most: int) -> Canary:
    if isinstance(item, Canary):
        return item
    check_type(f"{WHERE}an item of include", item, str, "a Canary or a string")
    for fmt in formats:
        if fmt.contains(item):
            return Canary(fmt, item, most)
    known = ", ".join(f'r"{fmt.secret}"' for fmt in formats)
    raise ValueError(
        f"{WHERE}include has a string of {len(item)} characters that no format contains; give "
        f"secrets that match {known}, or Canary objects"
    )


def _check_formats(formats: SecretFormat | Sequence[SecretFormat]) -> list[SecretFormat]:
    chosen = list(formats) if isinstance(formats, Iterable) else [formats]
    if not chosen:
        raise ValueError(f"{WHERE}formats is empty; give at least one SecretFormat")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{WHERE}formats has the same format twice; give it once")
    return chosen


def _check_repetitions(repetitions: Iterable[int]) -> list[int]:
    groups = [
        check_count(f"{WHERE}repetitions", times, most=MOST_REPETITIONS) for times in repetitions
    ]
    if not groups:
        raise ValueError(f"{WHERE}repetitions is empty; give a list such as [0, 1, 16]")
    return groups
