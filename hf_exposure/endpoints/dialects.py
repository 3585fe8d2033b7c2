"""How servers are asked for the next token's log-probabilities, each in its own words.

Prompts are lists of token ids, so that a server adds nothing to them, and answers are read by id.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from hf_exposure.endpoints.server import Address, Server
from hf_exposure.utils.arrays import Floats

_NOTHING = -9999.0  # what vLLM writes for a probability of 0, which JSON has no number for
_BIASES = (100.0, 200.0)  # nats; single precision is 1e-5 there
_SMALL = 1e-30  # a probability in single precision that is still exact
_LEAST = -80.0  # nats; smaller probabilities are 0 in single precision, or nearly so
_UNLIKELY = 1e-3  # above this, a log-probability is no rounding


class Columns(NamedTuple):
    """(n, C) bits of the wanted tokens after each prompt, and how many tokens that took."""

    bits: Floats
    tokens: int


class Dialect(Protocol):
    """What a kind of server is asked, and how its answers are read.

    Attributes:
        name: of the kind.
        most: ids of one request.
        prompts: whether it also gives the log-probabilities of a prompt's own tokens.
    """

    name: str
    most: int
    prompts: bool

    @property
    def context(self) -> int | None:
        """The most tokens of a text; None if the server does not say."""

    def columns(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int], to: Address | None = None
    ) -> Columns:
        """The bits of these next tokens, at most `most`, after each prompt."""

    def path(self, prompt: Sequence[int], path: Sequence[int]) -> Columns:
        """(1, n) bits of a path's own tokens after a prompt, found in another way."""

    def tokenize(self, text: str, special: bool) -> list[int]:
        """The server's tokens of a text, with those that it puts around it or without."""

    def tokenizer(self) -> str | tuple[str, str] | None:
        """Where its tokenizer can be loaded from: a name, or a folder and a file of GGUF."""


@dataclass
class VLLM:
    """vLLM: `logprob_token_ids` names the tokens."""

    server: Server
    extra: Mapping[str, Any]
    model: Mapping[str, Any]
    name = "vLLM"
    most = 128
    prompts = True

    @property
    def context(self) -> int | None:
        return self.model.get("max_model_len")

    def columns(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int], to: Address | None = None
    ) -> Columns:
        body = {
            "model": self.server.model,
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": 1,
            "logprob_token_ids": list(ids),
            "return_tokens_as_token_ids": True,
        }
        answer = self.server.post("completions", body | dict(self.extra), to=to)
        found = []
        for choice in _in_order(_field(answer, "choices"), len(prompts)):
            given = _field(_field(choice, "logprobs"), "top_logprobs")[0]
            found.append([_bits(_field(given, f"token_id:{one}")) for one in ids])
        return Columns(np.array(found), _used(answer))

    def path(self, prompt: Sequence[int], path: Sequence[int]) -> Columns:
        body = {
            "model": self.server.model,
            "prompt": [*prompt, *path],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        answer = self.server.post("completions", body | dict(self.extra))
        (choice,) = _in_order(_field(answer, "choices"), 1)
        places = _field(choice, "prompt_logprobs")[len(prompt) :]
        values = [
            _bits(_field(_field(place, str(one)), "logprob"))
            for place, one in zip(places, path, strict=True)
        ]
        return Columns(np.array([values]), _used(answer))

    def tokenize(self, text: str, special: bool) -> list[int]:
        return _tokens(
            self.server.post(
                "/tokenize",
                {"model": self.server.model, "prompt": text, "add_special_tokens": special},
            )
        )

    def tokenizer(self) -> str | tuple[str, str] | None:
        return self.model.get("root") or None


@dataclass
class SGLang:
    """SGLang: its own `/generate` with `token_ids_logprob`."""

    server: Server
    extra: Mapping[str, Any]
    model: Mapping[str, Any]
    name = "SGLang"
    most = 1024
    prompts = True

    @property
    def context(self) -> int | None:
        return self.model.get("max_model_len")

    def _ask(
        self, prompts: Sequence[Sequence[int]], to: Address | None = None, **more: Any
    ) -> tuple[list[Any], int]:
        body = {
            "input_ids": [list(prompt) for prompt in prompts],
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            **more,
        }
        answers = self.server.post("/generate", body | dict(self.extra), to=to)
        answers = answers if isinstance(answers, list) else [answers]
        if len(answers) != len(prompts):
            raise ValueError(f"it answers {len(prompts)} prompts with {len(answers)} texts")
        infos = [_field(one, "meta_info") for one in answers]
        return infos, sum(
            int(info.get("prompt_tokens", 0)) - int(info.get("cached_tokens", 0)) for info in infos
        )

    def columns(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int], to: Address | None = None
    ) -> Columns:
        each = [list(ids) for _ in prompts]
        infos, used = self._ask(prompts, to, token_ids_logprob=each, logprob_start_len=-1)
        found = []
        for info in infos:
            given = {one[1]: one[0] for one in _field(info, "output_token_ids_logprobs")[0]}
            found.append([_bits(_field(given, one)) for one in ids])
        return Columns(np.array(found), used)

    def path(self, prompt: Sequence[int], path: Sequence[int]) -> Columns:
        (info,), used = self._ask([[*prompt, *path]], logprob_start_len=0)
        given = _field(info, "input_token_logprobs")[-len(path) :]
        if [one[1] for one in given] != list(path):
            raise ValueError("its input_token_logprobs are those of other tokens")
        return Columns(np.array([[_bits(one[0]) for one in given]]), used)

    def tokenize(self, text: str, special: bool) -> list[int]:
        return _tokens(
            self.server.post(
                "/tokenize",
                {"model": self.server.model, "prompt": text, "add_special_tokens": special},
            )
        )

    def tokenizer(self) -> str | tuple[str, str] | None:
        return self.model.get("root") or None


