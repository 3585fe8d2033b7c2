"""One HTML page about what was measured: findings in words, figures, tables, settings.

The page needs no network and no script, so it can be mailed. The same input gives the same bytes.
Secrets are on it only if asked for.
"""

from __future__ import annotations

import base64
import importlib.metadata
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from hf_exposure.attacks.extraction import Extractions
from hf_exposure.attacks.generations import Generations
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import format_names
from hf_exposure.exposure.chance import CHANCE
from hf_exposure.exposure.estimators import SkewNormal
from hf_exposure.exposure.history import History
from hf_exposure.exposure.results import Exposure, Exposures, interval, mean_bits, short_labels
from hf_exposure.reports import plots
from hf_exposure.reports.findings import find
from hf_exposure.utils.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 500  # canaries in a table; a page with more is not read
_MOST_STEPS = 20  # measurements in the table of means
_RESAMPLES = 99  # of the test of a fit

# What a method does, for those who meet its name here.
_METHODS = {
    "auto": "the most likely strings of the secret space are explored and counted, the rest is "
    "estimated from a weighted sample; where nothing was left to sample the rank is exact",
    "exact": "all strings that may be as likely as the canary were explored and counted",
    "sampling": "the canary’s place among uniform references (the paper, section 4.3), with the "
    "interval of Clopper and Pearson; it cannot go above the log2 of their number",
    "skewnorm": "the tail of a skew-normal distribution fitted to uniform references (the paper, "
    "section 4.4); its interval takes for granted that the tail is of that form",
}

# Colours of the figures, and what they become on a dark page.
_DARK = {
    plots.PAGE: "#0d1117",
    plots.INK: "#e6edf3",
    plots.MUTED: "#9da7b1",
    plots.GRID: "#272d35",
    plots.BARS: "#3d4650",
}


@dataclass(frozen=True)
class _Table:
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[int] = frozenset()
    caption: str = ""
    folded: str = ""  # what to open it with, if it is not shown at once


@dataclass(frozen=True)
class _Figure:
    data: str
    alt: str
    caption: str


@dataclass
class _Section:
    heading: str
    texts: list[str] = field(default_factory=list)
    figures: list[_Figure] = field(default_factory=list)
    tables: list[_Table] = field(default_factory=list)


def write_report(
    path: str | os.PathLike[str],
    *,
    exposures: Exposures | None = None,
    history: History | None = None,
    extractions: Extractions | Iterable[Extractions] = (),
    generations: Generations | None = None,
    compare: Iterable[Exposures] = (),
    title: str = "Memorization report",
    notes: Iterable[str] = (),
    reveal: bool = False,
) -> Path:
    """Write the page, whole or not at all; see `render_report`.

    Returns:
        The path.
    """
    page = render_report(
        exposures=exposures,
        history=history,
        extractions=extractions,
        generations=generations,
        compare=compare,
        title=title,
        notes=notes,
        reveal=reveal,
    )
    return write_text(path, page)


