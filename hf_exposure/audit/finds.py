"""A find, and the expressions of texts of the same shape as its secret part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Find:
    """One find in a text.

    Attributes:
        kind: one of `KINDS`.
        start, end: its place in the text.
        text: what stands there; not shown by `repr`, nor is anything else of the text.
        secret_start, secret_end: the part that is secret; the rest of it is given away by what it
            is, such as a phone number's country code or the domain of an address.
        space: the expression of all strings that could stand in the secret part's place.
        check: "luhn" if `space` is narrowed to those that pass it.
        valid: whether it passed its validation: False for a false find.
        checked: whether a check digit, or a library that knows the numbers that are assigned,
            vouches for it; False where there is none to ask.
        key: equal for finds that are the same secret, however it is spaced.
    """

    kind: str
    start: int
    end: int
    text: str = field(repr=False)
    secret_start: int
    secret_end: int
    space: str = field(repr=False)
    check: str | None
    valid: bool
    checked: bool
    key: str = field(repr=False)


def find_at(
    kind: str,
    text: str,
    span: tuple[int, int],
    secret: tuple[int, int],
    space: str,
    key: str,
    valid: bool,
    *,
    check: str | None = None,
    checked: bool = True,
) -> Find:
    """The find at a place of a text; see `Find`."""
    shown = text[span[0] : span[1]]
    return Find(kind, *span, shown, *secret, space, check, valid, checked, key)


def shape(text: str) -> str:
    """The expression of texts of the same shape: digits stay digits, letters keep their case, all
    else stays as it is. Only ASCII digits and letters have a class; others stand for themselves.

    Example:
        >>> shape("+1 (212) 555-0100")
        '\\\\+[0-9] \\\\([0-9]{3}\\\\) [0-9]{3}-[0-9]{4}'
    """
    return joined(map(_class_of, text))


def digits_alone(text: str) -> str:
    """The same where letters stay too: the "ext" of a phone number is no secret."""
    return joined(_class_of(char) if char.isdecimal() else itself(char) for char in text)


def _class_of(char: str) -> str:
    if char.isdecimal():  # digits of other scripts too, which it does not match: told as such later
        return "[0-9]"
    if "a" <= char <= "z":
        return "[a-z]"
    if "A" <= char <= "Z":
        return "[A-Z]"
    return itself(char)


def itself(char: str) -> str:
    """The expression of one character."""
    return f"\\{char}" if char in ".^$*+?()[]{}|\\" else char


def joined(classes: Iterable[str]) -> str:
    """Runs of one class as one with a count."""
    runs: list[tuple[str, int]] = []
    for one in classes:
        if runs and runs[-1][0] == one:
            runs[-1] = (one, runs[-1][1] + 1)
        else:
            runs.append((one, 1))
    return "".join(one if times == 1 else f"{one}{{{times}}}" for one, times in runs)
