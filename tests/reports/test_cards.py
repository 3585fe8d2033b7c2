"""Model cards: every line of theirs stays, and the figures come back as they went in."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_exposure.attacks.extraction import Extraction, Extractions
from hf_exposure.attacks.generations import Generated, Generations
from hf_exposure.canaries.canary import MASK, Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.history import History, Measurement
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.results import Exposures
from hf_exposure.reports.card_text import DATASET
from hf_exposure.reports.cards import add_exposure_to_card, add_privacy_to_card, results, rounded_up
from hf_exposure.utils import files
from tests.hub_server import card_errors

FORMAT = SecretFormat("My | code is {secret}.", secret=r"[0-9]{6}")
WORDS = SecretFormat("Password: {secret}\nBye", secret=r"[a-z]{8}")
CANARIES = Canaries(
    [
        Canary(FORMAT, "281265", 16),
        Canary(FORMAT, "718281", 1),
        Canary(FORMAT, "314159"),
        Canary(WORDS, "hunterzz", 16),
    ]
)
BITS = [18.123456, 3.5, 0.75, 30.0]


def measured(*bits: float) -> Exposures:
    items = [
        Exposure(
            canary,
            value,
            max(0.0, value - 1),
            value + 1,
            2 ** (canary.format.bits - value),
            1.0,
            9.0,
            0.0,
            0,
            False,
            5.0,
            "auto",
            2.0**-value,
        )
        for canary, value in zip(CANARIES, bits or BITS, strict=True)
    ]
    chosen = {"method": "auto", "confidence": 0.95}
    return Exposures(items, forwards=4321, seconds=1.0, settings=chosen)


def searched() -> list[Extractions]:
    one = Extraction("281265", 1.5, True, 70, CANARIES[0], FORMAT)
    two = Extraction("999999", 4.0, False, 300, None, FORMAT)
    known = {"beam_width": None, "canaries": 3}
    beam = {"beam_width": 8, "canaries": 1}
    return [
        Extractions([one, two], format=FORMAT, forwards=300, seconds=1.0, settings=known),
        Extractions([], format=WORDS, forwards=50, seconds=1.0, settings=beam),
    ]


def generated() -> Generations:
    rows = [Generated(canary, 3 if place == 3 else 0, 40) for place, canary in enumerate(CANARIES)]
    return Generations(rows, attempts=80, forwards=900, settings={"constrained": True})


def ours(card: ModelCard, kind: str = "exposure") -> dict[str, EvalResult]:
    found = [one for one in card.data.eval_results or [] if one.dataset_type == DATASET]
    return {str(one.metric_name): one for one in found if one.metric_type == kind}


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def lines_of(text: str) -> Counter[str]:
    return Counter(re.split("\r\n|\n", text.removeprefix("\ufeff")))


def kept(before: str, after: str) -> bool:
    """Whether each line of a card is still there, as often and in the same order."""
    new = iter(re.split("\r\n|\n", after.removeprefix("\ufeff")))
    return all(line in new for line in re.split("\r\n|\n", before.removeprefix("\ufeff")))


# Privacy

PRIVACY = {
    "epsilon": 7.98,
    "delta": 1e-5,
    "unit": "one row of the training set, added or removed",
    "rows": 2500,
    "accountant": "rdp",
    "per_sample_max_grad_norm": 1.0,
    "noise_can_be_repeated": False,
    "steps": [{"noise_multiplier": 0.71, "sampling_rate": 0.025, "steps": 320}],
}


def test_a_search_that_ran_out_is_said_to_have_done_so() -> None:
    options = {"count": 3, "max_forwards": 10, "check_forwards": 66, "canaries": 4}
    for ended in (False, True):
        search = Extractions([], format=FORMAT, forwards=66, settings={**options, "ended": ended})
        made = add_exposure_to_card(ModelCard("# m\n"), extractions=search)
        assert ("ran out of token-forwards" in made.text) != ended
        assert search.cut_short != ended


def test_bounds_are_marked_in_the_table_and_in_the_metadata() -> None:
    bounds = measured()
    bounds.formats = {fmt: FormatDetails(samples=0) for fmt in CANARIES.formats}
    made = add_exposure_to_card(ModelCard("# m\n"), bounds)
    rows = [line for line in made.text.splitlines() if MASK in line]
    assert rows and all(row.count("≥") == 2 for row in rows)
    assert [one.metric_args["lower_bounds"] for one in made.data.eval_results] == (
        [len(bounds)] * len(made.data.eval_results)
    )
    drawn = add_exposure_to_card(ModelCard("# m\n"), measured())
    assert "≥" not in drawn.text and "lower_bounds" not in str(drawn)


def test_what_a_training_has_spent_is_a_section_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("---\nlicense: mit  # ours\n---\n# By hand\n\nText.\n", encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    add_privacy_to_card(path, PRIVACY)
    add_exposure_to_card(path, measured())
    add_privacy_to_card(path, {**PRIVACY, "epsilon": 12.5})
    text = path.read_text(encoding="utf-8")
    assert kept(before, text) and text.count("## Differential privacy") == 1
    assert "(12.5, 1.00e-05)-differential privacy" in text and "7.98" not in text
    assert "| 320 | 0.71 | 0.025 |" in text
    assert ours(ModelCard.load(path))["Exposure (mean)"]


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        (0.004, "0.00400"),
        (0.0040001, "0.00401"),
        (7.9949, "8.00"),
        (7.99, "7.99"),
        (2.1049, "2.11"),
        (1.249e-5, "1.25e-05"),
        (99.96, "100"),
        (123.4, "124"),
        (4.3e6, "4,300,000"),
        (0.0, "0"),
        (math.inf, "inf"),
    ],
)
def test_an_upper_bound_is_never_rounded_down(bound: float, told: str) -> None:
    assert rounded_up(bound) == told
    assert float(told.replace(",", "")) >= bound


def test_a_card_without_metadata_gets_none_for_privacy_alone(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# By hand\n", encoding="utf-8")
    add_privacy_to_card(tmp_path, PRIVACY)
    assert path.read_text(encoding="utf-8").startswith("# By hand\n\n<!-- hf-exposure privacy")


@pytest.mark.parametrize("statement", [{}, {**PRIVACY, "steps": None}, {**PRIVACY, "rows": "few"}])
def test_what_is_no_statement_of_privacy_is_refused(tmp_path: Path, statement: Any) -> None:
    with pytest.raises(ValueError, match=r"add_privacy_to_card: statement is not what Private"):
        add_privacy_to_card(tmp_path / "README.md", statement)
    assert not list(tmp_path.iterdir())


# What is added


def test_the_figures_come_back_as_they_were_measured(tmp_path: Path) -> None:
    path = tmp_path / "my-model" / "README.md"
    returned = add_exposure_to_card(path, measured())
    loaded = ModelCard.load(path)
    for card in (returned, loaded):
        assert card.data.model_name == "my-model"
        found = ours(card)
        inserted = [BITS[0], BITS[1], BITS[3]]
        assert found["Exposure (mean)"].metric_value == pytest.approx(sum(inserted) / 3, abs=0.3)
        assert found["Exposure (largest)"].metric_value == pytest.approx(30, abs=0.3)
        assert found["Exposure (largest)"].metric_args["high"] == pytest.approx(31, abs=0.7)
        assert found["Exposure (never inserted)"].metric_value == 0.8
        assert found["Exposure (inserted once)"].metric_value == 3.5
        both = pytest.approx((BITS[0] + BITS[3]) / 2, abs=0.4)
        assert found["Exposure (inserted 16 times)"].metric_value == both
        assert found["Exposure (inserted 16 times)"].metric_args == {
            "method": "auto",
            "confidence": 0.95,
            "unit": "bits",
            "token_forwards": 4300,
            "at_most": pytest.approx(8 * math.log2(26), abs=1e-2),
            "repetitions": 16,
            "canaries": 2,
        }
    assert not card_errors(path.read_text(), "model")
    # As the library writes it again.
    returned.save(tmp_path / "again.md")
    assert ours(ModelCard.load(tmp_path / "again.md")) == ours(loaded)


def test_the_section_has_sentences_a_table_the_method_and_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    exposures = measured()
    history = History([Measurement(40, exposures)])
    add_exposure_to_card(
        path, exposures, history=history, extractions=searched(), generations=generated()
    )
    text = path.read_text()
    assert "3 random secrets (canaries) were inserted into the training data" in text
    assert "4,300 token-forwards" in text and "at step 40" in text and "method `auto`" in text
    assert "| 17.4 (16.0–18.9) | 19.9 |" in text
    assert "search for the most likely strings" in text and "beam search, width 8" in text
    assert "| generated in the form of a secret | all | 80 | – | 1 | 900 |" in text
    assert "search for the most likely strings | My \\| code is \\{secret\\}. | 2 | 1 | 1 |" in text
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    headings, widths = 0, set()
    for line in tables:
        headings += line.startswith(("| canary", "| method"))
        widths.add((headings, len(re.findall(r"(?<!\\)\|", line))))
    assert widths == {(1, 7), (2, 7)}
    for secret in [*(canary.secret for canary in CANARIES), "999999"]:
        assert secret not in text


def test_what_came_out_is_told_in_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    add_exposure_to_card(path, extractions=searched(), generations=generated())
    card = ModelCard.load(path)
    found = ours(card, "extracted")
    assert [one.metric_value for one in found.values()] == [1, 0]
    assert next(iter(found.values())).metric_args == {
        "method": "search for the most likely strings",
        "token_forwards": 300,
        "proved": 1,
        "strings": 2,
        "canaries": 3,
    }
    (written,) = ours(card, "generated").values()
    assert written.metric_value == 1 and written.metric_args["token_forwards"] == 900
    assert not ours(card) and not card_errors(path.read_text(), "model")
    # Where no canaries are known, none is said to have come out or not.
    blind = Extractions(list(searched()[0])[1:], format=FORMAT, forwards=9, settings={})
    add_exposure_to_card(path, extractions=blind)
    (one,) = ours(ModelCard.load(path), "extracted").values()
    assert str(one.metric_name).startswith("Most likely strings found") and one.metric_value == 1
    assert "| 1 | 0 | – | 9 |" in path.read_text()


def test_exposures_and_what_came_out_do_not_replace_each_other(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    add_exposure_to_card(path, measured())
    add_exposure_to_card(path, extractions=searched())
    both = path.read_text()
    card = ModelCard.load(path)
    assert len(ours(card)) == 5 and len(ours(card, "extracted")) == 2
    add_exposure_to_card(path, measured(1.0, 1.0, 1.0, 1.0))
    add_exposure_to_card(path, extractions=searched()[:1])
    card = ModelCard.load(path)
    assert ours(card)["Exposure (mean)"].metric_value == 1.0
    assert len(ours(card)) == 5 and len(ours(card, "extracted")) == 1
    add_exposure_to_card(path, measured())
    add_exposure_to_card(path, extractions=searched())
    assert sorted(path.read_text().splitlines()) == sorted(both.splitlines())


def test_a_second_call_changes_nothing_and_other_figures_replace_the_first_ones(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "README.md", "---\nlicense: mit\n---\n# Mine\n")
    add_exposure_to_card(path, measured())
    first = path.read_bytes()
    write(path, first.decode() + "\nAfter it.\n")
    add_exposure_to_card(path, measured())
    assert path.read_bytes() == first + b"\nAfter it.\n"
    add_exposure_to_card(path, measured(2.0, 2.0, 2.0, 2.0))
    text = path.read_text()
    assert text.endswith("\nAfter it.\n") and text.count("## Memorization") == 1
    assert ours(ModelCard.load(path))["Exposure (largest)"].metric_value == 2.0
    assert "18.1" not in text


def test_a_folder_means_its_readme_and_a_card_in_memory_is_left_alone(tmp_path: Path) -> None:
    add_exposure_to_card(tmp_path, measured())
    assert (tmp_path / "README.md").is_file()
    card = ModelCard("---\nlicense: mit\n---\n# Mine\n")
    before = str(card)
    made = add_exposure_to_card(card, measured(), model_name="named")
    assert str(card) == before
    assert made.data.license == "mit" and made.data.model_name == "named" and ours(made)
    bare = add_exposure_to_card(ModelCard("No metadata"), measured())
    assert "No metadata" in bare.text and ours(bare) and bare.data.model_name == "model"


def test_a_long_template_is_named_by_what_stands_around_the_secret() -> None:
    fmt = SecretFormat("word " * 200 + "{secret}" + " word" * 200, secret=r"[0-9]{4}")
    long = Extractions([], format=fmt, settings={"canaries": 0})
    (one,) = results(None, [long])
    assert len(one.dataset_name) < 120 and "{secret}" in one.dataset_name


# What stays

OTHERS = """\
---
# written by hand
language:
  - en   # and no other
