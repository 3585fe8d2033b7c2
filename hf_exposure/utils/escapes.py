"""Text from outside, written so that each medium shows it and does not obey it.

Templates, names, paths and reasons come from anywhere. Each medium has one function here, which is
called at its border: where a table, a card or a terminal gets its text. HTML has the escaping of
its own templates.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_JOINERS = "\u200c\u200d"  # without them some scripts cannot be written
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # categories of characters
_MARKUP = re.compile(r"([\\`*_{}\[\]|#~$^!])")


def printable(text: str, keep: str = "", escape: Callable[[str], str] = repr) -> str:
    """Text for a terminal: what would move, colour or hide other text becomes an escape (`\\x1b`).

    These are control and format characters, separators of lines and halves of surrogate pairs,
    but for those in `keep`. `escape` writes one of them, in quotes.
    """
    return "".join(
        char
        if char in keep or char in _JOINERS or unicodedata.category(char) not in _HIDDEN
        else escape(char)[1:-1]
        for char in text
    )


def markdown(text: str) -> str:
    """Text within a line or a table's cell of Markdown, with no markup or HTML in it."""
    plain = _MARKUP.sub(r"\\\1", printable(" ".join(text.split())))
    # Entities hold where backslashes do not: in what looks for a tag or a comment by itself.
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code_span(text: str, cell: bool = False) -> str:
    """Text as a code span in a line of Markdown, or in a table's cell."""
    plain = printable(text)
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    marks = "`" * (longest + 1)
    space = " " if longest or plain != plain.strip() else ""
    span = f"{marks}{space}{plain}{space}{marks}"
    return span.replace("|", "\\|") if cell else span
