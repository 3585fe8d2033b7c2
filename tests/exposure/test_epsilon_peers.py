"""Lower bounds on epsilon against jax-privacy's auditor, run beside ours on the same scores.

Of its wheel only the file `auditing.py` is loaded, which needs NumPy, SciPy and dp-accounting, but
no JAX.
"""

from __future__ import annotations

from typing import Any

import dp_accounting
import numpy as np
import pytest

from hf_exposure import estimate_epsilon
from hf_exposure.exposure.refuting import gaussian_epsilon
from tests.peers import load_peer
from tests.selection import rest_slow

SEEDS = range(30)


@pytest.fixture(scope="module")
def peer() -> Any:
    return load_peer("jax_privacy/auditing.py")


def scores(seed: int) -> tuple[np.ndarray, np.ndarray, float, float, float]:
    """Scores in and out that some mechanism may give, a threshold, a confidence and a delta."""
    draw = np.random.default_rng(seed)
    n, shift = int(draw.integers(60, 900)), draw.uniform(0.5, 4)
    is_in = draw.random(n) < 0.5
    noise = draw.normal(size=n) if seed % 3 else draw.laplace(size=n)
    values = noise + shift * is_in
    if seed % 2:
        values = np.round(values, 1)  # with ties
    confidence = float(draw.choice([0.8, 0.95, 0.99]))
    delta = float(10.0 ** draw.integers(-8, -2))
    threshold = float(np.quantile(values, draw.uniform(0.5, 0.95)))
    return values[is_in], values[~is_in], threshold, confidence, delta


@pytest.mark.parametrize("seed", rest_slow(SEEDS, 8))
def test_one_run_is_the_same_at_a_given_threshold(peer: Any, seed: int) -> None:
    ins, outs, threshold, confidence, delta = scores(seed)
    auditor = peer.CanaryScoreAuditor(ins, outs)
    # It guesses those at the threshold or above to be in, and nobody to be out.
    guesses = int(np.sum(ins >= threshold) + np.sum(outs >= threshold)), 0
    rule = peer.Explicit(threshold)
    for method, theirs in (
        ("one_run", auditor.epsilon_one_run),
        ("one_run_fdp", auditor.epsilon_one_run_fdp),
    ):
        expected = theirs(1 - confidence, delta, threshold_strategy=rule)
        found = estimate_epsilon(ins, outs, delta, confidence, method, guesses=guesses)
        assert found.epsilon == pytest.approx(expected, abs=1e-5), method


@pytest.mark.parametrize("seed", SEEDS)
def test_many_runs_are_the_same_at_a_given_threshold(peer: Any, seed: int) -> None:
    ins, outs, threshold, confidence, delta = scores(seed)
    expected = peer.CanaryScoreAuditor(ins, outs).epsilon_clopper_pearson(
        1 - confidence, delta, one_sided=False, threshold_strategy=peer.Explicit(threshold)
    )
    found = estimate_epsilon(ins, outs, delta, confidence, "clopper_pearson", threshold=threshold)
    assert found.epsilon == pytest.approx(expected, abs=1e-6)


def test_the_cases_are_not_all_without_a_bound(peer: Any) -> None:
    bounds = []
    for seed in SEEDS:
        ins, outs, threshold, confidence, delta = scores(seed)
        auditor = peer.CanaryScoreAuditor(ins, outs)
        rule = peer.Explicit(threshold)
        bounds.append(auditor.epsilon_one_run(1 - confidence, delta, threshold_strategy=rule))
    assert sum(bound > 0.5 for bound in bounds) > len(SEEDS) / 2


@pytest.mark.parametrize("delta", [1e-10, 1e-6, 1e-3])
@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0, 40.0])
def test_the_epsilon_of_a_gaussian_is_that_of_dp_accounting(epsilon: float, delta: float) -> None:
    sigma = dp_accounting.get_sigma_gaussian(epsilon, delta)
    assert gaussian_epsilon(1 / sigma, delta) == pytest.approx(epsilon, rel=1e-5)
