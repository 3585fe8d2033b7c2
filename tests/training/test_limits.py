"""A training that exceeds its limits is stopped, and can be resumed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_exposure.canaries.limits import Limits
from hf_exposure.exposure.estimators import RankEstimate
from hf_exposure.exposure.limits import Outcome
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.results import Exposures
from hf_exposure.training.callback import ExposureCallback
from hf_exposure.training.measuring import Meter
from tests.training.test_callback import CANARIES, NUMBER, make_trainer, quick

LIMITS = Limits(max_exposure=5)


@pytest.fixture
def leaks_from_step_4(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: Meter, model: Any, processing_class: Any, step: int, new: int) -> Exposures:
        items = []
        for canary in CANARIES:
            rank = 1 if step >= 4 and canary.inserted else 5_000
            log2 = math.log2(rank)
            found = RankEstimate(log2, log2, log2, log2, 0, True, rank / NUMBER.size)
            items.append(Exposure.of_rank(canary, 9.0, found, "exact"))
        return Exposures(items, settings={"inserted": True})

    monkeypatch.setattr(Meter, "measure", measure)


@pytest.mark.slow
@pytest.mark.usefixtures("leaks_from_step_4")
def test_a_training_is_stopped_at_the_first_failure_and_resumed_as_if_it_had_not_been(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 100}
    whole = make_trainer(tmp_path / "whole", quick(), **options)
    whole.train()

    callback = quick(limits=LIMITS)
    trainer = make_trainer(tmp_path / "cut", callback, **options)
    with pytest.warns(UserWarning, match="stopped at step 4.*the limit is 5"):
        trainer.train()
    assert trainer.state.global_step == 4
    assert callback.verdict is not None and callback.verdict.outcome is Outcome.FAILED
    checkpoint = tmp_path / "cut" / "checkpoint-4"
    assert checkpoint.is_dir()

    again = quick(limits=LIMITS)
    resumed = make_trainer(tmp_path / "cut", again, **options)
    with pytest.warns(UserWarning, match="stopped at step 6"):
        resumed.train(resume_from_checkpoint=str(checkpoint))
    assert [entry.step for entry in again.history] == [2, 4, 6]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


@pytest.mark.usefixtures("leaks_from_step_4")
def test_limits_that_are_kept_stop_nothing(tmp_path: Path) -> None:
    callback = quick(limits=Limits(max_exposure=13.5))
    trainer = make_trainer(tmp_path, callback)
    trainer.train()
    assert trainer.state.global_step == 6
    assert callback.verdict is not None and callback.verdict.outcome is Outcome.PASSED


def test_limits_of_another_kind_are_refused() -> None:
    with pytest.raises(TypeError, match="Limits"):
        ExposureCallback(CANARIES, limits={"max_exposure": 3})  # type: ignore[arg-type]
