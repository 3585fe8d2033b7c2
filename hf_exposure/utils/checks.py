"""Checks of arguments: one clear error for each kind of mistake.

Each takes as `what` the name that the error begins with, such as "measure_exposure: samples".
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from numbers import Integral, Real
from pathlib import Path
from typing import Any


def check_count(what: str, value: Any, least: float = 0, most: float = math.inf) -> int:
    """A whole number from `least` to `most`, as an int; NumPy's are whole numbers too.

    Raises:
        TypeError: it is something else, be it a string, a float or a bool.
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{what} must be a whole number, not {kind_of(value)}")
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
        raise TypeError(f"{what} must be a number, not {kind_of(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value == abs(value) else -math.inf
    if open_ends and number in (least, most):
        number = math.nan
    if math.isnan(number):
        between = f"between {least:g} and {most:g}" if open_ends else "that is not NaN"
        raise ValueError(f"{what}={digits(value)} is out of range; give a number {between}")
    _check_range(what, number, least, most)
    return number


def check_numbers(what: str, values: Any) -> None:
    """A list or an array, (n,), of numbers; NaN is none.

    Raises:
        TypeError: it is something else.
        ValueError: it has another shape, or holds NaN.
    """
    import numpy as np  # the command line's --help does not wait for it

    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError):
        array = np.array(None)
    if array.dtype.kind not in "iuf" and array.size:
        raise TypeError(f"{what} must be a list of numbers, not {kind_of(values)}")
    if array.ndim != 1:
        raise ValueError(f"{what} must be of one dimension, not {array.ndim}")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ValueError(f"{what} holds NaN, which is not finite; leave it out")


# Logits divided by less are beyond what a float32 holds.
LEAST_TEMPERATURE = 1e-6


def check_temperature(what: str, value: Any) -> float:
    """A sampling temperature: from 1e-6 on, and finite.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of range.
    """
    number = check_number(what, value)
    if not LEAST_TEMPERATURE <= number < math.inf:
        raise ValueError(
            f"{what}={digits(value)} is out of range; give a finite number from "
            f"{LEAST_TEMPERATURE:g} on, or decode greedily for the limit of 0"
        )
    return number


def check_share(what: str, value: Any) -> float:
    """A number between 0 and 1, such as a confidence level; neither 0 nor 1.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of range.
    """
    return check_number(what, value, 0, 1, open_ends=True)


def check_text(what: str, value: Any, wanted: str = "a string") -> str:
    """A string that UTF-8 can hold: no half of a surrogate pair.

    Args:
        wanted: what to give, such as "the name of a column".

    Raises:
        TypeError: it is something else.
        ValueError: it cannot be written as UTF-8.
    """
    check_type(what, value, str, wanted)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{what} holds half a surrogate pair, which no file can hold; give whole characters"
        ) from None
    return str(value)


def check_path(what: str, value: Any) -> Path:
    """The path of a file or folder, as a Path.

    Raises:
        TypeError: it is no path.
        ValueError: no file can be called so.
    """
    check_type(what, value, (str, os.PathLike), "a path")
    name = os.fspath(value)
    check_text(what, name, "a path")
    if not name or "\0" in name:
        raise ValueError(f"{what}={name!r} is no path; give the name of a file")
    if len(os.path.basename(name)) > 255:
        raise ValueError(f"{what} has a name of {len(name):,} characters; give one of at most 255")
    return Path(name)


def check_model(what: str, value: Any) -> None:
    """A model that is loaded, or a scorer.

    Raises:
        TypeError: it is something else, such as a model's name or its class.
    """
    if isinstance(value, type) or not (
        hasattr(value, "modules") or hasattr(value, "log_perplexities")
    ):
        raise TypeError(
            f"{what} is of type {kind_of(value)}; load it first, such as with "
            "AutoModelForCausalLM.from_pretrained(...)"
        )


def check_tokenizer(what: str, value: Any) -> None:
    """A tokenizer, or a processor that has one.

    Raises:
        TypeError: it is something else.
    """
    known = hasattr(value, "decode") or hasattr(value, "tokenizer")
    if isinstance(value, type) or not callable(value) or not known:
        raise TypeError(
            f"{what} is of type {kind_of(value)}; give the model's, such as "
            "AutoTokenizer.from_pretrained(...)"
        )


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
        raise TypeError(f"{what} must be {wanted}, not {kind_of(value)}")


def digits(value: Any) -> str:
    """A number for an error; Python does not write one of thousands of digits."""
    huge = isinstance(value, int) and abs(value) >= 10**100
    return "a number of many digits" if huge else str(value)


def _check_range(what: str, value: float, least: float, most: float) -> None:
    if least <= value <= most:
        return
    if value < least:
        raise ValueError(f"{what}={digits(value)} is too small; give at least {least}")
    raise ValueError(f"{what}={digits(value)} is too large; give at most {most}")


def kind_of(value: Any) -> str:
    """What a value is, for an error."""
    return "None" if value is None else type(value).__name__
