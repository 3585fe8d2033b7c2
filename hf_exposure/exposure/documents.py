"""What all results have in common: a masked table to look at, and a JSON file to keep.

Secrets are masked in all that is printed or written, unless `reveal=True`.
"""

from __future__ import annotations

import copy
import functools
import html
import importlib.metadata
import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, overload

from hf_exposure.canaries.loading import is_manifest
from hf_exposure.canaries.sets import Canaries
from hf_exposure.utils.escapes import printable
from hf_exposure.utils.files import load_json, write_text
from hf_exposure.utils.tables import html_table, plain_table
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import rounded

if TYPE_CHECKING:
    from rich.console import Group
    from typing_extensions import Self

T = TypeVar("T")


_SHORT = 20  # characters of a cell that is never cut


class Row:
    """One item, a dataclass: its `repr` shows what a table does, with coarse figures."""

    def coarse(self) -> Self:
        """The same with all figures to one decimal, as masked files have log-perplexities."""
        figures: dict[str, Any] = vars(self)
        return replace(
            self,  # type: ignore[type-var]
            **{name: round(x, 1) for name, x in figures.items() if isinstance(x, float)},
        )

    def __repr__(self) -> str:
        shown: Any = self.coarse()
        figures = [f"{one.name}={getattr(shown, one.name)!r}" for one in fields(shown) if one.repr]
        return f"{type(self).__name__}({', '.join(figures)})"


class Rows(Sequence[T]):
    """What was measured, one item for each row, in a fixed order. A slice is a plain sequence."""

    _items: tuple[T, ...]

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    @typed
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)


class Tabular(ABC):
    """Something that is looked at as a table: in a script, a terminal, a notebook.

    Attributes:
        right: the columns whose cells stand flush right.
    """

    right: ClassVar[frozenset[int]] = frozenset()

    @abstractmethod
    def cells(self, reveal: bool = False) -> tuple[list[str], list[list[str]]]:
        """The table as text: its headings, and its rows."""

    @abstractmethod
    def summary(self) -> str:
        """One line that stands below it."""

    @typed
    def table(self, reveal: bool = False) -> Group:
        """For rich: the table and the line below it; secrets are masked unless `reveal`."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        headings, rows = self.cells(reveal)
        summary = printable(self.summary())
        if not rows:  # headings over nothing say nothing
            return Group(Text(summary))
        table = Table(box=None, pad_edge=False)
        for place, heading in enumerate(headings):
            justify: Literal["left", "right"] = "right" if place in self.right else "left"
            width = max(len(row[place]) for row in rows)
            if len(heading) > width:  # there has to be room for the figures
                heading = re.sub("(?<=[a-z]{3}-)| ", "\n", heading)
            shown = Text(printable(heading, keep="\n"))
            # Where there is too little, rich takes it from what may be wrapped: long texts.
            table.add_column(shown, justify=justify, no_wrap=width <= _SHORT)
        for row in rows:
            table.add_row(*(Text(printable(cell), no_wrap=True) for cell in row))
        return Group(table, Text(summary))

    def __rich__(self) -> Group:
        return self.table()

    def __str__(self) -> str:
        headings, rows = self.cells()
        shown = plain_table(headings, rows, right=self.right) if rows else ""
        return shown + printable(self.summary())

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {printable(self.summary())}>"

    def _repr_html_(self) -> str:
        headings, rows = self.cells()
        shown = html_table(headings, rows) if rows else ""
        return f"{shown}<p>{html.escape(self.summary())}</p>"


class Document(ABC):
    """Something that is kept as JSON.

    Attributes:
        kind: what a file says that it holds.
        version: of the file's form.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1

    @abstractmethod
    def _content(self, reveal: bool) -> dict[str, Any]:
        """All that the file holds besides kind and version."""

    @classmethod
    @abstractmethod
    def _from_content(cls, data: dict[str, Any], canaries: Canaries | None) -> Self:
        """The inverse of `_content`."""

    @typed
    def to_dict(self, reveal: bool = False) -> dict[str, Any]:
        """For JSON; without the secrets unless `reveal`."""
        return dict(to_jsonable(self._whole(reveal)))

    def _whole(self, reveal: bool) -> dict[str, Any]:
        """All that the file holds, numbers and texts as they are."""
        return {"schema_version": self.version, "kind": self.kind, **self._content(reveal)}

    @classmethod
    @typed
    def from_dict(cls, data: Any, canaries: Canaries | None = None) -> Self:
        """The inverse of `to_dict`.

        Args:
            canaries: the set that it is about, whole; gives masked canaries their secrets back.

        Raises:
            ValueError: it is something else, of an unknown version, or of another canary set.
        """
        return cls._from_whole(from_jsonable(data), canaries)

    @classmethod
    def _from_whole(cls, data: Any, canaries: Canaries | None) -> Self:
        """The inverse of `_whole`."""
        if not isinstance(data, dict) or data.get("kind") != cls.kind:
            raise ValueError(
                f"the data does not hold {cls.kind}, as {cls.__name__}.save writes "
                f"them{_instead(data)}"
            )
        if data.get("schema_version") != cls.version:
            raise ValueError(
                f"schema_version={data.get('schema_version')!r} is not known; this version of "
                f"hf-exposure reads {cls.version}: update it, or measure again"
            )
        try:
            return cls._from_content(data, canaries)
        except KeyError as error:
            raise ValueError(f"the key {error} is missing") from None
        except (AttributeError, IndexError, TypeError) as error:
            raise ValueError(f"a value is not what it should be ({error})") from None

    @typed
    def save(
        self, path: str | os.PathLike[str], reveal: bool = False, overwrite: bool = False
    ) -> Path:
        """Write JSON, whole or not at all; without the secrets unless `reveal`.

        Args:
            path: the file.
            reveal: with the secrets.
            overwrite: replace another file that is there.

        Returns:
            The path.

        Raises:
            FileExistsError: another file is there, and not `overwrite`.
            OSError: it cannot be written.
        """
        where = f"{type(self).__name__}.save"
        return write_text(path, self._text(reveal), where=where, overwrite=overwrite)

    def _text(self, reveal: bool) -> str:
        """The text of the file."""
        data = self.to_dict(reveal)
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    @typed
    def load(cls, path: str | os.PathLike[str], canaries: Canaries | None = None) -> Self:
        """Read what `save` wrote; see `from_dict`.

        Raises:
            OSError: there is no such file.
            ValueError: it cannot be read; the message names the path.
        """
        name = cls.__name__
        wanted = f"the file that {name}.save has written"
        return load_json(path, lambda data: cls.from_dict(data, canaries), f"{name}.load", wanted)


