"""A prompt's tokens and log-probabilities, as completions endpoints answer them.

Two forms are read: OpenAI's `echo` with `logprobs`, and vLLM's `prompt_logprobs`. Servers write
tokens in many ways (with the begin-of-text token or without, "" or "�" for a part of a character,
words without the space before them), and count `text_offset` in as many. So tokens are laid against
the text that was asked for; only where they do not spell it, offsets decide.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_exposure.endpoints.answers import bits_of, nats_of
from hf_exposure.utils.arrays import Floats

_LEADING = 3  # special tokens that may come before the text
_PART = "\ufffd"
_HIGH = re.compile(r"\\x[89a-f][0-9a-f]")  # a byte as OpenAI writes it, not of a plain letter


class NotOfferedError(ValueError):
    """The answer tells nothing about the prompt's own tokens."""


@dataclass(frozen=True)
class Echo:
    """The n tokens of a prompt.

    Attributes:
        keys: what tells tokens apart: their numbers where the server gives them, else their texts.
        bits: (n,) cost of each token given those before it; NaN where the server gives none.
        ends: for each token the place in the text where it ends; -1 where that cannot be told.
        tops: (n,) cost of the likeliest token at each place; NaN where only the prompt's is given.
    """

    keys: tuple[Hashable, ...]
    bits: Floats
    ends: tuple[int, ...]
    tops: Floats

    def to_bytes(self) -> bytes:
        """As text, to keep."""
        keys = [list(key) if isinstance(key, tuple) else key for key in self.keys]
        return json.dumps([keys, self.bits.tolist(), self.ends, self.tops.tolist()]).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Echo:
        """What was kept."""
        keys, bits, ends, tops = json.loads(data)
        keys = tuple(tuple(key) if isinstance(key, list) else key for key in keys)
        return cls(keys, np.array(bits, dtype=float), tuple(ends), np.array(tops, dtype=float))


def read_echo(choice: dict[str, Any], text: str, generated: int | None = None) -> Echo:
    """The prompt's tokens out of `choices[i].logprobs`, without what was generated after them.

    Args:
        text: the prompt.
        generated: tokens that the server says to have generated, if that is known.

    Raises:
        NotOfferedError: nothing is there, or only about generated tokens.
        ValueError: it cannot be what was asked for.
    """
    found = choice.get("logprobs")
    tokens = found.get("tokens") if isinstance(found, dict) else None
    values = found.get("token_logprobs") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(tokens, list) or not isinstance(values, list):
        raise NotOfferedError("it gives no log-probabilities")
    if len(tokens) != len(values) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"it gives {len(tokens)} tokens with {len(values)} log-probabilities")
    laid = lay(text, tokens, generated)
    if laid is None:
        laid = _ends_by_offsets(text, found.get("text_offset"), len(tokens))
    if laid is None:
        if len(tokens) <= 1:
            raise NotOfferedError("it ignores echo, and tells of the generated token only")
        raise ValueError(
            f"its {len(tokens)} tokens do not spell the prompt's {len(text)} characters, which it "
            "may have cut to the length of its context or changed"
        )
    n = len(laid)
    tops = np.full(n, np.nan)
    likeliest = found.get("top_logprobs")
    if isinstance(likeliest, list):
        for place, options in enumerate(likeliest[:n]):
            # The prompt's token is among the options, whether it is likely or not.
            if isinstance(options, dict) and set(options) - {tokens[place]}:
                tops[place] = bits_of(max(options.values()))
    return Echo(tuple(tokens[:n]), _costs(values[:n]), laid, tops)


def read_prompt_logprobs(choice: dict[str, Any], text: str) -> Echo:
    """The prompt's tokens out of vLLM's `choices[i].prompt_logprobs`, asked for with 1.

    Each place then has the prompt's token and the likeliest one, in an order that has changed
    between versions. Where the answer has `prompt_token_ids` those tell which is which; otherwise
    no token is likelier than the likeliest, so the prompt's is the last by probability.

    Raises:
        NotOfferedError: nothing is there.
        ValueError: it cannot be what was asked for.
    """
    places = choice.get("prompt_logprobs")
    if not isinstance(places, list) or not places:
        raise NotOfferedError("it gives no prompt_logprobs")
    keys: list[Hashable] = []
    tokens: list[str | None] = []
    values: list[float | None] = []
    tops = np.full(len(places), np.nan)
    ids = choice.get("prompt_token_ids")
    ids = ids if isinstance(ids, list) and len(ids) == len(places) else None
    for place, options in enumerate(places):
        if options is None:
            keys.append(None if ids is None else str(ids[place]))
            tokens.append(None)
            values.append(None)
            continue
        if not isinstance(options, dict) or not options:
            raise ValueError(f"its prompt_logprobs has no token at place {place}")
        entries = [
            (nats_of(entry.get("logprob") if isinstance(entry, dict) else entry), key, entry)
            for key, entry in options.items()
        ]
        own = [one for one in entries if one[1] == str(ids[place])] if ids else entries
        if not own:
            raise ValueError(f"its prompt_logprobs leaves out the prompt's token at place {place}")
        value, key, entry = min(own, key=lambda one: one[0])
        keys.append(key)
        tokens.append((entry.get("decoded_token") or "") if isinstance(entry, dict) else "")
        values.append(value)
        if len(entries) > 1:
            tops[place] = bits_of(max(one[0] for one in entries))
    laid = lay(text, tokens, 0)
    if laid is None or len(laid) < len(tokens) - 1:  # one may close the text
        raise ValueError(
            f"the {len(tokens)} tokens of its prompt_logprobs do not spell the prompt's "
            f"{len(text)} characters, which it may have cut to the length of its context or changed"
        )
    n = len(laid)
    # What has no number is told apart by its text.
    named = tuple(
        ("text", text[: laid[i]]) if key is None and laid[i] >= 0 else key
        for i, key in enumerate(keys[:n])
    )
    return Echo(named, _costs(values[:n]), laid, tops[:n])


