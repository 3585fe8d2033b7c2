"""Utility against memorization over many hyperparameters (the paper's section 5.1, figure 4).

Settings are drawn at random from ranges: with this many axes that covers them better than a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from paper.figures import INK, MUTED, quiet_axes
from paper.intervals import Mean, correlation_interval
from paper.study import (
    Claim,
    Conclusion,
    Experiment,
    Record,
    Run,
    Scale,
    Table,
    by_name,
    counted,
    mean,
)
from paper.training import Training, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INSERTED = 4
NEAR = 0.05  # as useful as the best: this share above the least perplexity
AGAIN = 2  # further seeds of the settings that are compared


def runs(scale: Scale, seeds: Sequence[int], text: str | None) -> list[Run]:
    """Settings drawn from the first seed, one training each."""
    count, size = {
        "smoke": (3, {"characters": 3000, "samples": 50}),
        "small": (64, {"characters": 50_000, "samples": 500}),
        "large": (200, {"characters": 1_000_000, "samples": 2000}),
    }[scale]
    draw = np.random.default_rng(seeds[0])
    return [
        Run(f"setting-{number}", seeds[0], {**drawn(draw, scale), **size, "text": text})
        for number in range(count)
    ]


def drawn(draw: np.random.Generator, scale: Scale) -> dict[str, Any]:
    """One setting at random."""
    kind = str(draw.choice(["lstm", "gru", "llama"]))
    optimizer = str(draw.choice(["adamw_torch", "rmsprop", "sgd"]))
    rate = 10 ** draw.uniform(-3, -2)
    widths = [24, 32] if scale == "smoke" else [32, 64, 96, 128]
    return {
        "model": kind,
        "width": int(draw.choice(widths)),
        "layers": int(draw.choice([1, 2])),
        "dropout": float(draw.choice([0.0, 0.2, 0.5])),
        "batch": int(draw.choice([8, 16, 32])),
        "epochs": 1 if scale == "smoke" else int(draw.integers(2, 13)),
        "optimizer": optimizer,
        # SGD needs far larger steps than methods that scale them; RMSprop somewhat smaller ones.
        "learning_rate": float(rate * {"sgd": 100, "rmsprop": 0.5}.get(optimizer, 1)),
        "weight_decay": float(draw.choice([0.0, 0.01, 0.1])),
    }


def more(records: list[Record], scale: Scale) -> list[Run]:
    """Of settings about as good as the best, the least and the most memorizing ones again."""
    low, high = extremes(records)
    return [
        Run(record.name, record.run.seed + extra, record.run.settings)
        for record in ([low] if low is high else [low, high])
        for extra in range(1, 1 + AGAIN)
    ]


def sweep(records: list[Record]) -> list[Record]:
    """Those of the settings that were drawn, without the further seeds of two of them."""
    seed = records[0].run.seed
    return [record for record in records if record.run.seed == seed]


def extremes(records: list[Record]) -> tuple[Record, Record]:
    """The least and the most memorizing record among those nearly as good as the best."""
    first = sweep(records)
    best = min(record.result["perplexity"] for record in first)
    near = [r for r in first if r.result["perplexity"] <= (1 + NEAR) * best]
    near.sort(key=lambda record: float(record.result["exposure"]))
    return near[0], near[-1]


def run(one: Run) -> dict[str, Any]:
    """Train with one setting."""
    spec = Training(**one.settings, seed=one.seed, repetitions=(0, INSERTED), per_repetition=8)
    trained = train(spec)
    record = trained.record()
    return {
        "parameters": record["parameters"],
        "perplexity": math.exp(min(50.0, record["test_loss"])),
        "train_perplexity": math.exp(min(50.0, record["train_loss"])),
        "exposure": trained.exposure(INSERTED),
        "controls": trained.exposure(0),
        "exposures": [one["bits"] for one in record["exposures"] if one["repetitions"] == INSERTED],
    }


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points that no other is better than in both coordinates (less is better)."""
    order = sorted(range(len(points)), key=lambda place: points[place])
    kept: list[int] = []
    for place in order:
        if not kept or points[place][1] < points[kept[-1]][1]:
            kept.append(place)
    return kept


