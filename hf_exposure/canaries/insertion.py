"""Plant canaries in a dataset.

Where a copy of a canary goes is a function of the canary, the seed and the number of rows alone.
So batches, processes and streams all give the same rows, and a further canary moves no other one.
The module knows no torch.
"""

from __future__ import annotations

import itertools
import json
import math
import operator
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from hf_exposure.canaries.sets import Canaries, derived
from hf_exposure.canaries.survival import InjectionReport, verify_injection

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, IterableDataset

__all__ = ["CanaryInjector", "InjectionReport", "inject_canaries", "verify_injection"]

D = TypeVar("D")
Copies = list[tuple[float, str]]  # a place within a row or between two, in [0, 1), and a text
MODES = ("rows", "splice")
REQUEST = "Write one line of text."  # the user's turn before a canary in a conversation of its own
_CHAT_COLUMNS = ("messages", "conversation", "conversations")
_LOOK = 1000  # rows looked at for what a column holds
_LOOK_FOR = 8  # canaries looked for in rows that may have been planted before
_VERSION = 1  # of the placement: part of the fingerprint, so that no cache outlives a change
_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


class CanaryInjector:
    """A function for `Dataset.map(batched=True, with_indices=True)` that plants canaries.

    Usage:

        train = ds.map(CanaryInjector(canaries, num_examples=len(ds)), batched=True,
                       with_indices=True)

    Guarantees:
        - Each canary goes in exactly `repetitions` times; controls do not.
        - The original rows stay in order. With mode="rows" nothing in them changes; with
          mode="splice" only the texts do that get a canary.
        - The rows are the same whatever the batch size and `num_proc`, and the same as from
          `inject_canaries`. Equal arguments have equal fingerprints, in any process.
        - The copies of a canary are spread independently of each other and of other canaries.

    A stream's indices start at 0 in every worker that reads a part of it: plant canaries in an
    `IterableDataset` with `inject_canaries`, which sees to that.

    Args:
        canaries: the set; its `planting` is filled in.
        num_examples: the number of rows of the dataset.
        column: the column that gets the canaries: text, or conversations (lists of messages with
            "role" and "content").
        seed: decides on the places.
        mode: "rows" adds a row for each copy (in chat data a conversation: a short request, and
            the canary as the answer) at a random place, with None in all other columns. "splice"
            puts a space and the canary at a random space between two words of a random row (in
            chat data, of an assistant's message); at the end if there is no such space.
        near_start: plant a canary within the first 1 % of the rows, or within as many rows as it
            has copies if that is more.
        chat: whether the column holds conversations; None goes by the column's name, "messages"
            and "conversation(s)" meaning yes.
        fill: what the added rows have in other columns in place of None, such as {"label": 0}.

    Raises:
        TypeError: in use, the column holds something else, or `map` was called otherwise.
        ValueError: an argument is out of range; in use, the column is not there, or there are more
            rows than `num_examples`. That there are fewer is nothing a map function can see:
            `inject_canaries` and `verify_injection` find it.
    """

    def __init__(
        self,
        canaries: Canaries,
        num_examples: int,
        column: str = "text",
        seed: int = 0,
        mode: str = "rows",
        near_start: bool = False,
        *,
        chat: bool | None = None,
        fill: Mapping[str, Any] | None = None,
    ) -> None:
        _check_arguments("CanaryInjector", canaries, num_examples, seed, mode)
        self.canaries = canaries
        self.num_examples = operator.index(num_examples)
        self.column = column
        self.seed = operator.index(seed)
        self.mode = mode
        self.near_start = bool(near_start)
        self.chat = column in _CHAT_COLUMNS if chat is None else bool(chat)
        self.fill = dict(sorted((fill or {}).items()))
        if column in self.fill:
            raise ValueError(
                f"CanaryInjector: fill has {column!r}, the column that gets the canaries; leave it "
                "out"
            )
        self.keys: list[str] = []  # of the messages, so that added ones have them all
        self._places = _places(canaries, self.num_examples, self.seed, mode, self.near_start)
        # Here and not in use: a map that is loaded from the cache never calls.
        canaries.planting = self.planting

    @property
    def planting(self) -> dict[str, Any]:
        """How the canaries are planted, for the manifest."""
        planting = {
            "mode": self.mode,
            "column": self.column,
            "seed": self.seed,
            "near_start": self.near_start,
            "num_examples": self.num_examples,
            "chat": self.chat,
        }
        return {**planting, "request": REQUEST} if self.chat else planting

    def __call__(self, batch: Any, indices: Any = None) -> Any:
        """What changes in a batch: nothing, the column, or the whole table where rows are added."""
        self._check_call(batch, indices)
        planted = [(place, self._places.get(index)) for place, index in enumerate(indices)]
        here = [(place, copies) for place, copies in planted if copies]
        if self.num_examples - 1 in indices:  # nothing but the last row knows of the end
            end = self._places.get(self.num_examples)
            here += [(len(indices), end)] if end else []
        if not here:
            return {}
        values = list(batch[self.column])
        self._check_column(values)
        if self.mode == "splice":
            for place, copies in here:
                values[place] = self._spliced(values[place], copies)
            return {self.column: values}
        for name in self.fill:
            if name not in batch:
                raise ValueError(_no_column("CanaryInjector", f"fill: {name!r}", batch))
        added = {
            name: [
                self._row(text) if name == self.column else self.fill.get(name)
                for _, copies in here
                for _, text in copies
            ]
            for name in batch
        }
        # A `Dataset` lends its table: rows copied there do not lose what decoding and encoding
        # them would, such as the bytes of an image.
        if hasattr(batch, "pa_table"):
            return self._longer_table(batch, added, here)
        out: dict[str, list[Any]] = {}
        for name in batch:
            old, new = batch[name], iter(added[name])
            out[name] = []
            for start, stop, count in _parts(here, len(indices)):
                out[name] += [*old[start:stop], *itertools.islice(new, count)]
        return out

    def _longer_table(
        self, batch: Any, added: dict[str, list[Any]], here: list[tuple[int, Copies]]
    ) -> pa.Table:
        """The table of a batch, with the added rows before the places in `here`."""
        import pyarrow as pa
        from datasets import Dataset, Features

        table: pa.Table = batch.pa_table
        known = batch.formatter.features or Features.from_arrow_schema(table.schema)
        features = Features({name: known[name] for name in added})
        for name, value in self.fill.items():
            try:
                Dataset.from_dict({name: [value]}, features=Features({name: features[name]}))
            except (pa.ArrowException, TypeError, ValueError, KeyError) as error:
                raise ValueError(
                    f"CanaryInjector: fill={{{name!r}: {value!r}}} does not fit the column, which "
                    f"holds {features[name]} ({error})"
                ) from None
        new = Dataset.from_dict(added, features=features).data.table.cast(table.schema)
        parts, done = [], 0
        for start, stop, count in _parts(here, len(table)):
            parts += [table.slice(start, stop - start), new.slice(done, count)]
            done += count
        return pa.concat_tables(parts)

    def _row(self, text: str) -> Any:
        """What a canary's own row has in the column."""
        if not self.chat:
            return text
        return [self._message("user", REQUEST), self._message("assistant", text)]

    def _message(self, role: str, content: str, keys: Iterable[str] = ()) -> dict[str, Any]:
        return {**dict.fromkeys([*self.keys, *keys]), "role": role, "content": content}

    def _spliced(self, value: Any, copies: Copies) -> Any:
        """The value of the column in one row, with canaries in it."""
        if not self.chat:
            return _splice(value or "", copies)
        messages = [dict(message) for message in value or [self._message("user", REQUEST)]]
        turns = [
            place
            for place, message in enumerate(messages)
            if message.get("role") == "assistant" and message.get("content")
        ]
        if not turns:
            turns = [len(messages)]
            messages.append(self._message("assistant", "", keys=messages[0]))
        by_turn: dict[int, Copies] = {}
        for fraction, text in copies:
            # The whole part chooses the message, the rest the place within it.
            rest, whole = math.modf(fraction * len(turns))
            by_turn.setdefault(turns[int(whole)], []).append((rest, text))
        for place, inside in by_turn.items():
            messages[place]["content"] = _splice(messages[place]["content"], inside)
        return messages

    def _check_call(self, batch: Any, indices: Any) -> None:
        if not isinstance(indices, Sequence):
            raise TypeError(
                "CanaryInjector: call it through map(injector, batched=True, with_indices=True)"
            )
        if not isinstance(batch, Mapping):
            kind = type(batch).__name__
            raise TypeError(_formatted(kind))
        # Of a lazy batch nothing is decoded here; it has no format.
        kinds = {type(column).__name__ for column in batch.values()} if type(batch) is dict else {}
        for kind in sorted({*kinds} - {"list"}):
            raise TypeError(_formatted(kind))
        if self.column not in batch:
            raise ValueError(_no_column("CanaryInjector", f"column={self.column!r}", batch))
        if indices and max(indices) >= self.num_examples:
            raise ValueError(
                f"CanaryInjector: num_examples={self.num_examples} was promised, but the dataset "
                f"has a row {max(indices) + 1}; pass num_examples=len(ds)"
            )
        torch_data: Any = sys.modules.get("torch.utils.data")
        worker = torch_data.get_worker_info() if torch_data else None
        if worker is not None and worker.id > 0:
            raise RuntimeError(
                f"CanaryInjector: DataLoader worker {worker.id} reads a part of this stream and "
                "counts its rows from 0, so that canaries would come twice or never; plant them "
                "with inject_canaries(ds, canaries, num_examples=...)"
            )

    def _check_column(self, values: list[Any]) -> None:
        for value in values:
            if value is None or (isinstance(value, str) and not self.chat):
                continue
            if self.chat and isinstance(value, Sequence) and not isinstance(value, str):
                for message in value:
                    self._check_message(message)
                continue
            wanted = "conversations (chat=True)" if self.chat else "text (chat=False)"
            raise TypeError(
                f"CanaryInjector: column={self.column!r} must hold {wanted}, but a row has "
                f"{type(value).__name__}; name a column that does, or set chat"
            )

    def _check_message(self, message: Any) -> None:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            keys = list(message) if isinstance(message, Mapping) else type(message).__name__
            raise TypeError(
                f"CanaryInjector: the messages in column={self.column!r} must have the keys 'role' "
                f"and 'content', not {keys}"
            )
        if not isinstance(message["content"], (str, type(None))):
            raise TypeError(
                f"CanaryInjector: the content of messages in column={self.column!r} must be text, "
                f"not {type(message['content']).__name__}"
            )

    def __reduce__(self) -> tuple[Callable[..., CanaryInjector], tuple[str, dict[str, Any]]]:
        # By one string: the fingerprint that `datasets` takes of it depends on nothing else, such
        # as which objects are shared or how the canaries were planted before.
        arguments = {
            "version": _VERSION,
            "canaries": {**self.canaries.to_dict(), "planting": {}},
            "num_examples": self.num_examples,
            "column": self.column,
            "seed": self.seed,
            "mode": self.mode,
            "near_start": self.near_start,
            "chat": self.chat,
            "keys": self.keys,
        }
        return _restored, (json.dumps(arguments, sort_keys=True), self.fill)


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
) -> D:
    """Plant canaries in a dataset; the same rows as `map` with a `CanaryInjector`.

    The features stay exactly as they are. How the canaries were planted is recorded in
    `canaries.planting`: save the manifest afterwards. Canaries that were planted before are looked
    for in the rows, and warned of if they are there already; of a stream, if they may be.

    Args:
        ds: a `Dataset`, an `IterableDataset`, or a dictionary of them, of which the "train" split
            gets the canaries. A stream becomes one of a single shard, so that no worker or node
            that reads a part of it plants on its own; shuffle and split it afterwards. Timestamps
            in a stream lose what is finer than a microsecond.
        column, seed, mode, near_start, fill: see `CanaryInjector`. Whether the column holds
            conversations is seen from the data.
        num_examples: the number of rows; needed for a stream. A stream that turns out to be
            shorter or longer raises when that is seen.

    Raises:
        TypeError: `ds` is no dataset, or the column holds neither text nor conversations.
        ValueError: the column or the split is not there, or the dataset does not have
            `num_examples` rows.

    Example:
        >>> from datasets import Dataset
        >>> from hf_exposure.canaries.sets import Canaries, Canary
        >>> from hf_exposure.canaries.formats import SecretFormat
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
        train = inject_canaries(ds["train"], *arguments, fill=fill)
        return cast(D, type(ds)({**ds, "train": train}))
    if not isinstance(ds, (Dataset, IterableDataset)):
        raise TypeError(
            f"inject_canaries: ds is of type {type(ds).__name__}; pass a Dataset, IterableDataset, "
            "DatasetDict or IterableDatasetDict"
        )
    rows = _num_examples(ds, num_examples)
    _check_arguments("inject_canaries", canaries, rows, seed, mode)
    _check_named(ds, [column, *(fill or {})])
    chat, keys = _kind_of_column(ds, column)
    before = canaries.planting
    if before:
        _warn_of_two_plantings(ds, canaries, column, rows)
    try:
        injector = CanaryInjector(
            canaries, rows, column, seed, mode, near_start, chat=chat, fill=fill
        )
        injector.keys = keys
        planted: Any = (
            _planted_rows(ds, injector)
            if isinstance(ds, Dataset)
            else _planted_stream(ds, injector)
        )
        return cast(D, planted)
    except BaseException:
        canaries.planting = before
        raise


def _warn_of_two_plantings(
    ds: Dataset | IterableDataset, canaries: Canaries, column: str, num_examples: int
) -> None:
    """Say it if canaries go into rows that have them already, as far as that can be seen."""
    from datasets import Dataset

    if not isinstance(ds, Dataset):  # to read a stream may take long
        earlier = canaries.planting
        if earlier.get("mode") == "rows" and earlier.get("num_examples") == num_examples:
            return  # a stream with rows added to it would be longer
        warnings.warn(
            "inject_canaries: these canaries have been planted before. If they are in this stream "
            "already, they are in it twice now: plant them in the rows as they were before",
            stacklevel=3,
        )
    elif _has_canaries(ds, canaries, column):
        warnings.warn(
            f"inject_canaries: canaries of this set are in column={column!r} of this dataset "
            "already, so that they are in it twice now: plant them in the rows as they were before",
            stacklevel=3,
        )


def _has_canaries(ds: Dataset, canaries: Canaries, column: str) -> bool:
    """Whether one of the canaries that are planted most often stands in a row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    often = sorted(canaries.inserted, key=lambda canary: -canary.repetitions)[:_LOOK_FOR]
    for batch in ds.select_columns([column]).with_format("arrow").iter(batch_size=_LOOK):
        values = batch[column].combine_chunks()
        while not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "content")
            elif hasattr(values, "flatten"):  # lists of messages
                values = values.flatten()
            else:
                return False
        for canary in often:
            if pc.any(pc.match_substring(values, canary.text)).as_py():
                return True
    return False


