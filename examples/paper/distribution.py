"""How log-perplexities of all candidates are distributed, and how well each estimator does.

The paper's sections 4.3 and 4.4: the log-perplexities of all strings of the secret space follow a
skew-normal distribution, so that an exposure can be read off a fit to a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from hf_exposure import Canaries, Canary, extract_secrets, measure_exposure
from paper.figures import BARS, INK, group_colours, quiet_axes
from paper.intervals import Mean
from paper.study import (
    Claim,
    Conclusion,
    Experiment,
    Record,
    Run,
    Scale,
    Table,
    counted,
    for_each_seed,
)
from paper.training import Training, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("auto", "sampling", "skewnorm")
BINS = 120
RESAMPLES = 99  # of the parametric bootstrap
_TESTED = 1000  # log-perplexities that a fit is tested on, as one who samples would
FAR = 1.0  # bits: an estimate that is off by so much has failed


def runs(scale: Scale, seeds: Sequence[int], text: str | None) -> list[Run]:
    """One model for each seed, and several draws of references for each."""
    size: dict[str, Any] = {
        "smoke": {
            "characters": 4000,
            "epochs": 1,
            "width": 32,
            "digits": 3,
            "draws": 2,
            "samples": 50,
        },
        "small": {"characters": 60_000, "epochs": 10, "width": 128, "digits": 6, "draws": 12},
        "large": {
            "characters": 1_000_000,
            "epochs": 10,
            "width": 256,
            "digits": 6,
            "draws": 60,
        },
    }[scale]
    return for_each_seed("lstm", size, seeds, text)


def run(one: Run) -> dict[str, Any]:
    """Train with canaries, score all candidates, then estimate ranks that are known."""
    settings = dict(one.settings)
    digits, draws = settings.pop("digits"), settings.pop("draws")
    spec = Training(
        **settings,
        seed=one.seed,
        model="lstm",
        layers=1,
        learning_rate=5e-3,
        secret=f"[0-9]{{{digits}}}",
        repetitions=(0, 1, 2, 4, 8, 16),
    )
    trained = train(spec)
    model, tokenizer = trained.model, trained.tokenizer
    fmt = trained.canaries[0].format
    every = extract_secrets(model, tokenizer, fmt, count=fmt.size)  # most likely first
    costs = np.array([one.log_perplexity for one in every])
    ranks = sorted({1, 3, *(10**power for power in range(1, digits)), int(0.9 * fmt.size)})
    known = Canaries([Canary(fmt, every[rank - 1].secret) for rank in ranks])
    truth = [fmt.bits - math.log2(np.sum(costs <= costs[rank - 1])) for rank in ranks]
    errors: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    held: dict[str, list[list[bool]]] = {method: [] for method in METHODS}
    spent: dict[str, list[int]] = {method: [] for method in METHODS}
    for draw in range(draws):
        for method in METHODS:
            measured = measure_exposure(model, tokenizer, known, method, seed=1000 + draw)
            pairs = list(zip(measured, truth, strict=True))
            errors[method].append([one.bits - bits for one, bits in pairs])
            held[method].append([one.low - 1e-6 <= bits <= one.high + 1e-6 for one, bits in pairs])
            spent[method].append(measured.forwards)
    references = np.random.default_rng(spec.seed).choice(costs, min(_TESTED, len(costs)), False)
    fitted = stats.goodness_of_fit(
        stats.skewnorm, references, statistic="ks", n_mc_samples=RESAMPLES, rng=draw
    )
    fit = fitted.fit_result.params
    edges = np.linspace(costs.min(), costs.max(), BINS + 1)
    counts, _ = np.histogram(costs, edges)
    return {
        "size": fmt.size,
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "density": stats.skewnorm.pdf((edges[1:] + edges[:-1]) / 2, *fit).tolist(),
        "fit": [float(value) for value in fit],
        "ks": float(fitted.statistic),
        # The paper's test: as if the distribution had not been fitted.
        "ks_p": float(stats.kstest(references, "skewnorm", fit).pvalue),
        "bootstrap_p": float(fitted.pvalue),
        "canaries": [
            {"repetitions": one.canary.repetitions, "cost": one.log_perplexity, "bits": one.bits}
            for one in trained.exposures
        ],
        "ranks": ranks,
        "errors": errors,
        "held": held,
        "forwards": {method: float(np.mean(spent[method])) for method in METHODS},
    }


def conclude(records: list[Record]) -> Conclusion:
    """Whether the fit is rejected, and each estimator's error at each rank."""
    results = [record.result for record in records]
    size = results[0]["size"]
    plain = [result["ks_p"] for result in results]
    bootstrap = [result["bootstrap_p"] for result in results]
    rows = []
    off: dict[str, list[float]] = {method: [] for method in METHODS}  # at each rank
    covered: dict[str, list[bool]] = {method: [] for method in METHODS}
    for place, rank in enumerate(results[0]["ranks"]):
        cells = [f"{rank:,}"]
        for method in METHODS:
            errors = np.array([[row[place] for row in r["errors"][method]] for r in results])
            held = [row[place] for r in results for row in r["held"][method]]
            rmse = float(np.sqrt(np.mean(errors**2)))
            off[method].append(rmse)
            covered[method] += held
            bias = Mean.of(errors.mean(axis=1))
            error = "exact" if rmse < 1e-3 else f"{rmse:.2f}, bias {bias.show(2)}"
            cells.append(f"{error}; held {np.mean(held):.0%}")
        rows.append(tuple(cells))
    worst = {method: max(errors) for method, errors in off.items()}
    claims = (
        Claim(
            "A Kolmogorov–Smirnov test does not reject that log-perplexities are skew-normal.",
            min(plain) > 0.05,
            f"{counted(len(results), 'model')}, {min(_TESTED, size):,} of {size:,} candidates"
            + (" each: p = " if len(results) > 1 else ": p = ")
            + ", ".join(f"{p:.2g}" for p in plain)
            + "; by parametric bootstrap, which allows for the fit, p = "
            + ", ".join(f"{p:.2g}" for p in bootstrap),
        ),
        Claim(
            "The fitted tail gives the exposure of memorized secrets.",
            worst["skewnorm"] < FAR,
            f"root mean square error at the worst rank {worst['skewnorm']:.2f} bits; its 95 % "
            f"interval held the truth in {np.mean(covered['skewnorm']):.0%} of cases",
        ),
        _where_others_fail(results, off, float(np.mean(covered["auto"]))),
    )
    columns = ("true rank", *(f"`{method}`, error in bits" for method in METHODS))
    return Conclusion(claims, (Table(columns, tuple(rows)),))


