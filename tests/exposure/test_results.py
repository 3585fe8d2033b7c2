from __future__ import annotations

import html
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_exposure.canaries.canary import MASK, Canary, MaskedCanary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.records import Exposure, interval, short_label, show_rank
from hf_exposure.exposure.results import Exposures
from hf_exposure.utils.tables import plain_table
from tests.processes import python

NUMBER = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
NAME = SecretFormat("Call {secret} now & <then>!", secret=r"[a-z]{7}")


def exposure(canary: Canary, bits: float = 3.0, **given: Any) -> Exposure:
    rank = 2.0 ** (canary.format.bits - bits)
    usual: dict[str, Any] = {
        "low": bits - 0.5,
        "high": bits + 0.5,
        "rank": rank,
        "rank_low": rank / 2,
        "rank_high": rank * 2,
        "certified": bits / 2,
        "ties": 0,
        "exact": False,
        "log_perplexity": 20.25,
        "method": "auto",
        "p_value": 2.0**-bits,
    }
    return Exposure(canary, bits, **{**usual, **given})


CANARIES = Canaries(
    [
        Canary(NUMBER, "281265017", 8),
        Canary(NUMBER, "112358132", 1),
        Canary(NAME, "xqzwvkj", 0, planned=4),
        Canary(NUMBER, "314159265", 8),
        Canary(NAME, "jkvwzqx", 0),
    ]
)
SECRETS = [canary.secret for canary in CANARIES]
BITS = [9.0, 2.0, 0.5, 4.0]


def make(**given: Any) -> Exposures:
    """All but the last one measured, with all that a measurement may hold."""
    options: dict[str, Any] = {
        "forwards": 1234,
        "seconds": 1.23456,
        "settings": {"method": "auto", "confidence": 0.9, "seed": 0, "a": [1, 2.5]},
        "formats": {NUMBER: FormatDetails(references=np.array([20.5, 21.0, math.inf]))},
        "skipped": [(CANARIES[4], "it is longer than the context")],
    }
    items = [exposure(canary, bits) for canary, bits in zip(list(CANARIES)[:4], BITS, strict=True)]
    return Exposures(items, **{**options, **given})


def contents(exposures: Exposures) -> Any:
    return (
        list(exposures),
        exposures.forwards,
        exposures.seconds,
        exposures.settings,
        {fmt: found.to_dict() for fmt, found in exposures.formats.items()},
        exposures.skipped,
    )


def test_it_is_a_sequence_in_the_order_of_the_set() -> None:
    exposures = make()
    assert len(exposures) == 4
    assert [item.canary for item in exposures] == list(CANARIES)[:4]
    assert exposures[0].bits == 9.0 and exposures[-1].bits == 4.0
    assert [item.bits for item in exposures[1:3]] == [2.0, 0.5]
    assert exposures.confidence == 0.9


# Figures to log


def test_metrics_are_means_over_repetition_groups_and_the_inserted_ones() -> None:
    assert make().metrics() == {
        "eval_exposure": 5.0,  # (9 + 2 + 4) / 3, the control group left out
        "eval_exposure_max": 9.0,
        "eval_exposure_x0": 0.5,
        "eval_exposure_x1": 2.0,
        "eval_exposure_x8": 6.5,
        "eval_exposure_forwards": 1234,
        "eval_exposure_runtime": 1.2346,
    }


def test_metrics_of_controls_alone_have_no_mean_over_inserted_ones() -> None:
    controls = Exposures([exposure(CANARIES[2], 0.5)])
    assert set(controls.metrics("")) == {"exposure_x0", "exposure_forwards", "exposure_runtime"}
    assert set(Exposures([]).metrics("test_")) == {
        "test_exposure_forwards",
        "test_exposure_runtime",
    }


def test_groups_come_with_the_fewest_repetitions_first() -> None:
    groups = make().by_repetitions()
    assert list(groups) == [0, 1, 8]
    assert [item.bits for item in groups[8]] == [9.0, 4.0]


# Secrets


