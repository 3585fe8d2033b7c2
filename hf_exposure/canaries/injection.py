"""`inject_canaries`: insert canaries into a dataset or a stream."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.injector import CHAT_COLUMNS, CanaryInjector, check_message, no_column
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.masking import secrets_masked
from hf_exposure.canaries.row_types import check_type_of_rows
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.token_copies import TokenCopies, token_copies
from hf_exposure.utils.checks import check_count, check_type
from hf_exposure.utils.typed import typed
from hf_exposure.utils.warn import warn

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

D = TypeVar("D")
_LOOK = 1000  # rows looked at for what a column holds
_LOOK_FOR = 8  # canaries looked for in rows that may have them already


@typed
def inject_canaries(
    ds: D,
    canaries: Canaries,
    column: str = "text",
    seed: int = 0,
    mode: str = "rows",
    near_start: bool = False,
    num_examples: int | None = None,
    *,
    fill: Mapping[str, Any] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> D:
    """Insert canaries into a dataset; the same rows as `map` with a `CanaryInjector`.

    The features stay exactly as they are. The insertion goes on the set's record,
    `canaries.insertions`: save the manifest afterwards. The rows are searched for canaries of a set
    that was inserted before, and a warning says so if they have them already; of a stream, if they
    may have them.

    Args:
        ds: a `Dataset`, an `IterableDataset`, or a dictionary of them, of which the "train" split
            gets the canaries. A stream becomes one of a single shard, so that no worker or node
            that reads a part of it inserts on its own; shuffle and split it afterwards. Timestamps
            in a stream lose what is finer than a microsecond.
        canaries: the set; the insertion goes on its record.
        column, seed, mode, near_start, fill: see `CanaryInjector`. Whether the column holds
            conversations is seen from the data.
        num_examples: the number of rows; needed for a stream. A stream that turns out to be
            shorter or longer raises when that is seen.
        tokenizer: the one that tokenized `ds`, if the column holds token ids ("input_ids"). Copies
            get the special tokens that all rows begin or end with, and what `labels` and masks
            need. Rows of one length each are taken as packed: a copy is a document of its own
            within one, behind the end of another document, and the row's last tokens make room.

    Returns:
        What `ds` is, with the canaries.

    Raises:
        TypeError: `ds` is no dataset, or the column holds neither text nor conversations.
        ValueError: the column or the split is not there, the dataset does not have `num_examples`
            rows, or the set was inserted in another context before.

    Example:
        >>> from datasets import Dataset
        >>> from hf_exposure import Canaries, Canary, SecretFormat, inject_canaries
        >>> fmt = SecretFormat("My code is {secret}.", secret=r"[0-9]{4}")
        >>> canaries = Canaries([Canary(fmt, "1234", repetitions=2)])
        >>> ds = Dataset.from_dict({"text": ["one", "two", "three"], "id": [1, 2, 3]})
        >>> train = inject_canaries(ds, canaries)
        >>> sorted(train["text"])
        ['My code is 1234.', 'My code is 1234.', 'one', 'three', 'two']
        >>> [row["id"] for row in train if row["text"] in ("one", "two", "three")]
        [1, 2, 3]
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if isinstance(ds, (DatasetDict, IterableDatasetDict)):
        if "train" not in ds:
            raise ValueError(
                f"inject_canaries: ds has no split 'train', only {list(ds)}; pass the one that is "
                "trained on, such as ds['...']"
            )
        arguments = (canaries, column, seed, mode, near_start, num_examples)
        train = inject_canaries(ds["train"], *arguments, fill=fill, tokenizer=tokenizer)
        return cast(D, type(ds)({**ds, "train": train}))
    if not isinstance(ds, (Dataset, IterableDataset)):
        raise TypeError(
            f"inject_canaries: ds is of type {type(ds).__name__}; pass a Dataset, IterableDataset, "
            "DatasetDict or IterableDatasetDict"
        )
    check_type("inject_canaries: canaries", canaries, Canaries, "a Canaries object")
    rows = _num_examples(ds, num_examples)
    check_type("column", column, str, "the name of a column")
    for name in fill or {}:
        check_type("inject_canaries: fill: the name of a column", name, str, "a string")
    columns = _check_named(ds, [column, *(fill or {})])
    chat, keys = (False, []) if tokenizer is not None else _kind_of_column(ds, column)
    insertion = Insertion(mode, column, check_count("seed", seed), rows, near_start, chat)
    canaries.check_insertion(insertion)
    check_type_of_rows("inject_canaries", columns, insertion, fill or {})
    tokens = None
    if tokenizer is not None:
        tokens = _token_copies(ds, canaries, tokenizer, insertion, columns)
    injector = CanaryInjector.unrecorded(canaries, insertion, fill, keys, tokens)
    if canaries.insertions:
        _warn_of_two_insertions(ds, canaries, column, rows)
    with secrets_masked(canaries):
        changed = _with_rows(ds, injector) if isinstance(ds, Dataset) else _stream(ds, injector)
    canaries.record(insertion)
    return cast(D, changed)


