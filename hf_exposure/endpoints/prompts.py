"""The log-probabilities of texts' own tokens, asked of a completions endpoint in batches.

Each answer is kept as soon as it is there, so that none is asked for twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hf_exposure.endpoints.answers import in_order
from hf_exposure.endpoints.echo import Echo, NotOfferedError, read_echo, read_prompt_logprobs
from hf_exposure.endpoints.journal import Answers, Journal
from hf_exposure.endpoints.server import RefusedError, Server

SHIFTED = 0.5  # bits; the noise of scoring in bfloat16 is a tenth of it


class PromptTexts:
    """What a server says of whole texts.

    Args:
        server: who is asked.
        journal: where answers are kept.
        batch_size: texts of a request, if it accepts several.
        workers: requests at the same time.
        extra: more fields of each request.

    Attributes:
        way: "echo" or "prompt_logprobs", once it is known.
        answers: echoes that are kept.
        tokens: of prompts so far, by the server's own count where it gives one.
    """

    def __init__(
        self,
        server: Server,
        journal: Journal,
        batch_size: int,
        workers: int,
        extra: Mapping[str, Any],
    ) -> None:
        self.server = server
        self.batch_size, self.workers, self.extra_body = batch_size, workers, dict(extra)
        self.way, self.tokens = "", 0
        self.answers = Answers(journal, server.url, Echo.to_bytes, Echo.from_bytes, _alike)
        # How many texts a request may have; None until it is known whether several are accepted.
        self._batch = 1 if batch_size == 1 else None
        self.url = server.url

    def ask(self, texts: list[str]) -> list[Echo]:
        """The echo of each text, in their order, from what is kept or from the server."""
        keys = [self.answers.journal.key(self.server.model, text) for text in texts]
        return self.answers.find(
            keys, lambda places, keys: self._of_server([texts[place] for place in places], keys)
        )

    def count(self, tokens: int) -> None:
        """Tokens of prompts, of walks too."""
        self.tokens += tokens

    def _of_server(self, texts: list[str], keys: list[bytes]) -> list[Echo]:
        """The echo of each text from the server; each is kept as soon as it is there."""

        def kept(begin: int, answer: tuple[list[Echo], int]) -> list[Echo]:
            echoes, tokens = answer
            self.count(tokens)
            self.answers.keep(keys[begin:], echoes)
            return echoes

        done: list[Echo] = []
        if not self.way:
            done += kept(0, self._first(texts[0]))
        if self._batch is None and len(done) + 1 < len(texts):
            try:
                batch = texts[len(done) : len(done) + self.batch_size]
                done += kept(len(done), self._exchange(self.way, batch, patient=False))
                self._batch = self.batch_size
            except (RefusedError, NotOfferedError):
                self._batch = 1
        size = self._batch or 1
        begins = range(len(done), len(texts), size)
        pool = ThreadPoolExecutor(self.workers)
        try:
            for echoes in pool.map(
                lambda at: kept(at, self._surely(texts[at : at + size])), begins
            ):
                done += echoes
        finally:
            pool.shutdown(cancel_futures=True)
        return done

    def _first(self, text: str) -> tuple[list[Echo], int]:
        """Find out which of the two ways the server knows; the one with token ids comes first."""
        refused: Exception | None = None
        for way, patient in (
            ("prompt_logprobs", False),
            ("prompt_logprobs", True),
            ("echo", False),
            ("echo", True),
        ):
            # A fault may have been a passing one.
            if patient and not (isinstance(refused, RefusedError) and refused.status == 500):
                continue
            try:
                answer = self._exchange(way, [text], patient)
            except (RefusedError, NotOfferedError) as error:
                refused = error
            except ConnectionError:
                if not patient or way == "echo":
                    raise
            else:
                self.way = way
                return answer
        raise ValueError(
            f"CompletionsScorer: {self.url} gives no log-probabilities of its prompt: {refused}; "
            "a server is needed that accepts echo with logprobs, or vLLM's prompt_logprobs"
        )

    def _surely(self, texts: list[str]) -> tuple[list[Echo], int]:
        """`_exchange`, with an error for the user if it is refused."""
        try:
            return self._exchange(self.way, texts)
        except (RefusedError, NotOfferedError) as error:
            raise ValueError(f"CompletionsScorer: {self.url}: {error}") from None

    def _exchange(self, way: str, texts: list[str], patient: bool = True) -> tuple[list[Echo], int]:
        """One request: the texts' echoes, and how many tokens they took."""
        body: dict[str, Any] = {
            "model": self.server.model,
            "prompt": texts if len(texts) > 1 else texts[0],
            # Some servers refuse 0, and for llama-cpp-python it means as many as there is room for.
            "max_tokens": 1,
            "temperature": 0,
        }
        if way == "echo":
            body |= {"echo": True, "logprobs": 1}
        else:
            body |= {"prompt_logprobs": 1, "return_token_ids": True}
        answer = self.server.post("completions", body | self.extra_body, patient)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise ValueError(
                f"CompletionsScorer: {self.url} answers without choices; is it a completions "
                "endpoint?"
            )
        if len(choices) != len(texts):
            raise NotOfferedError(f"it answers {len(texts)} prompts with {len(choices)} choices")
        choices = in_order(choices, len(texts))
        usage = answer.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        generated = usage.get("completion_tokens")
        each = None
        if isinstance(generated, int) and generated in (0, len(choices)):
            each = generated // len(choices)
        try:
            if way == "echo":
                echoes = [
                    read_echo(one, text, each) for one, text in zip(choices, texts, strict=True)
                ]
            else:
                echoes = [
                    read_prompt_logprobs(one, text)
                    for one, text in zip(choices, texts, strict=True)
                ]
        except NotOfferedError:
            raise
        except ValueError as error:
            raise ValueError(
                f"CompletionsScorer: the answer of {self.url} cannot be used: {error}"
            ) from None
        counted = usage.get("prompt_tokens")
        if not isinstance(counted, int):
            counted = sum(len(echo.keys) for echo in echoes)
        return echoes, counted


def _alike(one: Echo, other: Echo) -> bool:
    apart = np.nan_to_num(one.bits).sum() - np.nan_to_num(other.bits).sum()
    return bool(abs(apart) <= SHIFTED * len(one.bits))
