"""The style of all figures here: quiet axes, grey to green to violet for repetition groups."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

INK = "#1f2328"  # text and lines that matter
MUTED = "#656d76"  # axes, and what is there to compare with
GRID = "#dfe3e8"
BARS = "#ccd3da"  # histograms
CONTROL = "#7d848c"  # canaries that were never inserted


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure of this width and height in inches, which belongs to no window."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def quiet_axes(ax: Axes, x: str, y: str) -> Axes:
    """The axes with labels and the style of all figures here."""
    ax.set_xlabel(x, color=INK)
    ax.set_ylabel(y, color=INK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.tick_params(which="both", colors=MUTED, labelcolor=INK)
    ax.grid(axis="y", color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    return ax


def group_colours(repetitions: Iterable[int]) -> dict[int, str]:
    """A colour for each repetition group: from light green (few) to deep violet (many)."""
    inserted = sorted({times for times in repetitions if times})
    steps = max(1, len(inserted) - 1)
    return {0: CONTROL} | {
        times: to_hex(matplotlib.colormaps["viridis"](0.68 - 0.66 * place / steps))
        for place, times in enumerate(inserted)
    }
