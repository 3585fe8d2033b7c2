"""Occurrences of canaries in rows of token ids, whole and in pieces.

Tokens at the borders of a canary merge with their neighbours, so tokens are not compared: each one
is turned into the bytes that it stands for, rows are joined into one long text, and canaries are
looked for in that. A match that crosses the end of a row was cut in two by packing.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure.canaries.masking import secrets_masked
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.survival import InjectionReport, Survival
from hf_exposure.canaries.tally import Tally
from hf_exposure.canaries.token_rows import IGNORED, TokenRows
from hf_exposure.canaries.vocabulary import Encoder, Readings, common_length
from hf_exposure.utils.arrays import Ints

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = b"\xff"  # no text holds this byte, so a special token that it surrounds matches no text
# A piece of a canary at a row's end or start says something from this many bytes on.
_PIECE = 8
# With a beginning shorter than this, looking for each canary by itself is quicker.
_RARE = 4


@dataclass(frozen=True)
class Group:
    """The canaries of one format, as bytes, and what all strings of the format share."""

    forms: dict[bytes, int] = field(repr=False)  # the bytes of a canary -> its place in the set
    head: bytes
    tail: int

    @property
    def lengths(self) -> list[int]:
        return sorted({len(form) for form in self.forms})

    def find(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """Start, end and canary of every occurrence in `data`."""
        if len(self.head) < _RARE:
            for form, place in self.forms.items():
                for at in _occurrences(data, form):
                    yield at, at + len(form), place
            return
        lengths = self.lengths
        for at in _occurrences(data, self.head):
            for end in (at + length for length in lengths if at + length <= len(data)):
                known = self.forms.get(data[at:end])
                if known is not None:
                    yield at, end, known

    def secret(self, start: int, end: int) -> tuple[int, int]:
        """Where, in an occurrence, the part is that differs between canaries."""
        first, last = start + len(self.head), end - self.tail
        return (first, last) if first < last else (start, end)


class Search:
    """Occurrences and pieces of canaries, found chunk by chunk."""

    def __init__(self, canaries: Canaries, tokenizer: PreTrainedTokenizerBase) -> None:
        self.canaries = canaries
        with secrets_masked(canaries):  # a tokenizer's error may quote what it was given
            encoder = Encoder(tokenizer)
            readings = _readings(encoder, canaries)
            self._table(tokenizer, encoder, readings)
            self.groups = [self._group(encoder, canaries, fmt) for fmt in canaries.formats]
        of_place = {place: form for group in self.groups for form, place in group.forms.items()}
        texts = [form for group in self.groups for form in group.forms]
        if len(set(texts)) < len(canaries):
            raise ValueError(
                "tokenizer: writes two canaries with the same tokens, so that they cannot be told "
                "apart; choose secrets without the characters that it changes"
            )
        self.longest = max(map(len, texts))
        self.window = min(_PIECE, max(1, min(map(len, texts)) // 2))
        self.windows = {
            form[at : at + self.window]
            for form in texts
            for at in range(len(form) - self.window + 1)
        }
        self.by_start = sorted((form, place) for place, form in of_place.items())
        self.by_end = sorted((form[::-1], place) for place, form in of_place.items())
        self.tally = Tally()

    def _table(
        self, tokenizer: PreTrainedTokenizerBase, encoder: Encoder, readings: Readings
    ) -> None:
        """The bytes of every token, end to end, and where each one's are."""
        size = max([*readings, *encoder.special, *tokenizer.get_vocab().values()]) + 1
        # One more for what the tokenizer does not know, such as -100.
        words = [_MARK] * (size + 1)
        for number in range(size):
            options = readings.get(number, ())
            if number in encoder.special or not options:
                name = str(tokenizer.convert_ids_to_tokens(number))
                words[number] = _MARK + name.encode("utf-8", "replace") + _MARK
            else:
                # WordPiece drops spaces, so do we.
                words[number] = min(options, key=len)
        self.special = np.zeros(size + 1, bool)
        self.special[[*encoder.special, size]] = True
        self.lengths = np.array([len(word) for word in words], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])[:-1]
        self.letters = np.frombuffer(b"".join(words), np.uint8)

    def _group(self, encoder: Encoder, canaries: Canaries, fmt: Any) -> Group:
        own = [place for place, canary in enumerate(canaries) if canary.format == fmt]
        known = encoder.tokenizer.unk_token_id
        encoded = encoder([canaries[place].text for place in own])
        for place, ids in zip(own, encoded, strict=True):
            if not ids or (known is not None and known in ids):
                raise ValueError(
                    f"tokenizer: cannot encode {canaries[place].label()!r}; choose a template and "
                    "a secret expression from its alphabet"
                )
        forms = [self._form(ids) for ids in encoded]
        others = [self._form(ids) for ids in encoder([fmt.render(s) for s in fmt.sample(64)])]
        head = forms[0][: common_length([*forms, *others])]
        tail = common_length(form[len(head) :][::-1] for form in [*forms, *others])
        return Group(dict(zip(forms, own, strict=True)), head, tail)

    def _form(self, ids: list[int]) -> bytes:
        """The bytes of a canary: without a space that the tokenizer puts before every text, and
        without special tokens at its ends, which rows lose as well."""
        data, _ = self._bytes(TokenRows.of(np.array(ids, np.int64), np.array([len(ids)]), None))
        return data.lstrip(b" ") or data

    def _bytes(self, rows: TokenRows) -> tuple[bytes, Ints]:
        """The text of rows, and where each token ends in it. Special tokens at the ends of a row
        (padding, BOS) stand for nothing: what packing cut goes on behind them."""
        ids = np.where(
            (rows.ids >= 0) & (rows.ids < len(self.lengths)), rows.ids, len(self.lengths) - 1
        )
        lengths = self.lengths[ids]
        plain = np.flatnonzero(~self.special[ids])
        # The first token of each row that is not special, and the one after the last.
        first = np.append(plain, len(ids))[np.searchsorted(plain, rows.starts[:-1])]
        last = np.append(-1, plain)[np.searchsorted(plain, rows.starts[1:])]
        counts = np.diff(rows.starts)
        place = np.arange(len(ids))
        inside = (place >= np.repeat(first, counts)) & (place <= np.repeat(last, counts))
        lengths = np.where(inside, lengths, 0)
        ends = np.cumsum(lengths)
        shift = self.offsets[ids] - (ends - lengths)
        total = int(ends[-1]) if len(ends) else 0
        return self.letters[np.repeat(shift, lengths) + np.arange(total)].tobytes(), ends

    def scan(self, parts: Iterable[TokenRows]) -> None:
        """Look through consecutive parts of rows, the last of which ends them."""
        held = TokenRows.none()
        for part in parts:
            self.tally.rows += len(part.starts) - 1
            self.tally.tokens += len(part.ids)
            held = self.read(held, part)
        self.finish(held)

    def read(self, held: TokenRows, chunk: TokenRows) -> TokenRows:
        """Look through `chunk`, which follows on `held`; returns the rows to hold for the next."""
        rows = held.join(chunk)
        data, borders = self._look(rows, new=len(held.starts) - 1, final=False)
        # As many rows as the longest canary may reach back to, and the last one at least.
        first = bisect_right(borders, len(data) - self.longest) - 1
        return rows.last(max(1, len(rows.starts) - 1 - max(0, first)))

    def finish(self, held: TokenRows) -> None:
        """The end of the last row, which nothing follows."""
        self._look(held, new=len(held.starts) - 1, final=True)

    def _look(self, rows: TokenRows, new: int, final: bool) -> tuple[bytes, list[int]]:
        """Count what the rows from number `new` on have; those before were looked at."""
        data, ends = self._bytes(rows)
        borders = np.append(0, ends)[rows.starts]  # (rows + 1,) in bytes
        known = int(borders[new])
        # Ends and starts of rows that a canary reaches to; what stands there is no lone piece.
        taken_ends: set[int] = set()
        taken_starts: set[int] = set()
        for group in self.groups:
            for start, end, place in group.find(data):
                taken_ends.add(end)
                taken_starts.add(start)
                row = int(np.searchsorted(borders, start, "right"))
                last_row = int(np.searchsorted(borders, end - 1, "right"))
                if row != last_row:
                    crossed = set(map(int, borders[row:last_row]))
                    taken_ends |= crossed
                    taken_starts |= crossed
                if end <= known:
                    continue
                if row != last_row:
                    self.tally.cut[place] += 1
                    continue
                self.tally.whole[place] += 1
                if rows.labels is not None:
                    first, last = group.secret(start, end)
                    tokens = np.searchsorted(ends, [first, last - 1], "right")
                    if (rows.labels[tokens[0] : tokens[1] + 1] == IGNORED).any():
                        self.tally.untrained[place] += 1
        limits = borders.tolist()
        size, windows = self.window, self.windows
        # The last row waits for what follows it, so each chunk begins with the one before.
        for row in range(max(0, new - 1), len(limits) - 1 - (not final)):
            start, end = limits[row], limits[row + 1]
            if end - start >= size and data[end - size : end] in windows and end not in taken_ends:
                self._piece(data[max(start, end - self.longest) : end][::-1], from_start=True)
        for row in range(new, len(limits) - 1):
            start, end = limits[row], limits[row + 1]
            if end - start >= size and data[start : start + size] in windows:
                if start in taken_starts:
                    continue
                self._piece(data[start : min(end, start + self.longest)], from_start=False)
        return data, limits

    def _piece(self, text: bytes, from_start: bool) -> None:
        """Note the longest piece of a canary that `text` begins with.

        Args:
            text: a row from its start, or from its end with the bytes in reverse order.
            from_start: whether it is the canary's beginning, so that the text is in reverse order.
        """
        forms = self.by_start if from_start else self.by_end
        for length in range(len(text), self.window - 1, -1):
            piece = text[:length][::-1]
            low = bisect_left(forms, (piece, -1))
            high = bisect_left(forms, (piece + _MARK * self.longest, len(self.canaries)))
            if low < high:
                self.tally.pieces[from_start, low, high] += 1
                return

    def report(self) -> InjectionReport:
        """What became of each canary, in words."""
        return InjectionReport(tuple(self.results()), self.tally.rows, self.tally.tokens)

    def results(self) -> Iterator[Survival]:
        """What became of each canary."""
        lacking = {
            place: canary.repetitions - self.tally.whole[place] - self.tally.cut[place]
            for place, canary in enumerate(self.canaries)
        }
        truncated: Counter[int] = Counter()
        fitting: Counter[tuple[int, ...]] = Counter()
        for (from_start, low, high), count in self.tally.pieces.items():
            forms = self.by_start if from_start else self.by_end
            fitting[tuple(sorted(place for _, place in forms[low:high]))] += count
        # Pieces that fit one canary alone come first.
        for places, count in sorted(fitting.items(), key=lambda item: (len(item[0]), item[0])):
            waiting = [(-lacking[place], place) for place in places if lacking[place] > 0]
            heapq.heapify(waiting)  # the one that lacks most copies is next
            for _ in range(count):
                if not waiting:
                    break
                place = waiting[0][1]
                lacking[place] -= 1
                truncated[place] += 1
                if lacking[place]:
                    heapq.heapreplace(waiting, (-lacking[place], place))
                else:
                    heapq.heappop(waiting)
        for place, canary in enumerate(self.canaries):
            yield Survival(
                canary,
                whole=self.tally.whole[place],
                cut=self.tally.cut[place],
                truncated=truncated[place],
                missing=max(0, lacking[place]),
                extra=max(0, -lacking[place]),
                untrained=self.tally.untrained[place],
            )


