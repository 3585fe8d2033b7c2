"""Set-ups in which exposures mislead, or are not measured: told before a training begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.trainer_callback import TrainerState

from hf_exposure.canaries.sets import Canaries
from hf_exposure.utils.warn import warn

if TYPE_CHECKING:
    from transformers import TrainingArguments


def advise(
    canaries: Canaries, every_n_steps: int | None, args: TrainingArguments, state: TrainerState
) -> None:
    """Warn of each such set-up."""
    if canaries.inserted and not canaries.insertions:
        warn(
            "ExposureCallback: the canaries have no record of having been inserted, and a model "
            "that is not trained on them looks as if it memorized nothing; insert them with "
            "inject_canaries(dataset, canaries)",
        )
    if args.eval_strategy == "no" and not args.eval_on_start and every_n_steps is None:
        warn(
            "ExposureCallback: eval_strategy='no' and every_n_steps=None, so nothing is "
            "measured while it trains; give one of them",
        )
    best = (args.metric_for_best_model or "").removeprefix("eval_")
    if best.startswith("exposure") and args.greater_is_better:
        warn(
            f"ExposureCallback: metric_for_best_model={args.metric_for_best_model!r} with "
            "greater_is_better=True keeps the checkpoint that memorized most; set "
            "greater_is_better=False to keep the one that memorized least",
        )
    if state.is_hyper_param_search:
        warn(
            "ExposureCallback: the default objective of hyperparameter_search adds up all "
            "figures of an evaluation, exposures too; give compute_objective",
        )
