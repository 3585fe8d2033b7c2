"""A study as a product team would make it (the paper's section on Google's Smart Compose).

A subword model learns from mail in which canaries of several lengths stand from once to many times.
How often may something stand in the mail before the model gives it away?
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure import Canaries, Canary, SecretFormat
from paper.figures import INK, MUTED, group_colours, quiet_axes
from paper.intervals import Mean, share_interval
from paper.study import (
    Claim,
    Conclusion,
    Experiment,
    Record,
    Run,
    Scale,
    Table,
    for_each_seed,
    often,
)
from paper.training import Training, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = {
    "4 digits": SecretFormat("My code is {secret}.", secret="[0-9]{4}"),
    "6 digits": SecretFormat("The meeting ID is {secret}.", secret="[0-9]{6}"),
    "9 digits": SecretFormat("My account number is {secret}.", secret="[0-9]{9}"),
    "6 letters": SecretFormat("The password is {secret}.", secret="[a-z]{6}"),
}
# How many canaries of each format are inserted how often.
COUNTS = {0: 150, 1: 150, 2: 100, 4: 60, 8: 30, 16: 16, 32: 8}


def runs(scale: Scale, seeds: Sequence[int], text: str | None) -> list[Run]:
    """One training for each seed."""
    sizes: dict[str, dict[str, Any]] = {
        "smoke": {"characters": 4000, "epochs": 1, "width": 32, "share": 0.05, "samples": 50},
        "small": {"characters": 1_000_000, "epochs": 3, "width": 128, "share": 1},
        "large": {"characters": None, "epochs": 3, "width": 512, "layers": 8, "share": 5},
    }
    return for_each_seed("mail", sizes[scale], seeds, text)


def run(one: Run) -> dict[str, Any]:
    """Insert, train, and measure every canary."""
    settings = dict(one.settings)
    share = settings.pop("share")
    spec = Training(
        **settings, seed=one.seed, vocabulary=2048, length=64, batch=32, learning_rate=2e-3
    )
    counts = {times: max(1, round(share * count)) for times, count in COUNTS.items()}
    inserted = [times for times, count in counts.items() for _ in range(count)]
    drawn: list[Canary] = []
    for label, fmt in FORMATS.items():
        places = random.Random(f"{one.seed} {label}").sample(range(fmt.size), len(inserted))
        drawn += [
            Canary(fmt, fmt.unrank(place), repetitions=times)
            for place, times in zip(places, inserted, strict=True)
        ]
    trained = train(spec, Canaries(drawn))
    latest = trained.exposures
    found: dict[str, dict[str, Any]] = {}
    for label, fmt in FORMATS.items():
        found[label] = {}
        for times in COUNTS:
            group = [e for e in latest if e.canary.format == fmt and e.canary.repetitions == times]
            found[label][str(times)] = {
                "bits": [e.bits for e in group],
                "first": sum(e.rank_high < 1.5 for e in group),
            }
    return {
        "found": found,
        "canaries": len(latest),
        "rows": len(trained.trainer.train_dataset),  # type: ignore[arg-type]
        "inserted": sum(one.repetitions for one in trained.canaries),
        "parameters": trained.model.num_parameters(),
        "test_loss": trained.test_loss,
    }


def conclude(records: list[Record]) -> Conclusion:
    """Exposure by length and repetitions, and from how many on secrets come out."""
    results = [record.result for record in records]
    rows = []
    for label, fmt in FORMATS.items():
        for times in COUNTS:
            groups = [result["found"][label][str(times)] for result in results]
            bits = [bit for group in groups for bit in group["bits"]]
            first = sum(group["first"] for group in groups)
            low, high = share_interval(first, len(bits))
            mean = Mean.of(float(np.mean(group["bits"])) for group in groups)
            rows.append(
                (
                    label,
                    f"{times}",
                    f"{len(bits)}",
                    mean.show(),
                    f"{max(bits):.1f}",
                    f"{fmt.bits:.1f}",
                    f"{first} ({low:.1%} to {high:.1%})",
                )
            )
    once = _difference(results, 1)
    safe = [times for times in COUNTS if _first(results, times) == 0]
    unsafe = [times for times in COUNTS if _first(results, times)]
    at = max((times for times in safe if not unsafe or times < min(unsafe)), default=0)
    number = sum(
        len(result["found"][label][str(times)]["bits"])
        for result in results
        for label in FORMATS
        for times in COUNTS
        if 0 < times <= at
    )
    bound = share_interval(0, number, 0.9)[1] if number else 1.0
    came_out = _first(results, min(unsafe)) if unsafe else 0
    claims = (
        Claim(
            "What stands once in the mail is hardly memorized.",
            once.below(3),
            f"its exposure is {once} bits above the control group's",
        ),
        Claim(
            "Exposure stays far below what an extraction needs, up to many insertions (10,000 in "
            "the paper's corpus of billions of messages).",
            None if at == 0 else not unsafe,
            (
                f"inserted up to {often(at)}, none of {number} canaries is shown to be the "
                f"likeliest of its space (less than {bound:.1%} of such secrets, with 95 % "
                "confidence)"
                if at
                else "already those inserted once are the likeliest of their space in some cases"
            )
            + (
                f"; inserted {often(min(unsafe))}, {came_out} {'is' if came_out == 1 else 'are'}. "
                f"One insertion is 1 of {results[0]['rows']:,} rows here"
                if unsafe
                else ""
            ),
        ),
    )
    columns = (
        "secret",
        "inserted",
        "canaries",
        "mean exposure (bits)",
        "largest",
        "most possible",
        "rank 1 (95 % interval)",
    )
    caption = (
        f"{results[0]['canaries']:,} canaries for each seed, inserted {results[0]['inserted']:,} "
        f"times in all:"
    )
    return Conclusion(claims, (Table(columns, tuple(rows), caption),))


def _difference(results: list[dict[str, Any]], times: int) -> Mean:
    """Exposure of those inserted so often above that of controls, all formats, over seeds."""
    return Mean.of(
        float(
            np.mean(
                [
                    np.mean(result["found"][label][str(times)]["bits"])
                    - np.mean(result["found"][label]["0"]["bits"])
                    for label in FORMATS
                ]
            )
        )
        for result in results
    )


def _first(results: list[dict[str, Any]], times: int) -> int:
    """How many inserted so often have rank 1."""
    if times == 0:
        return 0
    return sum(
        result["found"][label][str(times)]["first"] for result in results for label in FORMATS
    )


def draw(records: list[Record], figure: Figure) -> None:
    """Every canary's exposure by repetitions, a panel for each format."""
    axes = figure.subplots(1, len(FORMATS), sharey=True)
    colours = group_colours(COUNTS)
    spread = np.random.default_rng(0)
    for ax, (label, fmt) in zip(np.atleast_1d(axes), FORMATS.items(), strict=True):
        first = label == next(iter(FORMATS))
        quiet_axes(ax, "times inserted", "exposure (bits)" if first else "")
        for place, times in enumerate(COUNTS):
            groups = [record.result["found"][label][str(times)] for record in records]
            bits = [bit for group in groups for bit in group["bits"]]
            across = place + spread.uniform(-0.3, 0.3, len(bits))
            ax.plot(across, bits, ".", color=colours[times], markersize=3, alpha=0.6)
            ax.plot([place - 0.35, place + 0.35], [np.median(bits)] * 2, color=INK, linewidth=1.4)
        ax.axhline(fmt.bits, color=MUTED, linewidth=0.8, linestyle=":")
        ax.set_xticks(range(len(COUNTS)), [str(times) for times in COUNTS])
        ax.set_title(label, fontsize=10)


EXPERIMENT = Experiment(
    name="autocomplete",
    title="A product team's study, in the manner of Smart Compose",
    about=(
        "A small Llama with a subword vocabulary learns from text (give mail with `--text`) that "
        "holds thousands of canaries of four formats, inserted from once to 32 times. Bars are "
        "medians, the dotted line is the most that an exposure can be."
    ),
    runs=runs,
    run=run,
    conclude=conclude,
    draw=draw,
    size=(13.0, 4.0),
)
