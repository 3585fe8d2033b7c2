"""Files of rows that get canaries, and keep everything else as it was written.

JSON Lines, JSON arrays and CSV are copied text by text; only added rows, and with mode="splice" the
cells that get a canary, are written anew, in the file's own style. Parquet keeps its schema. A file
is read twice, in pieces (a JSON array is read whole): once to count its rows, once to copy it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from hf_exposure.canaries.injection import in_it_twice, kind_of_value, often
from hf_exposure.canaries.injector import CHAT_COLUMNS, CanaryInjector, no_column
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.places import Copies, parts
from hf_exposure.canaries.row_types import check_type_of_rows
from hf_exposure.canaries.sets import Canaries
from hf_exposure.utils.warn import warn

_PIECE = 1 << 20  # characters read at once
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_LINE_END = re.compile(r"[ \t]*(?:\r\n|\n|\r)?")
_LINE_STOP = re.compile(r"[\r\n]")
_BLANK = re.compile(r"(?:[ \t]*(?:\r\n|\n|\r))*")


class _Number:
    """A number of a JSON file, of which only its text is kept."""

    def __init__(self, text: str) -> None:
        self.text = text


_DECODER = json.JSONDecoder(
    parse_int=_Number, parse_float=_Number, parse_constant=_Number, strict=False
)


class _Record(NamedTuple):
    """A row as it is written: blanks before it, itself, and the rest of its line."""

    lead: str
    body: str
    tail: str


class RowFile(Protocol):
    """A file of rows that canaries can be inserted into."""

    column: str
    columns: list[str]
    count: int
    chat: bool
    keys: list[str]

    def holds(self, texts: list[str]) -> bool:
        """Whether one of some texts is in the column already."""

    def write(self, target: BinaryIO, injector: CanaryInjector) -> None:
        """Copy the file, with the canaries."""


def row_file(source: Path, column: str) -> RowFile:
    """A .jsonl, .json, .csv or .parquet file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what its name says, is empty, or lacks the column.
        TypeError: the column holds neither text nor conversations.
    """
    if not source.is_file():
        raise OSError(f"load_rows: there is no file {str(source)!r}")
    if source.stat().st_size == 0:
        raise ValueError(f"load_rows: the file {str(source)!r} is empty")
    rows: RowFile = KINDS[source.suffix](source, column)
    return rows


def injector_for(
    rows: RowFile, canaries: Canaries, seed: int, mode: str, near_start: bool
) -> CanaryInjector:
    """What inserts canaries into a file, at the places that `inject_canaries` gives for its rows;
    the insertion goes on the set's record."""
    if not rows.count:
        raise ValueError("load_rows: the file has no rows")
    insertion = Insertion(mode, rows.column, seed, rows.count, near_start, rows.chat)
    canaries.check_insertion(insertion)
    check_type_of_rows("inject_canaries", rows.columns, insertion, {})
    injector = CanaryInjector.unrecorded(canaries, insertion, None, rows.keys)
    if canaries.insertions and rows.holds([canary.text for canary in often(canaries)]):
        warn(in_it_twice(rows.column))
    canaries.record(insertion)
    return injector


class _TextFile:
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
                    self._added(injector.row(text, self.columns)) + self.between
                    for _, text in copies
                )
            elif copies:
                record = record._replace(body=self._spliced(record.body, injector, copies))
            yield ("" if line is None else record.lead[line:]) + record.body + record.tail
            ended = self.ends_lines and bool(record.tail.strip(" \t"))
            if index == self.count - 1:
                for _, text in injector.places.get(self.count, []):
                    new = self._added(injector.row(text, self.columns))
                    yield new + self.between if ended else self.between + new

    def _text(self) -> Iterator[str]:
        """The file in pieces; bytes that are no UTF-8 stand for themselves."""
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        with open(self.source, "rb") as file:
            while data := file.read(_PIECE):
                if data[:2] in (b"\xff\xfe", b"\xfe\xff") and file.tell() == len(data):
                    raise self._unreadable("is UTF-16 text; convert it to UTF-8")
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

    def _records(self) -> Iterator[_Record]:
        raise NotImplementedError

    def _cell(self, text: str) -> str:
        raise NotImplementedError

    def _added(self, row: dict[str, Any]) -> str:
        raise NotImplementedError

    def _spliced(self, body: str, injector: CanaryInjector, copies: Copies) -> str:
        raise NotImplementedError


