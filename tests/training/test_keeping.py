"""The history of a training: in its checkpoints, and in a file that grows."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from hf_exposure.exposure.history import HISTORY_FILE, History, Measurement
from hf_exposure.training.keeping import HistoryKeeper, set_aside
from tests.exposure.test_history import CANARIES as SOME
from tests.exposure.test_history import measurement
from tests.training.test_callback import CANARIES, figures, make_trainer, quick, text_of_strings

SHORT: dict[str, Any] = {
    "save_strategy": "steps",
    "save_steps": 2,
    "max_steps": 4,
    "lr_scheduler_type": "constant",
}


def steps(history: History) -> list[int]:
    return [item.step for item in history]


def old_files(folder: Path) -> dict[str, list[int]]:
    return {path.name: steps(History.load(path)) for path in folder.glob(f"{HISTORY_FILE}.old*")}


# A training that is resumed


@pytest.mark.slow
def test_a_checkpoint_that_was_moved_renamed_and_left_alone_has_its_history(tmp_path: Path) -> None:
    whole, first, again = quick(), quick(), quick()
    make_trainer(tmp_path / "whole", whole, **SHORT | {"max_steps": 6}).train()
    make_trainer(tmp_path / "a", first, **SHORT).train()
    (tmp_path / "kept").mkdir()
    (tmp_path / "a" / "checkpoint-4").rename(tmp_path / "kept" / "the best one")
    shutil.rmtree(tmp_path / "a")
    trainer = make_trainer(tmp_path / "b", again, **SHORT | {"max_steps": 6})
    trainer.train(resume_from_checkpoint=str(tmp_path / "kept" / "the best one"))
    assert steps(again.history) == [2, 4, 6]
    assert figures(again.history.coarse(), {"loss"}) == figures(whole.history.coarse(), {"loss"})
    loaded = History.load(tmp_path / "b" / HISTORY_FILE, CANARIES)
    assert figures(loaded) == figures(again.history.coarse())
    # And from its own checkpoints once more, with those of old ones gone.
    last = quick()
    trainer = make_trainer(tmp_path / "c", last, **SHORT | {"max_steps": 8, "save_total_limit": 1})
    trainer.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-6"))
    assert steps(last.history) == [2, 4, 6, 8]


@pytest.mark.slow
def test_the_history_is_that_of_the_checkpoint_and_not_of_what_came_after_it(
    tmp_path: Path,
) -> None:
    options = SHORT | {"max_steps": 6, "metric_for_best_model": "eval_loss"}
    options |= {"load_best_model_at_end": True, "restore_callback_states_from_checkpoint": True}
    make_trainer(tmp_path, quick(), **options).train()
    before = (tmp_path / HISTORY_FILE).read_text()
    again = quick()
    trainer = make_trainer(tmp_path, again, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert steps(again.history) == [2, 4, 6]
    # What the first run has measured after the checkpoint is not lost.
    assert (tmp_path / f"{HISTORY_FILE}.old").read_text() == before


def test_a_checkpoint_holds_no_secret(tmp_path: Path) -> None:
    make_trainer(tmp_path, quick(), **SHORT | {"max_steps": 2}).train()
    stored = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    (line,) = stored["stateful_callbacks"]["hf_exposure"]["history"]
    shown = text_of_strings(json.loads(line))
    assert not any(canary.secret in shown for canary in CANARIES)


def test_a_checkpoint_of_a_training_without_the_callback_is_told_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(tmp_path, **SHORT | {"max_steps": 2}).train()
    callback = quick()
    with caplog.at_level(logging.INFO, logger="hf_exposure"):
        make_trainer(tmp_path, callback, **SHORT).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )
    assert steps(callback.history) == [4]
    assert "holds no history" in caplog.text


def test_the_log_of_the_library_is_quiet_unless_it_is_asked_for() -> None:
    logger = logging.getLogger("hf_exposure")
    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
    assert logger.level == logging.NOTSET


# Several trainings in one folder


@pytest.mark.slow
def test_a_second_and_third_training_in_a_folder_erase_nothing(tmp_path: Path) -> None:
    for count in range(3):
        callback = quick(every_n_steps=1)
        trainer = make_trainer(
            tmp_path, callback, eval_strategy="no", eval_dataset=None, max_steps=count + 1
        )
        trainer.train()
    trainer.train()  # the same one once more
    assert old_files(tmp_path) == {
        f"{HISTORY_FILE}.old": [1],
        f"{HISTORY_FILE}.old2": [1, 2],
        f"{HISTORY_FILE}.old3": [1, 2, 3],
    }
    assert steps(History.load(tmp_path / HISTORY_FILE)) == [1, 2, 3]


@pytest.mark.parametrize("linked", [True, False])
def test_a_file_that_is_set_aside_replaces_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    if not linked:

        def refuse(*args: Any) -> None:
            raise OSError("no links here")

        monkeypatch.setattr("os.link", refuse)
    path = tmp_path / "history.json"
    for number in range(4):
        path.write_text(f"unreadable {number}")
        set_aside(path)
    assert not path.exists()
    names = ["history.json.old", *(f"history.json.old{number}" for number in (2, 3, 4))]
    assert [(tmp_path / name).read_text() for name in names] == [
        f"unreadable {number}" for number in range(4)
    ]


# The file


def grown(path: Path, items: list[Measurement]) -> HistoryKeeper:
    """A file to which measurements were added, and each once changed."""
    keeper = HistoryKeeper(SOME)
    for item in items:
        keeper.history.append(Measurement(item.step, item.exposures))
        keeper.write(path)
        keeper.history.append(item)
        keeper.write(path)
        # It is JSON after each write.
        assert steps(History.load(path, SOME)) == steps(keeper.history)
    return keeper


def test_a_file_that_grew_is_the_one_that_is_written_at_once(tmp_path: Path) -> None:
    items = [measurement(step, metrics={"naïve": 1.0 / step}) for step in (2, 4, 6, 8)]
    keeper = grown(tmp_path / "grown.json", items)
    keeper.history.save(tmp_path / "whole.json", overwrite=True)
    assert (tmp_path / "grown.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    # One that gets shorter too, as after a measurement with less to tell.
    keeper.history.append(Measurement(8, items[-1].exposures))
    keeper.write(tmp_path / "grown.json")
    keeper.history.save(tmp_path / "whole.json", overwrite=True)
    assert (tmp_path / "grown.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_file_cut_off_anywhere_in_its_last_line_still_gives_the_others(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    items = [measurement(step, metrics={"naïve": 1.0}) for step in (2, 4, 6)]
    grown(path, items)
    data = path.read_bytes()
    begin = data.index(b'{"step": 6')
    for end in range(begin, len(data) - len(b"\n]}\n"), 7):
        path.write_bytes(data[:end])
        assert steps(History.load(path, SOME)) == [2, 4]
    path.write_bytes(data[: data.index(b'"kind"')])
    with pytest.raises(ValueError, match=r"history\.json"):
        History.load(path)


def test_a_file_that_somebody_else_changed_or_removed_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    keeper = grown(path, [measurement(2)])
    for change in (path.unlink, lambda: path.write_text("something else")):
        change()
        keeper.history.append(measurement(keeper.history[-1].step + 2))
        keeper.write(path)
        assert steps(History.load(path)) == steps(keeper.history)


def test_a_write_that_fails_half_way_is_made_good_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.json"
    keeper = grown(path, [measurement(2)])
    keeper.history.append(measurement(4))
    keeper.put_into(TrainerState())

    def fails(path: Path, *args: Any) -> int:
        with open(path, "ab") as file:
            file.write(b'{"half a li')
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("hf_exposure.training.keeping._grow", fails)
        with pytest.raises(OSError, match="no space"):
            keeper.write(path)
    keeper.write(path)
    assert steps(History.load(path)) == [2, 4]


# A training that is interrupted


class Interrupts(TrainerCallback):
    def __init__(self, event: str) -> None:
        def interrupt(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        setattr(self, event, interrupt)


@pytest.mark.parametrize("event", ["on_substep_end", "on_evaluate", "on_prediction_step"])
def test_an_interrupted_training_leaves_nothing_behind(tmp_path: Path, event: str) -> None:
    callback = quick()
    trainer = make_trainer(
        tmp_path, callback, Interrupts(event), gradient_accumulation_steps=2, max_steps=4
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    hooks = [h for part in trainer.model.modules() for h in part._forward_pre_hooks.values()]
    assert not hooks
    before = len(callback.history)
    trainer.remove_callback(Interrupts)
    trainer.evaluate()
    # What is measured after a training is not part of its history.
    assert len(callback.history) == before or trainer.state.global_step == 0


def test_an_interrupted_measurement_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_exposure.exposure.ranking.explore", interrupt)
    trainer = make_trainer(tmp_path, quick(), max_steps=2)
    with pytest.raises(KeyboardInterrupt), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    assert not trainer.model._forward_pre_hooks