def _planted_rows(ds: Dataset, injector: CanaryInjector) -> Dataset:
    form = ds.format
    out = ds.with_format(None).map(
        injector,
        batched=True,
        with_indices=True,
        features=ds.features,
        desc="Planting canaries",
    )
    return out.with_format(
        form["type"],
        columns=form["columns"],
        output_all_columns=form["output_all_columns"],
        **form["format_kwargs"],
    )


def _planted_stream(ds: IterableDataset, injector: CanaryInjector) -> IterableDataset:
    from datasets import IterableDataset, Split

    if getattr(ds, "_distributed", None) is not None:
        raise ValueError(
            "inject_canaries: ds was split by node, so that every node would plant all canaries; "
            "plant them first, then call split_dataset_by_node"
        )
    form = getattr(ds, "_formatting", None)
    plain = ds.with_format(None)
    if ds.features is not None:
        plain = plain.decode(False)  # media stay the bytes that they are
        if plain.features[injector.column] != ds.features[injector.column]:
            plain = plain.cast_column(injector.column, ds.features[injector.column])
    out = IterableDataset.from_generator(
        _rows_of_stream,
        features=ds.features,
        gen_kwargs={"stream": plain, "injector": injector},
        split=ds.split or Split.TRAIN,
    )
    return out.with_format(form.format_type) if form else out


