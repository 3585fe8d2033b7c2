"""Files of rows that get canaries, and keep everything else as it was written.

JSON Lines, JSON arrays and CSV are copied text by text; only added rows, and with mode="splice" the
cells that get a canary, are written anew, in the file's own style. Parquet keeps its schema. A file
is read twice, in pieces (a JSON array is read whole): once to count its rows, once to copy it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Protocol

from hf_exposure.canaries.csv_files import CsvFile
from hf_exposure.canaries.injection import in_it_twice, often
from hf_exposure.canaries.injector import CanaryInjector
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.json_files import JsonFile
from hf_exposure.canaries.parquet_files import ParquetFile
from hf_exposure.canaries.row_types import check_type_of_rows
from hf_exposure.canaries.sets import Canaries
from hf_exposure.utils.warn import warn


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


KINDS: dict[str, Any] = {
    ".jsonl": JsonFile,
    ".json": JsonFile,
    ".csv": CsvFile,
    ".parquet": ParquetFile,
}
