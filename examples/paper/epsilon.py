"""A lower bound on epsilon, measured, beside the upper one that is proved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure import (
    Canaries,
    Canary,
    PrivacyArguments,
    PrivateTrainer,
    SecretFormat,
    estimate_epsilon,
)
from paper.figures import INK, MUTED, quiet_axes
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
)
from paper.training import Training, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = SecretFormat("The random number is {secret}.", secret="[0-9]{9}")
CONFIDENCE = 0.95
METHODS = ("one_run", "one_run_fdp")
EPSILONS = (1.0, 8.0, 100.0)  # proved, of a row
MANY = "many"  # trainings, each with one canary in or out


def runs(scale: Scale, seeds: Sequence[int], text: str | None) -> list[Run]:
    """One run with many canaries for each epsilon and seed, and many small runs with one canary."""
    sizes: dict[str, dict[str, Any]] = {
        "smoke": {
            "characters": 3000,
            "epochs": 1,
            "width": 16,
            "layers": 1,
            "samples": 0,
            "canaries": 40,
        },
        "small": {
            "characters": 20_000,
            "epochs": 12,
            "samples": 0,
            "canaries": 1000,
            "batch": 32,
        },
        "large": {
            "characters": 2_000_000,
            "epochs": 12,
            "width": 512,
            "layers": 6,
            "samples": 0,
            "canaries": 20_000,
            "batch": 256,
        },
    }
    many = {
        "smoke": {"characters": 2000, "epochs": 1, "width": 16, "layers": 1, "trainings": 4},
        "small": {"characters": 4000, "epochs": 12, "width": 32, "layers": 1, "trainings": 40},
        "large": {"characters": 20_000, "epochs": 12, "trainings": 1000},
    }
    planned = []
    for seed in seeds:
        for epsilon in (None,) if scale == "smoke" else (*EPSILONS, None):
            name = "none" if epsilon is None else f"epsilon-{epsilon:g}"
            settings = {**sizes[scale], "text": text, "epsilon": epsilon}
            planned.append(Run(name, seed, settings))
    for epsilon in (None, 8.0):
        name = f"{MANY}-none" if epsilon is None else f"{MANY}-{epsilon:g}"
        settings = {**many[scale], "samples": 0, "batch": 8, "text": text, "epsilon": epsilon}
        planned.append(Run(name, seeds[0], settings))
    return planned


def run(one: Run) -> dict[str, Any]:
    """Train with canaries that a coin put in or left out, and bound epsilon from their scores."""
    return many_runs(one) if one.name.startswith(MANY) else one_run(one)


def _trained(settings: dict[str, Any], seed: int, canaries: Canaries) -> Any:
    """One training on it, with DP-SGD if an epsilon is given."""
    settings = dict(settings)
    epsilon = settings.pop("epsilon")
    options: dict[str, Any] = {}
    if epsilon is not None:
        options["trainer_class"] = PrivateTrainer
        options["privacy"] = PrivacyArguments(target_epsilon=epsilon, noise_seed=seed)
    spec = Training(**settings, seed=seed, order="random")
    return train(spec, canaries, **options)


def one_run(one: Run) -> dict[str, Any]:
    """The bounds from one training with many canaries, each in a row of its own."""
    settings = dict(one.settings)
    count = settings.pop("canaries")
    canaries = Canaries.generate(FORMAT, [1], per_repetition=count, seed=one.seed, inclusion="coin")
    trained = _trained(settings, one.seed, canaries)
    scores: tuple[list[float], list[float]] = ([], [])  # out, in
    for exposure in trained.exposures:
        scores[exposure.canary.inserted].append(-exposure.log_perplexity)
    delta, epsilon = _proved(trained)
    bounds = {
        method: estimate_epsilon(scores[1], scores[0], delta, CONFIDENCE, method).epsilon
        for method in METHODS
    }
    return {
        "bounds": bounds,
        "proved": epsilon,
        "delta": delta,
        "gap": _gap(scores),
        "in": len(scores[1]),
        "out": len(scores[0]),
        "test_loss": trained.test_loss,
    }


def many_runs(one: Run) -> dict[str, Any]:
    """The bound from many trainings, each with the same canary in or out, by turns."""
    settings = dict(one.settings)
    count = settings.pop("trainings")
    secret = FORMAT.sample(1, seed=one.seed)[0]
    scores: tuple[list[float], list[float]] = ([], [])
    delta, epsilon = 1e-6, math.inf
    for number in range(count):
        is_in = number % 2 == 0
        canaries = Canaries([Canary(FORMAT, secret, repetitions=int(is_in))])
        trained = _trained(settings, 1000 * one.seed + number, canaries)
        scores[is_in].append(-trained.exposures[0].log_perplexity)
        if is_in:
            delta, epsilon = _proved(trained)
    bound = estimate_epsilon(scores[1], scores[0], delta, CONFIDENCE, "clopper_pearson")
    return {
        "bounds": {"clopper_pearson": bound.epsilon},
        "proved": epsilon,
        "delta": delta,
        "gap": _gap(scores),
        "in": len(scores[1]),
        "out": len(scores[0]),
        "test_loss": trained.test_loss,
    }


def _gap(scores: tuple[list[float], list[float]]) -> float:
    """How far those in are above those out, in standard deviations of all."""
    out, inside = scores
    return float((np.mean(inside) - np.mean(out)) / np.std([*out, *inside]))


# What a bound rests on besides the coins.
_IF = {"one_run_fdp": ", if the leak has a Gaussian curve"}


def _proved(trained: Any) -> tuple[float, float]:
    """delta, and the epsilon that was spent."""
    if hasattr(trained.trainer, "epsilon"):
        return trained.trainer.delta, trained.trainer.epsilon
    return 1e-6, math.inf


def conclude(records: list[Record]) -> Conclusion:
    """Lower bounds beside upper ones."""
    rows, above, number = [], 0, 0
    best: dict[float, float] = {}
    for name, group in by_name(records).items():
        results = [record.result for record in group]
        proved = float(results[0]["proved"])
        for method in results[0]["bounds"]:
            bounds = [float(result["bounds"][method]) for result in results]
            if math.isfinite(proved):
                above += sum(bound > proved for bound in bounds)
                number += len(bounds)
                best[proved] = max(best.get(proved, 0.0), *bounds)
            kind = f"{results[0]['in'] + results[0]['out']}"
            kind += " trainings" if name.startswith(MANY) else " canaries in one training"
            rows.append(
                (
                    "∞" if math.isinf(proved) else f"{proved:.2f}",
                    f"`{method}`, {kind}{_IF.get(method, '')}",
                    ", ".join(f"{bound:.2f}" for bound in bounds),
                    mean(group, "gap").show(2),
                    mean(group, "test_loss").show(2),
                )
            )
    plain = [r for r in records if r.name == "none"]
    leaks = [float(r.result["bounds"]["one_run"]) for r in plain]
    allowed = math.ceil((1 - CONFIDENCE) * number)
    gaps = sorted(best.items())
    claims = (
        Claim(
            "(ours) No lower bound exceeds the epsilon that is proved.",
            None if not number or 0 < above <= allowed else above == 0,
            f"{above} of {number} do, at a confidence of {CONFIDENCE:.0%} each",
        ),
        Claim(
            "(ours) Without DP the leak shows in one run.",
            min(leaks) > 0,
            ("a bound of " if len(leaks) == 1 else "bounds of ")
            + ", ".join(f"{leak:.2f}" for leak in leaks),
        ),
        Claim(
            "The proofs bound the leak from above, exposure from below; the truth lies between.",
            None,
            "the largest bounds from below: "
            + (
                ", ".join(f"{bound:.2f} where {proved:.2f} is proved" for proved, bound in gaps)
                or "none beside a proof"
            ),
        ),
    )
    columns = (
        "ε proved",
        "lower bound by",
        f"ε at least (confidence {CONFIDENCE:.0%}), by seed",
        "gap of the scores (standard deviations)",
        "loss on held-out text",
    )
    return Conclusion(claims, (Table(columns, tuple(rows)),))


def draw(records: list[Record], figure: Figure) -> None:
    """Lower bounds at each proved epsilon."""
    ax = quiet_axes(figure.add_subplot(), "epsilon proved", "lower bound on epsilon")
    finite = sorted({float(r.result["proved"]) for r in records if float(r.result["proved"]) < 1e9})
    places = {value: place for place, value in enumerate([*finite, math.inf])}
    marks = {"one_run": "o", "one_run_fdp": "s", "clopper_pearson": "^"}
    colours = {"one_run": "#440154", "one_run_fdp": "#21918c", "clopper_pearson": "#c46200"}
    shown: set[str] = set()
    for record in records:
        at = places[float(record.result["proved"])]
        for step, (method, bound) in enumerate(record.result["bounds"].items()):
            label = method if method not in shown else None
            shown.add(method)
            ax.plot(
                at + 0.1 * (step - 0.5),
                float(bound),
                marks[method],
                color=colours[method],
                label=label,
                markersize=6,
            )
    for value, place in places.items():
        if math.isfinite(value):
            ax.plot([place - 0.3, place + 0.3], [value, value], color=INK, linewidth=1.2)
    ax.plot([], [], color=INK, label="proved")
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(bottom=-0.1)
    ax.set_xticks(
        list(places.values()),
        [f"{value:.2g}" if math.isfinite(value) else "none" for value in places],
    )
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.legend(frameon=False, fontsize=8)


EXPERIMENT = Experiment(
    name="epsilon",
    title="A lower bound on epsilon, beside the proved one",
    about=(
        "Canaries are put into the training set or left out by a coin each; from their scores "
        "follows how private the training cannot have been. A canary is a row, the unit of "
        "privacy. With many trainings each has one canary."
    ),
    runs=runs,
    run=run,
    conclude=conclude,
    draw=draw,
    size=(7.5, 4.2),
)