def lay(
    text: str, tokens: Sequence[str | None], generated: int | None = None
) -> tuple[int, ...] | None:
    """Where each of the prompt's tokens ends in the text, as `Echo.ends`; None if they do not
    spell it. Tokens after the text's end are left out.

    Args:
        tokens: their texts, as the server writes them; None for a first one of any text.
        generated: how many of them come after the prompt; None if that is not known.
    """
    size = len(text)
    reached = [{0}]
    for number, token in enumerate(tokens):
        reached.append({to for at in reached[-1] for to in _steps(text, at, token, number)})
    full = [n for n in range(1, len(reached)) if size in reached[n]]
    if not full:
        return None
    # The last token with a text of its own ends the prompt, and what comes then is special or was
    # generated. Where the prompt ends with a part of a character, only the number of tokens tells.
    likely = len(tokens) - (1 if generated is None else generated)
    spelled = [n for n in full if n <= likely and not _in_parts(tokens[n - 1])]
    n = next((n for n in (*spelled[-1:], likely, len(tokens)) if n in full), full[-1])
    ends, kept = [-1] * n, {size}
    for number in reversed(range(n)):
        ends[number] = next(iter(kept)) if len(kept) == 1 else -1
        kept = {at for at in reached[number] if kept & _steps(text, at, tokens[number], number)}
    return tuple(ends)


def _steps(text: str, at: int, token: str | None, number: int) -> set[int]:
    """The places where a token may end that begins at a place of the text."""
    if token is None:
        return set(range(at, len(text) + 1)) if number == 0 else set()
    out = set()
    if _in_parts(token):
        parts_only = bool(token) and not _HIGH.sub("", token.removeprefix("bytes:")).strip(_PART)
        most = len(token) if _PART in token else max(1, token.count("\\x"))
        out.add(at)
        for to in range(at + 1, min(at + most, len(text)) + 1):
            if parts_only and text[to - 1].isascii():
                break
            out.add(to)
    else:
        plain = token.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n")
        for spelled in {token, plain, token.removeprefix("##"), f" {token}"}:
            if text.startswith(spelled, at):
                out.add(at + len(spelled))
        # A space that the tokenizer puts before every text.
        if at == 0 and plain.startswith(" ") and text.startswith(plain[1:]):
            out.add(len(plain) - 1)
    if at == 0 and number < _LEADING:
        out.add(0)  # a special token
    return out


def _in_parts(token: str | None) -> bool:
    """Whether a token has parts of characters, and perhaps whole ones with them."""
    return not token or _PART in token or token.startswith("bytes:")


def _ends_by_offsets(text: str, offsets: Any, count: int) -> tuple[int, ...] | None:
    """The same by the server's `text_offset`, in characters or in bytes.

    Believed only if a generated token begins right where the text ends: offsets of a text that was
    cut would not say so.
    """
    if not isinstance(offsets, list) or len(offsets) != count or not count:
        return None
    if not all(isinstance(at, int) for at in offsets) or offsets[0] != 0:
        return None
    if any(after < before for before, after in itertools.pairwise(offsets)):
        return None
    data = text.encode()
    for size, in_bytes in ((len(data), True), (len(text), False)):
        if size in offsets and offsets[-1] <= size:
            n = offsets.index(size)
            ends = offsets[1 : n + 1]
            return tuple(_characters(data, end) if in_bytes else end for end in ends)
    return None


def _characters(data: bytes, end: int) -> int:
    """How many characters so many bytes are; -1 within one."""
    try:
        return len(data[:end].decode())
    except UnicodeDecodeError:
        return -1


def _costs(values: Sequence[float | None]) -> Floats:
    return np.array([math.nan if value is None else bits_of(value) for value in values])