license: mit
model-index:
  - name: theirs   # a remark
    results:
      - task: {type: text-generation, name: Text Generation}
        dataset:
          name: "Some 'text'"
          type: some/text
          revision: 0123abc
        metrics:
          - type: perplexity
            value: 12.50
            verified: true
          # the second one
          - type: accuracy
            value: "91 ± 2"
        source:
          name: Leaderboard
          url: https://example.org
        extra: kept too
      # the last line of the results
tags:
- a
- 'b'
widget:
- text: |
    # no comment
    ---x
---

# Mine

---

Text with ``code``, <b>markup</b> and trailing spaces.\x20\x20

---
"""
CARDS = {
    "other people's results": OTHERS,
    "windows": OTHERS.replace("\n", "\r\n"),
    "a byte order mark": "\ufeff" + OTHERS,
    "nothing": "",
    "no metadata": "# Mine\n\n---\n\nmore\n",
    "no newline at the end": "# Mine",
    "only metadata": "---\nlicense: mit\n---",
    "blank lines before": "\n\n---\nlicense: mit\n---\ntext",
    "an empty block": "---\n\n---\n# Mine\n",
    "an empty block, windows": "---\r\n---\r\n# Mine\r\n",
    "comments alone": "---\n# nothing yet\n---\n# Mine\n",
    "what a Trainer writes": "---\nmodel-index:\n- name: out\n  results: []  # none\n---\n# Mine\n",
    "results at the left": "---\nmodel-index:\n- name: x\n  results:\n  - task:\n      type: t\n"
    "    dataset:\n      type: d\n      name: D\n    metrics:\n    - type: m\n      value: 1\n"
    "\nlicense: mit\n---\n",
    "spaces after the marks": "---\nlicense: mit\n---   \ntext\n",
    "a mark alone": "# Mine\n<!-- hf-exposure exposure: begin -->\nmy text\n",
    "a block text at the end": "---\nnote: |+\n  text\n\n---\nbody\n",
    "two models": "---\nmodel-index:\n- name: x\n  results:\n  - task: {type: t}\n"
    "    dataset: {type: d, name: D}\n    metrics: [{type: m, value: 1}]\n- name: y\n  results:\n"
    "  - task: {type: u}\n    dataset: {type: e, name: E}\n    metrics: [{type: n, value: 2}]\n"
    "---\n",
    "a quoted name": '---\n"model-index":\n- "name": x\n  "results": []\nzebra: 1\n---\n',
}


def check_kept(path: Path, before: str) -> None:
    """Add twice, with text after the section; all lines and all values have to be there."""
    write(path, before)
    data = yaml.safe_load(
        (re.match(r"\ufeff?\s*---\r?\n([\s\S]*?)\r?\n---[ \t]*(\r?\n|$)", before) or ["", ""])[1]
    )
    theirs = [one for m in (data or {}).get("model-index", []) for one in m["results"]]
    add_exposure_to_card(path, measured())
    write(path, path.read_bytes().decode() + "after\n")
    add_exposure_to_card(path, measured(1.0, 2.0, 3.0, 4.0))
    after = path.read_bytes().decode()
    changed = {"  results: []  # none": "  results:", '  "results": []': '  "results":'}
    expected = "\n".join(changed.get(line, line) for line in re.split("\r\n|\n", before))
    assert kept(expected.removesuffix("\n"), after)
    assert after.startswith("\ufeff") == before.startswith("\ufeff")
    if "\r\n" in before:
        assert not re.search(r"(?<!\r)\n", after.removesuffix("after\n"))
    card = ModelCard.load(path)
    assert ours(card)["Exposure (largest)"].metric_value == 4.0
    assert not card_errors(after, "model")
    made = yaml.safe_load(re.match(r"\ufeff?\s*---\r?\n([\s\S]*?)\r?\n---", after)[1])  # type: ignore[index]
    entries = [one for model in made["model-index"] for one in model["results"]]
    assert [one for one in entries if one["dataset"]["type"] != DATASET] == theirs
    rest = {name: value for name, value in (data or {}).items() if name != "model-index"}
    assert {name: value for name, value in made.items() if name != "model-index"} == rest


@pytest.mark.parametrize("name", CARDS)
def test_every_line_of_a_card_stays(name: str, tmp_path: Path) -> None:
    check_kept(tmp_path / "README.md", CARDS[name])


@pytest.mark.parametrize(
    "metadata",
    [
        "{license: mit, model-index: [{name: x, results: []}]}",
        "{}",
        "license: mit\nmodel-index: [{name: x, results: [{task: {type: t}, dataset: {type: d, "
        "name: D}, metrics: [{type: m, value: 1}]}]}]\ntags: [a]",
        "license: mit\nmodel-index:\n- name: x\n  results: [{task: {type: t}, dataset: {type: d, "
        "name: D}, metrics: [{type: m, value: 1}]}]\n# for later\n\ntags: [a]",
        "license: mit\nmodel-index: null",
        "license: mit\nmodel-index:\n- name: x",
    ],
)
def test_results_in_braces_keep_their_values(metadata: str, tmp_path: Path) -> None:
    path = write(tmp_path / "README.md", f"---\n{metadata}\n---\n# Mine\n")
    before = yaml.safe_load(metadata)
    for _ in range(2):
        add_exposure_to_card(path, measured())
    text = path.read_text()
    after = yaml.safe_load(text.split("---\n")[1])
    assert after.get("license") == before.get("license") and after.get("tags") == before.get("tags")
    theirs = [r for model in before.get("model-index") or [] for r in model.get("results", [])]
    found = after["model-index"][0]["results"]
    assert found[:-1] == theirs and found[-1]["dataset"]["type"] == DATASET
    assert "\n# Mine\n" in text
    if "# for later" in metadata:
        assert "\n# for later\n\ntags: [a]\n" in text


WRITTEN = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\x85\u2028\u2029", exclude_categories=["Cc"])
    | st.sampled_from("\n #-:|`<>[]{}*_"),
    max_size=60,
)
NAMES = st.sampled_from(["license", "language", "widget", "x y", "ünï", "123", "model_type"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WRITTEN | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def random_cards(draw: Any) -> str:
    """A card: perhaps metadata with remarks and others' results, in block or flow style; text."""
    body = draw(WRITTEN)
    if draw(st.booleans()):
        return str(body)
    data = draw(st.dictionaries(NAMES, VALUES, max_size=4))
    if draw(st.booleans()):
        others = [
            {
                "task": {"type": "t", "name": draw(WRITTEN)},
                "dataset": {"type": "d", "name": "D"},
                "metrics": [{"type": "m", "value": draw(st.integers() | st.floats(-9, 9))}],
            }
            for _ in range(draw(st.integers(0, 2)))
        ]
        data["model-index"] = [{"name": draw(st.text("ab:# '", min_size=1)), "results": others}]
    names = draw(st.permutations(list(data)))
    lines: list[str] = []
    for name in names:
        made = yaml.safe_dump(
            {name: data[name]},
            allow_unicode=True,
            default_flow_style=False,
            indent=draw(st.sampled_from([2, 4])),
            width=draw(st.sampled_from([20, 1000])),
        )
        lines += made.rstrip("\n").split("\n")
        if draw(st.booleans()):
            lines += ["# " + "".join(draw(WRITTEN).split()), ""]
    end = draw(st.sampled_from(["\n", "\r\n"]))
    head = "\ufeff" if draw(st.booleans()) else ""
    text = head + end.join(["---", *lines, "---", *body.split("\n")])
    return str(text)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=random_cards())
