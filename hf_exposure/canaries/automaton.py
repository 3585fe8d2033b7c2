"""A finite set of strings as a deterministic automaton over bytes.

`outlines-core` compiles the expression. Its automaton is leftmost-first, which loses strings of
`a|ab` and of optional parts; an expression that is followed by a byte which occurs nowhere else
(the sentinel) cannot stop early, so all strings are there. Sizes, uniform draws, membership and the
next token of a tree all come from this one automaton.

Sizes are exact integers. The automaton is held in memory, one dictionary a state: expressions of a
few thousand states (credit card numbers with their check digit have 1,600) take milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter

from outlines_core import Index, Vocabulary

from hf_exposure.canaries.joining import steps_by_tokens, with_texts
from hf_exposure.canaries.size import check_size
from hf_exposure.canaries.syntax import ascii_classes, escape

# Control characters, which secrets hardly hold; the newline last, for `.` matches all others.
_SENTINELS = [*range(9), *range(11, 32), 127, 10]
_WALKED = 300_000  # bytes to look at for a vocabulary; the compiler is quicker with more


@dataclass(frozen=True)
class Automaton:
    """The strings of an expression, between two literal texts.

    States are numbered from 0, the start. Every state lies on the way from the start to an
    accepting one, and there is no cycle.

    Attributes:
        steps: for each state, byte -> next state.
        accepting: the states in which a string may end.
        token_steps: for each state, token -> next state; empty dictionaries without a vocabulary.
        counts: for each state, the number of strings that lead from it to an accepting state.
    """

    steps: list[dict[int, int]]
    accepting: frozenset[int]
    token_steps: list[dict[int, int]]
    counts: list[int] = field(repr=False)

    @property
    def size(self) -> int:
        """How many strings there are."""
        return self.counts[0]

    @property
    def alphabet(self) -> frozenset[int]:
        """The bytes that occur in some string."""
        return frozenset(byte for step in self.steps for byte in step)

    @property
    def prefix_free(self) -> bool:
        """Whether no string is the beginning of another one."""
        return not any(self.steps[state] for state in self.accepting)

    def run(self, data: bytes, state: int = 0) -> int | None:
        """The state after `data`, or None where no string goes on like that."""
        for byte in data:
            following = self.steps[state].get(byte)
            if following is None:
                return None
            state = following
        return state

    def accepts(self, data: bytes) -> bool:
        """Whether `data` is one of the strings."""
        return self.run(data) in self.accepting

    def occurring(self, words: Iterable[bytes]) -> list[bytes]:
        """Those words that occur within some string, in the order of their bytes."""
        # Sets of states that beginnings of words lead to, and where each byte leads from there.
        sets = [frozenset(range(len(self.steps)))]
        number = {sets[0]: 0, frozenset[int](): -1}
        leads: list[dict[int, int]] = [{}]
        out: list[bytes] = []
        for word in words:
            here = 0
            for byte in word:
                there = leads[here].get(byte)
                if there is None:
                    after = frozenset(
                        step[byte]
                        for step in map(self.steps.__getitem__, sets[here])
                        if byte in step
                    )
                    if after not in number:
                        number[after] = len(sets)
                        sets.append(after)
                        leads.append({})
                    there = leads[here][byte] = number[after]
                here = there
                if here < 0:
                    break
            else:
                if word:
                    out.append(word)
        return sorted(out)

    def unrank(self, index: int, state: int = 0) -> bytes:
        """The string number `index` of those from `state` on, in the order of their bytes."""
        out = bytearray()
        while True:
            if state in self.accepting:
                if index == 0:
                    return bytes(out)
                index -= 1
            for byte in sorted(self.steps[state]):
                following = self.steps[state][byte]
                if index < self.counts[following]:
                    out.append(byte)
                    state = following
                    break
                index -= self.counts[following]

    def strings(self) -> Iterator[bytes]:
        """All strings, in the order of `unrank`."""
        stack: list[tuple[int, bytes]] = [(0, b"")]
        while stack:
            state, text = stack.pop()
            if state in self.accepting:
                yield text
            for byte in sorted(self.steps[state], reverse=True):
                stack.append((self.steps[state][byte], text + bytes([byte])))


def compile_automaton(
    expression: str,
    *,
    before: str = "",
    after: str = "",
    check: str | None = None,
    vocabulary: Mapping[bytes, list[int]] | None = None,
) -> Automaton:
    """The automaton of all strings `before` + x + `after`, x matching `expression`.

    Args:
        expression: a regular expression in the syntax of Rust's `regex`; `\\d`, `\\w` and `\\s`
            mean ASCII. Anchors, word boundaries, lookarounds and back-references are refused.
        before, after: literal texts.
        check: "luhn" keeps only those x whose decimal digits pass the Luhn check.
        vocabulary: the bytes of tokens and their numbers, for `token_steps`.

    Raises:
        ValueError: the expression cannot be compiled, is too much work, matches nothing, or
            infinitely many strings.
            The message is a half-sentence to be put after the name of the argument.
    """
    check_size(expression)
    plain = _around(_compile_bytes(expression, "", "", check), before, after)
    if plain is None:
        plain = _compile_bytes(expression, before, after, check)
    if not vocabulary:
        return plain
    token_steps = steps_by_tokens(plain.steps, vocabulary, _WALKED)
    if token_steps is not None:
        return replace(plain, token_steps=token_steps)
    offset = 1 + max(max(ids) for ids in vocabulary.values())
    pattern = _pattern(expression, before, after)
    sentinel = _sentinel(expression, pattern)[0]
    words = {bytes([byte]): [offset + byte] for byte in range(256)}
    for data, tokens in vocabulary.items():
        if data and sentinel not in data:
            words[data] = [*tokens, *words.get(data, [])]
    start, raw = _index(expression, pattern + f"\\x{sentinel:02x}", words, offset)
    return _finish(start, raw, sentinel, words, offset, before, after, check)


def _around(core: Automaton, before: str, after: str) -> Automaton | None:
    """The automaton with literal texts around it, if it need not be compiled for them."""
    begin, end = before.encode(), after.encode()
    if not begin and not end:
        return core
    made = with_texts(core.steps, core.accepting, begin, end)
    if made is None:
        return None
    steps, accepting = made
    counts = [core.size] * len(begin) + core.counts + [1] * len(end)
    return Automaton(steps, frozenset(accepting), [{} for _ in steps], counts)


@lru_cache(maxsize=16)  # a format and its trees ask for the same several times
def _compile_bytes(expression: str, before: str, after: str, check: str | None) -> Automaton:
    pattern = _pattern(expression, before, after)
    sentinel, start, found = _sentinel(expression, pattern)
    words = {bytes([byte]): [byte] for byte in range(256)}
    raw = {state: dict(step) for state, step in found.items()}
    return _finish(start, raw, sentinel, words, 0, before, after, check)


def _pattern(expression: str, before: str, after: str) -> str:
    """The expression between two literal texts, for the compiler."""
    return escape(before) + f"(?:{ascii_classes(expression)})" + escape(after)


@lru_cache(maxsize=4)
def _sentinel(expression: str, pattern: str) -> tuple[int, int, dict[int, dict[int, int]]]:
    """A byte that occurs in no string, and the automaton over bytes of what it ends: its start
    and its steps."""
    words = {bytes([byte]): [byte] for byte in range(256)}
    for sentinel in _SENTINELS:
        start, raw = _index(expression, pattern + f"\\x{sentinel:02x}", words, 0)
        if not any(raw.get(step[sentinel]) for step in raw.values() if sentinel in step):
            return sentinel, start, raw
    raise ValueError(
        "matches every control character, so that none is left to mark its end; "
        "leave one out, for instance with [^\\x00]"
    )


def _finish(
    start: int,
    raw: dict[int, dict[int, int]],
    sentinel: int,
    words: dict[bytes, list[int]],
    offset: int,
    before: str,
    after: str,
    check: str | None,
) -> Automaton:
    ends = {state for state, step in raw.items() if offset + sentinel in step}
    for state in ends:
        del raw[state][offset + sentinel]
    if check == "luhn":
        start, raw, ends = _luhn_product(start, raw, ends, words, before, after)
    return _assemble(start, raw, ends, offset)


def _index(
    expression: str, pattern: str, words: dict[bytes, list[int]], offset: int
) -> tuple[int, dict[int, dict[int, int]]]:
    end = offset + 256
    try:
        index = Index(pattern, Vocabulary(end, words))
    except ValueError as error:
        reason = str(error)
        if "Found no transitions" in reason:
            raise ValueError("matches no string at all") from None
        raise ValueError(f"cannot be compiled: {reason}") from None
    except BaseException as error:  # a Rust panic is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ValueError(f"cannot be compiled: {error}") from None
    steps = {
        state: {token: following for token, following in step.items() if token != end}
        for state, step in index.get_transitions().items()
    }
    return index.get_initial_state(), steps


def _assemble(start: int, raw: dict[int, dict[int, int]], ends: set[int], offset: int) -> Automaton:
    """Number the useful states from 0, those with equal strings alike; count strings, split bytes
    from tokens."""
    counts = _count(raw, ends, offset)
    if not counts.get(start):
        raise ValueError("matches no string at all")
    same = _merged(raw, ends, offset, counts)
    number: dict[int, int] = {same[start]: 0}
    order = [same[start]]
    steps: list[dict[int, int]] = []
    token_steps: list[dict[int, int]] = []
    for state in order:
        by_byte: dict[int, int] = {}
        by_token: dict[int, int] = {}
        for label, to in raw.get(state, {}).items():
            if counts.get(to):
                following = same[to]
                if following not in number:
                    number[following] = len(number)
                    order.append(following)
                if label >= offset:
                    by_byte[label - offset] = number[following]
                else:
                    by_token[label] = number[following]
        steps.append(by_byte)
        token_steps.append(by_token)
    accepting = frozenset(number[state] for state in order if state in ends)
    return Automaton(steps, accepting, token_steps, [counts[state] for state in order])


def _merged(
    raw: dict[int, dict[int, int]], ends: set[int], offset: int, counts: dict[int, int]
) -> dict[int, int]:
    """For each useful state the first one from which the same strings lead to an end: the compiler
    leaves many apart, as after each word of a list."""
    first: dict[tuple[bool, frozenset[tuple[int, int]]], int] = {}
    same: dict[int, int] = {}
    for state, count in counts.items():  # those that follow come first
        if count:
            steps = frozenset(
                (label, same[to])
                for label, to in raw.get(state, {}).items()
                if label >= offset and counts[to]
            )
            same[state] = first.setdefault((state in ends, steps), state)
    return same


def _count(raw: dict[int, dict[int, int]], ends: set[int], offset: int) -> dict[int, int]:
    """Strings from each state to an end."""
    following = {
        state: [to for label, to in step.items() if label >= offset] for state, step in raw.items()
    }
    counts: dict[int, int] = {}
    try:
        for state in TopologicalSorter(following).static_order():
            counts[state] = (state in ends) + sum(counts[to] for to in following.get(state, ()))
    except CycleError:
        raise ValueError("matches infinitely many strings") from None
    return counts


def _luhn_product(
    start: int,
    raw: dict[int, dict[int, int]],
    ends: set[int],
    words: dict[bytes, list[int]],
    before: str,
    after: str,
) -> tuple[int, dict[int, dict[int, int]], set[int]]:
    """The same automaton, each state paired with two sums of digits modulo 10.

    The first sum doubles every second digit so that the last one is not doubled, the second so that
    it is; a further digit swaps their parts. A number is right if the first is 0 at its end. The
    digits of the literal texts before and after must not count: the map of a digit can be undone,
    so the sums start where `before` brings them to (0, 0).
    """
    digits = {token: _digits(data) for data, tokens in words.items() for token in tokens}
    first = (0, 0)
    for digit in reversed(_digits(before.encode())):
        first = _luhn_back(first, digit)
    good = set()
    for other in range(10):
        sums = (0, other)
        for digit in _digits(after.encode()):
            sums = _luhn_step(sums, digit)
        good.add(sums)

    number: dict[tuple[int, tuple[int, int]], int] = {(start, first): 0}
    order = [(start, first)]
    product: dict[int, dict[int, int]] = {}
    for key in order:
        state, sums = key
        product[number[key]] = steps = {}
        for label, following in raw.get(state, {}).items():
            after_label = sums
            for digit in digits[label]:
                after_label = _luhn_step(after_label, digit)
            target = (following, after_label)
            if target not in number:
                number[target] = len(number)
                order.append(target)
            steps[label] = number[target]
    return 0, product, {number[key] for key in order if key[0] in ends and key[1] in good}


def _digits(data: bytes) -> list[int]:
    return [byte - 48 for byte in data if 48 <= byte <= 57]


def _doubled(digit: int) -> int:
    return 2 * digit - 9 if digit > 4 else 2 * digit


def _luhn_step(sums: tuple[int, int], digit: int) -> tuple[int, int]:
    return (sums[1] + digit) % 10, (sums[0] + _doubled(digit)) % 10


def _luhn_back(sums: tuple[int, int], digit: int) -> tuple[int, int]:
    return (sums[1] - _doubled(digit)) % 10, (sums[0] - digit) % 10
