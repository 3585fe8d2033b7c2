"""What servers answer about next tokens, in the same words for all kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from hf_exposure.endpoints.server import Address
from hf_exposure.utils.arrays import Floats

_NOTHING = -9999.0  # what servers write for a probability of 0, which JSON has no number for
_UNLIKELY = 1e-3  # above this, a log-probability is no rounding


class Columns(NamedTuple):
    """(n, C) bits of the wanted tokens after each prompt, and how many tokens that took."""

    bits: Floats
    tokens: int


class Dialect(Protocol):
    """What a kind of server is asked, and how its answers are read.

    Attributes:
        name: of the kind.
        most: ids of one request.
        prompts: whether it also gives the log-probabilities of a prompt's own tokens.
    """

    name: str
    most: int
    prompts: bool

    @property
    def context(self) -> int | None:
        """The most tokens of a text; None if the server does not say."""

    def columns(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int], to: Address | None = None
    ) -> Columns:
        """The bits of these next tokens, at most `most`, after each prompt."""

    def path(self, prompt: Sequence[int], path: Sequence[int]) -> Columns:
        """(1, n) bits of a path's own tokens after a prompt, found in another way."""

    def tokenize(self, text: str, special: bool) -> list[int]:
        """The server's tokens of a text, with those that it puts around it or without."""

    def tokenizer(self) -> str | tuple[str, str] | None:
        """Where its tokenizer can be loaded from: a name, or a folder and a file of GGUF."""


def field_of(answer: Any, name: Any) -> Any:
    """A field of an answer, which has to be there."""
    found = answer.get(name) if isinstance(answer, dict) else None
    if found is None:
        raise ValueError(f"its answer has no {name}")
    return found


def in_order(answers: Any, count: int) -> list[Any]:
    """Answers in the order of the prompts."""
    if not isinstance(answers, list) or len(answers) != count:
        raise ValueError(f"it answers {count} prompts with other than {count} texts")
    numbers = [one.get("index") if isinstance(one, dict) else None for one in answers]
    if set(numbers) == set(range(count)):
        return [answers[numbers.index(place)] for place in range(count)]
    return answers


def used_by(answer: Any) -> int:
    """Tokens of prompts that were computed, as far as the server tells."""
    usage = field_of(answer, "usage")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return int(usage.get("prompt_tokens", 0)) - int(cached)


def tokens_of(answer: Any) -> list[int]:
    """The token ids of a text."""
    found = field_of(answer, "tokens")
    if not isinstance(found, list) or not all(isinstance(one, int) for one in found):
        raise ValueError("its /tokenize gives no list of token ids")
    return found


def nats_of(value: Any) -> float:
    """A log-probability as a server writes it, in nats; 0 at most."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("it gives something else than a number as a log-probability")
    if not value <= _UNLIKELY:
        why = "" if math.isnan(value) else ", which cannot be above 0"
        raise ValueError(f"it gives {value:g} as a log-probability{why}".replace("nan", "NaN"))
    return -math.inf if value <= _NOTHING else min(0.0, float(value))


def bits_of(value: Any) -> float:
    """What such a log-probability costs, in bits."""
    return abs(nats_of(value)) / math.log(2)