def render_report(
    *,
    exposures: Exposures | None = None,
    history: History | None = None,
    extractions: Extractions | Iterable[Extractions] = (),
    generations: Generations | None = None,
    compare: Iterable[Exposures] = (),
    title: str = "Memorization report",
    notes: Iterable[str] = (),
    reveal: bool = False,
) -> str:
    """The page as HTML.

    Args:
        exposures: the measurement that the page is about; None takes the history's last one.
        history: exposures over training.
        extractions: what `extract_secrets` gave, for one format or several.
        generations: what `generate_secrets` gave.
        compare: measurements of the same canaries by other methods. The histogram of references is
            drawn from the first measurement that has some.
        title: the page's heading.
        notes: sentences that follow it.
        reveal: show the secrets.

    Raises:
        ValueError: there is neither a measurement nor a history that has one.
        TypeError: an argument is something else.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    searches = [extractions] if isinstance(extractions, Extractions) else list(extractions)
    others = [compare] if isinstance(compare, Exposures) else list(compare)
    for name, kind, values in (
        ("exposures", Exposures, [exposures] if exposures is not None else []),
        ("history", History, [history] if history is not None else []),
        ("extractions", Extractions, searches),
        ("generations", Generations, [generations] if generations is not None else []),
        ("compare", Exposures, others),
    ):
        for value in values:
            if not isinstance(value, kind):
                raise TypeError(
                    f"write_report: {name} has something of type {type(value).__name__}; it takes "
                    f"{kind.__name__}, such as {kind.__name__}.load reads from a file"
                )
    if exposures is None:
        if history is None or not len(history):
            raise ValueError(
                "write_report: there is nothing to report; give exposures, or a history with at "
                "least one measurement"
            )
        exposures = history[-1].exposures
    found = [one for search in searches for one in search]
    sections = [
        *_training(history),
        _canaries(exposures, reveal),
        *_references([exposures, *others], reveal),
        *_extraction(searches, exposures, reveal),
        *_generation(generations, reveal),
        *_by_other_methods(exposures, others, reveal),
    ]
    environment = Environment(
        loader=PackageLoader("hf_exposure.reports"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html").render(
        title=title,
        lede=_lede(exposures),
        notes=[notes] if isinstance(notes, str) else list(notes),
        findings=find(exposures, history, found, generations),
        chance=f"{CHANCE:.2f}",
        sections=sections,
        methods=_methods([exposures, *others]),
        facts=_facts(exposures, history),
        version=importlib.metadata.version("hf-exposure"),
        secrecy=(
            "This page holds secrets: they were asked for."
            if reveal
            else "Secrets are masked on this page."
        ),
    )


def _lede(exposures: Exposures) -> str:
    model = exposures.settings.get("model")
    what = f" in {model}" if model else ""
    method = exposures.settings.get("method", "unknown")
    count = "1 canary" if len(exposures) == 1 else f"{len(exposures):,} canaries"
    return (
        f"Exposure of {count}{what}, measured with method {method!r}, "
        f"{exposures.confidence:.0%} intervals, {exposures.forwards:,} token-forwards."
    )


def _training(history: History | None) -> list[_Section]:
    if history is None or len(history) < 2:
        return []
    section = _Section("While it trained")
    section.figures.append(
        _figure(
            plots.plot_exposure_over_training(history),
            "Mean exposure of each repetition group over the steps of training, with the "
            "evaluation loss. " + _last_means(history[-1].exposures),
            "Mean exposure of the canaries of each repetition group; the bands go from the least "
            "to the most exposed one.",
            {one.canary.repetitions for entry in history for one in entry.exposures},
        )
    )
    section.tables.append(_means(history))
    return [section]


def _means(history: History) -> _Table:
    """What the figure shows, in numbers."""
    count = min(len(history), _MOST_STEPS)
    places = np.linspace(0, len(history) - 1, count).round().astype(int).tolist()
    entries = [history[place] for place in places]
    groups = sorted({one.canary.repetitions for entry in history for one in entry.exposures})
    rows = []
    for entry in entries:
        known = entry.exposures.by_repetitions()
        loss = entry.metrics.get("eval_loss")
        rows.append(
            [
                f"{entry.step:,}",
                *(f"{mean_bits(known[times]):.1f}" if times in known else "–" for times in groups),
                "–" if loss is None else f"{loss:.3f}",
            ]
        )
    headings = ["step", *(f"{times:,}×" for times in groups), "evaluation loss"]
    caption = "Mean exposure in bits of the canaries inserted so many times."
    if count < len(history):
        caption += f" {count} of {len(history)} measurements."
    numbers = frozenset(range(len(headings)))
    return _Table(headings, rows, numbers, caption, "The same in numbers")


def _last_means(exposures: Exposures) -> str:
    groups = exposures.by_repetitions().items()
    means = [f"{times} times {mean_bits(group):.1f} bits" for times, group in groups]
    return "At the end: " + ", ".join(means) + "."


def _canaries(exposures: Exposures, reveal: bool) -> _Section:
    section = _Section("The canaries")
    if not len(exposures):
        section.texts.append("No canary could be scored.")
    else:
        section.figures.append(
            _figure(
                plots.plot_exposure_by_repetitions(exposures),
                "Exposure of each canary against how often it was inserted. "
                + _last_means(exposures),
                "Each canary with its interval; a line joins the groups’ means.",
                exposures.by_repetitions(),
            )
        )
        headings, rows = exposures.cells(reveal)
        certified = [f"{one.certified:.1f}" for one in exposures]
        headings = [*headings, "certified"]
        rows = [[*row, bound] for row, bound in zip(rows, certified, strict=True)]
        caption = exposures.summary() + ". Certified: the exposure is at least that, for certain."
        if len(rows) > _MOST_ROWS:
            caption += f" The first {_MOST_ROWS} of {len(rows)} canaries are shown."
        section.tables.append(
            _Table(headings, rows[:_MOST_ROWS], frozenset({0, 2, 3, 5, 6, 7}), caption)
        )
    if exposures.skipped:
        rows = [
            [label, why if reveal else why.replace(canary.secret, "…")]
            for (canary, why), label in zip(
                exposures.skipped,
                short_labels((canary for canary, _ in exposures.skipped), reveal),
                strict=True,
            )
        ]
        section.tables.append(_Table(["could not be scored", "why"], rows))
    return section


def _references(measured: Sequence[Exposures], reveal: bool) -> list[_Section]:
    """The paper's figure, for each format whose references were drawn."""
    source = next((one for one in measured if one.references), None)
    if source is None:
        return []
    section = _Section("How canaries stand out from random secrets")
    names = format_names(source.references)
    for fmt, values in source.references.items():
        of = f" in {names[fmt]!r}" if len(names) > 1 else ""
        section.figures.append(
            _figure(
                plots.plot_log_perplexities(source, fmt, reveal=reveal),
                f"Histogram of the log-perplexities of {len(values):,} random secrets of "
                f"{names[fmt]!r}, with a fitted skew-normal curve, and a mark for each canary.",
                f"Log-perplexities of random secrets{of} that were never trained on, the "
                "skew-normal distribution that the paper fits to them, and the canaries. "
                + _goodness(values),
                {
                    one.canary.repetitions
                    for one in source
                    if one.canary.format == fmt and math.isfinite(one.log_perplexity)
                },
            )
        )
    return [section]


