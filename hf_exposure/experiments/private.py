"""DP-SGD against memorization: the paper's table of optimizers and epsilons (section 9.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hf_exposure.experiments.intervals import Mean
from hf_exposure.experiments.study import (
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
from hf_exposure.experiments.training import Training, train
from hf_exposure.extraction import extract_secrets
from hf_exposure.findings import CHANCE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLANTED = (0, 4, 16)
RATES = {"adamw_torch": 2e-3, "sgd": 0.5}

# (name, optimizer, what PrivacyArguments gets; None trains without clipping and noise)
TRAININGS: tuple[tuple[str, str, dict[str, float] | None], ...] = (
    ("adamw-1", "adamw_torch", {"target_epsilon": 0.7}),
    ("adamw-2", "adamw_torch", {"target_epsilon": 5.0}),
    ("adamw-3", "adamw_torch", {"target_epsilon": 100.0}),
    ("adamw-4", "adamw_torch", {"noise_multiplier": 0.03}),
    ("adamw-5", "adamw_torch", {"noise_multiplier": 0.003}),
    ("adamw-6", "adamw_torch", {"noise_multiplier": 0.0}),
    ("sgd-6", "sgd", {"noise_multiplier": 0.0}),
    ("sgd", "sgd", None),
    ("adamw", "adamw_torch", None),
)
SEARCHED = 16  # strings that a search is to bring out
_NAMES = {"adamw_torch": "AdamW", "sgd": "SGD"}


def runs(scale: Scale, seeds: Sequence[int], text: str | None) -> list[Run]:
    """Each optimizer with each amount of noise, for each seed."""
    sizes: dict[str, dict[str, Any]] = {
        "smoke": {"characters": 3000, "epochs": 1, "width": 16, "layers": 1, "samples": 50},
        "small": {"characters": 50_000, "epochs": 12},
        "large": {"characters": 5_000_000, "epochs": 12, "width": 512, "layers": 6},
    }
    chosen = TRAININGS[1:2] + TRAININGS[-1:] if scale == "smoke" else TRAININGS
    return [
        Run(name, seed, {**sizes[scale], "text": text, "optimizer": optimizer, "privacy": privacy})
        for name, optimizer, privacy in chosen
        for seed in seeds
    ]


def run(one: Run) -> dict[str, Any]:
    """Train with or without DP-SGD, measure, and try to extract."""
    settings = dict(one.settings)
    privacy = settings.pop("privacy")
    spec = Training(
        **settings, seed=one.seed, learning_rate=RATES[settings["optimizer"]],
        batch=16, order="random", repetitions=PLANTED, per_repetition=4,
    )
    options: dict[str, Any] = {}
    if privacy is not None:
        from hf_exposure.private import PrivacyArguments, PrivateTrainer

        options["trainer_class"] = PrivateTrainer
        options["privacy"] = PrivacyArguments(**privacy, noise_seed=one.seed)
    trained = train(spec, **options)
    fmt = trained.canaries[0].format
    found = extract_secrets(
        trained.model, trained.tokenizer, fmt, count=SEARCHED, max_forwards=20_000,
        canaries=trained.canaries,
    )
    often = {
        one.secret for one in trained.canaries.inserted if one.repetitions == max(PLANTED)
    }
    trainer: Any = trained.trainer
    return {
        "epsilon": math.inf if privacy is None else trainer.epsilon,
        "delta": None if privacy is None else trainer.delta,
        "noise": None if privacy is None else trainer.noise_multiplier,
        "steps": trainer.state.global_step,
        "test_loss": trained.test_loss,
        "exposure": {str(times): trained.exposure(times) for times in PLANTED},
        "extracted": len(often & {item.secret for item in found}),
        "of": len(often),
    }


def conclude(records: list[Record]) -> Conclusion:
    """The paper's table, and what strong and weak noise do."""
    groups = by_name(records)
    rows = []
    for group in groups.values():
        results = [record.result for record in group]
        privacy = group[0].run.settings["privacy"]
        optimizer = _NAMES[group[0].run.settings["optimizer"]]
        noise = "–" if privacy is None else f"{results[0]['noise']:.3g}"
        label = "no clipping, no noise" if privacy is None else _epsilon(results[0]["epsilon"])
        rows.append(
            (
                optimizer, label, noise, _loss(group),
                *(_exposure(group, times).show() for times in PLANTED),
                f"{sum(result['extracted'] for result in results)} of "
                f"{sum(result['of'] for result in results)}",
            )
        )
    often = max(PLANTED)
    claims = []
    strong = [
        record for record in records
        if record.run.settings["privacy"] and float(record.result["epsilon"]) <= 5.01
    ]
    plain = [record for record in records if record.run.settings["privacy"] is None]
    if strong:
        left = _exposure(strong, often)
        claims.append(
            Claim(
                "DP-SGD with a strong guarantee brings canaries to chance.",
                left.low <= 1.9 and left.value < 3,
                f"with epsilon of at most 5, canaries in {often} rows have {left} bits; those "
                f"without DP {_exposure(plain, often)}; chance is {CHANCE:.2f}. The guarantee for "
                f"{often} rows together is {often} times the epsilon",
            )
        )
    weak = [
        record for record in records
        if (record.run.settings["privacy"] or {}).get("noise_multiplier")
    ]
    if weak:
        left = _exposure(weak, often)
        out = sum(record.result["extracted"] for record in weak)
        claims.append(
            Claim(
                "Noise far too small for any guarantee still nearly removes memorization.",
                out == 0 and left.high < _exposure(plain, often).low,
                f"with epsilon above {_epsilon(min(float(r.result['epsilon']) for r in weak))}, "
                f"{left} bits, and {out} of {sum(r.result['of'] for r in weak)} canaries come out",
            )
        )
    clipped = [
        record for record in records
        if (record.run.settings["privacy"] or {}).get("noise_multiplier") == 0
    ]
    if clipped:
        out = sum(record.result["extracted"] for record in clipped)
        claims.append(
            Claim(
                "(ours) Clipping alone, without any noise, does the same.",
                out == 0 and _exposure(clipped, often).high < _exposure(plain, often).low,
                f"{_exposure(clipped, often)} bits, and {out} of "
                f"{sum(r.result['of'] for r in clipped)} come out",
            )
        )
    columns = (
        "optimizer", "ε of one row", "noise multiplier", "loss on held-out text",
        "exposure, never planted", *(f"planted {times} times" for times in PLANTED[1:]),
        f"extracted, planted {often} times",
    )
    return Conclusion(tuple(claims), (Table(columns, tuple(rows)),))