@dataclass
class LlamaCpp:
    """llama.cpp's own server, which shows only the likeliest tokens.

    With a bias on the wanted ones those are the wanted ones, and their probabilities after the
    bias tell how much likelier each is than another. What one of them has without it, which the
    server tells of the token that it has written, then tells all.
    """

    server: Server
    extra: Mapping[str, Any]
    model: Mapping[str, Any]
    name = "llama.cpp"
    most = 1 << 20
    prompts = False

    @property
    def context(self) -> int | None:
        return (self.model.get("meta") or {}).get("n_ctx")

    def _ask(
        self,
        prompts: Sequence[Sequence[int]],
        favoured: Sequence[int],
        bias: float,
        to: Address | None,
        **more: Any,
    ) -> tuple[list[Any], int]:
        body = {
            "prompt": [list(prompt) for prompt in prompts],
            "n_predict": 1,
            "ignore_eos": True,  # of such a token it tells nothing
            "samplers": ["temperature"],
            "logit_bias": [[int(one), bias] for one in favoured],
            **more,
        }
        answer = self.server.post("/completion", body | dict(self.extra), to=to)
        answers = _in_order(answer if isinstance(answer, list) else [answer], len(prompts))
        used = sum(_processed(one) for one in answers)
        return [_field(one, "completion_probabilities")[0] for one in answers], used

    def columns(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int], to: Address | None = None
    ) -> Columns:
        nats = np.full((len(prompts), len(ids)), np.nan)
        used = self._fill(nats, prompts, np.arange(len(prompts)), list(ids), to)
        return Columns(np.maximum(0.0, -nats) / math.log(2), used)

    def _fill(
        self,
        nats: Floats,
        prompts: Sequence[Sequence[int]],
        rows: Any,
        ids: Sequence[int],
        to: Address | None,
    ) -> int:
        """Log-probabilities of all tokens, in single precision as far as it reaches and then
        again for the tokens that are much less likely than others."""
        asked = [prompts[row] for row in rows]
        best, logs, bias, used = self._written(asked, ids, to)
        shown, more = self._ask(
            asked, ids, bias, to, temperature=1.0, n_probs=len(ids), post_sampling_probs=True
        )
        used += more
        left: dict[tuple[int, ...], list[int]] = {}
        for row, answer, anchor, log in zip(rows, shown, best, logs, strict=True):
            if log == -math.inf:  # the likeliest of them
                nats[row] = log
                continue
            given = _shown(answer)
            if given.get(anchor, 0.0) <= 0:
                raise ValueError(
                    "its probabilities after the bias leave out a token that was asked for, so "
                    "that nothing is known of it"
                )
            base = log - math.log(given[anchor])
            small = []
            for place, one in enumerate(ids):
                if one == anchor:
                    nats[row, place] = log
                elif given.get(one, 0.0) > _SMALL:
                    nats[row, place] = base + math.log(given[one])
                else:
                    small.append(place)
            if small:
                left.setdefault(tuple(small), []).append(row)
        for places, some in left.items():
            part = np.full((len(prompts), len(places)), np.nan)
            used += self._fill(part, prompts, some, [ids[place] for place in places], to)
            nats[np.ix_(some, places)] = part[some]
        return used

    def _written(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int], to: Address | None
    ) -> tuple[list[int], list[float], float, int]:
        """The likeliest of these tokens after each prompt, its log-probability, and the bias that
        it took to have it written."""
        wanted, used, bias = set(ids), 0, 0.0
        for bias in _BIASES:
            answers, more = self._ask(prompts, ids, bias, to, temperature=0, n_probs=1)
            used += more
            best = [int(_field(one, "id")) for one in answers]
            if wanted.issuperset(best):
                break
        logs: list[float] = []
        for prompt, answer, one in zip(prompts, answers, best, strict=True):
            log = _nats(_field(answer, "logprob")) if one in wanted else -math.inf
            if one in wanted and log < _LEAST:  # next to the likeliest of all tokens
                log, more = self._far(prompt, one, to)
                used += more
            logs.append(log)
        return best, logs, bias, used

    def _far(self, prompt: Sequence[int], token: int, to: Address | None) -> tuple[float, int]:
        """The log-probability of a very unlikely token."""
        (top,), used = self._ask([prompt], [], 0.0, to, temperature=0, n_probs=1)
        for bias in _BIASES:
            (answer,), more = self._ask(
                [prompt], [token], bias, to, temperature=1.0, n_probs=2, post_sampling_probs=True
            )
            used += more
            given = _shown(answer)
            one, likeliest = given.get(token, 0.0), given.get(top["id"], 0.0)
            if one > _SMALL and likeliest > _SMALL:
                return _nats(top["logprob"]) + math.log(one / likeliest) - bias, used
        return -math.inf, used  # less than e^-250

    def path(self, prompt: Sequence[int], path: Sequence[int]) -> Columns:
        values, used = [], 0
        for depth, token in enumerate(path):
            _, (log,), _, more = self._written([[*prompt, *path[:depth]]], [token], None)
            values.append(-log / math.log(2))
            used += more
        return Columns(np.array([values]), used)

    def tokenize(self, text: str, special: bool) -> list[int]:
        body = {"content": text, "add_special": special, "parse_special": True}
        return _tokens(self.server.post("/tokenize", body))

    def tokenizer(self) -> str | tuple[str, str] | None:
        path = self.server.ask("GET", "/props").get("model_path")
        if not isinstance(path, str) or not os.path.isfile(path):
            return None
        return os.path.dirname(path), os.path.basename(path)


