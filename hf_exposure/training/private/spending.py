"""What a training may still spend, and what its weights have spent, in a file beside them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hf_exposure.training.private.accounting import Spent, noise_for_epsilon, spent_epsilon
from hf_exposure.training.private.arguments import PrivacyArguments

PRIVACY_FILE = "privacy.json"  # beside the weights: what they have spent


def noise_for_rest(
    privacy: PrivacyArguments, delta: float, rate: float, steps: int, spent: Spent
) -> float:
    """The noise multiplier for the whole training, or for the rest of it.

    Args:
        privacy: with a noise multiplier, or a target that the whole training has to hold.
        delta: of (epsilon, delta).
        rate: each row's probability in a step.
        steps: how many are to come.
        spent: (noise multiplier, sampling rate, steps) of each stretch so far.

    Raises:
        ValueError: no noise is enough, as earlier steps have spent it all.
    """
    if privacy.noise_multiplier is not None:
        return privacy.noise_multiplier
    assert privacy.target_epsilon is not None
    last = spent[-1][0] if spent else 0.0
    ahead = [*spent, (last, rate, max(0, steps))]
    if last and spent_epsilon(ahead, delta, privacy.accountant) <= privacy.target_epsilon:
        return last  # as planned before the interruption
    return noise_for_epsilon(
        privacy.target_epsilon, delta, rate, max(1, steps), privacy.accountant, spent
    )


def check_step(privacy: PrivacyArguments, delta: float, ahead: Spent, planned: int) -> None:
    """Refuse a step that was not planned, if the target would be exceeded with it.

    Args:
        privacy: with the target, if there is one.
        delta: of (epsilon, delta).
        ahead: (noise multiplier, sampling rate, steps) of each stretch, that step included.
        planned: how many steps the noise is for.

    Raises:
        ValueError: more than `target_epsilon` would be spent.
    """
    target = privacy.target_epsilon
    if target is not None and spent_epsilon(ahead, delta, privacy.accountant) > target:
        raise ValueError(
            f"PrivateTrainer: a step after the {planned} that were planned would spend more than "
            f"target_epsilon={target}; set max_steps or num_train_epochs before train()"
        )


def statement_of(
    privacy: PrivacyArguments, delta: float, spent: Spent, epsilon: float, rows: int
) -> dict[str, Any]:
    """What weights have spent and of what, as it is written beside them.

    Args:
        privacy: how private the training is to be.
        delta: of (epsilon, delta).
        spent: (noise multiplier, sampling rate, steps) of each stretch so far.
        epsilon: of these at `delta`.
        rows: of the training set.
    """
    return {
        "epsilon": epsilon if math.isfinite(epsilon) else None,
        "delta": delta,
        "unit": "one row of the training set, added or removed",
        "rows": rows,
        "accountant": privacy.accountant,
        "per_sample_max_grad_norm": privacy.per_sample_max_grad_norm,
        "noise_can_be_repeated": privacy.noise_seed is not None,
        "steps": [
            {"noise_multiplier": noise, "sampling_rate": rate, "steps": steps}
            for noise, rate, steps in spent
        ],
    }


def read_spent(checkpoint: str, rows: int) -> list[tuple[float, float, int]]:
    """(noise multiplier, sampling rate, steps) of each stretch until a checkpoint.

    Args:
        checkpoint: its folder.
        rows: of the training set, which must be those that it was trained on.

    Raises:
        ValueError: the folder does not say what was spent, or the rows are others.
    """
    where = f"PrivateTrainer.train: resume_from_checkpoint={checkpoint!r}"
    path = Path(checkpoint) / PRIVACY_FILE
    if not path.exists():
        raise ValueError(
            f"{where} has no {PRIVACY_FILE}, so what it has spent is not known; take one that "
            "PrivateTrainer saved, or begin anew"
        )
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["rows"] != rows:
        raise ValueError(
            f"{where} was trained on {stored['rows']} rows, and train_dataset has {rows}; give "
            "the same rows"
        )
    return [
        (entry["noise_multiplier"], entry["sampling_rate"], entry["steps"])
        for entry in stored["steps"]
    ]