class TextSearch:
    """Occurrences of canaries in texts that were not tokenized yet."""

    def __init__(self, canaries: Canaries) -> None:
        self.canaries = canaries
        self.tally = Tally()
        places = {canary.text: place for place, canary in enumerate(canaries)}
        self.groups = [
            Group(
                {c.text.encode(): places[c.text] for c in canaries.by_format(fmt)},
                fmt.prefix.encode(),
                len(fmt.suffix.encode()),
            )
            for fmt in canaries.formats
        ]

    def read(self, text: str) -> None:
        """Count what a text has."""
        self.tally.rows += 1
        data = text.encode("utf-8", "replace")
        for group in self.groups:
            for _, _, place in group.find(data):
                self.tally.whole[place] += 1

    def report(self) -> InjectionReport:
        """What became of each canary."""
        whole = self.tally.whole
        survivals = [
            Survival(
                canary,
                whole=whole[place],
                missing=max(0, canary.repetitions - whole[place]),
                extra=max(0, whole[place] - canary.repetitions),
            )
            for place, canary in enumerate(self.canaries)
        ]
        return InjectionReport(tuple(survivals), self.tally.rows, 0)


def search_of(canaries: Canaries, tokenizer: PreTrainedTokenizerBase | None) -> Search | TextSearch:
    """A search through token ids, or through texts if there is no tokenizer."""
    return TextSearch(canaries) if tokenizer is None else Search(canaries, tokenizer)


def _readings(encoder: Encoder, canaries: Canaries) -> Readings:
    """The bytes of tokens, by the way of reading them that gives random secrets back."""
    secrets = [(fmt, secret) for fmt in canaries.formats for secret in fmt.sample(16, seed=1)]
    error = ""
    # A tokenizer that lower-cases reads its own way, too.
    for change in (str, str.lower):
        texts = [change(fmt.render(secret)) for fmt, secret in secrets]
        needed = [len((secret + fmt.suffix).encode()) for fmt, secret in secrets]
        try:
            return encoder.readings(list(zip(texts, encoder(texts), needed, strict=True)))
        except ValueError:
            error = canaries.formats[0].template
    raise ValueError(
        f"tokenizer: changes the text of canaries, such as {error!r}, so that they cannot be "
        "found; choose a template and a secret expression from its alphabet"
    )


def _occurrences(data: bytes, word: bytes) -> Iterator[int]:
    at = data.find(word)
    while at >= 0:
        yield at
        at = data.find(word, at + 1)
