"""Cards, bank accounts, social security and phone numbers in a text.

Each detector looks at every place where a number may begin, whatever was found or rejected before
it, so its finds may overlap. How far it reads on from there has a limit, so that the work grows
with the length of the text and no faster.
"""

from __future__ import annotations

import importlib
import ipaddress
import math
import re
from bisect import bisect
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from hf_exposure.audit.finds import Find, digits_alone, find_at, shape


def library(name: str) -> Any:
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


# Issuers' first digits and lengths: Visa, Mastercard, American Express, Discover, JCB, Diners
# Club, UnionPay.
_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"
    r"|3[47]\d{13}|(?:6011|64[4-9]\d|65\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|62\d{14,17}"
)
# Not within a longer number, a decimal or an international phone number.
_CARD = re.compile(
    r"(?<![\w+])(?<!\d[.-])(?=([2-6][0-9]{3}(?:[0-9]{9,15}|(?:[ -][0-9]{4}){3}"
    r"|[ -][0-9]{6}[ -][0-9]{4,5}))(?!\w|[.-]\d))"
)


def cards(text: str) -> Iterator[Find]:
    """Numbers of an issuer's prefix and length; valid if Luhn's check digit holds."""
    luhn = library("stdnum.luhn")
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[1])
        if _ISSUER.fullmatch(digits):
            span, valid = match.span(1), bool(luhn.is_valid(digits))
            yield find_at("card", text, span, span, shape(match[1]), digits, valid, check="luhn")


_IBAN = re.compile(r"(?<![A-Za-z0-9])(?=([A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,30}))")


def ibans(text: str) -> Iterator[Find]:
    """Account numbers of a country's length; valid if they have its letters and digits and the
    remainder by 97 is 1."""
    iban, countries = library("stdnum.iban"), library("stdnum.numdb").get("iban")
    for match in _IBAN.finditer(text):
        start, read = match.span(1)
        known = countries.info(match[1][:4])[0][1].get("bban")
        if known is None:
            continue
        length = 4 + sum(int(part) for part in re.findall(r"(\d+)!", known))
        # The pattern reads on into words in capitals: take as many characters as the country has.
        place, end = 0, start
        while place < length and end < read:
            place += text[end] not in " -"
            end += 1
        # Shorter than its country's: no IBAN, or one that was cut. Longer: something else.
        if place < length or text[end : end + 1].isalnum():
            end = start + re.match(r"[A-Z0-9-]*", match[1]).end()  # type: ignore[union-attr]
            if end < read or not re.search(r"\d{8}", text[start:end]):
                continue  # some words in capitals, which nobody would take for one
        compact = re.sub(r"[ -]", "", text[start:end])
        # Country and check digits are given: as many strings are left as there are accounts.
        begin = start + 4 + (text[start + 4] in " -")
        space, valid = shape(text[begin:end]), bool(iban.is_valid(compact, check_country=False))
        yield find_at("iban", text, (start, end), (begin, end), space, compact, valid)


_SSN = re.compile(r"(?<!\w)(?<!\d-)[0-9]{3}-[0-9]{2}-[0-9]{4}(?!\w|-\d)")


def ssns(text: str) -> Iterator[Find]:
    """Social security numbers of the US with hyphens; valid if they may have been given out."""
    ssn = library("stdnum.us.ssn")
    for match in _SSN.finditer(text):
        span, valid = match.span(), bool(ssn.is_valid(match[0]))
        yield find_at("ssn", text, span, span, shape(match[0]), match[0], valid)


_SOME_DIGITS = re.compile(r"\d(?:[^\w\n]{0,4}\d){5}")  # nothing to look for in texts without any
# A run of groups of digits, and one group with the marks before it.
_RUN = re.compile(r"(?<![\w%])[+(]{0,2}\d+(?:[ ()./\xa0\u2010-\u2015-]{1,3}\+?\d+)+(?![\w%])")
_GROUP = re.compile(r"[+(]{0,2}\d+")
_MOST_DIGITS = 15  # E.164
_MOST_GROUPS = 7


