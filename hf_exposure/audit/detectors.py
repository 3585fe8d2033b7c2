"""Real secrets in a text: what they are, whether check digits hold, and what space they are of.

Numbers are validated by `phonenumbers` and `python-stdnum`, the extra "audit". A find carries the
part of it that is secret and the expression of that part's shape; all else belongs to its context.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import chain

from hf_exposure.audit.emails import emails
from hf_exposure.audit.finds import Find
from hf_exposure.audit.keys import api_keys
from hf_exposure.audit.numbers import cards, ibans, library, overlaps, phones, ssns, within
from hf_exposure.utils.typed import typed

KINDS = ("api_key", "iban", "card", "ssn", "email", "phone")  # where two overlap, the first counts

# Kinds that need a library: its module, and its package.
_NEEDS = {
    "iban": ("stdnum", "python-stdnum"),
    "card": ("stdnum", "python-stdnum"),
    "ssn": ("stdnum", "python-stdnum"),
    "phone": ("phonenumbers", "phonenumbers"),
}


@typed
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
    found = list(chain.from_iterable(_DETECTORS[kind](text) for kind in chosen if kind != "phone"))
    kept = _apart([find for find in found if find.valid], [])
    if "phone" in chosen:
        numbers = list(phones(text, region, [(find.start, find.end) for find in kept]))
        # Part of a number with check digits that do not hold is no phone number.
        others = _apart([find for find in found if not find.valid], kept)
        around = [(find.start, find.end) for find in others]
        whole = [
            find for find in numbers if find.valid and not within(around, find.start, find.end)
        ]
        found += numbers
        kept = _apart(whole, kept)
    return _apart([find for find in found if not find.valid], kept)


def _apart(finds: list[Find], kept: list[Find]) -> list[Find]:
    """Those kept, and of some finds as many as fit between them, in the order of their places.

    Of those that overlap the first kind counts, and of one kind that which ends first: so most of
    them have a place. Of two with one end the longer one.
    """
    out = sorted(kept, key=lambda find: find.start)
    spans = [(find.start, find.end) for find in out]
    for kind in KINDS:
        own = [find for find in finds if find.kind == kind]
        chosen: list[Find] = []
        last = 0
        for find in sorted(own, key=lambda find: (find.end, find.start)):
            if find.start >= last and not overlaps(spans, find.start, find.end):
                chosen.append(find)
                last = find.end
        out = sorted([*out, *chosen], key=lambda find: find.start)
        spans = [(find.start, find.end) for find in out]
    return out


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
            library(_NEEDS[kind][0])
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
    if region is not None and region not in library("phonenumbers").SUPPORTED_REGIONS:
        raise ValueError(
            f"region={region!r} is not known; give two capital letters such as 'US' or 'GB', or "
            "None for numbers with a country code only"
        )


_DETECTORS: dict[str, Callable[[str], Iterator[Find]]] = {
    "api_key": api_keys,
    "iban": ibans,
    "card": cards,
    "ssn": ssns,
    "email": emails,
}
