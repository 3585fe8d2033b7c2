"""A model behind a completions endpoint is measured as if it were at hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from urllib3.util import retry

from hf_exposure import (
    Canaries,
    Canary,
    CompletionsScorer,
    Insertion,
    Scorer,
    SecretFormat,
    measure_exposure,
)
from hf_exposure.endpoints import completions as module
from hf_exposure.endpoints import server
from hf_exposure.exposure.measure import measure_scorer
from tests.cli.test_cli import fail, succeed
from tests.endpoint import DIALECTS, Endpoint, Refusal, Scored
from tests.selection import rest_slow
from tests.tiny import TOKENIZERS, llama

FORMAT = SecretFormat("the random number is {secret}.", secret="[0-9]{3}")
NO_BOS = ("freely_merged", "unigram", "characters")
SECRET = "sk-very-secret-0123"


@pytest.fixture(autouse=True)
def few_probes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "merges" not in request.node.name:  # there it takes all of them to find the cut
        monkeypatch.setattr(module, "_PROBES", 16)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    clock = SimpleNamespace(sleep=pauses.append, time=time.time, monotonic=lambda: sum(pauses))
    for one in (server, retry):
        monkeypatch.setattr(one, "time", clock)
    return pauses


MEMORIES: dict[str, dict[str, Scored]] = {name: {} for name in TOKENIZERS}


@contextmanager
def served(
    name: str = "digits_one_by_one", dialect: str = "openai", **options: Any
) -> Iterator[Endpoint]:
    tokenizer = TOKENIZERS[name]()
    model = llama(len(tokenizer))
    with Endpoint(model, tokenizer, dialect, memory=MEMORIES[name], **options) as endpoint:
        yield endpoint


def scorer_of(endpoint: Endpoint, **options: Any) -> CompletionsScorer:
    return CompletionsScorer(endpoint.url, "tiny", **options)


def true_bits(endpoint: Endpoint, text: str) -> list[float]:
    """The cost of each token of a text but the first, by one plain forward."""
    ids = endpoint.tokenizer(text)["input_ids"]
    with torch.no_grad():
        logits = endpoint.model(input_ids=torch.tensor([ids])).logits[0].double()
    logs = torch.log_softmax(logits, -1)
    return [-float(logs[i, token]) / math.log(2) for i, token in enumerate(ids[1:])]


def total(endpoint: Endpoint, text: str) -> float:
    return math.fsum(true_bits(endpoint, text))


# The same figures as at hand


@pytest.mark.parametrize(
    ("name", "dialect"),
    rest_slow(
        (
            (name, dialect)
            for name in TOKENIZERS
            for dialect in DIALECTS
            # refused: see test_log_probabilities_of_another_place_are_refused
            if dialect != "llama-cpp" or name not in NO_BOS
        ),
        list(zip(TOKENIZERS, DIALECTS, strict=False)),
    ),
)
def test_exposures_equal_those_of_the_model_at_hand(name: str, dialect: str) -> None:
    canaries = Canaries.generate(FORMAT, [0, 1, 4], 2, seed=0)
    with served(name, dialect) as endpoint:
        here = measure_exposure(
            endpoint.model, endpoint.tokenizer, canaries, method="sampling", samples=60
        )
        there = measure_exposure(scorer_of(endpoint), None, canaries, "sampling", samples=60)
    assert [e.log_perplexity for e in there] == pytest.approx(
        [e.log_perplexity for e in here], abs=1e-4
    )
    assert [e.bits for e in there] == [e.bits for e in here]
    assert [(e.low, e.high) for e in there] == [(e.low, e.high) for e in here]
    assert there.settings["scorer"].startswith("CompletionsScorer(")


@pytest.mark.parametrize("dialect", ["openai", "vllm-echo", "vllm"])
def test_skewnorm_equals_that_of_the_model_at_hand(dialect: str) -> None:
    canaries = Canaries.generate(FORMAT, [0, 2], 2, seed=1)
    with served("digits_in_threes", dialect) as endpoint:
        here = measure_exposure(
            endpoint.model, endpoint.tokenizer, canaries, method="skewnorm", samples=60
        )
        there = measure_exposure(scorer_of(endpoint), None, canaries, "skewnorm", samples=60)
    assert [e.bits for e in there] == pytest.approx([e.bits for e in here], abs=1e-3)


@pytest.mark.slow
def test_a_memorized_canary_has_a_certificate_that_holds() -> None:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    model = llama(len(tokenizer))
    canaries = Canaries([Canary(FORMAT, "281", 8), Canary(FORMAT, "904", 0)])
    batch = torch.tensor([tokenizer(canaries[0].text)["input_ids"]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(25):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    exact = measure_exposure(model.eval(), tokenizer, canaries, method="exact")
    with Endpoint(model, tokenizer, "vllm-echo") as endpoint:
        found, loose = (
            measure_exposure(
                scorer_of(endpoint, whole_text=whole), None, canaries, "sampling", samples=150
            )
            for whole in (False, True)
        )
    assert exact[0].bits == pytest.approx(FORMAT.bits)
    assert 5 < found[0].certified <= exact[0].bits
    assert found[0].certified == pytest.approx(FORMAT.bits - exact[0].log_perplexity, abs=1e-4)
    assert [e.bits for e in loose] == [e.bits for e in found]
    assert loose[0].certified <= found[0].certified


# Which tokens count


@pytest.mark.parametrize(
    "name", rest_slow(["freely_merged", "digits_in_threes", "sentencepiece_bpe"], 1)
)
@pytest.mark.parametrize(
    ("template", "secret"),
    [
        ("the random number is 4{secret}.", "[0-9]{3}"),  # digits merge with the template's
        ("the key is {secret}.", "[a-z ]{3}"),  # the space merges with some letters
        ("the key is{secret} and", "( [a-z]{2}|[0-9]{3})"),
        ("my code is th{secret}.", "[aeiou]{2}"),
        ("in this {secret}", "file with|file when|key of the"),
    ],
)
def test_merges_across_the_secrets_start_move_no_cost_between_texts(
    name: str, template: str, secret: str
) -> None:
    fmt = SecretFormat(template, secret)
    secrets = list(dict.fromkeys(fmt.sample(25, seed=5)))
    with served(name, "vllm-echo") as endpoint:
        scorer = scorer_of(endpoint)
        costs = scorer.log_perplexities(fmt, secrets)
        later = scorer.log_perplexities(fmt, secrets[::-1])[::-1]
        truth = np.array([total(endpoint, fmt.render(one)) for one in secrets])
        whole = scorer_of(endpoint, whole_text=True).log_perplexities(fmt, secrets)
    left_out = truth - costs
    assert np.ptp(left_out) < 1e-4, "the same part of every text is left out"
    assert left_out.min() > 0
    assert later == pytest.approx(costs, abs=1e-9)
    assert np.ptp(truth - whole) < 1e-4 and (whole > costs - 1e-6).all()


@pytest.mark.parametrize("name", ["freely_merged", "digits_in_threes"])
def test_what_is_left_out_does_not_depend_on_which_secrets_came_first(name: str) -> None:
    fmt = SecretFormat("the key is {secret}.", secret="[a-z]{3}|[0-9]{3}")
    secrets = ["281", "904", "the", "and", "abc", "qxz"]  # with a space of their own or with ours
    with served(name) as endpoint:
        together = scorer_of(endpoint).log_perplexities(fmt, secrets)
        scorer = scorer_of(endpoint)
        apart = [float(scorer.log_perplexities(fmt, [one])[0]) for one in secrets]
    assert apart == pytest.approx(together.tolist(), abs=1e-9)


@pytest.mark.parametrize("dialect", rest_slow(["openai", "vllm-echo", "vllm", "llama-cpp"], 2))
@pytest.mark.parametrize(
    ("template", "secret"),
    [
        ("the key: {secret}.", "[äöü€你好]{3}"),
        ("schlüssel 你好: {secret}!", "[0-9]{3}"),
        ("your key ü{secret}", "[äöü]{3}"),
    ],
)
def test_characters_of_several_bytes_are_counted_whole(
    dialect: str, template: str, secret: str
) -> None:
    fmt = SecretFormat(template, secret)
    secrets = list(dict.fromkeys(fmt.sample(12, seed=2)))
    for name in ("digits_one_by_one", "sentencepiece_bpe"):
        with served(name, dialect, byte_offsets=dialect == "openai") as endpoint:
            costs = scorer_of(endpoint).log_perplexities(fmt, secrets)
            truth = np.array([total(endpoint, fmt.render(one)) for one in secrets])
        assert np.ptp(truth - costs) < 1e-4
        assert (costs > 0).all()


@pytest.mark.parametrize("byte_offsets", [False, True])
def test_offsets_are_read_where_tokens_are_written_otherwise(byte_offsets: bool) -> None:
    def numbers_only(answer: dict[str, Any]) -> dict[str, Any]:
        for choice in answer["choices"]:
            found = choice["logprobs"]
            found["tokens"] = [f"token:{zlib.crc32(token.encode())}" for token in found["tokens"]]
            found["top_logprobs"] = None
        return answer

    fmt = SecretFormat("über the number {secret}.", secret="[0-9]{3}")
    secrets = ["281", "904", "112"]
    with served(byte_offsets=byte_offsets, change=numbers_only) as endpoint:
        costs = scorer_of(endpoint).log_perplexities(fmt, secrets)
        ends = [true_bits(endpoint, fmt.render(one))[-4:] for one in secrets]
    assert costs == pytest.approx([math.fsum(one) for one in ends], abs=1e-4)


def test_text_before_the_template_is_sent_and_not_counted() -> None:
    with served() as endpoint:
        costs = scorer_of(endpoint).log_perplexities(FORMAT, ["281"], "we know: ")
        sent = [text for body in endpoint.bodies for text in body["prompt"]]
        assert "we know: the random number is 281." in sent
        truth = true_bits(endpoint, "we know: the random number is 281.")
    assert costs[0] == pytest.approx(math.fsum(truth[-4:]), abs=1e-4)


@pytest.mark.parametrize("dialect", ["openai", "vllm"])
def test_a_secret_at_the_very_start_is_refused(dialect: str) -> None:
    fmt = SecretFormat("{secret} is my code.", secret="[0-9]{3}")
    with served("characters", dialect) as endpoint:
        with pytest.raises(ValueError, match="put more text before it"):
            scorer_of(endpoint).log_perplexities(fmt, ["281", "904"])
        with pytest.raises(ValueError, match="put more text before it"):
            scorer_of(endpoint, whole_text=True).log_perplexities(fmt, ["281", "904"])


def test_a_secret_behind_a_begin_of_text_token_has_all_its_cost() -> None:
    fmt = SecretFormat("{secret} is my code.", secret="[0-9]{3}")
    with served(dialect="vllm-echo") as endpoint:
        costs = scorer_of(endpoint).log_perplexities(fmt, ["281"])
        assert costs[0] == pytest.approx(total(endpoint, "281 is my code."), abs=1e-4)


def test_a_text_that_begins_with_other_tokens_than_all_tried_is_refused() -> None:
    odd = "904"

    def split(answer: dict[str, Any]) -> dict[str, Any]:
        for choice in answer["choices"]:
            found = choice["logprobs"]
            if odd in choice["text"]:
                place = next(i for i, token in enumerate(found["tokens"]) if i and len(token) > 2)
                word = found["tokens"][place]
                found["tokens"][place : place + 1] = [word[:2], word[2:]]
                found["token_logprobs"][place : place + 1] = [-1.0, -1.0]
                found["top_logprobs"] = None
        return answer

    fmt = SecretFormat("the number is {secret}.", secret="[0-9]{3}")
    tried = module._probes(fmt)
    assert odd not in tried
    with served(change=split) as endpoint:
        scorer = scorer_of(endpoint)
        scorer.log_perplexities(fmt, [tried[0]])
        with pytest.raises(ValueError, match="whole_text=True"):
            scorer.log_perplexities(fmt, [odd])
        whole = scorer_of(endpoint, whole_text=True).log_perplexities(fmt, [tried[0], odd])
        assert np.isfinite(whole).all()


@pytest.mark.parametrize("name", NO_BOS)
def test_log_probabilities_of_another_place_are_refused(name: str) -> None:
    with (
        served(name, "llama-cpp") as endpoint,
        pytest.raises(ValueError, match="of another place"),
    ):
        scorer_of(endpoint).log_perplexities(FORMAT, ["281"])


@pytest.mark.parametrize("name", NO_BOS)
def test_parts_of_characters_in_the_template_do_not_hide_another_place(name: str) -> None:
    fmt = SecretFormat("日 random number is {secret}.", secret="[0-9]{3}")
    with (
        served(name, "llama-cpp") as endpoint,
        pytest.raises(ValueError, match="of another place"),
    ):
        scorer_of(endpoint).log_perplexities(fmt, ["281"])


def without_tops(answer: dict[str, Any]) -> dict[str, Any]:
    for choice in answer["choices"]:
        choice["logprobs"]["top_logprobs"] = None
    return answer


def test_probabilities_that_add_up_to_more_than_one_are_of_another_place() -> None:
    def likely(answer: dict[str, Any]) -> dict[str, Any]:
        for choice in without_tops(answer)["choices"]:
            values = choice["logprobs"]["token_logprobs"]
            values[1:] = [-0.5] * (len(values) - 1)
        return answer

    with served(change=likely) as endpoint, pytest.raises(ValueError, match="of another place"):
        scorer_of(endpoint).log_perplexities(FORMAT, ["281"])


@pytest.mark.parametrize("template", ["the random number is {secret}.", "日 is {secret}."])
def test_places_are_checked_by_written_tokens_where_no_likeliest_is_named(template: str) -> None:
    fmt = SecretFormat(template, secret="[0-9]{3}")
    with served(change=without_tops) as endpoint, warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        costs = scorer_of(endpoint).log_perplexities(fmt, ["281"])
        truth = math.fsum(true_bits(endpoint, fmt.render("281"))[-4:])
    assert costs == pytest.approx([truth], abs=1e-4)


@pytest.mark.parametrize("name", NO_BOS)
@pytest.mark.parametrize("template", ["the random number is {secret}.", "日 is {secret}."])
def test_another_place_is_refused_where_no_likeliest_is_named(name: str, template: str) -> None:
    fmt = SecretFormat(template, secret="[0-9]{3}")
    with served(name, "llama-cpp", change=without_tops) as endpoint:
        scorer = scorer_of(endpoint)
        said = wrong(ValueError, lambda: scorer.log_perplexities(fmt, ["281"]))
    assert "of another place" in said or "cannot be checked" in said


def test_what_cannot_be_checked_is_refused() -> None:
    def silent(answer: dict[str, Any]) -> dict[str, Any]:
        for choice in without_tops(answer)["choices"]:
            choice["text"] = ""  # nor what it has written
        return answer

    with served(change=silent) as endpoint:
        scorer = scorer_of(endpoint)
        assert "cannot be checked" in wrong(
            ValueError, lambda: scorer.log_perplexities(FORMAT, ["281"])
        )


# Requests


def test_figures_are_the_same_whatever_the_batch_size_and_the_workers() -> None:
    secrets = FORMAT.sample(23, seed=3)
    found = []
    with served() as endpoint:
        for batch_size, workers in ((1, 1), (7, 3), (64, 8)):
            scorer = scorer_of(endpoint, batch_size=batch_size, workers=workers)
            found.append(scorer.log_perplexities(FORMAT, secrets).tolist())
        longest = max(
            len(body["prompt"]) for body in endpoint.bodies if isinstance(body["prompt"], list)
        )
        assert longest == 2 * module._PROBES + 22, "all but the very first text"
    assert found[0] == found[1] == found[2]


def test_requests_are_under_way_at_once_up_to_the_number_of_workers() -> None:
    with served() as endpoint:
        endpoint.delay = 0.1  # so long that others come meanwhile
        scorer_of(endpoint, batch_size=8, workers=3).log_perplexities(FORMAT, ["281"])
        assert 1 < endpoint.most_at_once <= 3


def test_choices_in_another_order_are_sorted() -> None:
    def shuffle(answer: dict[str, Any]) -> dict[str, Any]:
        return {**answer, "choices": answer["choices"][::-1]}

    secrets = FORMAT.sample(5, seed=3)
    with served() as endpoint:
        plain = scorer_of(endpoint).log_perplexities(FORMAT, secrets)
    with served(change=shuffle) as endpoint:
        assert scorer_of(endpoint).log_perplexities(FORMAT, secrets) == pytest.approx(plain)


def test_texts_are_asked_again_each_time() -> None:
    with served() as endpoint:
        scorer = scorer_of(endpoint)
        scorer.log_perplexities(FORMAT, ["281"])
        before = len(endpoint.bodies)
        scorer.log_perplexities(FORMAT, ["281", "281"])
        assert [body["prompt"] for body in endpoint.bodies[before:]] == [
            ["the random number is 281."] * 2
        ]
        assert scorer.log_perplexities(FORMAT, []).shape == (0,)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_forwards_are_the_tokens_that_the_server_counted(dialect: str) -> None:
    with served(dialect=dialect) as endpoint:
        scorer = scorer_of(endpoint)
        scorer.log_perplexities(FORMAT, ["281"])
        first = scorer.forwards
        scorer.log_perplexities(FORMAT, ["281", "904"])
        length = len(endpoint.tokenizer("the random number is 281.")["input_ids"])
        assert scorer.forwards - first == 2 * length
        assert first == (2 * module._PROBES + 1) * length


def test_forwards_are_counted_here_where_the_server_does_not() -> None:
    def silent(answer: dict[str, Any]) -> dict[str, Any]:
        return {"choices": answer["choices"]}

    with served(dialect="vllm-echo", change=silent) as endpoint:
        scorer = scorer_of(endpoint)
        scorer.log_perplexities(FORMAT, ["281"])
        length = len(endpoint.tokenizer("the random number is 281.")["input_ids"])
        assert scorer.forwards == (2 * module._PROBES + 1) * length


def test_more_fields_are_sent_with_every_request() -> None:
    with served() as endpoint:
        scorer = scorer_of(endpoint, extra_body={"add_special_tokens": False, "temperature": 1})
        scorer.log_perplexities(FORMAT, ["281"])
        assert all(body["add_special_tokens"] is False for body in endpoint.bodies)
        assert all(body["temperature"] == 1 for body in endpoint.bodies)
        assert all(body["max_tokens"] == 1 for body in endpoint.bodies)


# What goes wrong


def wrong(kind: type[Exception], act: Callable[[], object], *hidden: str) -> str:
    """What an error says: one line, and nothing of what is to be hidden."""
    with pytest.raises(kind) as caught:
        act()
    said = str(caught.value)
    assert "\n" not in said
    for one in (SECRET, *hidden):
        assert one not in said
    return said


def test_a_server_that_is_not_there_is_named() -> None:
    with served() as endpoint:
        url = endpoint.url
    scorer = CompletionsScorer(url, "tiny", api_key=SECRET)
    said = wrong(ConnectionError, lambda: scorer.log_perplexities(FORMAT, ["281"]))
    assert url in said and "is the server running?" in said


def test_a_wrong_key_is_said_without_showing_it() -> None:
    with served(key="another") as endpoint:
        scorer = scorer_of(endpoint, api_key=SECRET)
        said = wrong(PermissionError, lambda: scorer.log_perplexities(FORMAT, ["281"]))
        assert "401" in said and "***" in said
    assert SECRET not in repr(scorer) and scorer.url in repr(scorer)


def test_a_right_key_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password other\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with served(key=SECRET) as endpoint:
        assert scorer_of(endpoint, api_key=SECRET).log_perplexities(FORMAT, ["281"])[0] > 0


def test_an_unknown_model_is_said_with_those_that_are_there() -> None:
    with served() as endpoint:
        scorer = CompletionsScorer(endpoint.url, "other")
        said = wrong(ValueError, lambda: scorer.log_perplexities(FORMAT, ["281"]))
        assert "'other'" in said and "it offers 'tiny'" in said


def test_an_address_without_an_endpoint_is_said() -> None:
    with served() as endpoint:
        scorer = CompletionsScorer(endpoint.url.removesuffix("/v1"), "tiny")
        said = wrong(ValueError, lambda: scorer.log_perplexities(FORMAT, ["281"]))
        assert "ends in '/v1'" in said


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_passing_faults_are_tried_again_with_growing_pauses(
    status: int, no_pauses: list[float]
) -> None:
    with served() as endpoint:
        scorer = scorer_of(endpoint, api_key=SECRET)
        plain = scorer.log_perplexities(FORMAT, ["281"])
        endpoint.faults = [Refusal(status, "busy")] * 3
        assert scorer.log_perplexities(FORMAT, ["281"]) == pytest.approx(plain)
        assert no_pauses == [1.0, 2.0]
        scorer = scorer_of(endpoint, api_key=SECRET, patience=0)
        endpoint.faults = [Refusal(status, f"busy with {SECRET}")] * 99
        said = wrong(ConnectionError, lambda: scorer.log_perplexities(FORMAT, ["281"]))
        assert str(status) in said and "4 times" in said


def test_a_fault_of_the_first_request_is_tried_again_too() -> None:
    with served() as endpoint:
        endpoint.faults = [Refusal(500, "warming up")] * 3
        assert scorer_of(endpoint).log_perplexities(FORMAT, ["281"])[0] > 0


def test_the_pause_that_the_server_asks_for_is_kept(no_pauses: list[float]) -> None:
    with served() as endpoint:
        endpoint.faults = [
            Refusal(429, "slow down", {"Retry-After": "7"}),
            Refusal(503, "later", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        ]
        scorer = scorer_of(endpoint)
        scorer.log_perplexities(FORMAT, ["281"])
        assert no_pauses == [7.0, 1.0]
        endpoint.faults = [Refusal(429, "tomorrow", {"Retry-After": "86400"})]
        said = wrong(ConnectionError, lambda: scorer.log_perplexities(FORMAT, ["281"]))
        assert "wait too long (86400)" in said
        assert len(no_pauses) == 2


def test_a_server_that_is_too_slow_is_said() -> None:
    with served() as endpoint:
        endpoint.delay = 30  # much longer than any busy machine keeps the client waiting
        scorer = scorer_of(endpoint, timeout=0.05)
        said = wrong(ConnectionError, lambda: scorer.log_perplexities(FORMAT, ["281"]))
        assert "within 0.05 s" in said and "raise timeout" in said


def test_a_server_that_ignores_echo_is_said() -> None:
    def ignore(answer: dict[str, Any]) -> dict[str, Any]:
        for choice in answer["choices"]:
            found = choice["logprobs"]
            choice["logprobs"] = {name: values[-1:] for name, values in found.items()}
        return answer

    with served(change=ignore) as endpoint:
        scorer = scorer_of(endpoint)
        said = wrong(ValueError, lambda: scorer.log_perplexities(FORMAT, ["281"]))
        assert "ignores echo" in said and "prompt_logprobs" in said


def change_logprobs(**new: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(answer: dict[str, Any]) -> dict[str, Any]:
        for choice in answer["choices"]:
            if choice.get("logprobs"):
                choice["logprobs"] = choice["logprobs"] | new
                values = list(choice["logprobs"]["token_logprobs"] or [])
                if "last" in new and values:
                    values[-3] = new["last"]
                    choice["logprobs"]["token_logprobs"] = values
        return answer

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda answer: {**answer, "choices": [{"text": "x", "index": 0}]}, "no log-probabilities"),
        (change_logprobs(last=math.nan), "NaN"),
        (change_logprobs(last=None), "gives no log-probability for token"),
        (change_logprobs(last=1.0), "above 0"),
        (change_logprobs(tokens=["the"]), "1 tokens with"),
        (lambda answer: {"object": "list"}, "without choices"),
        (lambda answer: [], "without choices"),
    ],
)
def test_answers_that_cannot_be_used_are_said(
    change: Callable[[dict[str, Any]], dict[str, Any]], said: str
) -> None:
    with served(change=change) as endpoint:
        scorer = scorer_of(endpoint)
        assert said in wrong(ValueError, lambda: scorer.log_perplexities(FORMAT, ["281"]))


@pytest.mark.parametrize("data", [b"<html>hello</html>", b'{"choices": [', b"\xff\xfe"])
def test_an_answer_that_is_not_json_is_said(data: bytes) -> None:
    with served() as endpoint:
        endpoint.faults = [data]
        scorer = scorer_of(endpoint)
        assert "not JSON" in wrong(ValueError, lambda: scorer.log_perplexities(FORMAT, ["281"]))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_text_longer_than_the_context_is_said_without_the_secret(dialect: str) -> None:
    fmt = SecretFormat("the random number is {secret}.", secret="[0-9]{9}")
    with served(dialect=dialect, context=10) as endpoint:
        scorer = scorer_of(endpoint)
        said = wrong(ValueError, lambda: scorer.log_perplexities(fmt, ["281265017"]), "281265017")
        assert "maximum context length is 10 tokens" in said
        assert "•••••••••" in said


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_that_the_server_has_cut_is_refused(side: str) -> None:
    def cut(answer: dict[str, Any]) -> dict[str, Any]:
        part = slice(3, None) if side == "left" else slice(0, 6)
        for choice in answer["choices"]:
            found = {name: values[part] for name, values in choice["logprobs"].items()}
            first = found["text_offset"][0]
            found["text_offset"] = [at - first for at in found["text_offset"]]
            choice["logprobs"] = found
        return answer

    with served(change=cut) as endpoint:
        scorer = scorer_of(endpoint)
        said = wrong(ValueError, lambda: scorer.log_perplexities(FORMAT, ["281"]))
        assert "do not spell" in said and "context" in said


def test_a_probability_of_zero_is_an_infinite_log_perplexity() -> None:
    with served(change=change_logprobs(last=-9999.0)) as endpoint:
        canaries = Canaries([Canary(FORMAT, "281", 1)])
        with np.errstate(invalid="ignore"):
            found = measure_exposure(scorer_of(endpoint), None, canaries, "sampling", samples=20)
    assert found[0].log_perplexity == math.inf
    assert found[0].bits == found[0].certified == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"base_url": f"ftp://me:{SECRET}@host"}, "base_url"),
        ({"base_url": f"http://host/v1?key={SECRET}"}, "base_url"),
        ({"api_key": f"{SECRET}\n"}, "api_key"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"workers": 1.5}, "workers must be a whole number, not float"),
        ({"retries": -1}, "retries=-1"),
        ({"timeout": 0}, "timeout=0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], said: str) -> None:
    options = {"base_url": "http://localhost:1/v1", **arguments}
    error = TypeError if "not float" in said else ValueError
    assert said in wrong(error, lambda: CompletionsScorer(model="tiny", **options))


def test_a_password_in_the_address_is_not_shown() -> None:
    scorer = CompletionsScorer(f"http://me:{SECRET}@127.0.0.1:9/v1/completions/", "tiny")
    assert repr(scorer) == "CompletionsScorer('http://127.0.0.1:9/v1', 'tiny')"
    wrong(ConnectionError, lambda: scorer.log_perplexities(FORMAT, ["281"]))


# Any scorer


class Lengths:
    """A user's own: the log-perplexity of a number is what it is worth."""

    def __init__(self) -> None:
        self.forwards = 0

    def log_perplexities(
        self, fmt: SecretFormat, secrets: Sequence[str], before: str = ""
    ) -> np.ndarray:
        self.forwards += len(secrets)
        return np.array([float(secret) for secret in secrets])


