"""Canaries in corpora that were tokenized for Megatron: .bin files, each with its .idx."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.search import Search
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.shards import Share, share_of
from hf_exposure.canaries.survival import InjectionReport
from hf_exposure.canaries.token_copies import token_copies
from hf_exposure.canaries.token_files import HEADER, IndexedFile, Part
from hf_exposure.utils.arrays import Ints
from hf_exposure.utils.checks import check_count
from hf_exposure.utils.files import replacing
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOOK = 1000  # documents looked at for the special tokens that they begin and end with


@typed
def insert_into_megatron(
    prefixes: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    canaries: Canaries,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int = 0,
    near_start: bool = False,
    only: int | None = None,
) -> list[Path]:
    """Insert canaries into indexed files of token ids, as documents of their own.

    The documents of all files together get what `inject_canaries` would insert into one dataset of
    them. Each file is copied piece by piece, with memory that does not grow. A special token that
    the documents begin or end with is added to the canaries too. The insertion goes on the set's
    record: save the manifest afterwards.

    Usage:

        new = insert_into_megatron(["tokens/0", "tokens/1"], "inserted", canaries, tokenizer)
        verify_megatron(new, tokenizer, canaries).raise_if_lost()

    Args:
        prefixes: the files, each without .bin and .idx; always all of them, in the same order.
        folder: where the new files go, under the same names.
        canaries: the set.
        tokenizer: the one that tokenized the files.
        seed, near_start: see `CanaryInjector`.
        only: the number of the one file to write here, if each has a task of its own.

    Returns:
        The files that were written, each without .bin and .idx.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a file is not there, or not what it should be, or a token id does not fit in.
    """
    files = _opened("insert_into_megatron", prefixes)
    names = [Path(file.prefix).name for file in files]
    target = Path(folder)
    if len(set(names)) < len(names):
        raise ValueError("insert_into_megatron: prefixes: two files have the same name; rename one")
    if any(Path(file.prefix).resolve().parent == target.resolve() for file in files):
        raise ValueError("insert_into_megatron: folder is where the files are; name another one")
    insertion = Insertion(
        column="input_ids",
        seed=check_count("insert_into_megatron: seed", seed),
        near_start=near_start,
        shards=[file.documents for file in files],
    )
    canaries.check_insertion(insertion)
    if only is not None:
        check_count("insert_into_megatron: only", only, most=len(files) - 1)
    first = next(part for file in files if file.documents for part in file.parts())
    documents = np.split(first.ids, np.cumsum(first.sizes)[:-1])[:_LOOK]
    copies = token_copies(canaries, tokenizer, [document.tolist() for document in documents]).ids
    largest = max((max(ids) for ids in copies.values()), default=0)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (file, name) in enumerate(zip(files, names, strict=True)):
        if largest > np.iinfo(file.dtype).max:
            raise ValueError(f"{file.prefix}.bin: its numbers are too small for token {largest}")
        if only in (None, number):
            _copy(file, target / name, share_of(canaries, insertion, number), copies)
            written.append(target / name)
    canaries.record(insertion)
    return written


@typed
def verify_megatron(
    prefixes: Sequence[str | os.PathLike[str]],
    tokenizer: PreTrainedTokenizerBase,
    canaries: Canaries,
) -> InjectionReport:
    """Look for every canary in indexed files of token ids; see `verify_injection`.

    Args:
        prefixes: the files, each without .bin and .idx.
        tokenizer: the one that tokenized them.
        canaries: the set.

    Returns:
        What has become of each canary.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a file is not there, or not what it should be.
    """
    files = _opened("verify_megatron", prefixes)
    search = Search(canaries, tokenizer)
    for file in files:
        search.scan(file.chunks())
    return search.report()


def _opened(where: str, prefixes: Sequence[str | os.PathLike[str]]) -> list[IndexedFile]:
    if isinstance(prefixes, (str, os.PathLike)) or not prefixes:
        raise ValueError(f"{where}: prefixes must be a list of at least one file, in order")
    files = []
    for prefix in prefixes:
        name = re.sub(r"\.(bin|idx)$", "", os.fspath(prefix))
        for ending in (".idx", ".bin"):
            if not os.path.isfile(name + ending):
                raise ValueError(f"{where}: prefixes: there is no file {name + ending!r}")
        files.append(IndexedFile(open, name))
    return files


def _copy(source: IndexedFile, target: Path, share: Share, copies: dict[str, list[int]]) -> None:
    """Write a file with its copies; the index comes last, so that without it nothing is whole."""
    index_path, data_path = (target.with_name(target.name + end) for end in (".idx", ".bin"))
    index_path.unlink(missing_ok=True)
    with contextlib.ExitStack() as stack:
        # An index may be larger than memory, so its arrays wait on disk for each other.
        arrays = [stack.enter_context(TemporaryFile(dir=target.parent)) for _ in range(3)]
        writer = _Writer(stack.enter_context(replacing(data_path)), arrays, source.dtype)
        places = [
            (place, [copies[canary.text] for _, canary in here])
            for place, here in share.places.items()
        ]
        for part in source.parts():
            inside = [(p, c) for p, c in places if part.first <= p < part.first + len(part.counts)]
            writer.add(part, inside)
        for place, here in places:
            if place == source.documents:
                writer.add_copies(here)
        index = stack.enter_context(replacing(index_path))
        index.write(HEADER + struct.pack("<BQQ", source.code, writer.sequences, writer.ends))
        for array in arrays:
            array.seek(0)
            shutil.copyfileobj(array, index)


class _Writer:
    """Appends documents to a .bin, and what is to be known of them to the arrays of its index."""

    def __init__(self, data: IO[bytes], arrays: Sequence[IO[bytes]], dtype: np.dtype[Any]) -> None:
        self.data, self.dtype = data, dtype
        self.lengths, self.pointers, self.documents = arrays
        self.place = self.sequences = 0  # bytes and sequences so far
        self.ends = 1
        self.documents.write(struct.pack("<q", 0))

    def add(self, part: Part, places: list[tuple[int, list[list[int]]]]) -> None:
        """The documents of a part, with copies before some of them."""
        tokens, sequences = (
            np.append(0, np.cumsum(sizes)).tolist() for sizes in (part.sizes, part.counts)
        )
        done = 0
        for place, copies in [*places, (part.first + len(part.counts), [])]:
            here = place - part.first
            self._add(
                part.ids[tokens[done] : tokens[here]],
                part.lengths[sequences[done] : sequences[here]],
                part.counts[done:here],
            )
            self.add_copies(copies)
            done = here

    def add_copies(self, copies: list[list[int]]) -> None:
        """Documents of one sequence each."""
        for ids in copies:
            self._add(np.array(ids), np.array([len(ids)]), np.array([1]))

    def _add(self, ids: Ints, lengths: Ints, counts: Ints) -> None:
        self.data.write(ids.astype(self.dtype).tobytes())
        self.lengths.write(lengths.astype("<i4").tobytes())
        sizes = lengths.astype("<i8") * self.dtype.itemsize
        self.pointers.write((self.place + np.cumsum(sizes) - sizes).astype("<i8").tobytes())
        self.documents.write((self.sequences + np.cumsum(counts)).astype("<i8").tobytes())
        self.place += int(sizes.sum())
        self.sequences += len(lengths)
        self.ends += len(counts)
