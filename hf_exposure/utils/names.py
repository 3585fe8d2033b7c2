"""Names that may be a path or an id on the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NoReturn


def is_hub_id(name: str) -> bool:
    """Whether a name can be that of a canary set on the Hub: an owner's name, "/", and its own."""
    return re.fullmatch(r"[A-Za-z][\w.-]*/\w[\w.-]*(?<!\.json)", name, re.ASCII) is not None


def looks_like_a_path(name: str) -> bool:
    """Whether a name cannot be a Hub id, which is one or two words with one slash between."""
    return name.startswith((".", "/", "~", os.sep)) or name.count("/") > 1 or "\\" in name


def nearby(name: str, what: str = "folder") -> str:
    """Whether a name was meant as a folder: said where it was not found."""
    return "" if Path(name).exists() else f" (no {what} here, so it was looked for on the Hub)"


def raise_alone(error: BaseException) -> NoReturn:
    """Raise an error without the one that is being handled, which may quote anything."""
    try:
        raise error
    finally:
        error.__context__ = None


def first_line(error: BaseException) -> str:
    """The first line of what a library says, which often goes on at length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(":") if lines else type(error).__name__
