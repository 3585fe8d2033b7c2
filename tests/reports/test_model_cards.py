"""The cards in model_cards/: valid on the Hub, figures alike in metadata and text, no secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard

from tests.hub_server import Client, in_the_client

FOLDER = Path(__file__).parents[2] / "model_cards"
CARDS = sorted(FOLDER.glob("*/README.md"))
each_card = pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    started = Client(tmp_path_factory.mktemp("home"))
    yield started
    started.close()


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading of our sections, without its head."""
    section = text.split(f"\n## {heading}\n")[1].split("<!-- hf-exposure")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def number(text: str) -> float:
    """The first number in a text, such as "12.3 (9.1–15.0)" or "1,400"."""
    found = re.match(r"-?[\d,]*\.?\d+", text)
    assert found is not None, text
    return float(found[0].replace(",", ""))


def test_the_cards_are_there() -> None:
    assert {path.parent.name for path in CARDS} >= {"demo", "demo_private", "lora_smollm2"}
    told = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in CARDS:
        assert f"({path.parent.name}/README.md)" in told


@each_card
def test_the_figures_of_the_metadata_are_those_of_the_text(path: Path) -> None:
    card = ModelCard.load(path)
    by_type: dict[str, list[Any]] = {}
    for result in card.data.eval_results:
        by_type.setdefault(result.metric_type, []).append(result)
    table = rows(card.text, "Memorization")
    groups = [one for one in by_type["exposure"] if "repetitions" in one.metric_args]
    assert len(table) == len(groups) >= 4  # one format, so one row for each number of repetitions
    for cells, group in zip(table, groups, strict=True):
        _, times, canaries, mean, largest, most = cells
        args = group.metric_args
        assert (number(times), number(canaries)) == (args["repetitions"], args["canaries"])
        assert number(mean) == pytest.approx(group.metric_value, abs=0.051)
        assert number(most) == pytest.approx(args["at_most"], abs=0.051)
        assert number(mean) <= number(largest) + 0.051
    planted = [cells for cells in table if cells[1] != "0"]
    (whole,) = [one for one in by_type["exposure"] if one.metric_name == "Exposure (mean)"]
    means = [(number(cells[2]), number(cells[3])) for cells in planted]
    mean = sum(n * bits for n, bits in means) / sum(n for n, _ in means)
    assert mean == pytest.approx(whole.metric_value, abs=0.051)
    (most,) = [one for one in by_type["exposure"] if one.metric_name == "Exposure (largest)"]
    assert max(number(cells[4]) for cells in planted) == pytest.approx(most.metric_value, abs=0.051)
    assert most.metric_args["low"] <= most.metric_value <= most.metric_args["high"]
    assert f"{whole.metric_args['token_forwards']:,} token-forwards" in card.text
    found = [one for kind in ("extracted", "generated") for one in by_type.get(kind, [])]
    if found:
        for cells, one in zip(
            rows(card.text, "Extraction of inserted secrets"), found, strict=True
        ):
            assert number(cells[2]) == one.metric_args["strings"]
            assert number(cells[4]) == one.metric_value
            assert number(cells[5]) == one.metric_args["token_forwards"]


@each_card
def test_no_card_shows_a_secret_or_a_place_on_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\d.])\d{9}(?!\d)", text)  # they have nine digits each
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", text)
    assert "[More Information Needed]" not in text


@pytest.mark.slow
@each_card
@in_the_client
def test_the_hub_takes_a_card_and_gives_the_same_figures_back(path: Path) -> None:
    card = ModelCard.load(path)
    card.validate(repo_type="model")
    name = f"me/{path.parent.name}"
    HfApi().create_repo(name)
    card.push_to_hub(name)
    back = ModelCard.load(name)
    assert back.data.eval_results == card.data.eval_results
    assert back.text == card.text
