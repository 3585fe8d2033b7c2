"""Memorization happens early (the paper's section 5.2): exposure after every mini-batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from paper.figures import CONTROL, MUTED, quiet_axes
from paper.intervals import Mean
from paper.study import (
    Claim,
    Conclusion,
    Experiment,
    Record,
    Run,
    Scale,
    counted,
    for_each_seed,
)
from paper.training import Training, mean_bits, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COPIES = 4  # of each canary, one after another in the text
CANARIES = 8  # inserted, and as many controls
SLIGHTLY = 0.25  # of a rise


def runs(scale: Scale, seeds: Sequence[int], text: str | None) -> list[Run]:
    """One training for each seed."""
    size: dict[str, Any] = {
        "smoke": {"characters": 4000, "epochs": 2, "width": 32, "samples": 50},
        "small": {"characters": 60_000, "epochs": 6, "width": 128, "samples": 200},
        "large": {"characters": 1_000_000, "epochs": 8, "width": 256, "samples": 500},
    }[scale]
    return for_each_seed("lstm", size, seeds, text)


def run(one: Run) -> dict[str, Any]:
    """Train without shuffling, the canaries near the beginning, and measure after every step."""
    spec = Training(
        **one.settings,
        seed=one.seed,
        model="lstm",
        layers=1,
        optimizer="rmsprop",
        learning_rate=2e-3,
        schedule="constant",
        batch=32,
        order="sequential",
        place="start",
        evaluate="step",
        repetitions=(0, COPIES),
        per_repetition=CANARIES,
    )
    trained = train(spec)
    history = trained.callback.history
    groups = [entry.exposures.by_repetitions() for entry in history]
    rows: Any = trained.trainer.train_dataset
    per_epoch = -(-len(rows) // spec.batch)
    wanted = {tuple(trained.tokenizer(c.text)["input_ids"]) for c in trained.canaries.inserted}
    places = [place for place, ids in enumerate(rows["input_ids"]) if tuple(ids[:-1]) in wanted]
    return {
        "per_epoch": per_epoch,
        # Steps of an epoch, counted from 0, in which canaries stand.
        "seen": sorted({place // spec.batch for place in places}),
        "steps": [entry.step for entry in history],
        "exposure": [mean_bits(group[COPIES]) for group in groups],
        "controls": [mean_bits(group[0]) for group in groups],
        "losses": trained.losses,
    }


def rises(result: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Exposure's change at each passing of the canaries, and between two of them."""
    level = dict(zip(result["steps"], result["exposure"], strict=True))
    first, last = min(result["seen"]), max(result["seen"])
    up, down = [], []
    epochs = len(result["steps"]) // result["per_epoch"]
    for epoch in range(epochs):
        before = epoch * result["per_epoch"] + first  # steps done when the canaries come
        after = epoch * result["per_epoch"] + last + 1
        following = (epoch + 1) * result["per_epoch"] + first
        if before in level and after in level:  # nothing is measured before the first step
            up.append(level[after] - level[before])
        if after in level and following in level:
            down.append(level[following] - level[after])
    return up, down


def after_first_passing(result: dict[str, Any]) -> float:
    """How far the canaries are above the control group when they have been seen once."""
    place = result["steps"].index(max(result["seen"]) + 1)
    return float(result["exposure"][place] - result["controls"][place])


def conclude(records: list[Record]) -> Conclusion:
    """How much exposure rises when the canaries are seen, and falls between."""
    found = [rises(record.result) for record in records]
    up = Mean.of(float(np.mean(one[0])) for one in found)
    down = Mean.of(float(np.mean(one[1])) for one in found)
    share = Mean.of(-float(np.mean(one[1])) / (float(np.mean(one[0])) or math.nan) for one in found)
    first = Mean.of(after_first_passing(record.result) for record in records)
    last = Mean.of(record.result["exposure"][-1] for record in records)
    claims = (
        Claim(
            "Exposure jumps each time the canary is seen.",
            up.above(0),
            f"by {up} bits each time (mean over the passings"
            + (f"; interval over {counted(up.count, 'seed')})" if up.count > 1 else ")"),
        ),
        Claim(
            "It decays only slightly before the next time.",
            # Where nothing is seen to rise, nothing can be said of what is lost of a rise.
            share.below(SLIGHTLY) if up.above(0) else None,
            f"changes by {down} bits between two passings, "
            + (
                f"{share.show(2)} of the rise (slightly: less than {SLIGHTLY:g})"
                if up.above(0)
                else "where no rise before it is certain"
            )
            + f"; at the end it is {last} bits",
        ),
        Claim(
            "Memorization begins within the first epoch.",
            first.above(0),
            "when the canaries have passed for the first time, their mean is "
            f"{first} bits above that of the control group",
        ),
    )
    return Conclusion(claims)


def draw(records: list[Record], figure: Figure) -> None:
    """Exposure at each step, with a line where the canaries are seen."""
    ax = quiet_axes(figure.add_subplot(), "mini-batch", "mean exposure (bits)")
    for place, record in enumerate(records):
        result = record.result
        ax.plot(
            result["steps"],
            result["exposure"],
            color="#440154",
            linewidth=1.3 - 0.3 * (place > 0),
            alpha=1.0 if place == 0 else 0.35,
            label="inserted" if place == 0 else None,
        )
    result = records[0].result
    ax.plot(result["steps"], result["controls"], "--", color=CONTROL, label="never inserted")
    for step in range(0, max(result["steps"]), result["per_epoch"]):
        for place in result["seen"]:
            ax.axvline(step + place + 1, color=MUTED, linewidth=0.7, linestyle=":")
    ax.plot([], [], ":", color=MUTED, label="canaries in this mini-batch")
    ax.legend(frameon=False, fontsize=8)


EXPERIMENT = Experiment(
    name="early",
    title="Memorization happens early",
    about=(
        "An LSTM reads the text in order, with the canaries near its beginning, and exposure is "
        f"measured after every mini-batch. {CANARIES} canaries stand {COPIES} times each in a row; "
        "lines of other seeds are pale. The optimizer is the paper's, RMSprop: Adam's momentum "
        "spreads what a mini-batch does over the next ten."
    ),
    runs=runs,
    run=run,
    conclude=conclude,
    draw=draw,
)
