"""Warnings that name the line of a user's code, however deep the package gives them."""

from __future__ import annotations

import sys
import warnings

_OURS = ("hf_exposure.", "torch.", "contextlib")  # the last two: decorators of the package's code


def warn(message: str) -> None:
    """A UserWarning at the line that called the package."""
    frame, level = sys._getframe(1), 2
    while (back := frame.f_back) and f"{frame.f_globals.get('__name__')}.".startswith(_OURS):
        frame, level = back, level + 1
    warnings.warn(message, stacklevel=level)
