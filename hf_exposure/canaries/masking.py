"""Secrets masked in texts that come from elsewhere: the one place that does it.

What a library says may quote what it was given: whole or cut, escaped for JSON, HTML, a URL or a
`repr`, with its spaces collapsed, in another case.
"""

from __future__ import annotations

import functools
import html
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

from hf_exposure.canaries.canary import MASK, Canary
from hf_exposure.utils.names import raise_alone

_SHORT = 3  # characters; so short a secret tells nothing alone, and any number would do
_KEPT = (ValueError, TypeError, RuntimeError)


def mask_secrets(text: str, canaries: Iterable[Canary]) -> str:
    """`text` with one "•" for each character of every secret in it, whatever its form.

    Two thirds of a secret are masked too, and four of its first characters where the text was cut.
    Secrets of up to three characters are masked only within their template.
    """
    lowered = text.lower()
    seen: dict[int, set[str]] = {}  # what stands in the text, by its length
    for canary in sorted(set(canaries), key=lambda one: len(one.secret), reverse=True):
        text = text.replace(canary.text, canary.label())
        secret = canary.secret
        if len(secret) <= _SHORT:
            continue
        if secret.isascii() and secret.isalnum():  # whatever the escape, it stays as it is
            width = _least(secret)
            if width not in seen:
                seen[width] = _windows(lowered, width)
            if not seen[width].isdisjoint(_parts(secret.lower())):
                text = _without_parts(text, secret)
        else:
            text = _pattern(secret).sub(MASK * len(secret), text)
            text = _without_parts(text, secret)
        text = _without_ends(text, secret)
    return text


def mask_error(error: BaseException, canaries: Iterable[Canary]) -> Exception | None:
    """An error without secrets in its message, its notes or those that led to it.

    None if the error has none of them, and may pass as it is.
    """
    items = list(canaries)
    texts = [text for one in _chain(error) for text in _texts(one)]
    if all(mask_secrets(text, items) == text for text in texts):
        return None
    ours = type(error).__module__.startswith("hf_exposure.models")
    kind = type(error) if ours or type(error) in _KEPT else RuntimeError
    name = "" if kind is type(error) else f"{type(error).__name__}: "
    out = kind(name + mask_secrets(str(error), items))
    assert isinstance(out, Exception)
    notes = [mask_secrets(str(note), items) for note in getattr(error, "__notes__", ())]
    if notes:
        out.__notes__ = notes  # type: ignore[attr-defined]  # since Python 3.11
    return out


@contextmanager
def secrets_masked(canaries: Iterable[Canary]) -> Iterator[None]:
    """Masks secrets in errors that pass: one from elsewhere may quote what it was given."""
    try:
        yield
        return
    except Exception as error:
        masked = mask_error(error, canaries)
        if masked is None:
            raise
    raise_alone(masked)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those that led to it."""
    out: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and not any(one is known for known in out):
            out.append(one)
            waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return out


def _texts(error: BaseException) -> list[str]:
    return [str(error), repr(error), *map(str, getattr(error, "__notes__", ()))]


def _least(secret: str) -> int:
    """So many characters in a row are as good as the secret."""
    return max(_SHORT + 1, -(-2 * len(secret) // 3))


def _windows(text: str, width: int) -> set[str]:
    return {text[at : at + width] for at in range(len(text) - width + 1)}


def _parts(secret: str) -> set[str]:
    return _windows(secret, _least(secret))


def _without_parts(text: str, secret: str) -> str:
    """A text in which no part of a secret stands that is as good as the whole."""
    parts, width, lowered = _parts(secret.lower()), _least(secret), text.lower()
    if len(lowered) != len(text):  # as of "İ"
        lowered = text
    hidden: set[int] = set()
    for at in range(len(text) - width + 1):
        if lowered[at : at + width] in parts:
            hidden.update(range(at, at + width))
    if not hidden:
        return text
    return "".join(MASK if at in hidden else char for at, char in enumerate(text))


def _without_ends(text: str, secret: str) -> str:
    """A text in which no secret begins where it was cut, nor ends where it was cut before."""
    ends = secret[: _SHORT + 1].lower(), secret[-_SHORT - 1 :].lower()
    if not any(end in text.lower() for end in ends):
        return text
    for size in range(min(len(secret), _least(secret)) - 1, _SHORT, -1):
        first, last = re.escape(secret[:size]), re.escape(secret[-size:])
        text = re.sub(rf"{first}(?=\W*$|…|\.\.\.)", MASK * size, text, flags=re.IGNORECASE)
        text = re.sub(rf"(^\W*|…|\.\.\.){last}", rf"\1{MASK * size}", text, flags=re.IGNORECASE)
    return text


@functools.lru_cache(maxsize=1024)
def _pattern(secret: str) -> re.Pattern[str]:
    """A secret in any of its forms, each of its characters in a form of its own."""
    pieces = []
    for piece in re.findall(r"\s+|\S", secret):
        if piece.isspace():
            pieces.append(r"(?:\s|\\[ntr]|%20|%0A|%0D|%09|\+|&nbsp;|&#\d+;)+")
        else:
            pieces.append("(?:" + "|".join(map(re.escape, _forms(piece))) + ")")
    return re.compile("".join(pieces), re.IGNORECASE)


def _forms(char: str) -> list[str]:
    """How a character may be written, longer forms first."""
    numbers = (f"&#{ord(char)};", f"&#x{ord(char):x};")
    url = "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
    escaped = char.encode("unicode_escape").decode()
    data = "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
    known = {
        char,
        json.dumps(char)[1:-1],
        repr(char)[1:-1],
        ascii(char)[1:-1],
        escaped,
        data,
        html.escape(char),
        quote(char, safe="") if char.isprintable() else url,
        url,
        f"\\{char}",
        *numbers,
    }
    # What was escaped may be escaped again.
    known |= {json.dumps(form)[1:-1] for form in known}
    return sorted(known, key=len, reverse=True)
