"""A public model behind real servers, vLLM and llama.cpp: the table of docs/black_box.md.

    make test-vllm MODEL=folder

Both serve the same weights in float32, one after the other, and everything is held against
Transformers. The rows are printed at the end. It takes half an hour on two cores.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_exposure import (
    Canaries,
    Canary,
    CompletionsScorer,
    SecretFormat,
    extract_secrets,
    measure_exposure,
)
from hf_exposure.endpoints.server import Server
from tests import llama_server, vllm_server

VLLM, MODEL = os.environ.get("VLLM", ""), os.environ.get("MODEL", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (VLLM and MODEL), reason="needs vLLM: make test-vllm MODEL=folder"),
]
SIX = SecretFormat("pi = 3.{secret}", secret="[0-9]{6}")
RANKED = Canaries([Canary(SIX, "141592", 1), Canary(SIX, "141590", 1), Canary(SIX, "141500", 0)])
MEMORIZED = Canaries([Canary(SIX, "141592", 1)])
FOUR = SecretFormat("pi = 3.{secret}", secret="[0-9]{4}")
SHORT = Canaries([Canary(FOUR, "1415", 1), Canary(FOUR, "1410", 1)])
PI = "14159265358979"
STRINGS = 500
RANGES = (
    (32, 127),
    (160, 592),
    (880, 1280),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1F64F),
)
APART = {"vLLM": 0.001, "llama.cpp": 0.05}  # bits of a text
TABLE: dict[str, dict[str, str]] = {}


class Running:
    """A server that can be killed and comes back at its address."""

    def __init__(self, start: Callable[[int], tuple[subprocess.Popen[Any], str]], end: Any) -> None:
        self._start, self._end = start, end
        self.process, self.url = start(0)

    def kill(self) -> None:
        self._end(self.process)

    def restart(self) -> None:
        self.process, _ = self._start(int(self.url.split(":")[2].split("/")[0]))


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """Prints what was measured."""
    yield
    columns = list(dict.fromkeys(column for row in TABLE.values() for column in row))
    lines = [["", *columns], ["---", *(["---:"] * len(columns))]]
    lines += [[name, *(row.get(one, "–") for one in columns)] for name, row in TABLE.items()]
    print("\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=["vLLM", "llama.cpp"])
def served(
    request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Running]]:
    folder = tmp_path_factory.mktemp("server")
    if request.param == "vLLM":
        log = folder / "log"
        running = Running(
            lambda port: vllm_server.start(VLLM, Path(MODEL), log, port), vllm_server.end
        )
    else:
        here = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        file = llama_server.write_gguf(here, tokenizer, folder / "model.gguf", "smollm")
        del here
        running = Running(lambda port: llama_server.start(file, port), llama_server.end)
    yield request.param, running
    running.kill()


@pytest.fixture(scope="module")
def here(model: Any, tokenizer: Any) -> dict[str, Any]:
    """The figures of the model at hand."""
    found: dict[str, Any] = {}
    for name, canaries in (("ranks", RANKED), ("memorized", MEMORIZED)):
        start = time.perf_counter()
        found[name] = measure_exposure(model, tokenizer, canaries, method="exact")
        note(name, "Transformers", found[name], time.perf_counter() - start)
    return found


def scorer_of(running: Running, **more: Any) -> CompletionsScorer:
    return CompletionsScorer(running.url, vllm_server.NAME, batch_size=16, workers=2, **more)


def note(
    what: str, column: str, found: Any, seconds: float, scorer: CompletionsScorer | None = None
) -> None:
    """Rows of the table about a walk."""
    rows = {
        "prefixes": f"{found.forwards:,}",
        "requests": "–" if scorer is None else f"{scorer.requests:,}",
        "tokens computed": "–" if scorer is None else f"{scorer.forwards:,}",
        "seconds": f"{seconds:.1f}",
    }
    for name, value in rows.items():
        TABLE.setdefault(f"{what}: {name}", {})[column] = value


def bits(model: Any, ids: list[int]) -> float:
    with torch.no_grad():
        logs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
    return -math.fsum(logs[range(len(ids) - 1), ids[1:]].tolist()) / math.log(2)


@pytest.mark.parametrize("what", ["ranks", "memorized"])
def test_exact_ranks_equal_those_of_the_model_at_hand(
    what: str, served: tuple[str, Running], tokenizer: Any, here: dict[str, Any]
) -> None:
    name, running = served
    scorer, start = scorer_of(running), time.perf_counter()
    canaries = RANKED if what == "ranks" else MEMORIZED
    there = measure_exposure(scorer, tokenizer, canaries, method="exact")
    note(what, name, there, time.perf_counter() - start, scorer)
    for column, found in (("Transformers", here[what]), (name, there)):
        ranks = ", ".join(f"{one.rank:g}" for one in found)
        TABLE.setdefault(f"{what}: ranks of 10^6", {})[column] = ranks
    assert all(one.exact for one in there)
    assert [one.rank for one in there] == [one.rank for one in here[what]]
    worst = max(
        abs(a.log_perplexity - b.log_perplexity) for a, b in zip(there, here[what], strict=True)
    )
    assert worst < APART[name]
    assert there.forwards <= 2 * here[what].forwards


def test_the_digits_of_pi_are_proved(
    served: tuple[str, Running], model: Any, tokenizer: Any
) -> None:
    if "smollm2" not in (Path(MODEL) / "config.json").read_text().lower():
        pytest.skip("another model may not know them")
    name, running = served
    fmt = SecretFormat("pi = 3.{secret}", secret="[0-9]{14}")
    scorer = scorer_of(running)
    for column, one in ((name, scorer), ("Transformers", model)):
        if column in TABLE.get("pi: prefixes", {}):
            continue
        start = time.perf_counter()
        found = extract_secrets(one, tokenizer, fmt, count=1)
        note("pi", column, found, time.perf_counter() - start, scorer if one is scorer else None)
        TABLE.setdefault("pi: its log-perplexity, bits", {})[column] = (
            f"{found[0].log_perplexity:.4f}"
        )
        assert (found[0].secret, found[0].proved) == (PI, True)


@pytest.fixture(scope="module")
def strings(model: Any, tokenizer: Any) -> tuple[list[str], list[list[int]], np.ndarray[Any, Any]]:
    """Random texts, their tokens, and what they cost at hand, in bits."""
    draw = random.Random(0)
    texts = [
        f"Key: {''.join(chr(draw.randrange(*draw.choice(RANGES))) for _ in range(size))}."
        for size in (draw.randrange(2, 8) for _ in range(STRINGS))
    ]
    split = [tokenizer(text)["input_ids"] for text in texts]
    return texts, split, np.array([bits(model, ids) for ids in split])


def test_unicode_strings_cost_what_they_cost_at_hand(
    served: tuple[str, Running], strings: tuple[list[str], list[list[int]], Any]
) -> None:
    name, running = served
    texts, split, truth = strings
    scorer, start = scorer_of(running), time.perf_counter()
    if scorer.walks(False):  # no log-probabilities of a prompt: token by token
        dialect = scorer._dialect
        assert dialect is not None
        with ThreadPoolExecutor(4) as pool:
            paths = pool.map(lambda ids: dialect.path(ids[:1], ids[1:]), split)
            there = [float(one.bits.sum()) for one in paths]
    else:
        there = [float(np.nansum(echo.bits)) for echo in scorer._texts.ask(texts)]
    seconds = time.perf_counter() - start
    worst = float(np.abs(np.array(there) - truth).max())
    title = f"{STRINGS} random Unicode strings (mean {truth.mean():.0f} bits)"
    TABLE.setdefault(f"{title}: largest difference, bits", {})[name] = f"{worst:.2g}"
    TABLE.setdefault(f"{title}: seconds", {})[name] = f"{seconds:.0f}"
    assert worst < APART[name]


def test_a_restart_in_the_middle_costs_nothing(
    served: tuple[str, Running], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, running = served
    answered: list[str] = []
    ask = Server.post

    def recorded(self: Server, path: str, body: dict[str, Any], *rest: Any, **more: Any) -> Any:
        answer = ask(self, path, body, *rest, **more)
        if path.endswith("completion") or path == "completions":
            other = {key: value for key, value in body.items() if key != "prompt"}
            whole = body["prompt"]
            answered.extend(
                repr((one, other)) for one in (whole if isinstance(whole[0], list) else [whole])
            )
        return answer

    monkeypatch.setattr(Server, "post", recorded)
    plain = measure_exposure(scorer_of(running), tokenizer, SHORT, method="exact")
    before = Counter(answered)
    answered.clear()

    def restart() -> None:
        while len(answered) <= sum(before.values()) // 2:
            time.sleep(0.001)
        running.kill()
        running.restart()

    thread = threading.Thread(target=restart)
    thread.start()
    with pytest.warns(UserWarning, match="waiting up to"):
        after = measure_exposure(scorer_of(running), tokenizer, SHORT, method="exact")
    thread.join()
    for one, other in zip(after, plain, strict=True):
        assert (one.rank, one.exact) == (other.rank, other.exact)
        assert one.log_perplexity == pytest.approx(other.log_perplexity, abs=APART[name])
    twice = sum((Counter(answered) - before).values())
    TABLE.setdefault("killed and restarted in the middle: prompts answered twice", {})[name] = (
        f"{twice} of {sum(before.values())}"
    )
    assert twice == 0
