"""Numbers in words."""

from __future__ import annotations


def times(number: int) -> str:
    """A number of repetitions as text."""
    return "once" if number == 1 else f"{number} times"
