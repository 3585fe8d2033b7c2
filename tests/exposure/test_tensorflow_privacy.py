"""The paper's two estimators against those of TensorFlow Privacy, run beside ours.

Of its wheel, tensorflow-empirical-privacy, only the file with the formulas is loaded, which needs
NumPy and SciPy but no TensorFlow.
"""

from __future__ import annotations

import sys
from typing import Any

import evaluate
import numpy as np
import pytest
from scipy import stats

from hf_exposure import metric_path
from hf_exposure.exposure.estimators import sampling_exposure
from hf_exposure.exposure.skew_normal import SkewNormal
from tests.exposure.test_rank import tail_bits
from tests.peers import load_peer
from tests.selection import rest_slow

SEEDS = range(20)


@pytest.fixture(scope="module")
def peer() -> Any:
    return load_peer("tensorflow_privacy/privacy/privacy_tests/secret_sharer/exposures.py")


def skewed(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Canaries' and references' log-perplexities: any skew, canaries down to far below them."""
    draw = np.random.default_rng(seed)
    scale, n = draw.uniform(1, 12), int(draw.integers(20, 600))
    references = stats.skewnorm.rvs(draw.uniform(-6, 6), 60, scale, size=n, random_state=draw)
    below = references.min() - scale * draw.uniform(0, 3, 6)
    return np.concatenate([below, draw.choice(references, 4)]), references


@pytest.mark.parametrize("seed", SEEDS)
def test_sampling_is_its_interpolation(peer: Any, seed: int) -> None:
    costs, references = skewed(seed)
    if seed % 2:  # many ties, also with references, which it too puts before the canary
        costs, references = np.round(costs / 4), np.round(references / 4)
    theirs = peer.compute_exposure_interpolation({0: list(costs)}, list(references))[0]
    ours = [sampling_exposure(cost, references) for cost in costs]
    # It gives them in the order of their cost.
    in_order = [ours[place] for place in np.argsort(costs, kind="stable")]
    assert [one.raw_bits for one in in_order] == pytest.approx(theirs, abs=1e-9)
    # What we report is never below 0 bits, where a canary costlier than all n is log2(n / (n + 1)).
    assert [one.bits for one in in_order] == pytest.approx(np.maximum(theirs, 0), abs=1e-9)


@pytest.mark.parametrize("seed", rest_slow(SEEDS, 6))
def test_skewnorm_is_its_extrapolation_with_the_same_fit(peer: Any, seed: int) -> None:
    costs, references = skewed(seed)
    theirs = peer.compute_exposure_extrapolation({0: costs}, references)[0]
    fit = SkewNormal(*stats.skewnorm.fit(references), ks=0.0, references=references)
    ours = np.array([fit.exposure(cost) for cost in costs])
    near = theirs < 18
    assert near.sum() >= 4
    assert ours[near] == pytest.approx(theirs[near], abs=1e-9)
    # Farther out SciPy's distribution function, which it takes, loses one digit after the other;
    # ours keeps them, as quadrature in 40 digits tells.
    far = ~near & (theirs < 100)
    assert ours[far] == pytest.approx(theirs[far], rel=1e-6)
    for cost, bits in list(zip(costs[~near], ours[~near], strict=True))[:1]:
        truth = tail_bits((cost - fit.loc) / fit.scale, fit.shape)
        assert bits == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_our_fit_is_at_least_as_likely_as_its_fit(seed: int) -> None:
    _, references = skewed(seed)
    fit, theirs = SkewNormal.fit(references), stats.skewnorm.fit(references)
    ours = stats.skewnorm.logpdf(references, fit.shape, fit.loc, fit.scale).sum()
    assert ours >= stats.skewnorm.logpdf(references, *theirs).sum() - 1e-6


def test_our_bits_with_our_own_fit_are_its_bits(peer: Any) -> None:
    # Each searches for the most likely fit from another start: the bits agree as well as that does.
    for seed in SEEDS:
        costs, references = skewed(seed)
        theirs = peer.compute_exposure_extrapolation({0: costs}, references)[0]
        fit, near = SkewNormal.fit(references), theirs < 100
        ours = [fit.exposure(cost) for cost in costs[near]]
        assert ours == pytest.approx(theirs[near], rel=1e-4, abs=1e-4)


@pytest.mark.slow
def test_the_metric_gives_its_figures(
    peer: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])  # evaluate appends to it
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    metric = evaluate.load(metric_path(), cache_dir=str(tmp_path))
    costs, references = skewed(3)
    costs = np.sort(costs)
    given = {"predictions": costs, "references": references}
    found = metric.compute(**given, method="sampling")["exposure"]
    theirs = peer.compute_exposure_interpolation({0: list(costs)}, list(references))[0]
    assert found == pytest.approx(np.maximum(theirs, 0), abs=1e-9)
    found = metric.compute(**given, method="skewnorm")["exposure"]
    theirs = peer.compute_exposure_extrapolation({0: costs}, references)[0]
    assert found == pytest.approx(theirs, rel=1e-4, abs=1e-4)
