from __future__ import annotations

import json
import logging
import math
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_exposure.attacks.candidates import rank_candidates
from hf_exposure.attacks.generation import generate_secrets
from hf_exposure.attacks.generations import Generated, Generations
from hf_exposure.canaries.canary import Canary, MaskedCanary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.sets import Canaries
from tests.attacks.test_extraction import (
    UNEQUAL,
    encodings,
    ordered,
    plain_costs,
    prompt_of,
    rendered,
    trained,
    without_end,
)
from tests.selection import rest_slow
from tests.tiny import SOME_TOKENIZERS, TOKENIZERS, llama

PAIR = SecretFormat("The code is {secret}.", secret=r"[0-9]{2}")


def whole_space(fmt: SecretFormat) -> Canaries:
    return Canaries([Canary(fmt, secret, 1) for secret in fmt.enumerate()])


def came(written: Generations) -> dict[str, int]:
    return {row.canary.secret: row.times for row in written}


def renormalised(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, fmt: SecretFormat
) -> dict[str, float]:
    """The probability of each string if every token is drawn among those that some string has."""
    paths = {
        secret: without_end(tokenizer, ids) for secret, ids in encodings(tokenizer, fmt).items()
    }
    prompt = prompt_of(list(paths.values()))
    out = {}
    for secret, ids in paths.items():
        with torch.no_grad():
            chances = torch.softmax(model(torch.tensor([ids])).logits[0].double(), -1)
        out[secret] = 1.0
        for at in range(len(prompt), len(ids)):
            allowed = {other[at] for other in paths.values() if other[:at] == ids[:at]}
            among = chances[at - 1, sorted(allowed)].sum()
            out[secret] *= float(chances[at - 1, ids[at]] / among)
    assert sum(out.values()) == pytest.approx(1)
    return out


def assert_rates(counts: dict[str, int], n: int, chances: dict[str, float]) -> None:
    """Within five standard errors each, and as a whole (chi-square)."""
    for secret, chance in chances.items():
        error = math.sqrt(n * chance * (1 - chance))
        assert abs(counts[secret] - n * chance) <= 5 * error + 1, secret
    often = [secret for secret, chance in chances.items() if n * chance >= 5]
    square = sum((counts[s] - n * chances[s]) ** 2 / (n * chances[s]) for s in often)
    assert square < len(often) + 6 * math.sqrt(2 * len(often))


# Rates


@pytest.mark.slow
@pytest.mark.parametrize("kind", rest_slow(TOKENIZERS, SOME_TOKENIZERS))
@pytest.mark.parametrize("fmt", [PAIR, UNEQUAL], ids=["digits", "unequal"])
def test_a_constrained_sequence_is_a_secret_drawn_by_its_renormalised_probability(
    kind: str, fmt: SecretFormat
) -> None:
    tokenizer = TOKENIZERS[kind]()
    model = llama(len(tokenizer), scale=0.05)
    written = generate_secrets(model, tokenizer, whole_space(fmt), 1000, batch_size=500)
    assert sum(came(written).values()) == written.attempts == 1000  # none is anything else
    assert_rates(came(written), 1000, renormalised(model, tokenizer, fmt))


def test_a_free_sequence_is_a_canary_with_the_probability_of_its_log_perplexity() -> None:
    tokenizer = TOKENIZERS["characters"]()  # one way only to write a text
    model = llama(len(tokenizer), scale=0.001)
    fmt = SecretFormat("The code is {secret}", secret=r"[a-f0-3]")
    chances = {s: 2**-bits for s, bits in plain_costs(model, tokenizer, fmt).items()}
    written = generate_secrets(
        model,
        tokenizer,
        whole_space(fmt),
        3000,
        constrained=False,
        batch_size=1000,
        max_new_tokens=2,
    )
    assert 0.05 < sum(chances.values()) < 0.5
    assert_rates(came(written), 3000, chances)


