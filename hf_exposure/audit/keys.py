"""Keys of providers in a text."""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hf_exposure.audit.finds import Find, find_at, itself, joined

_LEAST_ENTROPY = 3.0  # bits a character; 16 random ones of base 32 have 3.6, give or take 0.15
_ALNUM = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class _Key:
    """How the keys of one provider look: a fixed beginning, then characters of an alphabet.

    Attributes:
        begins, body: expressions; the parts of `fixed` within the body are no secret.
        alphabet: of each secret character.
        check: tells whether a key (beginning, body) is real; None if only its entropy can.
    """

    begins: str
    body: str
    alphabet: str
    fixed: str = "[^A-Za-z0-9]"
    tail: int = 0  # characters at the end that are computed from the others
    check: Callable[[str], bool] | None = None


def _github_checksum(body: str) -> bool:
    """The last six characters are the CRC-32 of the others, in base 62 (as GitHub has told when it
    introduced these tokens, in April 2021)."""
    number, out = zlib.crc32(body[:-6].encode()), ""
    while number:
        number, place = divmod(number, 62)
        out = _ALNUM[place] + out
    return out.rjust(6, "0") == body[-6:]


_KEYS = (
    _Key("(?:AKIA|ASIA)", "[A-Z2-7]{16}", "[A-Z2-7]"),  # AWS
    _Key("gh[pousr]_", "[A-Za-z0-9]{36}", "[A-Za-z0-9]", tail=6, check=_github_checksum),
    _Key("github_pat_", "[A-Za-z0-9]{22}_[A-Za-z0-9]{59}", "[A-Za-z0-9]"),
    _Key("xox[abprs]-", "(?:[0-9]{10,13}-){2,3}[A-Za-z0-9]{24,34}", "[A-Za-z0-9]"),  # Slack
    _Key("[sr]k_(?:live|test)_", "[A-Za-z0-9]{24,99}", "[A-Za-z0-9]"),  # Stripe
    _Key("AIza", "[A-Za-z0-9_-]{35}", "[A-Za-z0-9_-]", fixed=""),  # Google
    # OpenAI's have "OpenAI" in base 64 in their middle.
    _Key(
        "sk-(?:proj-|svcacct-|admin-)?",
        "[A-Za-z0-9_-]{40,200}",
        "[A-Za-z0-9_-]",
        fixed="T3BlbkFJ",
        check=lambda body: "T3BlbkFJ" in body,
    ),
    _Key("hf_", "[A-Za-z0-9]{34}", "[A-Za-z0-9]"),  # Hugging Face
)


def api_keys(text: str) -> Iterator[Find]:
    """Keys of known providers; valid if their checksum holds or they look random."""
    for key in _KEYS:
        # Within a word they are something else, as they are if their alphabet goes on.
        more = key.alphabet if "_-" in key.alphabet else "[A-Za-z0-9]|[_-][A-Za-z0-9]"
        before = "(?<![A-Za-z0-9])(?<![A-Za-z0-9][_-])"
        for match in re.finditer(f"{before}({key.begins})({key.body})(?!{more})", text):
            body = match[2]
            if body.startswith("ant-"):  # another provider's
                continue
            classes: list[str] = []
            place, secret = 0, body[: len(body) - key.tail]
            for part in re.finditer(key.fixed, secret) if key.fixed else ():
                classes += [key.alphabet] * (part.start() - place)
                classes += map(itself, part[0])
                place = part.end()
            classes += [key.alphabet] * (len(secret) - place)
            telling = key.check is None or key.check(body)
            valid = telling and entropy(secret) >= _LEAST_ENTROPY and "EXAMPLE" not in body
            secret_span, checked = (match.start(2), match.end() - key.tail), key.check is not None
            yield find_at(
                "api_key",
                text,
                match.span(),
                secret_span,
                joined(classes),
                match[0],
                valid,
                checked=checked,
            )


def entropy(text: str) -> float:
    """Shannon entropy of a text's characters, bits each; 0 for an empty text.

    Example:
        >>> entropy("aaaa"), entropy("abcd")
        (0.0, 2.0)
    """
    shares = [count / len(text) for count in Counter(text).values()]
    return 0.0 - math.fsum(share * math.log2(share) for share in shares)
