"""`measure_exposure` against plain Hugging Face scoring of every string of small spaces."""

from __future__ import annotations

import functools
import math
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.measure import measure_exposure
from hf_exposure.exposure.planning import plan_measurement
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.results import BudgetError, Exposures
from tests.selection import rest_slow
from tests.tiny import TOKENIZERS, llama

NUMBER = SecretFormat("The number is {secret}.", secret="[0-9]{3}")
# Of several lengths, with text after it that merges with it under some tokenizers.
CODE = SecretFormat("my code {secret} - end.", secret="[a-c]{2}[0-2]{0,2}")
QUOTED = SecretFormat("my code {secret}.", secret="[delmrstv']{2}")
FEW = SecretFormat("The number is {secret}.", secret="[0-9]")
KIND = "digits_one_by_one"


@functools.cache
def model_of(kind: str = KIND, scale: float = 0.2) -> Any:
    return llama(len(TOKENIZERS[kind]()), scale=scale)


def planted(fmt: SecretFormat, seed: int = 0, each: int = 4) -> Canaries:
    return Canaries.generate(fmt, repetitions=[0, 1, 8], per_repetition=each, seed=seed)


@functools.cache
def all_costs(kind: str, fmt: SecretFormat, scale: float = 0.2) -> dict[str, float]:
    """Bits of every secret with what follows it: a plain forward for each text, nothing shared."""
    tokenizer, model = TOKENIZERS[kind](), model_of(kind, scale)
    secrets = list(fmt.enumerate())
    ids = [tokenizer(fmt.render(secret))["input_ids"] for secret in secrets]
    ids = [row[:-1] if row[-1] == tokenizer.eos_token_id else row for row in ids]
    # What all texts begin with is the same for all: it may count or not.
    common = next(
        (at for at, column in enumerate(zip(*ids, strict=False)) if len(set(column)) > 1),
        min(map(len, ids)) - 1,
    )
    out = {}
    with torch.no_grad():
        for length in {len(row) for row in ids}:
            here = [place for place, row in enumerate(ids) if len(row) == length]
            tokens = torch.tensor([ids[place] for place in here])
            logs = torch.log_softmax(model(input_ids=tokens, use_cache=False).logits.double(), -1)
            step = logs[:, :-1].gather(2, tokens[:, 1:, None])[:, :, 0]
            total = -step[:, common - 1 :].sum(dim=1) / math.log(2)
            out.update(zip((secrets[place] for place in here), total.tolist(), strict=True))
    return out


def true_ranks(costs: dict[str, float], canaries: Canaries, tie: float) -> list[tuple[int, int]]:
    """For each canary its rank, with ties as its own and with ties against it."""
    out = []
    for canary in canaries:
        others = {one.secret for one in canaries if one.inserted and one != canary}
        own = costs[canary.secret]
        rest = [cost for secret, cost in costs.items() if secret not in {*others, canary.secret}]
        out.append((1 + sum(c < own - tie for c in rest), 1 + sum(c <= own + tie for c in rest)))
    return out


def tie_of(exposures: Exposures, fmt: SecretFormat = NUMBER) -> float:
    return float(exposures.formats[fmt].tie_bits)


def figures(item: Exposure) -> tuple[Any, ...]:
    return (
        item.bits,
        item.low,
        item.high,
        item.rank,
        item.rank_low,
        item.rank_high,
        item.certified,
        item.ties,
        item.exact,
        item.log_perplexity,
    )


@contextmanager
def changed(model: Any, change: Any) -> Iterator[None]:
    hook = model.lm_head.register_forward_hook(lambda module, given, out: change(out))
    try:
        yield
    finally:
        hook.remove()


# The ranks are right


@pytest.mark.parametrize("fmt", [NUMBER, CODE, QUOTED], ids=["number", "code", "quoted"])
@pytest.mark.parametrize("kind", rest_slow(TOKENIZERS, ("freely_merged", "unigram")))
def test_exact_ranks_are_those_of_brute_force(kind: str, fmt: SecretFormat) -> None:
    canaries = planted(fmt)
    found = measure_exposure(model_of(kind), TOKENIZERS[kind](), canaries, method="exact")
    costs = all_costs(kind, fmt)
    tie = tie_of(found, fmt)
    strict = true_ranks(costs, canaries, 0.0)
    loose = true_ranks(costs, canaries, 2 * tie)
    assert tie < 0.01
    for item, canary, (_, rank), (least, most) in zip(found, canaries, strict, loose, strict=True):
        assert item.canary == canary and item.exact and item.method == "exact"
        assert least <= item.rank <= most
        assert least <= item.rank_low <= rank <= item.rank_high <= most
        assert item.bits == pytest.approx(fmt.bits - math.log2(item.rank))
        assert item.certified == pytest.approx(item.low)
        # Among strings that are not planted: only these have a rank by chance.
        others = len(canaries.inserted) - canary.inserted
        assert item.p_value == pytest.approx(item.rank / (fmt.size - others))
    # Costs differ by what all texts share, if the tree begins earlier.
    apart = [item.log_perplexity - costs[item.canary.secret] for item in found]
    assert np.ptp(apart) < 1e-3


