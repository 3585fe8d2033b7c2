"""A model behind an OpenAI-compatible completions endpoint, as a `Scorer` of texts and for walks.

Texts are scored where the server gives the log-probabilities of a prompt's own tokens, with `echo`
or, as vLLM, with `prompt_logprobs`. The tree is walked where it gives those of chosen next tokens,
as vLLM, SGLang and llama.cpp do.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.masking import secrets_masked
from hf_exposure.canaries.vocabulary import common_length
from hf_exposure.endpoints.answers import Dialect
from hf_exposure.endpoints.dialects import dialect_of
from hf_exposure.endpoints.echo import Echo
from hf_exposure.endpoints.journal import Journal
from hf_exposure.endpoints.prompts import SHIFTED, PromptTexts
from hf_exposure.endpoints.server import RefusedError, Server
from hf_exposure.utils.arrays import Floats
from hf_exposure.utils.checks import check_count, check_number
from hf_exposure.utils.typed import typed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_exposure.models.next_tokens import NextTokens
    from hf_exposure.tree.tokens import TokenTree

_PROBES = 64  # secrets at even distances, and as many at random, that show which tokens all share
_MOST_WORKERS = 1_024
_LONGEST = 86_400.0  # seconds to wait: a day
_COMPARED = 8  # texts whose tokens are compared with the server's
_PLAIN = "The number is "
_WRITTEN = 16  # texts after which the server writes a token, to compare its cost


@typed
class CompletionsScorer:
    """A model behind an OpenAI-compatible completions endpoint; a `Scorer`.

    With vLLM, SGLang and llama.cpp's own server all methods of `measure_exposure` work, and
    `extract_secrets`. With others "sampling" and "skewnorm" do, from the log-perplexities of texts:
    what is summed are the server's own tokens, from the first one on that is not the same for all
    secrets of the format: 128 secrets that cover the format are asked for once to find it. Every
    text is one request's prompt and costs its full length, since nothing is shared between texts;
    each is asked for anew, so that asking twice shows the noise of the server.

    Args:
        base_url: the address before "/completions", such as "http://localhost:8000/v1", or several
            addresses of the same model, which share the work.
        model: the name under which the server offers it.
        api_key: sent as a bearer token, shown nowhere.
        batch_size: prompts of a request; servers that take only one get them one by one.
        workers: requests under way at once, at all addresses together.
        timeout: seconds to wait for an answer.
        retries: new attempts after "too many requests" and passing faults, with growing pauses or
            those that the server asks for.
        whole_text: count all tokens of the text. The ranks are the same and the certificates
            weaker; for tokenizers that split the template otherwise with a few of its secrets.
        extra_body: more fields of every request, such as {"add_special_tokens": False} for vLLM.
        patience: seconds to wait for a server that had been there and is gone, as in a restart.
        journal: a file in which every answer is kept, so that a measurement that was killed is
            taken up where it was. One for each state of the model; as private as the manifest.
            None keeps answers in memory until a measurement has ended well.

    Raises:
        ValueError: bad arguments.

    Example:
        >>> scorer = CompletionsScorer("http://localhost:8000/v1", "my-model")
        >>> measure_exposure(scorer, None, canaries, method="sampling")     # doctest: +SKIP
    """

    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str,
        *,
        api_key: str | None = None,
        batch_size: int = 16,
        workers: int = 4,
        timeout: float = 60.0,
        retries: int = 3,
        whole_text: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        patience: float = 600.0,
        journal: str | os.PathLike[str] | None = None,
    ) -> None:
        what = "CompletionsScorer"
        if not model:
            raise ValueError(f"{what}: model is empty; give the name that the server knows")
        check_count(f"{what}: workers", workers, least=1, most=_MOST_WORKERS)
        check_count(f"{what}: retries", retries)
        check_number(f"{what}: timeout", timeout, 0, _LONGEST, open_ends=True)
        check_number(f"{what}: patience", patience, 0, _LONGEST)
        try:
            json.dumps(extra_body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{what}: extra_body cannot be sent as JSON: {error}") from None
        if not all(isinstance(name, str) for name in extra_body or ()):
            raise TypeError(f"{what}: extra_body: the names of fields must be strings")
        self._server = Server(base_url, model, api_key, workers, timeout, retries, patience)
        self._journal = Journal(journal)
        self._dialect: Dialect | None = None
        self.url, self.model = self._server.url, model
        self.batch_size, self.workers, self.whole_text = batch_size, workers, whole_text
        self.timeout, self.retries = timeout, retries
        self.extra_body = dict(extra_body or {})
        self._texts = PromptTexts(self._server, self._journal, batch_size, workers, self.extra_body)
        self._checked = False  # whether tokens have their own log-probabilities
        self._cores: dict[tuple[SecretFormat, str], tuple[Hashable, ...]] = {}

    def __repr__(self) -> str:
        return f"CompletionsScorer({self.url!r}, {self.model!r})"

    @property
    def forwards(self) -> int:
        """Tokens of prompts so far, by the server's own count where it gives one."""
        return self._texts.tokens

    @property
    def requests(self) -> int:
        """Requests that were answered so far."""
        return self._server.answered

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
            texts = [before + fmt.render(secret) for secret in asked]
            echoes = self._texts.ask(texts)
            if core is None:
                core = self._core(fmt, len(before + fmt.prefix), texts, echoes)
                self._cores[fmt, before] = core
            return np.array([self._cost(fmt, echo, core) for echo in echoes[len(probes) :]])

    # Walks over the tree

    @typed
    def walks(self, needed: bool) -> bool:
        """Whether the tree is walked with it, and not texts scored.

        Args:
            needed: whether nothing else would do.

        Raises:
            ValueError: it is needed, and this server does not tell of chosen next tokens.
        """
        if self._dialect is None and (needed or not self._texts.way):
            try:
                self._dialect = dialect_of(self._server, self.extra_body)
            except RefusedError as error:
                if needed:
                    raise ValueError(f"CompletionsScorer: {self.url}: {error}") from None
        if needed and self._dialect is None:
            raise ValueError(
                f"CompletionsScorer: the server at {self.url} is neither vLLM nor SGLang nor "
                "llama.cpp's own, which tell the log-probabilities of chosen next tokens (others, "
                "such as `transformers serve`, tell none); use method='sampling' or 'skewnorm', if "
                "it gives those of its prompt"
            )
        return self._dialect is not None and (needed or not self._dialect.prompts)

    def find_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that the server works with, from where the server has it.

        Raises:
            ValueError: it cannot be loaded here.
        """
        from transformers import AutoTokenizer

        where = self._walked().tokenizer()
        try:
            if isinstance(where, tuple):
                return AutoTokenizer.from_pretrained(where[0], gguf_file=where[1])
            if where is not None:
                return AutoTokenizer.from_pretrained(where)
        except Exception as error:  # loading raises what it likes
            why = f", and loading {where!r} failed ({type(error).__name__})"
        else:
            why = ", and it names none that is to be had here"
        raise ValueError(
            f"CompletionsScorer: the tree is made of the server's tokenizer{why}; give the "
            "tokenizer (on the command line --tokenizer)"
        ) from None

    @typed
    def decoder(self, tree: TokenTree, bos: bool | None, batch_size: int | None) -> NextTokens:
        """What a walk over this tree asks; its tokenizer is compared with the server's first.

        Raises:
            ValueError: the server splits texts otherwise, or puts other tokens before them.
        """
        from hf_exposure.endpoints.next_tokens import ServedDecoder

        dialect = self._walked()
        self._check_tokenizer(dialect, tree, bos)
        return ServedDecoder(
            dialect,
            self._server.addresses.copy(),
            self._journal,
            tree.prompt,
            tree.token_ids,
            tree.vocabulary,
            dialect.context,
            batch_size or self.batch_size,
            self.workers,
            self._texts.count,
        )

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Keeps what was answered until the measurement has ended well."""
        self._texts.answers.same = False
        with self._journal.measurement():
            yield

    def _walked(self) -> Dialect:
        self.walks(True)
        assert self._dialect is not None
        return self._dialect

    def _check_tokenizer(self, dialect: Dialect, tree: TokenTree, bos: bool | None) -> None:
        fmt = tree.format
        for secret in fmt.sample(min(_COMPARED, fmt.size), seed=2):
            text = tree.before + fmt.render(secret)
            path = tree.token_ids[tree.path(secret)].tolist()
            ours = [*tree.prompt, *path]
            theirs = dialect.tokenize(text, True)
            if theirs[: len(ours)] == ours:
                continue
            plain = dialect.tokenize(text, False)
            lead = len(tree.lead)
            if plain[: len(ours) - lead] != ours[lead:]:
                raise ValueError(
                    f"tokenizer: splits {fmt.template!r} otherwise than {self.url} does; give the "
                    "tokenizer of the model that is served"
                )
            if bos is None and not tree.before:
                raise ValueError(
                    f"tokenizer: puts {lead or 'no'} special tokens before a text, and {self.url} "
                    f"puts {len(theirs) - len(plain)} around it; say with bos=True or bos=False "
                    "what was done in training"
                )

    # What is summed

    def _core(
        self, fmt: SecretFormat, start: int, texts: list[str], echoes: list[Echo]
    ) -> tuple[Hashable, ...]:
        """The leading tokens that are the same for all secrets and end before them."""
        first, last = echoes[0], common_length(echo.keys for echo in echoes)
        silent = max(int(np.argmin(np.isnan([*echo.bits, 0.0]))) for echo in echoes)
        ends = [{echo.ends[place] for echo in echoes} for place in range(last)]
        fit = [len(some) == 1 and 0 <= min(some) <= start for some in ends]
        n = max((place + 1 for place in range(last) if fit[place]), default=0)
        # Unequal parts of characters may look equal; what the server gives no number costs none.
        while n > silent and _unclear(first.keys[n - 1]):
            n -= 1
        if n < silent:
            raise ValueError(
                f"SecretFormat: in template={fmt.template!r} no token comes before the secret, and "
                f"{self.url} gives a text's first token no log-probability; put more text before it"
            )
        if not self._checked and not self._refuse_shifted(echoes, last, start):
            # Whole characters tell more; how places are paired does not hang on the text.
            plain = [f"{_PLAIN}{digit}." for digit in range(10)]
            told = self._texts.ask(plain)
            common = common_length(echo.keys for echo in told)
            if not self._refuse_shifted(told, common, len(_PLAIN)):
                self._compare_with_written([*plain, *texts], [*told, *echoes])
        self._checked = True
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
        clear = (n for n in range(place, 0, -1) if not _unclear(echoes[0].keys[n - 1]))
        same = next((n for n in clear if all(0 <= e.ends[n - 1] <= start for e in echoes)), 0)
        if any(_unclear(key) for key in echoes[0].keys[same:place]):
            return False
        tops = [echo.tops[place] for echo in echoes if math.isfinite(echo.tops[place])]
        of_token = {echo.keys[place]: echo.bits[place] for echo in echoes}
        named = [bits for key, bits in of_token.items() if not _unclear(key)]
        total = float(np.sum(np.exp2(-np.array([bits for bits in named if bits >= 0]))))
        if (tops and max(tops) - min(tops) > SHIFTED) or total > 2**SHIFTED:
            raise self._shifted("since they change with the token that stands there")
        return len(tops) > 1 and len(of_token) > 1

    def _shifted(self, why: str) -> ValueError:
        return ValueError(
            f"CompletionsScorer: {self.url} pairs tokens with log-probabilities of another place, "
            f"{why}; llama-cpp-python does so without a begin-of-text token: use another server"
        )

    def _compare_with_written(self, texts: Sequence[str], echoes: Sequence[Echo]) -> None:
        """Refuse log-probabilities of another place by those of tokens that the server writes.

        A token that it has written after a text has to cost the same as a part of a prompt.
        """
        agree: list[bool] = []
        for text, echo in zip(texts[:_WRITTEN], echoes, strict=False):
            body = {"prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 1}
            try:
                answer = self._server.post(
                    "completions", {"model": self.model, **body, **self.extra_body}
                )
                (choice,) = answer["choices"]
                written = choice["text"]
                bits = -float(choice["logprobs"]["token_logprobs"][-1]) / math.log(2)
                if _unclear(written):
                    continue
                # Some servers leave out the space before what they write.
                again = self._texts.ask([text + written, f"{text} {written}"])
            except (RefusedError, ValueError, TypeError, LookupError):
                continue
            apart = [
                abs(one.bits[-1] - bits)
                for one in again
                if one.keys[:-1] == echo.keys and not _unclear(one.keys[-1])
            ]
            if apart:
                agree.append(min(apart) <= SHIFTED)
        # One may be split otherwise in a prompt than it was written.
        if sum(agree) < len(agree) / 2:
            raise self._shifted("since tokens that it writes cost otherwise in a prompt")
        if sum(agree) < 2:
            raise ValueError(
                f"CompletionsScorer: whether {self.url} gives each token its own log-probability "
                "cannot be checked, for it tells neither the likeliest token of each place "
                "(top_logprobs) nor what the tokens that it writes cost; use another server"
            )


def _unclear(key: Hashable) -> bool:
    """Whether a token's text does not tell it from others: a part of a character."""
    return isinstance(key, str) and (not key or "\ufffd" in key)


def _probes(fmt: SecretFormat) -> list[str]:
    """Secrets that show where the template's tokens end: at even distances in the order of bytes,
    so that all beginnings are there, and at random."""
    if fmt.size <= 2 * _PROBES:
        return list(fmt.enumerate())
    even = [fmt.unrank(place * (fmt.size - 1) // (_PROBES - 1)) for place in range(_PROBES)]
    return [*even, *fmt.sample(_PROBES, seed=1)]
