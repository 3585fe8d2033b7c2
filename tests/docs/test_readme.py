"""What the README tells people to type works, and its picture of the package is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import blocks, run_page
from tests.test_layout import ORDER

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = blocks(README)
PICTURE = re.search(r"^```\n(files .*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_code_of_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    run_page("README.md", str(tmp_path))
    made = ["canaries.json", "report.html", "planted.jsonl", "my-canaries.json", "exposures.json"]
    made += ["found.json", "exposures.html"]
    assert all((tmp_path / name).is_file() for name in made)


def test_every_block_of_the_readme_is_run_and_short_enough_to_be_read() -> None:
    assert [block.why for block in BLOCKS] == [None] * len(BLOCKS)
    python = [block.code for block in BLOCKS if block.kind == "python"]
    assert len(python) >= 5 and len(BLOCKS) - len(python) >= 3
    assert max(code.count("\n") for code in python) <= 12


def test_a_newcomer_sees_what_it_is_how_to_install_it_and_the_three_steps_on_one_screen() -> None:
    screen = "\n".join(README.splitlines()[:50])
    for told in ("pip install", "inject_canaries(", "ExposureCallback(", "measure_exposure("):
        assert told in screen, told


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert "    make test" in README
    assert 'test_command="make test"' in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_files_that_the_readme_links_to_are_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_the_picture_of_the_layout_names_every_module_once() -> None:
    assert PICTURE is not None
    # The names stand left of the first gap of two spaces that no module's name follows.
    rows = [re.split(r" {2,}", line) for line in PICTURE[1].splitlines()]
    named = [name for row in rows for name in row if name in ORDER]
    assert sorted(named) == sorted(ORDER)
    assert all(row[-1] not in ORDER for row in rows)  # each row ends in words
