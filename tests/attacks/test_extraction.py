from __future__ import annotations

import functools
import itertools
import json
import math
import random
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_exposure.attacks.extraction import Extraction, Extractions, extract_secrets
from hf_exposure.canaries.canary import Canary, MaskedCanary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.sets import Canaries
from hf_exposure.models.causal import NotFiniteError
from tests.selection import rest_slow
from tests.tiny import SOME_TOKENIZERS, TOKENIZERS, corpus, llama

each_tokenizer = pytest.mark.parametrize("kind", rest_slow(TOKENIZERS, SOME_TOKENIZERS))

# Secrets that are short words too, so that they have different numbers of tokens.
UNEQUAL = SecretFormat("My code is {secret}.", secret=r"(the|[ab]{2}|secret|[0-9]{2}|many words)")
DIGITS = SecretFormat("The code is {secret}.", secret=r"[0-9]{3}")


def encodings(
    tokenizer: PreTrainedTokenizerFast, fmt: SecretFormat, before: str = "", special: bool = True
) -> dict[str, list[int]]:
    """The tokens of every string of the space in its template."""
    return {
        secret: tokenizer(before + fmt.render(secret), add_special_tokens=special)["input_ids"]
        for secret in fmt.enumerate()
    }


def without_end(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[int]:
    """Tokens without the end mark that some tokenizers put behind a text."""
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def plain_costs(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    fmt: SecretFormat,
    before: str = "",
    special: bool = True,
) -> dict[str, float]:
    """Bits of every string of the space given what they all begin with, by whole texts."""
    all_ids = {
        secret: without_end(tokenizer, ids)
        for secret, ids in encodings(tokenizer, fmt, before, special).items()
    }
    if len(all_ids) == 1:
        shared = len(tokenizer(before + fmt.prefix, add_special_tokens=special)["input_ids"])
    else:
        shared = len(prompt_of(list(all_ids.values())))
    out = {}
    for length in {len(ids) for ids in all_ids.values()}:
        secrets = [secret for secret, ids in all_ids.items() if len(ids) == length]
        tokens = torch.tensor([all_ids[secret] for secret in secrets])
        with torch.no_grad():
            logits = model(tokens).logits[:, shared - 1 : -1].double()
        bits = -torch.log_softmax(logits, -1) / math.log(2)
        costs = bits.gather(2, tokens[:, shared:, None]).sum((1, 2))
        out.update(zip(secrets, costs.tolist(), strict=True))
    return out


def prompt_of(rows: list[list[int]]) -> list[int]:
    return [
        column[0]
        for column in itertools.takewhile(
            lambda column: len(set(column)) == 1, zip(*rows, strict=False)
        )
    ]


def ordered(costs: dict[str, float]) -> list[str]:
    return sorted(costs, key=lambda secret: costs[secret])


# Search


@each_tokenizer
@pytest.mark.parametrize("fmt", [DIGITS, UNEQUAL], ids=["digits", "unequal"])
def test_search_gives_the_most_likely_strings_in_order_and_proves_them(
    kind: str, fmt: SecretFormat
) -> None:
    tokenizer = TOKENIZERS[kind]()
    model = llama(len(tokenizer), scale=0.3)
    costs = plain_costs(model, tokenizer, fmt)
    best = ordered(costs)
    found = extract_secrets(model, tokenizer, fmt, count=7)
    assert [one.secret for one in found] == best[:7]
    assert all(one.proved for one in found)
    # A cut before the end of the common beginning adds the same to all.
    shift = found[0].log_perplexity - costs[best[0]]
    assert shift > -1e-3
    for one in found:
        assert one.log_perplexity == pytest.approx(costs[one.secret] + shift, abs=1e-3)
    if kind in ("digits_one_by_one", "characters"):
        assert shift == pytest.approx(0, abs=1e-3)


def test_secrets_of_unequal_token_length_are_compared_by_their_sums() -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = llama(len(tokenizer), seed=5, scale=0.3)
    costs = plain_costs(model, tokenizer, UNEQUAL)
    best = ordered(costs)
    # Means over tokens, as many libraries give them, would tell another story.
    assert best != sorted(best, key=lambda secret: costs[secret] / (len(secret) + 1))
    found = extract_secrets(model, tokenizer, UNEQUAL, count=len(best))
    assert [one.secret for one in found] == best


def test_a_space_of_one_string_gives_it_and_no_more() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer))
    fmt = SecretFormat("The code is {secret}.", secret="4711")
    found = extract_secrets(model, tokenizer, fmt, count=5)
    assert [(one.secret, one.proved) for one in found] == [("4711", True)]


