"""How much work an expression is, counted before it is compiled.

The compiler has no limit of its own: some expressions of twenty characters keep it busy for hours.
Here the same subset construction is walked over few symbols, and given up at a number of steps
that is the same on every machine.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field

LONGEST = 500_000  # characters of an expression
_DEEPEST = 100  # groups within each other
_PLACES = 500_000  # characters that are told apart when all counts are written out
_LENGTH = 5_000  # characters of the longest text
_STEPS = 1_000_000  # of the subset construction
_ASCII = [chr(code) for code in range(128)]
_OTHERS = ["é", "д", "€", "漢", "😀"]
_PIECE = re.compile(
    r"\\(?:[pPxuU]\{[^}]*\}|[pP].|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)"
    r"|\((?:\?P?<\w+>|\?[a-zA-Z-]*:?)?|\{\s*\d*\s*,?\s*\d*\s*\}\??|[*+?]\??|.",
    re.DOTALL,
)


class TooMuch(ValueError):
    """The expression is too much work; the message is a half-sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; give a shorter or simpler one, such as [0-9]{{9}}")


@dataclass
class _Part:
    """A part of an expression: an atom's text, or a row, choice or repetition of parts."""

    kind: str
    text: str = ""
    parts: list[_Part] = field(default_factory=list)
    least: int = 1
    most: int | None = 1
    places: int = 0
    length: int = 1  # of the longest text, where it is finite


@functools.lru_cache(maxsize=256)
def check_size(expression: str) -> None:
    """Refuse an expression that would take too long to compile, or too much memory.

    Raises:
        TooMuch: with a message to be put after the name of the argument.
    """
    if len(expression) > LONGEST:
        raise TooMuch(f"has {len(expression):,} characters, more than {LONGEST:,}")
    part = _parse(expression)
    if part is None:
        return  # it is not valid, as the compiler says better
    if part.places > _PLACES:
        raise TooMuch(f"describes texts of {part.places:,} places, more than {_PLACES:,}")
    if part.length > _LENGTH:
        raise TooMuch(f"matches texts of {part.length:,} characters, more than {_LENGTH:,}")
    _Machine(part).walk()


def _parse(expression: str) -> _Part | None:
    """The expression as a tree with the places of each part; None where it is not valid."""
    stack: list[list[list[_Part]]] = [[[]]]  # for each open group, its choices, rows of parts
    position = 0
    while position < len(expression):
        row = stack[-1][-1]
        if expression[position] == "[":
            end = _class_end(expression, position)
            row.append(_atom(expression[position:end]))
            position = end
            continue
        found = _PIECE.match(expression, position)
        if found is None:
            return None
        piece = found.group()
        position = found.end()
        if piece[0] == "(":
            if piece.endswith(("(", ":", ">")):
                stack.append([[]])
                if len(stack) > _DEEPEST:
                    raise TooMuch(f"has more than {_DEEPEST} groups within each other")
            elif expression[position : position + 1] == ")":
                position += 1  # flags alone
        elif piece == ")":
            if len(stack) == 1:
                return None
            closed = _choice(stack.pop())
            stack[-1][-1].append(closed)
        elif piece == "|":
            stack[-1].append([])
        elif piece[0] in "*+?" or (piece[0] == "{" and len(piece) > 1):
            if not row:
                return None
            row[-1] = _repeated(row[-1], piece)
        else:
            row.append(_atom(piece))
    return _choice(stack[0]) if len(stack) == 1 else None


def _class_end(expression: str, start: int) -> int:
    """The place behind a class in brackets, which may hold others."""
    depth, position = 0, start
    while position < len(expression):
        char = expression[position]
        if char == "\\":
            position += 1
        elif char == "[":
            depth += 1
        elif char == "]":
            depth -= 1
            if not depth:
                return position + 1
        position += 1
    return position


def _atom(text: str) -> _Part:
    # Classes of Unicode are many byte sequences each.
    weight = 6_000 if re.search(r"\\[pP]", text) else 10 if text == "." or text[:2] == "[^" else 1
    return _Part("atom", text, places=weight)


def _choice(rows: list[list[_Part]]) -> _Part:
    choices = [
        _Part(
            "row",
            parts=row,
            places=sum(one.places for one in row),
            length=sum(one.length for one in row),
        )
        for row in rows
    ]
    return _Part(
        "choice",
        parts=choices,
        places=sum(one.places for one in choices),
        length=max(one.length for one in choices),
    )