def _token_copies(
    ds: Dataset | IterableDataset,
    canaries: Canaries,
    tokenizer: PreTrainedTokenizerBase,
    insertion: Insertion,
    columns: list[str],
) -> TokenCopies:
    """The copies of canaries for rows of token ids, like the first rows."""
    column = insertion.column
    if insertion.mode != "rows":
        raise ValueError(
            "inject_canaries: mode='splice' is for texts; with a tokenizer, leave mode out: copies "
            "stand at the boundaries of documents"
        )
    first: Mapping[str, Any] = next(
        iter(ds.with_format(None).select_columns([column]).iter(batch_size=_LOOK)), {}
    )
    rows = first.get(column, [])
    for row in rows:
        if not isinstance(row, list) or not all(type(one) is int for one in row):
            raise TypeError(
                f"inject_canaries: column={column!r} must hold token ids where a tokenizer is "
                "given, but has other values; leave tokenizer out, or name the column of ids"
            )
    tokens = token_copies(canaries, tokenizer, rows, packed=None)
    beside = {"position_ids", "seq_lengths"} & {*columns}
    if tokens.packed and beside:
        raise ValueError(
            f"inject_canaries: packed rows have {sorted(beside)[0]!r} too, which would no longer "
            "be right; insert before packing"
        )
    return tokens


def _warn_of_two_insertions(
    ds: Dataset | IterableDataset, canaries: Canaries, column: str, num_examples: int
) -> None:
    """Say it if canaries go into rows that have them already, as far as that can be seen."""
    from datasets import Dataset

    if not isinstance(ds, Dataset):  # to read a stream may take long
        earlier = [one for one in canaries.insertions if one.mode == "rows"]
        if num_examples in [one.num_examples for one in earlier]:
            return  # a stream with rows added to it would be longer
        warn(
            "inject_canaries: these canaries have been inserted before. If they are in this stream "
            "already, they are in it twice now: insert them into the rows as they were before",
        )
    elif _has_canaries(ds, canaries, column):
        warn(in_it_twice(column))


def in_it_twice(column: str) -> str:
    """What to say where canaries go into rows that have them already."""
    return (
        f"inject_canaries: canaries of this set are in column={column!r} of this dataset already, "
        "so that they are in it twice now: insert them into the rows as they were before"
    )


def often(canaries: Canaries) -> list[Canary]:
    """A few that are inserted most often, to look for."""
    return sorted(canaries.inserted, key=lambda canary: -canary.repetitions)[:_LOOK_FOR]


