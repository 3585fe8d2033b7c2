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

import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hf_exposure.canaries.automaton import compile_automaton
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.vocabulary import Encoder, Readings, align, common_length
from hf_exposure.tree.canonical import PathTests, whole_characters
from hf_exposure.tree.checking import SMALL, choose_way
from hf_exposure.tree.walkable import WalkableTree
from hf_exposure.utils.arrays import Ints

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenTree(WalkableTree):
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
        self.longest, self.false_share = self._check(encodings)

    @property
    def lead(self) -> tuple[int, ...]:
        """The special tokens that the prompt begins with."""
        return self._encoder.lead

    @property
    def vocabulary(self) -> int:
        """How many tokens the tokenizer has."""
        return len(self._encoder.tokenizer)

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
            following = self.automaton.token_steps[state].get(token)
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
        if self.format.size <= SMALL:
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
        self._token_of = {number: token for token, number in enumerate(used)}
        steps = [{self._token_of[t]: to for t, to in step.items()} for step in whole.token_steps]
        automaton = type(whole)(whole.steps, whole.accepting, steps, whole.counts)
        token_ids: Ints = np.array(used, dtype=np.int64)
        self._readings = [readings[number] for number in used]
        tests = PathTests(
            self._encoder,
            automaton,
            token_ids,
            self._readings,
            self._head,
            self._padded,
            self._core,
        )
        super().__init__(automaton, token_ids, tests)
        self._refuse_two_meanings()

    def _refuse_two_meanings(self) -> None:
        """A path has to spell one string: WordPiece writes "a.b" and "a. b" with equal tokens."""
        for state, step in enumerate(self.automaton.token_steps):
            for token in step:
                options = self._readings[token]
                if len(options) > 1:
                    fitting = [d for d in options if self.automaton.run(d, state) is not None]
                    if len(fitting) > 1:
                        raise ValueError(
                            f"tokenizer: does not keep the spaces within secrets of "
                            f"{self.format.template!r}, so that two secrets may have the same "
                            "tokens; choose an expression that says where spaces are"
                        )

    def _check(self, encodings: list[list[int]]) -> tuple[int, float]:
        """See that these texts are in the tree, and choose the way in which it is walked.

        Returns:
            The most tokens that one of them has behind the prompt, and the share of false leaves.
        """
        paths = [self._path_of(ids) for ids in encodings]
        known = [path for path in paths if path is not None]
        if len(known) < len(paths):
            raise ValueError(
                f"tokenizer: {len(paths) - len(known)} of {len(paths)} secrets of "
                f"{self.format.template!r} are written with tokens that do not spell them; "
                "choose a template or an expression that this tokenizer keeps as it is"
            )
        return max(map(len, known)), choose_way(self, known)

    def _admit(self, paths: list[Ints]) -> None:
        """Have the walk come along these canonical paths, also where the way would miss one."""
        if self._proved or self.way not in ("pairs", "text"):
            return
        missed = self.missed(paths)
        for path in missed:
            self.tests.admit(path[-2:] if self.way == "pairs" else path)
        if missed:
            self.forget()

    # Ids, tokens, texts

    def _path_of(self, ids: Sequence[int]) -> Ints | None:
        cut = len(self._core)
        path, state = self.descend(ids[cut:])
        whole = list(ids[:cut]) == self._core and cut + len(path) == len(ids)
        return path if whole and state is not None and self.leaf[state] else None

    def _bytes(self, path: Sequence[int] | Ints) -> bytes:
        return self.tests.spell(path)[0]


def _first_characters(fmt: SecretFormat, limit: int = SMALL) -> Iterator[str]:
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
