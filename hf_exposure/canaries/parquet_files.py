"""Parquet files that get canaries."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.injector import CanaryInjector, no_column
from hf_exposure.canaries.places import parts


class ParquetFile:
    """A Parquet file, copied with its schema."""

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
        self.keys = keys_of_messages("inject_canaries", column, self.type)
        self.chat = bool(self.keys)

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
        if rows:
            check_nulls("inject_canaries", self.schema, [self.column])
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
                    added = iter([canary for _, copies in here for _, canary in copies])
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

    def _new(self, copies: list[Canary], injector: CanaryInjector) -> Any:
        import pyarrow as pa

        rows = [injector.row(canary, self.columns) for canary in copies]
        arrays = [
            pa.nulls(len(rows), field.type)  # which some types take no list of
            if all(row[field.name] is None for row in rows)
            else pa.array([row[field.name] for row in rows], type=field.type)
            for field in self.schema
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)


def keys_of_messages(where: str, column: str, kind: Any) -> list[str]:
    """The keys of messages, if an Arrow type is that of conversations; none if it is of texts.

    Raises:
        TypeError: it is neither.
    """
    import pyarrow as pa

    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_string(plain) or pa.types.is_large_string(plain) or plain == pa.string_view():
        return []
    message: Any = getattr(plain, "value_type", None)
    if message is not None and pa.types.is_struct(message):
        names = [field.name for field in message]
        if {"role", "content"} <= set(names):
            return names
    raise TypeError(
        f"{where}: column={column!r} must hold text or conversations, but has {kind}; name a "
        "column that does"
    )


def check_nulls(where: str, schema: Any, filled: Collection[str]) -> None:
    """Refuse columns that may hold no null, which added rows have where they are not filled.

    Raises:
        ValueError: there are some.
    """
    required = [field.name for field in schema if not field.nullable and field.name not in filled]
    if required:
        raise ValueError(
            f"{where}: the columns {required} may hold no null, which added rows have there; use "
            'mode="splice", or make them nullable'
        )
