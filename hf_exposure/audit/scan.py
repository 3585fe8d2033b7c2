"""The real secrets that stand in the rows of a dataset: each once, where it came first.

What cannot be looked at is counted, with a reason that has no word of the text in it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_exposure.audit.detectors import find_secrets
from hf_exposure.audit.finds import Find
from hf_exposure.canaries.formats import HOLE
from hf_exposure.utils.checks import check_type

_BINARY = re.compile("[\x00-\x08\x0e-\x1f\x7f�]")
_AFTER = re.compile(r"[^\w\s]{0,3}(?:\r?\n){0,2}")


@dataclass(frozen=True)
class Skipped:
    """What was left out, and why.

    Attributes:
        what: "rows" or "finds".
        why: the reason, without a word of the text.
        count: how many.
        row: the first row that it was so in.
    """

    what: str
    why: str
    count: int
    row: int


class LeftOut:
    """Counts what is left out, and remembers the first row of each reason."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], int] = {}

    def add(self, what: str, why: str, row: int) -> None:
        """Count one, and why it was."""
        self._counts[what, why] += 1
        self._first.setdefault((what, why), row)

    def list(self) -> list[Skipped]:
        """All reasons, in the order in which they came up."""
        return [
            Skipped(what, why, count, self._first[what, why])
            for (what, why), count in self._counts.items()
        ]


@dataclass
class Hit:
    """A secret where it came first."""

    find: Find
    prefix: str
    suffix: str
    rows: list[int]
    occurrences: int = 0

    @property
    def secret(self) -> str:
        """The secret itself, without what its detector has found around it."""
        find = self.find
        return find.text[find.secret_start - find.start : find.secret_end - find.start]


def texts_of(dataset: Any, column: str) -> tuple[Iterator[Any], int | None]:
    """What stands in a column, row by row, and the number of rows if it is known."""
    if isinstance(dataset, (str, bytes, os.PathLike)):
        raise TypeError(
            "audit_dataset: dataset is a string or a path; load it first, such as with "
            "datasets.load_dataset(...)"
        )
    check_type("audit_dataset: dataset", dataset, Iterable, "rows")
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"audit_dataset: dataset has the splits {', '.join(map(str, dataset))}; give one of "
            "them, such as dataset['train']"
        )
    names = getattr(dataset, "column_names", None)
    total = len(dataset) if hasattr(dataset, "__len__") else None
    if names is not None:
        _check_column(column, names)
        return (row[column] for row in dataset.select_columns([column])), total
    if isinstance(dataset, Sequence) and dataset and isinstance(dataset[0], Mapping):
        _check_column(column, dataset[0])
    return (row.get(column) if isinstance(row, Mapping) else row for row in dataset), total


def _check_column(column: str, names: Iterable[str]) -> None:
    if column not in names:
        raise ValueError(
            f"audit_dataset: column={column!r} is not there, only {', '.join(map(repr, names))}"
        )


def scan(
    texts: Iterable[Any],
    kinds: tuple[str, ...],
    region: str | None,
    limit: int | None,
    before: int,
    max_characters: int,
    left_out: LeftOut,
) -> tuple[int, Counter[str], Counter[str], list[Hit]]:
    """The number of rows, of finds and of false ones by kind, and the different secrets."""
    found: Counter[str] = Counter()
    false: Counter[str] = Counter()
    hits: dict[tuple[str, str], Hit] = {}
    rows = 0
    for number, text in enumerate(texts):
        if limit is not None and number >= limit:
            break
        rows += 1
        why = _no_text(text, max_characters)
        finds: list[Find] = []
        if why is None:
            try:
                finds = find_secrets(text, kinds, region)
            except Exception as error:  # may quote the text
                why = f"the detectors failed ({type(error).__name__})"
        if why is not None:
            left_out.add("rows", why, number)
            continue
        for find in finds:
            if not find.valid:
                false[find.kind] += 1
                continue
            found[find.kind] += 1
            hit = hits.get((find.kind, find.key))
            if hit is None:
                hit = Hit(find, *context_of(text, find, before), [])
                hits[find.kind, find.key] = hit
            hit.occurrences += 1
            if hit.rows[-1:] != [number]:
                hit.rows.append(number)
    return rows, found, false, list(hits.values())


def _no_text(text: Any, max_characters: int) -> str | None:
    """Why a row cannot be looked at, if so."""
    if not isinstance(text, str):
        return f"no text but {'None' if text is None else type(text).__name__}"
    if not text or text.isspace():
        return "empty"
    if len(text) > max_characters:
        return f"longer than {max_characters:,} characters"
    if "\x00" in text or len(_BINARY.findall(text)) > len(text) / 20:
        return "binary"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "not valid Unicode"
    return None


def context_of(text: str, find: Find, before: int) -> tuple[str, str]:
    """The text before and after a secret that its template is made of."""
    begin = max(0, find.secret_start - before)
    prefix = text[begin : find.secret_start]
    if begin > 0:  # from the beginning of a word on
        space = re.search(r"\s+", prefix)
        if space and space.end() < len(prefix):
            prefix = prefix[space.end() :]
    # A template has one hole.
    prefix = prefix.rpartition(HOLE)[2]
    # Not into the next word: half a word, or the space that belongs to it, is no token of its own.
    after = _AFTER.match(text, find.end)
    return prefix, text[find.secret_end : find.end] + (after[0] if after else "")