def _epsilon(value: Any) -> str:
    number = float(value)
    if math.isinf(number):
        return "∞"
    return f"{number:.2f}" if number < 1000 else f"{number:.1e}"


def _loss(group: list[Record]) -> str:
    return mean(group, "test_loss").show(2)


def _exposure(group: list[Record], times: int) -> Mean:
    return mean(group, "exposure", str(times))


def draw(records: list[Record], figure: Figure) -> None:
    """Loss and exposure of every training."""
    from hf_exposure.plots import INK, MUTED, quiet_axes

    ax = quiet_axes(
        figure.add_subplot(), "loss on held-out text (nats per character)",
        f"exposure of canaries planted {max(PLANTED)} times (bits)",
    )
    colours = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39")
    groups = by_name(records)
    for place, group in enumerate(groups.values()):
        privacy = group[0].run.settings["privacy"]
        optimizer = _NAMES[group[0].run.settings["optimizer"]]
        label = "no DP" if privacy is None else f"ε = {_epsilon(group[0].result['epsilon'])}"
        colour = "#c46200" if privacy is None else colours[place % len(colours)]
        mark = "o" if optimizer == "AdamW" else "s"
        ax.plot(
            [record.result["test_loss"] for record in group],
            [record.result["exposure"][str(max(PLANTED))] for record in group],
            mark, color=colour, markersize=6, label=f"{optimizer}, {label}",
        )
    ax.axhline(CHANCE, color=MUTED, linewidth=0.8, linestyle=":")
    ax.annotate(
        "chance", (0.01, CHANCE), xycoords=("axes fraction", "data"), color=INK, va="bottom",
        fontsize=8,
    )
    ax.legend(frameon=False, fontsize=8)


EXPERIMENT = Experiment(
    name="private",
    title="DP-SGD",
    about=(
        "A small Llama is trained under DP-SGD with from much noise to none, and without DP. The "
        "unit of privacy is a row of the training set; a canary stands in several rows."
    ),
    runs=runs,
    run=run,
    conclude=conclude,
    draw=draw,
    size=(8.0, 4.6),
)