def test_as_many_come_out_as_there_are_all_proved() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer))
    fmt = SecretFormat("The code is {secret}.", secret="[0-9]")
    found = extract_secrets(model, tokenizer, fmt, count=50)
    assert [one.secret for one in found] == ordered(plain_costs(model, tokenizer, fmt))
    assert all(one.proved for one in found)


@pytest.mark.parametrize("scale", [0.001, 0.1, 1.0], ids=["flat", "middling", "sharp"])
def test_search_takes_no_more_forwards_than_enumeration(scale: float) -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=scale)
    found = extract_secrets(model, tokenizer, DIGITS, count=1)
    everything = extract_secrets(model, tokenizer, DIGITS, count=DIGITS.size)
    prefixes = 1 + 10 + 100 + 1000
    assert len(everything) == DIGITS.size
    # The space once, the prompt, and the decoder's own check.
    check = extract_secrets(model, tokenizer, DIGITS, max_forwards=1).forwards
    assert found.forwards <= everything.forwards <= check + prefixes
    if scale == 1.0:
        assert found.forwards < check + prefixes / 10


def test_each_secret_tells_after_how_many_forwards_it_was_proved() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.3)
    found = extract_secrets(model, tokenizer, DIGITS, count=10)
    spent = [one.forwards for one in found]
    assert spent == sorted(spent) and spent[-1] <= found.forwards
    for number in (1, 4):
        alone = extract_secrets(model, tokenizer, DIGITS, count=number)
        assert alone.forwards == spent[number - 1]


def test_a_string_that_the_model_never_writes_does_not_come_out() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), attention_bias=False)
    bias = torch.zeros(len(tokenizer))
    never = [str(digit) for digit in range(2, 10)]
    bias[tokenizer.convert_tokens_to_ids(never)] = -torch.inf
    model.lm_head.bias = torch.nn.Parameter(bias)
    fmt = SecretFormat("The code is {secret}.", secret="[0-9]{6}")
    found = extract_secrets(model, tokenizer, fmt, count=100)
    assert len(found) == 2**6
    assert all(set(one.secret) <= {"0", "1"} and one.proved for one in found)
    assert found.forwards < 1000


# Budget


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["digits_one_by_one", "unigram", "sentencepiece_bpe"])
def test_no_more_than_the_budget_is_spent(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    model = llama(len(tokenizer), scale=0.05)
    check = extract_secrets(model, tokenizer, DIGITS, max_forwards=1).forwards
    for budget in (1, check, check + 1, check + 7, check + 40, check + 200):
        found = extract_secrets(model, tokenizer, DIGITS, max_forwards=budget)
        assert found.forwards <= max(budget, check)


@pytest.mark.slow
def test_a_spent_budget_gives_the_best_so_far_without_proof() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.03)
    fmt = SecretFormat("The code is {secret}.", secret="[0-9]{4}")
    costs = plain_costs(model, tokenizer, fmt)
    whole = extract_secrets(model, tokenizer, fmt, count=3)
    cut = extract_secrets(model, tokenizer, fmt, count=3, max_forwards=whole.forwards // 2)
    assert len(cut) == 3
    assert not cut[2].proved
    for one in cut:
        assert one.log_perplexity == pytest.approx(costs[one.secret], abs=1e-3)
    # What is returned is good: among the best hundredth of all.
    assert ordered(costs).index(cut[0].secret) < 100
    assert [one.log_perplexity for one in cut] == sorted(one.log_perplexity for one in cut)


@pytest.mark.slow
def test_what_a_spent_budget_calls_proved_is_true() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.5)
    best = ordered(plain_costs(model, tokenizer, DIGITS))
    whole = extract_secrets(model, tokenizer, DIGITS, count=5)
    seen = set()
    for budget in [one.forwards + 40 for one in whole]:
        found = extract_secrets(model, tokenizer, DIGITS, count=5, max_forwards=budget)
        proved = [one.secret for one in found if one.proved]
        assert proved == best[: len(proved)]
        seen.add(len(proved))
    assert len(seen) > 2  # the budgets made a difference