def outputs(exposures: Exposures, folder: Path) -> dict[str, str]:
    """Everything that is shown or written."""
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(exposures, *exposures, *exposures.skipped)
    return {
        "str": str(exposures),
        "repr": repr(exposures),
        "format": f"{exposures}",
        "item": repr(exposures[0]) + str(exposures[2]),
        "list": repr(list(exposures)) + repr(exposures.skipped),
        "html": exposures._repr_html_(),
        "rich": console.export_text(),
        "pandas": exposures.to_pandas().to_csv(),
        "json": exposures.save(folder / "exposures.json").read_text(),
        "dict": repr(exposures.to_dict()),
    }


def test_no_secret_is_in_anything_shown_or_written(tmp_path: Path) -> None:
    for where, text in outputs(make(), tmp_path).items():
        assert not any(secret in text for secret in SECRETS), where
    assert MASK * 9 in str(make()) and "281265017" not in str(make())


def test_secrets_are_shown_where_they_are_asked_for(tmp_path: Path) -> None:
    exposures = make()
    measured = SECRETS[:4]
    for text in (
        exposures.to_pandas(reveal=True).to_csv(),
        repr(exposures.cells(reveal=True)),
        exposures.save(tmp_path / "a.json", reveal=True).read_text(),
    ):
        assert all(secret in text for secret in measured)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda data: data.update(kind="history"),
        lambda data: data.update(schema_version=99),
        lambda data: data.pop("formats"),
        lambda data: data["exposures"][0].pop("bits"),
        lambda data: data["exposures"][0].update(format=7),
        lambda data: data["exposures"][0].update(secret="28126501x"),
        lambda data: data["exposures"][0].update(repetitions="281265017"),
        lambda data: data.update(exposures=None),
        lambda data: data.update(exposures=[["281265017"]]),
        lambda data: data["formats"][0].update(details=[1.0]),
        lambda data: data["formats"][0]["details"].update(unknown=1),
        lambda data: data.update(settings=3),
        lambda data: data["skipped"][0].pop("why"),
    ],
)
def test_a_file_that_is_wrong_gives_one_error_with_its_path_and_no_secret(
    tmp_path: Path, break_it: Any
) -> None:
    data = make().to_dict(reveal=True)
    break_it(data)
    path = tmp_path / "exposures.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"Exposures\.load.*exposures\.json") as caught:
        Exposures.load(path)
    assert not any(secret[:8] in str(caught.value) for secret in SECRETS)


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b"3", b'"exposures"', b"null"])
def test_a_file_of_something_else_gives_one_error_with_its_path(
    tmp_path: Path, text: bytes
) -> None:
    path = tmp_path / "exposures.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=r"exposures\.json"):
        Exposures.load(path)


def test_what_cannot_be_parsed_is_not_carried_along_by_the_error(tmp_path: Path) -> None:
    path = make().save(tmp_path / "exposures.json", reveal=True)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match="not valid JSON") as caught:
        Exposures.load(path)
    assert caught.value.__cause__ is None
    assert not hasattr(caught.value, "doc")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Exposures.load(tmp_path / "none.json")


# Files


def test_a_file_with_secrets_gives_everything_back(tmp_path: Path) -> None:
    exposures = make()
    loaded = Exposures.load(exposures.save(tmp_path / "exposures.json", reveal=True))
    assert contents(loaded) == contents(exposures)
    assert loaded.to_dict(reveal=True) == exposures.to_dict(reveal=True)


def test_a_file_without_secrets_gives_all_else_back(tmp_path: Path) -> None:
    exposures = make()
    loaded = Exposures.load(exposures.save(tmp_path / "exposures.json"))
    assert str(loaded) == str(exposures)
    assert loaded.to_dict() == exposures.to_dict() == loaded.to_dict(reveal=True)
    assert loaded.metrics() == exposures.coarse().metrics()
    assert loaded.to_pandas(reveal=True).equals(exposures.to_pandas())
    first = loaded[0].canary
    assert first == MaskedCanary(NUMBER, 9, 8, None) and first.inserted
    assert first.secret == MASK * 9 and first.label(reveal=True) == CANARIES[0].label()


