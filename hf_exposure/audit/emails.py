"""Email addresses in a text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from hf_exposure.audit.finds import Find, find_at

# Marks before an address belong to the text ("...jo@example.org"), unless they join it to a word.
_EMAIL = re.compile(
    r"(?<![\w.+%-])[.+%-]*([A-Za-z0-9_][A-Za-z0-9._%+-]{0,80}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z0-9]{2,24})(?![\w@]|-\w)"
)
_NO_DOMAIN = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js"})
# RFC 5322, section 3.6.4: what stands in these fields is a message's number, not an address.
_MESSAGE_IDS = re.compile(
    r"^(?:(?:resent-)?message-id|references|in-reply-to|content-id):.*(?:\r?\n[ \t].*)*",
    re.IGNORECASE | re.MULTILINE,
)


def emails(text: str) -> Iterator[Find]:
    """Addresses; valid if mail could be sent to them."""
    if "@" not in text:
        return
    fields = [match.span() for match in _MESSAGE_IDS.finditer(text)]
    begins = [begin for begin, _ in fields]
    for match in _EMAIL.finditer(text):
        local, _, domain = match[1].partition("@")
        last = domain.rpartition(".")[2].lower()
        start, end = match.span(1)
        field = bisect_right(begins, start)
        valid = (
            len(local) <= 64
            and len(domain) <= 253
            and ".." not in local
            and not local.endswith(".")
            and not any(part.endswith("-") for part in domain.split("."))
            and last.isalpha()
            and last not in _NO_DOMAIN
            and not (field and start < fields[field - 1][1])
        )
        letters = "A-Za-z0-9" if re.search("[A-Z]", local) else "a-z0-9"
        marks = "".join(mark for mark in "+%" if mark in local)
        space = f"[{letters}.{marks}_-]{{{len(local)}}}"
        secret, key = (start, start + len(local)), match[1].lower()
        yield find_at("email", text, (start, end), secret, space, key, valid, checked=False)