class Result(Tabular, Document, Rows[T]):
    """Rows that a measurement gave, and what it took to get them.

    Attributes:
        forwards: token-forwards spent: positions that the model has computed.
        seconds: how long it took.
        settings: how it was measured.
        entries: the key of the rows in a file.
    """

    entries: ClassVar[str]

    def __init__(
        self,
        items: Iterable[T],
        *,
        forwards: int = 0,
        seconds: float = 0.0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._items = tuple(items)
        self.forwards = forwards
        self.seconds = seconds
        self.settings: dict[str, Any] = dict(settings or {})

    @property
    def took(self) -> str:
        """The last words of a summary: forwards, with two digits, and seconds."""
        return f"{rounded(self.forwards):,} token-forwards in {self.seconds:.1f} s"

    def _like(self, items: Iterable[T], **changed: Any) -> Self:
        """The same with other rows, and with what else is changed."""
        out = copy.copy(self)
        vars(out).update(changed, _items=tuple(items))
        return out

    @abstractmethod
    def _entry(self, item: T, reveal: bool) -> dict[str, Any]:
        """All that a file holds of one row."""

    def _content(self, reveal: bool) -> dict[str, Any]:
        return {
            "forwards": self.forwards,
            "seconds": self.seconds,
            "settings": self.settings,
            self.entries: [self._entry(item, reveal) for item in self],
        }

    @staticmethod
    def _read_took(data: dict[str, Any]) -> dict[str, Any]:
        """What it took, read back from a file, for `__init__`."""
        return {
            "forwards": data["forwards"],
            "seconds": data["seconds"],
            "settings": data["settings"],
        }


def _instead(data: Any) -> str:
    """What a file holds in place of what was looked for, as far as that can be seen."""
    if is_manifest(data):
        return "; it is a manifest of canaries, as Canaries.save writes it"
    if not isinstance(data, dict):
        return ""
    if isinstance(data.get("kind"), str):
        return f"; it holds {data['kind']}"
    if {"extractions", "generations"} <= set(data):
        return "; it is what `hf-exposure extract --output` writes, for `report --extractions`"
    return ""


def versions(*names: str) -> dict[str, str]:
    """The installed versions of libraries that a result rests on."""
    return {name: _version(name) for name in names}


@functools.cache  # reading it takes longer than a few forwards
def _version(name: str) -> str:
    return importlib.metadata.version(name)


# JSON has neither infinity nor NaN: they are written as these texts. A text that reads like one, or
# like one that was changed for this, gets a backslash in front, so that it comes back as a text.
_NUMBERS = re.compile(r"(\\*)(-?inf|nan)")


def to_jsonable(value: Any) -> Any:
    """What JSON can hold, at any depth."""
    if isinstance(value, Mapping):
        return {key: to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, str) and _NUMBERS.fullmatch(value):
        return f"\\{value}"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def from_jsonable(value: Any) -> Any:
    """The inverse of `to_jsonable`, tuples apart."""
    if isinstance(value, dict):
        return {key: from_jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_jsonable(item) for item in value]
    if isinstance(value, str) and (found := _NUMBERS.fullmatch(value)):
        return value[1:] if found[1] else float(value)
    return value