def _rows_of_stream(stream: IterableDataset, injector: CanaryInjector) -> Iterator[dict[str, Any]]:
    """The rows of a planted stream, in one piece."""
    seen = 0
    # Not `for row in stream`: in a worker of a DataLoader that would be a part of the rows.
    for batch in stream.iter(batch_size=1):
        changed = injector(batch, [seen])
        seen += 1
        columns = {**batch, **changed}
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))
    if seen != injector.num_examples:
        raise ValueError(
            f"inject_canaries: num_examples={injector.num_examples} was promised, but the stream "
            f"has {seen} rows, so that some canaries are missing; pass num_examples={seen}"
        )


def _places(
    canaries: Canaries, num_examples: int, seed: int, mode: str, near_start: bool
) -> dict[int, Copies]:
    """Row -> what is planted before it ("rows") or in it ("splice"), in order. The number of rows
    itself stands for the end."""
    out: dict[int, Copies] = {}
    for canary in canaries.inserted:
        draw = derived(seed, "places", canary.text)
        choices = num_examples + (mode == "rows")
        if near_start:
            choices = min(num_examples, max(-(-num_examples // 100), canary.repetitions))
        for _ in range(canary.repetitions):
            place = draw.randrange(choices)
            out.setdefault(place, []).append((draw.random(), canary.text))
    for copies in out.values():
        copies.sort()
    return out


def _parts(here: list[tuple[int, Copies]], length: int) -> Iterator[tuple[int, int, int]]:
    """Old rows from, old rows to, and how many added rows follow them."""
    done = 0
    for place, copies in here:
        yield done, place, len(copies)
        done = place
    yield done, length, 0


def _splice(text: str, copies: Copies) -> str:
    """`text` with each copy, and a space before it, at a space between two words."""
    gaps = [match.start() for match in _BETWEEN_WORDS.finditer(text)] or [len(text)]
    out: list[str] = []
    done = 0
    for fraction, canary in sorted(copies):
        place = gaps[int(fraction * len(gaps))]
        out += [text[done:place], " ", canary]
        done = place
    return "".join([*out, text[done:]])


def _num_examples(ds: Dataset | IterableDataset, num_examples: int | None) -> int:
    """How many rows a dataset has, or is said to have."""
    from datasets import Dataset

    if isinstance(ds, Dataset):
        if num_examples not in (None, len(ds)):
            raise ValueError(
                f"inject_canaries: num_examples={num_examples} was promised, but the dataset has "
                f"{len(ds)} rows; leave num_examples out"
            )
        return len(ds)
    if num_examples is None:
        raise ValueError(
            "inject_canaries: num_examples=None, but a stream does not know how many rows it has; "
            "pass their number"
        )
    return num_examples


def _check_arguments(where: str, canaries: Any, num_examples: Any, seed: Any, mode: Any) -> None:
    if not isinstance(canaries, Canaries):
        kind = type(canaries).__name__
        raise TypeError(f"{where}: canaries must be a Canaries object, not {kind}")
    for name, value in (("num_examples", num_examples), ("seed", seed)):
        try:
            operator.index(value)
        except TypeError:
            kind = type(value).__name__
            raise TypeError(f"{where}: {name} must be an int, not {kind}") from None
    if num_examples < 1:
        raise ValueError(
            f"{where}: num_examples={num_examples}; canaries need a dataset with at least one row"
        )
    if mode not in MODES:
        raise ValueError(f"{where}: mode={mode!r} is not known; use 'rows' or 'splice'")


def _check_named(ds: Dataset | IterableDataset, names: Iterable[str]) -> None:
    columns = ds.column_names
    if columns is None:  # a stream of unknown features: its first row tells
        columns = list(next(iter(ds.with_format(None).iter(batch_size=1)), {}))
    for name in names:
        if name not in columns:
            raise ValueError(_no_column("inject_canaries", f"column={name!r}", columns))


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
    if isinstance(value, str):
        return False, []
    if isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        keys = dict.fromkeys(key for entry in value for key in entry)
        if {"role", "content"} <= set(keys):
            return True, list(keys)
        raise TypeError(
            f"inject_canaries: the messages in column={column!r} must have the keys 'role' and "
            f"'content', not {list(keys)}"
        )
    if value is None and feature is None:
        return column in _CHAT_COLUMNS, []
    holds = f"features {feature}" if feature is not None else type(value).__name__
    raise TypeError(
        f"inject_canaries: column={column!r} must hold text or conversations, but has {holds}; "
        "name a column that does"
    )


def _no_column(where: str, what: str, columns: Iterable[str]) -> str:
    return f"{where}: {what} is not there, only {list(columns)}; name one of these"


def _formatted(kind: str) -> str:
    return (
        f"CanaryInjector: a batch came as {kind}; reset the dataset's format first, with "
        "ds.with_format(None)"
    )


def _restored(arguments: str, fill: Mapping[str, Any]) -> CanaryInjector:
    """The inverse of `CanaryInjector.__reduce__`."""
    known = json.loads(arguments)
    del known["version"]
    keys = known.pop("keys")
    known["canaries"] = Canaries.from_dict(known["canaries"])
    injector = CanaryInjector(**known, fill=fill)
    injector.keys = keys
    return injector
