"""DP-SGD against memorization: the paper's table of optimizers and epsilons (section 9.3)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hf_exposure import PrivacyArguments, PrivateTrainer, extract_secrets, group_epsilon
from paper.figures import INK, MUTED, quiet_axes
from paper.intervals import CHANCE, Mean, every
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

INSERTED = (0, 4, 16)
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
BATCH = 16
STRONG = 5.0  # an epsilon that is a guarantee
NEARLY = 0.25  # of what is memorized without DP
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
        **settings,
        seed=one.seed,
        learning_rate=RATES[settings["optimizer"]],
        batch=BATCH,
        order="random",
        repetitions=INSERTED,
        per_repetition=4,
    )
    options: dict[str, Any] = {}
    if privacy is not None:
        options["trainer_class"] = PrivateTrainer
        options["privacy"] = PrivacyArguments(**privacy, noise_seed=one.seed)
    trained = train(spec, **options)
    fmt = trained.canaries[0].format
    found = extract_secrets(
        trained.model,
        trained.tokenizer,
        fmt,
        count=SEARCHED,
        max_forwards=20_000,
        canaries=trained.canaries,
    )
    often = {one.secret for one in trained.canaries.inserted if one.repetitions == max(INSERTED)}
    trainer: Any = trained.trainer
    return {
        "epsilon": math.inf if privacy is None else trainer.epsilon,
        "delta": None if privacy is None else trainer.delta,
        "noise": None if privacy is None else trainer.noise_multiplier,
        # Of all rows of a canary together; where it is a guarantee at all, since this takes long.
        "together": (
            group_epsilon(trainer.spent, trainer.delta, max(INSERTED))
            if privacy is not None and trainer.epsilon <= STRONG
            else math.inf
        ),
        "steps": trainer.state.global_step,
        "test_loss": trained.test_loss,
        "exposure": {str(times): trained.exposure(times) for times in INSERTED},
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
                optimizer,
                label,
                noise,
                _loss(group),
                *(_exposure(group, times).show() for times in INSERTED),
                f"{sum(result['extracted'] for result in results)} of "
                f"{sum(result['of'] for result in results)}",
            )
        )
    often = max(INSERTED)
    plain = {
        (record.run.settings["optimizer"], record.run.seed): record
        for record in records
        if record.run.settings["privacy"] is None
    }
    noised = [group for group in groups.values() if group[0].run.settings["privacy"]]
    claims = []
    strong = [group for group in noised if float(group[0].result["epsilon"]) <= STRONG]
    if strong:
        claims.append(
            Claim(
                "DP-SGD with a strong guarantee brings canaries to chance.",
                every(_at_chance(group, plain) for group in strong),
                f"canaries in {often} rows have {_excess(plain.values())} bits more than the "
                "control group without DP, "
                + ", ".join(
                    f"{_excess(group)} with epsilon {_epsilon(group[0].result['epsilon'])} "
                    f"({_epsilon(group[0].result['together'])} for the {often} rows together)"
                    for group in strong
                ),
            )
        )
    weak = [group for group in noised if group[0].run.settings["privacy"].get("noise_multiplier")]
    if weak:
        least = min(float(group[0].result["epsilon"]) for group in weak)
        claims.append(
            Claim(
                "Noise far too small for any guarantee still nearly removes memorization.",
                every(_nearly_removed(group, plain) for group in weak),
                f"with epsilon from {_epsilon(least)} on, {_shares(weak, plain)}",
            )
        )
    clipped = [
        group for group in noised if group[0].run.settings["privacy"].get("noise_multiplier") == 0
    ]
    if clipped:
        claims.append(
            Claim(
                "(ours) Clipping alone, without any noise, does the same.",
                every(_nearly_removed(group, plain) for group in clipped),
                _shares(clipped, plain),
            )
        )
    columns = (
        "optimizer",
        "ε of one row",
        "noise multiplier",
        "loss on held-out text",
        "exposure, never inserted",
        *(f"inserted {times} times" for times in INSERTED[1:]),
        f"extracted, inserted {often} times",
    )
    caption = (
        f"All with batches of {BATCH} (of that size on average with DP) and about "
        f"{records[0].result['steps']} steps; extracted is what a search for the {SEARCHED} "
        "likeliest strings brings out:"
    )
    return Conclusion(tuple(claims), (Table(columns, tuple(rows), caption),))


Plain = dict[tuple[str, int], Record]  # those without DP, by optimizer and seed


def _more(record: Record) -> float:
    """Exposure of those inserted most often above that of the control group, in bits."""
    exposure = record.result["exposure"]
    return float(exposure[str(max(INSERTED))] - exposure["0"])


def _excess(records: Iterable[Record]) -> Mean:
    return Mean.of(map(_more, records))


def _share(group: list[Record], plain: Plain) -> Mean:
    """What is left of the excess without DP, with the same optimizer and the same seed."""
    return Mean.of(
        _more(record)
        / (_more(plain[record.run.settings["optimizer"], record.run.seed]) or math.nan)
        for record in group
    )


def _leaks(group: list[Record], plain: Plain) -> bool:
    """Whether the same trainings without DP memorize at all; else there is nothing to remove."""
    return bool(
        _excess(plain[record.run.settings["optimizer"], record.run.seed] for record in group).above(
            0
        )
    )


def _at_chance(group: list[Record], plain: Plain) -> bool | None:
    """No excess that could be told, and none that is far from 0."""
    if _excess(group).low > 0:
        return False
    return True if _leaks(group, plain) and _share(group, plain).high < NEARLY else None


def _nearly_removed(group: list[Record], plain: Plain) -> bool | None:
    """Little of the excess is left, and nothing comes out."""
    if not _leaks(group, plain):
        return None
    out = sum(record.result["extracted"] for record in group)
    return every([_share(group, plain).below(NEARLY), out == 0])


def _shares(groups: list[list[Record]], plain: Plain) -> str:
    """Each group's share and extractions, in words."""
    parts = []
    for group in groups:
        settings = group[0].run.settings
        parts.append(
            f"{_NAMES[settings['optimizer']]} with noise "
            f"{settings['privacy']['noise_multiplier']:g}: {_share(group, plain).show(2)} of the "
            f"exposure without DP is left (nearly removed: less than {NEARLY:g}), "
            f"{sum(record.result['extracted'] for record in group)} of "
            f"{sum(record.result['of'] for record in group)} come out"
        )
    return "; ".join(parts)


def _epsilon(value: Any) -> str:
    number = float(value)
    if math.isinf(number):
        return "∞"
    # Never below what it is.
    return f"{math.ceil(100 * number) / 100:.2f}" if number < 1000 else f"{number:.1e}"


def _loss(group: list[Record]) -> str:
    return mean(group, "test_loss").show(2)


def _exposure(group: list[Record], times: int) -> Mean:
    return mean(group, "exposure", str(times))


def draw(records: list[Record], figure: Figure) -> None:
    """Loss and exposure of every training."""
    ax = quiet_axes(
        figure.add_subplot(),
        "loss on held-out text (nats per character)",
        f"exposure of canaries inserted {max(INSERTED)} times (bits)",
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
            [record.result["exposure"][str(max(INSERTED))] for record in group],
            mark,
            color=colour,
            markersize=6,
            label=f"{optimizer}, {label}",
        )
    ax.axhline(CHANCE, color=MUTED, linewidth=0.8, linestyle=":")
    ax.annotate(
        "chance",
        (0.01, CHANCE),
        xycoords=("axes fraction", "data"),
        color=INK,
        va="bottom",
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