def conclude(records: list[Record]) -> Conclusion:
    """The frontier, and how far two settings of equal use are apart over seeds."""
    first = sweep(records)
    points = [(r.result["perplexity"], r.result["exposure"]) for r in first]
    low, high = extremes(records)
    groups = by_name(records)
    means = [mean(groups[one.name], "exposure") for one in (low, high)]
    uses = [mean(groups[one.name], "perplexity") for one in (low, high)]
    apart = Mean.of(
        more.result["exposure"] - less.result["exposure"]
        for less, more in zip(groups[low.name], groups[high.name], strict=True)
    )
    further = len(records) - len(first)
    again = (
        f"{counted(len(groups[low.name]) - 1, 'further seed')} ({counted(further, 'more run')}, "
        f"{len(records):,} in all)"
    )
    rows = []
    for place in frontier(points):
        settings, result = first[place].run.settings, first[place].result
        rows.append(
            (
                f"{result['perplexity']:.2f}",
                f"{result['exposure']:.1f} (canaries {min(result['exposures']):.1f} to "
                f"{max(result['exposures']):.1f})",
                f"{settings['model']}, {settings['layers']} x {settings['width']}",
                f"{settings['optimizer'].partition('_')[0]}, {settings['learning_rate']:.2g}",
                f"{settings['batch']}, {settings['epochs']}",
                f"{settings['dropout']:g}, {settings['weight_decay']:g}",
            )
        )
    columns = (
        "perplexity (per character)",
        "exposure (bits)",
        "model",
        "optimizer, learning rate",
        "batch, epochs",
        "dropout, weight decay",
    )
    claim = Claim(
        "At the same usefulness some settings memorize far less than others: one wants to be on "
        "the Pareto frontier.",
        None if low is high else apart.above(0),
        f"{counted(len(first), 'setting')}, one training each; "
        + (
            f"only one of them qualifies, the best itself: no other is within {NEAR:.0%} of its "
            f"perplexity, so there are no two to compare. It was trained with {again}: "
            f"{means[0]} bits at perplexity {uses[0].show(2)}"
            if low is high
            else f"of those within {NEAR:.0%} of the least perplexity the least and the most "
            f"memorizing one were each trained with {again}: {means[0]} bits at perplexity "
            f"{uses[0].show(2)}, and {means[1]} bits at {uses[1].show(2)}"
        ),
    )
    correlation = correlation_interval(
        np.log([perplexity for perplexity, _ in points]), [bits for _, bits in points]
    )
    trade = Claim(
        "Better models memorize more, over all settings.",
        correlation.below(0),
        f"correlation of the log-perplexity of held-out text with exposure {correlation.show(2)}",
    )
    return Conclusion((claim, trade), (Table(columns, tuple(rows), "The Pareto frontier:"),))


def draw(records: list[Record], figure: Figure) -> None:
    """A point for each training, the frontier as a line."""
    first = sweep(records)
    points = [(r.result["perplexity"], r.result["exposure"]) for r in first]
    ax = quiet_axes(
        figure.add_subplot(),
        "perplexity of held-out text, per character",
        f"exposure of canaries inserted {INSERTED} times (bits)",
    )
    marks = {"lstm": "o", "gru": "s", "llama": "^"}
    colours = {"adamw": "#440154", "rmsprop": "#21918c", "sgd": "#c46200"}
    for record, (perplexity, bits) in zip(first, points, strict=True):
        settings = record.run.settings
        ax.plot(
            perplexity,
            bits,
            marks[settings["model"]],
            markersize=5,
            alpha=0.8,
            color=colours[settings["optimizer"].partition("_")[0]],
        )
    best = frontier(points)
    ax.step(
        [points[place][0] for place in best],
        [points[place][1] for place in best],
        where="post",
        color=INK,
        linewidth=1,
        zorder=0,
        label="Pareto frontier",
    )
    for kind, mark in marks.items():
        ax.plot([], [], mark, color=MUTED, label=kind.upper() if kind != "llama" else "Llama")
    for name, colour in colours.items():
        label = {"adamw": "AdamW", "rmsprop": "RMSprop", "sgd": "SGD"}[name]
        ax.plot([], [], "o", color=colour, label=label)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.legend(frameon=False, fontsize=8)


EXPERIMENT = Experiment(
    name="pareto",
    title="Utility against memorization",
    about=(
        "Many trainings with settings drawn at random: kind and size of model, dropout, batch, "
        "epochs, optimizer, learning rate, weight decay. Each is a point; the line joins those "
        "that no other beats in both."
    ),
    runs=runs,
    run=run,
    conclude=conclude,
    draw=draw,
    more=more,
    size=(7.5, 4.8),
)