def test_the_canary_set_gives_masked_canaries_their_secrets_back(tmp_path: Path) -> None:
    exposures = make()
    path = exposures.save(tmp_path / "exposures.json")
    assert contents(Exposures.load(path, CANARIES)) == contents(exposures.coarse())
    # Of several that look alike when masked, each keeps its place.
    assert [e.canary.secret for e in Exposures.load(path, CANARIES)] == SECRETS[:4]


@pytest.mark.parametrize(
    "others",
    [
        Canaries(list(CANARIES)[:4]),
        Canaries([*CANARIES, Canary(NUMBER, "000000000", 8)]),
        Canaries([*list(CANARIES)[:4], Canary(NAME, "jkvwzqx", 1)]),
    ],
    ids=["fewer", "more", "other repetitions"],
)
def test_another_canary_set_is_refused(tmp_path: Path, others: Canaries) -> None:
    path = make().save(tmp_path / "exposures.json")
    with pytest.raises(ValueError, match=r"other canaries|not in it"):
        Exposures.load(path, others)


def test_another_set_that_looks_alike_is_refused_where_the_file_knows_better(
    tmp_path: Path,
) -> None:
    path = make().save(tmp_path / "exposures.json", reveal=True)
    others = Canaries([*list(CANARIES)[:4], Canary(NAME, "aaaaaaa", 0)])
    with pytest.raises(ValueError, match="other canaries") as caught:
        Exposures.load(path, others)
    assert "aaaaaaa" not in str(caught.value) and "jkvwzqx" not in str(caught.value)


def test_infinities_and_nan_survive_a_file_that_is_valid_json(tmp_path: Path) -> None:
    extreme = exposure(
        CANARIES[0], 0.0, log_perplexity=math.inf, raw_bits=-math.inf, certified=math.nan
    )
    exposures = Exposures(
        [extreme],
        settings={"fit": {"loc": math.nan, "range": [math.inf, 1]}},
        formats={NUMBER: FormatDetails(references=np.array([1.0, math.inf]), tie_bits=math.nan)},
    )
    path = exposures.save(tmp_path / "exposures.json", reveal=True)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    loaded = Exposures.load(path)
    assert loaded[0].log_perplexity == math.inf and loaded[0].raw_bits == -math.inf
    assert math.isnan(loaded[0].certified) and math.isnan(loaded.settings["fit"]["loc"])
    assert loaded.settings["fit"]["range"] == [math.inf, 1]
    assert loaded.references[NUMBER].tolist() == [1.0, math.inf]
    assert math.isnan(loaded.formats[NUMBER].tie_bits)


@settings(max_examples=50)
@given(numbers=st.lists(st.floats(allow_nan=False), min_size=10, max_size=10), ties=st.integers(0))
def test_every_number_survives_a_file(numbers: list[float], ties: int) -> None:
    names = [
        "low",
        "high",
        "rank",
        "rank_low",
        "rank_high",
        "certified",
        "log_perplexity",
        "p_value",
        "raw_bits",
    ]
    figures = dict(zip(names, numbers[:9], strict=True))
    one = replace(exposure(CANARIES[0]), **figures, bits=numbers[9], ties=ties)
    data = json.loads(json.dumps(Exposures([one]).to_dict(reveal=True), allow_nan=False))
    assert list(Exposures.from_dict(data)) == [one]