def test_most_of_these_ranks_are_single_numbers() -> None:
    """Otherwise the test above would show little."""
    loose = true_ranks(all_costs(KIND, NUMBER), planted(NUMBER, each=40), 1e-3)
    assert np.mean([least == most for least, most in loose]) > 0.8


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.slow
def test_auto_intervals_hold_the_truth_and_what_is_certified_is_certain(kind: str) -> None:
    canaries = planted(NUMBER, seed=3, each=10)
    held = []
    # All canaries share a sample, so one bad draw is bad for many: several seeds and models.
    for seed, scale in enumerate([0.02, 0.2, 1.0, 0.2, 1.0]):
        found = measure_exposure(
            model_of(kind, scale),
            TOKENIZERS[kind](),
            canaries,
            samples=60,
            max_forwards=260,
            seed=seed,
        )
        truth = true_ranks(all_costs(kind, NUMBER, scale), canaries, 2 * tie_of(found))
        for item, (least, most) in zip(found, truth, strict=True):
            low, high = NUMBER.bits - math.log2(most), NUMBER.bits - math.log2(least)
            assert item.certified <= high + 1e-9
            assert item.low <= item.bits <= item.high
            assert item.rank_low <= item.rank <= item.rank_high
            held.append(item.low <= high + 1e-9 and item.high >= low - 1e-9)
            assert held[-1] or not item.exact
    assert np.mean(held) >= 0.85


def test_auto_is_exact_where_the_space_is_smaller_than_what_it_explores() -> None:
    canaries = planted(NUMBER)
    auto = measure_exposure(model_of(), TOKENIZERS[KIND](), canaries)
    exact = measure_exposure(model_of(), TOKENIZERS[KIND](), canaries, method="exact")
    assert [item.rank for item in auto] == [item.rank for item in exact]
    assert all(item.exact for item in auto)


def test_controls_count_as_strings_and_other_inserted_canaries_do_not() -> None:
    costs = all_costs(KIND, NUMBER)
    best = sorted(costs, key=costs.__getitem__)[:6]
    times = [1, 0, 1, 0, 1, 1]
    canaries = Canaries([Canary(NUMBER, s, k) for s, k in zip(best, times, strict=True)])
    for method in ("exact", "auto"):
        found = measure_exposure(model_of(), TOKENIZERS[KIND](), canaries, method=method)
        # Each one after itself and the controls that are cheaper.
        assert [item.rank for item in found] == [1, 1, 2, 2, 3, 3]


# The corners


@pytest.mark.parametrize("method", ["auto", "exact", "sampling", "skewnorm"])
def test_a_space_of_one_string_has_no_exposure(method: str) -> None:
    one = SecretFormat("The number is {secret}.", secret="7")
    found = measure_exposure(model_of(), TOKENIZERS[KIND](), [Canary(one, "7", 3)], method=method)
    assert found[0].rank == 1 and found[0].bits == 0.0 and found[0].low == found[0].high == 0.0


@pytest.mark.parametrize("method", ["auto", "exact", "sampling", "skewnorm"])
def test_a_space_smaller_than_the_sample_is_no_trouble(method: str) -> None:
    canaries = Canaries([Canary(FEW, "3", 2), Canary(FEW, "8", 0), Canary(FEW, "5", 1)])
    found = measure_exposure(model_of(), TOKENIZERS[KIND](), canaries, method=method)
    costs = all_costs(KIND, FEW)
    expected = true_ranks(costs, canaries, 0.0)
    assert [item.rank for item in found] == [rank for _, rank in expected]
    assert all(item.exact for item in found)


