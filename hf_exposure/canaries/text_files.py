"""What JSON and CSV files of rows have in common: they are copied text by text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hf_exposure.canaries.injector import CanaryInjector, no_column
from hf_exposure.canaries.places import Copies
from hf_exposure.canaries.rows import COMPRESSED

_PIECE = 1 << 20  # characters read at once
LINE_END = re.compile(r"[ \t]*(?:\r\n|\n|\r)?")
LINE_STOP = re.compile(r"[\r\n]")
BLANK = re.compile(r"(?:[ \t]*(?:\r\n|\n|\r))*")


class Record(NamedTuple):
    """A row as it is written: blanks before it, itself, and the rest of its line."""

    lead: str
    body: str
    tail: str


class TextFile:
    """What JSON and CSV files have in common."""

    ends_lines = True  # a row is ended by `between`, not only separated by it
    between = "\n"

    def __init__(self, source: Path, column: str) -> None:
        self.source, self.column = source, column
        self.columns: list[str] = []
        self.count, self.chat, self.keys = 0, False, list[str]()
        self.ascii = self.utf8 = True
        self._scan()
        if column not in self.columns:
            raise ValueError(no_column("inject_canaries", f"column={column!r}", self.columns))

    def write(self, target: BinaryIO, injector: CanaryInjector) -> None:
        if not self.utf8 and not all(canary.text.isascii() for canary in injector.canaries):
            raise self._unreadable("is not UTF-8 text, which the canaries would be: convert it")
        for text in self._pieces(injector):
            target.write(text.encode("utf-8", "surrogateescape"))

    def holds(self, texts: list[str]) -> bool:
        written = [self._cell(text) for text in texts]
        return any(text in record.body for record in self._records() for text in written)

    def _pieces(self, injector: CanaryInjector) -> Iterator[str]:
        rows, ended = injector.insertion.mode == "rows", True
        yield from self._before()
        for index, record in enumerate(self._records()):
            copies = injector.places.get(index, [])
            # Spaces before a row stay with it, and a byte order mark stays the first.
            line = max(map(record.lead.rfind, "\n\r\ufeff")) + 1 if self.ends_lines else None
            yield record.lead[:line]
            if not record.body:  # the end
                yield "" if line is None else record.lead[line:]
                break
            if rows:
                yield from (
                    self._added(injector.row(canary, self.columns)) + self.between
                    for _, canary in copies
                )
            elif copies:
                record = record._replace(body=self._spliced(record.body, injector, copies))
            yield ("" if line is None else record.lead[line:]) + record.body + record.tail
            ended = self.ends_lines and bool(record.tail.strip(" \t"))
            if index == self.count - 1:
                for _, canary in injector.places.get(self.count, []):
                    new = self._added(injector.row(canary, self.columns))
                    yield new + self.between if ended else self.between + new

    def _text(self) -> Iterator[str]:
        """The file in pieces; bytes that are no UTF-8 stand for themselves."""
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        with open(self.source, "rb") as file:
            while data := file.read(_PIECE):
                if file.tell() == len(data):  # the first piece
                    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise self._unreadable("is UTF-16 text; convert it to UTF-8")
                    if data.startswith((*COMPRESSED.values(),)):
                        raise self._unreadable("is compressed; decompress it")
                yield decoder.decode(data)
        yield decoder.decode(b"", final=True)

    def _look_at(self, text: str) -> None:
        if not text.isascii():
            self.ascii = self.ascii and text.strip("\ufeff").isascii()
            try:
                text.encode()
            except UnicodeEncodeError:
                self.utf8 = False

    def _unreadable(self, why: str) -> ValueError:
        return ValueError(f"load_rows: {str(self.source)!r} cannot be read: it {why}")

    def _before(self) -> Iterator[str]:
        return iter(())

    def _scan(self) -> None:
        raise NotImplementedError

    def _records(self) -> Iterator[Record]:
        raise NotImplementedError

    def _cell(self, text: str) -> str:
        raise NotImplementedError

    def _added(self, row: dict[str, Any]) -> str:
        raise NotImplementedError

    def _spliced(self, body: str, injector: CanaryInjector, copies: Copies) -> str:
        raise NotImplementedError


class Buffer:
    """A growing part of a text, from the first character that is still needed."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._rest = pieces
        self.text, self.start, self.whole = "", 0, False

    def grow(self) -> bool:
        """Read at least as much again; False at the end, where nothing changes."""
        if self.whole:
            return False
        read = [self.text[self.start :]]
        wanted = 2 * len(read[0])
        while not self.whole and sum(map(len, read)) <= wanted:
            piece = next(self._rest, None)
            self.whole = piece is None
            read.append(piece or "")
        self.text, self.start = "".join(read), 0
        return True