@pytest.mark.slow
def test_a_trained_canary_is_written_freely_as_often_as_its_log_perplexity_says() -> None:
    model, tokenizer, canary = trained()
    prompt = tokenizer("The code is ")["input_ids"]
    ids = tokenizer(canary.text)["input_ids"]
    assert ids[: len(prompt)] == prompt
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    steps = torch.log_softmax(logits, -1)[range(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]]
    chance = float(steps.sum().exp())
    assert 0.01 < chance < 0.99
    written = generate_secrets(model, tokenizer, [canary], 1500, constrained=False, batch_size=500)
    assert_rates({"x": written[0].times}, 1500, {"x": chance})


@pytest.mark.slow
def test_plain_sampling_is_not_cut_to_the_fifty_likeliest_tokens() -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = llama(len(tokenizer), scale=0.001)
    letters = "".join(sorted(t for t in tokenizer.get_vocab() if len(t) == 1 and t.isalnum()))
    canaries = whole_space(SecretFormat("The code is {secret}", secret=f"[{letters}]"))
    for arguments, missing in ({}, False), ({"top_k": 50}, True):
        written = generate_secrets(
            model,
            tokenizer,
            canaries,
            3000,
            constrained=False,
            batch_size=1000,
            max_new_tokens=1,
            **arguments,
        )
        assert (min(came(written).values()) == 0) is missing


# Search


@pytest.mark.parametrize("constrained", [True, False])
def test_greedy_decoding_writes_one_sequence(constrained: bool) -> None:
    model, tokenizer, canary = trained()
    other = Canary(canary.format, "000000", 0)
    written = generate_secrets(
        model, tokenizer, [other, canary], 100, constrained=constrained, do_sample=False
    )
    assert written.attempts == 1
    assert came(written) == {"000000": 0, "402871": 1}
    assert written.extracted == [canary]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("fmt", [PAIR, UNEQUAL], ids=["digits", "unequal"])
def test_a_beam_as_wide_as_the_space_writes_the_most_likely_secrets(
    kind: str, fmt: SecretFormat
) -> None:
    tokenizer = TOKENIZERS[kind]()
    model = llama(len(tokenizer), scale=0.05)
    written = generate_secrets(model, tokenizer, whole_space(fmt), 5, num_beams=120)
    assert written.attempts == 5
    best = ordered(plain_costs(model, tokenizer, fmt))[:5]
    assert {secret for secret, number in came(written).items() if number} == set(best)


def test_a_beam_gives_no_more_sequences_than_it_has_beams() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer))
    written = generate_secrets(model, tokenizer, whole_space(PAIR), 100, num_beams=4)
    assert written.attempts == 4 and set(came(written).values()) == {0, 1}
    # Where fewer strings are left than beams, the rest is no secret.
    two = SecretFormat("The code is {secret}.", secret="[12]")
    written = generate_secrets(model, tokenizer, whole_space(two), 100, num_beams=5)
    assert came(written) == {"1": 1, "2": 1}


def test_a_sampling_beam_goes_on_until_there_are_enough() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.05)
    written = generate_secrets(model, tokenizer, whole_space(PAIR), 10, num_beams=4, do_sample=True)
    assert written.attempts == 10 and sum(came(written).values()) == 10


# What counts


def test_a_short_secret_elsewhere_in_a_free_text_does_not_count() -> None:
    model, tokenizer, canary = trained()
    short = SecretFormat("The code is {secret}", secret=r"[0-9]")
    longer = SecretFormat("The code is {secret}.", secret=r"[0-9]{2}")
    planted = [Canary(short, digit, 0) for digit in "0428"] + [Canary(longer, "40", 0)]
    written = generate_secrets(
        model, tokenizer, planted, constrained=False, do_sample=False, max_new_tokens=12
    )
    assert canary.text in next(iter(written.texts[short]))
    # The text goes on with 4; 0, 2 and 8 are in it too, and 40 is not followed by a stop.
    assert [row.times for row in written] == [0, 1, 0, 0, 0]


