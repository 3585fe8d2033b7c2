"""Discoverable extraction against samples, generation and brute force over all texts."""

from __future__ import annotations

import functools
import itertools
import json
import math
import warnings
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from hf_exposure import Discoverable, cli, discoverable_extraction, load_benchmark
from hf_exposure.attacks.discoverable import sampling_scheme
from hf_exposure.attacks.examples import Example
from hf_exposure.attacks.levenshtein import NearTree
from hf_exposure.attacks.pairs import NOT_TEXT, TOO_SHORT, UNKNOWN, read_pairs
from hf_exposure.attacks.samples import log2_extractable, log2_queries
from hf_exposure.models.causal import CausalModel
from tests.selection import rest_slow
from tests.tiny import TOKENIZERS, corpus, llama

VOCABULARY = 8
PREFIX = [3, 1, 4]
SCHEMES = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 3},
    {"top_p": 0.8},
    {"temperature": 1.3, "top_k": 5, "top_p": 0.9},
]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


@functools.cache
def small() -> LlamaForCausalLM:
    model = llama(VOCABULARY, scale=0.15)
    model.generation_config.eos_token_id = None
    return model


def measured(
    pairs: Any, *, model: Any = None, tokenizer: Any = None, **options: Any
) -> Discoverable:
    return discoverable_extraction(model or small(), tokenizer, pairs, **options)


def generated(count: int, length: int, prefix: list[int] = PREFIX, **scheme: Any) -> np.ndarray:
    """(count, length) what transformers' own sampling gives."""
    torch.manual_seed(0)
    prompt = torch.tensor([prefix])
    out = small().generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=True,
        max_new_tokens=length,
        num_return_sequences=count,
        eos_token_id=None,
        pad_token_id=0,
        **{"top_k": 0, **scheme},
    )
    return out[:, len(prefix) :].numpy()


@functools.cache
def probabilities(length: int, ends: tuple[int, ...] = (), **scheme: Any) -> dict[tuple, float]:
    """Every text that may be sampled, without the token that ends it, and how likely it is."""
    warp = sampling_scheme(**scheme) or (lambda logits: logits)
    out: dict[tuple, float] = {}
    going = {(): 1.0}
    for _ in range(length):
        with torch.no_grad():
            logits = small()(torch.tensor([[*PREFIX, *text] for text in going])).logits[:, -1]
        following = warp(logits).double().softmax(-1).tolist()
        before, going = going, {}
        for (text, p), shares in zip(before.items(), following, strict=True):
            for token, share in enumerate(shares):
                if share and token in ends:
                    out[text] = out.get(text, 0.0) + p * share
                elif share:
                    going[(*text, token)] = p * share
    return {**out, **going}


def likely(count: int, **scheme: Any) -> list[tuple]:
    """The most likely texts of three tokens. Not those that came out most often, which are those
    with luck."""
    truth = probabilities(3, **scheme)
    return sorted(truth, key=lambda text: -truth[text])[:count]