def test_a_budget_that_suffices_changes_no_answer() -> None:
    tokenizer = TOKENIZERS["digits_in_threes"]()
    model = llama(len(tokenizer), scale=0.3)
    free = extract_secrets(model, tokenizer, DIGITS, count=5)
    held = extract_secrets(model, tokenizer, DIGITS, count=5, max_forwards=100_000)
    assert [one.secret for one in held] == [one.secret for one in free]
    assert all(one.proved for one in held)


def test_a_budget_too_small_for_one_secret_gives_none() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    found = extract_secrets(llama(len(tokenizer)), tokenizer, DIGITS, max_forwards=1)
    assert len(found) == 0 and "0 of 3 secrets" in str(found)


# Beam


def plain_beam(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, fmt: SecretFormat, width: int
) -> list[str]:
    """Beam search over the strings of a format whose encodings are all equally long."""
    paths = {
        tuple(without_end(tokenizer, ids)): secret
        for secret, ids in encodings(tokenizer, fmt).items()
    }
    prompt = tuple(prompt_of([list(ids) for ids in paths]))
    beam = {prompt: 0.0}
    for depth in range(len(prompt), len(next(iter(paths)))):
        following = {}
        for prefix, cost in beam.items():
            with torch.no_grad():
                logits = model(torch.tensor([prefix])).logits[0, -1].double()
            bits = -torch.log_softmax(logits, -1) / math.log(2)
            for path in {ids[: depth + 1] for ids in paths if ids[:depth] == prefix}:
                following[path] = cost + float(bits[path[-1]])
        beam = dict(sorted(following.items(), key=lambda item: item[1])[:width])
    return [paths[path] for path in beam]


@pytest.mark.parametrize("width", [1, 3, 10])
def test_a_width_makes_it_the_papers_beam(width: int) -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.1)
    found = extract_secrets(model, tokenizer, DIGITS, count=width, beam_width=width)
    assert [one.secret for one in found] == plain_beam(model, tokenizer, DIGITS, width)
    assert not any(one.proved for one in found)


def test_a_beam_that_dropped_nothing_proves_what_it_finds() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.1)
    found = extract_secrets(model, tokenizer, DIGITS, count=3, beam_width=1000)
    assert [one.secret for one in found] == ordered(plain_costs(model, tokenizer, DIGITS))[:3]
    assert all(one.proved for one in found)


def test_a_beam_keeps_to_a_budget_too() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.1)
    check = extract_secrets(model, tokenizer, DIGITS, max_forwards=1).forwards
    found = extract_secrets(model, tokenizer, DIGITS, beam_width=1000, max_forwards=check + 150)
    assert found.forwards <= check + 150
    assert not any(one.proved for one in found)


# Canaries and where they were planted


def test_it_tells_which_planted_canary_came_out() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer))
    best = ordered(plain_costs(model, tokenizer, DIGITS))
    other = SecretFormat("My key is {secret}.", secret=r"[0-9]{3}")
    canaries = Canaries(
        [Canary(other, best[0], 7), Canary(DIGITS, best[1], 4), Canary(DIGITS, best[0], 0)]
    )
    found = extract_secrets(model, tokenizer, DIGITS, canaries=canaries)
    assert [one.canary for one in found] == [canaries[2], canaries[1], None]
    assert [one.place for one in found] == [2, 1, None]
    as_list = extract_secrets(model, tokenizer, DIGITS, canaries=list(canaries))
    assert [one.canary for one in as_list] == [canaries[2], canaries[1], None]