KILLED = """
import os, sys
from hf_exposure.exposure.results import Exposures
loaded = Exposures.load(sys.argv[1])
loaded.forwards = 999_999
setattr(os, sys.argv[2], lambda *args: os._exit(9))  # as if killed at this call
loaded.save(sys.argv[1], overwrite=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_while_writing_it_leaves_the_old_file_whole(tmp_path: Path, moment: str) -> None:
    path = make().save(tmp_path / "exposures.json")
    before = path.read_bytes()
    done = python(["-c", KILLED, path, moment])
    assert done.returncode == 9, done.stderr
    assert path.read_bytes() == before
    assert Exposures.load(path).forwards == 1200


# The base model beside


def test_gained_is_the_difference_canary_by_canary_in_any_order() -> None:
    after = make()
    before = Exposures(
        [
            exposure(item.canary, bits)
            for item, bits in zip(reversed(after), [1.0, 0.25, 2.5, 8.0], strict=True)
        ]
    )
    assert after.gained(before) == [9.0 - 8.0, 2.0 - 2.5, 0.5 - 0.25, 4.0 - 1.0]
    assert before.gained(after) == [-3.0, -0.25, 0.5, -1.0]
    assert after.gained(after) == [0.0] * 4


def test_masked_canaries_that_look_alike_keep_their_order(tmp_path: Path) -> None:
    loaded = Exposures.load(make().save(tmp_path / "exposures.json"))
    assert loaded.gained(loaded) == [0.0] * 4  # two of them are equal when masked


@pytest.mark.parametrize("places", [[0, 1, 2], [0, 1, 2, 3, 3], [0, 1, 2, 2], []])
def test_exposures_of_other_canaries_are_refused_as_a_base(places: list[int]) -> None:
    after = make()
    base = Exposures([after[place] for place in places])
    with pytest.raises(ValueError, match="measure both models with the same canaries") as caught:
        after.gained(base)
    assert not any(secret in str(caught.value) for secret in SECRETS)
    with pytest.raises(ValueError, match="same canaries"):
        after.beside(base)


def test_the_table_has_the_base_beside_and_masks_what_it_masked(tmp_path: Path) -> None:
    after = make()
    before = Exposures([exposure(item.canary, 0.5) for item in after], forwards=77)
    beside = after.beside(before)
    headings, rows = beside.cells()
    assert headings[-2:] == ["base", "gained"]
    assert [row[-2:] for row in rows] == [
        ["0.5", "+8.5"],
        ["0.5", "+1.5"],
        ["0.5", "+0.0"],
        ["0.5", "+3.5"],
    ]
    assert [row[:4] for row in rows] == [row[:4] for row in after.cells()[1]]
    assert "base model 77 token-forwards" in str(beside)
    for text in (str(beside), repr(beside), beside._repr_html_()):
        assert not any(secret in text for secret in SECRETS)
    assert SECRETS[0] in repr(beside.cells(reveal=True))


# Tables


def test_the_table_has_a_row_for_each_canary_under_its_headings() -> None:
    lines = str(make()).splitlines()
    assert lines[0].split()[:2] == ["#", "canary"] and "90% interval" in lines[0]
    assert [line.split()[0] for line in lines[1:-2]] == ["0", "1", "2", "3"]
    assert len(lines) == 1 + 4 + 2
    assert re.search(rf"…is {MASK * 9}\. +8 +9\.0 +8\.5–9\.5 +~\S+ +20\.0$", lines[1])
    assert "at most 29.9 or 32.9; method auto, 1,200 token-forwards in 1.2 s" in lines[-2]
    assert "1 canary could not be scored: it is longer than the context" in lines[-2]
    assert re.fullmatch(r"\d of \d inserted canaries detected .*at 1 % false positives", lines[-1])


def test_exact_figures_are_shown_as_such() -> None:
    bits = NUMBER.bits - math.log2(123456)
    sure = exposure(CANARIES[0], bits, low=bits, high=bits, exact=True)
    tied = replace(sure, low=2.0, high=13.5, ties=3)
    _, rows = Exposures([sure, tied]).cells(reveal=True)
    assert [row[4:6] for row in rows] == [["exact", "123,456"], ["2.0–13.5", "123,456"]]
    # A rank to the last digit is as good as the secret, for those who have the model.
    _, rows = Exposures([sure, tied]).cells()
    assert [row[4:6] for row in rows] == [["exact", "~120,000"], ["2.0–13.5", "~120,000"]]


def test_bounds_are_not_shown_as_estimates() -> None:
    bound = exposure(CANARIES[0], 3.0, rank=NUMBER.size / 8)
    sure = replace(bound, exact=True, low=3.0, high=3.0)
    shown = Exposures([bound, sure], formats={NUMBER: FormatDetails(samples=0)})
    assert [row[3] for row in shown.cells()[1]] == ["≥3.0", "3.0"]
    assert [row[5] for row in shown.cells()[1]] == ["≤1.3e+08", "~1.3e+08"]
    assert "≥: nothing was drawn" in shown.summary()
    drawn = Exposures([bound], formats={NUMBER: FormatDetails(samples=20)})
    assert drawn.cells()[1][0][3] == "3.0" and "≥" not in str(drawn)


def test_a_set_without_a_record_of_its_insertion_is_told_of() -> None:
    item = exposure(CANARIES[0])
    assert "not on record" in Exposures([item], settings={"inserted": False}).summary()
    for known in ({"inserted": True}, {}):  # files of former versions do not say
        assert "not on record" not in Exposures([item], settings=known).summary()


@pytest.mark.parametrize(
    ("rank", "exact", "shown"),
    [
        (1.0, True, "1"),
        (1234567.0, True, "1,234,567"),
        (1.25, False, "~1.2"),
        (99.44, False, "~99.4"),
        (12345.4, False, "~12,345"),
        (1.23456e9, False, "~1.2e+09"),
        (math.inf, False, "~inf"),
    ],
)
def test_ranks_are_shown_as_precisely_as_they_are_known(
    rank: float, exact: bool, shown: str
) -> None:
    assert show_rank(rank, exact) == shown


def test_intervals_have_one_decimal() -> None:
    assert interval(1.25, 30) == "1.2–30.0"


def test_columns_line_up_for_scripts_of_double_width() -> None:
    table = plain_table(["名", "n"], [["ab", "1"], ["数字数字", "22"]], right={1})
    assert table.splitlines() == ["名         n", "ab         1", "数字数字  22"]


def test_html_is_escaped() -> None:
    shown = make()._repr_html_()
    assert "<then>" not in shown
    assert html.escape(short_label(CANARIES[2])) in shown
    assert shown.count("<tr>") == 5


def test_long_templates_are_cut_in_tables_and_whole_in_data_frames() -> None:
    template = "It is well known\nto everybody here that {secret}, and many other things"
    fmt = SecretFormat(template, secret=r"[0-9]{4}")
    exposures = Exposures([exposure(Canary(fmt, "1234", 1))])
    cell = exposures.cells()[1][0][1]
    assert cell.startswith("…") and MASK * 4 + ", and" in cell and "\n" not in cell
    assert exposures.cells(reveal=True)[1][0][1] == cell.replace(MASK * 4, "1234")
    assert exposures.to_pandas()["canary"][0] == fmt.render(MASK * 4)


def test_the_data_frame_has_every_figure_under_its_own_name() -> None:
    frame = make().to_pandas()
    assert list(frame["bits"]) == BITS
    assert list(frame["repetitions"]) == [8, 1, 0, 8]
    assert list(frame["expression"]) == ["[0-9]{9}", "[0-9]{9}", "[a-z]{7}", "[0-9]{9}"]
    assert list(frame["template"]) == [c.format.template for c in list(CANARIES)[:4]]
    for name in (
        "low",
        "high",
        "rank",
        "rank_low",
        "rank_high",
        "certified",
        "ties",
        "exact",
        "log_perplexity",
        "method",
        "p_value",
        "raw_bits",
    ):
        assert name in frame.columns
    assert np.all(frame["rank_low"] < frame["rank"])
    assert list(Exposures([]).to_pandas().columns) == list(frame.columns)


def test_an_empty_result_prints_too() -> None:
    empty = Exposures([])
    assert str(empty).splitlines()[-1] == "exposure in bits; 0 token-forwards in 0.0 s"
    assert repr(empty).startswith("<Exposures: ")
    assert Exposures.from_dict(empty.to_dict()).to_dict() == empty.to_dict()
