"""What the README tells people to type works, and its picture of the package is true."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml

import hf_exposure
from tests.pages import blocks, run_page

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
BLOCKS = blocks(README)
PICTURE = re.search(r"^```\n(utils/ .*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_code_of_the_readme_runs_from_top_to_bottom(tmp_path: Path) -> None:
    run_page("README.md", str(tmp_path))
    made = [
        "canaries.json",
        "report.html",
        "with-canaries.jsonl",
        "my-canaries.json",
        "exposures.json",
    ]
    made += ["found.json", "exposures.html"]
    assert all((tmp_path / name).is_file() for name in made)


def test_every_block_of_the_readme_is_run_and_short_enough_to_be_read() -> None:
    assert [block.why for block in BLOCKS] == [None] * len(BLOCKS)
    python = [block.code for block in BLOCKS if block.kind == "python"]
    assert len(python) >= 5 and len(BLOCKS) - len(python) >= 3
    assert max(code.count("\n") for code in python) <= 15


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


def test_the_picture_of_the_layout_has_one_line_a_room() -> None:
    assert PICTURE is not None
    package = ROOT / "hf_exposure"
    named = re.findall(r"^(\w+)/ +\S", PICTURE[1], re.MULTILINE)
    assert len(named) == PICTURE[1].count("\n")
    assert sorted(named) == sorted(file.parent.name for file in package.glob("*/__init__.py"))
    order = re.search(r'containers = \["hf_exposure"\]\nlayers = (\[.*?\])', PYPROJECT, re.DOTALL)
    assert order is not None
    assert named == ast.literal_eval(order[1])[::-1]  # a room imports only from those above it


def test_workflows_are_valid_and_call_targets_that_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    called = set()
    for file in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
        lines = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
        called |= set(re.findall(r"\bmake (\w+)", "\n".join(lines)))
    assert {"lint", "docs", "test"} <= called <= targets


def test_the_version_is_written_in_one_place() -> None:
    assert 'dynamic = ["version"]' in PYPROJECT
    assert not re.search(r'^version = "\d', PYPROJECT, re.MULTILINE)
    assert importlib.metadata.version("hf-exposure") == hf_exposure.__version__