@pytest.mark.parametrize("kind", ["freely_merged", "sentencepiece_bpe", "digits_one_by_one"])
def test_spliced_canaries_are_looked_for_after_a_space(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    model = llama(len(tokenizer), scale=0.3)
    canaries = Canaries([Canary(DIGITS, "123", 4)], insertions=[Insertion("splice")])
    costs = plain_costs(model, tokenizer, DIGITS, before=" ")
    best = ordered(costs)
    found = extract_secrets(model, tokenizer, DIGITS, canaries=canaries)
    assert [one.secret for one in found] == best[:3]
    gaps = np.diff([one.log_perplexity for one in found])
    assert gaps == pytest.approx(np.diff([costs[secret] for secret in best[:3]]), abs=1e-3)
    elsewhere = plain_costs(model, tokenizer, DIGITS)
    assert gaps != pytest.approx(np.diff([elsewhere[secret] for secret in best[:3]]), abs=1e-3)


def test_canaries_of_conversations_are_looked_for_after_the_rendered_request() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    tokenizer.chat_template = (
        "<s>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}</s>"
    )
    try:
        model = llama(len(tokenizer), scale=0.3)
        insertion = Insertion("rows", chat=True, request="Say it.")
        canaries = Canaries([Canary(DIGITS, "123", 4)], insertions=[insertion])
        before = "<s>user: Say it.\nassistant: "
        costs = plain_costs(model, tokenizer, DIGITS, before=before, special=False)
        found = extract_secrets(model, tokenizer, DIGITS, canaries=canaries)
    finally:
        tokenizer.chat_template = None
    assert [one.secret for one in found] == ordered(costs)[:3]
    assert found[0].log_perplexity == pytest.approx(costs[found[0].secret], abs=1e-3)


def test_special_tokens_come_first_or_not_as_asked() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.3)
    costs = plain_costs(model, tokenizer, DIGITS, special=False)
    found = extract_secrets(model, tokenizer, DIGITS, bos=False)
    assert found[0].log_perplexity == pytest.approx(min(costs.values()), abs=1e-3)
    assert found.settings["bos"] is False
    assert min(costs.values()) != pytest.approx(
        min(plain_costs(model, tokenizer, DIGITS).values()), abs=1e-3
    )


# A trained model


@functools.cache
def trained() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Canary]:
    """A small Llama after some seconds on 200 lines, 40 of them the canary."""
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    fmt = SecretFormat("The code is {secret}.", secret=r"[0-9]{6}")
    canary = Canary(fmt, "402871", 40)
    lines = [*corpus()[:160], *[canary.text] * canary.repetitions]
    random.Random(0).shuffle(lines)
    end = tokenizer.eos_token_id
    rows = [[*tokenizer(line)["input_ids"], end][:40] for line in lines]
    ids = torch.tensor([row + [end] * (40 - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (40 - len(row)) for row in rows])
    model = llama(len(tokenizer))
    with torch.no_grad():
        model.lm_head.weight.div_(40.0)  # as a model begins its training
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(6):
        for part in torch.split(torch.arange(len(rows)), 20):
            loss = model(input_ids=ids[part], labels=labels[part]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval(), tokenizer, canary


@pytest.mark.slow
def test_a_canary_comes_out_of_a_trained_model_first_and_cheaply() -> None:
    model, tokenizer, canary = trained()
    found = extract_secrets(model, tokenizer, canary.format, count=1, canaries=[canary])
    assert found[0].canary == canary
    assert found[0].proved
    one_by_one = canary.format.size * len(tokenizer(canary.text)["input_ids"])
    assert found.forwards < one_by_one / 10_000


# What is left alone, and what is refused


def test_the_model_and_all_random_states_are_left_as_they_were() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), attention_dropout=0.5).train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    extract_secrets(model, tokenizer, DIGITS, max_forwards=300)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_the_order_is_the_same_whatever_the_batch_size() -> None:
    tokenizer = TOKENIZERS["digits_in_threes"]()
    model = llama(len(tokenizer), scale=0.2)
    one, many = (
        extract_secrets(model, tokenizer, DIGITS, count=8, batch_size=size) for size in (1, 64)
    )
    assert [e.secret for e in one] == [e.secret for e in many]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"count": 0}, ValueError, r"count=0 is too small; give at least 1"),
        ({"count": 2.5}, TypeError, r"count must be a whole number, not float"),
        ({"count": True}, TypeError, r"count must be a whole number, not bool"),
        ({"count": None}, TypeError, r"count must be a whole number"),
        ({"beam_width": 0}, ValueError, r"beam_width=0 is too small"),
        ({"max_forwards": 0}, ValueError, r"max_forwards=0 is too small"),
        ({"batch_size": -1}, ValueError, r"batch_size=-1 is too small"),
        ({"fmt": r"[0-9]{9}"}, TypeError, r"fmt must be a SecretFormat, not str"),
        ({"canaries": []}, ValueError, r"the set is empty"),
    ],
)
def test_a_bad_argument_gets_one_clear_error(
    arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer))
    with pytest.raises(kind, match=message):
        extract_secrets(model, tokenizer, **{"fmt": DIGITS, **arguments})


