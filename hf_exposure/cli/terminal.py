"""What the commands print, and where."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.text import Text

from hf_exposure.utils.escapes import printable
from hf_exposure.utils.files import write_text

_WIDE = 10_000


class _Plain(Console):
    """Prints strings as they are: no markup, and nothing that the terminal would obey.

    Into a file or a pipe, whose width nobody knows, whole lines go.
    """

    @property
    def size(self) -> ConsoleDimensions:
        known = self.is_terminal or "COLUMNS" in os.environ
        return super().size if known else ConsoleDimensions(_WIDE, super().size.height)

    @size.setter
    def size(self, new: tuple[int, int]) -> None:
        self._width, self._height = new

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable(text, keep="\n\t"), **how)


out = _Plain(highlight=False, markup=False, emoji=False)
progress = _Plain(stderr=True, highlight=False, markup=False, emoji=False)


def fail(message: str) -> None:
    """Say what went wrong; of long words, such as a file's name can be, the beginning."""
    message = re.sub(r"\S{300,}", lambda word: f"{word[0][:60]}…", message)
    progress.print(
        Text("Error: ", style="bold red") + Text(printable(message, keep="\n\t")), soft_wrap=True
    )


def print_json(data: Any) -> None:
    """For scripts: nothing else goes to standard output."""
    text = json.dumps(data, indent=1, ensure_ascii=False)
    # JSON escapes some control characters itself; the others stand within texts alone.
    sys.stdout.write(printable(text, keep="\n", escape=json.dumps) + "\n")


def deliver(
    data: dict[str, Any], tables: Iterable[Any], as_json: bool, output: Path | None
) -> None:
    """Print results as JSON or as tables, and write the JSON to a file if there is to be one."""
    if as_json:
        print_json(data)
    else:
        for table in tables:
            out.print(table)
    if output is not None:
        write_text(output, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def shows_progress(as_json: bool) -> bool:
    """Whether somebody is there to see a progress bar."""
    return not as_json and sys.stderr.isatty()