_KINDS: dict[str, Callable[[Server, Mapping[str, Any], Mapping[str, Any]], Dialect]] = {
    "vllm": VLLM,
    "sglang": SGLang,
    "llamacpp": LlamaCpp,
}


def dialect_of(server: Server, extra: Mapping[str, Any]) -> Dialect | None:
    """The way in which a server gives the next token's log-probabilities; None if it has none.

    All addresses are asked.

    Raises:
        ValueError: they are of several kinds, or offer no such model.
    """
    kinds, one = set(), None
    for address in list(server.addresses):
        answer = server.ask("GET", "models", to=address)
        found = answer.get("data") if isinstance(answer, dict) else None
        offered = [one for one in found or () if isinstance(one, dict)]
        kinds.add(str(offered[0].get("owned_by")) if offered else "")
        one = next((each for each in offered if each.get("id") == server.model), one)
    if len(kinds) > 1:
        raise ValueError(
            f"CompletionsScorer: the addresses of base_url are servers of several kinds "
            f"({', '.join(sorted(kinds))}); give those of one"
        )
    kind = _KINDS.get(kinds.pop())
    return None if kind is None else kind(server, extra, one or {})


def _field(answer: Any, name: Any) -> Any:
    found = answer.get(name) if isinstance(answer, dict) else None
    if found is None:
        raise ValueError(f"its answer has no {name}")
    return found


def _in_order(answers: Any, count: int) -> list[Any]:
    """Answers in the order of the prompts."""
    if not isinstance(answers, list) or len(answers) != count:
        raise ValueError(f"it answers {count} prompts with other than {count} texts")
    numbers = [one.get("index") if isinstance(one, dict) else None for one in answers]
    if set(numbers) == set(range(count)):
        return [answers[numbers.index(place)] for place in range(count)]
    return answers


def _used(answer: Any) -> int:
    """Tokens of prompts that were computed, as far as the server tells."""
    usage = _field(answer, "usage")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return int(usage.get("prompt_tokens", 0)) - int(cached)


def _shown(answer: Any) -> dict[int, float]:
    """Probabilities after the bias, by id."""
    return {int(one["id"]): float(one["prob"]) for one in _field(answer, "top_probs")}


def _processed(answer: Any) -> int:
    timings = answer.get("timings") if isinstance(answer, dict) else None
    return int((timings or {}).get("prompt_n", 0))


def _tokens(answer: Any) -> list[int]:
    found = _field(answer, "tokens")
    if not isinstance(found, list) or not all(isinstance(one, int) for one in found):
        raise ValueError("its /tokenize gives no list of token ids")
    return found


def _nats(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ValueError("it gives something else than a number as a log-probability")
    if value > _UNLIKELY:
        raise ValueError(f"it gives {value:g} as a log-probability, which cannot be above 0")
    return -math.inf if value <= _NOTHING else min(0.0, float(value))


def _bits(value: Any) -> float:
    return -_nats(value) / math.log(2)
