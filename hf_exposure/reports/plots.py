"""The report's figures as matplotlib axes: exposure over training, the paper's histogram, ...

Each function takes the data first, draws into `ax` or into a figure of its own, and returns the
axes. Nothing goes through pyplot, so that no window opens and no figure is left behind.

Example:
    >>> ax = plot_exposure_by_repetitions(exposures)     # doctest: +SKIP
    >>> ax.figure.savefig("exposure.png")                # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from hf_exposure.attacks.extraction import leading
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat, format_names
from hf_exposure.exposure.history import History
from hf_exposure.exposure.records import Exposure, mean_bits
from hf_exposure.exposure.results import Exposures
from hf_exposure.exposure.scores import ranked_by
from hf_exposure.exposure.skew_normal import SkewNormal
from hf_exposure.reports.drawing import (
    BARS,
    INK,
    MUTED,
    axes,
    group_colours,
    legend,
    limits,
    line,
    marker,
    note,
    say,
    spread_out,
)
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import large

if TYPE_CHECKING:
    from hf_exposure.attacks.extraction import Extraction

_LOSSES = {"eval_loss": "evaluation loss", "loss": "training loss"}


@typed
def plot_exposure_over_training(
    history: History, ax: Axes | None = None, loss: str = "eval_loss"
) -> Axes:
    """The mean exposure in bits of each repetition group at each step, with the loss beside it.

    The band goes from a group's least exposed canary to its most exposed one; for a group with a
    single canary it is the interval of that one. Lines mark the most that an exposure can be, log2
    of the size of R, and what a string that was never trained on is expected to have.

    Args:
        history: what `ExposureCallback` recorded.
        ax: where to draw; None makes a figure.
        loss: the entry of each measurement's metrics to draw on a second axis; left out where there
            is none.

    Returns:
        The axes.
    """
    ax = axes(ax, "step", "exposure (bits)")
    history = history.coarse()
    items = [one for entry in history for one in entry.exposures]
    groups = sorted({one.canary.repetitions for one in items})
    colours = group_colours(groups)
    for place, times in enumerate(groups):
        rows = []
        for entry in history:
            group = [one for one in entry.exposures if one.canary.repetitions == times]
            if group:
                rows.append((entry.step, mean_bits(group), *_band(group)))
        steps, mean, low, high = np.array(rows, dtype=np.float64).T
        ax.fill_between(steps, low, high, color=colours[times], alpha=0.14, linewidth=0)
        ax.plot(
            steps,
            mean,
            color=colours[times],
            linewidth=1.8,
            linestyle="-" if times else "--",
            marker=marker(times, place),
            markersize=4.5,
            label=_times(times),
            zorder=3,
        )
    limits(ax, items, chance_at_right=False)
    drawn = _draw_loss(ax, history, loss)
    if groups:
        legend(ax, "times inserted", {} if drawn is None else {_LOSSES.get(loss, loss): drawn})
    else:
        say(ax, "nothing was measured yet")
    ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    return ax


@typed
def plot_log_perplexities(
    exposures: Exposures,
    fmt: SecretFormat | None = None,
    ax: Axes | None = None,
    reveal: bool = False,
) -> Axes:
    """The paper's figure: log-perplexities of random references, the skew-normal fit, the canaries.

    The histogram and the curve are densities for each bit. Each canary is a mark, in a row for each
    repetition group; the further left of the histogram, the more it stands out.

    Args:
        exposures: measured with `method="skewnorm"` or `"sampling"`, which draw references.
        fmt: the format to draw; None takes the first one with references.
        ax: where to draw; None makes a figure.
        reveal: write the secrets beside their marks.

    Returns:
        The axes.

    Raises:
        ValueError: there are no references of this format, or none that can be drawn masked.
    """
    whole, exposures = exposures, exposures if reveal else exposures.coarse()
    if fmt is None:
        fmt = next(iter(exposures.references), None)
    if fmt is None or fmt not in exposures.references:
        have = ", ".join(map(repr, format_names(exposures.references).values())) or "none at all"
        advice = "measure with method='skewnorm' or 'sampling'"
        if whole.references and (fmt is None or fmt in whole.references):
            advice = "those that are a good part of the space are drawn with reveal=True only"
        raise ValueError(
            f"plot_log_perplexities: fmt={fmt!r} has no references in these exposures (there are "
            f"{have}); {advice}"
        )
    named = "log-perplexity of the secret (bits)", "density (per bit)"
    if not exposures.by_likelihood:
        named = f"cost of the secret by {ranked_by(exposures.settings)}", "density"
    ax = axes(ax, *named)
    every = exposures.references[fmt]
    references = every[np.isfinite(every)]
    items = [one for one in exposures if one.canary.format == fmt]
    shown = [one for one in items if math.isfinite(one.ranked_by)]

    peak = 0.0
    if len(references):
        heights, _, _ = ax.hist(
            references,
            bins=_bins(references),
            density=True,
            color=BARS,
            edgecolor="none",
            label=f"{len(references):,} random references",
        )
        peak = float(np.max(heights))
    fit = exposures.formats[fmt].fit or _fit(references)
    if fit is not None:
        known = [*references.tolist(), *(one.ranked_by for one in shown)]
        costs = np.linspace(min(known), max(known), 400)
        density = fit.density(costs)
        peak = max(peak, float(density.max()))
        ax.plot(costs, density, color=INK, linewidth=1.3, label="skew-normal fit")
    groups = sorted({one.canary.repetitions for one in shown})
    # The canaries' rows stand above the histogram.
    share = 0.66 - 0.02 * min(len(groups), 12)
    ax.set_ylim(0, (peak or 1.0) / share)
    ax.set_yticks([tick for tick in ax.get_yticks() if tick <= 1.1 * peak])
    _rows(ax, shown, groups, share + 0.05, reveal)
    gone = [
        f"{count} {name}"
        for count, name in (
            (len(every) - len(references), "references"),
            (sum(math.isinf(one.ranked_by) for one in items), "canaries"),
        )
        if count
    ]
    if gone:
        ax.set_xlabel(f"{ax.get_xlabel()}\nnot shown: {' and '.join(gone)} that cannot come out")
    legend(ax)
    return ax


@typed
def plot_exposure_by_repetitions(exposures: Exposures, ax: Axes | None = None) -> Axes:
    """The exposure of each canary with its interval against how often it was inserted.

    The axis is logarithmic from 1 on, with a place for those that were never inserted. Canaries of
    one group stand side by side, in the set's order. A line joins the groups' means.

    Args:
        exposures: one measurement.
        ax: where to draw; None makes a figure.

    Returns:
        The axes.
    """
    ax = axes(ax, "times inserted", "exposure (bits)")
    exposures = exposures.coarse()
    ax.set_xscale("symlog", base=2, linthresh=1)
    groups = exposures.by_repetitions()
    colours = group_colours(groups)
    if len(groups) > 1:
        ax.plot(
            list(groups),
            [mean_bits(group) for group in groups.values()],
            color=MUTED,
            linewidth=0.9,
            zorder=1,
        )
    for number, (times, group) in enumerate(groups.items()):
        for place, one in enumerate(group):
            aside = 0.5 * (place - (len(group) - 1) / 2) / max(len(group), 3)
            ax.errorbar(
                [times * 2**aside if times else aside],
                [one.bits],
                yerr=[[max(0.0, one.bits - one.low)], [max(0.0, one.high - one.bits)]],
                color=colours[times],
                marker=marker(times, number),
                markersize=5,
                linewidth=1.2,
                capsize=0,
                linestyle="none",
                zorder=3,
                markerfacecolor=colours[times] if times else "none",
            )
    limits(ax, exposures)
    places = spread_out(list(groups))
    ax.xaxis.set_major_locator(FixedLocator(places))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticklabels([f"{times:,}" if times else "0\n(control)" for times in places])
    if groups:
        most = max(groups)
        ax.set_xlim(-0.6 if 0 in groups else 0.7 * min(groups), max(most, 0.6) * 1.4)
    else:
        say(ax, "nothing was measured")
    return ax


@typed
def plot_extraction_cost(
    extractions: Sequence[Extraction], exposures: Exposures, ax: Axes | None = None
) -> Axes:
    """What it took to get each canary out, against its exposure; trying all strings for comparison.

    Args:
        extractions: what `extract_secrets(..., canaries=canaries)` gave. Strings that are not a
            measured canary have no exposure, and are left out.
        exposures: of the same canaries, with their secrets.
        ax: where to draw; None makes a figure.

    Returns:
        The axes.
    """
    ax = axes(ax, "exposure (bits)", "token-forwards until it was out")
    exposures = exposures.coarse()
    pairs = [(one, exposure_of(one, exposures)) for one in leading(extractions)]
    shown = [(one, measured) for one, measured in pairs if measured is not None]
    ax.set_yscale("log")
    for proved, label in ((True, "proved to be next in order"), (False, "not proved")):
        some = [pair for pair in shown if pair[0].proved is proved]
        if some:
            ax.plot(
                [measured.bits for _, measured in some],
                [max(one.forwards, 1) for one, _ in some],
                linestyle="none",
                marker="o",
                markersize=6,
                color=group_colours([1])[1],
                markerfacecolor=group_colours([1])[1] if proved else "none",
                label=label,
            )
    formats = {measured.canary.format for _, measured in shown}
    for size in sorted({min(fmt.size, 10**300) for fmt in formats}):
        line(ax, float(size), f"trying all {large(size)} strings")
    if shown:
        legend(ax)
    else:
        say(ax, "no canary came out")
    return ax


def exposure_of(one: Extraction, exposures: Exposures) -> Exposure | None:
    """The exposure of the canary that came out; None if it is not one, or cannot be told.

    Masked canaries of a group look alike: their place in the set tells them apart.
    """
    if isinstance(one.canary, Canary):
        for measured in exposures:
            if measured.canary == one.canary:
                return measured
    if one.canary is None or one.place is None or exposures.skipped:
        return None
    if one.place >= len(exposures):
        return None
    measured, ours = exposures[one.place], one.canary
    if isinstance(measured.canary, Canary) and isinstance(ours, Canary):
        return None  # both are known, and differ
    same = (measured.canary.format, measured.canary.repetitions, len(measured.canary.secret))
    return measured if same == (ours.format, ours.repetitions, len(ours.secret)) else None


# Parts of the figures


def _draw_loss(ax: Axes, history: History, loss: str) -> Any:
    """The loss on an axis of its own at the right; its line, None if there is none."""
    points = [
        (entry.step, entry.metrics[loss])
        for entry in history
        if loss in entry.metrics and math.isfinite(entry.metrics[loss])
    ]
    if not points:
        return None
    twin = ax.twinx()
    steps, losses = zip(*points, strict=True)
    (drawn,) = twin.plot(
        steps, losses, color=INK, linewidth=1.2, linestyle=(0, (5, 2)), marker="_", markersize=4
    )
    twin.set_ylabel(_LOSSES.get(loss, loss), color=INK, parse_math=False)
    twin.tick_params(which="both", colors=MUTED, labelcolor=INK)
    for side in ("top", "left", "bottom"):
        twin.spines[side].set_visible(False)
    twin.spines["right"].set_color(MUTED)
    twin.margins(y=0.15)
    # The exposures stay in front.
    ax.set_zorder(twin.get_zorder() + 1)
    ax.patch.set_visible(False)
    return drawn


def _rows(
    ax: Axes, items: Sequence[Exposure], groups: Sequence[int], bottom: float, reveal: bool
) -> None:
    """The canaries as marks at their log-perplexity, a row at the top for each group."""
    colours = group_colours(groups)
    where = ax.get_xaxis_transform()  # across in data, up as a share of the axes
    left, right = ax.get_xlim()
    for number, times in enumerate(groups):
        height = bottom + (0.98 - bottom) * (number + 0.5) / len(groups)
        group = sorted(
            (one for one in items if one.canary.repetitions == times),
            key=lambda one: one.ranked_by,
        )
        ax.plot(
            [one.ranked_by for one in group],
            [height] * len(group),
            transform=where,
            linestyle="none",
            marker=marker(times, number),
            markersize=6,
            color=colours[times],
            markerfacecolor=colours[times] if times else "none",
            markeredgewidth=1.1,
            zorder=3,
        )
        label = f"inserted {_times(times)}" if times and times == groups[-1] else _times(times)
        note(ax, label, (1.0, height), "axes fraction")
        if reveal:
            # Beside the row's marks, on the side where there is more room.
            ends = [group[0].ranked_by, group[-1].ranked_by]
            after = bool(sum(ends) < left + right)
            secrets = [one.canary.secret for one in group]
            more = f" and {len(secrets) - 3} more" if len(secrets) > 3 else ""
            at, side = (ends[after], height), "left" if after else "right"
            text = ", ".join(secrets[:3]) + more
            note(ax, text, at, where, (7 if after else -7, 0), ha=side, fontsize="x-small")


def _fit(references: Floats) -> SkewNormal | None:
    """A fit made now; None if there can be none."""
    try:
        return SkewNormal.fit(references)
    except ValueError:
        return None


def _bins(values: Floats) -> int:
    """As many bins as Freedman and Diaconis advise, within reason."""
    low, high = np.quantile(values, [0.25, 0.75])
    width = 2 * (high - low) / len(values) ** (1 / 3)
    return int(np.clip(np.ptp(values) / width, 10, 60)) if width > 0 else 10


def _band(group: Sequence[Exposure]) -> tuple[float, float]:
    if len(group) == 1:
        return group[0].low, group[0].high
    return min(one.bits for one in group), max(one.bits for one in group)


def _times(times: int) -> str:
    return f"{times:,}×" if times else "0 (control)"
