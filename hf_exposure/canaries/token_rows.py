"""Rows of token ids from whatever holds them, with what of them is trained on.

Read in chunks of about a million tokens, so a dataset does not have to fit in memory. The module
knows no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure.utils.arrays import Ints

if TYPE_CHECKING:
    from datasets import Dataset


IGNORED = -100  # the label of tokens that training leaves out
_LENGTHS = "seq_lengths"  # of the documents that TRL has packed into a row
_CHUNK = 1_000_000  # tokens read at a time


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
        yield from _chunks_of_arrow(tokenized, column, label_column, masks)
    else:
        yield from _chunks_of_rows(tokenized, column, label_column, masks)


def _chunks_of_arrow(
    ds: Dataset, column: str, label_column: str, masks: tuple[str, ...]
) -> Iterator[TokenRows]:
    if column not in ds.column_names:
        raise ValueError(_no_ids(column, ds.column_names))
    wanted = (column, label_column, *masks, _LENGTHS)
    names = [name for name in dict.fromkeys(wanted) if name in ds.column_names]
    ds = ds.with_format("arrow", columns=names)
    if not len(ds):
        return
    length = max(1, len(_flat(ds[:1][column], column)[0]))
    # Rows may be of any length: the first one gives a guess.
    for table in ds.iter(batch_size=max(1, _CHUNK // length)):
        ids, lengths = _flat(table[column], column)

        def known(name: str, lengths: Ints = lengths, table: Any = table) -> Ints | None:
            if name not in names or table[name].null_count == len(table):
                return None
            values, counts = _flat(table[name], name)
            _check_labels(lengths, counts, name)
            return values

        labels = known(label_column)
        if labels is None:
            labels = _unmasked(ids, [known(name) for name in masks])
        if _LENGTHS in names:
            lengths = _documents(lengths, table[_LENGTHS].to_pylist())
        yield TokenRows.of(ids, lengths, labels)


def _flat(values: Any, column: str) -> tuple[Ints, Ints]:
    """The numbers of a column of lists, end to end, and how many each row has."""
    import pyarrow as pa

    array = values.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if not isinstance(array, (pa.ListArray, pa.LargeListArray)):
        lists = array.to_pylist()
        return _numbers([_row(value, column) for value in lists])
    counts = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    flat = array.flatten()
    if not (pa.types.is_integer(flat.type) or pa.types.is_null(flat.type)) or flat.null_count:
        raise ValueError(_no_numbers(column, str(flat.type)))
    return flat.to_numpy(zero_copy_only=False).astype(np.int64), counts.astype(np.int64)


def _chunks_of_rows(
    rows: Iterable[Any], column: str, label_column: str, masks: tuple[str, ...]
) -> Iterator[TokenRows]:
    iterator = iter(rows)
    while True:
        ids: list[Ints] = []
        labels: list[Ints | None] = []
        packed: list[Any] = []
        tokens = 0
        for row in islice(iterator, _CHUNK):
            if not isinstance(row, Mapping):
                raise TypeError(
                    f"verify_injection: a row is of type {type(row).__name__}; it must be a "
                    f"dictionary with {column!r}"
                )
            if column not in row:
                raise ValueError(_no_ids(column, list(row)))
            ids.append(_row(row[column], column))
            labels.append(_labels_of(row, ids[-1], label_column, masks))
            packed.append(row.get(_LENGTHS))
            tokens += len(ids[-1])
            if tokens >= _CHUNK:
                break
        if not ids:
            return
        flat, lengths = _numbers(ids)
        documents = _documents(lengths, packed)
        if all(label is None for label in labels):
            yield TokenRows.of(flat, documents, None)
            continue
        # A row without labels is trained on as it is.
        filled = [own if label is None else label for own, label in zip(ids, labels, strict=True)]
        flat_labels, label_lengths = _numbers(filled)
        _check_labels(lengths, label_lengths, label_column)
        yield TokenRows.of(flat, documents, flat_labels)


def _labels_of(
    row: Mapping[str, Any], ids: Ints, label_column: str, masks: tuple[str, ...]
) -> Ints | None:
    """The labels of one row, None if all of it is trained on."""
    if row.get(label_column) is not None:
        return _row(row[label_column], label_column)
    given = {name: row[name] for name in masks if row.get(name) is not None}
    values = {name: _row(value, name) for name, value in given.items()}
    for name, value in values.items():
        _check_labels(np.array([len(ids)]), np.array([len(value)]), name)
    return _unmasked(ids, list(values.values()))


def _unmasked(ids: Ints, masks: Sequence[Ints | None]) -> Ints | None:
    """Labels of tokens, all masks regarded; None if there is no mask."""
    there = [mask != 0 for mask in masks if mask is not None]
    return np.where(np.all(there, axis=0), ids, IGNORED) if there else None


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


def _numbers(rows: list[Ints]) -> tuple[Ints, Ints]:
    flat = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    return flat, np.array([len(row) for row in rows], np.int64)


def _check_labels(lengths: Ints, label_lengths: Ints, label_column: str) -> None:
    if not np.array_equal(lengths, label_lengths):
        raise ValueError(
            f"verify_injection: rows have as many {label_column!r} as tokens, or none; "
            f"{int((lengths != label_lengths).sum())} rows do not"
        )


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
