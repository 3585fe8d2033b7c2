"""What the pages of docs/ say: code runs, links lead somewhere, every public name is there."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_exposure
from tests.hub_server import Client
from tests.pages import blocks, commands, parse, run_page
from tests.processes import finished, python

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# Blocks that cannot run here, by page. Each says why on the page itself.
NOT_RUN = {"gpu.md": 1, "howto.md": 1, "setups.md": 1}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


WITH_CODE = [page for page in PAGES if blocks(text(page))]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A process that knows no Hub but a stand-in, so that blocks may push."""
    started = Client(tmp_path_factory.mktemp("home"))
    yield started
    started.close()


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, client: Client
) -> None:
    client.run(run_page, name=str(page.relative_to(ROOT)), folder=str(tmp_path))


@pytest.mark.slow
def test_the_examples_of_public_docstrings_give_what_they_say() -> None:
    """Those that need a trained model are left out; the docstrings mark them."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    public = {name: getattr(hf_exposure, name) for name in hf_exposure.__all__}
    tried, said = 0, list[str]()
    for name in sorted({thing.__module__ for thing in public.values()}):
        module = sys.modules[name]
        known = {**vars(module), **public}
        for found in doctest.DocTestFinder().find(module, globs=known):
            result = doctest.DocTestRunner(optionflags=flags).run(found, out=said.append)
            tried += result.attempted
    assert not said, "".join(said)
    assert tried > 40


def test_each_public_name_is_documented_once() -> None:
    pages = "".join(map(text, sorted((DOCS / "api").glob("*.md"))))
    documented = Counter(re.findall(r"^::: hf_exposure\.(\w+)$", pages, re.MULTILINE))
    assert documented == Counter(hf_exposure.__all__)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = finished(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "api" / "exposure" / "index.html").read_text(encoding="utf-8")
    assert 'id="hf_exposure.measure_exposure"' in page and "Parameters:" in page
    assert not re.search(r'(?:src|<link[^>]*href)="https?:', page)  # nothing is fetched to read it


@each_page
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    left_out = [block for block in blocks(text(page)) if block.why is not None]
    assert len(left_out) == NOT_RUN.get(page.name, 0)
    assert all(len(block.why or "") > 10 for block in left_out)


@each_page
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text(page)):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name} links to {target}"
        assert file.resolve().is_relative_to(DOCS), (
            f"the site has no {target}, linked in {page.name}"
        )
        if heading:
            assert heading in _anchors(text(file)), f"{page.name} links to {target}"


def test_the_index_names_every_page() -> None:
    named = set(re.findall(r"\]\(([\w./]+\.md)\)", text(DOCS / "README.md")))
    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"README.md"}


@each_page
def test_blocks_of_how_to_are_short_and_compile(page: Path) -> None:
    for block in blocks(text(page)):
        if block.kind == "python":
            ast.parse(block.code)
        if page.name == "howto.md":
            assert block.code.count("\n") <= 15


@pytest.mark.slow
def test_the_figures_are_made_by_their_script(tmp_path: Path) -> None:
    done = python([DOCS / "make_figures.py", "--smoke", "--output-dir", "figures"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    made = {path.name for path in (tmp_path / "figures").glob("*.png")}
    assert made and made <= {path.name for path in DOCS.glob("*.png")}
    for name in made:
        assert f"({name})" in text(DOCS / "concepts.md")


def test_the_results_page_has_the_figures_of_an_output_beside_it(tmp_path: Path) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    (out / "early").mkdir(parents=True)
    (out / "early" / "figure.png").write_bytes(b"a picture")
    (out / "README.md").write_text("# Made\n\n![early](early/figure.png)\n", encoding="utf-8")
    importlib.import_module("paper.make_page").main(out, docs)
    assert text(docs / "paper.md") == "# Made\n\n![early](paper/early.png)\n"
    assert (docs / "paper" / "early.png").read_bytes() == b"a picture"


def test_no_page_names_a_public_thing_that_is_not_there() -> None:
    for page in [*PAGES, ROOT / "README.md"]:
        for names in re.findall(r"from hf_exposure import ([\w, ]+)", text(page)):
            for name in names.split(","):
                assert hasattr(hf_exposure, name.strip()), f"{page.name}: {name}"


# The reading of pages itself: each check would otherwise pass by finding nothing.


def test_blocks_are_found_however_they_are_written() -> None:
    page = (
        "Words.\n\n```python\nx = 1\n```\n\n<!-- not run: needs a GPU -->\n```python\ny = 2\n```\n"
        "\n    hf-exposure report a \\\n        --output b\n\n```pycon\n>>> x\n1\n```\n"
        "\n```\na diagram\n```\n\n```\npip install .   # here\nhf-exposure demo\n```\n"
    )
    found = blocks(page)
    assert [block.kind for block in found] == ["python", "python", "sh", "pycon", "sh"]
    assert [block.why for block in found] == [None, "needs a GPU", None, None, None]
    assert list(commands(found[2])) == [["hf-exposure", "report", "a", "--output", "b"]]
    assert list(commands(found[4])) == [["pip", "install", "."], ["hf-exposure", "demo"]]


def test_a_command_that_the_command_line_does_not_know_is_found() -> None:
    parse(["demo", "--smoke"])
    for wrong in (["demo", "--smok"], ["measure", "--model", "m"], ["measures"]):
        with pytest.raises(Exception) as caught:
            parse(wrong)
        assert "AssertionError" not in type(caught.value).__name__


@pytest.mark.slow
def test_a_page_whose_code_fails_is_found(tmp_path: Path, client: Client) -> None:
    (tmp_path / "page.md").write_text("```pycon\n>>> 1 + 1\n3\n```\n")
    with pytest.raises(AssertionError, match="Expected"):
        client.run(run_page, name=str(tmp_path / "page.md"), folder=str(tmp_path))


def _anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
