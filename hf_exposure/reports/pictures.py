"""Figures as pictures for the HTML page, which follow it into the dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING

import matplotlib

from hf_exposure.reports.drawing import BARS, GRID, INK, MUTED, PAGE, group_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours of the figures, and what they become on a dark page.
_DARK = {PAGE: "#0d1117", INK: "#e6edf3", MUTED: "#9da7b1", GRID: "#272d35", BARS: "#3d4650"}


def picture(ax: Axes, repetitions: Iterable[int]) -> str:
    """The axes as SVG in base64, whose bytes depend on what is drawn alone.

    Its colours, those of the repetition groups among them, become variables of a style sheet
    within it.
    """
    out = BytesIO()
    figure = ax.get_figure(root=True)
    assert figure is not None
    with matplotlib.rc_context({"svg.hashsalt": "hf-exposure", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", facecolor=PAGE, metadata={"Date": None, "Creator": None})
    times = list(repetitions)
    light, dark = group_colours(times), group_colours(times, dark=True)
    colours = {**{light[group]: dark[group] for group in light}, **_DARK}
    names = {colour: f"--c{place}" for place, colour in enumerate(colours)}

    def variable(found: re.Match[str]) -> str:
        name = names.get(found[2])
        return f"{found[1]}: var({name})" if name else found[0]

    def block(values: Mapping[str, str]) -> str:
        return " ".join(f"{names[colour]}: {value};" for colour, value in values.items())

    style = (
        f"<style>:root {{ {block({colour: colour for colour in colours})} }} @media screen and "
        f"(prefers-color-scheme: dark) {{ :root {{ {block(colours)} }} }}</style>"
    )
    svg = re.sub(r"\b(fill|stroke): (#[0-9a-f]{6})", variable, out.getvalue().decode("utf-8"))
    svg = re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + style, svg, count=1)
    return base64.b64encode(svg.encode("utf-8")).decode("ascii")
