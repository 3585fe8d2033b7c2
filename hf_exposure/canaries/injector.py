"""`CanaryInjector`: a function for `Dataset.map` that inserts canaries."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.masking import secrets_masked
from hf_exposure.canaries.places import VERSION, Copies, parts, places_of, splice
from hf_exposure.canaries.row_types import check_type_of_rows, own_row
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.token_copies import TokenCopies
from hf_exposure.utils.checks import check_count, check_type
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    import pyarrow as pa

CHAT_COLUMNS = ("messages", "conversation", "conversations")


@typed
class CanaryInjector:
    """A function for `Dataset.map(batched=True, with_indices=True)` that inserts canaries.

    Usage:

        train = ds.map(CanaryInjector(canaries, num_examples=len(ds)), batched=True,
                       with_indices=True)

    Guarantees:
        - Each canary is inserted exactly `repetitions` times; controls are not.
        - The original rows stay in order. With mode="rows" nothing in them changes; with
          mode="splice" only the texts do that get a canary.
        - The rows are the same whatever the batch size and `num_proc`, and the same as from
          `inject_canaries`. Equal arguments have equal fingerprints, in any process.
        - The copies of a canary are spread independently of each other and of other canaries.

    A stream's indices start at 0 in every worker that reads a part of it. Insert canaries into an
    `IterableDataset` with `inject_canaries`, which takes care of that.

    Args:
        canaries: the set; the insertion goes on its record.
        num_examples: the number of rows of the dataset.
        column: the column that gets the canaries: text, or conversations (lists of messages with
            "role" and "content").
        seed: decides on the places.
        mode: "rows" adds a row for each copy (in chat data a conversation: a short request, and
            the canary as the answer) at a random place, with None in all other columns but those
            that TRL's trainers need: an empty prompt, another answer as "rejected". "splice"
            inserts a space and the canary at a random space between two words of a random row (in
            chat data, of an assistant's message); at the end if there is no such space.
        near_start: insert a canary within the first 1 % of the rows, or within as many rows as it
            has copies if that is more.
        chat: whether the column holds conversations; None goes by the column's name, "messages"
            and "conversation(s)" meaning yes.
        fill: what the added rows have in other columns in place of None, such as {"label": 0}.

    Attributes:
        insertion: how the canaries are inserted, an `Insertion`.

    Raises:
        TypeError: an argument has the wrong type; in use, the column holds something else, or
            `map` was called without `batched=True, with_indices=True`.
        ValueError: an argument is out of range, or the set was inserted in another context before;
            in use, the column is not there, or there are more rows than `num_examples`. A map
            function cannot see that there are fewer: `inject_canaries` and `verify_injection` can.
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
        insertion = Insertion(
            mode=mode,
            column=column,
            seed=check_count("seed", seed),
            num_examples=check_count("num_examples", num_examples, least=1),
            near_start=near_start,
            chat=column in CHAT_COLUMNS if chat is None else chat,
        )
        self._set(canaries, insertion, fill)
        # Here and not in use: a map that is loaded from the cache never calls.
        canaries.record(insertion)

    def _set(
        self,
        canaries: Canaries,
        insertion: Insertion,
        fill: Mapping[str, Any] | None,
        keys: Iterable[str] = (),
        tokens: TokenCopies | None = None,
    ) -> CanaryInjector:
        """Everything but the record; `keys` are those that all messages of the column have."""
        for name in fill or {}:
            check_type("fill: the name of a column", name, str, "a string")
        self.canaries = canaries
        self.insertion = insertion
        self.fill = dict(sorted((fill or {}).items()))
        self.keys = list(keys)
        self.tokens = tokens
        if insertion.column in self.fill:
            raise ValueError(
                f"fill has {insertion.column!r}, the column that gets the canaries; leave it out"
            )
        self.places = places_of(canaries, insertion)
        return self

    @classmethod
    @typed
    def unrecorded(
        cls,
        canaries: Canaries,
        insertion: Insertion,
        fill: Mapping[str, Any] | None,
        keys: Iterable[str],
        tokens: TokenCopies | None = None,
    ) -> CanaryInjector:
        """An injector that leaves the set's record alone."""
        return cls.__new__(cls)._set(canaries, insertion, fill, keys, tokens)

    def __call__(self, batch: Any, indices: Any = None) -> Any:
        """What changes in a batch: nothing, the column, or the whole table where rows are added."""
        self._check_call(batch, indices)
        column = self.insertion.column
        everywhere = [(place, self.places.get(index)) for place, index in enumerate(indices)]
        here = [(place, copies) for place, copies in everywhere if copies]
        end = self.insertion.num_examples or 0
        if end - 1 in indices and end in self.places:  # nothing but the last row knows of the end
            here.append((len(indices), self.places[end]))
        if not here:
            return {}
        values = list(batch[column])
        self.check_values(values)
        if self.tokens is not None and self.tokens.packed:
            return self._packed(batch, values, here, self.tokens)
        if self.insertion.mode == "splice":
            for place, copies in here:
                values[place] = self.spliced(values[place], copies)
            return {column: values}
        for name in self.fill:
            if name not in batch:
                raise ValueError(no_column("CanaryInjector", f"fill: {name!r}", batch))
        check_type_of_rows("CanaryInjector", list(batch), self.insertion, self.fill)
        rows = [self.row(canary, list(batch)) for _, copies in here for _, canary in copies]
        added = {name: [row[name] for row in rows] for name in batch}
        # A `Dataset` lends its table: rows copied there do not lose what decoding and encoding
        # them would, such as the bytes of an image.
        if hasattr(batch, "pa_table"):
            with secrets_masked(self.canaries):
                return self._longer_table(batch, added, here)
        out: dict[str, list[Any]] = {}
        for name in batch:
            old, new = batch[name], iter(added[name])
            out[name] = []
            for start, stop, count in parts(here, len(indices)):
                out[name] += [*old[start:stop], *itertools.islice(new, count)]
        return out

    def _packed(
        self, batch: Any, rows: list[Any], here: list[tuple[int, Copies]], tokens: TokenCopies
    ) -> dict[str, list[Any]]:
        """The columns of packed rows, with copies in them at boundaries of documents."""
        column = self.insertion.column
        changed = {name: list(batch[name]) for name in {column, "labels"} & {*batch}}
        copies: dict[int, Copies] = {}
        for place, own in here:  # what goes behind the last row goes into it
            copies.setdefault(min(place, len(rows) - 1), []).extend(own)
        for place, own in copies.items():
            for values in changed.values():
                values[place] = tokens.packed_row(rows[place], values[place], own)
        return changed

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
        pieces, done = [], 0
        for start, stop, count in parts(here, len(table)):
            pieces += [table.slice(start, stop - start), new.slice(done, count)]
            done += count
        return pa.concat_tables(pieces)

    def row(self, canary: Canary, names: Sequence[str]) -> dict[str, Any]:
        """What a canary's own row has in each column."""
        if self.tokens is not None:
            own = self.tokens.row(canary.text, self.insertion.column, names)
        else:
            own = own_row(canary.text, names, self.insertion)
        row = {**dict.fromkeys(names), **own, **self.fill}
        if self.insertion.chat:
            column = self.insertion.column
            row[column] = [self._message(**message) for message in row[column]]
        return row

    def _message(self, role: str, content: str, keys: Iterable[str] = ()) -> dict[str, Any]:
        return {**dict.fromkeys([*self.keys, *keys]), "role": role, "content": content}

    def spliced(self, value: Any, copies: Copies) -> Any:
        """The value of the column in one row, with canaries in it."""
        if not self.insertion.chat:
            return splice(value or "", copies)
        first = self._message("user", self.insertion.request)
        messages = [dict(message) for message in value or [first]]
        turns = [
            place
            for place, message in enumerate(messages)
            if message.get("role") == "assistant" and message.get("content")
        ]
        if not turns:
            turns = [len(messages)]
            messages.append(self._message("assistant", "", keys=messages[0]))
        by_turn: dict[int, Copies] = {}
        for fraction, canary in copies:
            # The whole part chooses the message, the rest the place within it.
            rest, whole = math.modf(fraction * len(turns))
            by_turn.setdefault(turns[int(whole)], []).append((rest, canary))
        for place, inside in by_turn.items():
            messages[place]["content"] = splice(messages[place]["content"], inside)
        return messages

    def _check_call(self, batch: Any, indices: Any) -> None:
        if not isinstance(indices, Sequence):
            raise TypeError(
                "CanaryInjector: call it through map(injector, batched=True, with_indices=True)"
            )
        kinds = {type(batch).__name__}
        if isinstance(batch, Mapping):
            # A lazy batch has no format, and nothing of it is decoded here.
            plain = type(batch) is dict
            kinds = {type(values).__name__ for values in batch.values()} if plain else set()
        for kind in sorted(kinds - {"list"}):
            raise TypeError(
                f"CanaryInjector: a batch came as {kind}; reset the dataset's format first, with "
                "ds.with_format(None)"
            )
        column, promised = self.insertion.column, self.insertion.num_examples
        if column not in batch:
            raise ValueError(no_column("CanaryInjector", f"column={column!r}", batch))
        for index in indices:
            check_count("CanaryInjector: indices", index)
        if len(indices) != len(batch[column]):
            raise ValueError(
                f"CanaryInjector: indices has {len(indices):,} places for "
                f"{len(batch[column]):,} rows"
            )
        if indices and max(indices) >= (promised or 0):
            raise ValueError(
                f"CanaryInjector: num_examples={promised} was promised, but the dataset has a row "
                f"{max(indices) + 1}; pass num_examples=len(ds)"
            )
        torch_data: Any = sys.modules.get("torch.utils.data")
        worker = torch_data.get_worker_info() if torch_data else None
        if worker is not None and worker.id > 0:
            raise RuntimeError(
                f"CanaryInjector: DataLoader worker {worker.id} reads a part of this stream and "
                "counts its rows from 0, so that canaries would come twice or never; insert them "
                "with inject_canaries(ds, canaries, num_examples=...)"
            )

    def check_values(self, values: list[Any]) -> None:
        """Refuse values of the column that canaries cannot stand in."""
        column, chat = self.insertion.column, self.insertion.chat
        if self.tokens is not None:
            return
        for value in values:
            if value is None or (isinstance(value, str) and not chat):
                continue
            if chat and isinstance(value, Sequence) and not isinstance(value, str):
                for message in value:
                    check_message(message, "CanaryInjector", column)
                continue
            wanted = "conversations (chat=True)" if chat else "text (chat=False)"
            raise TypeError(
                f"CanaryInjector: column={column!r} must hold {wanted}, but a row has "
                f"{type(value).__name__}; name a column that does, or set chat"
            )

    def __reduce__(self) -> tuple[Callable[..., CanaryInjector], tuple[str, dict[str, Any]]]:
        # By one string: the fingerprint that `datasets` takes of it depends on nothing else, such
        # as which objects are shared or how the canaries were inserted before.
        arguments = {
            "version": VERSION,
            "canaries": self.canaries.copy().to_dict(),
            "insertion": self.insertion.to_dict(),
            "keys": self.keys,
            "tokens": None if self.tokens is None else asdict(self.tokens),
        }
        return _restored, (json.dumps(arguments, sort_keys=True), self.fill)


def check_message(message: Any, where: str, column: str) -> None:
    """Refuse what is no message with a role and a text.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        keys = list(message) if isinstance(message, Mapping) else type(message).__name__
        raise TypeError(
            f"{where}: the messages in column={column!r} must have the keys 'role' and 'content', "
            f"not {keys}"
        )
    if not isinstance(message["content"], (str, type(None))):
        raise TypeError(
            f"{where}: the content of messages in column={column!r} must be text, not "
            f"{type(message['content']).__name__}"
        )


def no_column(where: str, what: str, columns: Iterable[str]) -> str:
    """What to say of a column that is not there."""
    return f"{where}: {what} is not there, only {list(columns)}; name one of these"


def _restored(arguments: str, fill: Mapping[str, Any]) -> CanaryInjector:
    """The inverse of `CanaryInjector.__reduce__`."""
    known = json.loads(arguments)
    canaries = Canaries.from_dict(known["canaries"])
    insertion = Insertion.from_dict(known["insertion"])
    tokens = None if known["tokens"] is None else TokenCopies(**known["tokens"])
    return CanaryInjector.unrecorded(canaries, insertion, fill, known["keys"], tokens)
