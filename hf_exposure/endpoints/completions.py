"""A model behind an OpenAI-compatible completions endpoint, as a `Scorer`.

vLLM, SGLang, llama-cpp-python's server and others offer one. What it has to do is to give the
log-probabilities of a prompt's own tokens; most do so with `echo`, vLLM with `prompt_logprobs` too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.masking import secrets_masked
from hf_exposure.canaries.vocabulary import common_length
from hf_exposure.endpoints.echo import Echo, NotOfferedError, read_echo, read_prompt_logprobs
from hf_exposure.endpoints.server import RefusedError, Server
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.checks import check_count, check_number
from hf_exposure.utils.typed import typed
from hf_exposure.utils.warn import warn

_PROBES = 64  # secrets at even distances, and as many at random, that show which tokens all share
_MOST_WORKERS = 1_024
_LONGEST = 86_400.0  # seconds to wait: a day
_SHIFTED = 0.5  # bits; the noise of scoring in bfloat16 is a tenth of it


@typed
class CompletionsScorer:
    """Log-perplexities from an OpenAI-compatible completions endpoint; a `Scorer`.

    What is summed are the server's own tokens, from the first one on that is not the same for all
    secrets of the format: 128 secrets that cover the format are asked for once to find it. Every
    text is one request's prompt and costs its full length, since nothing is shared between texts;
    nothing is remembered either, so that asking twice shows the noise of the server.

    Args:
        base_url: the address before "/completions", such as "http://localhost:8000/v1".
        model: the name under which the server offers it.
        api_key: sent as a bearer token, shown nowhere.
        batch_size: texts of a request; servers that take only one get them one by one.
        workers: requests under way at once.
        timeout: seconds to wait for an answer.
        retries: new attempts after "too many requests" and passing faults, with growing pauses or
            those that the server asks for.
        whole_text: count all tokens of the text. The ranks are the same and the certificates
            weaker; for tokenizers that split the template otherwise with a few of its secrets.
        extra_body: more fields of every request, such as {"add_special_tokens": False} for vLLM.

    Attributes:
        unchecked: formats of which it could not be told whether the server pairs each token with
            its own log-probability; each gave a warning, and results say so in `settings`.

    Raises:
        ValueError: bad arguments.

    Example:
        >>> scorer = CompletionsScorer("http://localhost:8000/v1", "my-model")
        >>> measure_exposure(scorer, None, canaries, method="sampling")     # doctest: +SKIP
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        batch_size: int = 16,
        workers: int = 4,
        timeout: float = 60.0,
        retries: int = 3,
        whole_text: bool = False,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        what = "CompletionsScorer"
        if not model:
            raise ValueError(f"{what}: model is empty; give the name that the server knows")
        check_count(f"{what}: batch_size", batch_size, least=1)
        check_count(f"{what}: workers", workers, least=1, most=_MOST_WORKERS)
        check_count(f"{what}: retries", retries)
        check_number(f"{what}: timeout", timeout, 0, _LONGEST, open_ends=True)
        try:
            json.dumps(extra_body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what}: extra_body cannot be sent as JSON: {error}") from None
        if not all(isinstance(name, str) for name in extra_body or ()):
            raise TypeError(f"{what}: extra_body: the names of fields must be strings")
        self._server = Server(
            base_url, model, api_key=api_key, workers=workers, timeout=timeout, retries=retries
        )
        self.url = self._server.url
        self.model = model
        self.batch_size = batch_size
        self.workers = workers
        self.timeout = timeout
        self.retries = retries
        self.whole_text = whole_text
        self.extra_body = dict(extra_body or {})
        self.unchecked: list[SecretFormat] = []
        self._forwards = 0
        self._way = ""  # "echo" or "prompt_logprobs", once it is known
        # How many texts a request may have; None until it is known whether several are accepted.
        self._batch = 1 if batch_size == 1 else None
        self._cores: dict[tuple[SecretFormat, str], tuple[Hashable, ...]] = {}

    def __repr__(self) -> str:
        told = ", places of log-probabilities unchecked" if self.unchecked else ""
        return f"CompletionsScorer({self.url!r}, {self.model!r}{told})"

    @property
    def forwards(self) -> int:
        """Tokens of prompts so far, by the server's own count where it gives one."""
        return self._forwards

    @typed
    def log_perplexities(
        self, fmt: SecretFormat, secrets: Sequence[str], before: str = ""
    ) -> Floats:
        """(n,) log-perplexities in bits; see `Scorer`.

        Raises:
            ConnectionError: the server is not there, does not answer in time or has a fault.
            PermissionError: it does not accept the key.
            ValueError: it has no such model, does not tell log-probabilities of a prompt, tells
                something that they cannot be, or the secret comes first in the text.
        """
        if not len(secrets):
            return np.zeros(0)
        core = self._cores.get((fmt, before))
        probes = _probes(fmt) if core is None else []
        asked = [*probes, *secrets]
        with secrets_masked([Canary(fmt, secret) for secret in asked]):
            echoes = self._ask([before + fmt.render(secret) for secret in asked])
            if core is None:
                core = self._core(fmt, len(before + fmt.prefix), echoes)
                self._cores[fmt, before] = core
            return np.array([self._cost(fmt, echo, core) for echo in echoes[len(probes) :]])

    # What is summed

    def _core(self, fmt: SecretFormat, start: int, echoes: list[Echo]) -> tuple[Hashable, ...]:
        """The leading tokens that are the same for all secrets and end before them."""
        first, last = echoes[0], common_length(echo.keys for echo in echoes)
        if fmt.size > 1 and not self._refuse_shifted(echoes, last, start):
            self.unchecked.append(fmt)
            warn(
                f"CompletionsScorer: whether {self.url} gives each token of {fmt.template!r} its "
                "own log-probability could not be checked, for it names no likeliest token "
                "(top_logprobs) or not the tokens; compare a text with the model at hand",
            )
        silent = max(int(np.argmin(np.isnan([*echo.bits, 0.0]))) for echo in echoes)
        for n in range(last, 0, -1):
            ends = {echo.ends[n - 1] for echo in echoes}
            if len(ends) == 1 and 0 <= ends.pop() <= start:
                break
        else:
            n = 0
        if n < silent:
            raise ValueError(
                f"SecretFormat: in template={fmt.template!r} no token comes before the secret, and "
                f"{self.url} gives a text's first token no log-probability; put more text before it"
            )
        return first.keys[: silent if self.whole_text else n]

    def _cost(self, fmt: SecretFormat, echo: Echo, core: tuple[Hashable, ...]) -> float:
        """Bits of all tokens behind the core, which is the same for all that are compared."""
        if echo.keys[: len(core)] != core:
            raise ValueError(
                f"CompletionsScorer: the tokenizer of {self.url} splits {fmt.template!r} otherwise "
                "with one of its secrets than with all others that were tried; use whole_text=True"
            )
        rest = echo.bits[len(core) :]
        if np.isnan(rest).any():
            place = len(core) + int(np.argmax(np.isnan(rest)))
            raise ValueError(
                f"CompletionsScorer: {self.url} gives no log-probability for token {place + 1} of "
                f"{len(echo.bits)}, as servers do where it is NaN or minus infinity; look for an "
                "overflow in the model's precision"
            )
        return math.fsum(rest)

    def _refuse_shifted(self, echoes: list[Echo], place: int, start: int) -> bool:
        """Refuse log-probabilities of another place. Returns whether it could be told.

        What is likeliest at a place cannot depend on the token that stands there, and tokens that
        may stand there have probabilities that add up to 1 at most. llama-cpp-python, where the
        text does not begin with a begin-of-text token, pairs each token with the distribution
        after it.

        Args:
            place: of the first token that is not the same in all.
            start: where the secret begins in the text.
        """
        if any(len(echo.keys) <= place for echo in echoes):
            return False
        # Texts that look equal may stand for unequal tokens, but not where the text is the same.
        same = next(
            (n for n in range(place, 0, -1) if all(0 <= e.ends[n - 1] <= start for e in echoes)), 0
        )
        if any(not key or "\ufffd" in str(key) for key in echoes[0].keys[same:place]):
            return False
        tops = [echo.tops[place] for echo in echoes if math.isfinite(echo.tops[place])]
        of_token = {echo.keys[place]: echo.bits[place] for echo in echoes}
        named = [bits for key, bits in of_token.items() if key and "\ufffd" not in str(key)]
        total = float(np.sum(np.exp2(-np.array([bits for bits in named if bits >= 0]))))
        if (tops and max(tops) - min(tops) > _SHIFTED) or total > 2**_SHIFTED:
            raise ValueError(
                f"CompletionsScorer: {self.url} pairs tokens with log-probabilities of another "
                "place, since they change with the token that stands there; llama-cpp-python does "
                "so without a begin-of-text token: use another server"
            )
        return len(tops) > 1 and len(of_token) > 1

    # Requests

    def _ask(self, texts: list[str]) -> list[Echo]:
        """The echo of each text, in their order."""
        done: list[Echo] = []
        if not self._way:
            done += self._first(texts[0])
        if self._batch is None and len(done) + 1 < len(texts):
            try:
                batch = texts[len(done) : len(done) + self.batch_size]
                done += self._take(self._exchange(self._way, batch, patient=False))
                self._batch = self.batch_size
            except (RefusedError, NotOfferedError):
                self._batch = 1
        size = self._batch or 1
        batches = [texts[at : at + size] for at in range(len(done), len(texts), size)]
        pool = ThreadPoolExecutor(self.workers)
        try:
            for answer in pool.map(self._surely, batches):
                done += self._take(answer)
        finally:
            pool.shutdown(cancel_futures=True)
        return done

    def _first(self, text: str) -> list[Echo]:
        """Find out which of the two ways the server knows."""
        refused: Exception | None = None
        for way in ("echo", "prompt_logprobs"):
            try:
                answer = self._exchange(way, [text], patient=False)
            except (RefusedError, NotOfferedError) as error:
                refused = refused or error
            else:
                self._way = way
                return self._take(answer)
        if isinstance(refused, RefusedError) and refused.status == 500:
            answer = self._surely([text], "echo")
            self._way = "echo"
            return self._take(answer)
        raise ValueError(
            f"CompletionsScorer: {self.url} gives no log-probabilities of its prompt: {refused}; "
            "a server is needed that accepts echo with logprobs, or vLLM's prompt_logprobs"
        )

    def _surely(self, texts: list[str], way: str = "") -> tuple[list[Echo], int]:
        """`_exchange`, with an error for the user if it is refused."""
        try:
            return self._exchange(way or self._way, texts)
        except (RefusedError, NotOfferedError) as error:
            raise ValueError(f"CompletionsScorer: {self.url}: {error}") from None

    def _take(self, answer: tuple[list[Echo], int]) -> list[Echo]:
        echoes, tokens = answer
        self._forwards += tokens
        return echoes

    def _exchange(self, way: str, texts: list[str], patient: bool = True) -> tuple[list[Echo], int]:
        """One request: the texts' echoes, and how many tokens they took."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": texts if len(texts) > 1 else texts[0],
            # Some servers refuse 0, and for llama-cpp-python it means as many as there is room for.
            "max_tokens": 1,
            "temperature": 0,
        }
        body |= {"echo": True, "logprobs": 1} if way == "echo" else {"prompt_logprobs": 1}
        answer = self._server.post(body | self.extra_body, patient)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not all(isinstance(one, dict) for one in choices):
            raise ValueError(
                f"CompletionsScorer: {self.url} answers without choices; is it a completions "
                "endpoint?"
            )
        if len(choices) != len(texts):
            raise NotOfferedError(f"it answers {len(texts)} prompts with {len(choices)} choices")
        numbers = [one.get("index") for one in choices]
        if set(numbers) == set(range(len(choices))):
            choices = sorted(choices, key=lambda one: int(one["index"]))
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


def _probes(fmt: SecretFormat) -> list[str]:
    """Secrets that show where the template's tokens end: at even distances in the order of bytes,
    so that all beginnings are there, and at random."""
    if fmt.size <= 2 * _PROBES:
        return list(fmt.enumerate())
    even = [fmt.unrank(place * (fmt.size - 1) // (_PROBES - 1)) for place in range(_PROBES)]
    return [*even, *fmt.sample(_PROBES, seed=1)]