@functools.cache
def apart(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Levenshtein's distance, by the plain recursion: texts share what they begin with."""
    if not a or not b:
        return len(a) + len(b)
    swap = apart(a[:-1], b[:-1]) + (a[-1] != b[-1])
    return min(apart(a[:-1], b) + 1, apart(a, b[:-1]) + 1, swap)


def distance(a: Any, b: Any) -> int:
    return apart(tuple(a), tuple(b))


# One sample


@each_scheme
def test_the_probability_of_a_suffix_is_the_share_of_real_samples(scheme: dict[str, Any]) -> None:
    draws = [tuple(row) for row in generated(2000, 3, **scheme).tolist()]
    suffixes = likely(4, **scheme)
    found = measured([(PREFIX, suffix) for suffix in suffixes], **scheme)
    for one, suffix in zip(found, suffixes, strict=True):
        low, high = stats.binomtest(draws.count(suffix), 2000).proportion_ci(0.99)
        assert low < 2**one.log2_p < high
    # For all four together, which is a sharper question.
    together = sum(map(draws.count, suffixes))
    low, high = stats.binomtest(together, 2000).proportion_ci(0.99)
    assert low < sum(2**one.log2_p for one in found) < high


@each_scheme
def test_n_p_rates_agree_with_real_samples(scheme: dict[str, Any]) -> None:
    draws = [tuple(row) for row in generated(2000, 3, **scheme).tolist()]
    suffixes = likely(6, **scheme)
    found = measured([(PREFIX, suffix) for suffix in suffixes], **scheme)
    for n in (5, 20):
        groups = [draws[begin : begin + n] for begin in range(0, 2000, n)]
        hits = [sum(suffix in group for group in groups) for suffix in suffixes]
        for p, hit in zip(found.probability(n), hits, strict=True):
            low, high = stats.binomtest(hit, len(groups)).proportion_ci(0.99)
            assert low < p < high
        # Above and below the share that was seen, as far as the interval reaches.
        shares = [stats.binomtest(hit, len(groups)).proportion_ci(0.99) for hit in hits]
        for p in (0.1, 0.3, 0.6):
            rate = found.rate(n, p)
            assert sum(low >= p for low, _ in shares) <= rate.count
            assert rate.count <= sum(high >= p for _, high in shares)


@each_scheme
def test_probabilities_of_all_texts_are_right_and_add_up_to_one(scheme: dict[str, Any]) -> None:
    texts = list(itertools.product(range(VOCABULARY), repeat=2))
    truth = probabilities(2, **scheme)
    found = measured([(PREFIX, text) for text in texts], **scheme)
    assert sum(2**one.log2_p for one in found) == pytest.approx(1, abs=1e-5)
    for one, text in zip(found, texts, strict=True):
        assert 2**one.log2_p == pytest.approx(truth.get(text, 0.0), abs=1e-6)


def test_a_token_that_the_scheme_cuts_off_makes_a_suffix_impossible() -> None:
    texts = list(itertools.product(range(VOCABULARY), repeat=2))
    found = measured([(PREFIX, text) for text in texts], top_k=2)
    assert sum(one.log2_p == -math.inf for one in found) == VOCABULARY**2 - 4
    assert found.probability(10**9).min() == 0
    assert found.queries(0.5).max() == math.inf
    assert "never" in str(found)


def test_greedy_matches_are_what_greedy_generation_gives() -> None:
    model, draw = small(), np.random.default_rng(0)
    pairs = []
    for _ in range(20):
        prefix = draw.integers(VOCABULARY, size=4)
        prompt = torch.tensor(prefix)[None]
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=None,
            pad_token_id=0,
        )[0, 4:].numpy()
        wrong = out.copy()
        wrong[4] = (wrong[4] + 1) % VOCABULARY
        pairs += [(prefix, out), (prefix, wrong)]
    found = measured(pairs, temperature=3.0)
    assert [one.greedy for one in found] == [True, False] * 20
    assert [one.matched for one in found] == [6, 4] * 20
    assert found.greedy_rate.value == 0.5


def test_pairs_of_different_lengths_share_a_forward_and_give_the_same() -> None:
    draw = np.random.default_rng(1)
    pairs = [
        (draw.integers(VOCABULARY, size=draw.integers(1, 9)), draw.integers(VOCABULARY, size=n))
        for n in draw.integers(1, 12, size=15)
    ]
    together = measured(pairs)
    alone = [measured([pair])[0] for pair in pairs]
    one_by_one = measured(pairs, batch_size=1)
    for one, other, third in zip(together, alone, one_by_one, strict=True):
        assert one.log2_p == pytest.approx(other.log2_p, abs=1e-4)
        assert one.log2_p == pytest.approx(third.log2_p, abs=1e-4)
        assert (one.greedy, one.matched) == (other.greedy, other.matched)
    assert [one.row for one in together] == list(range(15))


def test_the_batch_is_halved_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    call, sizes = CausalModel.call, []

    def greedy_for_memory(self: CausalModel, ids: Any, **options: Any) -> Any:
        sizes.append(len(ids))
        if len(ids) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return call(self, ids, **options)

    pairs = [(PREFIX, [token, 2]) for token in range(VOCABULARY)]
    truth = measured(pairs)
    monkeypatch.setattr(CausalModel, "call", greedy_for_memory)
    found = measured(pairs)
    assert max(sizes) > 3 == sizes[-1]
    assert found.log2_p() == pytest.approx(truth.log2_p(), abs=1e-4)


