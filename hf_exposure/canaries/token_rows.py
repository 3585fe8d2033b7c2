"""Rows of token ids from whatever holds them, with what of them is trained on.

Read in chunks of about a million tokens, so a dataset does not have to fit in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure.utils.arrays import Bools, Ints

if TYPE_CHECKING:
    from datasets import Dataset


IGNORED = -100  # the label of tokens that training leaves out
_LENGTHS = "seq_lengths"  # of the documents that TRL has packed into a row
_CHUNK = 1_000_000  # tokens read at a time

# A column's numbers end to end, how many each row has, and which rows have the column at all.
Numbers = tuple[Ints, Ints, Bools]
Reader = Callable[[str], Numbers]  # by the column's name


@dataclass(frozen=True)
class TokenRows:
    """Consecutive rows, end to end.

    Attributes:
        ids: (tokens,) of all rows.
        starts: (rows + 1,) where each row begins in `ids`, and the end.
        labels: (tokens,), None where all of it is trained on.
    """

    ids: Ints
    starts: Ints
    labels: Ints | None

    @classmethod
    def none(cls) -> TokenRows:
        """No rows."""
        return cls(np.zeros(0, np.int64), np.zeros(1, np.int64), None)

    @classmethod
    def of(cls, ids: Ints, lengths: Ints, labels: Ints | None) -> TokenRows:
        """Rows of these lengths."""
        return cls(ids, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), labels)

    def join(self, other: TokenRows) -> TokenRows:
        """These, then the others."""
        starts = np.concatenate([self.starts[:-1], other.starts + len(self.ids)])
        labels = None
        if self.labels is not None or other.labels is not None:
            labels = np.concatenate([self.known_labels(), other.known_labels()])
        return TokenRows(np.concatenate([self.ids, other.ids]), starts, labels)

    def last(self, count: int) -> TokenRows:
        """The last rows, or all if there are fewer."""
        first = max(0, len(self.starts) - 1 - count)
        cut = int(self.starts[first])
        labels = None if self.labels is None else self.labels[cut:]
        return TokenRows(self.ids[cut:], self.starts[first:] - cut, labels)

    def known_labels(self) -> Ints:
        """(tokens,) the labels; the ids themselves where all of it is trained on."""
        return self.ids if self.labels is None else self.labels


def chunks(
    tokenized: Any, column: str, label_column: str, masks: tuple[str, ...]
) -> Iterator[TokenRows]:
    """Rows of about a million tokens at a time; see `survival.verify_injection`.

    Args:
        tokenized: the rows, of a dictionary of splits those of "train".
        column, label_column, masks: where the token ids are, and the labels, or the masks that
            become labels.

    Raises:
        TypeError: `tokenized` holds no rows.
        ValueError: there are no token ids.
    """
    from datasets import Dataset, DatasetDict, IterableDatasetDict

    if isinstance(tokenized, (DatasetDict, IterableDatasetDict)):
        if "train" not in tokenized:
            raise ValueError(
                f"verify_injection: tokenized has no split 'train', only {list(tokenized)}; pass "
                "the one that is trained on"
            )
        tokenized = tokenized["train"]
    if isinstance(tokenized, (str, Mapping)) or not isinstance(tokenized, Iterable):
        raise TypeError(
            f"verify_injection: tokenized is of type {type(tokenized).__name__}; pass a Dataset, "
            "an IterableDataset or a list of dictionaries"
        )
    if isinstance(tokenized, Dataset):
        parts = _parts_of_arrow(tokenized, (column, label_column, *masks, _LENGTHS))
    else:
        parts = _parts_of_rows(tokenized, column)
    for read, packed in parts:
        yield _token_rows(read, packed, column, label_column, masks)


def _token_rows(
    read: Reader, packed: Sequence[Any], column: str, label_column: str, masks: tuple[str, ...]
) -> TokenRows:
    """Rows with their labels, which are those of the labels' column where it has some, else the
    tokens under no 0 of a mask."""
    ids, lengths, _ = read(column)
    labels, own, given = read(label_column)
    trained = np.ones(len(ids), bool)
    known = bool(given.any())
    for name in () if given.all() else masks:
        values, counts, there = read(name)
        known |= bool(there.any())
        trained &= _filled(np.ones_like(ids), lengths, values, counts, there, name) != 0
    unmasked = np.where(trained, ids, IGNORED)
    full = _filled(unmasked, lengths, labels, own, given, label_column)
    return TokenRows.of(ids, _documents(lengths, packed), full if known else None)


def _filled(base: Ints, lengths: Ints, values: Ints, counts: Ints, there: Bools, name: str) -> Ints:
    """`base` with the values of the rows that have some."""
    wrong = int((lengths != counts)[there].sum())
    if wrong:
        raise ValueError(
            f"verify_injection: rows have as many {name!r} as tokens, or none; {wrong} rows do not"
        )
    out: Ints = base.copy()
    out[np.repeat(there, lengths)] = values
    return out


def _parts_of_arrow(ds: Dataset, wanted: tuple[str, ...]) -> Iterator[tuple[Reader, Sequence[Any]]]:
    names = [name for name in dict.fromkeys(wanted) if name in ds.column_names]
    column = wanted[0]
    if column not in names:
        raise ValueError(_no_ids(column, ds.column_names))
    if not len(ds):
        return
    ds = ds.with_format("arrow", columns=names)
    length = max(1, len(_flat(ds[:1][column], column)[0]))
    # Rows may be of any length: the first one gives a guess.
    for table in ds.iter(batch_size=max(1, _CHUNK // length)):

        def read(name: str, table: Any = table) -> Numbers:
            return _flat(table[name], name) if name in names else _none(len(table))

        yield read, table[_LENGTHS].to_pylist() if _LENGTHS in names else [None] * len(table)


def _flat(values: Any, column: str) -> Numbers:
    """The numbers of a column of lists, end to end."""
    import pyarrow as pa

    array = values.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if not isinstance(array, (pa.ListArray, pa.LargeListArray)):
        return _numbers(array.to_pylist(), column)
    counts = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    flat = array.flatten()
    if not (pa.types.is_integer(flat.type) or pa.types.is_null(flat.type)) or flat.null_count:
        raise ValueError(_no_numbers(column, str(flat.type)))
    there = array.is_valid().to_numpy(zero_copy_only=False)
    return flat.to_numpy(zero_copy_only=False).astype(np.int64), counts.astype(np.int64), there


def _parts_of_rows(rows: Iterable[Any], column: str) -> Iterator[tuple[Reader, Sequence[Any]]]:
    part: list[Mapping[str, Any]] = []
    tokens = 0
    for row in rows:
        if not isinstance(row, Mapping):
            raise TypeError(
                f"verify_injection: a row is of type {type(row).__name__}; it must be a dictionary "
                f"with {column!r}"
            )
        if column not in row:
            raise ValueError(_no_ids(column, list(row)))
        part.append(row)
        value = row[column]
        tokens += len(value) if hasattr(value, "__len__") else 1
        if tokens >= _CHUNK or len(part) >= _CHUNK:
            yield _reader(part), [row.get(_LENGTHS) for row in part]
            part, tokens = [], 0
    if part:
        yield _reader(part), [row.get(_LENGTHS) for row in part]


def _reader(rows: Sequence[Mapping[str, Any]]) -> Reader:
    return lambda name: _numbers([row.get(name) for row in rows], name)


def _numbers(values: Sequence[Any], column: str) -> Numbers:
    rows = [_row(value, column) for value in values]
    flat = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    there = np.array([value is not None for value in values], bool)
    return flat, np.array([len(row) for row in rows], np.int64), there


def _none(rows: int) -> Numbers:
    return np.zeros(0, np.int64), np.zeros(rows, np.int64), np.zeros(rows, bool)


def _documents(lengths: Ints, packed: Sequence[Any]) -> Ints:
    """The lengths of rows, each one in place of which those of its documents stand if it has
    them."""
    out: list[Ints] = []
    for length, inside in zip(lengths, packed, strict=True):
        own = np.asarray([] if inside is None else inside)
        # A column of this name that says something else is no matter of ours.
        packed_so = own.size and own.dtype.kind in "iu" and own.sum() == length
        out.append(own.astype(np.int64).reshape(-1) if packed_so else np.array([length]))
    return np.concatenate(out) if out else lengths


def _row(value: Any, column: str) -> Ints:
    try:
        array = np.asarray([] if value is None else value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if array.size and (array.dtype.kind not in "iu" or array.ndim != 1):
        raise ValueError(_no_numbers(column, type(value).__name__))
    return array.astype(np.int64).reshape(-1)


def _no_ids(column: str, columns: list[str]) -> str:
    return (
        f"verify_injection: column={column!r} is not there, only {columns}; tokenize the dataset "
        "first, or name the column of token ids"
    )


def _no_numbers(column: str, kind: str) -> str:
    return (
        f"verify_injection: column={column!r} must hold one list of token ids for each row, but "
        f"has {kind}; tokenize the dataset first"
    )
