"""The token tree of a secret format under a tokenizer: which tokens may follow a prefix.

A node is a path of tokens from the prompt on, a leaf a whole secret with the text after it. Only
the canonical path of a string counts, the one that the tokenizer itself gives for the whole text.
The automaton of the format tells which tokens fit; which of them are canonical is found out in the
cheapest of four ways that holds for this format and tokenizer:

- `single`: every string has just one path, so it is the canonical one (proved by counting paths);
- `pairs`: two neighbours may stand together iff encoding their joined text gives them back;
- `text`: a path may go on iff it begins the encoding of all of its text, as that text stands or
  with what may follow (tokenizers that look ahead split "  a" otherwise than "  ");
- `leaves`: only whole strings can be told.

Whatever the way, a leaf is encoded again before it counts, and `false_share` says how often a
random leaf fails that.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hf_exposure.canaries.automaton import compile_automaton
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.vocabulary import Encoder, Readings, align, common_length
from hf_exposure.tree.canonical import PathTests, whole_characters
from hf_exposure.utils.arrays import Bools, Floats, Ints

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_Search = Generator[Ints, Bools, "Ints | None"]
_SMALL = 4096  # spaces up to this size are checked string by string
# More allowed tokens than this are tested for being canonical only when taken. On a model of
# 135 M, 4,096 gave intervals of the same width in 1.4 times the time, 0 up to a fifth wider ones.
_EAGER = 512
_KEPT = 1 << 24  # children that are remembered, all nodes together
WAYS = ("single", "pairs", "text", "leaves")


class TokenTree:
    """The tree of token prefixes of a secret space.

    Tokens are numbered here: places in `token_ids`, those that occur in some secret.

    Args:
        fmt: the secret format.
        tokenizer: any tokenizer of transformers.
        before: text before the template, such as the space before a canary within a paragraph.
        bos: whether special tokens come first; None follows the tokenizer's default.

    Attributes:
        prompt: the tokens before the first that depends on the secret, special ones included.
        token_ids: (C,) the tokenizer's id of each token.
        way: how canonical paths are told, one of `WAYS`.
        false_share: the share of random leaves that were not canonical.
        longest: the most tokens that the canonical path of a string had, of all in a small space
            and of many random ones in a large one.

    Raises:
        ValueError: the tokenizer cannot write the template or changes its secrets, or the secret
            comes first with no token before it.
    """

    def __init__(
        self,
        fmt: SecretFormat,
        tokenizer: PreTrainedTokenizerBase,
        *,
        before: str = "",
        bos: bool | None = None,
    ) -> None:
        self.format = fmt
        self.before = before
        self._encoder = Encoder(tokenizer, bos)
        strings, encodings = self._samples()
        self._find_cut(strings, encodings)
        self._children: dict[int, tuple[Ints, Ints]] = {}
        self._kept = 0
        self.way, self.false_share, self._proved = self._choose_way(strings, encodings)

    # What the walk asks

    @cached_property
    def leaf(self) -> Bools:
        """(states,) whether a state is the end of a secret."""
        out = np.zeros(len(self._automaton.steps), dtype=bool)
        out[list(self._automaton.accepting)] = True
        return out

    @cached_property
    def _shortest(self) -> Ints:
        """(states,) the fewest tokens from a state to a leaf."""
        steps = enumerate(self._automaton.token_steps)
        edges = [(state, to) for state, step in steps for to in set(step.values())]
        begin, end = np.array(edges, dtype=np.int64).reshape(-1, 2).T
        out = np.where(self.leaf, 0, len(self.leaf))
        while True:
            better = out.copy()
            np.minimum.at(better, begin, out[end] + 1)
            if np.array_equal(better, out):
                return out
            out = better

    def ends_within(self, states: Ints, tokens: float) -> Bools:
        """(n,) whether so many further tokens may lead from each state to a leaf."""
        return self._shortest[states] <= tokens

    @cached_property
    def log2_counts(self) -> Floats:
        """(states,) log2 of the number of strings that lead on from a state."""
        return np.array([math.log2(count) for count in self._automaton.counts])

    def key(self, states: Ints, last: Ints) -> Ints:
        """One number for each node, equal for nodes that have the same children.

        Args:
            states: (n,) states, 0 at the root.
            last: (n,) the last token, -1 at the root.
        """
        if self.way == "pairs":
            return states * (len(self.token_ids) + 1) + last + 1
        return states

    def children(self, key: int) -> tuple[Ints, Ints]:
        """Tokens and states of a node's children, both (n,). Some may turn out impossible."""
        return self.all_children([key])[0]

    def all_children(self, keys: Sequence[int]) -> list[tuple[Ints, Ints]]:
        """The children of several nodes; the tokenizer is asked once for all new pairs."""
        new = {}
        if self._kept > _KEPT:
            self._children.clear()
            self._kept = 0
        for key in keys:
            if key not in self._children and key not in new:
                state, last = key, -1
                if self.way == "pairs":
                    state, last = divmod(key, len(self.token_ids) + 1)
                    last -= 1
                new[key] = last, *self._allowed[state]
        if self.way == "pairs":
            tested = {
                key: (last, tokens)
                for key, (last, tokens, _) in new.items()
                if last < 0 or len(tokens) <= _EAGER
            }
            sizes = [len(tokens) for _, tokens in tested.values()]
            if tested:
                fine = self._tests.pairs_fit(
                    np.repeat([last for last, _ in tested.values()], sizes),
                    np.concatenate([tokens for _, tokens in tested.values()]),
                )
                parts = np.split(fine, np.cumsum(sizes)[:-1])
                for key, part in zip(tested, parts, strict=True):
                    last, tokens, states = new[key]
                    new[key] = last, tokens[part], states[part]
                    self._kept += int(part.sum())
        self._children.update({key: found[1:] for key, found in new.items()})
        return [self._children[key] for key in keys]

    def possible(self, paths: Ints) -> Bools:
        """(n,) whether some canonical path may begin like each of the (n, depth) paths.

        Every beginning of a path is taken to have been asked for before.
        """
        if self.way == "pairs":
            first = paths[:, -2] if paths.shape[1] > 1 else np.full(len(paths), -1)
            return self._tests.pairs_fit(first, paths[:, -1])
        if self.way == "text":
            return self._tests.may_go_on(paths)
        return np.ones(len(paths), dtype=bool)

    def canonical(self, paths: Ints) -> Bools:
        """(n,) whether each of the (n, depth) paths to leaves is the tokenizer's own."""
        if self._proved:
            return np.ones(len(paths), dtype=bool)
        return self._tests.texts_fit(paths)

    def path(self, secret: str) -> Ints:
        """(depth,) the canonical path of a secret.

        Raises:
            ValueError: the path is not in the tree, which the tree's check has not foreseen.
        """
        return self.paths([secret])[0]

    def paths(self, secrets: Sequence[str]) -> list[Ints]:
        """The canonical path of each secret; see `path`."""
        texts = [self._text(secret) for secret in secrets]
        out = []
        for secret, ids in zip(secrets, self._encoder(texts), strict=True):
            path = self._path_of(ids)
            if path is None:
                raise ValueError(
                    f"tokenizer: splits {self.format.template!r} otherwise with one of its secrets "
                    f"({len(secret)} characters) than with all others that were tried; "
                    "put a space or a line break before the secret"
                )
            out.append(path)
        self._admit(out)
        return out

    def secret(self, path: Sequence[int] | Ints) -> str:
        """The secret at the end of a path to a leaf."""
        data = self._bytes(path)[len(self._tail) :]
        end = len(data) - len(self.format.suffix.encode())
        return data[:end].decode("utf-8", "replace")

    def descend(self, ids: Sequence[int]) -> tuple[Ints, int | None]:
        """The tokens of the first ids that lead to a leaf or on from the prompt, and the state
        there; None as the state if one leads out of the tree before that."""
        state = 0
        path: list[int] = []
        for number in ids:
            if self.leaf[state]:
                break
            token = self._token_of.get(number, -1)
            following = self._automaton.token_steps[state].get(token)
            if following is None:
                return np.array(path, dtype=np.int64), None
            path.append(token)
            state = following
        return np.array(path, dtype=np.int64), state

    def random_paths(self, n: int, seed: int = 0) -> list[Ints]:
        """Canonical paths of `n` secrets that are drawn uniformly."""
        return self.paths(self.format.sample(n, seed))

    # How it is made

    def _text(self, secret: str) -> str:
        return self.before + self.format.render(secret)

    def _samples(self) -> tuple[list[str], list[list[int]]]:
        """Secrets that show where the template's tokens end, and the tokens of their texts."""
        if self.format.size <= _SMALL:
            strings = list(self.format.enumerate())
        else:
            strings = [*_first_characters(self.format), *self.format.sample(1000, seed=1)]
        encodings = self._encoder([self._text(secret) for secret in strings])
        unknown = self._encoder.tokenizer.unk_token_id
        if unknown is not None:
            # Some tokenizers have one token for "unknown" and for the end of a text.
            meant = (self.before + self.format.template).count(self._encoder.tokenizer.unk_token)
            for secret, ids in zip(strings, encodings, strict=True):
                if ids.count(unknown) > meant:
                    raise ValueError(
                        f"tokenizer: cannot encode {self._masked(secret)!r}, a part of it becomes "
                        f"{self._encoder.tokenizer.unk_token!r}; choose a template and a secret "
                        "expression from its alphabet"
                    )
        return strings, encodings

    def _masked(self, secret: str) -> str:
        """A random secret is no secret, yet an inserted one may be among the samples."""
        return self._text("•" * len(secret))

    def _find_cut(self, strings: list[str], encodings: list[list[int]]) -> None:
        """Cut where no secret moves the boundary; what lies behind belongs to the tree."""
        lengths = [len((secret + self.format.suffix).encode()) for secret in strings]
        texts = [self._text(secret) for secret in strings]
        try:
            readings = self._encoder.readings(zip(texts, encodings, lengths, strict=True))
        except ValueError as error:
            raise ValueError(
                f"tokenizer: with {self.format.template!r} {error}; choose a template and a secret "
                "expression of characters that it keeps"
            ) from None
        head = (self.before + self.format.prefix).encode()
        common = common_length(encodings)
        starts: list[list[int]] = []
        for text, ids, length in zip(texts, encodings, lengths, strict=True):
            found = align(ids, text.encode(), readings, length)
            assert found is not None  # the readings were chosen so
            starts.append(found)
        cut = next(
            (
                at
                for at in range(common, -1, -1)
                if (tail := _tail_at(at, encodings, starts, lengths)) is not None
                and _is_text(head, tail)
            ),
            None,
        )
        if cut is None:
            raise ValueError(
                f"tokenizer: no token of {self.format.template!r} ends before its secret; "
                "put a space or a line break before {secret}"
            )
        tail = _tail_at(cut, encodings, starts, lengths)
        assert tail is not None
        surface = b" " + head if tail > len(head) else head
        self._tail = surface[len(surface) - tail :] if tail else b""
        self._head = surface[: len(surface) - tail]
        self._padded = tail > len(head)
        self._core = encodings[0][:cut]
        self.prompt: list[int] = [*self._encoder.lead, *self._core]
        if not self.prompt:
            raise ValueError(
                f"SecretFormat: in template={self.format.template!r} no token comes before the "
                "secret, so that its first one has no probability; put more text before it, or "
                "give bos=True with a tokenizer that has a bos_token"
            )
        self._build(readings)

    def _build(self, readings: Readings) -> None:
        fmt = self.format
        plain = compile_automaton(
            fmt.secret, before=self._tail.decode(), after=fmt.suffix, check=fmt.check
        )
        words: dict[bytes, list[int]] = {}
        for number, options in sorted(readings.items()):
            for data in options:
                words.setdefault(data, []).append(number)
        words = {data: words[data] for data in plain.occurring(words)}
        whole = compile_automaton(
            fmt.secret,
            before=self._tail.decode(),
            after=fmt.suffix,
            check=fmt.check,
            vocabulary=words,
        )
        used = sorted({number for step in whole.token_steps for number in step})
        self.token_ids: Ints = np.array(used, dtype=np.int64)
        number_of = {number: token for token, number in enumerate(used)}
        self._token_of = number_of
        steps = [{number_of[t]: to for t, to in step.items()} for step in whole.token_steps]
        self._automaton = type(whole)(whole.steps, whole.accepting, steps, whole.counts)
        self._readings = [readings[number] for number in used]
        self._tests = PathTests(
            self._encoder,
            self._automaton,
            self.token_ids,
            self._readings,
            self._head,
            self._padded,
            self._core,
        )
        self._allowed = [_arrays(step) for step in steps]
        self._refuse_two_meanings()

    def _refuse_two_meanings(self) -> None:
        """A path has to spell one string: WordPiece writes "a.b" and "a. b" with equal tokens."""
        for state, step in enumerate(self._automaton.token_steps):
            for token in step:
                options = self._readings[token]
                if len(options) > 1:
                    fitting = [d for d in options if self._automaton.run(d, state) is not None]
                    if len(fitting) > 1:
                        raise ValueError(
                            f"tokenizer: does not keep the spaces within secrets of "
                            f"{self.format.template!r}, so that two secrets may have the same "
                            "tokens; choose an expression that says where spaces are"
                        )

    def _choose_way(
        self, strings: list[str], encodings: list[list[int]]
    ) -> tuple[str, float, bool]:
        """The cheapest way that misses none of the canonical paths that were tried.

        Returns the way, the share of random leaves that are not canonical under it, and whether
        every leaf is known to be canonical.
        """
        paths = [self._path_of(ids) for ids in encodings]
        known = [path for path in paths if path is not None]
        if len(known) < len(paths):
            raise ValueError(
                f"tokenizer: {len(paths) - len(known)} of {len(paths)} secrets of "
                f"{self.format.template!r} are written with tokens that do not spell them; "
                "choose a template or an expression that this tokenizer keeps as it is"
            )
        self.longest = max(map(len, known))
        if _count_paths(self._automaton.token_steps, self._automaton.accepting) == self.format.size:
            return "single", 0.0, True
        small = self.format.size <= _SMALL
        choice: tuple[str, float, bool] | None = None
        for way in WAYS[1:]:
            self.way, self._proved = way, False
            self._children.clear()
            self._kept = 0
            if len(self._missed(known)):
                continue
            if small and way != "leaves" and self._count_walkable() == self.format.size:
                # All canonical paths are in the tree; as many paths as strings means no others.
                return way, 0.0, True
            false_share = self._false_share()
            if choice is None or false_share < choice[1] / 2:
                choice = way, false_share, False
            if choice[1] < 0.1:
                break
        assert choice is not None  # `leaves` refuses nothing
        self._children.clear()
        return choice

    def _missed(self, paths: list[Ints]) -> list[Ints]:
        """The beginnings of these canonical paths at which the walk would stop."""
        out: list[Ints] = []
        for depth in range(1, max(map(len, paths), default=0) + 1):
            begun = {tuple(path[:depth].tolist()) for path in paths if len(path) >= depth}
            some = np.array(sorted(begun))
            out.extend(some[~self.possible(some)])
        return out

    def _admit(self, paths: list[Ints]) -> None:
        """Have the walk come along these canonical paths, also where the way would miss one."""
        if self._proved or self.way not in ("pairs", "text"):
            return
        missed = self._missed(paths)
        for path in missed:
            self._tests.admit(path[-2:] if self.way == "pairs" else path)
        if missed:
            self._children.clear()
            self._kept = 0

    def _false_share(self, tries: int = 200) -> float:
        """The share of leaves, reached by random steps, that the tokenizer writes otherwise."""
        leaves: dict[int, list[Ints]] = {}
        for path in self._found(
            [self._search(np.random.default_rng([2, n])) for n in range(tries)]
        ):
            leaves.setdefault(len(path), []).append(path)
        fit = [self._tests.texts_fit(np.array(paths)) for paths in leaves.values()]
        return 1.0 - float(np.mean(np.concatenate(fit))) if fit else 1.0

    def _random_leaf(self, draw: np.random.Generator) -> Ints | None:
        """A leaf reached by random steps; None if not soon."""
        return next(iter(self._found([self._search(draw)])), None)

    def _found(self, searches: Sequence[_Search]) -> list[Ints]:
        """The leaves that searches come to. All go on together, so that the tokenizer is asked for
        the steps of all of them at once."""
        asking = [(search, next(search)) for search in searches]
        found: list[Ints] = []
        while asking:
            by_depth: dict[int, list[tuple[_Search, Ints]]] = {}
            for search, paths in asking:
                by_depth.setdefault(paths.shape[1], []).append((search, paths))
            asking = []
            for some in by_depth.values():
                fit = self.possible(np.concatenate([paths for _, paths in some]))
                parts = np.split(fit, np.cumsum([len(paths) for _, paths in some])[:-1])
                for (search, _), part in zip(some, parts, strict=True):
                    try:
                        asking.append((search, search.send(part)))
                    except StopIteration as end:
                        found += [end.value] if end.value is not None else []
        return found

    def _search(self, draw: np.random.Generator, steps: int = 300) -> _Search:
        """Look for a leaf by random steps, one back from where none leads on. Yields paths to be
        told which of them are possible; returns the leaf's path, or None if not soon."""
        path: list[int] = []
        trail = [self._shuffled(0, draw)]
        for _ in range(steps):
            tokens, states = trail[-1]
            if len(tokens):
                some = np.array([[*path, token] for token in tokens[:16].tolist()])
                fit = np.flatnonzero((yield some))
                went = int(fit[0]) + 1 if len(fit) else min(16, len(tokens))
                trail[-1] = tokens[went:], states[went:]
                if len(fit):
                    path.append(int(tokens[went - 1]))
                    state = int(states[went - 1])
                    if self.leaf[state]:
                        return np.array(path)
                    trail.append(self._shuffled(state, draw))
            elif len(trail) > 1:
                trail.pop()
                path.pop()
            else:
                break
        return None

    def _shuffled(self, state: int, draw: np.random.Generator) -> tuple[Ints, Ints]:
        tokens, states = self._allowed[state]
        order = draw.permutation(len(tokens))
        return tokens[order], states[order]

    def _count_walkable(self) -> int | None:
        """How many leaves the walk would come to, or None if it is long in finding them; only for
        small spaces."""
        found, visited = 0, 0
        states, paths = np.array([0]), np.zeros((1, 0), dtype=np.int64)
        while len(states):
            visited += len(states)
            if visited > 8 * _SMALL:
                return None
            last = paths[:, -1] if paths.shape[1] else np.array([-1])
            children = self.all_children(self.key(states, last).tolist())
            row = np.repeat(np.arange(len(states)), [len(tokens) for tokens, _ in children])
            tokens = np.concatenate([tokens for tokens, _ in children])
            states = np.concatenate([following for _, following in children])
            paths = np.concatenate([paths[row], tokens[:, None]], axis=1)
            fit = self.possible(paths)
            found += int(self.leaf[states[fit]].sum())
            inner = fit & ~self.leaf[states]
            states, paths = states[inner], paths[inner]
        return found

    # Ids, tokens, texts

    def _path_of(self, ids: Sequence[int]) -> Ints | None:
        cut = len(self._core)
        path, state = self.descend(ids[cut:])
        whole = list(ids[:cut]) == self._core and cut + len(path) == len(ids)
        return path if whole and state is not None and self.leaf[state] else None

    def _bytes(self, path: Sequence[int] | Ints) -> bytes:
        return self._tests.spell(path)[0]