@pytest.mark.parametrize(("scale", "strange"), [(0.001, False), (1.0, True)])
def test_text_less_likely_than_random_tokens_is_warned_of(scale: float, strange: bool) -> None:
    # Tokens that mean nothing to a model that is sure of others; an untrained one is sure of none.
    canaries, tokenizer = planted(NUMBER), TOKENIZERS[KIND]()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = measure_exposure(model_of(KIND, scale), tokenizer, canaries, samples=50)
    tokens = [len(tokenizer(canary.text)["input_ids"]) for canary in canaries]
    details = found.formats[NUMBER]
    length = np.mean(tokens) - details.prompt_tokens
    assert details.uniform_bits == pytest.approx(length * math.log2(len(tokenizer)))
    assert any("than random tokens" in str(one.message) for one in said) == strange
    assert found.improbable() == ([NUMBER] if strange else [])
    if not strange:
        assert found[0].log_perplexity == pytest.approx(details.uniform_bits, rel=1e-3)


@pytest.mark.parametrize("samples", [0, 50])
def test_a_budget_of_zero_gives_bounds_that_hold(samples: int) -> None:
    canaries = planted(NUMBER, each=8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = measure_exposure(
            model_of(), TOKENIZERS[KIND](), canaries, max_forwards=0, samples=samples
        )
    # Bounds that nobody has asked for are not passed off as estimates.
    assert any("no estimates" in str(one.message) for one in said) == (samples > 0)
    for item, (least, most) in zip(
        found, true_ranks(all_costs(KIND, NUMBER), canaries, 2 * tie_of(found)), strict=True
    ):
        assert item.rank_low <= most and item.rank_high >= least
        # One forward pass certifies log2 of |R| less the log-perplexity.
        assert item.certified >= max(0.0, NUMBER.bits - item.log_perplexity) - 1e-3
        assert item.certified <= NUMBER.bits - math.log2(least) + 1e-9
        assert item.bits == item.low == pytest.approx(item.certified)
        assert found.is_bound(item) != item.exact


@pytest.mark.parametrize("method", ["auto", "exact", "sampling", "skewnorm"])
def test_a_canary_of_probability_0_has_the_last_rank(method: str) -> None:
    tokenizer = TOKENIZERS[KIND]()
    seven = tokenizer("7", add_special_tokens=False)["input_ids"][-1]

    def without_seven(logits: torch.Tensor) -> torch.Tensor:
        out = logits.clone()
        out[..., seven] = -math.inf
        return out

    canaries = Canaries([Canary(NUMBER, "171", 2), Canary(NUMBER, "123", 4), Canary(NUMBER, "456")])
    with changed(model_of(), without_seven):
        found = measure_exposure(model_of(), tokenizer, canaries, method=method, samples=300)
        alone = measure_exposure(model_of(), tokenizer, canaries[:1], method=method, samples=300)
    assert found[0].log_perplexity == math.inf
    assert found[0].bits == pytest.approx(0.0, abs=0.01)
    assert alone[0].bits == pytest.approx(0.0, abs=0.01)
    if method in ("auto", "exact"):
        assert found[0].rank == 999 and alone[0].rank == 1000
        # 9^3 strings have a probability at all.
        assert 1 <= found[1].rank <= 729
    for item in found:
        assert not any(map(math.isnan, (item.bits, item.low, item.high, item.certified)))


def test_results_come_in_the_order_of_the_set_with_several_formats() -> None:
    tokenizer = TOKENIZERS[KIND]()
    mixed = [*planted(NUMBER, each=2), *planted(CODE, each=2), *planted(FEW, each=1)]
    random.Random(0).shuffle(mixed)
    canaries = Canaries(mixed)
    found = measure_exposure(model_of(), tokenizer, canaries, method="exact")
    assert [item.canary for item in found] == mixed
    for fmt in (NUMBER, CODE, FEW):
        own = Canaries([canary for canary in mixed if canary.format == fmt])
        alone = measure_exposure(model_of(), tokenizer, own, method="exact")
        together = [item for item in found if item.canary.format == fmt]
        assert [item.rank for item in together] == [item.rank for item in alone]


# The budget


@pytest.mark.slow
def test_every_position_that_the_model_runs_is_counted() -> None:
    tokenizer, model = TOKENIZERS[KIND](), model_of()
    canaries = Canaries([*planted(NUMBER, each=2), *planted(CODE, each=2)])
    ran = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: ran.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        for method in ("auto", "exact", "sampling", "skewnorm"):
            ran.clear()
            found = measure_exposure(model, tokenizer, canaries, method=method, samples=50)
            assert found.forwards == sum(ran)
            assert found.forwards == sum(one.forwards for one in found.formats.values())
    finally:
        hook.remove()


@pytest.mark.parametrize("budget", [250, 400, 1000])
def test_auto_keeps_to_its_budget(budget: int) -> None:
    canaries = Canaries([*planted(NUMBER, each=1), *planted(CODE, each=1)])
    least = measure_exposure(
        model_of(), TOKENIZERS[KIND](), canaries, max_forwards=0, samples=0
    ).forwards
    found = measure_exposure(model_of(), TOKENIZERS[KIND](), canaries, max_forwards=budget)
    # The canaries' own costs and the decoder's probe are always done.
    assert found.forwards <= max(budget, least)


@pytest.mark.slow
def test_a_budget_for_a_handful_of_draws_gives_bounds_and_not_estimates() -> None:
    canaries, seen = planted(NUMBER, each=6), set()
    for budget in range(150, 500, 25):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = measure_exposure(
                model_of(), TOKENIZERS[KIND](), canaries, max_forwards=budget, samples=200
            )
        draws = found.formats[NUMBER].samples
        draws = 200 if draws is None else draws
        assert draws == 0 or draws >= 20
        assert any("no estimates" in str(one.message) for one in said) == (draws == 0)
        seen.add(draws)
    assert 0 in seen and len(seen) > 2
    few = measure_exposure(model_of(), TOKENIZERS[KIND](), canaries, max_forwards=400, samples=5)
    assert few.formats[NUMBER].samples == 5  # as asked for


def test_exact_with_too_small_a_budget_says_so_and_gives_what_auto_would() -> None:
    canaries = planted(NUMBER, each=6)
    tokenizer = TOKENIZERS[KIND]()
    with pytest.raises(BudgetError, match="max_forwards=250") as caught:
        measure_exposure(model_of(), tokenizer, canaries, method="exact", max_forwards=250)
    found = caught.value.exposures
    assert [item.canary for item in found] == list(canaries)
    assert found.forwards <= 250
    estimate = found.formats[NUMBER].exact_forwards_estimate
    full = measure_exposure(model_of(), tokenizer, canaries, method="exact")
    assert estimate == pytest.approx(full.formats[NUMBER].explored, rel=0.5)
    for item, true in zip(found, full, strict=True):
        assert item.method == "auto"
        assert item.certified <= true.high + 1e-9
        assert item.exact is False or item.rank == true.rank
    for canary in canaries:
        assert canary.secret not in str(caught.value)


# The same figures again


@pytest.mark.parametrize("method", ["auto", "sampling", "skewnorm"])
def test_the_same_seed_gives_the_same_figures(method: str) -> None:
    canaries = planted(NUMBER)

    def run(seed: int) -> list[tuple[Any, ...]]:
        found = measure_exposure(
            model_of(),
            TOKENIZERS[KIND](),
            canaries,
            method=method,
            samples=60,
            max_forwards=400,
            seed=seed,
        )
        return [figures(item) for item in found]

    assert run(5) == run(5)
    assert run(5) != run(6)


@pytest.mark.parametrize("method", ["auto", "exact", "sampling", "skewnorm"])
@pytest.mark.slow
def test_figures_do_not_hang_on_the_batch_size(method: str) -> None:
    canaries = planted(NUMBER if method == "auto" else CODE)
    found = [
        measure_exposure(
            model_of(),
            TOKENIZERS[KIND](),
            canaries,
            method=method,
            samples=60,
            max_forwards=None if method == "exact" else 400,
            batch_size=batch,
        )
        for batch in (None, 1, 7)
    ]
    if method == "auto":
        assert not all(item.exact for item in found[0])
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert figures(one) == pytest.approx(figures(same), rel=1e-3, abs=1e-3)


# The paper's estimators


def test_sampling_and_skewnorm_use_the_references_that_they_report() -> None:
    canaries = planted(NUMBER)
    costs = all_costs(KIND, NUMBER)
    inserted = {canary.secret for canary in canaries if canary.inserted}
    for method in ("sampling", "skewnorm"):
        found = measure_exposure(
            model_of(), TOKENIZERS[KIND](), canaries, method=method, samples=200
        )
        references = np.array(found.references[NUMBER])
        drawn = [secret for secret in NUMBER.sample(200, 0) if secret not in inserted]
        apart = references - [costs[secret] for secret in drawn]
        assert np.ptp(apart) < 1e-3
        if method == "sampling":
            for item in found:
                # A draw of the canary itself counts against it.
                own = NUMBER.sample(200, 0).count(str(item.canary.secret))
                others = [
                    cost
                    for cost, secret in zip(references, drawn, strict=True)
                    if secret != item.canary.secret
                ]
                others += [item.log_perplexity] * own
                k = sum(cost <= item.log_perplexity + tie_of(found) for cost in others)
                expected = math.log2(len(others)) - math.log2(1 + k)
                assert item.raw_bits == pytest.approx(expected)
                assert item.bits == pytest.approx(max(0.0, expected))
        else:
            fit = found.formats[NUMBER].fit
            assert fit is not None and fit.scale > 0
            assert all(0 <= item.bits <= NUMBER.bits for item in found)


def test_uniform_references_hold_the_truth_in_their_interval() -> None:
    canaries = planted(NUMBER, seed=2, each=10)
    found = measure_exposure(
        model_of(), TOKENIZERS[KIND](), canaries, method="sampling", samples=300
    )
    truth = true_ranks(all_costs(KIND, NUMBER), canaries, tie_of(found))
    held = [
        item.low - 0.01 <= NUMBER.bits - math.log2(rank) <= item.high + 0.01
        for item, (_, rank) in zip(found, truth, strict=True)
    ]
    assert np.mean(held) >= 0.9


# Nothing is left changed


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_all_random_states_are_left_as_they_were(fails: bool) -> None:
    model = llama(len(TOKENIZERS[KIND]()), attention_dropout=0.5)
    model.train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        with changed(model, lambda logits: logits * math.nan):
            message(lambda: measure_exposure(model, TOKENIZERS[KIND](), planted(NUMBER)))
    else:
        measure_exposure(model, TOKENIZERS[KIND](), planted(NUMBER), samples=50, max_forwards=300)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.is_grad_enabled()
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_in_training_mode_is_measured_without_dropout() -> None:
    model = llama(len(TOKENIZERS[KIND]()), scale=0.2, attention_dropout=0.5)
    canaries = planted(NUMBER)
    quiet = measure_exposure(model, TOKENIZERS[KIND](), canaries, method="exact")
    model.train()
    training = measure_exposure(model, TOKENIZERS[KIND](), canaries, method="exact")
    assert [figures(item) for item in quiet] == [figures(item) for item in training]


def test_an_accelerator_unwraps_its_own_model() -> None:
    from accelerate import Accelerator

    canaries = planted(NUMBER)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model_of())
    found = measure_exposure(
        prepared, TOKENIZERS[KIND](), canaries, method="exact", accelerator=accelerator
    )
    plain = measure_exposure(model_of(), TOKENIZERS[KIND](), canaries, method="exact")
    assert [item.rank for item in found] == [item.rank for item in plain]


