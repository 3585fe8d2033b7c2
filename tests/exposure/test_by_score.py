"""Exposure by other scores: ranks among references, exact for what was never trained on."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hf_exposure import Canaries, Canary, Exposures, SecretFormat, measure_exposure, score_texts
from hf_exposure.exposure.by_score import SignalScorer
from hf_exposure.exposure.planning import SCORES, Settings
from hf_exposure.exposure.references import by_references
from hf_exposure.models.causal import CausalModel
from hf_exposure.models.undisturbed import undisturbed
from hf_exposure.tree.tokens import TokenTree
from tests.tiny import TOKENIZERS, llama

TOKENIZER = TOKENIZERS["digits_in_threes"]()  # secrets of one length have paths of several
SMALL = SecretFormat("My code is {secret}.", "[0-9]{3}")
LARGE = SecretFormat("My code is {secret}.", "[0-4][0-9]{3}")
OTHERS = [score for score in SCORES if score != "log_perplexity"]
RATES = (0.01, 0.001)


@functools.cache
def model(seed: int = 0, scale: float = 0.2) -> Any:
    return llama(len(TOKENIZER), seed=seed, scale=scale).eval()


def base(score: str) -> Any:
    return model(1) if score in ("ratio", "min_k", "min_k_plus_plus") else None


class Table:
    """Costs of every string of a space by a score, computed once."""

    def __init__(self, fmt: SecretFormat, score: str, scale: float) -> None:
        self.forwards = 0
        one = model(scale=scale)
        other = None if base(score) is None else CausalModel(base(score))
        with undisturbed(one):
            reader = SignalScorer(TokenTree(fmt, TOKENIZER), CausalModel(one), other, score)
            secrets = list(fmt.enumerate())
            self.costs = dict(zip(secrets, reader.costs(secrets)[0].tolist(), strict=True))

    def log_perplexities(self, fmt: Any, secrets: list[str], before: str = "") -> np.ndarray:
        return np.array([self.costs[secret] for secret in secrets])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("score", "scale"), [(score, (0.02, 1.0)[place % 2]) for place, score in enumerate(SCORES)]
)
def test_untrained_canaries_are_detected_at_the_stated_rate_by_every_score(
    score: str, scale: float, count: int = 1000
) -> None:
    """Several are inserted at once; `count` was 10,000 by hand, with either scale."""
    table, draw = Table(LARGE, score, scale), np.random.default_rng(0)
    detected = np.zeros(2, dtype=int)
    for seed in range(count // 100):
        numbers = draw.choice(LARGE.size, 100, replace=False)
        canaries = [Canary(LARGE, f"{number:04}", 1) for number in numbers]
        costs = table.log_perplexities(LARGE, [canary.secret for canary in canaries])
        settings = Settings("sampling", samples=1000, seed=seed)
        found = by_references(table, canaries, costs, 1e-6, settings)  # type: ignore[arg-type]
        rows = Exposures(found.exposures).membership(RATES)
        detected += [row.detected for row in rows if row.repetitions is None]
    for number, rate in zip(detected, RATES, strict=True):
        low, high = stats.binom.interval(0.999, count, rate)
        # Ties count against detection, so that a score with few values may detect less.
        assert number <= high
        assert number >= low or len(set(table.costs.values())) < LARGE.size / 2


@pytest.mark.slow
@pytest.mark.parametrize("score", OTHERS)
def test_a_small_space_is_ranked_whole_by_the_score_of_each_text(score: str) -> None:
    """The truth is from `score_texts`, given the template as context."""
    canaries = Canaries.generate(SMALL, [0, 1, 4], per_repetition=2)
    found = measure_exposure(
        model(), TOKENIZER, canaries, score=score, base=base(score), samples=1000
    )
    reader = SignalScorer(
        TokenTree(SMALL, TOKENIZER),
        CausalModel(model()),
        None if base(score) is None else CausalModel(base(score)),
        score,
    )
    secrets = list(SMALL.enumerate())
    with undisturbed(model()):
        costs = dict(zip(secrets, reader.costs(secrets)[0], strict=True))
    inserted = {canary.secret for canary in canaries.inserted}
    for one in found:
        assert isinstance(one.canary, Canary) and one.exact and one.cost is not None
        own = costs[one.canary.secret]
        assert one.cost == pytest.approx(own, abs=1e-4)
        others = inserted - {one.canary.secret}
        rank = sum(cost <= own + 1e-5 for secret, cost in costs.items() if secret not in others)
        assert one.rank == pytest.approx(rank, abs=1)
    assert found.settings["score"] == score and f"by {score}" in found.summary()
    assert found.forwards > len(found.references[SMALL])  # each of them took several
    shown = found.coarse().references[SMALL]
    assert len(shown) == SMALL.size
    assert shown == pytest.approx(sorted(costs.values()), abs=0.06)


@pytest.mark.slow
def test_the_ratio_is_the_difference_of_log_perplexities() -> None:
    canaries = Canaries.generate(LARGE, [0, 1], per_repetition=3)
    given = {"method": "sampling", "samples": 50}
    own = measure_exposure(model(), TOKENIZER, canaries, **given)
    other = measure_exposure(model(1), TOKENIZER, canaries, **given)
    found = measure_exposure(model(), TOKENIZER, canaries, score="ratio", base=model(1), samples=50)
    for one, two, three in zip(own, other, found, strict=True):
        assert three.log_perplexity == pytest.approx(one.log_perplexity, abs=1e-3)
        assert three.cost == pytest.approx(one.log_perplexity - two.log_perplexity, abs=1e-3)
        assert three.method == "sampling" and three.certified == 0


def test_scores_of_a_secret_and_of_a_text_that_is_nothing_else_agree() -> None:
    fmt = SecretFormat("{secret}.", "[0-9]{3}")
    canaries = Canaries.generate(fmt, [0, 1], per_repetition=3)
    texts = score_texts(model(), TOKENIZER, [canary.text for canary in canaries])
    for score in ("min_k", "min_k_plus_plus"):
        found = measure_exposure(model(), TOKENIZER, canaries, score=score, samples=20)
        costs = [one.cost for one in found]
        assert costs == pytest.approx([-getattr(one, score) for one in texts], abs=1e-3)


def test_masked_results_do_not_tell_the_cost_and_come_back(tmp_path: Path) -> None:
    canaries = Canaries.generate(LARGE, [0, 1], per_repetition=3)
    found = measure_exposure(
        model(), TOKENIZER, canaries, score="min_k", method="skewnorm", samples=100
    )
    masked = Exposures.load(found.save(tmp_path / "masked.json"))
    assert all(one.cost is not None and math.isnan(one.cost) for one in masked)
    assert all(row.undecided == row.count for row in masked.membership())
    whole = Exposures.load(found.save(tmp_path / "whole.json", reveal=True), canaries)
    assert [one.cost for one in whole] == [one.cost for one in found]
    assert "extrapolation" in found.membership().summary()


def test_what_does_not_go_together_is_refused_with_a_way_out() -> None:
    canaries = Canaries.generate(SMALL, [0, 1], per_repetition=1)
    with pytest.raises(ValueError, match="method='sampling'"):
        measure_exposure(model(), TOKENIZER, canaries, score="min_k", method="exact")
    with pytest.raises(ValueError, match="give the model before training"):
        measure_exposure(model(), TOKENIZER, canaries, score="ratio")
    with pytest.raises(ValueError, match="use score='ratio'"):
        measure_exposure(model(), TOKENIZER, canaries, base=model(1))
    with pytest.raises(ValueError, match=r"^base: LlamaForCausalLM has a vocabulary of 50"):
        measure_exposure(model(), TOKENIZER, canaries, score="ratio", base=llama(50))
    with pytest.raises(ValueError, match=r"^base: LlamaForCausalLM has a vocabulary of 50"):
        score_texts(model(), TOKENIZER, ["a text"], base=llama(50))
    with pytest.raises(ValueError, match="score='nonsense'"):
        measure_exposure(model(), TOKENIZER, canaries, score="nonsense")
