"""The figures show the figures: what is drawn is what was measured."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from hf_exposure.attacks.extraction import Extraction
from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.history import History
from hf_exposure.exposure.results import Exposures
from hf_exposure.reports import plots
from tests.reports.test_report import CANARIES, FORMAT, exposure, extractions, history, measured


def test_the_training_figure_draws_each_groups_mean_and_the_loss() -> None:
    ax = plots.plot_exposure_over_training(history())
    lines = {line.get_label(): line for line in ax.get_lines()}
    drawn = [line for label, line in lines.items() if "64" in str(label)]
    assert len(drawn) == 1
    wanted = [
        np.mean([e.bits for e in entry.exposures.by_repetitions()[64]])
        for entry in history().coarse()
    ]
    np.testing.assert_allclose(drawn[0].get_ydata(), wanted)
    assert list(drawn[0].get_xdata()) == [10, 20, 30]
    twin = [other for other in ax.get_figure().axes if other is not ax]
    assert list(twin[0].get_lines()[0].get_ydata()) == [4.5, 4.0, 3.5]


def test_the_repetitions_figure_draws_every_canary_with_its_interval() -> None:
    ax = plots.plot_exposure_by_repetitions(measured())
    points = [line for line in ax.get_lines() if len(line.get_xdata()) == 1]
    heights = sorted(float(line.get_ydata()[0]) for line in points)
    np.testing.assert_allclose(heights, sorted(e.bits for e in measured().coarse()))


def test_the_histogram_needs_references_and_says_how_to_get_them() -> None:
    with pytest.raises(ValueError, match="measure with method='skewnorm' or 'sampling'"):
        plots.plot_log_perplexities(measured())


def test_the_histogram_is_a_density_of_the_references() -> None:
    values = np.random.default_rng(0).normal(20, 2, 500)
    ax = plots.plot_log_perplexities(measured(formats={FORMAT: FormatDetails(references=values)}))
    area = sum(bar.get_width() * bar.get_height() for bar in ax.patches)
    assert area == pytest.approx(1.0)
    curve = max(ax.get_lines(), key=lambda line: len(line.get_xdata()))
    peak = float(np.asarray(curve.get_xdata())[np.argmax(curve.get_ydata())])
    assert abs(peak - 20) < 0.5


def test_secrets_are_written_beside_their_marks_only_if_asked_for() -> None:
    values = np.random.default_rng(0).normal(20, 2, 500)
    shown = measured(formats={FORMAT: FormatDetails(references=values)})
    for reveal in (False, True):
        ax = plots.plot_log_perplexities(shown, reveal=reveal)
        written = " ".join(text.get_text() for text in ax.texts)
        assert any(c.secret in written for c in CANARIES) is reveal


def test_the_extraction_figure_draws_what_each_canary_took() -> None:
    ax = plots.plot_extraction_cost(list(extractions()), measured())
    heights = [float(y) for line in ax.get_lines() for y in np.atleast_1d(line.get_ydata())]
    assert {one.forwards for one in extractions()} <= set(heights)


def test_a_canary_that_came_out_is_found_by_its_place_where_secrets_are_masked() -> None:
    masked = Exposures.from_dict(measured().to_dict())
    for place, one in enumerate(masked):
        own = Extraction("••••••", 1.0, True, 10, one.canary, FORMAT, place)
        assert plots.exposure_of(own, masked) is one
        assert plots.exposure_of(own, measured()) == measured()[place]
    other = Extraction("••••••", 1.0, True, 10, masked[0].canary, FORMAT, len(masked) - 1)
    assert plots.exposure_of(other, masked) is None
    assert plots.exposure_of(Extraction("••••••", 1.0, True, 10), masked) is None
    known = Extraction(CANARIES[3].secret, 1.0, True, 10, CANARIES[3], FORMAT)
    assert plots.exposure_of(known, measured()) == measured()[3]


def test_figures_can_be_drawn_into_axes_of_ones_own() -> None:
    figure = Figure()
    first, second = figure.subplots(1, 2)
    assert plots.plot_exposure_by_repetitions(measured(), ax=first) is first
    assert plots.plot_exposure_over_training(history(), ax=second) is second


def test_nothing_goes_through_pyplot() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums(), matplotlib.get_backend()
    plots.plot_exposure_by_repetitions(measured())
    plots.plot_exposure_over_training(history())
    assert (pyplot.get_fignums(), matplotlib.get_backend()) == before


def test_nothing_measured_is_drawn_as_such() -> None:
    for ax in (
        plots.plot_exposure_over_training(History()),
        plots.plot_exposure_by_repetitions(Exposures([])),
        plots.plot_extraction_cost([], measured()),
        plots.plot_exposure_by_repetitions(Exposures([exposure(CANARIES[0], 2.0)])),
    ):
        assert ax.get_xlabel() or ax.texts
