"""Numbers in words."""

from __future__ import annotations

import math


def times(count: int) -> str:
    """How often: "once", "16 times"."""
    return "once" if count == 1 else f"{count:,} times"


def plural(count: int, word: str) -> str:
    """A count with its noun: "1 canary", "2 canaries", "1,024 strings"."""
    if count == 1:
        return f"1 {word}"
    ending = f"{word[:-1]}ies" if word.endswith("y") and word[-2:-1] not in "aeiou" else f"{word}s"
    return f"{count:,} {ending}"


def large(count: int) -> str:
    """A count, a large one as a power of ten: "1,024", "10^19.1"."""
    return f"{count:,}" if count < 10**13 else f"10^{math.log10(count):.1f}"


def digits(value: float, kept: int = 2) -> float:
    """A number with so many significant digits."""
    return float(f"{value:.{kept}g}")


def rounded(value: int) -> int:
    """A count with two significant digits, so that it does not tell where a search ended."""
    return value if value < 100 else int(digits(value)) if value < 1e300 else value