def _repeated(part: _Part, piece: str) -> _Part:
    least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(piece[0], (1, 1))
    if piece[0] == "{":
        low, comma, high = piece.strip("{}?").replace(" ", "").partition(",")
        if len(low) > 9 or len(high) > 9:
            raise TooMuch(f"has a count of {max(len(low), len(high))} digits")
        least = int(low or 0)
        most = (int(high) if high else None) if comma else least
    copies = max(least, most or 0, 1)
    return _Part(
        "repeat",
        parts=[part],
        least=least,
        most=most,
        places=copies * max(part.places, 1),
        length=copies * max(part.length, 1),
    )


class _Machine:
    """The expression as a nondeterministic machine, and a walk over the sets of its states."""

    def __init__(self, part: _Part) -> None:
        self.free: list[list[int]] = []  # for each state, those that follow without a character
        self.moves: list[tuple[str, int] | None] = []
        self.steps = 0
        self.start = self._state()
        self._build(part, self.start)

    def _state(self) -> int:
        self.free.append([])
        self.moves.append(None)
        self._spend(1)
        return len(self.free) - 1

    def _spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > _STEPS:
            raise TooMuch(
                f"takes more than {_STEPS:,} steps to compile, as parts of it that may match the "
                "same text multiply"
            )

    def _build(self, part: _Part, state: int) -> int:
        """Add a part behind `state`; returns the state behind it."""
        if part.kind == "atom":
            behind = self._state()
            before = self._state()
            self.free[state].append(before)
            self.moves[before] = (part.text, behind)
            return behind
        if part.kind == "row":
            for one in part.parts:
                state = self._build(one, state)
            return state
        if part.kind == "choice":
            ends = [self._build(one, self._after(state)) for one in part.parts]
            behind = self._state()
            for end in ends:
                self.free[end].append(behind)
            return behind
        inner = part.parts[0]
        for _ in range(part.least):
            state = self._build(inner, state)
        behind = self._state()
        if part.most is None:
            around = self._after(state)
            self.free[self._build(inner, around)].append(around)
            self.free[around].append(behind)
            return behind
        for _ in range(part.most - part.least):
            self.free[state].append(behind)
            state = self._build(inner, self._after(state))
        self.free[state].append(behind)
        return behind

    def _after(self, state: int) -> int:
        following = self._state()
        self.free[state].append(following)
        return following

    def walk(self) -> None:
        """Meet every set of states once, counting."""
        symbols = _symbols({move[0] for move in self.moves if move is not None})
        start = self._closed({self.start})
        seen = {start}
        met: set[frozenset[int]] = set()  # the same ones before what follows without a character
        waiting = [start]
        while waiting:
            targets: dict[int, set[int]] = {}
            for state in waiting.pop():
                move = self.moves[state]
                if move is not None:
                    for symbol in symbols[move[0]]:
                        targets.setdefault(symbol, set()).add(move[1])
            for target in map(frozenset, targets.values()):
                if target in met:
                    continue
                met.add(target)
                closed = self._closed(target)
                if closed not in seen:
                    seen.add(closed)
                    waiting.append(closed)

    def _closed(self, states: Collection[int]) -> frozenset[int]:
        out, waiting = set(states), list(states)
        while waiting:
            for following in self.free[waiting.pop()]:
                if following not in out:
                    out.add(following)
                    waiting.append(following)
        self._spend(len(out))
        return frozenset(state for state in out if self.moves[state] or not self.free[state])


def _symbols(atoms: set[str]) -> dict[str, list[int]]:
    """For each atom the classes of characters that it matches; characters are of one class if all
    atoms match both or neither."""
    matched = {atom: _characters(atom) for atom in atoms}
    classes: dict[tuple[str, ...], int] = {}
    by_char: dict[str, list[str]] = {}
    for atom, chars in matched.items():
        for char in chars:
            by_char.setdefault(char, []).append(atom)
    out: dict[str, list[int]] = {atom: [] for atom in atoms}
    for own in by_char.values():
        if tuple(own) not in classes:
            classes[tuple(own)] = len(classes)
            for atom in own:
                out[atom].append(classes[tuple(own)])
    return out


def _characters(atom: str) -> list[str]:
    """Those that an atom matches; all where Python reads it in another way than the compiler."""
    every = [*_ASCII, *_OTHERS]
    if len(atom) == 1:
        return every if atom == "." else [atom]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pattern = re.compile(atom)
    except (re.error, Warning):
        return every
    return [char for char in every if pattern.fullmatch(char)] or ["😀"]
