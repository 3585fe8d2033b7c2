"""Every question to the tree, against plain scoring of all strings of a small space."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.models.decoder import Decoder
from hf_exposure.models.next_tokens import Branches
from hf_exposure.tree.explorer import Explorer
from hf_exposure.tree.frontier import Beam, CheapestFirst, DepthFirst, Frontier, Nodes, by_depth
from hf_exposure.tree.proposals import POWERS, powers_of
from hf_exposure.tree.sampler import Draws, Sampler
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.tree.walk import unvisited, walk
from tests.tiny import TOKENIZERS, llama

FREE = np.zeros(0, dtype=np.int64)
FORMAT = SecretFormat("The number is {secret}.", secret="[0-4]{3}")
INNER = 5 + 25 + 125  # prefixes of it that have children, the full stop comes last
# Paths of several lengths, an optional part, and a tree that is not exact for Unigram.
MIXED = SecretFormat("my code {secret}.", secret="[a-c]{3}[0-1]?")


@dataclass
class Space:
    """A space, its model, and the truth about every string, by plain forwards."""

    tree: TokenTree
    model: Any
    secrets: list[str]
    log_perplexities: np.ndarray

    @functools.cached_property
    def cost_of(self) -> dict[str, float]:
        return dict(zip(self.secrets, self.log_perplexities.tolist(), strict=True))

    def decoder(self, **settings: Any) -> Decoder:
        return Decoder(self.model, self.tree.prompt, self.tree.token_ids, **settings)

    def named(self, paths: Any) -> list[str]:
        return [self.tree.secret(path) for path in paths]


@functools.cache
def space(kind: str = "digits_one_by_one", fmt: SecretFormat = FORMAT, scale: float = 0.3) -> Space:
    tokenizer = TOKENIZERS[kind]()
    tree = TokenTree(fmt, tokenizer)
    model = llama(len(tokenizer), scale=scale)
    secrets = list(fmt.enumerate())
    ids = [tokenizer(fmt.render(secret))["input_ids"] for secret in secrets]
    while all(one[-1] == tokenizer.eos_token_id for one in ids):
        ids = [one[:-1] for one in ids]
    log_perplexities = np.zeros(len(secrets))
    with torch.no_grad():
        for length in set(map(len, ids)):
            rows = [row for row, one in enumerate(ids) if len(one) == length]
            whole = torch.tensor([ids[row] for row in rows])
            bits = -torch.log_softmax(model(whole).logits.double(), dim=-1) / math.log(2)
            own = bits[:, :-1].gather(2, whole[:, 1:, None])[:, :, 0]
            log_perplexities[rows] = own[:, len(tree.prompt) - 1 :].sum(dim=1).numpy()
    return Space(tree, model, secrets, log_perplexities)


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


FRONTIERS = [CheapestFirst, DepthFirst]
each_frontier = pytest.mark.parametrize("frontier", FRONTIERS)
each_tokenizer = pytest.mark.parametrize("kind", sorted(TOKENIZERS))


def found(known: Space, explorer: Explorer) -> dict[str, float]:
    names = known.named(explorer.paths)
    assert len(names) == len(set(names)) == len(explorer.log_perplexities)
    return dict(zip(names, explorer.log_perplexities, strict=True))


def same_costs(got: dict[str, float], expected: dict[str, float]) -> None:
    assert got.keys() == expected.keys()
    assert all(abs(got[name] - expected[name]) < 1e-3 for name in got)


# Follow


@each_tokenizer
@pytest.mark.parametrize("fmt", [FORMAT, MIXED], ids=["digits", "mixed"])
def test_following_gives_the_costs_of_plain_scoring(kind: str, fmt: SecretFormat) -> None:
    known = space(kind, fmt)
    sampler = Sampler(Draws(known.tree.paths(known.secrets)))
    decoder = known.decoder()
    assert walk(decoder, known.tree, sampler, DepthFirst())
    assert np.abs(sampler.log_perplexities - known.log_perplexities).max() < 1e-3
    assert known.named(sampler.paths) == known.secrets


def test_prefixes_that_paths_share_are_run_once() -> None:
    known = space()
    decoder = known.decoder()
    sampler = Sampler(Draws(known.tree.paths(["123", "124", "123", "032"])))
    walk(decoder, known.tree, sampler, DepthFirst())
    shared = {"1", "12", "123", "124", "0", "03", "032"}
    assert decoder.forwards == len(known.tree.prompt) + len(shared)
    assert sampler.log_perplexities[0] == sampler.log_perplexities[2]


def test_following_nothing_and_a_path_outside_of_the_tree() -> None:
    known = space()
    nothing = Sampler(Draws([]))
    assert walk(known.decoder(), known.tree, nothing, DepthFirst())
    assert len(nothing.log_perplexities) == 0
    outside = Sampler(Draws([np.array([0, 0, 0, 0, 0])]))
    assert walk(known.decoder(), known.tree, outside, DepthFirst())
    assert math.isinf(outside.log_perplexities[0])
    assert outside.paths == [None]


# Explore


@each_tokenizer
@each_frontier
@pytest.mark.parametrize("fmt", [FORMAT, MIXED], ids=["digits", "mixed"])
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_exploring_to_a_bound_finds_all_strings_below_it(
    kind: str, frontier: Any, fmt: SecretFormat, share: float
) -> None:
    known = space(kind, fmt)
    bound = float(np.quantile(known.log_perplexities, share)) + 1e-2
    explorer, waiting = Explorer(bound=bound), frontier()
    assert walk(known.decoder(), known.tree, explorer, waiting)
    assert not unvisited(known.tree, explorer, waiting)
    same_costs(found(known, explorer), {s: c for s, c in known.cost_of.items() if c <= bound})


@each_frontier
@pytest.mark.parametrize(("batch_size", "limit"), [(1, 1 << 30), (7, 20_000), (64, 0)])
@pytest.mark.parametrize("kind", ["freely_merged", "unigram"])
def test_what_is_found_hangs_neither_on_the_batch_size_nor_on_memory(
    frontier: Any, batch_size: int, limit: int, kind: str
) -> None:
    known = space(kind, MIXED)
    decoder = known.decoder(batch_size=batch_size)
    decoder.cache_limit = limit
    explorer = Explorer()
    assert walk(decoder, known.tree, explorer, frontier())
    same_costs(found(known, explorer), known.cost_of)


class Served:
    """A model that tells of the allowed next tokens only, prefix by prefix and without a cache."""

    joins, room = True, math.inf

    def __init__(self, known: Space) -> None:
        self.known, self.forwards, self.batch_size = known, 0, 8
        self.asked: set[tuple[int, ...]] = set()

    def root(self) -> Branches:
        return Branches(np.zeros((1, 0), dtype=np.int64), np.zeros((0, 0)))

    def price(self, parents: Branches) -> int:
        return 1

    def step(self, parents: Branches, rows: Any, tokens: Any) -> Any:
        for begin in range(0, len(rows), self.batch_size):
            some = np.arange(begin, min(begin + self.batch_size, len(rows)))
            paths = np.concatenate([parents.paths[rows[some]], tokens[some, None]], axis=1)
            yield some, Branches(paths, np.zeros((0, 0)))

    def next_bits(self, branches: Branches, rows: Any, tokens: Any) -> Any:
        ids = self.known.tree.token_ids
        out = np.zeros(len(rows))
        for row, path in enumerate(branches.paths):
            here = rows == row
            prompt = [*self.known.tree.prompt, *ids[path].tolist()]
            nats = -self.known.model(torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1)
            out[here] = nats[ids[tokens[here]]].numpy() / math.log(2)
            self.forwards += 1
            self.asked |= {(*path.tolist(), token) for token in tokens[here].tolist()}
        return out

    def settle(self, waiting: Any) -> None:
        list(waiting)


@each_frontier
def test_a_model_that_tells_of_allowed_tokens_only_is_walked_in_the_same_way(frontier: Any) -> None:
    known = space(fmt=MIXED)
    served, explorer = Served(known), Explorer()
    assert walk(served, known.tree, explorer, frontier())
    same_costs(found(known, explorer), known.cost_of)
    leaves = {tuple(path) for path in explorer.paths}
    assert served.asked >= {path[:n] for path in leaves for n in range(1, len(path) + 1)}
    assert len(served.asked) < served.forwards * len(known.tree.token_ids)


@each_frontier
def test_caches_that_wait_keep_within_the_limit(frontier: Any) -> None:
    known = space()
    decoder, waiting, held = known.decoder(batch_size=8), frontier(), []
    decoder.cache_limit = 20_000

    def look() -> None:
        alive = {id(nodes.parents): nodes.parents for nodes in waiting.waiting()}
        held.append(sum(branches.cache_bytes for branches in alive.values()))

    walk(decoder, known.tree, Explorer(), waiting, progress=look)
    assert max(held) <= 20_000
    unlimited = known.decoder(batch_size=8)
    walk(unlimited, known.tree, Explorer(), frontier())
    if frontier is CheapestFirst:  # otherwise nothing was put to the test
        assert decoder.forwards > unlimited.forwards


@each_frontier
def test_every_prefix_is_run_once(frontier: Any) -> None:
    known = space()
    decoder = known.decoder(batch_size=50)
    walk(decoder, known.tree, Explorer(), frontier())
    assert decoder.forwards == len(known.tree.prompt) + INNER


@each_frontier
@pytest.mark.parametrize("budget", [1, 2, 6, 7, 31, 100, 154, 155, 999])
@pytest.mark.parametrize("eager", [True, False])
def test_what_was_visited_and_what_was_left_make_up_the_space(
    frontier: Any, budget: int, eager: bool
) -> None:
    known = space()
    decoder, explorer, waiting = known.decoder(batch_size=10), Explorer(), frontier()
    limit = len(known.tree.prompt) + budget
    finished = walk(decoder, known.tree, explorer, waiting, max_forwards=limit, eager=eager)
    left = unvisited(known.tree, explorer, waiting)
    assert decoder.forwards == min(limit, len(known.tree.prompt) + INNER)
    assert finished is (not left)
    assert finished is (budget >= INNER)
    seen = list(found(known, explorer))
    for nodes in left:
        for path in nodes.paths:
            start = "".join(known.tree._bytes(path).decode())
            seen += [secret for secret in known.secrets if (secret + ".").startswith(start)]
    assert sorted(seen) == known.secrets


@each_frontier
def test_a_budget_that_is_spent_already_visits_nothing(frontier: Any) -> None:
    known = space()
    decoder, explorer = known.decoder(), Explorer()
    decoder.root()
    waiting = frontier()
    assert not walk(decoder, known.tree, explorer, waiting, max_forwards=decoder.forwards)
    assert decoder.forwards == len(known.tree.prompt)


def test_leaves_that_wait_are_taken_although_no_forward_is_left() -> None:
    known = space()
    decoder, explorer = known.decoder(), Explorer()
    needed = len(known.tree.prompt) + INNER
    assert walk(decoder, known.tree, explorer, DepthFirst(), max_forwards=needed)
    assert len(explorer.log_perplexities) == 125


def test_cheapest_first_meets_cheap_leaves_first_and_its_remainder_costs_more() -> None:
    known = space()
    decoder, explorer, waiting = known.decoder(batch_size=1), Explorer(), CheapestFirst()
    walk(decoder, known.tree, explorer, waiting, max_forwards=130, eager=False)
    best = np.sort(known.log_perplexities)[: len(explorer.log_perplexities)]
    assert len(best) > 3
    assert np.abs(np.array(explorer.log_perplexities) - best).max() < 1e-3
    assert explorer.log_perplexities == sorted(explorer.log_perplexities)
    assert waiting.least() >= explorer.log_perplexities[-1]


@pytest.mark.parametrize("fmt", ["7", "abc1"])
@each_frontier
def test_a_space_of_one_string(fmt: str, frontier: Any) -> None:
    known = space("freely_merged", SecretFormat("my code {secret}.", secret=fmt))
    explorer = Explorer(propose=True)
    assert walk(known.decoder(), known.tree, explorer, frontier())
    same_costs(found(known, explorer), known.cost_of)
    sampler = Sampler(Draws([FREE] * 50, np.arange(50) % 5, spread(50, 0)))
    assert walk(known.decoder(), known.tree, sampler, DepthFirst())
    # Draws that leave the canonical path come to nothing.
    reached = np.isfinite(sampler.log_perplexities)
    assert reached.any()
    assert np.abs(sampler.log_perplexities[reached] - known.log_perplexities[0]).max() < 1e-3


def test_a_bound_below_everything_leaves_nothing() -> None:
    known, explorer = space(), Explorer(bound=0.0, propose=True)
    assert walk(known.decoder(), known.tree, explorer, CheapestFirst())
    assert explorer.log_perplexities == []
    sampler = Sampler(Draws([FREE] * 3, np.array([0, 1, 2]), np.zeros(3)), bound=0.0)
    assert walk(known.decoder(), known.tree, sampler, DepthFirst())
    assert np.isinf(sampler.log_perplexities).all()


def test_the_walk_needs_no_cache() -> None:
    known = space("freely_merged", MIXED)
    decoder = known.decoder()
    decoder.cached = False
    explorer = Explorer()
    assert walk(decoder, known.tree, explorer, CheapestFirst())
    same_costs(found(known, explorer), known.cost_of)


def test_the_walk_can_do_without_joining_caches() -> None:
    known = space("freely_merged", MIXED)
    decoder = known.decoder(batch_size=9)
    decoder.joins = False
    explorer = Explorer()
    assert walk(decoder, known.tree, explorer, CheapestFirst())
    same_costs(found(known, explorer), known.cost_of)


def test_cheapest_first_needs_few_calls_of_the_model(monkeypatch: Any) -> None:
    """Nodes of one depth are run together, though they come from many places."""
    known = space()
    calls = 0
    forward = known.model.forward

    @functools.wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(known.model, "forward", counted)
    decoder = known.decoder()
    walk(decoder, known.tree, Explorer(), CheapestFirst(), eager=False)
    assert decoder.forwards == len(known.tree.prompt) + INNER
    assert calls < INNER / 2


# Search


@pytest.mark.parametrize("wanted", [1, 5, 25])
@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize(
    ("kind", "fmt"), [("digits_one_by_one", FORMAT), ("unigram", MIXED), ("wordpiece", MIXED)]
)
def test_a_search_finds_the_cheapest_leaves_and_proves_it(
    wanted: int, batch_size: int, kind: str, fmt: SecretFormat
) -> None:
    known = space(kind, fmt)
    explorer, waiting = Explorer(wanted=wanted), CheapestFirst()
    decoder = known.decoder(batch_size=batch_size)
    assert walk(decoder, known.tree, explorer, waiting, eager=False)
    least = waiting.least()
    assert explorer.certain(least) >= wanted
    names, log_perplexities = known.named(explorer.paths), np.array(explorer.log_perplexities)
    proved = np.argsort(log_perplexities, kind="stable")[:wanted]
    assert (log_perplexities[proved] <= least).all()
    truth = np.argsort(known.log_perplexities, kind="stable")
    assert np.abs(log_perplexities[proved] - known.log_perplexities[truth[:wanted]]).max() < 1e-3
    if np.diff(known.log_perplexities[truth[: wanted + 1]]).min() > 1e-2:
        assert [names[at] for at in proved] == [known.secrets[at] for at in truth[:wanted]]
    whole = known.decoder()
    walk(whole, known.tree, Explorer(), DepthFirst())
    assert decoder.forwards < whole.forwards


def test_more_leaves_than_there_are_means_all_of_them() -> None:
    known = space("freely_merged", MIXED)
    explorer = Explorer(wanted=10_000)
    assert walk(known.decoder(), known.tree, explorer, CheapestFirst())
    same_costs(found(known, explorer), known.cost_of)


@pytest.mark.parametrize("width", [1, 3, 20])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_a_beam_keeps_the_cheapest_prefixes_of_each_length(width: int, batch_size: int) -> None:
    known = space()
    explorer, beam = Explorer(), Beam(width)
    assert walk(known.decoder(batch_size=batch_size), known.tree, explorer, beam)
    # The same by hand: costs of prefixes from the conditional costs of a full exploration.
    everything = _Recorder()
    walk(known.decoder(), known.tree, everything, DepthFirst())
    kept: list[tuple[int, ...]] = [()]
    for depth in range(1, 5):
        children = [path for path in everything.seen if len(path) == depth and path[:-1] in kept]
        kept = sorted(children, key=everything.seen.__getitem__)[:width]
    assert sorted(explorer.paths) == sorted(kept)
    assert beam.cut


def test_a_beam_that_is_wide_enough_drops_nothing() -> None:
    known = space()
    explorer, beam = Explorer(), Beam(125)
    assert walk(known.decoder(), known.tree, explorer, beam)
    assert not beam.cut
    assert len(explorer.log_perplexities) == 125


class _Recorder(Explorer):
    """Remembers the cost of every prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[int, ...], float] = {}

    def select(self, parents: Any, nodes: Nodes) -> Nodes:
        self.seen.update(
            zip(map(tuple, nodes.paths.tolist()), nodes.log_perplexities.tolist(), strict=True)
        )
        return super().select(parents, nodes)


