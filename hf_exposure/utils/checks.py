"""Checks of arguments: one clear error for each kind of mistake.

Each takes as `what` the name that the error begins with, such as "measure_exposure: samples".
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any


def check_count(what: str, value: Any, least: int = 0, most: float = math.inf) -> int:
    """A whole number from `least` to `most`, as an int; NumPy's are whole numbers too.

    Raises:
        TypeError: it is something else, be it a string, a float or a bool.
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{what} must be a whole number, not {_kind(value)}")
    _check_range(what, int(value), least, most)
    return int(value)


def check_number(
    what: str, value: Any, least: float = -math.inf, most: float = math.inf, open_ends: bool = False
) -> float:
    """A number from `least` to `most`, as a float; NaN is none.

    Args:
        open_ends: `least` and `most` themselves are refused.

    Raises:
        TypeError: it is something else.
        ValueError: it is out of range, or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{what} must be a number, not {_kind(value)}")
    number = float(value)
    if open_ends and number in (least, most):
        number = math.nan
    if math.isnan(number):
        between = f"between {least:g} and {most:g}" if open_ends else "that is not NaN"
        raise ValueError(f"{what}={value!r} is out of range; give a number {between}")
    _check_range(what, number, least, most)
    return number


def check_share(what: str, value: Any) -> float:
    """A number between 0 and 1, such as a confidence level; neither 0 nor 1.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of range.
    """
    return check_number(what, value, 0, 1, open_ends=True)


def check_choice(what: str, value: Any, choices: Collection[str]) -> str:
    """One of some strings.

    Raises:
        ValueError: it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        known = [repr(choice) for choice in choices]
        listed = f"{', '.join(known[:-1])} or {known[-1]}" if len(known) > 1 else known[0]
        raise ValueError(f"{what}={value!r} is not known; use {listed}")
    return value


def check_type(what: str, value: Any, kind: type | tuple[type, ...], wanted: str) -> None:
    """Something of a type.

    Args:
        wanted: what to give, such as "a SecretFormat".

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{what} must be {wanted}, not {_kind(value)}")


def _check_range(what: str, value: float, least: float, most: float) -> None:
    if value < least:
        raise ValueError(f"{what}={value} is too small; give at least {least}")
    if value > most:
        raise ValueError(f"{what}={value} is too large; give at most {most}")


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
