"""Parts of an automaton that need no compiler: literal texts around it, and steps by tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_TOKENS = -1  # the key of a trie's node for the tokens that end there


def with_texts(
    steps: Sequence[Mapping[int, int]], accepting: Iterable[int], before: bytes, after: bytes
) -> tuple[list[dict[int, int]], list[int]] | None:
    """The steps and accepting states of an automaton between two literal texts.

    Args:
        steps: for each state, byte -> next state; 0 is the start.
        accepting: the states in which a string may end.
        before, after: the texts.

    Returns:
        The same of the longer strings, the states shifted by the length of `before`; None if it
        cannot be told by one byte whether a string has ended and `after` begins.
    """
    shift, ends = len(before), list(accepting)
    if after and any(after[0] in steps[state] for state in ends):
        return None
    out: list[dict[int, int]] = [{byte: place + 1} for place, byte in enumerate(before)]
    out += [{byte: to + shift for byte, to in step.items()} for step in steps]
    ends = [state + shift for state in ends]
    for byte in after:
        following = len(out)
        for state in ends:
            out[state][byte] = following
        out.append({})
        ends = [following]
    return out, ends


def steps_by_tokens(
    steps: Sequence[Mapping[int, int]], words: Mapping[bytes, Sequence[int]], most: int
) -> list[dict[int, int]] | None:
    """For each state, token -> the state that its bytes lead to.

    Args:
        steps: for each state, byte -> next state.
        words: the bytes of tokens, and their numbers.
        most: work after which it is given up, in bytes looked at.

    Returns:
        The steps; None if it is more work than `most`, as where almost every token fits.
    """
    trie: dict[int, Any] = {}
    for data, tokens in words.items():
        if data:
            node = trie
            for byte in data:
                node = node.setdefault(byte, {})
            node[_TOKENS] = tokens
    known: dict[tuple[int, int], dict[int, int]] = {}  # by first byte and the state behind it
    out: list[dict[int, int]] = []
    for step in steps:
        found: dict[int, int] = {}
        for byte, to in step.items():
            if byte not in trie:
                continue
            if (byte, to) not in known:
                part: dict[int, int] = {}
                known[byte, to] = part
                waiting = [(to, trie[byte])]
                while waiting:
                    state, node = waiting.pop()
                    for token in node.get(_TOKENS, ()):
                        part[token] = state
                    here = steps[state]
                    most -= min(len(node), len(here)) + 1
                    for label in node if len(node) < len(here) else here:
                        if label in here and label in node:
                            waiting.append((here[label], node[label]))
                if most < 0:
                    return None
            found.update(known[byte, to])
        out.append(found)
    return out
