"""The picture of the package holds: who imports whom, who needs torch, who calls a model."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "hf_exposure"
ROOT = Path(__file__).parents[1] / PACKAGE

# A module imports only from those before it.
ORDER = [
    "files",
    "automaton",
    "formats",
    "canaries",
    "masking",
    "detectors",
    "scan",
    "vocabulary",
    "token_rows",
    "survival",
    "injection",
    "canonical",
    "pairs",
    "levenshtein",
    "tokens",
    "planning",
    "processes",
    "caches",
    "decoder",
    "frontier",
    "walk",
    "prefixes",
    "scoring",
    "rank",
    "ranking",
    "documents",
    "results",
    "references",
    "history",
    "epsilon",
    "exposure",
    "audit",
    "echoed",
    "completions",
    "extraction",
    "generation",
    "candidates",
    "near",
    "discoverable",
    "chance",
    "findings",
    "card_text",
    "cards",
    "hub",
    "plots",
    "report",
    "trainer",
    "callback",
    "accounting",
    "per_sample",
    "refusals",
    "private",
    "loading",
    "metrics",
    "small",
    "recurrent",
    "demo",
    "experiments",
    "cli",
]

# A method that is a shortcut to a function above, which it imports when it is called: the module
# that has the method, and the one above.
SHORTCUTS = {("results", "report"), ("canaries", "hub")}

# To be imported, these need neither torch nor transformers.
LIGHT = {
    "files",
    "automaton",
    "formats",
    "canaries",
    "masking",
    "detectors",
    "scan",
    "vocabulary",
    "token_rows",
    "survival",
    "injection",
    "canonical",
    "pairs",
    "levenshtein",
    "tokens",
    "planning",
    "rank",
    "documents",
    "results",
    "history",
    "epsilon",
    "echoed",
    "completions",
}

# What a model is called; the names under which a call of one would show.
MODELS = {"model", "_model", "unwrapped", "bare_model"}


def layer(path: Path) -> str:
    """The name in ORDER of a file: its own, or that of its folder within the package."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


# The package's own __init__ gathers the public names, so it is above all.
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def modules_imported(node: ast.AST, package: str = PACKAGE) -> list[str]:
    """Dotted names that an import statement asks for, relative ones made whole."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        # "from hf_exposure import rank" asks for the module hf_exposure.rank.
        return [f"{base}.{alias.name}" for alias in node.names] if base == PACKAGE else [base]
    return []


def layers_imported(source: str, package: str = PACKAGE) -> set[str]:
    """Modules of our own that the source imports anywhere, inside functions too."""
    nodes = ast.walk(ast.parse(source))
    names = (name.split(".") for node in nodes for name in modules_imported(node, package))
    return {parts[1] if len(parts) > 1 else "__init__" for parts in names if parts[0] == PACKAGE}


def statements_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported: none in functions or under TYPE_CHECKING."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            blocks = [statement.orelse]
        handlers = getattr(statement, "handlers", [])
        for block in [*blocks, *(handler.body for handler in handlers)]:
            yield from statements_at_import(block)


def needed_at_import(source: str) -> set[str]:
    """Top-level packages, and our own modules by layer, that importing the source imports."""
    names = [
        name
        for statement in statements_at_import(ast.parse(source).body)
        for name in modules_imported(statement)
    ]
    return {name.split(".")[0] for name in names} | {
        name.split(".")[1] for name in names if name.startswith(f"{PACKAGE}.")
    }


def model_calls(source: str) -> list[int]:
    """Lines that run a model: `model(...)`, `self.model(...)` or `model.forward(...)`."""

    def runs(called: ast.expr) -> bool:
        if isinstance(called, ast.Attribute) and called.attr in {"forward", "__call__"}:
            return runs(called.value)
        return (isinstance(called, ast.Name) and called.id in MODELS) or (
            isinstance(called, ast.Attribute) and called.attr in MODELS
        )

    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if runs(call.func)]


@each_file
def test_a_module_imports_only_from_those_above_it(path: Path) -> None:
    name = layer(path)
    assert name in ORDER, (
        f"{path.relative_to(ROOT)} has no place yet: put {name!r} into ORDER of "
        "tests/test_layout.py, below all that it imports and above all that import it"
    )
    package = ".".join([PACKAGE, *path.relative_to(ROOT).parts[:-1]])
    allowed = {*ORDER[: ORDER.index(name)], *([name] if path.parent != ROOT else [])}
    source = path.read_text(encoding="utf-8")
    shortcuts = {above for below, above in SHORTCUTS if below == name}
    early = shortcuts & needed_at_import(source)
    assert not early, f"{name} imports {sorted(early)} before it needs to"
    wrong = layers_imported(source, package) - allowed - shortcuts
    assert not wrong, f"{name} imports {sorted(wrong)}, which do not stand above it in ORDER"


@each_file
def test_modules_about_text_and_numbers_import_neither_torch_nor_transformers(path: Path) -> None:
    if layer(path) in LIGHT:
        needed = needed_at_import(path.read_text(encoding="utf-8"))
        heavy = {"torch", "transformers", *ORDER} - LIGHT
        assert not needed & heavy, f"{layer(path)} imports {sorted(needed & heavy)} at module level"


@each_file
def test_only_the_decoder_runs_a_model(path: Path) -> None:
    if layer(path) != "decoder":
        lines = model_calls(path.read_text(encoding="utf-8"))
        assert not lines, f"{path.name} calls a model in lines {lines}: only decoder.py may"


def test_the_order_names_each_module_once() -> None:
    assert len(ORDER) == len(set(ORDER))
    assert set(ORDER) >= LIGHT


# The checks themselves: each would otherwise pass by finding nothing.


@pytest.mark.parametrize(
    ("source", "package", "layers"),
    [
        ("import hf_exposure.rank", PACKAGE, {"rank"}),
        ("from hf_exposure.rank import interval", PACKAGE, {"rank"}),
        ("from hf_exposure import rank, walk as w", PACKAGE, {"rank", "walk"}),
        ("from . import rank", PACKAGE, {"rank"}),
        ("from .rank import interval", PACKAGE, {"rank"}),
        ("from ..rank import interval", f"{PACKAGE}.metrics", {"rank"}),
        ("from .local import interval", f"{PACKAGE}.metrics", {"metrics"}),
        ("import hf_exposure", PACKAGE, {"__init__"}),
        ("def f():\n    from hf_exposure.cli import main", PACKAGE, {"cli"}),
        ("import numpy\nfrom os import path", PACKAGE, set()),
    ],
)
def test_imports_of_our_own_are_found_however_written(
    source: str, package: str, layers: set[str]
) -> None:
    assert layers_imported(source, package) == layers


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch.nn", True),
        ("from torch import nn", True),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None", True),
        ("class A:\n    import torch", True),
        ("def f():\n    import torch", False),
        ("if TYPE_CHECKING:\n    import torch", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import torch", True),
    ],
)
def test_an_import_counts_where_it_runs_with_the_module(source: str, found: bool) -> None:
    assert ("torch" in needed_at_import(source)) is found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("model(ids)", True),
        ("self.model(input_ids=ids)", True),
        ("out = self._model(**batch)", True),
        ("model.forward(ids)", True),
        ("self.model.__call__(ids)", True),
        ("model.generate(ids)", False),
        ("make_model(config)", False),
    ],
)
def test_a_call_of_a_model_is_told_from_other_calls(source: str, found: bool) -> None:
    assert bool(model_calls(source)) is found