# Sample


def proposals(known: Space, bound: float = math.inf) -> dict[tuple[int, ...], np.ndarray]:
    """log2 of each proposal's probability of each prefix, from the definition, with plain loops."""
    everything = _Recorder()
    walk(known.decoder(), known.tree, everything, DepthFirst())
    children: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for path in everything.seen:
        children.setdefault(path[:-1], []).append(path)
    out = {(): np.zeros(len(POWERS))}
    for path in sorted(children, key=len):
        some = [child for child in children[path] if everything.seen[child] <= bound]
        if path not in out or not some:
            continue
        before = everything.seen.get(path, 0.0)
        weights = np.array([2.0 ** (POWERS * (before - everything.seen[c])) for c in some])
        for child, weight in zip(some, weights, strict=True):
            with np.errstate(divide="ignore"):
                out[child] = out[path] + np.log2(weight / weights.sum(axis=0))
    return out


def spread(n: int, seed: int) -> np.ndarray:
    return (np.arange(n) + np.random.default_rng(seed).random(n)) / n


@pytest.mark.parametrize("kind", ["digits_one_by_one", "freely_merged", "unigram"])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_density_at_each_leaf_is_that_of_the_definition(kind: str, share: float) -> None:
    known = space(kind, MIXED)
    bound = float(np.quantile(known.log_perplexities, share)) + 1e-2
    expected = proposals(known, bound)
    n = 100
    sampler = Sampler(
        Draws([FREE] * (5 * n), np.repeat(np.arange(5), n), np.tile(spread(n, 0), 5)), bound=bound
    )
    walk(known.decoder(), known.tree, sampler, DepthFirst())
    reached = [draw for draw, path in enumerate(sampler.paths) if path is not None]
    assert len(reached) > n / 4
    for draw in reached:
        path = sampler.paths[draw]
        assert path is not None
        assert sampler.log_perplexities[draw] <= bound
        own = np.isfinite(expected[path])
        assert np.abs(sampler.log2_powers[draw] - expected[path])[own].max() < 1e-2
    explorer = Explorer(bound=bound, propose=True)
    recorded: dict[tuple[int, ...], np.ndarray] = {}
    select = explorer.select

    def record(parents: Any, nodes: Nodes) -> Nodes:
        kept = select(parents, nodes)
        recorded.update(
            zip(map(tuple, kept.paths.tolist()), explorer.powers(kept.tags), strict=True)
        )
        return kept

    explorer.select = record  # type: ignore[method-assign]
    walk(known.decoder(), known.tree, explorer, CheapestFirst())
    for path, powers in recorded.items():
        own = np.isfinite(expected[path]) & np.isfinite(powers)
        assert np.abs(powers - expected[path])[own].max() < 1e-2


