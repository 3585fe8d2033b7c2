"""How servers are asked for the next token's log-probabilities, each in its own words.

Prompts are lists of token ids, so that a server adds nothing to them, and answers are read by id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_exposure.endpoints.answers import (
    Columns,
    Dialect,
    bits_of,
    field_of,
    in_order,
    tokens_of,
    used_by,
)
from hf_exposure.endpoints.llama_cpp import LlamaCpp
from hf_exposure.endpoints.server import Address, Server


@dataclass
class _OpenAI:
    """What vLLM and SGLang have in common."""

    server: Server
    extra: Mapping[str, Any]
    model: Mapping[str, Any]
    prompts = True

    @property
    def context(self) -> int | None:
        return self.model.get("max_model_len")

    def tokenize(self, text: str, special: bool) -> list[int]:
        return tokens_of(
            self.server.post(
                "/tokenize",
                {"model": self.server.model, "prompt": text, "add_special_tokens": special},
            )
        )

    def tokenizer(self) -> str | tuple[str, str] | None:
        return self.model.get("root") or None


class VLLM(_OpenAI):
    """vLLM: `logprob_token_ids` names the tokens."""

    name = "vLLM"
    most = 128

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
        for choice in in_order(field_of(answer, "choices"), len(prompts)):
            given = field_of(field_of(choice, "logprobs"), "top_logprobs")[0]
            found.append([bits_of(field_of(given, f"token_id:{one}")) for one in ids])
        return Columns(np.array(found), used_by(answer))

    def path(self, prompt: Sequence[int], path: Sequence[int]) -> Columns:
        body = {
            "model": self.server.model,
            "prompt": [*prompt, *path],
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": 0,
        }
        answer = self.server.post("completions", body | dict(self.extra))
        (choice,) = in_order(field_of(answer, "choices"), 1)
        places = field_of(choice, "prompt_logprobs")[len(prompt) :]
        values = [
            bits_of(field_of(field_of(place, str(one)), "logprob"))
            for place, one in zip(places, path, strict=True)
        ]
        return Columns(np.array([values]), used_by(answer))


class SGLang(_OpenAI):
    """SGLang: its own `/generate` with `token_ids_logprob`."""

    name = "SGLang"
    most = 1024

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
        infos = [field_of(one, "meta_info") for one in answers]
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
            given = {one[1]: one[0] for one in field_of(info, "output_token_ids_logprobs")[0]}
            found.append([bits_of(field_of(given, one)) for one in ids])
        return Columns(np.array(found), used)

    def path(self, prompt: Sequence[int], path: Sequence[int]) -> Columns:
        (info,), used = self._ask([[*prompt, *path]], logprob_start_len=0)
        given = field_of(info, "input_token_logprobs")[-len(path) :]
        if [one[1] for one in given] != list(path):
            raise ValueError("its input_token_logprobs are those of other tokens")
        return Columns(np.array([[bits_of(one[0]) for one in given]]), used)


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
