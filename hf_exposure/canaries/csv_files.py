"""CSV files that get canaries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from hf_exposure.canaries.injector import CanaryInjector
from hf_exposure.canaries.places import Copies
from hf_exposure.canaries.text_files import BLANK, LINE_STOP, Buffer, Record, TextFile

_STOPS = {char: re.compile(f"[{re.escape(char)}\r\n]") for char in ",;\t|"}


class CsvFile(TextFile):
    """A CSV file, in its own dialect."""

    delimiter = ","

    def _scan(self) -> None:
        self.header = ""
        quoted: list[bool] = []
        self.quotes_text = False
        for record in self._all():
            self._look_at(record.body)
            if not record.body:
                continue
            if not self.header:
                self._learn(record)
                quoted = [cell.startswith('"') for cell in self._cells(self.header.strip())]
                continue
            if not self.count:
                cells = self._cells(record.body)
                quoted += [cell.startswith('"') for cell in cells]
                place = self.place
                self.quotes_text = place < len(cells) and cells[place].startswith('"')
            self.count += 1
        self.quotes_all = bool(quoted) and all(quoted)

    def _learn(self, record: Record) -> None:
        self.header = "".join(record)
        self.between = record.tail or "\n"
        header = record.body
        for delimiter in (",", ";", "\t", "|"):
            self.delimiter = delimiter
            self.columns = [_unquoted(cell) for cell in self._cells(header)]
            if self.column in self.columns:
                self.place = self.columns.index(self.column)
                return
        self.delimiter, self.place = ",", 0
        self.columns = [_unquoted(cell) for cell in self._cells(header)]

    def _before(self) -> Iterator[str]:
        yield self.header

    def _records(self) -> Iterator[Record]:
        for number, record in enumerate(self._all()):
            if number:
                yield record

    def _all(self) -> Iterator[Record]:
        """The header and the rows, by the rules of the `csv` module and pandas: lines of blanks
        are no rows, and a quote counts where a cell begins with it."""
        held = Buffer(self._text())
        held.grow()
        while True:
            text, start = held.text, held.start
            lead_end = BLANK.match(text, start + text.startswith("\ufeff", start)).end()  # type: ignore[union-attr]
            end = self._end(text, lead_end)
            # Without what follows, a line end may be half of one, and a quote half of two.
            if (end is None or end + 2 >= len(text)) and held.grow():
                continue
            if end is None:
                raise self._unreadable("ends within a quoted cell")
            if not text[lead_end:end].strip(" \t"):
                yield Record(text[start:], "", "")
                return
            last = end + len(text[end : end + 2]) if text[end : end + 2] == "\r\n" else end + 1
            held.start = min(last, len(text))
            yield Record(text[start:lead_end], text[lead_end:end], text[end : held.start])

    def _end(self, text: str, place: int) -> int | None:
        """Where the row ends that begins at a place; None if a quote is open there."""
        match = LINE_STOP.search(text, place)
        end = match.start() if match else len(text)
        if text.find('"', place, end) < 0:
            return end
        while True:
            stop = self._cell_end(text, place)
            if stop is None or stop == len(text) or text[stop] in "\r\n":
                return stop
            place = stop + 1

    def _cell_end(self, text: str, place: int) -> int | None:
        if text.startswith('"', place):
            place += 1
            while True:
                place = text.find('"', place)
                if place < 0:
                    return None
                if not text.startswith('"', place + 1):
                    break
                place += 2
        match = _STOPS[self.delimiter].search(text, place)
        return match.start() if match else len(text)

    def _cells(self, body: str) -> list[str]:
        out, place = [], 0
        while True:
            end = self._cell_end(body, place)
            assert end is not None
            out.append(body[place:end])
            if end == len(body):
                return out
            place = end + 1

    def _cell(self, text: str) -> str:
        return text.replace('"', '""')

    def _quoted(self, text: str, always: bool) -> str:
        needed = any(char in text for char in (self.delimiter, '"', "\r", "\n"))
        return '"' + self._cell(text) + '"' if always or needed else text

    def _added(self, row: dict[str, Any]) -> str:
        cells = []
        for place, name in enumerate(self.columns):
            if place != self.place:  # a name may be there twice
                value = None if name == self.column else row[name]
                cells.append(self._quoted("" if value is None else str(value), self.quotes_all))
            else:
                cells.append(self._quoted(row[name], self.quotes_all or self.quotes_text))
        return self.delimiter.join(cells)

    def _spliced(self, body: str, injector: CanaryInjector, copies: Copies) -> str:
        cells = self._cells(body)
        cells += [""] * (self.place + 1 - len(cells))
        old = cells[self.place]
        new = injector.spliced(_unquoted(old), copies)
        cells[self.place] = self._quoted(new, old.startswith('"'))
        return self.delimiter.join(cells)


def _unquoted(cell: str) -> str:
    if not cell.startswith('"'):
        return cell
    inner = re.match(r'"((?:[^"]|"")*)"', cell)
    assert inner is not None
    return inner[1].replace('""', '"') + cell[inner.end() :]