def _goodness(references: Any) -> str:
    try:
        fit = SkewNormal.fit(references[np.isfinite(references)])
    except ValueError:
        return ""
    p = fit.p_value(resamples=_RESAMPLES)
    verdict = "the references do not contradict the fit" if p > 0.05 else "the fit is rejected"
    return (
        f"Skew-normal fit: shape {fit.shape:.2f}, location {fit.loc:.1f}, scale {fit.scale:.1f} "
        f"bits; Kolmogorov–Smirnov distance {fit.ks:.3f}, p = {p:.2f} (parametric bootstrap, "
        f"{_RESAMPLES} resamples): {verdict}."
    )


def _extraction(
    searches: Sequence[Extractions], exposures: Exposures, reveal: bool
) -> list[_Section]:
    if not searches:
        return []
    section = _Section("What a search brought out")
    found = [one for search in searches for one in search]
    names = format_names(search.format for search in searches)
    for search in searches:
        section.texts.append(
            f"The most likely strings of {names[search.format]!r}, by search. Trying all of "
            f"them would take {_how_many(search.format.size)} sequences. One that is proved is "
            "certain to be the next most likely."
        )
        headings, rows = search.cells(reveal)
        section.tables.append(_Table(headings, rows, frozenset({0, 3, 5}), search.summary()))
    shown = [plots.exposure_of(one, exposures) for one in found]
    if len({round(one.bits, 1) for one in shown if one is not None}) > 1:
        section.figures.append(
            _figure(
                plots.plot_extraction_cost(found, exposures),
                "Token-forwards until each canary was out, against its exposure.",
                "What it took to get each canary out, against its exposure.",
                [1],
            )
        )
    return [section]


def _generation(generations: Generations | None, reveal: bool) -> list[_Section]:
    if generations is None:
        return []
    section = _Section("What the model wrote by itself")
    held = generations.settings.get("constrained")
    section.texts.append(
        "The model was given the words before the secret and wrote "
        + ("strings of the secret’s form." if held else "freely.")
    )
    headings, rows = generations.cells(reveal)
    caption = generations.summary()
    section.tables.append(_Table(headings, rows[:_MOST_ROWS], frozenset({1}), caption))
    return [section]


def _by_other_methods(
    exposures: Exposures, others: Sequence[Exposures], reveal: bool
) -> list[_Section]:
    """The same canaries by each method, side by side."""
    if not others:
        return []
    section = _Section(
        "What other methods say",
        ["Exposure in bits with its interval. Sampling and the skew-normal fit are the paper’s."],
    )
    every = [exposures, *others]
    columns = [_matched(exposures, measured) for measured in every]
    names = [str(one.settings.get("method", "?")) for one in every]
    rows = []
    labels = short_labels((one.canary for one in exposures), reveal)
    for place, (one, cells) in enumerate(zip(exposures, zip(*columns, strict=True), strict=True)):
        rows.append(
            [
                f"{place}",
                labels[place],
                f"{one.canary.repetitions}",
                *("–" if cell is None else _figures(cell) for cell in cells),
            ]
        )
    taken = ", ".join(f"{name} {one.forwards:,}" for name, one in zip(names, every, strict=True))
    section.tables.append(
        _Table(
            ["#", "canary", "inserted", *names],
            rows[:_MOST_ROWS],
            frozenset({0, 2}),
            f"Token-forwards: {taken}.",
        )
    )
    return [section]


