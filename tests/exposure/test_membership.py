"""Canaries that were never trained on are detected as often as stated, and no more often."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.exposure.draws import sample
from hf_exposure.exposure.estimators import RankEstimate
from hf_exposure.exposure.exploring import explore
from hf_exposure.exposure.membership import binomial_p_value, clopper_pearson
from hf_exposure.exposure.planning import Settings
from hf_exposure.exposure.ranking import ranks
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.references import by_references
from hf_exposure.exposure.results import Exposures
from tests.exposure.test_ranking import space

SMALL = SecretFormat("My code is {secret}.", "[0-9]{3}")
LARGE = SecretFormat("My code is {secret}.", "[0-9]{6}")
RATES = (0.01, 0.001)
MANY = 10_000


def exposure(fmt: SecretFormat, number: int, rank: int, **given: Any) -> Exposure:
    """An exact one of a canary that was inserted once."""
    log2 = math.log2(rank)
    estimate = RankEstimate(log2, log2, log2, log2, 0, True, rank / fmt.size)
    width = int(fmt.secret[-2])
    canary = Canary(fmt, f"{number:0{width}}", given.pop("repetitions", 1))
    return Exposure.of_rank(canary, 10.0, estimate, "exact")


def within(count: int, trials: int, rate: float) -> bool:
    low, high = stats.binom.interval(0.999, trials, rate)
    return bool(low <= count <= high)


def detections(sets: Sequence[Exposures]) -> np.ndarray:
    """(rates, 3) detected, detected or undecided, and all canaries."""
    out = np.zeros((len(RATES), 3), dtype=int)
    for one in sets:
        rows = [row for row in one.membership(RATES) if row.repetitions is None]
        out += [[row.detected, row.detected + row.undecided, row.count] for row in rows]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("fmt", [SMALL, LARGE])
def test_exact_ranks_of_untrained_canaries_are_detected_at_the_stated_rate(
    fmt: SecretFormat,
) -> None:
    """Many inserted at once: each is ranked without the others."""
    draw = np.random.default_rng(0)
    sets = []
    for _ in range(MANY // 100):
        places = np.sort(draw.choice(fmt.size, 100, replace=False))
        sets.append(
            Exposures(
                exposure(fmt, int(place), int(place) + 1 - before)
                for before, place in enumerate(places)
            )
        )
    for (detected, most, count), rate in zip(detections(sets), RATES, strict=True):
        assert detected == most and count == MANY
        # A rank of 901 strings is at most 0.1 % for none of them, and 1 % for 9.
        strings = fmt.size - 99
        assert within(detected, count, math.floor(rate * strings) / strings)
        assert detected <= stats.binom.ppf(0.9999, count, rate)


class Digits:
    """A model whose log-perplexities are sums over digits: sharp, flat, or of equal strings."""

    def __init__(self, scale: float) -> None:
        self.table = scale * np.random.default_rng(5).exponential(size=(6, 10))
        self.forwards = 0

    def log_perplexities(self, fmt: Any, secrets: Sequence[str], before: str = "") -> np.ndarray:
        digits = np.array([list(map(int, secret)) for secret in secrets])
        return np.asarray(self.table[np.arange(digits.shape[1]), digits].sum(axis=1))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [10.0, 0.01])
def test_canaries_among_references_are_detected_at_the_stated_rate(scale: float) -> None:
    """The extrapolated tail of skewnorm, whatever it says, is not used: both detect the same."""
    model, draw = Digits(scale), np.random.default_rng(1)
    sets = []
    for seed in range(MANY // 200):
        numbers = draw.choice(LARGE.size, 200, replace=False)
        canaries = [Canary(LARGE, f"{number:06}", 1) for number in numbers]
        costs = model.log_perplexities(LARGE, [canary.secret for canary in canaries])
        found = by_references(
            model,  # type: ignore[arg-type]
            canaries,
            costs,
            1e-9,
            Settings("sampling", samples=1000, seed=seed),
        )
        details = {LARGE: replace(found.details, tie_bits=1e-9)}
        sets.append(Exposures(found.exposures, formats=details))
        fitted = [replace(one, method="skewnorm", p_value=1e-9) for one in sets[-1]]
        assert (detections([Exposures(fitted, formats=details)]) == detections(sets[-1:])).all()
    for (detected, _, count), rate in zip(detections(sets), RATES, strict=True):
        assert count == MANY
        assert within(detected, count, math.floor(rate * 1001) / 1001)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.02, 1.0])
def test_auto_detects_no_more_than_stated_and_leaves_the_rest_undecided(scale: float) -> None:
    with torch.no_grad():
        one = space(scale=scale)
        scorer, fmt = one.scorer(), one.tree.format
        draw = np.random.default_rng(2)
        sets = []
        for seed in range(60):
            places = draw.choice(fmt.size, 50, replace=False)
            costs, paths = one.log_perplexities[places], [one.paths[place] for place in places]
            explored = explore(scorer, float(costs.max()) + 1e-4, paths, max_forwards=5)
            sampled = sample(scorer, explored, 100, seed, costs)
            none = np.zeros(len(places), dtype=bool)
            found = ranks(scorer, explored, sampled, costs, none, 1e-4, 0.95)
            sets.append(
                Exposures(
                    Exposure.of_rank(Canary(fmt, one.secrets[place], 1), cost, rank, "auto")
                    for place, cost, rank in zip(places, costs, found, strict=True)
                )
            )
    for (detected, most, count), rate in zip(detections(sets), RATES, strict=True):
        strings = fmt.size - 49
        stated = math.floor(rate * strings) / strings
        assert detected <= stats.binom.ppf(0.9995, count, rate)
        assert most >= stats.binom.ppf(0.0005, count, stated)


def test_rows_are_of_each_group_and_of_all_inserted_canaries() -> None:
    groups = enumerate([0, 1, 1, 4, 4])
    items = [exposure(LARGE, n, 1 + 2_000 * n, repetitions=k) for n, k in groups]
    rows = list(Exposures(items).membership(fpr=(0.01, 1e-6)))
    assert [(row.repetitions, row.fpr) for row in rows] == [
        (group, rate) for group in (0, 1, 4, None) for rate in (0.01, 1e-6)
    ]
    pooled = rows[-2]
    assert (pooled.count, pooled.detected, pooled.undecided, pooled.tpr) == (4, 4, 0, 1.0)
    assert (pooled.low, pooled.high) == (pytest.approx(0.025 ** (1 / 4)), 1.0)
    # Of 10^6 strings three others are inserted: rank 1 is no millionth of what is left.
    assert rows[1].detected == 0
    assert 0.99 < pooled.auc <= 1 and pooled.auc_low < pooled.auc <= pooled.auc_high


def test_a_canary_whose_interval_holds_the_threshold_is_undecided() -> None:
    fmt = LARGE
    across = Exposure(
        Canary(fmt, "000001", 2), 6.6, 6.0, 7.2, 10_000, 7_000, 15_000, 0, 0, False, 9, "auto", 0.01
    )
    (row, *_) = Exposures([across]).membership(0.01)
    assert (row.detected, row.undecided) == (0, 1)
    assert row.low == 0 and row.high == 1


def test_few_references_leave_a_small_rate_undecided() -> None:
    one = exposure(LARGE, 1, 1)
    sampled = Exposure(
        one.canary, 9.9, 8, 19.9, 1000, 1, 4000, 0, 0, False, 9, "sampling", 1 / 1001
    )
    (at_1_percent, at_a_millionth, *_) = Exposures([sampled]).membership((0.01, 1e-6))
    assert at_1_percent.detected == 1
    assert (at_a_millionth.detected, at_a_millionth.undecided) == (0, 1)


def test_ties_count_one_half_in_the_auc() -> None:
    """A model to which all strings are equal tells nothing."""
    size = SMALL.size
    log2 = math.log2(size)
    estimate = RankEstimate(log2, 0.0, log2, log2, size - 1, True, 1.0)
    one = Exposure.of_rank(Canary(SMALL, "123", 1), 10.0, estimate, "exact")
    (row, *_) = Exposures([one]).membership(0.01)
    assert row.auc == pytest.approx(0.5)
    assert row.detected == row.undecided == 0


def test_rates_go_into_the_metrics_if_asked_for() -> None:
    found = Exposures([exposure(LARGE, 7, 1), exposure(LARGE, 8, 900_000)])
    assert not any("tpr" in name for name in found.metrics())
    metrics = found.metrics("eval_", fpr=0.01)
    assert metrics["eval_tpr"] == metrics["eval_tpr_x1"] == 0.5


@pytest.mark.parametrize("rate", [0, 1, -0.1, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="fpr"):
        Exposures([]).membership(rate)


def test_the_table_says_what_detection_means() -> None:
    shown = str(Exposures([exposure(LARGE, 7, 1)]).membership())
    assert "0.1 %" in shown and "never trained on" in shown


@pytest.mark.parametrize(("successes", "trials"), [(0, 5), (2, 9), (5, 5)])
def test_the_interval_and_the_p_value_are_those_of_scipy(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, "exact")
    assert clopper_pearson(successes, trials, 0.95) == pytest.approx(tuple(expected))
    upper = stats.binomtest(successes, trials, 0.1, "greater").pvalue
    assert binomial_p_value(successes, trials, 0.1) == pytest.approx(upper)
