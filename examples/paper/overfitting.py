"""Memorization is not overfitting (the paper's section 5.3): losses and exposure over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from paper.figures import INK, MUTED, group_colours, quiet_axes
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

REPETITIONS = (0, 1, 4)


def runs(scale: Scale, seeds: Sequence[int], text: str | None) -> list[Run]:
    """One training for each seed, on little text and for long."""
    size: dict[str, Any] = {
        "smoke": {"characters": 3000, "epochs": 3, "width": 32, "samples": 50},
        "small": {"characters": 30_000, "epochs": 40, "width": 192, "samples": 500},
        "large": {"characters": 250_000, "epochs": 60, "width": 512, "samples": 2000},
    }[scale]
    return for_each_seed("lstm", size, seeds, text)


def run(one: Run) -> dict[str, Any]:
    """Train on a small text, and measure after every epoch."""
    spec = Training(
        **one.settings,
        seed=one.seed,
        model="lstm",
        layers=1,
        learning_rate=4e-3,
        schedule="constant",
        evaluate="epoch",
        repetitions=REPETITIONS,
        per_repetition=4,
    )
    trained = train(spec)
    groups = [entry.exposures.by_repetitions() for entry in trained.callback.history]
    return {
        "epochs": [epoch for epoch, _ in trained.losses],
        "train": [loss["train_loss"] for _, loss in trained.losses],
        "test": [loss["test_loss"] for _, loss in trained.losses],
        "exposure": {
            str(times): [mean_bits(group[times]) for group in groups] for times in REPETITIONS
        },
        "most": trained.canaries[0].format.bits,
    }


def conclude(records: list[Record]) -> Conclusion:
    """How much is memorized when the test loss turns."""
    shares, rises, turned = [], [], 0
    for record in records:
        result = record.result
        exposure = np.array(result["exposure"][str(REPETITIONS[-1])])
        turn = int(np.argmin(result["test"]))
        turned += turn < len(result["test"]) - 1
        shares.append(exposure[turn] / exposure.max())
        rises.append(exposure[turn] - exposure[0])
    share, rise = Mean.of(shares), Mean.of(rises)
    claims = (
        Claim(
            "Exposure rises while the test loss still falls.",
            rise.above(0),
            f"by {rise} bits between the first epoch and the one with the least test loss "
            f"(canaries inserted {REPETITIONS[-1]} times)",
        ),
        Claim(
            "It has peaked when the test loss turns up.",
            share.above(0.9) if turned == len(records) else None,
            f"when the test loss is least, exposure is {share.show(2)} of its largest value; the "
            f"test loss turned in {turned} of {counted(len(records), 'training')}",
        ),
    )
    return Conclusion(claims)


def draw(records: list[Record], figure: Figure) -> None:
    """Losses and exposure of the first seed, the others pale."""
    ax = quiet_axes(figure.add_subplot(), "epoch", "exposure (bits)")
    loss = ax.twinx()
    quiet_axes(loss, "", "loss (nats per character)").grid(False)
    loss.spines["right"].set_visible(True)
    colours = group_colours(REPETITIONS)
    for place, record in enumerate(records):
        result, pale = record.result, 1.0 if place == 0 else 0.3
        for times in REPETITIONS:
            ax.plot(
                result["epochs"],
                result["exposure"][str(times)],
                color=colours[times],
                alpha=pale,
                label=(f"inserted {times}×" if times else "never inserted") if place == 0 else None,
            )
        for key, style in (("train", ":"), ("test", "--")):
            loss.plot(
                result["epochs"],
                result[key],
                style,
                color=INK if key == "test" else MUTED,
                alpha=pale,
                linewidth=1.2,
                label=f"{key} loss" if place == 0 else None,
            )
        turn = result["epochs"][int(np.argmin(result["test"]))]
        ax.axvline(turn, color=MUTED, linewidth=0.7, alpha=pale)
    lines, labels = ax.get_legend_handles_labels()
    more, names = loss.get_legend_handles_labels()
    ax.legend([*lines, *more], [*labels, *names], frameon=False, fontsize=8, loc="center right")


EXPERIMENT = Experiment(
    name="overfitting",
    title="Memorization is not overfitting",
    about=(
        "An LSTM is trained for long on little text. Exposure is set beside the loss on the text "
        "that it was trained on and on held-out text; the upright lines are the epochs with the "
        "least held-out loss."
    ),
    runs=runs,
    run=run,
    conclude=conclude,
    draw=draw,
)