class _Buffer:
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


class _JsonFile(_TextFile):
    separators = (",", ":")

    def _scan(self) -> None:
        columns: dict[str, None] = {}
        keys: dict[str, None] = {}
        kind: tuple[bool, list[str]] | None = None
        for record in self._records():
            if not record.body:
                break
            value = self._decoded(record.body)
            if not isinstance(value, dict):
                raise self._unreadable(f"has a row {self.count + 1} that is no JSON object")
            if not self.count:
                self._learn(record)
            self._look_at(record.body)
            columns |= dict.fromkeys(value)
            cell = value.get(self.column)
            if kind is None and cell:
                kind = kind_of_value(cell, self.column)
            if kind and kind[0] and isinstance(cell, list):
                keys |= dict.fromkeys(k for m in cell if isinstance(m, dict) for k in m)
            self.count += 1
        self.columns = list(columns)
        self.chat = kind[0] if kind else self.column in CHAT_COLUMNS
        self.keys = list(keys)

    def _learn(self, record: _Record) -> None:
        """The style of the first row is that of the file."""
        line_end = record.tail.strip(" \t")
        self.between = line_end or "\n"
        members = list(_members(record.body))
        if members:
            _, start, end = members[0]
            colon = ": " if record.body[start - 1].isspace() else ":"
            comma = colon.replace(":", ",")
            if len(members) > 1:
                after = record.body.find(",", end) + 1
                comma = ", " if record.body[after : after + 1].isspace() else ","
            self.separators = (comma, colon)

    def _decoded(self, body: str) -> Any:
        return _DECODER.raw_decode(body)[0]

    def _records(self) -> Iterator[_Record]:
        held, number = _Buffer(self._text()), 1
        held.grow()
        first = _SPACE.match(held.text).end()  # type: ignore[union-attr]
        if held.text[first : first + 1] == "[":
            yield from self._array(held)
            return
        while True:
            lead_end = _SPACE.match(held.text, held.start).end()  # type: ignore[union-attr]
            if lead_end == len(held.text):
                if held.grow():
                    continue
                yield _Record(held.text[held.start :], "", "")
                return
            try:
                _, end = _DECODER.raw_decode(held.text, lead_end)
            except (json.JSONDecodeError, RecursionError):
                if held.grow():
                    continue
                raise self._unreadable(f"is not valid JSON at row {number}") from None
            last = _LINE_END.match(held.text, end).end()  # type: ignore[union-attr]
            if last == len(held.text) and held.grow():
                continue
            text, start = held.text, held.start
            held.start, number = last, number + 1
            yield _Record(text[start:lead_end], text[lead_end:end], text[end:last])

    def _array(self, held: _Buffer) -> Iterator[_Record]:
        while held.grow():
            pass
        text, done = held.text, 0
        try:
            spans = list(_elements(text))
        except (ValueError, RecursionError):
            raise self._unreadable("is not valid JSON") from None
        self.ends_lines = False
        for start, end in spans:
            yield _Record(text[done:start], text[start:end], "")
            done = end
        self.between = next((text[a[1] : b[0]] for a, b in pairwise(spans)), ", ")
        yield _Record(text[done:], "", "")

    def _dumps(self, value: Any) -> str:
        text = json.dumps(value, ensure_ascii=self.ascii, separators=self.separators)
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which stood there as an escape
            text = json.dumps(value, separators=self.separators)
        return text

    def _cell(self, text: str) -> str:
        return self._dumps(text)[1:-1]

    def _added(self, row: dict[str, Any]) -> str:
        return self._dumps(row)

    def _spliced(self, body: str, injector: CanaryInjector, copies: Copies) -> str:
        span = _member(body, self.column)
        old = self._decoded(body).get(self.column)
        injector.check_values([old])
        new = injector.spliced(old, copies)
        if span is None:
            comma, colon = self.separators
            member = self._dumps(self.column) + colon + self._dumps(new)
            return body[:-1].rstrip() + (comma if body[1:-1].strip() else "") + member + "}"
        start, end = span
        cell = body[start:end]
        cell = self._messages(cell, old, new) if self.chat and old else self._dumps(new)
        return body[:start] + cell + body[end:]

    def _messages(self, cell: str, old: list[Any], new: list[Any]) -> str:
        """The conversation with the contents that have changed, and the turns that were added."""
        out, done = [], 0
        for (start, end), before, after in zip(_elements(cell), old, new, strict=False):
            message = cell[start:end]
            if before["content"] != after["content"]:
                span = _member(message, "content")
                assert span is not None
                text = self._dumps(after["content"])
                message = message[: span[0]] + text + message[span[1] :]
            out += [cell[done:start], message]
            done = end
        out += [self.separators[0] + self._dumps(message) for message in new[len(old) :]]
        return "".join([*out, cell[done:]])


