"""The results page: each experiment's claims, whether they held, tables and figure, as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paper import NAMES
from paper.study import SEEDS, Table, counted

_HELD = {True: "held", False: "**did not hold**", None: "cannot be told"}
_INTRODUCTION = """\
# The paper, repeated

What *The Secret Sharer* (Carlini et al., USENIX Security 2019) claims, and what was seen here. The
claims are in our words; figures are of these runs, with 95 % intervals over seeds in brackets where
there are several. Made by `python examples/paper/run.py`, which makes all of it again.
"""


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in a folder, by the experiment's name, in the order of the page."""
    found = {}
    for name in NAMES:
        file = folder / name / "result.json"
        if file.is_file():
            found[name] = json.loads(file.read_text(encoding="utf-8"))
    return found


def page(folder: Path) -> str:
    """All results of a folder as Markdown; figures are linked from where they are in it."""
    found = results(folder)
    parts = [_INTRODUCTION, _summary(found)]
    parts += [section(name, result, f"{name}/figure.png") for name, result in found.items()]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def write_page(folder: Path) -> Path:
    """Write the page of a folder's results as its README.md."""
    path = folder / "README.md"
    path.write_text(page(folder), encoding="utf-8")
    return path


def _summary(found: dict[str, dict[str, Any]]) -> str:
    rows = [
        (
            f"[{result['title']}](#{_anchor(result['title'])})",
            " ".join(_mark(claim["held"]) for claim in result["claims"]),
            f"{result['runs']}",
            f"{result['seconds'] / 60:.1f}",
        )
        for name, result in found.items()
    ]
    seconds = sum(result["seconds"] for result in found.values())
    caption = (
        "✓ held, ✗ did not, ? these runs cannot tell. Minutes are processor time of all runs, "
        f"{seconds / 60:.0f} in all; two cores take half of it."
    )
    return Table(("experiment", "claims", "runs", "minutes"), tuple(rows), caption).markdown()


def _mark(held: bool | None) -> str:
    return {True: "✓", False: "✗", None: "?"}[held]


def _anchor(title: str) -> str:
    kept = "".join(char for char in title.lower() if char.isalnum() or char in " -")
    return kept.replace(" ", "-")


def section(name: str, result: dict[str, Any], figure: str) -> str:
    """One experiment: what was done, each claim and its finding, the tables, the figure."""
    lines = [f"## {result['title']}", "", result["about"], ""]
    lines += [
        f"    python examples/paper/run.py {name}{_options(result)}",
        "",
        f"{counted(result['runs'], 'run')}, {'seed' if len(result['seeds']) == 1 else 'seeds'} "
        f"{', '.join(map(str, result['seeds']))}; text: {result['text']}.",
        "",
    ]
    if result.get("notes"):
        lines += [result["notes"], ""]
    for claim in result["claims"]:
        lines += [f"- {claim['text']} — {_HELD[claim['held']]}: {claim['found']}."]
    lines.append("")
    for table in result["tables"]:
        columns, rows = tuple(table["columns"]), tuple(map(tuple, table["rows"]))
        lines += [Table(columns, rows, table["caption"]).markdown(), ""]
    lines += [f"![{result['title']}]({figure})"]
    return "\n".join(lines)


def _options(result: dict[str, Any]) -> str:
    """What has to be said to have this again; what is usual is left out."""
    scale = "" if result["scale"] == "small" else f" --scale {result['scale']}"
    seeds = result["seeds"]
    scale += "" if len(seeds) == SEEDS else f" --seeds {len(seeds)}"
    scale += f" --seed {seeds[0]}" if seeds and seeds[0] else ""
    text = "" if result["text"].startswith("Python's") else f" --text {result['text']}"
    return scale + text