def _where_others_fail(
    results: list[dict[str, Any]], off: dict[str, list[float]], covered: float
) -> Claim:
    """Whether `auto` is right at the ranks where neither of the paper's two estimators is."""
    ranks = results[0]["ranks"]
    others = [method for method in METHODS if method != "auto"]
    failed = [
        place for place in range(len(ranks)) if all(off[method][place] >= FAR for method in others)
    ]
    there = max((off["auto"][place] for place in failed), default=0.0)
    where = (
        f"both others are off by {FAR:g} bit or more at the true "
        f"{'rank' if len(failed) == 1 else 'ranks'} "
        f"{', '.join(f'{ranks[place]:,}' for place in failed)}, `auto` by {there:.2f} bits there"
        if failed
        else f"at no rank are both others off by {FAR:g} bit or more"
    )
    return Claim(
        "(ours) Exploring and sampling the token tree is right where those fail.",
        there < FAR if failed else None,
        f"{where}; at the worst rank `auto` {max(off['auto']):.2f} bits, interval held in "
        f"{covered:.0%}; "
        + ", ".join(f"`{method}` {max(off[method]):.2f} bits" for method in others)
        + "; token-forwards of a measurement: "
        + ", ".join(
            f"{method} {np.mean([r['forwards'][method] for r in results]):,.0f}"
            for method in METHODS
        ),
    )


def draw(records: list[Record], figure: Figure) -> None:
    """The first seed's histogram with the fit; the errors by rank, all seeds."""
    left, right = figure.subplots(1, 2)
    result = records[0].result
    edges, counts = np.array(result["edges"]), np.array(result["counts"])
    quiet_axes(left, "log-perplexity of a candidate (bits)", "density (per bit)")
    left.stairs(counts / counts.sum() / np.diff(edges), edges, fill=True, color=BARS)
    left.plot((edges[1:] + edges[:-1]) / 2, result["density"], color=INK, label="skew-normal fit")
    colours = group_colours(one["repetitions"] for one in result["canaries"])
    top = left.get_ylim()[1]
    for times in colours:
        group = [one["cost"] for one in result["canaries"] if one["repetitions"] == times]
        label = f"inserted {times}×" if times else "never inserted"
        left.plot(group, [0.04 * top] * len(group), "v", color=colours[times], label=label)
    left.legend(frameon=False, fontsize=8)
    quiet_axes(right, "true rank", "error of the exposure (bits, root mean square)")
    for method, colour, mark in zip(METHODS, ("#440154", "#21918c", "#c46200"), "osD", strict=True):
        errors = [
            [row[place] for record in records for row in record.result["errors"][method]]
            for place in range(len(result["ranks"]))
        ]
        right.plot(
            result["ranks"],
            [max(1e-3, np.sqrt(np.mean(np.square(e)))) for e in errors],
            color=colour,
            marker=mark,
            markersize=4,
            label=method,
        )
    right.set_xscale("log")
    right.legend(frameon=False, fontsize=8)


EXPERIMENT = Experiment(
    name="distribution",
    title="The distribution of log-perplexities, and three estimators",
    about=(
        "All candidates of a format are scored by an LSTM that has canaries in its training text. "
        "The paper fits a skew-normal distribution to a sample of them and reads exposures off its "
        "tail; strings of known rank say how far off that is, beside the other methods. It differs "
        "from model to model: docs/accuracy.md has a Llama under which the fit does worse."
    ),
    runs=runs,
    run=run,
    conclude=conclude,
    draw=draw,
    size=(10.0, 4.2),
)
