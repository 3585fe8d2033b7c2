"""The next token's bits from a server, for the same walks that a model at hand answers.

A server's cache of prefixes takes the place of the decoder's. Every prefix is asked for once in a
measurement, so that rounding cannot move a canary past itself.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from hf_exposure.endpoints.answers import Columns, Dialect
from hf_exposure.endpoints.journal import Answers, Journal
from hf_exposure.endpoints.server import Address, RefusedError
from hf_exposure.models.next_tokens import Branches
from hf_exposure.utils.arrays import Floats, Ints

_APART = 0.5  # bits; more than bfloat16 makes of one token
_PROBED = 4  # paths
_BESIDE = 64  # tokens that are asked for beside theirs
_KEPT = 1 << 25  # bits that are remembered, all prefixes together


@dataclass
class ServedDecoder:
    """Asks a server about `prompt` and what goes on from there; see `NextTokens`.

    Args:
        dialect: how it is asked.
        addresses: where.
        journal: keeps its answers.
        prompt: the tokens that come first, at least one.
        token_ids: (C,) tokens whose probabilities are wanted, called by their places here.
        vocabulary: how many tokens the tokenizer has.
        context: the most tokens of a text, None if that is not known.
        batch_size: prompts of a request.
        workers: requests under way at once.
        took: told of tokens that the server says to have processed.

    Attributes:
        forwards: prefixes that were asked for, and the prompt's tokens once: what a model with a
            cache would take, so that budgets and figures do not hang on the server's cache.
        noise: the largest difference in bits that `probe` saw between the costs of paths.
    """

    dialect: Dialect
    addresses: Sequence[Address]
    journal: Journal
    prompt: Sequence[int]
    token_ids: Ints
    vocabulary: int
    context: int | None
    rows: int
    workers: int
    took: Callable[[int], None]
    forwards: int = 0
    noise: float = math.nan
    joins: bool = True
    cached: bool = True
    halved: bool = False
    peak_bytes: int = 0
    _known: dict[tuple[bytes, bytes], Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._answers: Answers[Floats] = Answers(
            self.journal,
            self.addresses[0].url,
            lambda bits: bits.tobytes(),
            functools.partial(np.frombuffer, dtype=np.float64),
            lambda one, other: _difference(one, other) <= _APART,
        )

    @property
    def batch_size(self) -> int:
        """Prefixes of a step: enough for every worker at every address."""
        return self.rows * self.workers

    @batch_size.setter
    def batch_size(self, rows: int) -> None:
        self.rows = max(1, rows // self.workers)

    @property
    def room(self) -> float:
        """How many tokens a whole path may have; infinite where nothing limits it."""
        return math.inf if self.context is None else self.context - len(self.prompt)

    def idle(self) -> None:
        """Nothing: no process waits for a server's forwards."""

    def root(self) -> Branches:
        """The empty path."""
        if not self.forwards:
            self.forwards = len(self.prompt) - 1  # its last token is asked for as any prefix
        return Branches(np.zeros((1, 0), dtype=np.int64), np.zeros((1, 0)))

    def price(self, parents: Branches) -> int:
        """One, for each prefix is asked for alone."""
        return 1

    def step(self, parents: Branches, rows: Ints, tokens: Ints) -> Iterator[tuple[Ints, Branches]]:
        """Go one token further from some of the parents; nothing is asked yet."""
        places = np.arange(len(rows))
        for begin in range(0, len(rows), self.batch_size):
            some = places[begin : begin + self.batch_size]
            paths = np.concatenate([parents.paths[rows[some]], tokens[some, None]], axis=1)
            yield some, Branches(paths, np.zeros((len(some), 0)))

    def next_bits(self, branches: Branches, rows: Ints, tokens: Ints) -> Floats:
        """(n,) bits of the allowed next tokens, asked for where they are not known."""
        out = np.zeros(len(rows))
        begins = np.flatnonzero(np.diff(rows, prepend=-1))
        spans = list(zip(begins.tolist(), [*begins[1:].tolist(), len(rows)], strict=True))
        groups: dict[bytes, list[slice]] = {}  # nodes that may go on with the same tokens
        for span in itertools.starmap(slice, spans):
            following = tokens[span].tobytes()
            known = self._known.get((branches.paths[rows[span.start]].tobytes(), following))
            if known is None:
                groups.setdefault(following, []).append(span)
            else:
                out[span] = known
        asked = [
            ([branches.paths[rows[span.start]] for span in some], tokens[some[0]])
            for some in groups.values()
        ]
        self.forwards += sum(map(len, groups.values()))
        if len(self._known) * len(self.token_ids) > _KEPT:
            self._known.clear()
        answers = self._ask_all(asked, "walk")
        for (following, some), (paths, _), found in zip(
            groups.items(), asked, answers, strict=True
        ):
            for span, path, bits in zip(some, paths, found, strict=True):
                out[span] = self._known[path.tobytes(), following] = bits
        return out

    def settle(self, waiting: Iterable[Branches]) -> None:
        """Nothing: what waits holds no cache."""

    def probe(self, paths: Sequence[Ints]) -> None:
        """Compare the costs of paths as the walk finds them with the same asked for one by one at
        every address, and with those that the server gives in another way. Sets `noise`.

        Raises:
            ValueError: they differ by more than rounding.
        """
        paths = [path for path in paths if len(path)][:_PROBED]
        # Among others, as the walk asks for them.
        some = np.arange(min(_BESIDE, len(self.token_ids)))
        steps = [
            (path[:depth], np.concatenate([path[depth : depth + 1], some[some != path[depth]]]))
            for path in paths
            for depth in range(len(path))
        ]
        self.forwards += len(steps) * len(self.addresses)
        found = np.array([bits[0, 0] for bits in self._ask_all([([a], b) for a, b in steps], "")])
        worst = 0.0
        for number, address in enumerate(self.addresses):
            alone = [self._ask([one], wanted, f"alone {number}", address) for one, wanted in steps]
            apart = _difference(found, np.array([bits[0, 0] for bits in alone]))
            if apart > _APART:
                raise ValueError(
                    f"CompletionsScorer: {address.url} gives a token a log-probability that "
                    f"differs by {apart:.2g} bits when it is asked again, alone or at this "
                    "address; all addresses have to serve one model, in a precision that suffices"
                )
            worst = max(worst, apart)
        lengths = [len(path) for path in paths]
        for path, bits in zip(paths, np.split(found, np.cumsum(lengths)[:-1]), strict=True):
            ids = self.token_ids[path].tolist()
            key = self.journal.key("path", self.prompt, ids)
            (again,) = self._answers.find([key], functools.partial(self._path, ids))
            apart = _difference(bits, again)
            if apart > _APART:
                raise ValueError(
                    f"CompletionsScorer: {self.addresses[0].url} gives the tokens of a text other "
                    f"log-probabilities than as next tokens, by {apart:.2g} bits; they cannot be "
                    "relied on"
                )
            worst = max(
                worst, abs(math.fsum(bits - again)) if np.isfinite(bits - again).all() else 0
            )
        self.noise = worst

    # Requests

    def _ask_all(self, asked: Sequence[tuple[Sequence[Ints], Ints]], turn: str) -> list[Floats]:
        """(n, C) bits for each of several groups of paths with the tokens that they may go on
        with."""
        parts = [
            (number, paths[begin : begin + self.rows], tokens)
            for number, (paths, tokens) in enumerate(asked)
            for begin in range(0, len(paths), self.rows)
        ]
        pool = ThreadPoolExecutor(self.workers)
        try:
            found = list(pool.map(lambda part: self._ask(part[1], part[2], turn), parts))
        finally:
            pool.shutdown(cancel_futures=True)
        out: list[list[Floats]] = [[] for _ in asked]
        for (number, _, _), bits in zip(parts, found, strict=True):
            out[number].append(bits)
        return [np.concatenate(one) for one in out]

    def _ask(
        self, paths: Sequence[Ints], tokens: Ints, turn: str, to: Address | None = None
    ) -> Floats:
        """(n, C) bits of some tokens after some paths, from what is kept or from the server."""
        ids = self.token_ids[tokens].tolist()
        prompts = [[*self.prompt, *self.token_ids[path].tolist()] for path in paths]
        keys = [self.journal.key(turn, prompt, ids) for prompt in prompts]

        def ask(places: list[int], keys: list[bytes]) -> Floats:
            found = self._columns([prompts[place] for place in places], ids, to)
            self._answers.keep(keys, found)
            return found

        return np.array(self._answers.find(keys, ask))

    def _path(self, ids: list[int], places: list[int], keys: list[bytes]) -> Floats:
        found = self._surely(functools.partial(self.dialect.path, self.prompt, ids))
        self._answers.keep(keys, found)
        return found

    def _columns(self, prompts: list[list[int]], ids: list[int], to: Address | None) -> Floats:
        most = self.dialect.most
        return np.concatenate(
            [
                self._surely(
                    functools.partial(self.dialect.columns, prompts, ids[begin : begin + most], to)
                )
                for begin in range(0, len(ids), most)
            ],
            axis=1,
        )

    def _surely(self, ask: Callable[[], Columns]) -> Floats:
        try:
            found = ask()
        except (RefusedError, ValueError, KeyError, TypeError, IndexError) as error:
            said = str(error)
            if said.startswith("CompletionsScorer"):
                raise
            raise ValueError(
                f"CompletionsScorer: {self.addresses[0].url}, asked as {self.dialect.name}: {said}"
            ) from None
        self.took(found.tokens)
        return found.bits


def _difference(one: Floats, other: Floats) -> float:
    """The largest difference in bits; infinite if one is infinite and the other is not."""
    if not np.array_equal(np.isinf(one), np.isinf(other)):
        return math.inf
    finite = np.isfinite(one)
    return float(np.abs(one[finite] - other[finite]).max(initial=0.0))
