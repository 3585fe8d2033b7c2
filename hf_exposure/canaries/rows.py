"""Data sets by path or Hub id: reading rows, and writing them."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_exposure.utils.files import replacing, temporary
from hf_exposure.utils.names import first_line, looks_like_a_path, nearby, raise_alone
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from datasets import Dataset

_READERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_WRITERS = {".jsonl": "to_json", ".json": "to_json", ".csv": "to_csv", ".parquet": "to_parquet"}

COMPRESSED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".xz": b"\xfd7zXZ"}


@typed
def load_rows(
    name: str | os.PathLike[str], *, config: str | None = None, split: str = "train"
) -> Dataset:
    """A split of a dataset: a file (.jsonl, .csv, .parquet, .txt), a folder that `save_to_disk`
    wrote, or an id on the Hub.

    Raises:
        OSError, ValueError: it is not there, or has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    name = os.fspath(name)
    path = Path(name)
    if path.suffix in _READERS:
        if not path.is_file():
            raise OSError(f"load_rows: there is no file {name!r}")
        if split != "train":
            raise ValueError(
                f"load_rows: split={split!r}: a file such as {name!r} has no splits; leave it out"
            )
        if path.stat().st_size == 0:
            raise ValueError(f"load_rows: the file {name!r} is empty")
        return _read(name, _READERS[path.suffix], data_files=str(path), split="train")
    if path.is_file():
        raise ValueError(
            f"load_rows: {name!r} ends in none of {', '.join(_READERS)}, so it is not known how to "
            f"read it; {'decompress' if path.suffix in COMPRESSED else 'rename'} it"
        )
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        rows = load_from_disk(name)
        if not isinstance(rows, DatasetDict):
            return rows
        if split not in rows:
            raise ValueError(f"load_rows: split={split!r}: {name!r} has only {list(rows)}")
        return rows[split]
    if looks_like_a_path(name) and not path.is_dir():
        raise OSError(
            f"load_rows: there is no file or folder {name!r}; give a .jsonl, .csv, .parquet or "
            ".txt file, a folder that save_to_disk wrote, or a Hub id"
        )
    return _read(name, name, config, split=split)


def _read(name: str, *arguments: Any, **options: Any) -> Dataset:
    """`load_dataset`, with one line if it fails."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset(*arguments, **options)
    except DatasetGenerationError as error:  # what is said of the content quotes it
        why = f"what is in it is not what is expected there ({cause(error)})"
    except Exception as error:
        why = first_line(error.__cause__ or error.__context__ or error)
    raise_alone(OSError(f"load_rows: {name!r}{nearby(name)} cannot be read: {why}"))


def cause(error: BaseException) -> str:
    """The kind of what went wrong, and in which line if that is told: nothing that stands there."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    place = re.search(r"\b(line|row) #?(\d+)\b", str(error), re.IGNORECASE)
    return type(error).__name__ + (f" in {place[1].lower()} {place[2]}" if place else "")


def check_output(target: str | os.PathLike[str]) -> None:
    """Refuse a place that `save_rows` could not write to.

    Raises:
        ValueError: the ending is not known.
        FileExistsError: the folder is there already.
    """
    path = Path(target)
    if path.suffix and path.suffix not in _WRITERS:
        raise ValueError(
            f"save_rows: {os.fspath(target)!r} ends in {path.suffix!r}; use one of "
            f"{', '.join(_WRITERS)}, or the name of a folder"
        )
    if not path.suffix and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(
            f"save_rows: {os.fspath(target)!r} is there already; name another one"
        )


def save_rows(rows: Dataset, target: str | os.PathLike[str]) -> Path:
    """Write a dataset to a .jsonl, .csv or .parquet file, or a new folder; whole or not at all.

    Raises:
        ValueError, FileExistsError: see `check_output`.
    """
    check_output(target)
    path = Path(target)
    writer = _WRITERS.get(path.suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    if writer is not None:
        with replacing(path) as file:
            getattr(rows, writer)(file)
        return path
    with temporary(path.parent, is_folder=True) as folder:
        rows.save_to_disk(str(folder / path.name))
        if path.exists():
            path.rmdir()
        shutil.move(folder / path.name, path)
    return path