def _arrays(step: dict[int, int]) -> tuple[Ints, Ints]:
    tokens = sorted(step)
    return (
        np.array(tokens, dtype=np.int64),
        np.array([step[token] for token in tokens], dtype=np.int64),
    )


def _first_characters(fmt: SecretFormat, limit: int = _SMALL) -> Iterator[str]:
    """Secrets with every pair of first bytes, as far as `limit` reaches."""
    automaton = fmt.automaton
    draw = random.Random(3)
    found = 0
    for byte, state in automaton.steps[0].items():
        for second, after in automaton.steps[state].items() or [(None, None)]:
            if found >= limit:
                return
            found += 1
            if second is None or after is None:
                yield bytes([byte]).decode()
                continue
            rest = automaton.unrank(draw.randrange(automaton.counts[after]), after)
            yield (bytes([byte, second]) + rest).decode()


def _tail_at(
    cut: int, encodings: list[list[int]], starts: list[list[int]], lengths: list[int]
) -> int | None:
    """How many bytes of the template's prefix stand behind `cut`; None if secrets disagree."""
    tails = set()
    for ids, begin, length in zip(encodings, starts, lengths, strict=True):
        place = cut - (len(ids) - len(begin))
        if place < 0 or cut > len(ids):
            return None
        tails.add((begin[place] if cut < len(ids) else 0) - length)
    tail = tails.pop()
    return tail if not tails and tail >= 0 else None


def _is_text(head: bytes, tail: int) -> bool:
    """Whether the cut stands between characters."""
    return tail > len(head) or whole_characters(head[len(head) - tail :])


def _count_paths(steps: list[dict[int, int]], accepting: frozenset[int]) -> int:
    """The number of token paths from the start to an accepting state."""
    # Very many tokens lead to few states.
    ways = [Counter(step.values()) for step in steps]
    counts: dict[int, int] = {}
    stack = [0]
    while stack:
        state = stack[-1]
        todo = [to for to in ways[state] if to not in counts]
        if todo:
            stack.extend(todo)
            continue
        counts[state] = (state in accepting) + sum(n * counts[to] for to, n in ways[state].items())
        stack.pop()
    return counts[0]