def test_a_scorer_of_ones_own_is_measured() -> None:
    canaries = Canaries([Canary(FORMAT, "007", 4), Canary(FORMAT, "500", 0)])
    scorer = Lengths()
    assert isinstance(scorer, Scorer) and isinstance(CompletionsScorer("http://a/v1", "b"), Scorer)
    found = measure_exposure(scorer, None, canaries, method="sampling", samples=1000)
    # "007" is an inserted canary, and so left out of the other's rank.
    assert [e.rank for e in found] == [8.0, 500.0]
    assert found.forwards == scorer.forwards == 2 + 2 + 999
    assert found[0].certified == pytest.approx(FORMAT.bits - 3), "the whole space was asked for"
    few = measure_exposure(scorer, None, canaries, method="sampling", samples=100)
    assert few[0].certified == pytest.approx(FORMAT.bits - 7)


@pytest.mark.parametrize("method", ["auto", "exact"])
def test_methods_that_need_the_model_at_hand_are_refused(method: str) -> None:
    canaries = Canaries([Canary(FORMAT, "007", 4)])
    scorer = Lengths()
    with pytest.raises(ValueError, match="use method='sampling' or 'skewnorm'"):
        measure_exposure(scorer, None, canaries, method=method)
    assert scorer.forwards == 0