# What is wrong is said once, at the door, without secrets


def message(call: Any, canaries: Canaries | None = None) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for canary in canaries or ():
        assert canary.secret not in text
    return text


def test_an_empty_set_is_refused() -> None:
    assert "empty" in message(lambda: measure_exposure(model_of(), TOKENIZERS[KIND](), []))


def test_a_tokenizer_that_cannot_write_the_template_is_refused() -> None:
    kind = "characters"
    canaries = planted(SecretFormat("Übergröße #{secret}.", secret="[0-9]{3}"))
    told = message(lambda: measure_exposure(model_of(kind), TOKENIZERS[kind](), canaries), canaries)
    assert "tokenizer" in told and "alphabet" in told


def test_a_model_with_too_small_a_vocabulary_is_refused() -> None:
    canaries = planted(NUMBER)
    told = message(lambda: measure_exposure(llama(40), TOKENIZERS[KIND](), canaries), canaries)
    assert "vocabulary" in told and "40" in told


def test_logits_that_are_nan_are_refused() -> None:
    canaries = planted(NUMBER)
    for method in ("auto", "exact", "sampling", "skewnorm"):
        with changed(model_of(), lambda logits: logits * math.nan):
            told = message(
                lambda method=method: measure_exposure(
                    model_of(), TOKENIZERS[KIND](), canaries, method=method
                ),
                canaries,
            )
        assert "NaN" in told