def phones(text: str, region: str | None, taken: Sequence[tuple[int, int]]) -> Iterator[Find]:
    """Phone numbers; valid if they fit their country's numbering plan.

    Args:
        taken: what other kinds have found, in order.
    """
    numbers = library("phonenumbers")
    if not _SOME_DIGITS.search(text):
        return
    tries = max(len(text), 1 << 16)  # the library gives up after 65,535 in vain
    ends: list[tuple[int, int]] = list(taken)
    # First the true ones, then those that the library loses for what stands beside them, then
    # whatever else has the length of one.
    for match in numbers.PhoneNumberMatcher(text, region, numbers.Leniency.VALID, tries):
        if not overlaps(taken, match.start, match.end):
            ends.append((match.start, match.end))
            yield _phone(text, match.start, match)
    for start, end in _windows(text, sorted(ends), _lengths(region)):
        # The matcher takes any grouping of a number that stands alone; here only the usual ones.
        strict = numbers.Leniency.STRICT_GROUPING
        for match in numbers.PhoneNumberMatcher(text[start:end], region, strict):
            if match.end - match.start == end - start:
                yield _phone(text, start, match)
    for match in numbers.PhoneNumberMatcher(text, region, numbers.Leniency.POSSIBLE, tries):
        # What fits the plan, but stands where no number does, is not even a false find.
        if not numbers.is_valid_number(match.number):
            yield _phone(text, match.start, match)


def _phone(text: str, start: int, match: Any) -> Find:
    numbers = library("phonenumbers")
    raw = match.raw_string
    if ")" not in raw:  # the library takes the first bracket of "(212-555-0100)"
        start, raw = start + len(raw) - len(raw.lstrip("(")), raw.lstrip("(")
    valid = bool(numbers.is_valid_number(match.number)) and not _is_internet_address(raw)
    national = numbers.national_significant_number(match.number)
    given = _given_digits(raw, national, match.number.extension or "")
    places = [place for place, char in enumerate(raw) if char.isdecimal()]
    begin, end = start + places[given], start + places[-1] + 1
    key = "".join(raw[place] for place in places[given:])
    span, space = (start, start + len(raw)), digits_alone(text[begin:end])
    return find_at("phone", text, span, (begin, end), space, key, valid)


def _windows(
    text: str, taken: list[tuple[int, int]], lengths: Collection[int]
) -> Iterator[tuple[int, int]]:
    """Groups in a row, outside of what is taken, that together have the digits of a number."""
    for run in _RUN.finditer(text):
        groups = [match.span() for match in _GROUP.finditer(text, *run.span())]
        free = [not overlaps(taken, *span) for span in groups]
        abroad = 0  # digits that still belong to a number with "+"
        for first, (start, stop) in enumerate(groups):
            plus, digits, place = text[start] == "+", 0, first
            abroad = _MOST_DIGITS if plus else abroad if free[first] else 0
            if abroad > 0 and not plus:
                abroad -= stop - start
                continue
            while place < min(len(groups), first + _MOST_GROUPS) and digits < _MOST_DIGITS:
                begin, end = groups[place]
                if not free[place] or (place > first and text[begin] == "+"):
                    break
                digits += end - begin - len(text[begin:end]) + len(text[begin:end].lstrip("+("))
                place += 1
                if place - first > 1 and (digits >= 7 if plus else digits in lengths):
                    yield start, end


def _lengths(region: str | None) -> set[int]:
    """The digits of a number without "+", with and without its prefix."""
    numbers = library("phonenumbers")
    plan = None if region is None else numbers.PhoneMetadata.metadata_for_region(region)
    if plan is None:
        return set()
    before = (0, len(plan.national_prefix or ""), len(str(plan.country_code)))
    return {one + more for one in plan.general_desc.possible_length for more in before}


def overlaps(taken: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Whether a place has something in common with one of some others, which are in order."""
    place = bisect(taken, (start, end))
    before = place > 0 and taken[place - 1][1] > start
    return before or (place < len(taken) and taken[place][0] < end)


def within(places: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Whether one of some places, which are in order and apart, holds all of a place."""
    place = bisect(places, (start, math.inf))
    return place > 0 and places[place - 1][1] >= end


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
