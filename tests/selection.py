"""Which of a test's parameters are quick ones, that `-m "not slow"` runs too."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def rest_slow(values: Iterable[Any], quick: int | Collection[Any]) -> list[Any]:
    """All values as parameters: the first `quick`, or those in it, and the others marked slow."""
    first = range(quick) if isinstance(quick, int) else None
    out = []
    for place, value in enumerate(values):
        if place in first if first is not None else value in quick:  # type: ignore[operator]
            out.append(value)
        else:
            parts = value if isinstance(value, tuple) else (value,)
            out.append(pytest.param(*parts, marks=pytest.mark.slow))
    return out