def _members(body: str) -> Iterator[tuple[str, int, int]]:
    """The keys of a JSON object, with where their values begin and end."""
    place = _after_space(body, 1)
    while body[place] != "}":
        key, place = _DECODER.raw_decode(body, place)
        start = _after_space(body, _after_space(body, place) + 1)
        _, end = _DECODER.raw_decode(body, start)
        yield key, start, end
        place = _after_space(body, end)
        if body[place] == ",":
            place = _after_space(body, place + 1)


def _member(body: str, key: str) -> tuple[int, int] | None:
    """Where the value of a key begins and ends; of a key that is there twice, the last counts."""
    return ({name: (start, end) for name, start, end in _members(body)}).get(key)


def _elements(text: str) -> Iterator[tuple[int, int]]:
    """Where the elements of a JSON array begin and end."""
    place = _after_space(text, _after_space(text, 0) + 1)
    if text[place : place + 1] == "]":
        return
    while True:
        _, end = _DECODER.raw_decode(text, place)
        yield place, end
        place = _after_space(text, end)
        if text[place : place + 1] != ",":
            if text[place : place + 1] != "]":
                raise ValueError("an array does not end")
            return
        place = _after_space(text, place + 1)


def _after_space(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()  # type: ignore[union-attr]


class _CsvFile(_TextFile):
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

    def _learn(self, record: _Record) -> None:
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

    def _records(self) -> Iterator[_Record]:
        for number, record in enumerate(self._all()):
            if number:
                yield record

    def _all(self) -> Iterator[_Record]:
        """The header and the rows, by the rules of the `csv` module and pandas: lines of blanks
        are no rows, and a quote counts where a cell begins with it."""
        held = _Buffer(self._text())
        held.grow()
        while True:
            text, start = held.text, held.start
            lead_end = _BLANK.match(text, start + text.startswith("\ufeff", start)).end()  # type: ignore[union-attr]
            end = self._end(text, lead_end)
            # Without what follows, a line end may be half of one, and a quote half of two.
            if (end is None or end + 2 >= len(text)) and held.grow():
                continue
            if end is None:
                raise self._unreadable("ends within a quoted cell")
            if not text[lead_end:end].strip(" \t"):
                yield _Record(text[start:], "", "")
                return
            last = end + len(text[end : end + 2]) if text[end : end + 2] == "\r\n" else end + 1
            held.start = min(last, len(text))
            yield _Record(text[start:lead_end], text[lead_end:end], text[end : held.start])

    def _end(self, text: str, place: int) -> int | None:
        """Where the row ends that begins at a place; None if a quote is open there."""
        match = _LINE_STOP.search(text, place)
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


_STOPS = {char: re.compile(f"[{re.escape(char)}\r\n]") for char in ",;\t|"}


def _unquoted(cell: str) -> str:
    if not cell.startswith('"'):
        return cell
    inner = re.match(r'"((?:[^"]|"")*)"', cell)
    assert inner is not None
    return inner[1].replace('""', '"') + cell[inner.end() :]


class _ParquetFile:
    def __init__(self, source: Path, column: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            self.file = pq.ParquetFile(source)
        except pa.ArrowException:
            raise ValueError(
                f"load_rows: {str(source)!r} cannot be read: it is no Parquet file"
            ) from None
        self.schema, self.column = self.file.schema_arrow, column
        self.columns: list[str] = list(self.schema.names)
        if column not in self.columns:
            raise ValueError(no_column("inject_canaries", f"column={column!r}", self.columns))
        self.count: int = self.file.metadata.num_rows
        self.type = self.schema.field(column).type
        self.chat, self.keys = self._kind()

    def _kind(self) -> tuple[bool, list[str]]:
        import pyarrow as pa

        kind = self.type.value_type if pa.types.is_dictionary(self.type) else self.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
            return False, []
        message = getattr(kind, "value_type", None)
        if message is not None and pa.types.is_struct(message):
            names = [field.name for field in message]
            if {"role", "content"} <= set(names):
                return True, names
        raise TypeError(
            f"inject_canaries: column={self.column!r} must hold text or conversations, but has "
            f"{self.type}; name a column that does"
        )

    def holds(self, texts: list[str]) -> bool:
        for batch in self.file.iter_batches(columns=[self.column]):
            written = batch.to_pylist()
            if any(
                text in json.dumps(row, ensure_ascii=False) for row in written for text in texts
            ):
                return True
        return False

    def write(self, target: BinaryIO, injector: CanaryInjector) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = injector.insertion.mode == "rows"
        required = [f.name for f in self.schema if not f.nullable and f.name != self.column]
        if rows and required:
            raise ValueError(
                f"inject_canaries: the columns {required} may hold no null, which added rows have "
                'there; use mode="splice", or make them nullable'
            )
        group = self.file.metadata.row_group(0)
        codec = group.column(0).compression if group.num_columns else "SNAPPY"
        compression = "NONE" if codec == "UNCOMPRESSED" else codec
        done = 0
        with pq.ParquetWriter(target, self.schema, compression=compression) as writer:
            for number in range(self.file.num_row_groups):
                table = self.file.read_row_group(number)
                last = number == self.file.num_row_groups - 1
                here = [
                    (place, injector.places[done + place])
                    for place in range(len(table) + last)
                    if done + place in injector.places
                ]
                done += len(table)
                pieces = []
                start = 0
                if rows:
                    added = iter([text for _, copies in here for _, text in copies])
                    for begin, end, count in parts(here, len(table)):
                        pieces.append(table.slice(begin, end - begin))
                        if count:
                            pieces.append(self._new([next(added) for _ in range(count)], injector))
                else:
                    at = self.columns.index(self.column)
                    field = self.schema.field(at)
                    for place, copies in here:
                        old = table[self.column][place].as_py()
                        new = pa.array([injector.spliced(old, copies)], type=self.type)
                        pieces.append(table.slice(start, place - start))
                        pieces.append(table.slice(place, 1).set_column(at, field, new))
                        start = place + 1
                    pieces.append(table.slice(start))
                writer.write_table(pa.concat_tables(pieces), row_group_size=max(1, done))

    def _new(self, texts: list[str], injector: CanaryInjector) -> Any:
        import pyarrow as pa

        rows = [injector.row(text, self.columns) for text in texts]
        arrays = [
            pa.nulls(len(rows), field.type)  # which some types take no list of
            if all(row[field.name] is None for row in rows)
            else pa.array([row[field.name] for row in rows], type=field.type)
            for field in self.schema
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)


KINDS: dict[str, Any] = {
    ".jsonl": _JsonFile,
    ".json": _JsonFile,
    ".csv": _CsvFile,
    ".parquet": _ParquetFile,
}
