"""Real secrets in a text: what they are, whether check digits hold, and what space they are of.

Numbers are validated by `phonenumbers` and `python-stdnum`, the extra "audit". A find carries the
part of it that is secret and the expression of that part's shape; all else belongs to its context.
"""

from __future__ import annotations

import bisect
import importlib
import ipaddress
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

KINDS = ("api_key", "iban", "card", "ssn", "email", "phone")  # where two overlap, the first counts

# Kinds that need a library: its module, and its package.
_NEEDS = {
    "iban": ("stdnum", "python-stdnum"),
    "card": ("stdnum", "python-stdnum"),
    "ssn": ("stdnum", "python-stdnum"),
    "phone": ("phonenumbers", "phonenumbers"),
}
_LEAST_ENTROPY = 3.0  # bits a character; 16 random ones of base 32 have 3.6, give or take 0.15
_ALNUM = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Find:
    """One find in a text.

    Attributes:
        kind: one of `KINDS`.
        start, end: its place in the text.
        text: what stands there; not shown by `repr`, nor is anything else of the text.
        secret_start, secret_end: the part that is secret; the rest of it is given away by what it
            is, such as a phone number's country code or the domain of an address.
        space: the expression of all strings that could stand in the secret part's place.
        check: "luhn" if `space` is narrowed to those that pass it.
        valid: whether it passed its validation: False for a false find.
        checked: whether a check digit, or a library that knows the numbers that are assigned,
            vouches for it; False where there is none to ask.
        key: equal for finds that are the same secret, however it is spaced.
    """

    kind: str
    start: int
    end: int
    text: str = field(repr=False)
    secret_start: int
    secret_end: int
    space: str = field(repr=False)
    check: str | None
    valid: bool
    checked: bool
    key: str = field(repr=False)


def find_secrets(
    text: str, kinds: Collection[str] | None = None, region: str | None = "US"
) -> list[Find]:
    """All finds in a text, false ones too, in the order of their places; none overlap.

    Args:
        text: any text.
        kinds: some of `KINDS`; None takes all.
        region: two letters of the country whose phone numbers may stand without a country code;
            None for none.

    Raises:
        ImportError: `phonenumbers` or `python-stdnum` is not there.
        ValueError: a kind or region is not known.

    Example:
        >>> for find in find_secrets("Card 4111 1111 1111 1111, mail jo.doe@example.org"):
        ...     print(find.kind, find.valid, find.space)
        card True [0-9]{4} [0-9]{4} [0-9]{4} [0-9]{4}
        email True [a-z0-9._-]{6}
    """
    chosen = check_kinds(kinds)
    if "phone" in chosen:
        check_region(region)
    kept: list[Find] = []
    ends: list[tuple[int, int]] = []  # of those kept, by their places
    for kind in chosen:
        for find in _phones(text, region) if kind == "phone" else _DETECTORS[kind](text):
            place = bisect.bisect(ends, (find.start, find.end))
            before = place > 0 and ends[place - 1][1] > find.start
            after = place < len(ends) and ends[place][0] < find.end
            if not before and not after:
                ends.insert(place, (find.start, find.end))
                kept.append(find)
    return sorted(kept, key=lambda find: find.start)


def check_kinds(kinds: Collection[str] | None) -> tuple[str, ...]:
    """The kinds asked for, in the order of `KINDS`; makes sure that their libraries are there.

    Raises:
        ImportError, ValueError: see `find_secrets`.
    """
    if isinstance(kinds, str):
        raise TypeError(f"kinds={kinds!r} is a string; give a list, such as kinds=[{kinds!r}]")
    unknown = [kind for kind in kinds or () if kind not in KINDS]
    if unknown or (kinds is not None and not kinds):
        raise ValueError(
            f"kinds={list(kinds or ())!r}: {'nothing is asked for' if not unknown else ''}"
            f"{' and '.join(map(repr, unknown))}{' is not known' if unknown else ''}; "
            f"use some of {', '.join(KINDS)}"
        )
    chosen = tuple(kind for kind in KINDS if kinds is None or kind in kinds)
    for kind in chosen:
        if kind in _NEEDS:
            _library(_NEEDS[kind][0])
    return chosen


def libraries(kinds: Collection[str]) -> list[str]:
    """The packages that find and validate these kinds, as they are installed.

    Example:
        >>> libraries(["email", "ssn", "card"])
        ['python-stdnum']
    """
    return sorted({_NEEDS[kind][1] for kind in kinds if kind in _NEEDS})


def check_region(region: str | None) -> None:
    """Refuse a region that `phonenumbers` does not know.

    Raises:
        ValueError: it does not.
    """
    if region is not None and region not in _library("phonenumbers").SUPPORTED_REGIONS:
        raise ValueError(
            f"region={region!r} is not known; give two capital letters such as 'US' or 'GB', or "
            "None for numbers with a country code only"
        )


