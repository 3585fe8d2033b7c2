"""Canaries in corpora of many machines, by Ray Data: a task for each file, with `map_batches`.

Ray promises no order of rows, so that a row's number is known only within its file. Each task reads
one file, and inserts the share of that file, which seed and counts alone decide.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as arrow
import pyarrow.json
import ray.data

from hf_exposure.canaries.injector import CanaryInjector, no_column
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.masking import secrets_masked
from hf_exposure.canaries.parquet_files import check_nulls, keys_of_messages
from hf_exposure.canaries.places import Copies
from hf_exposure.canaries.row_types import check_type_of_rows
from hf_exposure.canaries.rows import cause
from hf_exposure.canaries.search import Search, TextSearch, search_of
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.shards import Share, share_of
from hf_exposure.canaries.survival import InjectionReport
from hf_exposure.canaries.tally import Tally
from hf_exposure.canaries.token_rows import chunks
from hf_exposure.utils.checks import check_count
from hf_exposure.utils.names import raise_alone
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
_ROWS = 10_000  # read at a time
_BLOCK = 1 << 22  # bytes of JSON Lines or CSV read at a time; a row must fit
Batch = Mapping[str, Any]


@typed
def insert_canaries(
    files: Sequence[str],
    canaries: Canaries,
    column: str = "text",
    seed: int = 0,
    mode: str = "rows",
    near_start: bool = False,
    *,
    fill: Mapping[str, Any] | None = None,
    counts: Sequence[int] | None = None,
) -> ray.data.Dataset:
    """Insert canaries into the rows of many files, as a dataset of Ray.

    Do it after deduplication and filters, which would remove canaries: write what they leave with
    `write_parquet`, and insert into those files. The rows of all files together get what
    `inject_canaries` would insert into one dataset of them. A task that Ray starts again inserts
    the same. The insertion goes on the set's record: save the manifest afterwards.

    Usage:

        train = insert_canaries(sorted(glob("filtered/*.parquet")), canaries)
        canaries.save("canaries.json")
        train.map_batches(tokenize).write_parquet("tokenized")

    Args:
        files: .parquet, .jsonl or .csv files that all machines reach, in a fixed order. Each is
            read by one task, a few thousand rows at a time.
        canaries, column, seed, mode, near_start, fill: see `CanaryInjector`. Whether the column
            holds conversations is seen from the first file. What CSV holds stays text.
        counts: the number of rows of each file; None counts them first, with a task for each.

    Returns:
        The rows of all files, with the canaries.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a file or the column is not there, a file cannot be read, or the set was
            inserted in another context before. In use, that of further files, and: a file has
            another number of rows than was counted.
    """
    paths = [os.fspath(file) for file in files]
    if not paths:
        raise ValueError("insert_canaries: files is empty; name at least one")
    schema = _opened(paths[0]).schema
    keys = _keys(paths[0], schema, column, mode, fill or {})
    insertion = Insertion(
        mode=mode,
        column=column,
        seed=check_count("insert_canaries: seed", seed),
        near_start=near_start,
        chat=bool(keys),
        shards=_count(paths) if counts is None else counts,
    )
    if len(insertion.shards or ()) != len(paths):
        raise ValueError(
            f"insert_canaries: counts has {len(insertion.shards or ())} numbers for {len(paths)} "
            "files; give one for each"
        )
    check_type_of_rows("insert_canaries", schema.names, insertion, fill or {})
    canaries.record(insertion)
    injector = CanaryInjector.unrecorded(canaries, insertion, fill, keys)
    return _each_file(paths, _Insert(injector))


@typed
def verify_canaries(
    ds: Any,
    canaries: Canaries,
    column: str = "text",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> InjectionReport:
    """Look for every canary in a dataset of Ray, of texts or of token ids.

    Rows come in no order here, so a canary that packing has cut in two is reported as truncated.

    Args:
        ds: the dataset.
        canaries: the set.
        column: where the texts, conversations or token ids are.
        tokenizer: the one that tokenized the rows; None for texts.

    Returns:
        What has become of each canary.

    Raises:
        TypeError: `ds` is no dataset of Ray, or an argument has the wrong type.
        ValueError: the column is not there.
    """
    if not isinstance(ds, ray.data.Dataset):
        raise TypeError(f"verify_canaries: ds is of type {type(ds).__name__}; pass a Ray Dataset")
    schema = ds.schema()
    if schema is None:
        raise ValueError("verify_canaries: ds has no rows; pass what the model is trained on")
    kinds = dict(zip(schema.names, schema.types, strict=True))
    if column not in kinds:
        raise ValueError(no_column("verify_canaries", f"column={column!r}", kinds))
    if tokenizer is None and not pa.types.is_null(kinds[column]):
        keys_of_messages("verify_canaries", column, kinds[column])
    ds = ds.select_columns([column])
    look = _Look(canaries, column, tokenizer)
    found = ds.map_batches(look, batch_size=_ROWS, batch_format="pyarrow")
    search = search_of(canaries, tokenizer)
    search.tally = Tally.total(
        Tally.from_dict(json.loads(row["tally"])) for row in found.iter_rows()
    )
    return search.report()


class _Insert:
    """Reads one file, and inserts its share."""

    def __init__(self, injector: CanaryInjector) -> None:
        self.injector = injector

    def __call__(self, shard: int, path: str) -> Iterator[pa.Table]:
        injector = self.injector
        share = share_of(injector.canaries, injector.insertion, shard)
        seen, table = 0, None
        rows, insertion = _opened(path), injector.insertion
        keys = _keys(path, rows.schema, insertion.column, insertion.mode, injector.fill)
        if bool(keys) != insertion.chat:
            raise TypeError(
                f"insert_canaries: column={insertion.column!r} holds conversations in some files "
                f"and text in others, such as {path!r}; insert into each kind by itself"
            )
        for part in _batches(path, rows):
            seen += len(part)
            share.check(seen)
            table = pa.Table.from_batches([part])
            with secrets_masked(injector.canaries):
                yield self._changed(table, share, seen - len(part))
        share.check(seen, ended=True)
        if table is not None and seen in share.places:
            yield self._rows(table, share.places[seen])

    def _changed(self, table: pa.Table, share: Share, first: int) -> pa.Table:
        here = [(p - first, c) for p, c in share.places.items() if first <= p < first + len(table)]
        if not here:
            return table
        if self.injector.insertion.mode == "splice":
            column = self.injector.insertion.column
            values = table[column].to_pylist()
            for place, copies in here:
                values[place] = self.injector.spliced(values[place], copies)
            number = table.column_names.index(column)
            field = table.schema.field(column)
            return table.set_column(number, field, pa.array(values, field.type))
        pieces, done = [], 0
        for place, copies in here:
            pieces += [table.slice(done, place - done), self._rows(table, copies)]
            done = place
        return pa.concat_tables([*pieces, table.slice(done)])

    def _rows(self, beside: pa.Table, copies: Copies) -> pa.Table:
        rows = [self.injector.row(canary, beside.column_names) for _, canary in copies]
        return pa.Table.from_pylist(rows, schema=beside.schema)


class _Look:
    """Looks through a batch; what it has found is one row."""

    def __init__(
        self, canaries: Canaries, column: str, tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        self.canaries, self.column, self.tokenizer = canaries, column, tokenizer
        self.search: Search | TextSearch | None = None  # made once where batches are read

    def __call__(self, table: pa.Table) -> dict[str, list[str]]:
        search = self.search = self.search or search_of(self.canaries, self.tokenizer)
        search.tally = Tally()
        if isinstance(search, TextSearch):
            for value in table[self.column].to_pylist():
                if not isinstance(value, list):
                    search.read(value or "")
                else:
                    search.read("\n".join(message["content"] or "" for message in value))
        else:
            rows = ({self.column: ids} for ids in table[self.column].to_pylist())
            search.scan(chunks(rows, self.column, "", ()))
        return {"tally": [json.dumps(search.tally.to_dict())]}


def _each_file(paths: list[str], function: Callable[[int, str], Iterator[Any]]) -> ray.data.Dataset:
    """A dataset of what `function` yields for each file, by a task of its own."""
    items = [{"shard": shard, "path": path} for shard, path in enumerate(paths)]

    def of_batch(batch: Batch) -> Iterator[Any]:
        for shard, path in zip(batch["shard"], batch["path"], strict=True):
            yield from function(int(shard), str(path))

    ds = ray.data.from_items(items, override_num_blocks=len(items))
    return ds.map_batches(of_batch, batch_size=1)


def _count(paths: list[str]) -> list[int]:
    """Rows of each file, counted by Ray."""

    def count(shard: int, path: str) -> Iterator[dict[str, Any]]:
        yield {"shard": np.array([shard]), "rows": np.array([_opened(path).count_rows()])}

    rows = {row["shard"]: row["rows"] for row in _each_file(paths, count).iter_rows()}
    return [int(rows[shard]) for shard in range(len(paths))]


def _opened(path: str) -> Any:
    """The rows of a file, with texts as they stand there: by itself, pyarrow reads what looks like
    a day as a time, and `007` in CSV as a number."""
    ending = os.path.splitext(path)[1]
    if ending not in _FORMATS:
        raise ValueError(
            f"insert_canaries: {path!r} ends in none of {', '.join(_FORMATS)}, so it is not known "
            "how to read it; write Parquet"
        )
    with _reading(path):
        form: Any = _FORMATS[ending]
        if form == "json":
            read = pyarrow.json.ReadOptions(block_size=_BLOCK)
            options: Any = arrow.JsonFragmentScanOptions(read_options=read)
            form = arrow.JsonFileFormat(default_fragment_scan_options=options)
        elif form == "csv":
            options = arrow.CsvFragmentScanOptions(
                read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK)
            )
            form = arrow.CsvFileFormat(pyarrow.csv.ParseOptions(newlines_in_values=True), options)
        rows = arrow.dataset(path, format=form)
        if ending == ".parquet":
            return rows
        fields = [
            field.with_type(pa.string() if ending == ".csv" else _without_times(field.type))
            for field in rows.schema
        ]
        return arrow.dataset(path, format=form, schema=pa.schema(fields))


def _without_times(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_times(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_times(field.type)) for field in kind])
    return kind


def _batches(path: str, rows: Any) -> Iterator[pa.RecordBatch]:
    parts = rows.to_batches(batch_size=_ROWS)
    while True:
        with _reading(path):
            part = next(parts, None)
        if part is None:
            return
        yield part


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Errors of pyarrow without what stands in the file, which they quote."""
    try:
        yield
        return
    except FileNotFoundError:
        why = "there is no such file"
    except (pa.ArrowException, OSError) as error:
        why = f"it is not what its name says ({cause(error)})"
        if "Empty" in str(error):
            why = "it is empty; leave it out"
        elif "straddling" in str(error):
            why = f"it has a row of more than {_BLOCK >> 20} MB; write Parquet"
    raise_alone(ValueError(f"insert_canaries: {path!r} cannot be read: {why}"))


def _keys(
    path: str, schema: pa.Schema, column: str, mode: str, fill: Mapping[str, Any]
) -> list[str]:
    """The keys of messages in the column of a file, none of texts.

    Raises:
        TypeError, ValueError: the file cannot take canaries.
    """
    for name in (column, *fill):
        if name not in schema.names:
            what = f"in {path!r} column={name!r}"
            raise ValueError(no_column("insert_canaries", what, schema.names))
    for name, value in fill.items():
        kind = schema.field(name).type
        try:
            pa.array([value], kind)
        except (pa.ArrowException, OverflowError):
            why = f"fill={{{name!r}: {value!r}}} does not fit the column, which holds {kind}"
            raise ValueError(f"insert_canaries: {why}") from None
    if mode == "rows":
        check_nulls("insert_canaries", schema, [column, *fill])
    return keys_of_messages("insert_canaries", column, schema.field(column).type)
