from __future__ import annotations

import copy
import json
import math
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import CallbackHandler

import hf_exposure.training.events as happening
import hf_exposure.training.keeping as keeping
import hf_exposure.training.measuring as module
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.injection import inject_canaries
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.history import HISTORY_FILE, History
from hf_exposure.exposure.measure import BudgetError, measure_exposure
from hf_exposure.exposure.records import short_label
from hf_exposure.reports.plots import plot_log_perplexities
from hf_exposure.training.callback import ExposureCallback
from hf_exposure.training.measuring import Meter, TokenCounter
from hf_exposure.training.trainer import evaluation_in, find_trainer
from tests.processes import launched
from tests.selection import rest_slow
from tests.tiny import TOKENIZERS, corpus, llama

TOKENIZER = TOKENIZERS["digits_one_by_one"]()
NUMBER = SecretFormat("The random number is {secret}.", secret=r"[0-9]{4}")
CANARIES = Canaries.generate(NUMBER, repetitions=[0, 1, 8], per_repetition=2, seed=3)
KEYS = [
    "eval_exposure",
    "eval_exposure_max",
    "eval_exposure_x0",
    "eval_exposure_x1",
    "eval_exposure_x8",
    "eval_tpr",
    "eval_tpr_x0",
    "eval_tpr_x1",
    "eval_tpr_x8",
    "eval_exposure_forwards",
    "eval_exposure_runtime",
]
LENGTH = 16
BEST: dict[str, Any] = {"metric_for_best_model": "eval_exposure", "greater_is_better": False}


def make_rows() -> list[dict[str, torch.Tensor]]:
    ids: list[int] = []
    for line in [*corpus()[:40], *(c.text for c in CANARIES for _ in range(c.repetitions))]:
        ids += TOKENIZER(line)["input_ids"]
    blocks = [torch.tensor(ids[i : i + LENGTH]) for i in range(0, len(ids) - LENGTH, LENGTH)]
    return [{"input_ids": block, "labels": block} for block in blocks]


ROWS = make_rows()


class Plain(TrainerCallback):
    """Notes the events that it is called for."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            self.events.append(name)
        return super().__getattribute__(name)


def make_trainer(
    folder: Path,
    *callbacks: TrainerCallback,
    model: Any = None,
    kind: type[Trainer] = Trainer,
    eval_dataset: Any = "some",
    processing_class: Any = TOKENIZER,
    trainer_options: dict[str, Any] | None = None,
    **options: Any,
) -> Trainer:
    """A Trainer that evaluates at every second of 6 steps, on a model with dropout."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 3e-3,
        "report_to": "none",
    }
    return kind(
        model=model or llama(len(TOKENIZER), attention_dropout=0.3, num_hidden_layers=1),
        args=TrainingArguments(**{**settings, **options}),
        train_dataset=ROWS,
        eval_dataset=ROWS[:4] if eval_dataset == "some" else eval_dataset,
        processing_class=processing_class,
        callbacks=list(callbacks),
        **(trainer_options or {}),
    )


def quick(**options: Any) -> ExposureCallback:
    return ExposureCallback(CANARIES, **{"samples": 50, **options})


def logged(trainer: Trainer, key: str = "eval_exposure") -> dict[int, float]:
    """The figure at each step; an assertion sees to it that no step has two."""
    rows = [row for row in trainer.state.log_history if key in row]
    found = {int(row["step"]): row[key] for row in rows}
    assert len(found) == len(rows)
    return found


def board(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard would show."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventAccumulator(str(folder))
    files.Reload()
    return {
        tag: {event.step: event.value for event in files.Scalars(tag)}
        for tag in files.Tags()["scalars"]
    }


def figures(history: History, leave_out: frozenset[str] | set[str] = frozenset()) -> list[Any]:
    """All of a history that must be the same in the same training: times left out."""

    def timeless(entry: Any) -> Any:
        if isinstance(entry, dict):
            rest = {k: v for k, v in entry.items() if not (_clock(k) or k in leave_out)}
            return {key: timeless(value) for key, value in rest.items()}
        return [timeless(item) for item in entry] if isinstance(entry, list) else entry

    return timeless(history.to_dict(reveal=True)["measurements"])


def _clock(key: str) -> bool:
    # The time to prepare a model shows only in the first evaluation of a process.
    times = ("_runtime", "_per_second", "_model_preparation_time")
    return key == "seconds" or key.endswith(times)


@pytest.fixture
def board_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "board"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(folder))
    return folder


# Where the figures go


