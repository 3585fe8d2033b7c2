"""Prefixes and the suffixes that belong to them, read from what data sets look like.

What cannot be used is left out, with a reason; it is never quoted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure.canaries.vocabulary import Encoder, common_length
from hf_exposure.utils.arrays import Ints
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TOO_SHORT = "too short"
NOT_TEXT = "not text, nor token ids"
UNKNOWN = "with characters that the tokenizer cannot write"


@dataclass(frozen=True)
class Pair:
    """A prefix and its suffix as token ids.

    Attributes:
        row: where it stood in the data, counted from 0.
        prefix, suffix: (n,) token ids, at least one each; not shown by `repr`.
    """

    row: int
    prefix: Ints = field(repr=False)
    suffix: Ints = field(repr=False)


class _Unusable(Exception):
    """Why a row is left out."""


@typed
def load_benchmark(folder: str | os.PathLike[str], split: str = "train") -> list[tuple[Ints, Ints]]:
    """The pairs of a folder in the layout of the language model extraction benchmark.

    It is that of google-research/lm-extraction-benchmark: `train_prefix.npy` and
    `train_suffix.npy`, arrays of token ids, one row for each example, 50 columns each. They are the
    ids of one tokenizer (there GPT-Neo's): measure a model that has it.

    Args:
        split: "train", "val" or what else the files' names begin with.

    Returns:
        (prefix, suffix) for each row, for `discoverable_extraction`.

    Raises:
        OSError: a file is not there.
        ValueError: the files are no such arrays, or not of equally many rows.
    """
    arrays = []
    for part in ("prefix", "suffix"):
        path = Path(folder) / f"{split}_{part}.npy"
        if not path.is_file():
            raise OSError(
                f"load_benchmark: there is no file {str(path)!r}; give a folder with "
                f"{split}_prefix.npy and {split}_suffix.npy, or name another split"
            )
        try:
            array = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"load_benchmark: {str(path)!r} is no NumPy array: {error}") from None
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"load_benchmark: {str(path)!r} holds an array of {array.ndim} dimensions and "
                f"{array.dtype}, not one row of token ids for each example"
            )
        arrays.append(array.astype(np.int64))
    prefixes, suffixes = arrays
    if len(prefixes) != len(suffixes):
        raise ValueError(
            f"load_benchmark: in {os.fspath(folder)!r} there are {len(prefixes)} prefixes and "
            f"{len(suffixes)} suffixes of {split!r}; they have to belong together row by row"
        )
    return list(zip(prefixes, suffixes, strict=True))


def read_pairs(
    rows: Iterable[Any],
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    columns: str | tuple[str, str] | None = None,
    prefix_tokens: int = 50,
    suffix_tokens: int = 50,
    bos: bool | None = None,
) -> tuple[list[Pair], dict[int, str]]:
    """The pairs of a data set, and why some of its rows are left out.

    A row is a pair of a prefix and a suffix, which are taken whole, or one sequence, whose first
    `prefix_tokens` and next `suffix_tokens` tokens are taken. Each is text or token ids. Text gets
    the special tokens that come before a text in training; ids are taken as they are. The texts of
    a pair are encoded together, as in training: a token that lies across the boundary belongs to
    the suffix.

    Args:
        rows: any of these, or rows with named columns, such as a `datasets.Dataset`.
        tokenizer: for texts.
        columns: the names of prefix and suffix, or of one column to cut. None takes "prefix" and
            "suffix" if the rows have them, and else "text".
        bos: whether special tokens come first; None follows the tokenizer's default.

    Returns:
        The pairs in their order, and the reason for each row that gave none, by its number.

    Raises:
        TypeError: there are no rows to go through.
        ValueError: a column is not there, or there is text and no tokenizer.
    """
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise TypeError(
            f"pairs: a {type(rows).__name__} holds no rows; give (prefix, suffix) pairs, texts, a "
            "datasets.Dataset, or what load_benchmark returns"
        )
    if isinstance(rows, Mapping):
        raise ValueError(
            f"pairs: is a dictionary with the keys {', '.join(map(repr, rows))}; choose a split "
            "of it"
        )
    if columns is not None and not isinstance(columns, str):
        named = isinstance(columns, (tuple, list)) and len(columns) == 2
        if not named or not all(isinstance(name, str) for name in columns):
            raise TypeError(f"pairs: columns={columns!r} must be one name, or a pair of names")
    encoder = None if tokenizer is None else Encoder(tokenizer, bos)
    out: list[Pair] = []
    skipped: dict[int, str] = {}
    for number, row in enumerate(rows):
        chosen = _chosen(row, columns) if isinstance(row, Mapping) else row
        try:
            if _is_pair(chosen):
                prefix, suffix = _pair(chosen, encoder)
            else:
                prefix, suffix = _cut(chosen, encoder, prefix_tokens, suffix_tokens)
            if not len(prefix) or not len(suffix):
                raise _Unusable(TOO_SHORT)
        except _Unusable as why:
            skipped[number] = str(why)
        else:
            out.append(Pair(number, prefix, suffix))
    return out, skipped


def count_reasons(skipped: Mapping[int, str]) -> dict[str, int]:
    """How many rows are left out for each reason, most frequent first."""
    return dict(Counter(skipped.values()).most_common())


def _chosen(row: Mapping[str, Any], columns: str | tuple[str, str] | None) -> Any:
    """A pair or one sequence from a row with named columns."""
    if columns is None:
        columns = ("prefix", "suffix") if "prefix" in row and "suffix" in row else "text"
    names = (columns,) if isinstance(columns, str) else columns
    for name in names:
        if name not in row:
            raise ValueError(
                f"pairs: the rows have no column {name!r}, only {', '.join(map(repr, row))}; "
                "name the columns of prefix and suffix, or one to cut, with columns="
            )
    return row[columns] if isinstance(columns, str) else tuple(row[name] for name in columns)


def _is_pair(row: Any) -> bool:
    if isinstance(row, (str, bytes)) or not _has_items(row) or len(row) != 2:
        return False
    return any(isinstance(part, (str, bytes)) or _has_items(part) for part in row)


def _has_items(value: Any) -> bool:
    """Whether it is a list, an array, a tensor: not a number, nor an array that is one."""
    return hasattr(value, "__getitem__") and getattr(value, "ndim", 1) > 0


def _pair(row: Sequence[Any], encoder: Encoder | None) -> tuple[Ints, Ints]:
    prefix, suffix = row
    if not (isinstance(prefix, str) and isinstance(suffix, str)):
        if isinstance(prefix, str) or isinstance(suffix, str):
            raise _Unusable(NOT_TEXT)
        return _ids(prefix), _ids(suffix)
    lead, (alone, both) = _encoded([prefix, prefix + suffix], encoder)
    cut = common_length([alone, both])
    return np.array([*lead, *both[:cut]], dtype=np.int64), np.array(both[cut:], dtype=np.int64)


def _cut(row: Any, encoder: Encoder | None, before: int, after: int) -> tuple[Ints, Ints]:
    lead: Sequence[int] = ()
    if isinstance(row, str):
        lead, (tokens,) = _encoded([row], encoder)
        ids = np.array(tokens, dtype=np.int64)
    else:
        ids = _ids(row)
    if len(ids) < before + after:
        raise _Unusable(TOO_SHORT)
    prefix = np.array([*lead, *ids[:before].tolist()], dtype=np.int64)
    return prefix, ids[before : before + after]


def _encoded(
    texts: Sequence[str], encoder: Encoder | None
) -> tuple[tuple[int, ...], list[list[int]]]:
    """The special tokens before a text, and the tokens of each text."""
    if encoder is None:
        raise ValueError("pairs: holds texts, but tokenizer=None; give the model's tokenizer")
    text = texts[-1]
    if "\0" in text:  # as in a binary file
        raise _Unusable(NOT_TEXT)
    try:
        text.encode()
    except UnicodeEncodeError:  # halves of characters
        raise _Unusable(NOT_TEXT) from None
    try:
        encodings = encoder(texts)
    except Exception:  # tokenizers may raise anything, and quote what they got
        raise _Unusable(UNKNOWN) from None
    unknown = encoder.tokenizer.unk_token_id
    # Some tokenizers have one token for "unknown" and for the end of a text.
    meant = 0 if unknown is None else text.count(str(encoder.tokenizer.unk_token))
    if unknown is not None and encodings[-1].count(unknown) > meant:
        raise _Unusable(UNKNOWN)
    return encoder.lead, encodings


def _ids(value: Any) -> Ints:
    """(n,) token ids from a list, an array or a tensor."""
    if isinstance(value, (str, bytes)) or not _has_items(value):
        raise _Unusable(NOT_TEXT)
    value = value.tolist() if hasattr(value, "tolist") else list(value)
    if not all(isinstance(one, (int, np.integer)) and not isinstance(one, bool) for one in value):
        raise _Unusable(NOT_TEXT)
    if any(one < 0 or one >= 1 << 62 for one in value):
        raise _Unusable(NOT_TEXT)
    return np.array(value, dtype=np.int64)