@pytest.mark.parametrize("power", range(len(POWERS)))
def test_stratified_draws_are_as_many_as_their_probability_says(power: int) -> None:
    """One position in each of n slices: no leaf is met more or less often than n q allows, but
    for one at each of its two ends."""
    known, n = space(scale=0.1), 4_000
    expected = proposals(known)
    sampler = Sampler(Draws([FREE] * n, np.full(n, power), spread(n, 1)))
    walk(known.decoder(), known.tree, sampler, DepthFirst())
    counts = Counter(sampler.paths)
    assert sum(counts.values()) == n
    leaves = [path for path in expected if len(path) == 4]
    for path in leaves:
        # Columns of a node are in order, so each leaf is an interval; positions drawn anew under
        # rare nodes spread what falls there.
        share = n * 2.0 ** expected[path][power]
        assert abs(counts[path] - share) < 2 + 5 * math.sqrt(share) * (share < 1)


def test_independent_draws_come_as_often_as_their_probability_says() -> None:
    known, n = space(scale=0.1), 10_000
    expected = proposals(known)
    positions = np.random.default_rng(3).random(n)
    sampler = Sampler(Draws([FREE] * n, np.full(n, 3), positions))
    walk(known.decoder(), known.tree, sampler, DepthFirst())
    counts = Counter(sampler.paths)
    leaves = [path for path in expected if len(path) == 4]
    shares = np.array([n * 2.0 ** expected[path][3] for path in leaves])
    got = np.array([counts[path] for path in leaves])
    chi2 = float(((got - shares) ** 2 / shares).sum())
    assert abs(chi2 - (len(leaves) - 1)) < 5 * math.sqrt(2 * len(leaves))


