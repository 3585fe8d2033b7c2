"""llama.cpp's own server, asked for the log-probabilities of chosen next tokens."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_exposure.endpoints.answers import Columns, field_of, in_order, nats_of, tokens_of
from hf_exposure.endpoints.server import Address, Server
from hf_exposure.utils.arrays import Floats

_BIASES = (100.0, 200.0)  # nats; single precision is 1e-5 there
_SMALL = 1e-30  # a probability in single precision that is still exact
_LEAST = -80.0  # nats; smaller probabilities are 0 in single precision, or nearly so
_GAPS = (40.0, 80.0, -20.0)  # nats that a witness is favoured by: the usual, more, and less
_WITNESSES = ("a", "b", "c", "0", "1", "!", "?", "z")


class _WithheldError(ValueError):
    """A server tells nothing of the token that it has written."""


@dataclass
class LlamaCpp:
    """llama.cpp's own server, which shows only the likeliest tokens.

    With a bias on the wanted ones those are the wanted ones, and their probabilities after the
    bias tell how much likelier each is than another. What one of them has without it, which the
    server tells of the token that it has written, then tells all.

    Of a token that is the beginning of a character, the server tells nothing when it has written
    it. Then a witness, a plain letter, is favoured more than all others, so that it is written.
    """

    server: Server
    extra: Mapping[str, Any]
    model: Mapping[str, Any]
    name = "llama.cpp"
    most = 1 << 20
    prompts = False
    _silent: set[tuple[int, ...]] = field(default_factory=set)  # ids that need a witness
    _letters: list[int] = field(default_factory=list)  # ids of possible witnesses

    @property
    def context(self) -> int | None:
        return (self.model.get("meta") or {}).get("n_ctx")

    def _ask(
        self,
        prompts: Sequence[Sequence[int]],
        favoured: Sequence[int] | Mapping[int, float],
        bias: float,
        to: Address | None,
        **more: Any,
    ) -> tuple[list[Any], int]:
        biases = favoured if isinstance(favoured, Mapping) else {}
        body = {
            "prompt": [list(prompt) for prompt in prompts],
            "n_predict": 1,
            "ignore_eos": True,  # of such a token it tells nothing
            "samplers": ["temperature"],
            "logit_bias": [[int(one), biases.get(one, bias)] for one in favoured],
            **more,
        }
        answer = self.server.post("/completion", body | dict(self.extra), to=to)
        answers = in_order(answer if isinstance(answer, list) else [answer], len(prompts))
        used = sum(_processed(one) for one in answers)
        told = [one.get("completion_probabilities") for one in answers if isinstance(one, dict)]
        first = [one[0] for one in told if one]
        if len(first) < len(prompts):
            raise _WithheldError("its answer has no completion_probabilities")
        return first, used

    def columns(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int], to: Address | None = None
    ) -> Columns:
        nats, used = np.full((len(prompts), len(ids)), np.nan), 0
        if tuple(ids) not in self._silent:
            try:
                used = self._fill(nats, prompts, np.arange(len(prompts)), list(ids), to)
            except _WithheldError:
                self._silent.add(tuple(ids))
        if tuple(ids) in self._silent:
            nats, used = self._by_witness(prompts, list(ids), to)
        return Columns(np.maximum(0.0, -nats) / math.log(2), used)

    def _by_witness(
        self, prompts: Sequence[Sequence[int]], ids: Sequence[int], to: Address | None
    ) -> tuple[Floats, int]:
        """(n, C) log-probabilities, each by its ratio to that of a witness."""
        witness = self._witness(ids)
        _, logs, bias, used = self._written(prompts, [witness], to)
        nats = np.full((len(prompts), len(ids)), -math.inf)
        for row, (prompt, log) in enumerate(zip(prompts, logs, strict=True)):
            left = list(range(len(ids)))
            for gap in _GAPS if log > -math.inf else ():
                places = {ids[place]: bias for place in left} | {witness: bias + gap}
                options = {"n_probs": len(places), "post_sampling_probs": True}
                try:
                    (answer,), more = self._ask(
                        [prompt], places, 0.0, to, temperature=1.0, **options
                    )
                except _WithheldError:  # it was not the witness that was written
                    continue
                used += more
                given = _shown(answer)
                if given.get(witness, 0.0) <= _SMALL:
                    continue
                base = log - math.log(given[witness]) + gap
                for place in left:
                    if given.get(ids[place], 0.0) > _SMALL:
                        nats[row, place] = base + math.log(given[ids[place]])
                left = [place for place in left if given.get(ids[place], 0.0) <= _SMALL]
                if not left:
                    break
            else:
                raise _WithheldError(
                    "it tells nothing of a token that is the beginning of a character"
                )
        return nats, used

    def _witness(self, ids: Sequence[int]) -> int:
        """A token of whole characters that is none of these."""
        if not self._letters:
            found = [self.tokenize(text, False) for text in _WITNESSES]
            self._letters = [one[0] for one in found if len(one) == 1]
        for letter in self._letters:
            if letter not in ids:
                return letter
        raise _WithheldError("it tells nothing of a token that is the beginning of a character")

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
            best = [int(field_of(one, "id")) for one in answers]
            if wanted.issuperset(best):
                break
        logs: list[float] = []
        for prompt, answer, one in zip(prompts, answers, best, strict=True):
            log = nats_of(field_of(answer, "logprob")) if one in wanted else -math.inf
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
                return nats_of(top["logprob"]) + math.log(one / likeliest) - bias, used
        return -math.inf, used  # less than e^-250

    def path(self, prompt: Sequence[int], path: Sequence[int]) -> Columns:
        values, used = [], 0
        for depth, token in enumerate(path):
            text = [[*prompt, *path[:depth]]]
            try:
                _, (log,), _, more = self._written(text, [token], None)
            except _WithheldError:
                ((log,),), more = self._by_witness(text, [token], None)
            values.append(-log / math.log(2))
            used += more
        return Columns(np.array([values]), used)

    def tokenize(self, text: str, special: bool) -> list[int]:
        body = {"content": text, "add_special": special, "parse_special": True}
        return tokens_of(self.server.post("/tokenize", body))

    def tokenizer(self) -> str | tuple[str, str] | None:
        path = self.server.ask("GET", "/props").get("model_path")
        if not isinstance(path, str) or not os.path.isfile(path):
            return None
        return os.path.dirname(path), os.path.basename(path)


def _shown(answer: Any) -> dict[int, float]:
    """Probabilities after the bias, by id."""
    return {int(one["id"]): float(one["prob"]) for one in field_of(answer, "top_probs")}


def _processed(answer: Any) -> int:
    timings = answer.get("timings") if isinstance(answer, dict) else None
    return int((timings or {}).get("prompt_n", 0))