def test_a_canary_longer_than_the_context_is_refused_or_left_out() -> None:
    tokenizer = TOKENIZERS[KIND]()
    model = llama(len(tokenizer), max_position_embeddings=16)
    long = SecretFormat("The number is {secret}.", secret="[0-9]{20}")
    canaries = planted(long)
    told = message(lambda: measure_exposure(model, tokenizer, canaries), canaries)
    assert "context of 16" in told
    both = Canaries([*canaries, *planted(FEW, each=1)])
    with pytest.warns(UserWarning, match="context of 16"):
        found = measure_exposure(model, tokenizer, both, unscorable="warn")
    assert [item.canary.format for item in found] == [FEW] * 3
    assert [canary for canary, _ in found.skipped] == list(canaries)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "magic"}, "method='magic'"),
        ({"samples": -1}, "samples=-1"),
        ({"samples": 0, "method": "sampling"}, "samples=0"),
        ({"samples": 9, "method": "skewnorm"}, "samples=9"),
        ({"max_forwards": -5}, "max_forwards=-5"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"confidence": 1.0}, "confidence=1.0"),
        ({"unscorable": "skip"}, "unscorable='skip'"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], words: str) -> None:
    canaries = planted(NUMBER)
    told = message(
        lambda: measure_exposure(model_of(), TOKENIZERS[KIND](), canaries, **arguments), canaries
    )
    assert words in told