@pytest.mark.slow
def test_the_number_of_cheap_strings_is_estimated_without_bias() -> None:
    known, n, rounds = space(scale=0.1), 6, 60
    level = float(np.quantile(known.log_perplexities, 0.2))
    truth = int((known.log_perplexities <= level).sum())
    estimates = []
    for seed in range(rounds):
        sampler = Sampler(
            Draws(
                [FREE] * (5 * n),
                np.repeat(np.arange(5), n),
                np.concatenate([spread(n, 10 * seed + k) for k in range(5)]),
            )
        )
        walk(known.decoder(), known.tree, sampler, DepthFirst())
        expected = n * np.exp2(sampler.log2_powers).sum(axis=1)
        estimates.append(float(np.sum((sampler.log_perplexities <= level) / expected)))
    error = np.std(estimates) / math.sqrt(rounds)
    assert error < truth / 20
    assert abs(np.mean(estimates) - truth) < 4 * error


def test_draws_of_a_space_of_a_hundred_bits_stay_random_to_the_last_token() -> None:
    """A position has 53 binary digits: what it hands down has to come from somewhere else."""
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    tree = TokenTree(SecretFormat("The number is {secret}.", secret="[0-9]{30}"), tokenizer)
    decoder = Decoder(llama(len(tokenizer), scale=0.02), tree.prompt, tree.token_ids)
    n = 500
    sampler = Sampler(Draws([FREE] * n, np.full(n, 4), spread(n, 0)))
    walk(decoder, tree, sampler, DepthFirst())
    secrets = [tree.secret(path) for path in sampler.paths if path is not None]
    assert len(set(secrets)) == n
    for place in range(30):
        counts = np.array([Counter(s[place] for s in secrets)[str(d)] for d in range(10)])
        assert float(((counts - n / 10) ** 2 / (n / 10)).sum()) < 45  # chi-square, 9 degrees