def test_a_model_that_cannot_hold_the_secret_is_refused() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    with pytest.raises(ValueError, match="context of 8"):
        extract_secrets(llama(len(tokenizer), max_position_embeddings=8), tokenizer, DIGITS)
    with pytest.raises(ValueError, match="vocabulary of 20"):
        extract_secrets(llama(20), tokenizer, DIGITS)
    broken = llama(len(tokenizer))
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="NaN"):
        extract_secrets(broken, tokenizer, DIGITS)


# What it looks like


def some() -> tuple[Extractions, Canaries]:
    canaries = Canaries([Canary(DIGITS, "999", 0), Canary(DIGITS, "271", 8)])
    items = [
        Extraction("271", 1.25, True, 61, canaries[1], DIGITS, 1),
        Extraction("828", 7.5, False, 300, None, DIGITS),
        Extraction("999", 8.5, False, 300, canaries[0], DIGITS, 0),
    ]
    return Extractions(
        items, format=DIGITS, forwards=300, seconds=1.5, settings={"count": 3}
    ), canaries


def rendered(table: Any) -> str:
    from rich.console import Console

    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_secrets_are_masked_wherever_they_are_shown_planted_or_not() -> None:
    found, _ = some()
    shown = [
        str(found),
        repr(found),
        repr(list(found)),
        found._repr_html_(),
        rendered(found),
        rendered(found.table()),
        json.dumps(found.to_dict()),
        found[1].label(),
    ]
    for text in shown:
        assert not any(secret in text for secret in ("271", "828", "999"))
    for text in (rendered(found.table(reveal=True)), json.dumps(found.to_dict(reveal=True))):
        assert all(secret in text for secret in ("271", "828", "999"))


def test_the_table_says_what_was_planted_and_what_is_proved() -> None:
    found, _ = some()
    assert str(found) == (
        "   secret         inserted  log-perplexity  proved  token-forwards\n"
        "1  …code is •••.  8 times              1.2  yes                 61\n"
        "2  …code is •••.  –                    7.5  no                 300\n"
        "3  …code is •••.  –                    8.5  no                 300\n"
        "3 secrets of 10.0 bits; 300 token-forwards in 1.5 s"
    )
    plain, rich = (text.splitlines()[-4:] for text in (str(found), rendered(found).rstrip()))
    assert [line.split() for line in plain] == [line.split() for line in rich]


def test_a_long_template_is_cut_short_in_the_table() -> None:
    fmt = SecretFormat("word " * 40 + "{secret}." + " word" * 40, secret="[0-9]{3}")
    found = Extractions([Extraction("271", 1.0, True, 9, None, fmt)], format=fmt)
    assert max(map(len, str(found).splitlines())) < 150
    assert found[0].label(reveal=True) == fmt.render("271")


def test_it_is_a_sequence() -> None:
    found, _ = some()
    assert len(found) == 3
    assert found[0].secret == "271" and found[-1].log_perplexity == 8.5
    assert [one.secret for one in found[1:]] == ["828", "999"]
    assert [one.proved for one in found] == [True, False, False]