def test_no_secret_shows_in_what_a_measurement_prints(capsys: pytest.CaptureFixture[str]) -> None:
    canaries = planted(NUMBER)
    found = measure_exposure(model_of(), TOKENIZERS[KIND](), canaries, progress=True)
    print(found, repr(found), found._repr_html_(), found.settings)
    shown = capsys.readouterr()
    for canary in canaries:
        assert NUMBER.render(canary.secret) not in shown.out + shown.err
        assert f" {canary.secret}." not in shown.out + shown.err


def test_a_plan_is_made_once_and_knows_no_model() -> None:
    plan = plan_measurement(TOKENIZERS[KIND](), Canaries([*planted(NUMBER), *planted(CODE)]))
    assert [group.tree.format for group in plan.groups] == [NUMBER, CODE]
    assert sorted(place for group in plan.groups for place in group.places) == list(range(24))


# What it costs


@contextmanager
def room_for(model: Any, rows: int) -> Iterator[list[int]]:
    """Memory runs out at more rows than these; gives the numbers of rows that were too many."""
    refused: list[int] = []

    def check(module: Any, args: Any, kwargs: Any) -> None:
        asked = len(kwargs["input_ids"])
        if asked > rows:
            refused.append(asked)
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield refused
    finally:
        handle.remove()


@pytest.mark.slow
def test_rows_that_fit_are_found_once_and_kept_for_all_formats() -> None:
    both = Canaries([*planted(NUMBER), *planted(QUOTED)])
    whole = measure_exposure(model_of(), TOKENIZERS[KIND](), both, method="exact")
    with room_for(model_of(), 7) as refused:
        found = measure_exposure(model_of(), TOKENIZERS[KIND](), both, method="exact")
    assert refused == sorted(refused, reverse=True) and 1 <= len(refused) < 10
    assert all((one.batch_size or 0) <= 7 for one in found.formats.values())
    assert [one.rank for one in found] == [one.rank for one in whole]
    assert 0 < found.cost["peak_bytes"] < whole.cost["peak_bytes"]


def test_the_cost_tells_forwards_seconds_processes_and_memory() -> None:
    found = measure_exposure(model_of(), TOKENIZERS[KIND](), planted(NUMBER), method="exact")
    vocabulary, rows = len(TOKENIZERS[KIND]()), max(10, 100)  # the last digits' parents at once
    assert found.cost["forwards"] == found.forwards and found.cost["seconds"] == found.seconds
    assert found.cost["processes"] == 1
    assert found.cost["peak_bytes"] >= rows * vocabulary * 4
    again = Exposures.from_dict(found.to_dict(reveal=True), planted(NUMBER))
    assert again.cost == found.cost
    masked = Exposures.from_dict(found.to_dict(), planted(NUMBER))
    assert masked.cost == found.coarse().cost


def test_skewnorm_ranks_a_handful_of_strings_without_a_fit() -> None:
    one = SecretFormat("The number is {secret}.", secret="7")
    both = Canaries([*planted(NUMBER), Canary(one, "7", 3), *planted(FEW, each=1)])
    found = measure_exposure(model_of(), TOKENIZERS[KIND](), both, method="skewnorm", samples=200)
    truth = measure_exposure(model_of(), TOKENIZERS[KIND](), both, method="exact")
    assert len(found) == len(both)
    few = [place for place, canary in enumerate(both) if canary.format != NUMBER]
    assert [found[place].rank for place in few] == [truth[place].rank for place in few]
    assert all(found[place].exact for place in few)