def test_a_canary_counts_where_the_decoder_does_not_give_its_text_back() -> None:
    tokenizer = TOKENIZERS["wordpiece"]()  # writes small letters, and spaces before stops
    model = llama(len(tokenizer), scale=0.3)
    fmt = PAIR
    paths = {s: without_end(tokenizer, ids) for s, ids in encodings(tokenizer, fmt).items()}
    bias = torch.zeros(len(tokenizer))
    wanted = paths["17"][len(prompt_of(list(paths.values()))) :]
    bias[wanted] = 100.0
    model.lm_head.bias = torch.nn.Parameter(bias)
    canaries = [Canary(fmt, "17", 1), Canary(fmt, "18", 1)]
    written = generate_secrets(model, tokenizer, canaries, 500, constrained=False, batch_size=500)
    assert "The code" not in "".join(written.texts[fmt])
    assert written[0].times > 0 and written[1].times == 0


def test_every_format_is_prompted_and_rows_keep_the_order_of_the_set() -> None:
    tokenizer = TOKENIZERS["digits_in_threes"]()
    model = llama(len(tokenizer), scale=0.05)
    other = SecretFormat("My key: {secret}!", secret=r"[a-c]{2}")
    canaries = Canaries(
        [c for two in zip(whole_space(PAIR), whole_space(other), strict=False) for c in two]
    )
    written = generate_secrets(model, tokenizer, canaries, 300, batch_size=100)
    assert [row.canary for row in written] == list(canaries)
    assert all(row.attempts == 300 for row in written) and written.attempts == 600
    assert set(written.texts) == {PAIR, other}
    for row in written:
        assert row.times == written.texts[row.canary.format][row.canary.secret]
    assert sum(row.times for row in written if row.canary.format == other) == 300


def test_spliced_canaries_are_prompted_after_a_space() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.05)
    canaries = Canaries(list(whole_space(PAIR)), insertions=[Insertion("splice")])
    written = generate_secrets(model, tokenizer, canaries, 50, constrained=False)
    assert all(text.startswith(" The code is ") for text in written.texts[PAIR])


# Draws


def test_the_same_seed_gives_the_same_sequences_and_another_one_others() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.05)
    first, again, other = (
        generate_secrets(model, tokenizer, whole_space(PAIR), 60, seed=seed) for seed in (1, 1, 2)
    )
    assert first.texts == again.texts and first.texts != other.texts


def test_another_format_in_the_set_changes_no_draw() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.05)
    other = SecretFormat("My key: {secret}!", secret=r"[a-c]{2}")
    alone = generate_secrets(model, tokenizer, whole_space(PAIR), 60)
    together = generate_secrets(model, tokenizer, [Canary(other, "ab", 1), *whole_space(PAIR)], 60)
    assert together.texts[PAIR] == alone.texts[PAIR]


def test_temperature_and_other_arguments_reach_generate() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.05)
    greedy = generate_secrets(model, tokenizer, whole_space(PAIR), do_sample=False)
    for argument in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}):
        written = generate_secrets(model, tokenizer, whole_space(PAIR), 20, **argument)
        assert list(written.texts[PAIR]) == list(greedy.texts[PAIR])
        assert written.settings["generate"] == argument


# What is left alone


def odd_settings() -> GenerationConfig:
    config = GenerationConfig(
        repetition_penalty=50.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[*range(20, 30)],
        eos_token_id=25,
        min_new_tokens=3,
        max_length=3,
        top_k=1,
        output_scores=True,
        return_dict_in_generate=True,
        num_beams=3,
        forced_eos_token_id=30,
        bad_words_ids=[[21]],
    )
    config.stop_strings = ["1"]
    return config


