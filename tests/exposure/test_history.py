from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.history import History, Measurement
from hf_exposure.exposure.results import Exposures
from tests.exposure.test_results import exposure

NUMBER = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
CANARIES = Canaries([Canary(NUMBER, "281265017", 8), Canary(NUMBER, "112358132", 0)])


def measurement(step: int, forwards: int = 50, **given: Any) -> Measurement:
    bits = float(step)
    exposures = Exposures([exposure(canary, bits) for canary in CANARIES], forwards=forwards)
    options: dict[str, Any] = {"epoch": step / 10, "tokens": 1000 * step}
    return Measurement(step, exposures, **{**options, **given})


def history(*steps: int) -> History:
    return History(measurement(step, metrics={"eval_loss": 1.0 / step}) for step in steps)


def steps(items: History) -> list[int]:
    return [item.step for item in items]


def test_it_is_a_sequence_of_measurements() -> None:
    three = history(2, 4, 6)
    assert len(three) == 3 and three[1].step == 4 and three[-1].step == 6
    assert isinstance(three[1:], History) and steps(three[1:]) == [4, 6]
    assert repr(three) == "<History of 3 measurements: steps 2 to 6>"
    assert repr(History()) == "<History of 0 measurements: empty>"


@pytest.mark.parametrize(
    ("step", "expected"), [(8, [2, 4, 6, 8]), (6, [2, 4, 6]), (4, [2, 4]), (3, [2, 3]), (1, [1])]
)
def test_a_new_measurement_replaces_those_at_its_step_and_later(
    step: int, expected: list[int]
) -> None:
    items = history(2, 4, 6)
    new = measurement(step, forwards=7)
    items.append(new)
    assert steps(items) == expected
    assert items[-1] is new


def test_it_can_be_cut_at_a_step() -> None:
    items = history(2, 4, 6)
    assert [steps(items.upto(step)) for step in (1, 4, 5, 6)] == [[], [2, 4], [2, 4], [2, 4, 6]]
    assert steps(items) == [2, 4, 6]


def test_the_share_is_forwards_for_each_token_trained_on() -> None:
    items = history(2, 4)
    assert items.forwards == 100
    assert items.share == 100 / 4000
    assert History().share is None
    assert History([measurement(0, tokens=0)]).share is None
    assert History([measurement(1, tokens=None)]).share is None


def test_a_file_with_secrets_gives_everything_back(tmp_path: Path) -> None:
    items = history(2, 4)
    loaded = History.load(items.save(tmp_path / "history.json", reveal=True))
    assert loaded.to_dict(reveal=True) == items.to_dict(reveal=True)
    assert loaded[1].metrics == {"eval_loss": 0.25}
    assert (loaded[1].epoch, loaded[1].tokens) == (0.4, 4000)
    assert list(loaded[1].exposures) == list(items[1].exposures)


def test_a_file_has_no_secret_and_the_set_gives_them_back(tmp_path: Path) -> None:
    items = history(2, 4)
    path = items.save(tmp_path / "history.json")
    shown = [path.read_text(), repr(items), items.to_pandas().to_csv(), repr(list(items))]
    assert not any(canary.secret in text for canary in CANARIES for text in shown)
    loaded = History.load(path, CANARIES)
    assert loaded.to_dict(reveal=True) == items.coarse().to_dict(reveal=True)
    with pytest.raises(ValueError, match=r"history\.json.*not in it") as caught:
        History.load(path, Canaries([*CANARIES, Canary(NUMBER, "999999999", 8)]))
    assert "999999999" not in str(caught.value)


def test_a_loss_that_is_not_finite_survives_a_file_that_is_valid_json(tmp_path: Path) -> None:
    items = History([measurement(1, metrics={"eval_loss": math.inf, "loss": math.nan})])
    path = items.save(tmp_path / "history.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    metrics = History.load(path)[0].metrics
    assert metrics["eval_loss"] == math.inf and math.isnan(metrics["loss"])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not valid JSON"),
        ("[]", "does not hold history"),
        ('{"kind": "exposures"}', "does not hold history"),
        ('{"kind": "history", "schema_version": 9}', "schema_version=9"),
        ('{"kind": "history", "schema_version": 1}', "'measurements' is missing"),
        ('{"kind": "history", "schema_version": 1, "measurements": 3}', "not what it should be"),
        ('{"kind": "history", "schema_version": 1, "measurements": [{}]}', "is missing"),
        ('{"kind": "history", "schema_version": 1, "measurements": ["a"]}', "should be"),
    ],
)
def test_a_file_of_something_else_gives_one_error_with_its_path(
    tmp_path: Path, text: str, match: str
) -> None:
    path = tmp_path / "history.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"History\.load: .*history\.json.*{match}"):
        History.load(path)


def test_the_data_frame_has_a_row_for_each_canary_and_step() -> None:
    frame = history(2, 4).to_pandas()
    assert list(frame["step"]) == [2, 2, 4, 4]
    assert list(frame["epoch"]) == [0.2, 0.2, 0.4, 0.4]
    assert list(frame["bits"]) == [2.0, 2.0, 4.0, 4.0]
    assert list(frame["repetitions"]) == [8, 0, 8, 0]


def test_data_frames_of_measurements_without_an_epoch_can_be_joined() -> None:
    items = History([measurement(0, epoch=None), measurement(2)])
    frame = items.to_pandas()
    assert len(frame) == 4
    assert frame["epoch"].isna().tolist() == [True, True, False, False]
    assert len(History().to_pandas()) == 0


@pytest.mark.parametrize("kind", [History, Exposures])
def test_a_file_that_is_not_there_or_not_of_that_kind_is_named_with_the_way_out(
    kind: type[History | Exposures], tmp_path: Path
) -> None:
    name = kind.__name__
    wanted = rf"^{name}\.load: there is no file '.*nope\.json'; give the file that {name}\.save"
    with pytest.raises(FileNotFoundError, match=wanted):
        kind.load(tmp_path / "nope.json")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        kind([]).save(tmp_path)
    fmt = SecretFormat("My code is {secret}.", secret="[0-9]{4}")
    path = Canaries([Canary(fmt, "1234")]).save(tmp_path / "canaries.json")
    with pytest.raises(ValueError, match="it is a manifest of canaries") as caught:
        kind.load(path)
    assert "1234" not in str(caught.value)
