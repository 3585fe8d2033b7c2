"""Exploration and sampling together, against the true ranks of every string of small spaces."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.exposure import exploring
from hf_exposure.exposure.draws import Sampled, sample
from hf_exposure.exposure.exploring import Explored, explore
from hf_exposure.exposure.ranking import ranks
from hf_exposure.models.decoder import Decoder
from hf_exposure.tree.explorer import Explorer
from hf_exposure.tree.frontier import DepthFirst
from hf_exposure.tree.scoring import ScoredTree
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.tree.walk import walk
from tests.selection import rest_slow
from tests.tiny import SOME_TOKENIZERS, TOKENIZERS, llama

FORMAT = SecretFormat("The number is {secret}.", secret="[0-9]{3}")
BARE = SecretFormat("The number is {secret}", secret="[0-9]{3}")


class Space:
    """A small space whose ranks are all known."""

    def __init__(self, kind: str, fmt: SecretFormat, scale: float) -> None:
        tokenizer = TOKENIZERS[kind]()
        self.tree = TokenTree(fmt, tokenizer)
        self.model = llama(len(tokenizer), scale=scale)
        self.secrets = list(fmt.enumerate())
        self.paths = self.tree.paths(self.secrets)
        self.log_perplexities = self.scorer().follow(self.paths)
        self.order = np.argsort(self.log_perplexities)

    def scorer(self, **settings: Any) -> ScoredTree:
        decoder = Decoder(self.model, self.tree.prompt, self.tree.token_ids, batch_size=128)
        return ScoredTree(self.tree, decoder, **settings)

    def at(self, *ranks: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Paths and costs of the strings of these ranks."""
        places = [int(self.order[rank - 1]) for rank in ranks]
        return [self.paths[place] for place in places], self.log_perplexities[places]


@functools.cache
def space(kind: str = "digits_one_by_one", fmt: SecretFormat = FORMAT, scale: float = 0.2) -> Space:
    with torch.no_grad():
        return Space(kind, fmt, scale)


def estimate(
    one: Space,
    scorer: ScoredTree,
    explored: Explored,
    sampled: Sampled | None,
    log_perplexities: np.ndarray,
) -> list[Any]:
    controls = np.ones(len(log_perplexities), dtype=bool)
    return ranks(scorer, explored, sampled, log_perplexities, controls, 1e-4, 0.95)


