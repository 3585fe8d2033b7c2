"""What the commands print, and where."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

out = Console(highlight=False)
progress = Console(stderr=True, highlight=False)


def fail(message: str) -> None:
    """Say what went wrong."""
    progress.print(Text("Error: ", style="bold red") + Text(message), soft_wrap=True)


def print_json(data: Any) -> None:
    """For scripts: nothing else goes to standard output."""
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def shows_progress(as_json: bool) -> bool:
    """Whether somebody is there to see a progress bar."""
    return not as_json and sys.stderr.isatty()
