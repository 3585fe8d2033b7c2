"""How a canary set was inserted into a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_exposure.utils.checks import check_choice, check_count
from hf_exposure.utils.typed import typed

MODES = ("rows", "splice")
REQUEST = "Write one line of text."  # the user's turn before a canary in a conversation of its own


@typed
@dataclass(frozen=True)
class Insertion:
    """How a canary set was inserted into a dataset: a value that the manifest keeps.

    Measuring needs it, because a canary costs something else in a row of its own, within a text
    and as an answer in a chat. Put one on a set's record by yourself, with `Canaries.record`, if
    code of your own has inserted the canaries.

    Attributes:
        mode: "rows" if each copy has a row of its own, "splice" if it stands within a text.
        column: the column that holds the canaries.
        seed: what decided on the places; None if that was something else.
        num_examples: the number of rows before the insertion; None if it is not known.
        near_start: whether all copies are near the start.
        chat: whether the column holds conversations.
        request: the user's turn before a canary in a conversation of its own.
        shards: the number of documents of each shard, in order, where many tasks insert, each of
            them into one shard; their sum is `num_examples`. None for a dataset in one piece.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Example:
        >>> Insertion(mode="splice", column="body").describe()
        "within the texts of column 'body'"
    """

    mode: str = "rows"
    column: str = "text"
    seed: int | None = field(default=None, repr=False)  # the secrets may have the same
    num_examples: int | None = None
    near_start: bool = False
    chat: bool = False
    request: str = REQUEST
    shards: Sequence[int] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        for name, least in (("seed", 0), ("num_examples", 1)):
            value = getattr(self, name)
            if value is not None:  # as an int, whatever NumPy gave
                object.__setattr__(self, name, check_count(name, value, least))
        if self.shards is not None:
            shards = tuple(check_count("shards", count) for count in self.shards)
            if self.num_examples not in (None, sum(shards)):
                raise ValueError(
                    f"shards: {sum(shards)} documents in {len(shards)} shards are not "
                    f"num_examples={self.num_examples}; leave num_examples out"
                )
            object.__setattr__(self, "shards", shards)
            total = check_count("shards: documents in all", sum(shards), least=1)
            object.__setattr__(self, "num_examples", total)

    @property
    def context(self) -> tuple[str, bool, str]:
        """What stands before a canary: equal for insertions that can be measured as one."""
        return self.mode, self.chat, self.request if self.has_conversations else ""

    @property
    def has_conversations(self) -> bool:
        """Whether each copy is the answer in a conversation of its own."""
        return self.chat and self.mode == "rows"

    @typed
    def conversation(self, text: str) -> list[dict[str, str]]:
        """The conversation in which `text` is the answer."""
        return [
            {"role": "user", "content": self.request},
            {"role": "assistant", "content": text},
        ]

    def describe(self) -> str:
        """Where the canaries stand, in words."""
        if self.has_conversations:
            where = f"as answers to {self.request!r} in"
        elif self.mode == "rows":
            where = "as rows of their own in"
        else:
            where = f"within the {'answers' if self.chat else 'texts'} of"
        return f"{where} column {self.column!r}"

    def to_dict(self) -> dict[str, Any]:
        """The attributes, for JSON; `shards` only where there are some."""
        known = asdict(self)
        return {name: known[name] for name in known if name != "shards" or known[name] is not None}

    def shown(self, secrets_seed: int | None) -> dict[str, Any]:
        """The attributes for others to see: without the seed if it draws the secrets too."""
        shown = self.to_dict()
        if self.seed == secrets_seed:
            del shown["seed"]
        return shown

    @classmethod
    @typed
    def from_dict(cls, data: dict[str, Any]) -> Insertion:
        """The inverse of `to_dict`.

        Raises:
            TypeError, ValueError: `data` is something else.
        """
        unknown = sorted(map(str, data.keys() - cls.__dataclass_fields__.keys()))
        if unknown:
            raise ValueError(f"Insertion.from_dict: data has the unknown key {unknown[0]!r}")
        return cls(**data)