def _matched(exposures: Exposures, others: Exposures) -> list[Exposure | None]:
    """For each exposure what the other measurement has of the same canary, None if that cannot be
    told: masked canaries of a group look alike, and go by their order where none is missing."""
    known = {one.canary: one for one in others if isinstance(one.canary, Canary)}

    def looks(one: Exposure) -> tuple[Any, ...]:
        canary = one.canary
        return canary.format, len(canary.secret), canary.repetitions, canary.planned

    here, there = Counter(map(looks, exposures)), Counter(map(looks, others))
    in_order: dict[tuple[Any, ...], Iterator[Exposure]] = {
        look: iter([one for one in others if looks(one) == look]) for look in there
    }
    secrets = all(isinstance(one.canary, Canary) for one in [*exposures, *others])
    out: list[Exposure | None] = []
    for one in exposures:
        look = looks(one)
        if secrets:
            out.append(known.get(one.canary))  # type: ignore[arg-type]
        else:
            out.append(next(in_order[look]) if here[look] == there[look] else None)
    return out


def _methods(measured: Sequence[Exposures]) -> list[tuple[str, str]]:
    """The methods that gave a figure of the page, and what they do."""
    used = dict.fromkeys(one.method for exposures in measured for one in exposures)
    return [(method, _METHODS[method]) for method in used if method in _METHODS]


def _figures(one: Exposure) -> str:
    if one.exact and one.low == one.high:
        return f"{one.bits:.1f} (exact)"
    return f"{one.bits:.1f} ({interval(one.low, one.high)})"


def _facts(exposures: Exposures, history: History | None) -> list[tuple[str, str]]:
    settings = exposures.settings
    out = [
        (name, str(settings[name]))
        for name in ("method", "samples", "max_forwards", "confidence", "seed", "bos")
        if settings.get(name) is not None
    ]
    out.append(("token-forwards", f"{exposures.forwards:,} in {exposures.seconds:.1f} s"))
    if history is not None and history.share is not None:
        out.append(
            (
                "measuring while training",
                f"{len(history)} measurements took {history.forwards:,} token-forwards, "
                f"{history.share:.1%} of the {history[-1].tokens or 0:,} tokens trained on, "
                "padding included",
            )
        )
    names = format_names(exposures.formats)
    for fmt, details in exposures.formats.items():
        shown = [
            f"{name.replace('_', ' ')} {f'{value:.3g}' if isinstance(value, float) else value}"
            for name, value in details.figures().items()
        ]
        out.append((names[fmt], ", ".join(shown)))
    versions = settings.get("versions", {})
    if versions:
        out.append(("versions", ", ".join(f"{name} {v}" for name, v in versions.items())))
    return out


def _figure(ax: Axes, alt: str, caption: str, repetitions: Iterable[int]) -> _Figure:
    """The axes as an SVG picture whose bytes depend on what is drawn alone.

    Its colours follow the page into the dark: they become variables of a style sheet within it.
    """
    out = BytesIO()
    figure = ax.get_figure(root=True)
    assert figure is not None
    with matplotlib.rc_context({"svg.hashsalt": "hf-exposure", "svg.fonttype": "path"}):
        figure.savefig(
            out, format="svg", facecolor=plots.PAGE, metadata={"Date": None, "Creator": None}
        )
    times = list(repetitions)
    light, dark = plots.group_colours(times), plots.group_colours(times, dark=True)
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
    picture = re.sub(r"\b(fill|stroke): (#[0-9a-f]{6})", variable, out.getvalue().decode("utf-8"))
    picture = re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + style, picture, count=1)
    return _Figure(base64.b64encode(picture.encode("utf-8")).decode("ascii"), alt, caption)


def _how_many(number: int) -> str:
    """A number, the large ones as a power of ten."""
    return f"{number:,}" if number < 10**13 else f"10^{math.log10(number):.1f}"