def test_draws_are_the_same_for_the_same_positions() -> None:
    known = space(scale=0.1)
    runs = []
    for batch_size in (3, 500):
        sampler = Sampler(Draws([FREE] * 50, np.full(50, 2), spread(50, 4)))
        walk(known.decoder(batch_size=batch_size), known.tree, sampler, DepthFirst())
        runs.append(sampler.paths)
    assert runs[0] == runs[1]


def test_a_draw_follows_its_guide_and_then_goes_on_freely() -> None:
    known = space()
    guide = known.tree.path("423")[:2]
    sampler = Sampler(Draws([guide] * 30, np.full(30, 4), spread(30, 0)))
    walk(known.decoder(), known.tree, sampler, DepthFirst())
    secrets = known.named(sampler.paths)
    assert all(secret.startswith("42") for secret in secrets)
    assert len(set(secrets)) > 3
    expected = proposals(known)
    for path, powers in zip(sampler.paths, sampler.log2_powers, strict=True):
        assert path is not None
        assert np.abs(powers - expected[path])[2:].max() < 1e-2  # from the root on, all powers


def test_visits_count_draws_at_nodes_that_were_not_explored() -> None:
    known = space()
    paths = known.tree.paths(["123", "124", "032"])
    sampler = Sampler(Draws(paths, known=np.array([2, 2, 1])))
    walk(known.decoder(), known.tree, sampler, DepthFirst())
    draws = [sorted(draws.tolist()) for _, _, draws in sampler.visits]
    # Depth 1: only "0". Depth 2: "12" twice, "03". Depth 3 and the full stop: each its own.
    assert draws == [[1], [1, 2], [1, 1, 1], [1, 1, 1]]


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    log_perplexities = np.array([1.0, math.inf, 2.0, math.inf, math.inf])
    rows = np.array([0, 0, 0, 1, 1])
    zeros = np.zeros(5, dtype=np.int64)
    parents = Branches(np.zeros((2, 0), dtype=np.int64), np.zeros((2, 3)))
    nodes = Nodes(parents, rows, np.array([0, 1, 2, 0, 1]), zeros, log_perplexities, zeros)
    step = np.exp2(powers_of(nodes, np.ones(5, dtype=bool)))
    assert np.allclose(step[:3].sum(axis=0), 1)
    assert (step[[1, 3, 4]] == 0).all()
    sampler = Sampler(Draws([FREE] * 40, np.full(40, 4), spread(40, 0)))
    kept = sampler.select(np.array([0, 1]), nodes)
    assert set(kept.tokens.tolist()) <= {0, 2}