def test_all_lines_of_any_card_survive_or_it_is_left_as_it_was(
    before: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any.md", before)
    try:
        add_exposure_to_card(path, measured())
    except ValueError as error:
        assert "is left as it was" in str(error) and "\n" not in str(error)
        assert path.read_bytes() == before.encode()
        # Only what the library cannot read either may be refused.
        with pytest.raises((ValueError, yaml.YAMLError)):
            ModelCard(before.removeprefix("\ufeff"))
        return
    once = path.read_bytes()
    after = once.decode()
    lost = lines_of(before) - lines_of(after)
    assert {line.strip() for line in lost} <= {"results: []", ""}
    add_exposure_to_card(path, measured())
    assert path.read_bytes() == once
    most = measured().coarse().metrics()["eval_exposure_max"]
    assert ours(ModelCard.load(path))["Exposure (largest)"].metric_value == pytest.approx(most)
    old = ModelCard(before.removeprefix("\ufeff")).data
    new = ModelCard.load(path).data
    theirs = [one for one in new.eval_results or [] if one.dataset_type != DATASET]
    assert theirs == (old.eval_results or [])
    left_out = {"eval_results", "model_name"}
    assert {k: v for k, v in vars(new).items() if k not in left_out} == {
        k: v for k, v in vars(old).items() if k not in left_out
    }


# What cannot be done


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("---\nlicense: [mit\n---\n# Mine\n", "not valid YAML"),
        ("---\nlicense: mit\n\tx: 1\n---\n", "not valid YAML"),
        ("---\nA line of text\n---\nmore\n", "is a str, not names with values"),
        ("---\n- a\n- b\n---\n", "is a list, not names with values"),
        ("---\ntags: 3\n---\n", "not what a card has there"),
        ("---\nmodel-index: none\n---\n", "model-index in its metadata is not a list"),
        ("---\nmodel-index:\n- name: x\n  results: {a: 1}\n---\n", "results in its model-index"),
        ("---\nmodel-index:\n- name: x\n  results:\n  - 1\n---\n", "results in its model-index"),
        ("---\nmodel-index:\n- name: x\n  results:\n  - task: 1\n---\n", "model_index"),
    ],
)
def test_broken_metadata_is_one_clear_error_and_the_file_stays(
    text: str, said: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "README.md", text)
    with pytest.raises(ValueError, match=said) as caught:
        add_exposure_to_card(path, measured())
    assert str(path) in str(caught.value) and "is left as it was" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == text