@pytest.mark.parametrize(
    "arguments",
    [{}, {"constrained": False}, {"num_beams": 4}, {"do_sample": False}],
    ids=["constrained", "free", "beam", "greedy"],
)
def test_the_models_own_generation_config_has_no_say_and_is_left_as_it_was(
    arguments: dict[str, Any],
) -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.05)
    plain = generate_secrets(model, tokenizer, whole_space(PAIR), 40, **arguments)
    model.generation_config = config = odd_settings()
    before = config.to_dict()
    odd = generate_secrets(model, tokenizer, whole_space(PAIR), 40, **arguments)
    assert odd.texts == plain.texts and odd.forwards == plain.forwards
    assert model.generation_config is config and config.to_dict() == before


def test_everything_is_put_back_when_generation_fails() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer)).train()
    model.generation_config = config = odd_settings()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="no_such_thing"):
        generate_secrets(model, tokenizer, whole_space(PAIR), 4, no_such_thing=3)
    assert model.generation_config is config and model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.get_input_embeddings()._forward_hooks


def test_the_model_and_all_random_states_are_left_as_they_were() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer)).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    generate_secrets(model, tokenizer, whole_space(PAIR), 20)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    assert [module.training for module in model.modules()] == modes
    assert not model.get_input_embeddings()._forward_hooks


@contextmanager
def all_that_is_said() -> Iterator[list[str]]:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = transformers.utils.logging.get_logger("transformers")
    logger.addHandler(handler)
    transformers.utils.logging.warning_once.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
        said += [str(warning.message) for warning in caught]
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"constrained": False},
        {"num_beams": 4},
        {"num_beams": 4, "constrained": False},
        {"do_sample": False},
        {"temperature": 0.7, "top_p": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("pad", ["</s>", None])
def test_generation_warns_of_nothing(
    arguments: dict[str, Any], pad: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    tokenizer.pad_token = pad
    try:
        with all_that_is_said() as said:
            generate_secrets(llama(len(tokenizer)), tokenizer, whole_space(PAIR), 4, **arguments)
    finally:
        tokenizer.pad_token = "</s>"
    assert said == []
    assert capfd.readouterr() == ("", "")


# Forwards


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"constrained": False}, {"num_beams": 3}, {"do_sample": False}],
    ids=["constrained", "free", "beam", "greedy"],
)
def test_forwards_are_the_positions_that_the_model_has_computed(
    arguments: dict[str, Any], use_cache: bool
) -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.05)
    seen = []
    # Further down than where they are counted.
    hook = model.model.layers[0].mlp.register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape[0] * output.shape[1])
    )
    written = generate_secrets(
        model, tokenizer, whole_space(PAIR), 7, batch_size=3, use_cache=use_cache, **arguments
    )
    hook.remove()
    assert written.forwards == sum(seen) > 0


def test_constrained_sequences_stop_at_the_end_of_the_secret() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.05)
    written = generate_secrets(model, tokenizer, whole_space(PAIR), 10)
    prompt = tokenizer("The code is ")["input_ids"]
    # Two digits and a stop, the last of which needs no forward.
    assert written.forwards == 10 * (len(prompt) + 2)


# What is refused


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples=0 is too small; give at least 1"),
        ({"num_samples": 1.5}, TypeError, "num_samples must be a whole number, not float"),
        ({"batch_size": 0}, ValueError, "batch_size=0 is too small"),
        ({"seed": -1}, ValueError, "seed=-1 is too small"),
        ({"num_return_sequences": 4}, ValueError, "num_return_sequences .*use num_samples"),
        ({"generation_config": GenerationConfig()}, ValueError, "one by one"),
        ({"max_length": 40}, ValueError, "use max_new_tokens"),
        ({"canaries": []}, ValueError, "the set is empty"),
    ],
)
def test_a_bad_argument_gets_one_clear_error(
    arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer))
    with pytest.raises(kind, match=message):
        generate_secrets(model, tokenizer, **{"canaries": whole_space(PAIR), **arguments})


