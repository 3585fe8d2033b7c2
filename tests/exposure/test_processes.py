"""Two processes measure as one: over gloo, each in a subprocess of its own."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.measure import measure_exposure
from hf_exposure.exposure.results import BudgetError, Exposures
from hf_exposure.models.processes import Processes, ProcessFailedError
from hf_exposure.training.callback import ExposureCallback
from tests.processes import LIMIT, launched
from tests.tiny import TOKENIZERS, llama
from tests.training.test_callback import make_trainer

TOKENIZER = TOKENIZERS["digits_one_by_one"]()
NUMBER = SecretFormat("The number is {secret}.", secret="[0-9]{4}")
CODE = SecretFormat("My code is {secret}!", secret="[a-c]{5}")
CANARIES = Canaries.generate([NUMBER, CODE], repetitions=[0, 1, 8], per_repetition=2, seed=3)


def two(function: Callable[[str], None], folder: Path) -> list[Any]:
    """What a function has written in each of two processes."""
    done = launched(function, folder)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{number}.json").read_text()) for number in (0, 1)]


def write(folder: str, found: Any) -> None:
    number = torch.distributed.get_rank()
    (Path(folder) / f"{number}.json").write_text(json.dumps(found))


def model(scale: float = 0.5) -> Any:
    return llama(len(TOKENIZER), scale=scale)


def ways() -> dict[str, dict[str, Any]]:
    return {
        "exact": {"method": "exact"},
        "auto": {"samples": 400},
        "small budget": {"samples": 400, "max_forwards": 900},
        "tiny budget": {"samples": 100, "max_forwards": 40},
        "sampling": {"method": "sampling", "samples": 300},
        "skewnorm": {"method": "skewnorm", "samples": 300},
    }


def told(exposures: Exposures) -> dict[str, Any]:
    return {
        "ranks": [[e.rank_low, e.rank, e.rank_high] for e in exposures],
        "costs": [e.log_perplexity for e in exposures],
        "exact": [e.exact for e in exposures],
        "forwards": exposures.forwards,
        "processes": exposures.cost["processes"],
    }


class Count:
    """Counts the forwards of a model; gives NaN at one of them, or fails within it."""

    def __init__(self, model: Any, nan_at: int | None = None, fail_at: int | None = None) -> None:
        self.calls = 0
        self.nan_at, self.fail_at = nan_at, fail_at
        model.register_forward_hook(self.see)

    def see(self, module: Any, args: Any, output: Any) -> None:
        self.calls += 1
        if self.calls == self.nan_at:
            output.logits.fill_(math.nan)
        if self.calls == self.fail_at:
            raise RuntimeError("the disk is on fire")


def measure_on_two(folder: str) -> None:
    accelerator = Accelerator(cpu=True)
    wrapped = torch.nn.parallel.DistributedDataParallel(model())
    found = {}
    for name, settings in ways().items():
        count = Count(wrapped.module)
        exposures = measure_exposure(
            wrapped, TOKENIZER, CANARIES, accelerator=accelerator, **settings
        )
        found[name] = {**told(exposures), "calls": count.calls}
    # An accelerator of one process in a group of two, as accelerate makes it on a machine without
    # a GPU unless cpu=True: trainings of their own, which have nothing to share.
    own = SimpleNamespace(num_processes=1)
    apart = model(0.3 + 0.2 * accelerator.process_index)
    found["apart"] = told(
        measure_exposure(apart, TOKENIZER, CANARIES, accelerator=own, method="exact")
    )
    # Without an accelerator each process may measure by itself.
    if accelerator.is_main_process:
        found["alone"] = told(measure_exposure(wrapped, TOKENIZER, CANARIES, method="exact"))
    write(folder, found)


def shard(model: Any) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def measure_sharded_on_two(folder: str) -> None:
    sharded = shard(model())
    found = {}
    for name, settings in ways().items():
        count = Count(sharded)
        exposures = measure_exposure(sharded, TOKENIZER, CANARIES, **settings)
        found[name] = {**told(exposures), "calls": count.calls}
    write(folder, found)


@functools.cache
def by_itself(name: str) -> Exposures:
    """What one process measures."""
    return measure_exposure(model(), TOKENIZER, CANARIES, **ways()[name])


def compare(one: dict[str, Any], other: dict[str, Any], name: str) -> None:
    """Both processes say the same, and what one alone says."""
    assert one["ranks"] == other["ranks"] and one["costs"] == other["costs"]
    assert one["forwards"] == other["forwards"] and one["processes"] == 2
    truth, alone = by_itself("exact"), by_itself(name)
    assert one["costs"] == pytest.approx([e.log_perplexity for e in truth], abs=1e-4)
    if name in ("exact", "sampling", "skewnorm"):
        rel = 1e-3 if name == "skewnorm" else 1e-9  # a fit of rounded figures
        assert one["ranks"] == [pytest.approx(ranks, rel=rel) for ranks in told(alone)["ranks"]]
    outside = [
        (low, e.rank, high)
        for (low, _, high), e in zip(one["ranks"], truth, strict=True)
        if name != "skewnorm" and not low * 0.999 <= e.rank <= high * 1.001
    ]
    assert len(outside) <= 1, outside  # of 12 intervals at 95 %


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_share_the_work_and_get_the_figures_of_one(tmp_path: Path) -> None:
    one, other = two(measure_on_two, tmp_path)
    for name, settings in ways().items():
        compare(one[name], other[name], name)
        if "max_forwards" not in settings:
            # Not everything can be shared: the probe, the first steps, the same short prefixes.
            assert one[name]["forwards"] < 1.5 * by_itself(name).forwards + 300, name
    assert one["exact"]["exact"] == [True] * len(CANARIES)
    for place, found in enumerate((one["apart"], other["apart"])):
        mine = model(0.3 + 0.2 * place)
        assert found == told(measure_exposure(mine, TOKENIZER, CANARIES, method="exact"))
    assert one["apart"]["ranks"] != other["apart"]["ranks"]
    assert one["alone"]["processes"] == 1
    assert one["alone"]["ranks"] == one["exact"]["ranks"]


@pytest.mark.distributed
@pytest.mark.slow
def test_processes_with_a_sharded_model_make_equally_many_forwards(tmp_path: Path) -> None:
    one, other = two(measure_sharded_on_two, tmp_path)
    for name in ways():
        compare(one[name], other[name], name)
        assert one[name]["calls"] == other[name]["calls"], name


def fail_on_one(folder: str) -> None:
    """The second process fails, at several places, with and without a sharded model."""
    found = {}
    accelerator = Accelerator(cpu=True)
    number = accelerator.process_index
    for kind in ("whole", "sharded"):
        for nan_at in (1, 3, 40):
            broken = model() if kind == "whole" else shard(model())
            Count(broken, nan_at if number == 1 else None)
            begin = time.monotonic()
            try:
                measure_exposure(
                    broken, TOKENIZER, CANARIES, accelerator=accelerator, method="exact"
                )
            except Exception as error:
                found[f"{kind} {nan_at}"] = [
                    type(error).__name__,
                    str(error),
                    time.monotonic() - begin,
                ]
    try:
        measure_exposure(
            model(), TOKENIZER, CANARIES, accelerator=accelerator, method="exact", max_forwards=20
        )
    except BudgetError as error:
        found["budget"] = ["BudgetError", told(error.exposures)["ranks"], 0]
    write(folder, found)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_process_that_fails_leaves_no_other_waiting(tmp_path: Path) -> None:
    one, other = two(fail_on_one, tmp_path)
    assert len(one) == len(other) == 7
    assert one.pop("budget") == other.pop("budget")
    for name, (kind, said, seconds) in one.items():
        assert kind == ProcessFailedError.__name__ and "process 1 of 2 failed" in said, name
        assert "NaN" in said and other[name][0] == "NotFiniteError", name
        assert "NaN" in other[name][1] and seconds < LIMIT / 10, name


def fail_within_a_forward(folder: str) -> None:
    sharded = shard(model())
    Count(sharded.model.layers[0], fail_at=5 if torch.distributed.get_rank() else None)
    measure_exposure(sharded, TOKENIZER, CANARIES, method="exact")


@pytest.mark.distributed
@pytest.mark.slow
def test_an_error_within_a_sharded_forward_ends_the_training(tmp_path: Path) -> None:
    done = launched(fail_within_a_forward, tmp_path)
    assert done.returncode != 0 and "the disk is on fire" in done.stderr


def train_on_two(folder: str) -> None:
    """The same training with the callback, without it, and with one that fails in a process."""
    found: dict[str, Any] = {}
    for kind in ("with", "without", "failing"):
        trained = llama(len(TOKENIZER), attention_dropout=0.3)
        callback = ExposureCallback(CANARIES, samples=200)
        if kind == "failing" and torch.distributed.get_rank() == 1:
            object.__setattr__(callback.settings, "samples", "many")
        trainer = make_trainer(
            Path(folder) / kind,
            *([] if kind == "without" else [callback]),
            model=trained,
            gradient_accumulation_steps=2,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train()
        weights = torch.cat([weight.flatten() for weight in trained.state_dict().values()])
        found[kind] = {
            "world": trainer.args.world_size,
            "weights": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
            "exposures": [row.get("eval_exposure") for row in trainer.state.log_history],
            "history": [told(item.exposures) for item in callback.history],
            "warned": [str(w.message) for w in caught if "exposure" in str(w.message)],
        }
    write(folder, found)


@pytest.mark.distributed
@pytest.mark.slow
def test_training_on_two_processes_is_bit_identical_with_and_without_the_callback(
    tmp_path: Path,
) -> None:
    one, other = two(train_on_two, tmp_path)
    assert {one[kind]["world"] for kind in one} == {2}
    assert len({found[kind]["weights"] for found in (one, other) for kind in found}) == 1
    assert one["with"]["exposures"] == other["with"]["exposures"]
    assert one["with"]["history"] == other["with"]["history"] and len(one["with"]["history"]) == 3
    assert all(item["processes"] == 2 for item in one["with"]["history"])
    measured = [value for value in one["with"]["exposures"] if value is not None]
    assert len(measured) == 3 and all(0 < value < 14 for value in measured)
    # Of a measurement that failed in one process all have the same to say: nothing.
    for found in (one, other):
        nothing = [value for value in found["failing"]["exposures"] if value is not None]
        assert len(nothing) == 3 and all(map(math.isnan, nothing)) and found["failing"]["warned"]


def test_one_process_alone_has_everything_to_do() -> None:
    alone = Processes()
    assert alone.alone and alone.part([1, 2, 3]) == [1, 2, 3] and alone.gather("a") == ["a"]
    with pytest.raises(KeyError), alone.together():
        raise KeyError("as it is")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [0, 1, 6, 20])
def test_the_parts_of_a_list_make_it_up_in_order_and_differ_by_one_at_most(
    count: int, length: int
) -> None:
    parts = [Processes(number, count).part(list(range(length))) for number in range(count)]
    assert [item for part in parts for item in part] == list(range(length))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