def _library(name: str) -> Any:
    """A module of the extra, imported when it is needed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise  # it is there, and cannot be imported for another reason
        raise ImportError(
            f"the audit needs {name.partition('.')[0]!r}, which is not installed: "
            'pip install "hf-exposure[audit]"'
        ) from None


# Shapes


def shape(text: str) -> str:
    """The expression of texts of the same shape: digits stay digits, letters keep their case, all
    else stays as it is. Only ASCII digits and letters have a class; others stand for themselves.

    Example:
        >>> shape("+1 (212) 555-0100")
        '\\\\+[0-9] \\\\([0-9]{3}\\\\) [0-9]{3}-[0-9]{4}'
    """
    return _joined(map(_class_of, text))


def _digits_alone(text: str) -> str:
    """The same where letters stay too: the "ext" of a phone number is no secret."""
    return _joined(_class_of(char) if char.isdecimal() else _itself(char) for char in text)


def _class_of(char: str) -> str:
    if char.isdecimal():  # digits of other scripts too, which it does not match: told as such later
        return "[0-9]"
    if "a" <= char <= "z":
        return "[a-z]"
    if "A" <= char <= "Z":
        return "[A-Z]"
    return _itself(char)


def _itself(char: str) -> str:
    return f"\\{char}" if char in ".^$*+?()[]{}|\\" else char


def _joined(classes: Iterator[str]) -> str:
    """Runs of one class as one with a count."""
    runs: list[tuple[str, int]] = []
    for one in classes:
        if runs and runs[-1][0] == one:
            runs[-1] = (one, runs[-1][1] + 1)
        else:
            runs.append((one, 1))
    return "".join(one if times == 1 else f"{one}{{{times}}}" for one, times in runs)


# Numbers with check digits

# Issuers' first digits and lengths: Visa, Mastercard, American Express, Discover, JCB, Diners
# Club, UnionPay.
_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|(?:6011|64[4-9]\d|65\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|62\d{14,17}"
)
_CARD = re.compile(
    r"(?<![\w.+-])[2-6][0-9]{3}(?:[0-9]{9,15}|(?:[ -][0-9]{4}){3}"
    r"|[ -][0-9]{6}[ -][0-9]{4,5})(?![\w-]|\.\d)"
)


def _cards(text: str) -> Iterator[Find]:
    luhn = _library("stdnum.luhn")
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if _ISSUER.fullmatch(digits):
            yield Find(
                "card",
                match.start(),
                match.end(),
                match[0],
                match.start(),
                match.end(),
                shape(match[0]),
                "luhn",
                bool(luhn.is_valid(digits)),
                True,
                digits,
            )


_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}")


def _ibans(text: str) -> Iterator[Find]:
    iban, countries = _library("stdnum.iban"), _library("stdnum.numdb").get("iban")
    for match in _IBAN.finditer(text):
        known = countries.info(match[0][:4])[0][1].get("bban")
        if known is None:
            continue
        length = 4 + sum(int(part) for part in re.findall(r"(\d+)!", known))
        # The pattern reads on into words in capitals: take as many characters as the country has.
        place, end = 0, match.start()
        while place < length and end < match.end():
            place += text[end] not in " -"
            end += 1
        # Shorter than its country's: no IBAN, or one that was cut. Longer: something else.
        if place < length or text[end : end + 1].isalnum():
            if " " in match[0].strip() or not re.search(r"\d{8}", match[0]):
                continue  # some words in capitals, which nobody would take for one
            end = match.end()
        whole = text[match.start() : end]
        compact = re.sub(r"[ -]", "", whole)
        # Country and check digits are given: as many strings are left as there are accounts.
        begin = match.start() + 4
        begin += len(text[begin:end]) - len(text[begin:end].lstrip(" -"))
        yield Find(
            "iban",
            match.start(),
            end,
            whole,
            begin,
            end,
            shape(text[begin:end]),
            None,
            bool(iban.is_valid(compact)),
            True,
            compact,
        )


_SSN = re.compile(r"(?<![\w-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![\w-])")


def _ssns(text: str) -> Iterator[Find]:
    ssn = _library("stdnum.us.ssn")
    for match in _SSN.finditer(text):
        yield Find(
            "ssn",
            match.start(),
            match.end(),
            match[0],
            match.start(),
            match.end(),
            shape(match[0]),
            None,
            bool(ssn.is_valid(match[0])),
            True,
            match[0],
        )


# Phone numbers

_SOME_DIGITS = re.compile(r"\d(?:[^\w\n]{0,4}\d){5}")  # nothing to look for in texts without any


def _phones(text: str, region: str | None) -> Iterator[Find]:
    library = _library("phonenumbers")
    if not _SOME_DIGITS.search(text):
        return
    # First the true ones, then whatever else has the length of one.
    for leniency in (library.Leniency.VALID, library.Leniency.POSSIBLE):
        for match in library.PhoneNumberMatcher(text, region, leniency):
            valid = bool(library.is_valid_number(match.number))
            if leniency == library.Leniency.POSSIBLE and valid:
                continue  # fits the plan, but stands where no number does: not even a false find
            raw = match.raw_string
            valid = valid and not _is_internet_address(raw)
            given = _given_digits(
                raw, library.national_significant_number(match.number), match.number.extension or ""
            )
            places = [place for place, char in enumerate(raw) if char.isdecimal()]
            begin = match.start + places[given]
            end = match.start + places[-1] + 1
            yield Find(
                "phone",
                match.start,
                match.end,
                raw,
                begin,
                end,
                _digits_alone(text[begin:end]),
                None,
                valid,
                True,
                "".join(raw[place] for place in places[given:]),
            )


def _is_internet_address(raw: str) -> bool:
    """Whether it is an IPv4 address: 209.203.162.2 fits the plan of the US as 209-203-1622."""
    try:
        ipaddress.IPv4Address(raw.strip("()[]"))
    except ValueError:
        return False
    return True


def _given_digits(raw: str, national: str, extension: str) -> int:
    """How many digits stand before the national number: country code, trunk or dialling prefix."""
    digits = "".join(str(int(char)) for char in raw if char.isdecimal())
    end = len(digits) - len(extension)
    if digits[:end].endswith(national) and digits[end:] == extension:
        return end - len(national)
    return 0


# Addresses

_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9_][A-Za-z0-9._%+-]{0,80}@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z0-9]{2,24}(?![\w@-])"
)
_NO_DOMAIN = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "js"})
# RFC 5322, section 3.6.4: what stands in these fields is a message's number, not an address.
_MESSAGE_IDS = re.compile(
    r"^(?:(?:resent-)?message-id|references|in-reply-to|content-id):.*(?:\r?\n[ \t].*)*",
    re.IGNORECASE | re.MULTILINE,
)


def _emails(text: str) -> Iterator[Find]:
    if "@" not in text:
        return
    numbers = [match.span() for match in _MESSAGE_IDS.finditer(text)]
    for match in _EMAIL.finditer(text):
        local, _, domain = match[0].partition("@")
        last = domain.rpartition(".")[2].lower()
        valid = (
            len(local) <= 64
            and len(domain) <= 253
            and ".." not in local
            and not local.endswith(".")
            and not any(part.endswith("-") for part in domain.split("."))
            and last.isalpha()
            and last not in _NO_DOMAIN
            and not any(begin <= match.start() < end for begin, end in numbers)
        )
        letters = "A-Za-z0-9" if re.search("[A-Z]", local) else "a-z0-9"
        marks = "".join(mark for mark in "+%" if mark in local)
        yield Find(
            "email",
            match.start(),
            match.end(),
            match[0],
            match.start(),
            match.start() + len(local),
            f"[{letters}.{marks}_-]{{{len(local)}}}",
            None,
            valid,
            False,
            match[0].lower(),
        )


# Keys


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


def _api_keys(text: str) -> Iterator[Find]:
    for key in _KEYS:
        for match in re.finditer(
            f"(?<![A-Za-z0-9_-])({key.begins})({key.body})(?![A-Za-z0-9_-])", text
        ):
            body = match[2]
            if body.startswith("ant-"):  # another provider's
                continue
            end = match.end() - key.tail
            classes: list[str] = []
            place, secret = 0, body[: len(body) - key.tail]
            for part in re.finditer(key.fixed, secret) if key.fixed else ():
                classes += [key.alphabet] * (part.start() - place)
                classes += map(_itself, part[0])
                place = part.end()
            classes += [key.alphabet] * (len(secret) - place)
            telling = key.check is None or key.check(body)
            valid = telling and entropy(secret) >= _LEAST_ENTROPY and "EXAMPLE" not in body
            yield Find(
                "api_key",
                match.start(),
                match.end(),
                match[0],
                match.start(2),
                end,
                _joined(iter(classes)),
                None,
                valid,
                key.check is not None,
                match[0],
            )


def entropy(text: str) -> float:
    """Shannon entropy of a text's characters, bits each; 0 for an empty text.

    Example:
        >>> entropy("aaaa"), entropy("abcd")
        (0.0, 2.0)
    """
    shares = [count / len(text) for count in Counter(text).values()]
    return 0.0 - math.fsum(share * math.log2(share) for share in shares)


_DETECTORS: dict[str, Callable[[str], Iterator[Find]]] = {
    "api_key": _api_keys,
    "iban": _ibans,
    "card": _cards,
    "ssn": _ssns,
    "email": _emails,
}
