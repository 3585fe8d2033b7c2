"""The syntax of expressions: `\\d`, `\\w` and `\\s` mean ASCII, where the compiler means Unicode.

What a match of the whole secret does not need, or no finite automaton has, is refused by name.
"""

from __future__ import annotations

import re

_REFUSED = {
    "b": "a word boundary",
    "B": "a word boundary",
    "A": "an anchor",
    "z": "an anchor",
    "Z": "an anchor",
    "G": "an anchor",
}
_ASCII = {"d": "0-9", "w": "0-9A-Za-z_", "s": r"\t\n\v\f\r "}
_HINT = "the expression always has to match the whole secret, so leave it out"


def escape(text: str) -> str:
    """`text` as an expression that matches just itself."""
    return re.sub(r"([\\.+*?()|\[\]{}^$#&~\-])", r"\\\1", text)


def ascii_classes(expression: str) -> str:
    """`expression` with ASCII meanings for \\d, \\w, \\s; refuses what no finite set needs.

    Raises:
        ValueError: it holds an anchor, a word boundary, a lookaround or a back-reference.
            The message is a half-sentence to be put after the name of the argument.
    """
    out: list[str] = []
    depth = 0
    position = 0
    while position < len(expression):
        char = expression[position]
        if char == "\\":
            code = expression[position + 1 : position + 2]
            out.append(_escape_sequence(code, depth))
            position += 1 + len(code)
            continue
        if char == "[":
            depth += 1
            # "[]abc]" and "[^]abc]": a bracket that comes first is itself.
            lead = re.match(r"\[\^?\]?", expression[position:])
            assert lead is not None
            if depth == 1 and lead.group().endswith("]"):
                out.append(lead.group()[:-1] + r"\]")
                position += lead.end()
                continue
        elif char == "]" and depth:
            depth -= 1
        elif not depth:
            _refuse_lookaround(char, expression[position : position + 4])
        out.append(char)
        position += 1
    return "".join(out)


def _escape_sequence(code: str, depth: int) -> str:
    if code.lower() in _ASCII:
        inner = _ASCII[code.lower()]
        if code.isupper():
            return f"[^{inner}]"
        return inner if depth else f"[{inner}]"
    if not depth and code in _REFUSED:
        raise ValueError(f"holds {_REFUSED[code]}, \\{code}; {_HINT}")
    if not depth and code.isdigit() and code != "0":
        raise ValueError(
            f"holds a back-reference, \\{code}, which no finite automaton has; "
            "write the alternatives out"
        )
    return "\\" + code


def _refuse_lookaround(char: str, ahead: str) -> None:
    if char in "^$":
        raise ValueError(f"holds an anchor, {char}; {_HINT}")
    if re.match(r"\(\?<?[=!]", ahead):
        raise ValueError(
            f"holds a lookaround, {ahead.rstrip()[:3]}…, which no finite automaton has; "
            "write the strings that it lets through"
        )
    if ahead.startswith("(?P="):
        raise ValueError("holds a back-reference, (?P=…); write the alternatives out")
