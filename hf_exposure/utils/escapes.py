"""Text as it has to be written in each medium."""

from __future__ import annotations

import re


def code_span(text: str) -> str:
    """Text as a code span in a line of Markdown."""
    plain = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    marks = "`" * (longest + 1)
    space = " " if longest or plain != plain.strip() else ""
    return f"{marks}{space}{plain}{space}{marks}"