def mean_ranks(
    one: Space, chosen: tuple[int, ...], *, visits: int, draws: int, seeds: int, aimed: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean of the estimated ranks, its standard error, and the share of intervals that hold."""
    paths, log_perplexities = one.at(*chosen)
    scorer = one.scorer()
    explored = explore(scorer, float(log_perplexities.max()) + 1e-4, paths, max_forwards=visits)
    found, held = [], []
    for seed in range(seeds):
        sampled = sample(scorer, explored, draws, seed, log_perplexities if aimed else None)
        some = estimate(one, scorer, explored, sampled, log_perplexities)
        found.append([rank.rank for rank in some])
        held.append(
            [
                rank.low <= true + 1e-9 and rank.high >= true - 1e-9
                for rank, true in zip(some, chosen, strict=True)
            ]
        )
    table = np.array(found)
    return table.mean(axis=0), table.std(axis=0, ddof=1) / math.sqrt(seeds), np.mean(held, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("fmt", [FORMAT, BARE], ids=["text_after", "no_text_after"])
@pytest.mark.parametrize("kind", rest_slow(TOKENIZERS, SOME_TOKENIZERS))
def test_sampled_ranks_are_unbiased_under_every_tokenizer(kind: str, fmt: SecretFormat) -> None:
    """Tokens of several digits give a string many paths, of which one counts."""
    with torch.no_grad():
        one = space(kind, fmt)
        chosen = (10, 100, 900)
        mean, error, _ = mean_ranks(one, chosen, visits=8, draws=60, seeds=60)
    # A rare draw may weigh much: where none came up, the runs' own spread is too small. Trained
    # vocabularies differ from process to process, so this happens; 3 % is what 400 seeds showed at
    # most. Paths that are counted twice, or not at all, make far larger errors.
    far = np.abs(mean - chosen) / np.maximum(error, 0.03 * np.array(chosen))
    assert (far < 4).all(), (mean, error)


@pytest.mark.slow
def test_an_exploration_that_keeps_few_nodes_leaves_the_ranks_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with torch.no_grad():
        one, chosen = space(), (1, 10, 100, 900)
        paths, log_perplexities = one.at(*chosen)
        held = []
        for most in (20, 60, 10**6):
            monkeypatch.setattr(exploring, "_MOST", most)
            left = explore(
                one.scorer(), float(log_perplexities.max()) + 1e-4, paths, max_forwards=300
            )
            held.append(len(left.frontier))
            mean, error, _ = mean_ranks(one, chosen, visits=300, draws=100, seeds=20)
            far = np.abs(mean - chosen) / np.maximum(error, 0.03 * np.array(chosen))
            assert (far < 4).all(), (most, mean, error)
    assert held[0] <= 20 + 2 * 10  # and the children of what was visited last
    assert held[0] < held[1] < 100


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.02, 0.2, 1.0])
def test_aims_do_not_move_the_mean_and_narrow_the_spread(scale: float) -> None:
    with torch.no_grad():
        one = space(fmt=SecretFormat("The number is {secret}.", secret="[0-9]{4}"), scale=scale)
        chosen = (8, 40)
        spread = {}
        for aimed in (False, True):
            mean, error, _ = mean_ranks(one, chosen, visits=8, draws=320, seeds=16, aimed=aimed)
            assert (np.abs(mean - chosen) < 4 * np.maximum(error, 1e-9)).all(), (aimed, mean)
            spread[aimed] = error
    if scale == 0.02:  # where the model's own preferences lead nowhere
        assert spread[True][0] < 0.7 * spread[False][0], spread


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.02, 0.2])
def test_ranks_of_ten_thousand_are_close_and_their_intervals_hold(scale: float) -> None:
    """The benchmark in small: what it asks of 10^6 strings."""
    fmt = SecretFormat("The number is {secret}", secret="[0-9]{4}")
    chosen = (10, 100, 1000, 9000)
    with torch.no_grad():
        one = space(fmt=fmt, scale=scale)
        mean, error, held = mean_ranks(one, chosen, visits=100, draws=400, seeds=40)
    assert (np.abs(mean - chosen) < 4 * np.maximum(error, 1e-9)).all(), (mean, error)
    assert (held >= 0.85).all(), held
    rmse = error * math.sqrt(40) / chosen  # relative
    assert (rmse < [0.6, 0.35, 0.2, 0.1]).all(), rmse


@pytest.mark.parametrize("visits", [1, 10, 60, math.inf])
def test_what_is_explored_is_what_the_frontier_leaves_out(visits: float) -> None:
    with torch.no_grad():
        one = space()
        paths, log_perplexities = one.at(300)
        explored = explore(
            one.scorer(), float(log_perplexities[0]) + 1e-4, paths, max_forwards=visits
        )
    left = [explored.frontier.path(place) for place in range(len(explored.frontier))]
    under = [
        any(len(path) >= len(head) and (path[: len(head)] == head).all() for head in left)
        for path in one.paths
    ]
    cheap = one.log_perplexities <= explored.bound
    # A frontier node may have costly strings under it, and the cheap ones are found or under it.
    assert (
        len(explored.log_perplexities) + sum(np.array(under) & cheap) + 1 - under[one.order[299]]
        == 300
    )
    if visits == math.inf:
        assert not left and len(explored.log_perplexities) == 299


def test_depth_first_finds_what_cheapest_first_finds() -> None:
    with torch.no_grad():
        one = space()
        paths, log_perplexities = one.at(200)
        both = [
            explore(one.scorer(), float(log_perplexities[0]) + 1e-4, paths, depth_first=way)
            for way in (False, True)
        ]
    assert sorted(both[0].log_perplexities) == pytest.approx(
        sorted(both[1].log_perplexities), abs=1e-4
    )
    assert np.sort(both[0].log_perplexities) == pytest.approx(
        np.sort(both[1].log_perplexities), abs=1e-4
    )


@pytest.mark.slow
def test_the_density_of_every_leaf_is_how_often_it_is_drawn() -> None:
    """g(x), which the estimate divides by, against the mean number of draws over many seeds."""
    with torch.no_grad():
        one = space(fmt=SecretFormat("The number is {secret}", secret="[0-9]{2}"))
        paths, log_perplexities = one.at(100)
        scorer = one.scorer()
        explored = explore(scorer, float(log_perplexities[0]) + 1e-4, paths, max_forwards=3)
        drawn: dict[float, float] = {}
        density: dict[float, float] = {}
        seeds = 150
        for seed in range(seeds):
            sampled = sample(scorer, explored, 24, seed)
            for cost, log2_density, draws in zip(
                sampled.log_perplexities.round(3).tolist(),
                sampled.log2_density.tolist(),
                sampled.draws.tolist(),
                strict=True,
            ):
                if math.isfinite(cost):
                    drawn[cost] = drawn.get(cost, 0) + draws / seeds
                    density[cost] = 2.0**log2_density
    assert len(drawn) > 30
    for cost, mean in drawn.items():
        assert mean == pytest.approx(density[cost], abs=5 * math.sqrt(density[cost] / seeds))


def test_the_estimate_of_prefixes_left_is_near_the_truth() -> None:
    with torch.no_grad():
        one = space()
        paths, log_perplexities = one.at(400)
        bound = float(log_perplexities[0]) + 1e-4
        scorer = one.scorer()
        explore(scorer, bound, paths)
        truth = scorer.decoder.forwards - len(one.tree.prompt)
        root = explore(one.scorer(), bound, paths, max_forwards=1)
        found = [sample(one.scorer(), root, 120, seed).inner for seed in range(10)]
    assert np.mean(found) == pytest.approx(truth, rel=0.15)


def test_inserted_canaries_do_not_count_for_each_other_and_controls_do() -> None:
    with torch.no_grad():
        one = space()
        paths, log_perplexities = one.at(2, 5, 9)
        scorer = one.scorer()
        explored = explore(scorer, float(log_perplexities.max()) + 1e-4, paths)
        controls = np.array([True, False, False])
        found = ranks(scorer, explored, None, log_perplexities, controls, 1e-4, 0.95)
    assert [rank.rank for rank in found] == [2, 5, 8]
    assert all(rank.exact for rank in found)


def test_a_string_of_probability_0_is_last_of_those_that_count() -> None:
    with torch.no_grad():
        one = space()
        paths, log_perplexities = one.at(2, 5, 9)
        log_perplexities = np.array([*log_perplexities[:2], math.inf])
        scorer = one.scorer()
        explored = explore(scorer, float(log_perplexities[1]) + 1e-4, paths)
        found = ranks(
            scorer, explored, None, log_perplexities, np.array([True, False, False]), 1e-4, 0.95
        )
    assert found[2].rank == found[2].low == found[2].high == 999 and found[2].exact


def test_the_same_seed_gives_the_same_draws_whatever_the_batch_size() -> None:
    with torch.no_grad():
        one = space()
        paths, log_perplexities = one.at(5, 900)
        found = []
        for batch in (3, 500):
            decoder = Decoder(one.model, one.tree.prompt, one.tree.token_ids, batch_size=batch)
            scorer = ScoredTree(one.tree, decoder)
            explored = explore(scorer, float(log_perplexities.max()) + 1e-4, paths, max_forwards=20)
            sampled = sample(scorer, explored, 200, 7, log_perplexities)
            found.append(
                sorted(
                    zip(
                        sampled.log_perplexities.tolist(),
                        sampled.log2_density.tolist(),
                        strict=True,
                    )
                )
            )
    for one_draw, other in zip(*found, strict=True):
        assert one_draw == pytest.approx(other, abs=1e-3)


def test_all_strings_are_enumerated_by_a_walk_without_a_bound() -> None:
    with torch.no_grad():
        one = space()
        everything = Explorer()
        walk(one.scorer().decoder, one.tree, everything, DepthFirst())
    assert sorted(everything.log_perplexities) == pytest.approx(
        np.sort(one.log_perplexities), abs=1e-4
    )
