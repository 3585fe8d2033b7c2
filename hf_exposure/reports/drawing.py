"""The style that all figures share: colours, axes, lines, legends.

Nothing goes through pyplot, so that no window opens and no figure is left behind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hf_exposure.exposure.chance import CHANCE

if TYPE_CHECKING:
    from hf_exposure.exposure.records import Exposure

PAGE = "#ffffff"
INK = "#1f2328"  # text and lines that matter
MUTED = "#656d76"  # axes, and what is there to compare with
GRID = "#dfe3e8"
BARS = "#ccd3da"  # histograms
CONTROL = "#7d848c"  # canaries that were never inserted

_MARKERS = "osD^vPX*<>hp"


def group_colours(repetitions: Iterable[int], dark: bool = False) -> dict[int, str]:
    """A colour for each repetition group: grey for the control group, then from light green (few
    repetitions) to deep violet (many), or from blue to yellow for a `dark` background.

    Viridis, whose steps differ in lightness, so that they can be told apart without seeing colours
    and in a black and white print.
    """
    inserted = sorted({times for times in repetitions if times})
    start, end = (0.42, 0.98) if dark else (0.68, 0.02)
    colours = {0: "#9aa3ad" if dark else CONTROL}
    for place, times in enumerate(inserted):
        share = place / (len(inserted) - 1) if len(inserted) > 1 else 1.0
        colours[times] = to_hex(matplotlib.colormaps["viridis"](start + (end - start) * share))
    return colours


def axes(ax: Axes | None, x: str, y: str) -> Axes:
    """`ax`, or that of a new figure which belongs to no window; with labels and a quiet style."""
    return quiet_axes(new_figure().add_subplot() if ax is None else ax, x, y)


def new_figure(size: tuple[float, float] = (7.4, 4.2)) -> Figure:
    """A figure of this width and height in inches, which belongs to no window."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def quiet_axes(ax: Axes, x: str, y: str) -> Axes:
    """The axes with labels and the style of all figures here."""
    ax.set_xlabel(x, color=INK)
    ax.set_ylabel(y, color=INK)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
    ax.tick_params(which="both", colors=MUTED, labelcolor=INK)
    ax.grid(axis="y", color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    return ax


def limits(ax: Axes, items: Iterable[Exposure], chance_at_right: bool = True) -> None:
    """The lines that frame exposures: the most that there can be, and chance."""
    most = sorted({round(one.canary.format.bits, 3) for one in items})
    if not most:
        return
    ax.set_ylim(0, most[-1] * 1.09 or 1.0)
    for one, after in zip(most, [*most[1:], math.inf], strict=True):
        # Labels of formats of nearly the same size would stand on one another.
        label = f"the most possible: {one:.1f} bits" if after - one > 0.07 * most[-1] else ""
        line(ax, one, label)
    if most[-1] > CHANCE:
        chance = ax.axhline(CHANCE, color=MUTED, linewidth=1.0, linestyle=":", zorder=1.5)
        if chance_at_right:
            note(ax, "chance", (1.0, CHANCE), ("axes fraction", "data"), color=MUTED)
        else:
            chance.set_label(f"chance ({CHANCE:.2f} bits)")


def line(ax: Axes, height: float, label: str) -> None:
    """A horizontal line, its label above its left end."""
    ax.axhline(height, color=MUTED, linewidth=1.0, zorder=1.5)
    place = (0, height), ("axes fraction", "data"), (4, 2.5)
    note(ax, label, *place, color=MUTED, va="baseline", zorder=4)


def note(
    ax: Axes, text: str, at: Any, coordinates: Any, offset: tuple[float, float] = (4, 0), **how: Any
) -> None:
    """Small text beside a place, `offset` points away from it; no part of it is a formula."""
    style: dict[str, Any] = {
        "va": "center",
        "fontsize": "small",
        "color": INK,
        "parse_math": False,
    } | how
    ax.annotate(text, at, xycoords=coordinates, xytext=offset, textcoords="offset points", **style)


def legend(ax: Axes, title: str = "", more: Mapping[str, Any] | None = None) -> None:
    """Above the axes, where it hides nothing; read line by line. None where it would be empty.

    Args:
        more: marks that are not of these axes, by their labels.
    """
    handles, labels = ax.get_legend_handles_labels()
    handles, labels = [*handles, *(more or {}).values()], [*labels, *(more or {})]
    if not labels:
        return
    columns = min(len(labels), 6)
    order = [i for column in range(columns) for i in range(column, len(labels), columns)]
    legend = ax.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="lower left",
        bbox_to_anchor=(0.0, 1.01),
        ncols=columns,
        frameon=False,
        fontsize="small",
        labelcolor=INK,
        borderaxespad=0.0,
        handlelength=1.8,
        columnspacing=1.2,
        title=title or None,
        alignment="left",
    )
    legend.get_title().set_fontsize("small")
    legend.get_title().set_color(INK)


def say(ax: Axes, text: str) -> None:
    """A sentence in place of a figure."""
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=MUTED)


def spread_out(values: Sequence[int]) -> list[int]:
    """Those of the values whose labels do not touch on a logarithmic axis."""
    out: list[int] = []
    span = math.log2(max(values, default=0) + 1)
    for value in values:
        place = math.log2(value + 1)
        if not out or place - math.log2(out[-1] + 1) >= 0.06 * span:
            out.append(value)
    return out


def marker(times: int, place: int) -> str:
    """The mark of the group at a place among all groups."""
    return _MARKERS[place % len(_MARKERS)] if times else "o"
