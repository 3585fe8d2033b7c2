"""What raises or lowers memorization: one thing changed at a time (the paper, sections 5 and 9)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure import Canaries, Canary, SecretFormat, measure_exposure
from paper.figures import INK, quiet_axes
from paper.intervals import CHANCE, Mean
from paper.study import (
    Claim,
    Conclusion,
    Experiment,
    Record,
    Run,
    Scale,
    Table,
    by_name,
    mean,
    often,
)
from paper.training import Trained, Training, mean_bits, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPETITIONS = (0, 1, 2, 4, 8, 16)
LOOKED_AT = 4  # repetitions: neither all nor nothing is memorized
BASE = "base"
PREFIX = "The random number is "
CONTEXTS = (2, 5, 12, len(PREFIX))  # characters before the secret
BITS = (8, 6, 4, 3)  # of quantized weights

# What is changed, to what; the base setting has its own value.
CHANGES: dict[str, tuple[Any, ...]] = {
    "width": (32, 64, 256),
    "batch": (8, 32, 64),
    "secret": ("[0-9]{4}", "[0-9]{6}", "[0-9]{12}"),
    "dropout": (0.2, 0.5),
    "weight_decay": (0.01, 0.1, 1.0),
}
_WORDS = {
    "width": "width of the model",
    "batch": "batch size",
    "secret": "secret",
    "dropout": "dropout",
    "weight_decay": "weight decay",
}


def runs(scale: Scale, seeds: Sequence[int], text: str | None) -> list[Run]:
    """The base setting and each change, for each seed."""
    base: dict[str, Any] = {
        "smoke": {"characters": 3000, "epochs": 1, "width": 32, "samples": 50},
        "small": {"characters": 50_000, "epochs": 10, "width": 128},
        "large": {"characters": 1_000_000, "epochs": 10, "width": 512},
    }[scale]
    changes = {"dropout": (0.2,)} if scale == "smoke" else CHANGES
    planned = []
    for seed in seeds:
        planned.append(Run(BASE, seed, {**base, "text": text}))
        for what, values in changes.items():
            planned += [
                Run(f"{what}-{place}", seed, {**base, "text": text, what: value})
                for place, value in enumerate(values)
            ]
    return planned


def run(one: Run) -> dict[str, Any]:
    """Train; the base setting is also measured with less context, and quantized."""
    spec = Training(
        **{"secret": "[0-9]{9}", **one.settings},
        seed=one.seed,
        model="lstm",
        layers=1,
        learning_rate=5e-3,
        template=PREFIX + "{secret}.",
        repetitions=REPETITIONS,
        per_repetition=6,
    )
    trained = train(spec)
    result = {
        "exposure": {str(times): trained.exposure(times) for times in REPETITIONS},
        "most": trained.canaries[0].format.bits,
        "test_loss": trained.test_loss,
    }
    if one.name == BASE:
        result["context"] = {str(length): shortened(trained, length) for length in CONTEXTS}
        result["quantized"] = {str(bits): quantized(trained, bits) for bits in BITS}
    return result


def shortened(trained: Trained, length: int) -> dict[str, float]:
    """Mean exposure by repetitions if only the last characters before the secret are given."""
    fmt = SecretFormat(PREFIX[-length:] + "{secret}.", secret=trained.spec.secret)
    canaries = [Canary(fmt, one.secret, one.repetitions) for one in trained.canaries]
    return _by_repetitions(trained, trained.model, Canaries(canaries))


def quantized(trained: Trained, bits: int) -> dict[str, float]:
    """Mean exposure by repetitions with weights rounded to so many bits, a scale for each row."""
    import torch

    model = copy.deepcopy(trained.model)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                step = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
                weight.copy_((weight / step).round() * step)
    return _by_repetitions(trained, model, trained.canaries)


def _by_repetitions(trained: Trained, model: Any, canaries: Canaries) -> dict[str, float]:
    measured = measure_exposure(
        model, trained.tokenizer, canaries, samples=trained.spec.samples, seed=trained.spec.seed
    )
    return {str(times): mean_bits(group) for times, group in measured.by_repetitions().items()}


def conclude(records: list[Record]) -> Conclusion:
    """Exposure under each change, and its difference to the base setting, paired by seed."""
    groups = by_name(records)
    base = {record.run.seed: record.result for record in groups[BASE]}
    key = str(LOOKED_AT)
    rows = [("base setting", _exposure(groups[BASE]), "", _loss(groups[BASE]))]
    changes: dict[str, list[Mean]] = {}
    for name, group in groups.items():
        if name == BASE:
            continue
        what = name.rpartition("-")[0]
        change = Mean.of(
            record.result["exposure"][key] - base[record.run.seed]["exposure"][key]
            for record in group
        )
        changes.setdefault(what, []).append(change)
        value = group[0].run.settings[what]
        value = f"`{value}`" if isinstance(value, str) else f"{value:g}"
        rows.append((f"{_WORDS[what]} {value}", _exposure(group), change.show(), _loss(group)))
    for what, label in (
        ("context", "only the last {} characters before the secret given"),
        ("quantized", "weights rounded to {} bits"),
    ):
        for value in base[groups[BASE][0].run.seed][what]:
            each = [
                record.result[what][value][key] - record.result["exposure"][key]
                for record in groups[BASE]
            ]
            changes.setdefault(what, []).append(Mean.of(each))
            own = mean(groups[BASE], what, value, key)
            rows.append((label.format(value), own.show(), Mean.of(each).show(), ""))
    counts = [mean(groups[BASE], "exposure", str(times)) for times in REPETITIONS]
    doubling = Mean.of(
        np.polyfit(
            np.log2(REPETITIONS[1:]),
            [result["exposure"][str(times)] for times in REPETITIONS[1:]],
            1,
        )[0]
        for result in base.values()
    )
    claims = [
        Claim(
            "The more often a secret stands in the text, the more exposed it is.",
            doubling.above(0),
            f"twice as often, {doubling} bits more (a straight line for each seed); inserted "
            + ", ".join(
                f"{often(times)} {count}" for times, count in zip(REPETITIONS, counts, strict=True)
            )
            + " bits",
        ),
    ]
    helps = {
        "dropout": "Dropout does not prevent memorization.",
        "weight_decay": "Weight decay does not prevent memorization.",
        "quantized": "Quantizing the weights does not prevent memorization.",
    }
    for what, words in helps.items():
        if what in changes:
            claims.append(_no_help(words, what, changes[what], groups, base))
    if "context" in changes:
        shortest = changes["context"][0]
        claims.append(
            Claim(
                "With more of the context before it, a secret is more exposed.",
                shortest.below(0),
                f"with only the last {CONTEXTS[0]} characters before it the change is {shortest} "
                "bits",
            )
        )
    columns = (
        "what is changed",
        f"exposure, inserted {LOOKED_AT} times (bits)",
        "difference to the base setting",
        "loss on held-out text",
    )
    return Conclusion(tuple(claims), (Table(columns, tuple(rows)),))


def _no_help(
    words: str,
    what: str,
    changes: list[Mean],
    groups: dict[str, list[Record]],
    base: dict[int, dict[str, Any]],
) -> Claim:
    """Held if the exposure of often repeated canaries stays far above chance under every value."""
    most = str(REPETITIONS[-1])
    if what == "quantized":
        least = [
            min(result["quantized"][value][most] for value in result["quantized"])
            for result in base.values()
        ]
    else:
        least = [
            min(
                record.result["exposure"][most]
                for name, group in groups.items()
                if name.startswith(f"{what}-")
                for record in group
                if record.run.seed == seed
            )
            for seed in base
        ]
    lowest = Mean.of(least)
    return Claim(
        words,
        lowest.above(2 * CHANCE),
        f"inserted {most} times, the least exposure under any value is {lowest} bits, chance is "
        f"{CHANCE:.2f}; inserted {LOOKED_AT} times, the "
        + ("change is " if len(changes) == 1 else "changes are ")
        + ", ".join(change.show() for change in changes),
    )


def _exposure(group: list[Record]) -> str:
    return mean(group, "exposure", str(LOOKED_AT)).show()


def _loss(group: list[Record]) -> str:
    return mean(group, "test_loss").show(2)


def draw(records: list[Record], figure: Figure) -> None:
    """Exposure by repetitions for each kind of change."""
    groups = by_name(records)
    kinds = list(dict.fromkeys(name.rpartition("-")[0] for name in groups if name != BASE))
    panels = [*kinds, "context", "quantized"]
    axes = figure.subplots(1, len(panels), sharey=True)
    titles = {**_WORDS, "context": "context (characters)", "quantized": "bits of a weight"}
    places = range(len(REPETITIONS))
    for ax, what in zip(np.atleast_1d(axes), panels, strict=True):
        quiet_axes(ax, "times inserted", "exposure (bits)" if what == panels[0] else "")
        lines: dict[str, list[float]] = {"base": _line(groups[BASE], "exposure")}
        if what in kinds:
            for name, group in groups.items():
                if name.rpartition("-")[0] == what:
                    value = group[0].run.settings[what]
                    label = str(value) if isinstance(value, str) else f"{value:g}"
                    lines[label] = _line(group, "exposure")
        else:
            for value in groups[BASE][0].result[what]:
                lines[value] = _line(groups[BASE], what, value)
        colours = ("#440154", "#31688e", "#35b779", "#c46200")
        for place, (label, values) in enumerate(lines.items()):
            colour = INK if label == "base" else colours[(place - 1) % len(colours)]
            ax.plot(
                places,
                values,
                marker="o",
                markersize=3,
                linewidth=1.2,
                color=colour,
                label=label,
                linestyle="--" if label == "base" else "-",
            )
        ax.set_xticks(places, [str(times) for times in REPETITIONS])
        ax.set_title(titles[what], fontsize=9)
        ax.legend(frameon=False, fontsize=7)


def _line(group: list[Record], what: str, value: str | None = None) -> list[float]:
    found = [
        record.result[what] if value is None else record.result[what][value] for record in group
    ]
    return [float(np.mean([one[str(times)] for one in found])) for times in REPETITIONS]


EXPERIMENT = Experiment(
    name="factors",
    title="What raises or lowers memorization",
    about=(
        "An LSTM with one thing changed at a time: size of the model, batch, length of the secret, "
        "context that is given, and what the paper found not to help: dropout, weight decay, "
        "quantized weights."
    ),
    runs=runs,
    run=run,
    conclude=conclude,
    draw=draw,
    size=(15.0, 3.6),
)