# Frontiers


def block(log_perplexities: list[float], depth: int = 0) -> Nodes:
    n = len(log_perplexities)
    zeros = np.zeros(n, dtype=np.int64)
    parents = Branches(np.zeros((n, depth), dtype=np.int64), np.zeros((0, 0)))
    return Nodes(parents, np.arange(n), zeros, zeros, np.array(log_perplexities), zeros)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_cheapest_first_takes_the_cheapest_of_all_blocks(limit: int) -> None:
    draw = np.random.default_rng(limit)
    frontier, waiting = CheapestFirst(), []
    for _ in range(60):
        log_perplexities = sorted(draw.integers(30, size=draw.integers(0, 9)).tolist())
        frontier.push(block(log_perplexities))
        waiting += log_perplexities
        assert frontier.least() == min(waiting, default=math.inf)
        taken = [cost for nodes in frontier.take(limit) for cost in nodes.log_perplexities.tolist()]
        assert sorted(taken) == sorted(waiting)[:limit]
        waiting = sorted(waiting)[limit:]
        left = [cost for nodes in frontier.waiting() for cost in nodes.log_perplexities.tolist()]
        assert sorted(left) == waiting


def test_depth_first_takes_the_newest_block() -> None:
    frontier = DepthFirst()
    frontier.push(block([1, 2, 3]))
    frontier.push(block([]))
    frontier.push(block([5, 6], depth=1))
    assert [nodes.log_perplexities.tolist() for nodes in frontier.take(1)] == [[5]]
    assert frontier.least() == 1
    taken = [frontier.take(2)[0].log_perplexities.tolist() for _ in range(3)]
    assert taken == [[6], [1, 2], [3]]
    assert frontier.take(2) == []
    assert frontier.least() == math.inf