def test_canaries_in_conversations_need_the_tokenizer_and_then_its_template() -> None:
    insertion = Insertion("rows", chat=True, request="Tell me.")
    canaries = Canaries([Canary(FORMAT, "281", 4)], insertions=[insertion])
    with served() as endpoint:
        scorer = scorer_of(endpoint)
        with pytest.raises(ValueError, match="give the tokenizer"):
            measure_exposure(scorer, None, canaries, method="sampling")
        tokenizer = TOKENIZERS["digits_one_by_one"]()
        tokenizer.chat_template = (
            "{% for one in messages %}{{ one.role }}: {{ one.content }}\n{% endfor %}"
        )
        try:
            measure_exposure(scorer, tokenizer, canaries, method="sampling", samples=20)
        finally:
            tokenizer.chat_template = None
        sent = endpoint.bodies[-1]["prompt"][0]
    assert sent.startswith("user: Tell me.\nassistant: the random number is ")


def test_the_module_needs_no_torch() -> None:
    code = "import sys; from hf_exposure import CompletionsScorer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The command line


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    canaries = Canaries.generate(FORMAT, repetitions=[0, 4], per_repetition=2)
    return canaries.save(tmp_path / "canaries.json")


def test_the_command_line_measures_at_an_endpoint(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", f"{SECRET}\n")
    with served(key=SECRET) as endpoint:
        shown = succeed(
            "measure",
            "--endpoint",
            endpoint.url,
            "--endpoint-model",
            "tiny",
            "--api-key-env",
            "MY_KEY",
            "--canaries",
            manifest,
            "--method",
            "sampling",
            "--samples",
            "50",
            "--json",
        )
        here = measure_exposure(
            endpoint.model, endpoint.tokenizer, Canaries.load(manifest), "sampling", samples=50
        )
    data = json.loads(shown)
    assert [e["bits"] for e in data["exposures"]] == [e.bits for e in here.coarse()]
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--endpoint", "http://a/v1", "--endpoint-model", "b", "--model", "c"], "either --model"),
        ([], "either --model"),
        (["--endpoint", "http://a/v1"], "give --endpoint-model"),
        (
            ["--endpoint", "http://a/v1", "--endpoint-model", "b", "--api-key-env", "NOT_SET"],
            "has no 'NOT_SET'",
        ),
        (["--endpoint", "a", "--endpoint-model", "b"], "base_url is no address"),
        (
            ["--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "b"],
            "is the server running?",
        ),
        (
            [
                "--endpoint",
                "http://127.0.0.1:9/v1",
                "--endpoint-model",
                "b",
                "--method",
                "sampling",
            ],
            "is the server running?",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_line(
    arguments: list[str],
    said: str,
    manifest: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    shown = fail(capsys, monkeypatch, "measure", *arguments, "--canaries", manifest)
    assert said in shown.replace("│ ", "")


def test_the_scorer_is_measured_by_the_function_for_scorers() -> None:
    from hf_exposure.exposure.planning import Settings

    canaries = Canaries([Canary(FORMAT, "007", 4)])
    settings = Settings(method="sampling", samples=100)
    direct = measure_scorer(Lengths(), None, canaries, settings)
    assert direct[0].bits == measure_exposure(Lengths(), None, canaries, "sampling", 100)[0].bits