def test_one_row_reaches_the_log_the_print_tensorboard_and_the_return_value(
    tmp_path: Path, board_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = quick()
    trainer = make_trainer(tmp_path, callback, report_to="tensorboard")
    trainer.train()
    printed = capsys.readouterr().out.splitlines()
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    shown = board(board_folder)
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        assert set(KEYS) <= row.keys()
        line = next(line for line in printed if f"'{row['eval_loss']:.4g}'" in line)
        assert f"'eval_exposure': '{row['eval_exposure']:.4g}'" in line
        for key in KEYS:
            tag = "eval/" + key.removeprefix("eval_")
            assert shown[tag][row["step"]] == pytest.approx(row[key], rel=1e-6)
    # Nothing else in the log has them.
    assert list(logged(trainer)) == [2, 4, 6]
    returned = trainer.evaluate()
    assert set(KEYS) <= returned.keys()
    assert [item.step for item in callback.history] == [2, 4, 6]


@pytest.mark.slow
def test_figures_are_those_of_measure_exposure_on_the_same_weights(tmp_path: Path) -> None:
    callback = quick(max_forwards=900, seed=5)
    trainer = make_trainer(tmp_path, callback)
    trainer.train()
    again = measure_exposure(
        trainer.model, TOKENIZER, CANARIES, samples=50, max_forwards=900, seed=5
    )
    last = callback.history[-1]
    assert [e.bits for e in last.exposures] == [e.bits for e in again]
    shown = again.coarse()  # logs are shared
    groups = {times: np.mean([e.bits for e in g]) for times, g in shown.by_repetitions().items()}
    row = next(r for r in reversed(trainer.state.log_history) if "eval_exposure" in r)
    for times, mean in groups.items():
        assert row[f"eval_exposure_x{times}"] == pytest.approx(mean)
    assert row["eval_exposure"] == pytest.approx((groups[1] + groups[8]) / 2)
    assert row["eval_exposure_forwards"] == shown.forwards
    assert again.forwards == last.exposures.forwards


@pytest.mark.parametrize("ours_first", [True, False])
def test_best_model_and_early_stopping_see_the_figures_in_any_order(
    tmp_path: Path, ours_first: bool
) -> None:
    callback, stopping = quick(), EarlyStoppingCallback(early_stopping_patience=1)
    pair = [callback, stopping] if ours_first else [stopping, callback]
    trainer = make_trainer(
        tmp_path,
        *pair,
        max_steps=40,
        learning_rate=3e-2,
        save_strategy="steps",
        save_steps=2,
        metric_for_best_model="eval_exposure_x8",
        greater_is_better=False,
        load_best_model_at_end=True,
    )
    trainer.train()
    found = list(logged(trainer, "eval_exposure_x8").values())
    # It stops at the first figure that is no better than the best so far.
    worse = next(i for i in range(1, len(found)) if found[i] >= min(found[:i]))
    assert worse == len(found) - 1
    assert trainer.state.global_step < 40
    assert trainer.state.best_metric == min(found)


def test_a_trainer_whose_own_log_makes_a_new_dictionary_returns_the_figures(
    tmp_path: Path,
) -> None:
    class Other(Trainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            super().log({**logs, "mine": 1.0}, start_time)

    trainer = make_trainer(tmp_path, quick(), kind=Other, **BEST)
    trainer.train()
    assert list(logged(trainer)) == [2, 4, 6]
    assert set(KEYS) <= trainer.evaluate().keys()


def test_a_trainer_that_does_not_log_its_evaluations_returns_the_figures(tmp_path: Path) -> None:
    class Silent(Trainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            pass

    callback = quick()
    trainer = make_trainer(tmp_path, callback, kind=Silent, **BEST)
    trainer.train()
    assert [item.step for item in callback.history] == [2, 4, 6]
    assert "eval_loss" in callback.history[-1].metrics
    assert set(KEYS) <= trainer.evaluate().keys()


@pytest.mark.parametrize("given", [True, False])
def test_added_after_construction_it_reaches_every_tracker_too(
    tmp_path: Path, board_folder: Path, given: bool
) -> None:
    trainer = make_trainer(tmp_path, report_to="tensorboard")
    trainer.add_callback(quick(trainer=trainer) if given else quick())
    trainer.evaluate()
    trainer.train()
    shown = board(board_folder)["eval/exposure"]
    assert sorted(shown) == [0, 2, 4, 6]
    for step, value in logged(trainer).items():
        assert shown[step] == pytest.approx(value, rel=1e-6)


@pytest.mark.slow
def test_taking_the_first_place_leaves_no_other_callback_out(tmp_path: Path) -> None:
    def events(*callbacks: TrainerCallback, later: TrainerCallback | None = None) -> list[Any]:
        trainer = make_trainer(tmp_path, *callbacks, max_steps=2)
        if later is not None:
            trainer.add_callback(later)
        trainer.train()
        return [callback.events for callback in callbacks if isinstance(callback, Plain)]

    expected = events(Plain(), Plain())
    assert events(Plain(), quick(), Plain()) == expected
    assert events(Plain(), Plain(), later=quick()) == expected


def test_it_stands_first_from_the_beginning(tmp_path: Path) -> None:
    callback = quick()
    trainer = make_trainer(tmp_path, Plain(), callback, Plain())
    kinds = [type(each).__name__ for each in trainer.callback_handler.callbacks]
    assert trainer.callback_handler.callbacks[0] is callback
    assert kinds.count("ExposureCallback") == 1 and kinds.count("Plain") == 2


def test_a_handler_that_is_not_its_own_is_left_alone() -> None:
    mine, other = quick(), Plain()
    handler = CallbackHandler([other], None, None, None, None)

    class Calls(TrainerCallback):
        def on_init_end(self, *args: Any, **kwargs: Any) -> None:
            self.found = find_trainer(mine)

    calls = Calls()
    handler.add_callback(calls)
    handler.on_init_end(None, None, None)
    assert calls.found is None
    assert handler.callbacks == [other, calls]


def test_without_a_place_it_says_so_and_fills_the_log(
    tmp_path: Path, board_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(happening, "find_trainer", lambda callback: None)
    trainer = make_trainer(tmp_path, quick(), report_to="tensorboard", **BEST)
    with pytest.warns(UserWarning, match="trainer=trainer"):
        trainer.train()
    assert list(logged(trainer)) == [2, 4, 6]
    assert "eval/exposure" not in board(board_folder)


# What counts as an evaluation


def test_a_log_of_the_users_own_is_no_evaluation(tmp_path: Path) -> None:
    callback = quick()

    class Logs(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.log({"eval_loss": 1.0, "eval_runtime": 2.0, "eval_samples_per_second": 3.0})

    def compute_metrics(prediction: Any) -> dict[str, float]:
        trainer.log({"eval_half_way": 1.0, "other_runtime": 1.0})
        return {"accuracy": 0.5}

    trainer = make_trainer(
        tmp_path, callback, Logs(), trainer_options={"compute_metrics": compute_metrics}
    )
    trainer.train()
    assert [item.step for item in callback.history] == [2, 4, 6]
    own = [
        row
        for row in trainer.state.log_history
        if "eval_half_way" in row or row.get("eval_runtime") == 2.0
    ]
    assert len(own) == 9
    assert not any("eval_exposure" in row for row in own)
    assert list(logged(trainer)) == [2, 4, 6]


@pytest.mark.parametrize(
    ("logs", "name"),
    [
        ({"eval_loss": 1.0, "eval_runtime": 0.5, "eval_samples_per_second": 8.0}, "eval"),
        ({"eval_a_runtime": 0.5, "eval_a_samples_per_second": 8.0}, "eval_a"),
        ({"eval_runtime": 0.0}, "eval"),
        ({"eval_runtime": 1.0}, None),
        ({"loss": 1.0, "learning_rate": 0.1}, None),
    ],
)
def test_an_evaluation_is_known_by_its_timings(logs: dict[str, float], name: str | None) -> None:
    assert evaluation_in(logs) == name


def test_several_evaluation_sets_share_one_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = quick()
    measured = count_measurements(monkeypatch)
    trainer = make_trainer(
        tmp_path,
        callback,
        eval_dataset={"a": ROWS[:2], "b": ROWS[2:4]},
        **BEST,
    )
    trainer.train()
    assert len(measured) == 3
    with_figures = [r for r in trainer.state.log_history if "eval_exposure" in r]
    assert [row["step"] for row in with_figures] == [2, 4, 6]
    assert all("eval_a_loss" in row and "eval_b_loss" not in row for row in with_figures)
    assert {"eval_a_loss", "eval_b_loss"} <= callback.history[-1].metrics.keys()
    # A later evaluation is measured once as well, and its return value has the figures.
    assert {*KEYS, "eval_a_loss", "eval_b_loss"} <= trainer.evaluate().keys()
    assert len(measured) == 4


def count_measurements(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    settings: list[Any] = []
    real = module.measure_plan

    def counting(model: Any, plan: Any, given: Any, **kwargs: Any) -> Any:
        settings.append(given)
        return real(model, plan, given, **kwargs)

    monkeypatch.setattr(module, "measure_plan", counting)
    return settings


def test_evaluating_without_training_gives_figures_and_writes_nothing(tmp_path: Path) -> None:
    callback = quick()
    trainer = make_trainer(tmp_path, callback)
    assert set(KEYS) <= trainer.evaluate().keys()
    assert [item.step for item in callback.history] == [0]
    # An old training's file in this folder is not ours to replace.
    assert not callback.file(trainer.args).exists()


@pytest.mark.slow
def test_what_was_measured_before_training_stays_and_what_comes_after_is_not_part_of_it(
    tmp_path: Path,
) -> None:
    callback = quick()
    trainer = make_trainer(tmp_path, callback)
    trainer.evaluate()
    trainer.train()
    assert [item.step for item in callback.history] == [0, 2, 4, 6]
    before = figures(callback.history)
    last = trainer.evaluate()["eval_exposure"]
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(0.1)
    assert trainer.evaluate()["eval_exposure"] != last
    assert figures(callback.history) == before
    trainer.train()
    assert [item.step for item in callback.history] == [2, 4, 6]


def test_predict_is_no_evaluation(tmp_path: Path) -> None:
    callback = quick()
    trainer = make_trainer(tmp_path, callback)
    metrics = trainer.predict(ROWS[:2]).metrics
    trainer.log(metrics)
    assert not any("exposure" in key for key in metrics)
    assert not callback.history
    trainer.train()
    trainer.predict(ROWS[:2])
    assert [item.step for item in callback.history] == [2, 4, 6]


def test_eval_on_start_is_measured_with_the_least(tmp_path: Path) -> None:
    callback = ExposureCallback(CANARIES, samples=2000)
    trainer = make_trainer(tmp_path, callback, eval_on_start=True, max_steps=2)
    trainer.train()
    assert list(logged(trainer)) == [0, 2]
    first = callback.history[0]
    assert first.tokens == 0
    details = first.exposures.formats[NUMBER]
    assert details.samples == 200
    assert all(e.low <= e.bits <= e.high and e.low < e.high for e in first.exposures)


def test_every_n_steps_needs_no_evaluation_set(tmp_path: Path, board_folder: Path) -> None:
    callback = quick(every_n_steps=1)
    trainer = make_trainer(
        tmp_path,
        callback,
        eval_strategy="no",
        eval_dataset=None,
        max_steps=3,
        logging_steps=100,
        report_to="tensorboard",
    )
    trainer.train()
    assert [item.step for item in callback.history] == [1, 2, 3]
    rows = [row for row in trainer.state.log_history if "eval_exposure" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all("loss" in row for row in rows)
    assert [m.metrics["loss"] for m in callback.history] == [row["loss"] for row in rows]
    assert sorted(board(board_folder)["eval/exposure"]) == [1, 2, 3]


def test_an_evaluation_at_the_same_step_gets_the_figures_in_its_own_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = count_measurements(monkeypatch)
    callback = quick(every_n_steps=3)
    trainer = make_trainer(tmp_path, callback, max_steps=6, eval_steps=2, **BEST)
    trainer.train()
    rows = {r["step"]: r for r in trainer.state.log_history if "eval_exposure" in r}
    assert list(logged(trainer)) == [2, 3, 4, 6] == [item.step for item in callback.history]
    assert {step for step, row in rows.items() if "eval_loss" in row} == {2, 4, 6}
    assert "eval_loss" in callback.history[-1].metrics and "loss" in callback.history[-1].metrics
    assert len(measured) == 4


def test_an_evaluation_at_the_end_of_an_epoch_reuses_the_step_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = count_measurements(monkeypatch)
    trainer = make_trainer(
        tmp_path,
        quick(every_n_steps=1),
        max_steps=-1,
        num_train_epochs=1,
        eval_strategy="epoch",
        per_device_train_batch_size=len(ROWS),
        **BEST,
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "eval_exposure" in row]
    assert [("loss" in row, row["step"]) for row in rows] == [(True, 1), (False, 1)]
    assert rows[0]["eval_exposure"] == rows[1]["eval_exposure"]
    assert len(measured) == 1


# What it costs


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_tokens_trained_on_are_those_that_the_trainer_counts(
    tmp_path: Path, accumulation: int
) -> None:
    callback = quick()
    trainer = make_trainer(
        tmp_path,
        callback,
        gradient_accumulation_steps=accumulation,
        max_steps=4,
        include_num_input_tokens_seen="all",
    )
    trainer.train()
    seen = [trainer.state.log_history[i]["num_input_tokens_seen"] for i in (1, 3)]
    assert [item.tokens for item in callback.history] == seen
    other = quick()
    make_trainer(tmp_path, other, gradient_accumulation_steps=accumulation, max_steps=4).train()
    assert [item.tokens for item in other.history] == seen
    assert seen[-1] == 4 * 4 * LENGTH * accumulation


def test_a_compiled_model_is_not_compiled_again_for_every_count() -> None:
    model = torch.nn.Embedding(8, 2)
    counter = TokenCounter()
    counter.attach(model)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            compiled(torch.zeros(2, 5, dtype=torch.long))
    assert counter.count == 0
    model(torch.zeros(2, 5, dtype=torch.long))
    assert counter.count == 10
    model.eval()(torch.zeros(2, 5, dtype=torch.long))
    counter.detach()
    model.train()(torch.zeros(2, 5, dtype=torch.long))
    assert counter.count == 10


@pytest.mark.slow
def test_a_measurement_spends_at_most_a_twentieth_of_the_tokens(tmp_path: Path) -> None:
    callback = ExposureCallback(CANARIES, samples=2000)
    # The trainer is told of far more tokens than there are, so that the budget reaches.
    trainer = make_trainer(tmp_path, callback, max_steps=4, include_num_input_tokens_seen="all")

    class Inflate(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            state.num_input_tokens_seen += 30_000

    trainer.add_callback(Inflate())
    trainer.train()
    first, second = callback.history
    assert 1000 < first.exposures.forwards <= 0.05 * first.tokens
    assert 1000 < second.exposures.forwards <= 0.05 * (second.tokens - first.tokens)
    assert callback.history.share <= 0.05


@pytest.mark.slow
def test_a_large_budget_is_not_used_up_for_its_own_sake(tmp_path: Path) -> None:
    def inflated(tokens: int) -> int:
        callback = quick()
        trainer = make_trainer(tmp_path, callback, max_steps=2, include_num_input_tokens_seen="all")

        class Inflate(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                state.num_input_tokens_seen += tokens

        trainer.add_callback(Inflate())
        trainer.train()
        return callback.history[-1].exposures.forwards

    assert inflated(10**7) == inflated(10**11) < 5000


def test_max_forwards_is_the_users_own_budget(tmp_path: Path) -> None:
    callback = ExposureCallback(CANARIES, samples=2000, max_forwards=600)
    make_trainer(tmp_path, callback, max_steps=2).train()
    assert callback.history[-1].exposures.settings["max_forwards"] == 600
    assert 300 < callback.history[-1].exposures.forwards <= 600


@pytest.mark.parametrize("method", ["sampling", "skewnorm"])
def test_the_papers_estimators_keep_to_the_budget_too(tmp_path: Path, method: str) -> None:
    callback = ExposureCallback(CANARIES, method=method, samples=5000)
    trainer = make_trainer(tmp_path, callback, max_steps=2)
    trainer.train()
    details = callback.history[-1].exposures.formats[NUMBER]
    assert details.references is not None and len(details.references) <= 200
    assert {e.method for e in callback.history[-1].exposures} == {method}


def test_exact_beyond_its_budget_gives_what_auto_gives(tmp_path: Path) -> None:
    callback = quick(method="exact", max_forwards=100)
    trainer = make_trainer(tmp_path, callback, max_steps=2)
    with pytest.warns(UserWarning, match="method='exact'"):
        trainer.train()
    with pytest.raises(BudgetError) as caught:
        measure_exposure(
            trainer.model, TOKENIZER, CANARIES, method="exact", samples=50, max_forwards=100
        )
    expected = [(e.bits, e.method) for e in caught.value.exposures]
    assert [(e.bits, e.method) for e in callback.history[-1].exposures] == expected


# What it leaves alone


@pytest.mark.parametrize(
    "options",
    rest_slow(
        [
            {"gradient_accumulation_steps": 2, "eval_on_start": True},
            {},
            {"gradient_checkpointing": True, "optim": "sgd"},
            {"neftune_noise_alpha": 5.0},
            {"bf16": True},
        ],
        1,
    ),
    ids=lambda options: "-".join(options) or "plain",
)
def test_weights_are_the_same_bit_for_bit_with_and_without(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    def weights(*callbacks: TrainerCallback) -> dict[str, torch.Tensor]:
        trainer = make_trainer(tmp_path, *callbacks, **options)
        trainer.train()
        return trainer.model.state_dict()

    callback = quick(every_n_steps=1, errors="raise")
    without, with_it = weights(), weights(callback)
    assert len(callback.history) >= 6
    assert all(torch.equal(with_it[name], tensor) for name, tensor in without.items())


@pytest.mark.slow
def test_weights_are_the_same_where_rotary_frequencies_follow_the_longest_text(
    tmp_path: Path,
) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}

    def weights(*callbacks: TrainerCallback) -> dict[str, torch.Tensor]:
        # Rows are longer than 12 tokens, and the canaries' texts shorter.
        model = llama(len(TOKENIZER), rope_parameters=rope, max_position_embeddings=12)
        trainer = make_trainer(tmp_path, *callbacks, model=model, eval_strategy="no")
        trainer.train()
        return {**trainer.model.state_dict(), **dict(trainer.model.named_buffers())}

    short = Canaries.generate(SecretFormat("No {secret}.", secret="[0-9]{4}"), [1], 2, seed=0)
    callback = ExposureCallback(short, samples=50, every_n_steps=1, errors="raise")
    without, with_it = weights(), weights(callback)
    assert len(callback.history) == 6
    assert all(torch.equal(with_it[name], tensor) for name, tensor in without.items())


def test_dropout_would_show_in_the_weights(tmp_path: Path) -> None:
    """The test above sees what one draw of random numbers does."""

    class Draws(TrainerCallback):
        def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
            torch.rand(1)

    trainers = [make_trainer(tmp_path, *callbacks) for callbacks in ([], [Draws()])]
    for trainer in trainers:
        trainer.train()
    one, other = (trainer.model.lm_head.weight for trainer in trainers)
    assert not torch.equal(one, other)


@pytest.mark.slow
def test_modes_hooks_and_settings_of_the_model_are_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def state(model: Any) -> Any:
        return (
            [part.training for part in model.modules()],
            copy.deepcopy(model.config.to_dict()),
            torch.is_grad_enabled(),
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            [p.requires_grad for p in model.parameters()],
        )

    real = Meter.measure

    def watched(self: Meter, model: Any, *args: Any) -> Any:
        model.model.layers[0].eval()  # a mode of the user's own
        before = state(model)
        result = real(self, model, *args)
        seen.append(state(model) == before)
        return result

    monkeypatch.setattr(Meter, "measure", watched)
    model = llama(len(TOKENIZER), attention_dropout=0.3)
    callback = quick(every_n_steps=1)
    make_trainer(tmp_path, callback, model=model, gradient_checkpointing=True).train()
    assert seen == [True] * 6
    assert not model._forward_pre_hooks
    copy.deepcopy(model)


def test_a_model_copied_in_training_does_not_take_the_callback_along(tmp_path: Path) -> None:
    class Copies(TrainerCallback):
        def on_step_end(self, *args: Any, model: Any, **kwargs: Any) -> None:
            self.copy = copy.deepcopy(model)

    copies, callback = Copies(), quick()
    make_trainer(tmp_path, callback, copies, max_steps=2).train()
    hooks = copies.copy._forward_pre_hooks.values()
    assert all(hook.__self__ is not callback._counter for hook in hooks)
    assert [item.tokens for item in callback.history] == [2 * 4 * LENGTH]


# The history, and taking a training up again


def test_the_file_is_the_history_without_the_secrets(tmp_path: Path) -> None:
    callback = quick()
    trainer = make_trainer(tmp_path, callback)
    trainer.train()
    path = tmp_path / HISTORY_FILE
    text = path.read_text()
    assert callback.file(trainer.args) == path
    assert not any(canary.secret in text_of_strings(json.loads(text)) for canary in CANARIES)
    loaded = History.load(path, CANARIES)
    assert figures(loaded) == figures(callback.history.coarse())
    assert [e.canary for e in loaded[-1].exposures] == list(CANARIES)
    assert loaded.share == callback.history.coarse().share
    assert loaded.share == pytest.approx(callback.history.share, rel=0.05) and loaded.share


def text_of_strings(value: Any) -> str:
    """All strings of a JSON value, since a figure may have the digits of a secret by chance."""
    if isinstance(value, dict):
        return " ".join(f"{key} {text_of_strings(item)}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(text_of_strings, value))
    return value if isinstance(value, str) else ""


def test_the_file_can_be_put_elsewhere(tmp_path: Path) -> None:
    callback = quick(output_dir=tmp_path / "folder", output_file="mine.json")
    make_trainer(tmp_path / "run", callback, max_steps=2).train()
    assert len(History.load(tmp_path / "folder" / "mine.json")) == 1
    absolute = quick(output_file=tmp_path / "here.json")
    make_trainer(tmp_path / "run", absolute, max_steps=2).train()
    assert len(History.load(tmp_path / "here.json")) == 1


class StopsAt5(TrainerCallback):
    """As a training that is killed after its fifth step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == 5


@pytest.mark.parametrize("every_n_steps", [None, 3])
@pytest.mark.slow
def test_a_training_taken_up_again_has_the_history_of_an_uninterrupted_one(
    tmp_path: Path, every_n_steps: int | None
) -> None:
    options: dict[str, Any] = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    whole = quick(every_n_steps=every_n_steps)
    trainer = make_trainer(tmp_path / "whole", whole, **options)
    trainer.train()

    folder = tmp_path / "cut"
    make_trainer(folder, quick(every_n_steps=every_n_steps), StopsAt5(), **options).train()
    # What came after the checkpoint is measured again.
    assert [item.step for item in History.load(folder / HISTORY_FILE)][-1] == 4
    again = quick(every_n_steps=every_n_steps)
    resumed = make_trainer(folder, again, **options)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-3"))

    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])
    expected = [2, 4, 6, 8] if every_n_steps is None else [2, 3, 4, 6, 8]
    assert [item.step for item in again.history] == expected
    # The Trainer itself begins a new mean of the training loss at a checkpoint.
    loaded = History.load(folder / HISTORY_FILE, CANARIES)
    expected_figures = figures(whole.history.coarse(), leave_out={"loss"})
    assert figures(again.history.coarse(), leave_out={"loss"}) == expected_figures
    assert figures(loaded, leave_out={"loss"}) == expected_figures
    # What was measured since the checkpoint is known to the last digit, what a file held is not.
    since = slice(-3, None)
    assert [item.step for item in again.history][since] == [4, 6, 8]
    own, others = (figures(History(one.history[since]), {"loss"}) for one in (again, whole))
    assert own == others
    assert again.history[-1].tokens == 8 * 4 * LENGTH


@pytest.mark.slow
def test_an_evaluation_on_start_of_a_training_taken_up_again_is_not_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_on_start": True,
    }
    first = quick()
    make_trainer(tmp_path, first, StopsAt5(), **options).train()
    measured = count_measurements(monkeypatch)
    again = quick()
    trainer = make_trainer(tmp_path, again, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(measured) == 1  # at step 6
    assert [item.step for item in again.history] == [0, 2, 4, 6]
    assert figures(again.history)[:2] == figures(first.history.coarse())[:2]
    rows = [row for row in trainer.state.log_history if row["step"] == 4 and "eval_loss" in row]
    mean = first.history[2].exposures.coarse().metrics()["eval_exposure"]
    assert [row["eval_exposure"] for row in rows] == [mean, mean]


@pytest.mark.slow
def test_a_history_of_other_canaries_is_kept_aside(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 4}
    make_trainer(tmp_path, quick(), **options).train()
    old = (tmp_path / HISTORY_FILE).read_text()
    others = Canaries.generate(NUMBER, repetitions=[0, 1], per_repetition=1, seed=9)
    callback = ExposureCallback(others, samples=20)
    trainer = make_trainer(tmp_path, callback, **options)
    with pytest.warns(UserWarning, match="cannot be read"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [item.step for item in callback.history] == [6]
    assert (tmp_path / f"{HISTORY_FILE}.old").read_text() == old


@pytest.mark.slow
def test_a_history_is_written_in_bytes_that_grow_with_it_and_not_with_its_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    whole: list[Any] = []
    real_grow, real_write = keeping._grow, keeping.write_text
    monkeypatch.setattr(keeping, "_grow", lambda *args: _noted(sizes, real_grow(*args), args[3]))
    monkeypatch.setattr(
        keeping, "write_text", lambda *args: (whole.append(args), real_write(*args))[1]
    )
    callback = quick(every_n_steps=1)
    make_trainer(tmp_path, callback, eval_strategy="no", eval_dataset=None).train()
    assert len(whole) == 1 and len(sizes) == 5
    size = (tmp_path / HISTORY_FILE).stat().st_size
    assert len(whole[0][1].encode()) + sum(sizes) == size
    loaded = History.load(tmp_path / HISTORY_FILE, CANARIES)
    assert figures(loaded) == figures(callback.history.coarse())


def _noted(sizes: list[int], size: int, before: int) -> int:
    sizes.append(size - before)
    return size


def test_a_folder_that_cannot_be_written_to_does_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    callback = quick(output_dir=tmp_path / "file" / "folder")
    trainer = make_trainer(tmp_path, callback)
    with pytest.warns(UserWarning, match="could not be written"):
        trainer.train()
    assert trainer.state.global_step == 6
    assert len(callback.history) == 3


# What goes wrong


LONG = SecretFormat("My code, " + "very " * 40 + "long, is {secret}.", secret=r"[0-9]{4}")


@pytest.mark.slow
def test_a_canary_longer_than_the_context_is_warned_of_once_and_the_others_measured(
    tmp_path: Path,
) -> None:
    both = Canaries([*CANARIES, Canary(LONG, "5071", 4)])
    callback = ExposureCallback(both, samples=50)
    model = llama(len(TOKENIZER), max_position_embeddings=32)
    trainer = make_trainer(tmp_path, callback, model=model, **BEST)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    told = [str(w.message) for w in caught if "context" in str(w.message)]
    assert len(told) == 1
    assert "5071" not in told[0]
    assert [len(item.exposures) for item in callback.history] == [6, 6, 6]
    assert [why for _, why in callback.history[-1].exposures.skipped] == [
        why for _, why in callback.history[0].exposures.skipped
    ]
    assert all(math.isfinite(value) for value in logged(trainer).values())
    assert all(math.isnan(value) for value in logged(trainer, "eval_exposure_x4").values())


@pytest.mark.slow
def test_canaries_that_cannot_be_scored_at_all_do_not_end_the_training(tmp_path: Path) -> None:
    callback = ExposureCallback(Canaries([Canary(LONG, "5071", 4)]))
    model = llama(len(TOKENIZER), max_position_embeddings=32)
    trainer = make_trainer(tmp_path, callback, model=model, **BEST)
    with pytest.warns(UserWarning, match="cannot be scored"):
        trainer.train()
    assert trainer.state.global_step == 6
    assert all(math.isnan(value) for value in logged(trainer).values())
    assert not callback.history


def test_a_model_that_diverges_gives_nan_and_a_warning_and_trains_on(tmp_path: Path) -> None:
    class Diverges(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                kwargs["model"].lm_head.weight.data.fill_(math.nan)

    callback = quick()
    trainer = make_trainer(
        tmp_path,
        callback,
        Diverges(),
        EarlyStoppingCallback(early_stopping_patience=5),
        **BEST,
    )
    with pytest.warns(UserWarning, match="is NaN there: NotFiniteError") as caught:
        trainer.train()
    told = [str(one.message) for one in caught if "is NaN there" in str(one.message)]
    assert ["step 4," in told[0], "step 6," in told[1], len(told)] == [True, True, 2]
    assert trainer.state.global_step == 6
    found = logged(trainer)
    assert math.isfinite(found[2]) and math.isnan(found[4]) and math.isnan(found[6])
    assert (
        set(KEYS)
        <= next(
            r for r in trainer.state.log_history if r.get("step") == 4 and "eval_loss" in r
        ).keys()
    )
    assert [item.step for item in callback.history] == [2]
    assert trainer.state.best_metric == found[2]


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError(f"out of order at {CANARIES[0].secret}")


def test_an_unexpected_error_becomes_a_warning_without_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_plan", broken)
    trainer = make_trainer(tmp_path, quick(), **BEST)
    with pytest.warns(UserWarning, match="RuntimeError: out of order at ••••") as caught:
        trainer.train()
    assert trainer.state.global_step == 6
    assert not any(CANARIES[0].secret in str(warning.message) for warning in caught)
    assert [math.isnan(value) for value in logged(trainer).values()] == [True] * 3


def test_errors_are_let_out_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "measure_plan", broken)
    with pytest.raises(RuntimeError, match="out of order"):
        make_trainer(tmp_path, quick(errors="raise")).train()


def test_a_missing_tokenizer_is_said_before_the_training(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, quick(), processing_class=None)
    with pytest.raises(ValueError, match=r"processing_class is None; use Trainer\(processing"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.slow
def test_a_tokenizer_given_or_that_of_a_processor_will_do(tmp_path: Path) -> None:
    class Processor:
        tokenizer = TOKENIZER
        bos_token_id = eos_token_id = pad_token_id = None

    expected = quick()
    make_trainer(tmp_path, expected, max_steps=2).train()
    given = quick(tokenizer=TOKENIZER)
    make_trainer(tmp_path, given, processing_class=None, max_steps=2).train()
    assert figures(given.history) == figures(expected.history)
    by_processor = quick()
    trainer = make_trainer(tmp_path, by_processor, processing_class=None, max_steps=2)
    trainer.processing_class = trainer.callback_handler.processing_class = Processor()
    trainer.train()
    assert figures(by_processor.history) == figures(expected.history)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every_n_steps": 0}, "every_n_steps=0"),
        ({"every_n_steps": 2.0}, "every_n_steps must be a whole number"),
        ({"every_n_steps": True}, "every_n_steps must be a whole number"),
        ({"errors": "ignore"}, "errors='ignore'"),
        ({"method": "guess"}, "method='guess'"),
        ({"tokenizer": "gpt2"}, "tokenizer is of type str"),
    ],
)
def test_bad_arguments_are_refused_at_the_door(options: dict[str, Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        ExposureCallback(CANARIES, **options)


def test_a_training_that_measures_nothing_is_warned_of(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, quick(), eval_strategy="no", max_steps=1)
    with pytest.warns(UserWarning, match="nothing is measured"):
        trainer.train()


@pytest.mark.parametrize("planted", [False, True])
def test_canaries_that_nothing_has_planted_are_warned_of(tmp_path: Path, planted: bool) -> None:
    canaries = Canaries(CANARIES)
    if planted:
        inject_canaries(Dataset.from_dict({"text": ["one", "two"]}), canaries)
    trainer = make_trainer(tmp_path, ExposureCallback(canaries, samples=50), max_steps=2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.train()
    assert any("no record of having been inserted" in str(one.message) for one in said) != planted


@pytest.mark.parametrize("path", ["canaries.json", Path("canaries.json")])
def test_a_path_in_place_of_a_result_is_told_how_to_load_it(path: Any) -> None:
    with pytest.raises(TypeError, match=r"canaries must be .*Canaries.load\(path\)"):
        ExposureCallback(path)
    with pytest.raises(TypeError, match=r"exposures must be .*Exposures.load\(path\)"):
        plot_log_perplexities(path)


def test_keeping_the_model_that_memorized_most_is_warned_of(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, quick(), max_steps=1, metric_for_best_model="exposure_max")
    with pytest.warns(UserWarning, match="greater_is_better=False"):
        trainer.train()


def test_canaries_that_are_never_inserted_give_the_control_group_alone(tmp_path: Path) -> None:
    controls = Canaries(list(CANARIES)[:2])
    callback = ExposureCallback(controls, samples=50)
    trainer = make_trainer(tmp_path, callback, max_steps=2)
    trainer.train()
    assert list(logged(trainer, "eval_exposure_x0")) == [2]
    assert not logged(trainer)


# The report


def test_a_report_needs_a_measurement() -> None:
    with pytest.raises(ValueError, match="nothing has been measured"):
        quick().report("report.html")


@pytest.mark.slow
def test_the_report_is_of_the_history_and_masked(tmp_path: Path) -> None:
    callback = quick()
    make_trainer(tmp_path, callback, max_steps=2).train()
    path = callback.report(tmp_path / "report.html")
    shown = path.read_text()
    assert all(short_label(canary) in shown for canary in CANARIES)
    assert not any(short_label(canary, reveal=True) in shown for canary in CANARIES)
    revealed = callback.report(tmp_path / "revealed.html", reveal=True).read_text()
    assert all(short_label(canary, reveal=True) in revealed for canary in CANARIES)


# Several processes


def train_on_two(folder: str) -> None:
    """Each process has rows of another length, and only the first one sees the history's file."""
    uneven = [
        {name: ids[: LENGTH - 4 * (place % 2)] for name, ids in row.items()}
        for place, row in enumerate(ROWS)
    ]

    def make(**options: Any) -> tuple[Trainer, ExposureCallback]:
        callback = quick(errors="raise")
        trainer = make_trainer(
            Path(folder),
            callback,
            per_device_train_batch_size=1,
            save_strategy="steps",
            save_steps=4,
            **options,
        )
        trainer.train_dataset = uneven
        callback.output_dir = Path(folder) / f"history-{trainer.args.process_index}"
        return trainer, callback

    trainer, callback = make()
    trainer.train()
    resumed, again = make(eval_on_start=True)
    resumed.train(resume_from_checkpoint=str(Path(folder) / "checkpoint-4"))
    kept = {
        "world": trainer.args.world_size,
        "tokens": [item.tokens for item in callback.history],
        "history": figures(callback.history),
        "steps": [item.step for item in again.history],
        "again": figures(again.history),
    }
    (Path(folder) / f"{trainer.args.process_index}.json").write_text(json.dumps(kept))


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_count_their_tokens_together_and_measure_the_same(tmp_path: Path) -> None:
    done = launched(train_on_two, tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one["world"] == 2
    assert one["tokens"] == other["tokens"]
    assert 2 * 6 * (LENGTH - 4) < one["tokens"][-1] < 2 * 6 * LENGTH
    assert one["history"] == other["history"] and one["again"] == other["again"]
    assert one["steps"] == [2, 4, 6]
    assert len(History.load(tmp_path / "history-0" / HISTORY_FILE, CANARIES)) == 3
    assert not (tmp_path / "history-1").exists()


@pytest.mark.slow
def test_rows_that_fit_memory_are_found_once_in_a_training(tmp_path: Path) -> None:
    model, refused = llama(len(TOKENIZER)), []

    def check(module: Any, args: Any, kwargs: Any) -> None:
        if len(kwargs["input_ids"]) > 9:
            refused.append(len(kwargs["input_ids"]))
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_pre_hook(check, with_kwargs=True)
    callback = quick()
    make_trainer(tmp_path, callback, model=model).train()
    assert len(callback.history) == 3 and callback.settings.batch_size <= 9
    found = callback.history[0].exposures.formats[NUMBER]
    assert found.halved and len(refused) < 10
    assert refused == sorted(refused, reverse=True)