def test_forwards_are_those_that_went_through_the_model() -> None:
    model, count = small(), []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: count.append(output.shape[:-1].numel())
    )
    try:
        found = measured([(PREFIX, [1, 2, 3, 4]), (PREFIX[:2], [5, 6, 7])], near=1)
    finally:
        hook.remove()
    assert found.forwards == sum(count)


def test_the_model_is_left_as_it_was() -> None:
    model = llama(VOCABULARY).train()
    state = torch.random.get_rng_state()
    measured([(PREFIX, [1, 2])], model=model, near=1)
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())


# n samples


@pytest.mark.parametrize("log10_p", [-3000, -310, -100, -20, -9, -3, -0.5, -1e-3, -1e-12])
@pytest.mark.parametrize("n", [1, 3, 1000, 10**6, 10**18])
def test_the_probability_in_n_samples_is_right_whatever_the_size(log10_p: float, n: int) -> None:
    log2_p = log10_p * math.log2(10)
    with mpmath.workdps(3100):
        p = mpmath.power(2, mpmath.mpf(log2_p))
        truth = mpmath.log(1 - (1 - p) ** n, 2)
        found = float(log2_extractable(log2_p, n))
        assert found == pytest.approx(float(truth), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("log10_p", [-3000, -310, -100, -20, -9, -3, -0.5, -1e-3, -1e-12])
@pytest.mark.parametrize("p", [1e-12, 0.1, 0.5, 0.9, 0.999999])
def test_the_samples_needed_are_right_whatever_the_size(log10_p: float, p: float) -> None:
    log2_p = log10_p * math.log2(10)
    with mpmath.workdps(3100):
        pz = mpmath.power(2, mpmath.mpf(log2_p))
        truth = mpmath.log(mpmath.log(1 - mpmath.mpf(p)) / mpmath.log(1 - pz), 2)
        assert float(log2_queries(log2_p, p)) == pytest.approx(float(truth), rel=1e-12, abs=1e-12)


def test_the_case_at_which_the_plain_formula_gives_zero() -> None:
    assert 1 - (1 - 1e-20) ** 10**6 == 0
    assert 2 ** float(log2_extractable(math.log2(1e-20), 10**6)) == pytest.approx(1e-14, rel=1e-12)
    assert float(log2_extractable(-10_000, 2)) == pytest.approx(-9_999, rel=1e-14)
    assert float(log2_queries(-10_000, 0.5)) == pytest.approx(10_000 + math.log2(math.log(2)))


@pytest.mark.parametrize("value", [0.0, -math.inf])
def test_certain_and_impossible_suffixes_have_plain_answers(value: float) -> None:
    certain = value == 0
    assert float(log2_extractable(value, 1)) == value
    assert float(log2_queries(value, 0.5)) == (-math.inf if certain else math.inf)
    found = Discoverable([Example(0, 1, 1, value, certain, int(certain))])
    assert found.rate(1, 0.99).value == certain
    assert found.rate(10**9, 0.01).value == certain


@given(st.floats(-500, -1e-9), st.floats(0.001, 0.999))
def test_samples_needed_and_probability_in_n_samples_are_inverse(log2_p: float, p: float) -> None:
    n = 2 ** log2_queries(log2_p, p)
    assert 2 ** float(log2_extractable(log2_p, n)) == pytest.approx(p, rel=1e-9)


def test_a_suffix_as_likely_as_asked_for_counts() -> None:
    found = Discoverable([Example(0, 1, 1, math.log2(0.3), False, 0)])
    assert found.rate(1, 0.3).value == 1
    assert found.rate(1, 0.3001).value == 0
    assert found.rate(2, 0.51).value == 1
    assert found.rate(2, 0.511).value == 0


def test_curves_are_the_rates_and_grow_with_n() -> None:
    log2_p = (-40 * np.random.default_rng(0).random(50)).tolist()
    found = Discoverable([Example(row, 1, 1, p, False, 0) for row, p in enumerate(log2_p)])
    n, p = 10.0 ** np.arange(13), [0.1, 0.5, 0.9]
    curve = found.curve(n, p)
    assert curve.shape == (13, 3)
    assert (np.diff(curve, axis=0) >= 0).all()
    assert (np.diff(curve, axis=1) <= 0).all()
    assert curve[3, 1] == found.rate(1000, 0.5).value
    assert curve[0].max() < curve[-1].min()


def test_intervals_over_examples_are_clopper_pearsons() -> None:
    found = Discoverable(
        [Example(row, 1, 1, -1.0 if row < 3 else -50.0, row < 3, 0) for row in range(20)]
    )
    rate = found.rate(10, 0.5)
    assert (rate.count, rate.total) == (3, 20)
    # The bound is where as many or more, or as few or fewer, have a probability of 2.5 %.
    assert stats.binom.sf(2, 20, rate.low) == pytest.approx(0.025)
    assert stats.binom.cdf(3, 20, rate.high) == pytest.approx(0.025)
    assert found.greedy_rate.low == rate.low


def test_near_rates_leave_room_for_searches_that_were_cut_short() -> None:
    examples = [
        Example(row, 9, 9, -50.0, False, 0, -1.0 if row < 3 else -40.0, row < 8)
        for row in range(20)
    ]
    rate = Discoverable(examples, settings={"near": 2}).rate(10, 0.5, near=True)
    # Three for sure, five surely not, and twelve of which nothing is known.
    assert (rate.count, rate.total) == (3, 20)
    assert stats.binom.sf(2, 20, rate.low) == pytest.approx(0.025)
    assert stats.binom.cdf(15, 20, rate.high) == pytest.approx(0.025)


# Near-verbatim


@st.composite
def texts(draw: Any) -> tuple[list[int], list[int], int]:
    target = draw(st.lists(st.integers(0, 3), min_size=1, max_size=7))
    text = draw(st.lists(st.integers(0, 4), min_size=len(target), max_size=len(target)))
    return target, text, draw(st.integers(0, len(target) - 1))


def near_by_tree(tree: NearTree, text: list[int], end: int | None = None) -> bool:
    """Whether there is a leaf on a path, which goes on with `end` behind `text`."""
    state = 0
    for token in [*text, *([] if end is None else [end])]:
        if tree.leaf[state]:
            return True
        tokens, states = tree.children(state)
        assert (np.diff(tokens) > 0).all()
        place = np.flatnonzero(tokens == token)
        if not len(place):
            return False
        state = int(states[place[0]])
    return bool(tree.leaf[state])


@pytest.mark.slow
@settings(max_examples=500)
@given(texts())
def test_the_automaton_accepts_what_is_within_the_edits(case: tuple) -> None:
    target, text, edits = case
    assert near_by_tree(NearTree(target, edits, 5), text) == (distance(text, target) <= edits)


@pytest.mark.slow
@settings(max_examples=500)
@given(texts(), st.integers(0, 6))
def test_the_automaton_accepts_texts_that_end_early(case: tuple, length: int) -> None:
    target, text, edits = case
    text = text[: min(length, len(target) - 1)]
    tree = NearTree(target, edits, 6, ends=[5])
    assert near_by_tree(tree, text, end=5) == (distance(text, target) <= edits)


@settings(max_examples=100)
@given(texts())
def test_a_leaf_is_as_early_as_possible(case: tuple) -> None:
    target, text, edits = case
    tree = NearTree(target, edits, 5)
    state = 0
    for depth, token in enumerate(text):
        endings = itertools.product(range(5), repeat=len(target) - depth)
        if len(target) - depth <= 4:
            all_near = all(distance([*text[:depth], *end], target) <= edits for end in endings)
            assert bool(tree.leaf[state]) == all_near
        tokens, states = tree.children(state)
        if tree.leaf[state] or token not in tokens:
            return
        state = int(states[tokens == token][0])


@each_scheme
@pytest.mark.parametrize("ends", [(), (2,)])
@pytest.mark.parametrize("edits", rest_slow([1, 2], 1))
def test_a_full_search_gives_the_exact_probability_of_near_texts(
    scheme: dict[str, Any], ends: tuple[int, ...], edits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = probabilities(4, ends, **scheme)
    monkeypatch.setattr(small().generation_config, "eos_token_id", list(ends) or None)
    suffixes = [(1, 5, 0, 7), (4, 4, 4, 4), (0, 1, 0, 1)]
    found = measured(
        [(PREFIX, suffix) for suffix in suffixes], near=edits, max_forwards=10**6, **scheme
    )
    for one, suffix in zip(found, suffixes, strict=True):
        near = sum(p for text, p in truth.items() if distance(text, suffix) <= edits)
        assert one.log2_near is not None
        assert 2**one.log2_near == pytest.approx(near, abs=1e-6)
        assert one.near_exact
        assert one.log2_near >= one.log2_p


@pytest.mark.parametrize("budget", [1, 4, 5, 8, 20, 60, 200])
def test_a_search_that_is_cut_short_gives_a_lower_bound(budget: int) -> None:
    truth = probabilities(4)
    suffix = (1, 5, 0, 7)
    one = measured([(PREFIX, suffix)], near=1, max_forwards=budget)[0]
    near = sum(p for text, p in truth.items() if distance(text, suffix) <= 1)
    assert one.log2_near is not None
    assert 2**one.log2_near <= near * (1 + 1e-5)
    # At least all that begins with the first three tokens.
    begin = sum(p for text, p in truth.items() if text[:3] == suffix[:3])
    assert 2**one.log2_near >= begin * (1 - 1e-5)
    assert one.log2_near >= one.log2_p
    assert one.near_exact is (budget >= 60)


@pytest.mark.slow
def test_bounds_grow_with_the_budget_and_soon_hold_most() -> None:
    truth = probabilities(5, temperature=0.5)
    suffix = max(truth, key=lambda text: truth[text])
    near = sum(p for text, p in truth.items() if distance(text, suffix) <= 2)
    bounds = []
    for budget in (1, 10, 20, 40, 100, 1000):
        found = measured([(PREFIX, suffix)], near=2, max_forwards=budget, temperature=0.5)
        bounds.append(2 ** float(found.log2_p(near=True)[0]))
    assert all(a <= b * (1 + 1e-6) for a, b in itertools.pairwise(bounds))
    assert bounds[4] > 0.75 * near > 1.5 * bounds[0]
    assert bounds[-1] == pytest.approx(near, rel=1e-4)


def test_near_texts_are_as_frequent_among_real_samples_as_the_bound_says() -> None:
    suffix, scheme = (1, 5, 0, 7, 2), {"temperature": 0.9, "top_k": 6}
    draws = generated(2000, 5, **scheme).tolist()
    hits = sum(distance(tuple(row), suffix) <= 2 for row in draws)
    low, high = stats.binomtest(hits, 2000).proportion_ci(0.99)
    one = measured([(PREFIX, suffix)], near=2, max_forwards=10**6, **scheme)[0]
    assert one.log2_near is not None
    assert low < 2**one.log2_near < high


def test_with_as_many_edits_as_tokens_every_sample_is_near() -> None:
    found = measured([(PREFIX, [1, 2])], near=2)
    assert found[0].log2_near == 0
    assert found.rate(1, 0.999, near=True).value == 1


def test_near_rates_are_refused_where_near_texts_were_not_looked_for() -> None:
    found = measured([(PREFIX, [1, 2])])
    with pytest.raises(ValueError, match="near=0"):
        found.rate(10, 0.5, near=True)


# What data may look like


def test_texts_ids_and_data_sets_give_the_same_pairs() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    whole = list(corpus()[:5])
    ids = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in whole]
    cut = {"prefix_tokens": 4, "suffix_tokens": 6}
    by_text, _ = read_pairs(whole, tokenizer, **cut)
    by_ids, _ = read_pairs(ids, None, **cut)
    by_column, _ = read_pairs(Dataset.from_dict({"text": whole}), tokenizer, **cut)
    named = Dataset.from_dict({"body": ids, "other": whole})
    by_name, _ = read_pairs(named, None, columns="body", **cut)
    halves = [(one[:4], np.array(one[4:10])) for one in ids]
    by_pairs, _ = read_pairs(halves, None)
    columns = Dataset.from_dict(
        {"suffix": [b.tolist() for _, b in halves], "prefix": [a for a, _ in halves]}
    )
    by_columns, _ = read_pairs(columns, None)
    tensors, _ = read_pairs([(torch.tensor(a), torch.tensor(b)) for a, b in halves], None)
    for other in (by_ids, by_column, by_name, by_pairs, by_columns, tensors):
        for one, two in zip(by_text, other, strict=True):
            assert one.suffix.tolist() == two.suffix.tolist()
            assert one.prefix[-4:].tolist() == two.prefix[-4:].tolist()
    assert by_text[0].prefix[0] == tokenizer.bos_token_id
    assert len(by_text[0].prefix) == 5
    assert len(by_ids[0].prefix) == 4


@pytest.mark.parametrize("name", sorted(set(TOKENIZERS) - {"wordpiece", "unigram"}))
def test_the_texts_of_a_pair_are_split_as_one_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    for line in corpus()[:20]:
        for cut in (5, 9, 14):
            (pair,), _ = read_pairs([(line[:cut], line[cut:])], tokenizer, bos=False)
            whole = tokenizer(line, add_special_tokens=False)["input_ids"]
            assert [*pair.prefix, *pair.suffix] == whole
            alone = tokenizer(line[:cut], add_special_tokens=False)["input_ids"]
            assert pair.prefix.tolist() == alone[: len(pair.prefix)]


def test_the_benchmark_layout_is_read_in(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {part: draw.integers(VOCABULARY, size=(6, 50)) for part in ("prefix", "suffix")}
    for part, array in arrays.items():
        np.save(tmp_path / f"train_{part}.npy", array.astype(np.uint16))
    pairs = load_benchmark(tmp_path)
    assert len(pairs) == 6
    found = measured(pairs)
    assert [one.suffix for one in found] == [tuple(row) for row in arrays["suffix"].tolist()]
    assert {(one.prefix_tokens, one.suffix_tokens) for one in found} == {(50, 50)}


def test_a_benchmark_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="train_prefix"):
        load_benchmark(tmp_path)
    np.save(tmp_path / "train_prefix.npy", np.zeros((3, 5), dtype=np.int32))
    np.save(tmp_path / "train_suffix.npy", np.zeros((3, 5)))
    with pytest.raises(ValueError, match="float64"):
        load_benchmark(tmp_path)
    np.save(tmp_path / "train_suffix.npy", np.zeros((2, 5), dtype=np.int32))
    with pytest.raises(ValueError, match="3 prefixes and 2 suffixes"):
        load_benchmark(tmp_path)
    (tmp_path / "train_prefix.npy").write_text("no array")
    with pytest.raises(ValueError, match="no NumPy array"):
        load_benchmark(tmp_path)


@pytest.mark.slow
def test_what_cannot_be_used_is_left_out_and_each_reason_said_once() -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = llama(len(tokenizer), scale=0.2)
    good = "the random number"
    rows = [
        good,
        None,
        "short",
        "the cod\0 is a secret",
        17,
        b"bytes that are no text",
        "",
        "the ♞ is a secret",
        "the half \ud800 of a character",
        {"text": good},
        [3, 4, 5],
        [3.5] * 20,
        good,
        [-1] * 20,
        (good * 9, "no"),
        [10**6] * 20,
        ("", "number"),
        (good, ""),
        (None, good),
        "abc " * 250_000,
    ]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = measured(rows, model=model, tokenizer=tokenizer, prefix_tokens=5, suffix_tokens=5)
    assert [one.row for one in found] == [0, 9, 12, 19]
    rows_by_reason: dict[str, list[int]] = {}
    for row, why in sorted(found.skipped.items()):
        rows_by_reason.setdefault(why, []).append(row)
    assert rows_by_reason[TOO_SHORT] == [2, 6, 10, 16, 17]
    assert rows_by_reason[NOT_TEXT] == [1, 3, 4, 5, 8, 11, 13, 18]
    assert found.skipped[7] == UNKNOWN
    assert "context of 128" in found.skipped[14]
    assert "vocabulary" in found.skipped[15]
    messages = [str(one.message) for one in said]
    assert len(messages) == 5
    assert {one.filename for one in said} == {__file__}  # the line that called it
    assert any("8 rows are left out: not text" in message for message in messages)
    assert not any("secret" in message for message in messages)
    assert "8 not text" in found.summary()


@pytest.mark.parametrize(
    ("pairs", "error", "words"),
    [
        ("one text", TypeError, "str holds no rows"),
        (17, TypeError, "int holds no rows"),
        ([], ValueError, "no rows at all"),
        (Dataset.from_dict({"text": []}), ValueError, "no rows at all"),
        ([[1, 2]], ValueError, "1 too short"),
        (Dataset.from_dict({"words": ["a"]}), ValueError, "no column 'text', only 'words'"),
        (DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}), ValueError, "'train'"),
        ([("a text", "and another")], ValueError, "tokenizer=None"),
    ],
)
def test_data_without_pairs_is_refused(pairs: Any, error: type[Exception], words: str) -> None:
    with warnings.catch_warnings(), pytest.raises(error, match=words):
        warnings.simplefilter("ignore")
        measured(pairs)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"temperature": 0.0}, ValueError, "temperature=0.0"),
        ({"temperature": 5.7e-92}, ValueError, "temperature=5.7e-92 is out of range"),
        ({"temperature": math.nan}, ValueError, "temperature=nan"),
        ({"top_k": -1}, ValueError, "top_k=-1"),
        ({"top_k": 1.5}, TypeError, "top_k"),
        ({"top_p": 0.0}, ValueError, "top_p=0.0"),
        ({"top_p": 1.5}, ValueError, "top_p=1.5"),
        ({"near": -1}, ValueError, "near=-1"),
        ({"suffix_tokens": 0}, ValueError, "suffix_tokens=0"),
        ({"prefix_tokens": 0}, ValueError, "prefix_tokens=0"),
        ({"batch_size": 0}, ValueError, "batch_size=0"),
        ({"max_forwards": 0}, ValueError, "max_forwards=0"),
    ],
)
def test_bad_arguments_are_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        measured([(PREFIX, [1, 2])], **options)