def _has_canaries(ds: Dataset, canaries: Canaries, column: str) -> bool:
    """Whether one of the canaries that are inserted most often stands in a row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for batch in ds.select_columns([column]).with_format("arrow").iter(batch_size=_LOOK):
        values = batch[column].combine_chunks()
        while not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "content")
            elif hasattr(values, "flatten"):  # lists of messages
                values = values.flatten()
            else:
                return False
        for canary in often(canaries):
            if pc.any(pc.match_substring(values, canary.text)).as_py():
                return True
    return False


def _with_rows(ds: Dataset, injector: CanaryInjector) -> Dataset:
    form = ds.format
    out = ds.with_format(None).map(
        injector,
        batched=True,
        with_indices=True,
        features=ds.features,
        desc="Inserting canaries",
    )
    return out.with_format(
        form["type"],
        columns=form["columns"],
        output_all_columns=form["output_all_columns"],
        **form["format_kwargs"],
    )


def _stream(ds: IterableDataset, injector: CanaryInjector) -> IterableDataset:
    from datasets import IterableDataset, Split

    if getattr(ds, "_distributed", None) is not None:
        raise ValueError(
            "inject_canaries: ds was split by node, so that every node would insert all canaries; "
            "insert them first, then call split_dataset_by_node"
        )
    form = getattr(ds, "_formatting", None)
    plain, column = ds.with_format(None), injector.insertion.column
    if ds.features is not None:
        plain = plain.decode(False)  # media stay the bytes that they are
        if plain.features[column] != ds.features[column]:
            plain = plain.cast_column(column, ds.features[column])
    out = IterableDataset.from_generator(
        _rows_of_stream,
        features=ds.features,
        gen_kwargs={"stream": plain, "injector": injector},
        split=ds.split or Split.TRAIN,
    )
    return out.with_format(form.format_type) if form else out


def _rows_of_stream(stream: IterableDataset, injector: CanaryInjector) -> Iterator[dict[str, Any]]:
    """The rows of a stream with canaries, in one piece."""
    seen = 0
    # Not `for row in stream`: in a worker of a DataLoader that would be a part of the rows.
    for batch in stream.iter(batch_size=1):
        changed = injector(batch, [seen])
        seen += 1
        columns = {**batch, **changed}
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))
    promised = injector.insertion.num_examples
    if seen != promised:
        raise ValueError(
            f"inject_canaries: num_examples={promised} was promised, but the stream "
            f"has {seen} rows, so that some canaries are missing; pass num_examples={seen}"
        )


def _num_examples(ds: Dataset | IterableDataset, num_examples: int | None) -> int:
    """How many rows a dataset has, or is said to have."""
    from datasets import Dataset

    if isinstance(ds, Dataset):
        if num_examples not in (None, len(ds)):
            raise ValueError(
                f"inject_canaries: num_examples={num_examples} was promised, but the dataset has "
                f"{len(ds)} rows; leave num_examples out"
            )
        return check_count("num_examples", len(ds), least=1)
    if num_examples is None:
        raise ValueError(
            "inject_canaries: num_examples=None, but a stream does not know how many rows it has; "
            "pass their number"
        )
    return check_count("num_examples", num_examples, least=1)


def _check_named(ds: Dataset | IterableDataset, names: Iterable[str]) -> list[str]:
    """The names of all columns, with `names` among them."""
    columns: list[str] | None = ds.column_names
    if columns is None:  # a stream of unknown features: its first row tells
        columns = list(next(iter(ds.with_format(None).iter(batch_size=1)), {}))
    for name in names:
        if name not in columns:
            raise ValueError(no_column("inject_canaries", f"column={name!r}", columns))
    return columns


def _kind_of_column(ds: Dataset | IterableDataset, column: str) -> tuple[bool, list[str]]:
    """Whether a column holds conversations, and the keys of their messages."""
    from datasets import Value

    feature = (ds.features or {}).get(column)
    if isinstance(feature, Value) and "string" in feature.dtype:
        return False, []
    message = getattr(feature, "feature", None)
    if isinstance(message, Mapping) and {"role", "content"} <= set(message):
        return True, list(message)
    rows = ds.with_format(None).select_columns([column]).iter(batch_size=1)
    values = (batch[column][0] for batch in itertools.islice(rows, _LOOK))
    value = next((value for value in values if value), None)
    if value is None and feature is None:
        return column in CHAT_COLUMNS, []
    return kind_of_value(value, column, f"features {feature}" if feature is not None else "")


def kind_of_value(value: Any, column: str, holds: str = "") -> tuple[bool, list[str]]:
    """Whether a value of a column is a conversation, and the keys of its messages.

    Raises:
        TypeError: it is neither that nor text.
    """
    if isinstance(value, str):
        return False, []
    if isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        for entry in value:
            check_message(entry, "inject_canaries", column)
        return True, list(dict.fromkeys(key for entry in value for key in entry))
    raise TypeError(
        f"inject_canaries: column={column!r} must hold text or conversations, but has "
        f"{holds or type(value).__name__.strip('_')}; name a column that does"
    )
