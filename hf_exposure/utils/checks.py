"""Checks of arguments, one error for each kind of mistake."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_number(what: str, value: Any, least: int = 1) -> None:
    """Refuse all but whole numbers of at least `least`.

    Raises:
        TypeError: it is something else.
        ValueError: it is too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{what} must be a whole number, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{what}={value} is too small; give at least {least}")


def check_count(what: str, value: Any, least: int = 0) -> None:
    """Refuse all but ints of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} must be an int, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{what}={value} is too small; use {least} or more")