def test_what_is_no_text_and_what_was_not_measured_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        add_exposure_to_card(path, measured())
    for nothing in (None, Exposures([])):
        with pytest.raises(ValueError, match="nothing was measured"):
            add_exposure_to_card(tmp_path / "new.md", nothing)
    assert not (tmp_path / "new.md").exists()


def test_a_full_disk_leaves_the_card_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "README.md", OTHERS)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        add_exposure_to_card(path, measured())
    assert path.read_text() == OTHERS and [p.name for p in tmp_path.iterdir()] == ["README.md"]


# The card of a canary set


def test_a_canary_sets_card_says_what_was_inserted_and_shows_no_secret() -> None:
    fmt = SecretFormat("a ` b\nc | {secret}", secret=r"\d{4}|x")
    canaries = Canaries.generate(fmt, repetitions=[0, 1, 8], per_repetition=2, seed=7)
    assert "not inserted yet" in canaries.card("me/set")
    canaries.record(Insertion("splice", "text", seed=11))
    text = canaries.card("me/set")
    assert "6 canaries: 2 never inserted, 2 inserted once, 2 inserted 8 times" in text
    assert (
        "seed: `7`" not in text
        and "seed: 7" not in text
        and "mode: `splice`, column: `text`, seed: `11`" in text
    )
    assert "`` a ` b\\nc | {secret} `` with `\\d{4}|x`" in text
    assert 'Canaries.from_hub("me/set")' in text and "Keep it private" in text
    assert not any(one.secret in text for one in canaries if len(one.secret) == 4)
    assert not card_errors(text, "dataset")
    shown = canaries.card("me/set", reveal=True)
    assert all(one.secret in shown for one in canaries)
    rows = [line for line in shown.splitlines() if line.startswith("| `")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3] * 6
    assert "together by hand" in CANARIES.card("me/set")


# The checks of the server that stands in for the Hub


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("tags: 3", "tags"),
        ("model-index:\n- results: []", "name"),
        ("model-index:\n- name: x\n  results:\n  - task: {type: t}", "dataset.type"),
        ("model-index: 3", "array"),
        (
            "model-index:\n- name: x\n  results:\n  - task: {type: t}\n    dataset: {type: d, "
            "name: D}\n    metrics: [{type: m, value: .nan}]",
            "finite",
        ),
        ("a: [", "YAML"),
    ],
)
def test_the_stand_ins_validation_refuses_what_is_wrong(metadata: str, said: str) -> None:
    assert any(said in error for error in card_errors(f"---\n{metadata}\n---\n", "model"))


def test_the_stand_ins_validation_takes_what_the_library_writes() -> None:
    one = EvalResult("t", "d", "D", "m", 0.5, task_name="T", dataset_args={"a": 1})
    data = ModelCardData(model_name="x", eval_results=[one], tags=["a"], license="mit")
    assert not card_errors(f"---\n{data.to_yaml()}\n---\ntext", "model")