@pytest.mark.parametrize(("n", "p"), [(0, 0.5), (-1, 0.5), (math.inf, 0.5), (10, 0.0), (10, 1.0)])
def test_bad_numbers_of_samples_and_probabilities_are_refused(n: float, p: float) -> None:
    found = Discoverable([Example(0, 1, 1, -3.0, False, 0)])
    with pytest.raises(ValueError, match=r"Discoverable: [np]="):
        found.rate(n, p)


def test_a_model_that_gives_nan_is_refused() -> None:
    model = llama(VOCABULARY)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        measured([(PREFIX, [1, 2])], model=model, top_k=3)


# What is shown and kept


def text_result() -> Discoverable:
    tokenizer = TOKENIZERS["characters"]()
    model = llama(len(tokenizer), scale=0.2)
    pairs = [("the random", " number"), ("nobody should", " ever"), ("nobody", "")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return measured(pairs, model=model, tokenizer=tokenizer, near=1, max_forwards=50, top_k=5)


def test_suffixes_are_shown_and_written_only_when_revealed(tmp_path: Path) -> None:
    found = text_result()
    ids = ", ".join(map(str, found[0].suffix or ()))
    path = found.save(tmp_path / "found.json")
    shown = [
        str(found),
        repr(found),
        repr(found[0]),
        found._repr_html_(),
        path.read_text(),
        str(found.rates()),
        found.to_pandas().to_string(),
    ]
    for text in shown:
        assert "number" not in text
        assert ids not in text.replace("\n", "")
    assert "number" in "\n".join("".join(row) for row in found.cells(reveal=True)[1])
    assert found.to_pandas(reveal=True)["text"][0] == " number"
    found.save(path, reveal=True, overwrite=True)
    assert json.loads(path.read_text())["examples"][0]["text"] == " number"


@pytest.mark.parametrize("reveal", [False, True])
def test_what_was_saved_is_loaded_again(tmp_path: Path, reveal: bool) -> None:
    found = text_result()
    found = Discoverable(
        [*found, Example(7, 3, 4, -math.inf, False, 0, -math.inf, False)],
        skipped=found.skipped,
        settings=found.settings,
        forwards=found.forwards,
        seconds=1.5,
    )
    loaded = Discoverable.load(found.save(tmp_path / "found.json", reveal))
    assert loaded.to_pandas().equals(found.to_pandas())
    assert loaded.skipped == found.skipped == {2: TOO_SHORT}
    assert loaded.settings == found.settings
    assert str(loaded) == str(found)
    assert (loaded[0].suffix == found[0].suffix) is reveal
    assert (loaded[0].text == " number") is reveal


def test_the_table_of_a_large_data_set_shows_the_most_likely_examples() -> None:
    many = [Example(row, 1, 1, -float(row % 37), False, 0) for row in range(1000)]
    _, rows = Discoverable(many).cells()
    assert len(rows) == 20
    assert [float(row[3]) for row in rows] == [0.0] * 20
    assert "1,000 examples" in Discoverable(many).summary()


# The command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, a data set, and a benchmark."""
    out = tmp_path_factory.mktemp("discover")
    tokenizer = TOKENIZERS["characters"]()
    model = llama(len(tokenizer), scale=0.2)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    rows = Dataset.from_dict({"text": [*corpus()[:5], "short"]})
    rows.to_json(out / "rows.jsonl")
    for part in ("prefix", "suffix"):
        np.save(out / f"train_{part}.npy", np.full((4, 6), 5, dtype=np.uint16))
    return out


def run(*arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CliRunner().invoke(cli.app, ["discover", *map(str, arguments)])


def test_the_command_line_tells_the_same_as_the_function(folder: Path) -> None:
    output = folder / "found.json"
    result = run(
        "--model",
        folder / "model",
        "--dataset",
        folder / "rows.jsonl",
        "--prefix-tokens",
        9,
        "--suffix-tokens",
        4,
        "--temperature",
        0.7,
        "--top-k",
        9,
        "--top-p",
        0.9,
        "--near",
        1,
        "--max-forwards",
        60,
        "--n",
        "1,100",
        "--p",
        "0.3",
        "--output",
        output,
        "--json",
    )
    assert result.exit_code == 0, result.output + repr(result.exception)
    data = json.loads(result.stdout)
    tokenizer = TOKENIZERS["characters"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measured(
            [*corpus()[:5], "short"],
            model=llama(len(tokenizer), scale=0.2),
            tokenizer=tokenizer,
            prefix_tokens=9,
            suffix_tokens=4,
            temperature=0.7,
            top_k=9,
            top_p=0.9,
            near=1,
            max_forwards=60,
        )
    loaded = Discoverable.load(output)
    assert loaded.log2_p() == pytest.approx(found.log2_p(), abs=1e-4)
    assert loaded.log2_p(near=True) == pytest.approx(found.log2_p(near=True), abs=1e-4)
    assert loaded.skipped == {5: TOO_SHORT}
    assert [rates["near"] for rates in data["rates"]] == [0, 1]
    assert data["rates"][0]["rates"][1][0]["value"] == found.rate(100, 0.3).value
    assert corpus()[0][9:13] not in result.stdout


def test_the_command_line_reads_the_benchmark(folder: Path) -> None:
    result = run("--model", folder / "model", "--benchmark", folder, "--limit", 3)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "3 examples" in result.stdout
    assert "p = 0.5" in result.stdout
    assert "1,000,000" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either --dataset"),
        (["--dataset", "a.csv", "--benchmark", "b"], "give either --dataset"),
        (["--dataset", "a.csv", "--n", "many"], "--n='many'"),
        (["--dataset", "a.csv", "--p", "1.5"], "--p='1.5'"),
        (["--dataset", "a.csv", "--columns", "a,b,c"], "one name, or two"),
        (["--dataset", "a.csv", "--temperature", "0"], "temperature=0.0"),
        (["--benchmark", "nowhere"], "nowhere/train_prefix.npy"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(arguments: list[str], words: str) -> None:
    result = run("--model", "no-model-is-loaded", *arguments)
    assert result.exit_code != 0
    assert words in " ".join(result.output.replace("│", " ").split()) + str(result.exception)


@pytest.mark.parametrize(
    ("suffix", "near"), [((0, 0, 3), 1), ((5, 0, 1), 2), ((1, 0, 5, 4), 1), ((3, 0, 6, 5), 2)]
)
def test_near_texts_are_not_counted_where_the_suffix_goes_on_behind_an_end(
    suffix: tuple[int, ...], near: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small().generation_config, "eos_token_id", [0])
    pairs = [(PREFIX, list(suffix))]
    (found,) = discoverable_extraction(small(), None, pairs, near=near, max_forwards=1000)
    assert found.log2_near == found.log2_p and not found.near_exact