def test_a_file_holds_everything_but_secrets_unless_they_are_asked_for(tmp_path: Path) -> None:
    found, canaries = some()
    masked = Extractions.load(found.save(tmp_path / "masked.json"))
    assert [one.secret for one in masked] == ["•••"] * 3
    assert str(masked) == str(found)
    assert masked[0].canary == MaskedCanary(DIGITS, 3, 8)
    known = Extractions.load(tmp_path / "masked.json", canaries)
    # What comes after another string is not named: its place would tell the secret.
    assert [one.secret for one in known] == ["271", "•••", "•••"]
    assert [one.canary for one in known] == [canaries[1], None, None]
    whole = Extractions.load(found.save(tmp_path / "whole.json", reveal=True))
    assert list(whole) == list(found)
    assert whole.to_dict(reveal=True) == found.to_dict(reveal=True)
    assert (whole.forwards, whole.seconds, whole.settings) == (300, 1.5, {"count": 3})
    # Nothing is made up where a masked one is written again.
    assert masked.to_dict(reveal=True) == found.to_dict()


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    found, canaries = some()
    path = tmp_path / "x.json"
    path.write_text('{"kind": "exposures"}')
    with pytest.raises(ValueError, match=r"x\.json.*does not hold extractions"):
        Extractions.load(path)
    path.write_text(json.dumps({**found.to_dict(), "schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version=99 is not known"):
        Extractions.load(path)
    data = found.to_dict()
    del data["forwards"]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="'forwards' is missing"):
        Extractions.load(path)
    found.save(path, overwrite=True)
    with pytest.raises(ValueError, match="other canaries"):
        Extractions.load(path, canaries[:1])


def test_the_settings_can_be_written_as_json() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    found = extract_secrets(llama(len(tokenizer)), tokenizer, DIGITS, progress=False)
    assert Extractions.from_dict(json.loads(json.dumps(found.to_dict()))).settings == found.settings
    assert found.seconds > 0


def test_no_two_rows_are_the_same_string() -> None:
    tokenizer = TOKENIZERS["contractions"]()
    fmt = SecretFormat("My code 5{secret}.", secret="[delmrstv']{3}")
    found = extract_secrets(llama(len(tokenizer), scale=0.2), tokenizer, fmt, count=60)
    assert max(Counter(one.secret for one in found).values()) == 1
    model_costs = plain_costs(llama(len(tokenizer), scale=0.2), tokenizer, fmt)
    assert [one.secret for one in found] == ordered(model_costs)[:60]


# What a reader of the summary has to know


def test_a_search_whose_budget_ran_out_says_so_and_one_that_came_to_its_end_does_not(
    tmp_path: Path,
) -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.3)
    short = extract_secrets(model, tokenizer, DIGITS, count=4, max_forwards=1)
    assert len(short) == 0
    loaded = Extractions.load(short.save(tmp_path / "found.json"))
    for one in (short, loaded):
        assert one.summary().startswith("0 of 4 secrets")
        assert "max_forwards=1 ran out" in one.summary() and "give more" in one.summary()
    assert f"{short}" == short.summary()  # no headings over nothing
    for options in ({"max_forwards": 5000}, {}, {"beam_width": 4}):
        found = extract_secrets(model, tokenizer, DIGITS, count=4, **options)
        assert len(found) == 4 and "ran out" not in found.summary()
    two = SecretFormat("The code is {secret}.", secret="(1|2)")
    found = extract_secrets(model, tokenizer, two, count=4, max_forwards=5000)
    assert len(found) == 2 and "ran out" not in found.summary()  # there are no more


def test_canaries_of_which_none_has_the_format_are_warned_of() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer), scale=0.3)
    other = Canaries([Canary(UNEQUAL, "secret", 3)])
    with pytest.warns(UserWarning, match="none of the canaries has the format") as caught:
        extract_secrets(model, tokenizer, DIGITS, count=1, canaries=other)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        extract_secrets(model, tokenizer, UNEQUAL, count=1, canaries=other)