def test_a_model_that_cannot_write_the_secret_is_refused() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    with pytest.raises(ValueError, match="context of 7"):
        short = llama(len(tokenizer), max_position_embeddings=7)
        generate_secrets(short, tokenizer, whole_space(PAIR))
    with pytest.raises(ValueError, match="vocabulary of 20"):
        generate_secrets(llama(20), tokenizer, whole_space(PAIR))
    with pytest.raises(ValueError, match="has no generate; extract_secrets does without"):
        generate_secrets(llama(len(tokenizer)).model, tokenizer, whole_space(PAIR))


# What it looks like


def some() -> tuple[Generations, Canaries]:
    canaries = Canaries([Canary(PAIR, "27", 8), Canary(PAIR, "99", 0)])
    rows = [Generated(canaries[0], 71, 100), Generated(canaries[1], 0, 100)]
    texts = {PAIR: Counter({"27": 71, "31": 29})}
    return Generations(
        rows, attempts=100, forwards=1234, seconds=0.5, settings={"seed": 0}, texts=texts
    ), canaries


def test_secrets_are_masked_wherever_they_are_shown() -> None:
    written, _ = some()
    shown = [
        str(written),
        repr(written),
        repr(list(written)),
        written._repr_html_(),
        rendered(written),
        rendered(written.table()),
        json.dumps(written.to_dict()),
    ]
    for text in shown:
        assert not any(secret in text for secret in ("27", "99", "31"))
    assert "27" in rendered(written.table(reveal=True))
    assert "31" in json.dumps(written.to_dict(reveal=True))
    assert str(written) == (
        "canary        inserted  came out\n"
        "…code is ••.         8  71 of 100\n"
        "…code is ••.         0  0 of 100\n"
        "1 of 2 canaries came out; 100 sequences, 1,200 token-forwards in 0.5 s"
    )
    assert str(written).split() == rendered(written).split()


def test_a_file_holds_everything_but_secrets_unless_they_are_asked_for(tmp_path: Path) -> None:
    written, canaries = some()
    masked = Generations.load(written.save(tmp_path / "masked.json"))
    assert str(masked) == str(written) and masked.texts == {}
    assert masked[0].canary == MaskedCanary(PAIR, 2, 8)
    assert list(Generations.load(tmp_path / "masked.json", canaries)) == list(written)
    whole = Generations.load(written.save(tmp_path / "whole.json", reveal=True))
    assert list(whole) == list(written) and whole.texts == written.texts
    assert (whole.attempts, whole.forwards, whole.settings) == (100, 1234, {"seed": 0})
    with pytest.raises(ValueError, match=r"masked\.json.*other canaries"):
        Generations.load(tmp_path / "masked.json", Canaries([canaries[0]]))
    (tmp_path / "masked.json").write_text("[]")
    with pytest.raises(ValueError, match="does not hold generations"):
        Generations.load(tmp_path / "masked.json")


def test_two_formats_with_one_template_keep_their_own_texts(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    longer = SecretFormat(PAIR.template, r"[0-9]{3}")
    canaries = Canaries([Canary(PAIR, "27", 1), Canary(longer, "271", 1)])
    model = llama(len(tokenizer))
    written = generate_secrets(model, tokenizer, canaries, 20)
    again = Generations.load(written.save(tmp_path / "written.json", reveal=True))
    for one in (written, again):
        assert list(one.texts) == [PAIR, longer]
        assert [sum(texts.values()) for texts in one.texts.values()] == [20, 20]
        assert {len(text) for text in one.texts[PAIR]} == {2}
        assert {len(text) for text in one.texts[longer]} == {3}
    ranked = rank_candidates(model, tokenizer, again)
    assert sum(one.times for one in ranked) == 40
    assert {len(one.text.strip().rstrip(".")) for one in ranked} == {2, 3}


def test_the_settings_can_be_written_as_json() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    written = generate_secrets(
        llama(len(tokenizer)), tokenizer, whole_space(PAIR), 2, logits_processor=[]
    )
    again = Generations.from_dict(json.loads(json.dumps(written.to_dict())))
    assert again.settings == written.settings
    assert written.settings["generate"] == {"logits_processor": "list"}
