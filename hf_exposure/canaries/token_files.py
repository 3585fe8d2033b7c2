"""Files of token ids: Megatron's .bin with its .idx, and datatrove's .ds with its .index.

Both are read in parts, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_exposure.canaries.token_rows import TokenRows
from hf_exposure.utils.arrays import Ints

HEADER = b"MMIDIDX\x00\x00" + struct.pack("<Q", 1)
_START = len(HEADER) + struct.calcsize("<BQQ")  # where the arrays of an .idx begin
DTYPES = {
    code: np.dtype(name).newbyteorder("<")
    for code, name in {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 8: "u2"}.items()
}
_DOCUMENTS = 1 << 16  # of which the index is read at a time
_TOKENS = 1 << 20  # and tokens, unless one document has more
_DAMAGED = "{}: its index is damaged; write both files again"
Opener = Callable[[str, str], Any]  # such as `open`


@dataclass(frozen=True)
class Part:
    """Consecutive documents of a file.

    Attributes:
        first: the number of the first one.
        ids: (tokens,) of all of them, end to end.
        lengths: (sequences,) tokens of each sequence; a document has one or several.
        counts: (documents,) sequences of each document.
    """

    first: int
    ids: Ints
    lengths: Ints
    counts: Ints

    @property
    def sizes(self) -> Ints:
        """(documents,) tokens of each document."""
        return _sums(self.lengths, self.counts)


class TokenFile:
    """Documents of token ids in a file, read in parts."""

    documents: int

    def parts(self) -> Iterator[Part]:
        """All documents, in order."""
        raise NotImplementedError

    def chunks(self) -> Iterator[TokenRows]:
        """All documents as rows, for `verify_injection`."""
        for part in self.parts():
            yield TokenRows.of(part.ids.astype(np.int64), part.sizes, None)


class IndexedFile(TokenFile):
    """A .bin and .idx as Megatron-LM, NeMo and datatrove's `MegatronDocumentTokenizer` write them.

    Raises:
        ValueError: the index is none, or of another kind.
    """

    def __init__(self, opener: Opener, prefix: str) -> None:
        self.opener, self.prefix = opener, prefix
        with opener(f"{prefix}.idx", "rb") as file:
            head = file.read(_START)
            size = file.seek(0, os.SEEK_END)
        if len(head) < _START or not head.startswith(HEADER):
            raise ValueError(f"{prefix}.idx is no index of version 1 as Megatron-LM writes it")
        self.code, self.sequences, ends = struct.unpack("<BQQ", head[len(HEADER) :])
        self.documents = ends - 1
        if self.code not in DTYPES:
            raise ValueError(f"{prefix}.idx: its tokens are no whole numbers")
        self.dtype = DTYPES[self.code]
        if size != _START + 12 * self.sequences + 8 * ends or not ends:
            raise ValueError(f"{prefix}.idx is not whole, or of multimodal data")

    def parts(self) -> Iterator[Part]:
        """All documents, in order.

        Raises:
            ValueError: the sequences do not lie one after another in the .bin.
        """
        with (
            self.opener(f"{self.prefix}.idx", "rb") as index,
            self.opener(f"{self.prefix}.bin", "rb") as data,
        ):

            def array(start: int, dtype: str, first: int, count: int) -> Ints:
                kind = np.dtype(dtype)
                index.seek(start + first * kind.itemsize)
                return np.frombuffer(index.read(count * kind.itemsize), kind).astype(np.int64)

            ends_at = _START + 12 * self.sequences
            done = 0
            for first in range(0, self.documents, _DOCUMENTS):
                count = min(_DOCUMENTS, self.documents - first)
                ends = array(ends_at, "<i8", first, count + 1)
                if (np.diff(ends) < 0).any() or ends[-1] > self.sequences:
                    raise ValueError(_DAMAGED.format(self.prefix))
                low, total = int(ends[0]), int(ends[-1] - ends[0])
                lengths = array(_START, "<i4", low, total)
                pointers = array(_START + 4 * self.sequences, "<i8", low, total)
                expected = done + (np.cumsum(lengths) - lengths) * self.dtype.itemsize
                if (first == 0 and low) or (pointers != expected).any():
                    raise ValueError(
                        f"{self.prefix}.idx: the sequences do not lie one after another; write the "
                        "file again, such as with Megatron-LM's tools/merge_datasets.py"
                    )
                done += int(lengths.sum()) * self.dtype.itemsize
                yield from _split(first, np.diff(ends), lengths, data, self.dtype, self.prefix)


class DatatroveFile(TokenFile):
    """A .ds with the .ds.index of its documents' ends."""

    def __init__(self, opener: Opener, name: str, dtype: str) -> None:
        self.opener, self.name, self.dtype = opener, name, np.dtype(dtype)
        with opener(f"{name}.index", "rb") as file:
            self.documents = file.seek(0, os.SEEK_END) // 8

    def parts(self) -> Iterator[Part]:
        """All documents, in order."""
        with (
            self.opener(f"{self.name}.index", "rb") as index,
            self.opener(self.name, "rb") as data,
        ):
            done = 0
            for first in range(0, self.documents, _DOCUMENTS):
                ends = np.frombuffer(index.read(8 * _DOCUMENTS), "<u8").astype(np.int64)
                lengths = np.diff(ends, prepend=done)
                done = int(ends[-1])
                counts = np.ones(len(ends), np.int64)
                yield from _split(first, counts, lengths, data, self.dtype, self.name)


def token_file(opener: Opener, name: str, vocabulary: int) -> TokenFile:
    """A file by its ending; a .ds has 2 bytes a token where the vocabulary leaves it at that."""
    if name.endswith(".ds"):
        return DatatroveFile(opener, name, "<u4" if vocabulary > 1 << 16 else "<u2")
    return IndexedFile(opener, name.removesuffix(".bin").removesuffix(".idx"))


def _split(
    first: int, counts: Ints, lengths: Ints, data: Any, dtype: Any, name: str
) -> Iterator[Part]:
    """Documents in parts of about a million tokens."""
    if lengths.min(initial=0) < 0:
        raise ValueError(_DAMAGED.format(name))
    sizes = _sums(lengths, counts)
    ends, sequences = np.cumsum(sizes), np.append(0, np.cumsum(counts))
    low = 0
    while low < len(sizes):
        before = int(ends[low] - sizes[low])
        high = max(low + 1, int(np.searchsorted(ends, before + _TOKENS, "right")))
        tokens = int(ends[high - 1]) - before
        ids = np.frombuffer(data.read(tokens * dtype.itemsize), dtype)
        if len(ids) < tokens:
            raise ValueError(
                f"{name}: the tokens end before their index does; write both files again"
            )
        own = lengths[sequences[low] : sequences[high]]
        yield Part(first + low, ids, own, counts[low:high])
        low = high


def _sums(lengths: Ints, counts: Ints) -> Ints:
    """The sum of lengths of each document, which may have no sequence at all."""
    totals = np.append(0, np.cumsum(lengths))
    ends = np.cumsum(counts)
    out: Ints = totals[ends] - totals[ends - counts]
    return out
