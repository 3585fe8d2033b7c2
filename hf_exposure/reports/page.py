"""One HTML page about what was measured: findings in words, figures, tables, settings.

The page needs no network and no script, so it can be mailed. The same input gives the same bytes.
Secrets are on it only if asked for. Its words are in templates/report.html.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_exposure.attacks.extraction import Extractions
from hf_exposure.attacks.generations import Generations
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import format_names
from hf_exposure.exposure.chance import CHANCE
from hf_exposure.exposure.documents import Tabular
from hf_exposure.exposure.history import History
from hf_exposure.exposure.records import Exposure, interval, mean_bits, short_labels
from hf_exposure.exposure.results import Exposures
from hf_exposure.exposure.scores import ranked_by
from hf_exposure.exposure.skew_normal import SkewNormal
from hf_exposure.reports import plots
from hf_exposure.reports.evidence import Evidence
from hf_exposure.reports.findings import findings_of
from hf_exposure.reports.pictures import picture
from hf_exposure.reports.tested import what_was_tested
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.escapes import printable
from hf_exposure.utils.files import write_text
from hf_exposure.utils.typed import typed
from hf_exposure.utils.words import large, plural

_MOST_ROWS = 500  # canaries in a table; a page with more is not read
_MOST_STEPS = 20  # measurements in the table of means
_RESAMPLES = 99  # of the test of a fit


@dataclass(frozen=True)
class _Table:
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: frozenset[int] = frozenset()


@typed
def write_report(
    path: str | os.PathLike[str],
    *,
    exposures: Exposures | None = None,
    history: History | None = None,
    extractions: Extractions | Iterable[Extractions] = (),
    generations: Generations | None = None,
    compare: Exposures | Iterable[Exposures] = (),
    title: str = "Memorization report",
    notes: str | Iterable[str] = (),
    reveal: bool = False,
    overwrite: bool = False,
    evidence: Evidence | None = None,
) -> Path:
    """Write one HTML page about what was measured; it is written whole or not at all.

    Args:
        path: the file to write.
        exposures: the measurement that the page is about; None takes the history's last one.
        history: exposures over training.
        extractions: what `extract_secrets` gave, for one format or several.
        generations: what `generate_secrets` gave.
        compare: measurements of the same canaries by other methods. The histogram of references is
            drawn from the first measurement that has some.
        title: the page's heading.
        notes: sentences that follow it.
        reveal: show the secrets.
        overwrite: replace another file that is there.
        evidence: hashes and commitments to show under "What was tested".

    Returns:
        The path.

    Raises:
        FileExistsError: another file is there, and not `overwrite`.
        ValueError: there is neither a measurement nor a history that has one.
        TypeError: an argument is something else.
        OSError: the file cannot be written.
    """
    found = exposures, history, extractions, generations, compare
    page = render_report(*found, title=title, notes=notes, reveal=reveal, evidence=evidence)
    return write_text(path, page, where="write_report", overwrite=overwrite)


def render_report(
    exposures: Exposures | None = None,
    history: History | None = None,
    extractions: Extractions | Iterable[Extractions] = (),
    generations: Generations | None = None,
    compare: Exposures | Iterable[Exposures] = (),
    *,
    title: str = "Memorization report",
    notes: str | Iterable[str] = (),
    reveal: bool = False,
    evidence: Evidence | None = None,
) -> str:
    """The page of `write_report` as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    searches = [extractions] if isinstance(extractions, Extractions) else list(extractions)
    others = [compare] if isinstance(compare, Exposures) else list(compare)
    if exposures is None:
        if history is None or not len(history):
            raise ValueError(
                "write_report: there is nothing to report; give exposures, or a history with at "
                "least one measurement"
            )
        exposures = history[-1].exposures
    tested = _tested(exposures, searches, generations)
    if not reveal:  # who has the model can find a secret by its figures
        exposures, others = exposures.coarse(), [one.coarse() for one in others]
        history = None if history is None else history.coarse()
        searches = [one.coarse() for one in searches]
        generations = None if generations is None else generations.coarse()
    found = [one for search in searches for one in search]
    measured = [exposures, *others]
    names = format_names(search.format for search in searches)
    named = format_names(exposures.formats)
    environment = Environment(
        loader=PackageLoader("hf_exposure.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Nothing is shown that turns or hides other text.
        finalize=lambda value: printable(value, keep="\n") if type(value) is str else value,
    )
    environment.globals.update(large=large, mean_bits=mean_bits, plural=plural)
    return environment.get_template("report.html").render(
        title=title,
        notes=[notes] if isinstance(notes, str) else list(notes),
        exposures=exposures,
        findings=findings_of(exposures, history, found, generations),
        chance=f"{CHANCE:.2f}",
        training=_training(history),
        canaries=_canaries(exposures, reveal),
        skipped=_skipped(exposures, reveal),
        membership=_membership(exposures),
        tested=tested,
        evidence=None if evidence is None else _evidence(evidence),
        references=_references(measured, reveal),
        searches=[
            (names[search.format], search, _shown(search, {0, 3, 5}, reveal)) for search in searches
        ],
        extraction_cost=_extraction_cost(searches, exposures),
        generations=generations,
        generated=None if generations is None else _shown(generations, {1}, reveal),
        compared=_compared(exposures, others, reveal),
        methods=dict.fromkeys(one.method for found in measured for one in found),
        by="" if exposures.by_likelihood else ranked_by(exposures.settings),
        history=history,
        formats={name: exposures.formats[fmt].figures() for fmt, name in named.items()},
        version=importlib.metadata.version("hf-exposure"),
        reveal=reveal,
    )


def _training(history: History | None) -> dict[str, Any] | None:
    """The figure of a training, and what it shows in numbers."""
    if history is None or len(history) < 2:
        return None
    count = min(len(history), _MOST_STEPS)
    places = np.linspace(0, len(history) - 1, count).round().astype(int).tolist()
    groups = sorted({one.canary.repetitions for entry in history for one in entry.exposures})
    rows = []
    for entry in (history[place] for place in places):
        known = entry.exposures.by_repetitions()
        means = [f"{mean_bits(known[times]):.1f}" if times in known else "–" for times in groups]
        loss = entry.metrics.get("eval_loss")
        rows.append([f"{entry.step:,}", *means, "–" if loss is None else f"{loss:.3f}"])
    headings = ["step", *(f"{times:,}×" for times in groups), "evaluation loss"]
    return {
        "picture": picture(plots.plot_exposure_over_training(history), groups),
        "table": _Table(headings, rows, frozenset(range(len(headings)))),
        "last": history[-1].exposures,
        "measurements": len(history),
    }


def _canaries(exposures: Exposures, reveal: bool) -> dict[str, Any] | None:
    if not len(exposures):
        return None
    headings, rows = exposures.cells(reveal)
    rows = [[*row, f"{one.certified:.1f}"] for row, one in zip(rows, exposures, strict=True)]
    right = frozenset({0, 2, 3, 5, 6, 7})
    drawn = plots.plot_exposure_by_repetitions(exposures)
    return {
        "picture": picture(drawn, exposures.by_repetitions()),
        "table": _Table([*headings, "certified"], rows[:_MOST_ROWS], right),
    }


def _membership(exposures: Exposures) -> dict[str, Any] | None:
    if not len(exposures):
        return None
    found = exposures.membership()
    return {"table": _shown(found, set(found.right), False), "meaning": found.summary()}


def _tested(
    exposures: Exposures, searches: Sequence[Extractions], generations: Generations | None
) -> dict[str, Any]:
    """What was tested, and what was not, as tables and lists."""
    found = what_was_tested(exposures, searches, generations)
    headings = ["secrets", "bits", "inserted", "canaries", "exposure", "noticed from", "or share"]
    rows = [
        [
            group.format,
            f"{group.bits:.1f}",
            f"{group.repetitions:,}",
            f"{group.canaries:,}",
            f"{group.exposure:.1f}",
            f"{group.noticeable_bits:.1f}",
            "–" if group.noticeable_tpr is None else f"{group.noticeable_tpr:.0%}",
        ]
        for group in found.groups
    ]
    opinion = [[*row] for row in found.opinion]
    return {
        "groups": _Table(headings, rows, frozenset(range(1, 7))),
        "controls": found.controls,
        "attackers": found.attackers,
        "not_tested": found.not_tested,
        "opinion": _Table(["paragraph", "question", "answer"], opinion),
    }


def _evidence(evidence: Evidence) -> list[tuple[str, str]]:
    """Hashes and commitments by name."""
    content = evidence.content
    weights = content.get("weights") or {}
    hashes = weights.get("files") or weights
    named = {f"weights, {name}": value for name, value in hashes.items()}
    named |= {f"data, {name}": value for name, value in (content.get("data") or {}).items()}
    commitments = content.get("commitments", {}).items()
    named |= {f"commitment, {name.replace('_', ' ')}": value for name, value in commitments}
    return [(name, str(value)) for name, value in [*named.items(), ("seal", content.get("seal"))]]


def _skipped(exposures: Exposures, reveal: bool) -> _Table | None:
    labels = short_labels((canary for canary, _ in exposures.skipped), reveal)
    rows = [[label, why] for label, (_, why) in zip(labels, exposures.skipped, strict=True)]
    return _Table(["could not be scored", "why"], rows) if rows else None


def _shown(result: Tabular, right: set[int], reveal: bool) -> _Table:
    headings, rows = result.cells(reveal)
    return _Table(headings, rows[:_MOST_ROWS], frozenset(right))


def _references(measured: Sequence[Exposures], reveal: bool) -> list[dict[str, Any]]:
    """The paper's figure, for each format whose references were drawn."""
    source = next((one for one in measured if one.references), None)
    if source is None:
        return []
    names = format_names(source.references)
    out = []
    for fmt, values in source.references.items():
        ours = [one for one in source if one.canary.format == fmt]
        shown = {one.canary.repetitions for one in ours if math.isfinite(one.ranked_by)}
        drawn = plots.plot_log_perplexities(source, fmt, reveal=reveal)
        fit, p = _goodness(values)
        what, unit = "Log-perplexities", "bits"
        if not source.by_likelihood:
            what, unit = f"Costs by {ranked_by(source.settings)}", ""
        told = {"name": names[fmt], "count": len(values), "what": what, "unit": unit}
        told |= {"fit": fit, "p": p}
        out.append(told | {"picture": picture(drawn, shown), "resamples": _RESAMPLES})
    return out


def _goodness(references: Floats) -> tuple[SkewNormal | None, float]:
    """The fit, and the p-value of its test by parametric bootstrap."""
    try:
        fit = SkewNormal.fit(references[np.isfinite(references)])
    except ValueError:
        return None, math.nan
    return fit, fit.p_value(resamples=_RESAMPLES)


def _extraction_cost(searches: Sequence[Extractions], exposures: Exposures) -> str | None:
    found = [one for search in searches for one in search]
    shown = [plots.exposure_of(one, exposures) for one in found]
    if len({round(one.bits, 1) for one in shown if one is not None}) < 2:
        return None
    return picture(plots.plot_extraction_cost(found, exposures), [1])


def _compared(exposures: Exposures, others: Sequence[Exposures], reveal: bool) -> Any:
    """The same canaries by each method, side by side, and what each method took."""
    if not others:
        return None
    every = [exposures, *others]
    columns = [_matched(exposures, measured) for measured in every]
    names = [
        str(one.settings.get("method", "?"))
        + ("" if one.by_likelihood else f" by {ranked_by(one.settings)}")
        for one in every
    ]
    labels = short_labels((one.canary for one in exposures), reveal)
    rows = [
        [
            f"{place}",
            labels[place],
            f"{one.canary.repetitions}",
            *("–" if cell is None else _figures(cell) for cell in cells),
        ]
        for place, (one, cells) in enumerate(
            zip(exposures, zip(*columns, strict=True), strict=True)
        )
    ]
    table = _Table(["#", "canary", "inserted", *names], rows[:_MOST_ROWS], frozenset({0, 2}))
    took = [(name, one.forwards) for name, one in zip(names, every, strict=True)]
    return {"table": table, "took": took}


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


def _figures(one: Exposure) -> str:
    if one.exact and one.low == one.high:
        return f"{one.bits:.1f} (exact)"
    return f"{one.bits:.1f} ({interval(one.low, one.high)})"