@pytest.mark.parametrize("made", FRONTIERS)
def test_those_that_wait_are_named_from_the_last_to_the_next(made: Any) -> None:
    frontier: Frontier = made()
    for log_perplexities in ([3, 4], [1, 9], [2, 2]):
        frontier.push(block(log_perplexities))
    order = [nodes.log_perplexities.tolist() for nodes in frontier.waiting()]
    taken = [
        nodes.log_perplexities[0]
        for nodes in itertools.chain(*(frontier.take(2) for _ in range(9)))
    ]
    if made is DepthFirst:
        assert [log_perplexities[0] for log_perplexities in order[::-1]] == taken
    else:
        assert order == [[3, 4], [2, 2], [1, 9]]


def test_pieces_of_one_depth_become_one() -> None:
    pieces = [block([4, 5]), block([1.5, 2], depth=1), block([3, 9]), block([1], depth=1)]
    together = by_depth(pieces)
    assert [nodes.log_perplexities.tolist() for nodes in together] == [[3, 4, 5, 9], [1, 1.5, 2]]
    assert [nodes.paths.shape for nodes in together] == [(4, 1), (3, 2)]
    pieces[0].parents.cache = object()
    assert len(by_depth(pieces)) == 3  # what has a cache costs less than what has none


def test_a_large_space_is_enumerated_without_a_warning() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    tree = TokenTree(SecretFormat("The number is {secret}.", secret="[0-9]{4}"), tokenizer)
    decoder = Decoder(llama(len(tokenizer)), tree.prompt, tree.token_ids)
    explorer = Explorer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert walk(decoder, tree, explorer, DepthFirst())
    assert len(set(explorer.paths)) == 10**4
    assert decoder.forwards == len(tree.prompt) + 11_110
