"""JSON Lines and JSON arrays that get canaries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from hf_exposure.canaries.injection import kind_of_value
from hf_exposure.canaries.injector import CHAT_COLUMNS, CanaryInjector
from hf_exposure.canaries.places import Copies
from hf_exposure.canaries.text_files import LINE_END, Buffer, Record, TextFile

SPACE = re.compile(r"[ \t\r\n\ufeff]*")


class _Number:
    """A number of a JSON file, of which only its text is kept."""

    def __init__(self, text: str) -> None:
        self.text = text


_DECODER = json.JSONDecoder(
    parse_int=_Number, parse_float=_Number, parse_constant=_Number, strict=False
)


class JsonFile(TextFile):
    """A file of JSON Lines, or a JSON array of rows."""

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

    def _learn(self, record: Record) -> None:
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

    def _records(self) -> Iterator[Record]:
        held, number = Buffer(self._text()), 1
        held.grow()
        first = SPACE.match(held.text).end()  # type: ignore[union-attr]
        if held.text[first : first + 1] == "[":
            yield from self._array(held)
            return
        while True:
            lead_end = SPACE.match(held.text, held.start).end()  # type: ignore[union-attr]
            if lead_end == len(held.text):
                if held.grow():
                    continue
                yield Record(held.text[held.start :], "", "")
                return
            try:
                _, end = _DECODER.raw_decode(held.text, lead_end)
            except (json.JSONDecodeError, RecursionError):
                if held.grow():
                    continue
                raise self._unreadable(f"is not valid JSON at row {number}") from None
            last = LINE_END.match(held.text, end).end()  # type: ignore[union-attr]
            if last == len(held.text) and held.grow():
                continue
            text, start = held.text, held.start
            held.start, number = last, number + 1
            yield Record(text[start:lead_end], text[lead_end:end], text[end:last])

    def _array(self, held: Buffer) -> Iterator[Record]:
        while held.grow():
            pass
        text, done = held.text, 0
        try:
            spans = list(_elements(text))
        except (ValueError, RecursionError):
            raise self._unreadable("is not valid JSON") from None
        self.ends_lines = False
        for start, end in spans:
            yield Record(text[done:start], text[start:end], "")
            done = end
        self.between = next((text[a[1] : b[0]] for a, b in pairwise(spans)), ", ")
        yield Record(text[done:], "", "")

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
    return SPACE.match(text, place).end()  # type: ignore[union-attr]
