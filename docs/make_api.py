"""docs/api.md, made from the docstrings. Run it when a public docstring has changed.

python docs/make_api.py
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hf_exposure

PAGE = Path(__file__).with_name("api.md")

# What stands where; public names that no section has come last. A name with a dot has to be
# imported from its module.
SECTIONS = {
    "Planting": [
        "SecretFormat",
        "Canary",
        "Canaries",
        "inject_canaries",
        "CanaryInjector",
        "verify_injection",
    ],
    "Measuring": [
        "measure_exposure",
        "Exposures",
        "Exposure",
        "BudgetError",
        "ExposureCallback",
        "History",
        "Measurement",
        "write_report",
        "Scorer",
        "CompletionsScorer",
        "metric_path",
    ],
    "Getting secrets out": [
        "extract_secrets",
        "Extractions",
        "Extraction",
        "generate_secrets",
        "Generations",
        "rank_candidates",
        "Candidates",
        "Candidate",
        "discoverable_extraction",
        "Discoverable",
        "load_benchmark",
        "discoverable.log2_queries",
        "discoverable.log2_extractable",
    ],
    "Real secrets": ["audit_dataset", "Audit", "AuditEntry"],
    "Differential privacy": [
        "PrivateTrainer",
        "PrivacyArguments",
        "estimate_epsilon",
        "EpsilonBound",
        "epsilon.canary_scores",
    ],
    "The Hub": ["hub.add_exposure_to_card", "hub.push_exposure", "hub.push_canaries"],
    "What all results can do": ["documents.Tabular", "documents.Document"],
}

_PARTS = "Args|Attributes|Returns|Raises|Guarantees|Formal guarantees, each of them tested"
_PART = re.compile(rf"(?:{_PARTS}):")


def page() -> str:
    """The whole page."""
    listed = {name for names in SECTIONS.values() for name in names}
    rest = [name for name in hf_exposure.__all__ if name not in listed]
    sections = {**SECTIONS, "More": rest} if rest else SECTIONS
    lines = [
        "# API",
        "",
        "Made by `docs/make_api.py` from the docstrings. Names without a module are imported from "
        "`hf_exposure`; those with one, such as `hub.push_exposure`, from it: "
        "`from hf_exposure.reports.hub import push_exposure`. "
        "How they are used: [howto.md](howto.md).",
        "",
        *(f"- **{head}**: {', '.join(map(_link, names))}" for head, names in sections.items()),
    ]
    for head, names in sections.items():
        lines += ["", f"## {head}"]
        for name in names:
            lines += _entry(name)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _link(name: str) -> str:
    return f"[`{name}`](#{name.replace('.', '').lower()})"


def _find(name: str) -> Any:
    module, _, short = name.rpartition(".")
    home = importlib.import_module(f"hf_exposure.{module}") if module else hf_exposure
    return getattr(home, short)


def _entry(name: str) -> Iterator[str]:
    """Signature, docstring, and for a class the methods that it or a base of ours defines."""
    thing = _find(name)
    short = name.rpartition(".")[2]
    yield from ("", f"### {name}", "")
    documents = importlib.import_module("hf_exposure.exposure.documents")
    result = inspect.isclass(thing) and issubclass(thing, (documents.Tabular, documents.Document))
    if callable(thing) and not result:  # results are read, not made
        yield from ("```text", _signature(short, thing), "```", "")
    yield from _doc(thing)
    if not inspect.isclass(thing):
        return
    if result and thing.__module__ != documents.__name__:
        shared = [base for base in (documents.Tabular, documents.Document) if base in thing.__mro__]
        links = " and ".join(_link(f"documents.{base.__name__}") for base in shared)
        yield from ("", f"A sequence of its items. It also has what {links} has.")
    for attribute, member in vars(thing).items():
        if attribute.startswith("_") or not inspect.getdoc(member):
            continue
        function = getattr(member, "__func__", member)  # of a class method
        if isinstance(member, property):
            yield from ("", f"**`.{attribute}`**", "", *_doc(member))
        elif inspect.isfunction(function) and _own(thing, attribute):
            yield from ("", f"**`.{_signature(attribute, function)}`**", "", *_doc(member))


def _own(thing: type, attribute: str) -> bool:
    """Not an event of the Trainer's, which nobody calls."""
    return not attribute.startswith("on_") and attribute != "cells"


def _signature(name: str, thing: Any) -> str:
    """As it is written in the source, on one line or with a line for each argument."""
    try:
        signature = inspect.signature(thing)
    except ValueError:  # an exception that has no constructor of its own
        return name
    parts, keyword = [], False
    for parameter in signature.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            parts.append("*")
            keyword = True
        keyword = keyword or parameter.kind is parameter.VAR_POSITIONAL
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        text = stars.get(parameter.kind, "") + parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {parameter.annotation}"
        if parameter.default is not parameter.empty:
            equals = " = " if ":" in text else "="
            text += f"{equals}{_default(parameter.default)}"
        parts.append(text)
    returns = signature.return_annotation
    shown = inspect.isclass(thing) or returns in (signature.empty, "None", None)
    after = "" if shown else f" -> {returns}"
    line = f"{name}({', '.join(parts)}){after}"
    if len(line) <= 96 or "```" in line or not parts or name != getattr(thing, "__name__", name):
        return line
    if inspect.isclass(thing) or thing.__qualname__ == name:
        return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){after}"])
    return line


def _default(value: Any) -> str:
    text = repr(value)
    return "..." if text.startswith("<") else text


def _doc(thing: Any) -> Iterator[str]:
    """A docstring as Markdown: its sections as lists, examples as blocks."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    place = 0
    while place < len(lines):
        line = lines[place]
        body = _indented(lines, place + 1)
        if _PART.fullmatch(line) and body:
            yield from ("", f"*{line}*", "", *_items(body))
            place += 1 + len(body)
        elif line in ("Example:", "Usage:") and body:
            kind = "pycon" if any(">>>" in code for code in body) else "python"
            if line == "Usage:" and kind == "python":
                kind = "text"
            yield from ("", f"```{kind}", *_code(body), "```")
            place += 1 + len(body)
        elif line.strip() in ("```python", "```"):
            end = next(i for i in range(place + 1, len(lines)) if lines[i].strip() == "```")
            yield from ("", "```text", *lines[place + 1 : end], "```")
            place = end + 1
        elif line == "Usage:":
            place += 1
        else:
            yield line
            place += 1


def _indented(lines: list[str], start: int) -> list[str]:
    """The indented block from `start` on, with blank lines within it."""
    end = start
    while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
        end += 1
    while end > start and not lines[end - 1].strip():
        end -= 1
    return [line[4:] for line in lines[start:end]]


def _items(body: list[str]) -> Iterator[str]:
    """`name: text` with deeper lines below it as a list; plain text as it is."""
    named = any(line.startswith("    ") for line in body) or all(
        re.match(r"[\w*, ]+: ", line) for line in body if line
    )
    for line in body:
        bullet = re.match(r"(\w[\w*.{}, ]*?): (.*)", line)
        if bullet and named:
            yield f"- `{bullet[1]}`: {bullet[2]}"
        elif named and line.startswith("    "):
            yield f"  {line.strip()}"
        else:
            yield line


def _code(body: list[str]) -> Iterator[str]:
    lines = [re.sub(r"\s*# doctest: \+SKIP", "", line) for line in body]
    while lines and not lines[0].strip():
        lines.pop(0)
    yield from lines


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: {page().count(chr(10)):,} lines")
