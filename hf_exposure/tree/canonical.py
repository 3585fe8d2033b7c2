"""Which paths of tokens are canonical: those that the tokenizer itself gives for their text.

Found by asking the tokenizer, in two ways. A pair of neighbours can be asked for once and is known
from then on; whole texts take an encoding each, and see what pairs cannot: contractions, letters
that are split by what stands before them, runs of spaces.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from unicodedata import category

import numpy as np

from hf_exposure.canaries.automaton import Automaton
from hf_exposure.canaries.vocabulary import Encoder
from hf_exposure.utils.arrays import Bools, Ints

_NEAR = 32  # characters of the template that are looked at in testing pairs
_KEPT = 1 << 21  # pairs that are remembered


@dataclass
class PathTests:
    """Tests of paths of tokens; see `tokens` for what those are.

    Args:
        encoder: text to tokens.
        automaton: that of the tree, its token steps by tokens of the tree.
        token_ids: (C,) the tokenizer's id of each token.
        readings: (C,) the bytes that each may stand for.
        head: the text before the first token.
        padded: whether the text begins with a space that the tokenizer has put there.
        core: the tokens of the head.
    """

    encoder: Encoder
    automaton: Automaton
    token_ids: Ints
    readings: list[tuple[bytes, ...]]
    head: bytes
    padded: bool
    core: list[int]
    _pairs: dict[int, bool] = field(default_factory=dict)
    _admitted: set[tuple[int, ...]] = field(default_factory=set)
    _ways_on: dict[int, list[bytes]] = field(default_factory=dict)

    def spell(self, path: Sequence[int] | Ints) -> tuple[bytes, int]:
        """What a path spells, and the state at its end."""
        out, state = b"", 0
        for token in path:
            options = self.readings[int(token)]
            following = self.automaton.token_steps[state][int(token)]
            data = options[0]
            if len(options) > 1:
                data = next(d for d in options if self.automaton.run(d, state) == following)
            out, state = out + data, following
        return out, state

    def texts_fit(self, paths: Ints) -> Bools:
        """(n,) whether encoding all of the text so far gives each path back.

        A path that ends within a character is judged by the tokens before that character.
        """
        if not len(paths):
            return np.zeros(0, dtype=bool)
        texts, lengths = [], []
        for path in paths:
            data, length = self.spell(path)[0], len(path)
            while length and not whole_characters(data):
                length -= 1
                data = self.spell(path[:length])[0]
            texts.append((self.head + data).decode()[self.padded :])
            lengths.append(length)
        ids_of = self.token_ids[paths].tolist()
        return np.array(
            [
                ids == [*self.core, *path[:length]]
                for ids, path, length in zip(self.encoder(texts), ids_of, lengths, strict=True)
            ],
            dtype=bool,
        )

    def may_go_on(self, paths: Ints) -> Bools:
        """(n,) whether the encoding of some text that begins like each path begins with it."""
        fit = self.texts_fit(paths)
        places: list[int] = []
        texts: list[str] = []
        for place in np.flatnonzero(~fit).tolist():
            data, state = self.spell(paths[place])
            for ending in self._endings(state):
                places.append(place)
                texts.append((self.head + data + ending).decode()[self.padded :])
        width = len(self.core) + paths.shape[1]
        for place, ids in zip(places, self.encoder(texts), strict=True):
            if ids[:width] == [*self.core, *self.token_ids[paths[place]].tolist()]:
                fit[place] = True
        if self._admitted:
            for place in np.flatnonzero(~fit).tolist():
                fit[place] = tuple(paths[place].tolist()) in self._admitted
        return fit

    def admit(self, path: Ints) -> None:
        """Take a path as fit from now on, whatever a test of it says: its beginning of a text, or,
        for the test of pairs, its last two tokens."""
        self._admitted.add(tuple(path.tolist()))
        self._pairs.clear()

    def _endings(self, state: int) -> list[bytes]:
        """Ways to go on from a state: two for each kind of character that may come next, since
        that is what tokenizers look ahead for. None for a leaf."""
        if state not in self._ways_on:
            draw = random.Random(state)
            steps = self.automaton.steps[state]
            kinds: dict[str, list[int]] = {}
            for byte in draw.sample(sorted(steps), len(steps)):
                kinds.setdefault("" if byte > 127 else category(chr(byte)), []).append(byte)
            out = []
            for byte in (byte for kind in kinds.values() for byte in kind[:2]):
                to = steps[byte]
                rest = self.automaton.unrank(draw.randrange(self.automaton.counts[to]), to)
                out.append(bytes([byte]) + rest)
            self._ways_on[state] = out
        return self._ways_on[state]

    def pairs_fit(self, firsts: Ints, seconds: Ints) -> Bools:
        """(n,) whether each second token may follow the first, -1 for the prompt's end."""
        keys, place = np.unique((firsts + 1) * len(self.token_ids) + seconds, return_inverse=True)
        asked = keys.tolist()
        if len(self._pairs) > _KEPT:
            self._pairs.clear()
        new = [key for key in asked if key not in self._pairs]
        pairs = [(key // len(self.token_ids) - 1, key % len(self.token_ids)) for key in new]
        opening = sum(first < 0 for first, _ in pairs)  # the keys ascend
        begin = np.array([[second] for _, second in pairs[:opening]], dtype=np.int64)
        fits = [*self.texts_fit(begin).tolist(), *self._test_pairs(pairs[opening:]).values()]
        if self._admitted:
            known = [(first, second) if first >= 0 else (second,) for first, second in pairs]
            fits = [fit or pair in self._admitted for fit, pair in zip(fits, known, strict=True)]
        self._pairs.update(zip(new, fits, strict=True))
        return np.array([self._pairs[key] for key in asked], dtype=bool)[place]

    def _test_pairs(self, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], bool]:
        """Encode the joined text of two tokens in the middle of a text: after a line break, or
        after the template, since some tokenizers treat the beginning of a text otherwise."""
        out = dict.fromkeys(pairs, False)
        left: list[tuple[tuple[int, int], str]] = []
        for first, second in pairs:
            for data in self.readings[first]:
                for more in self.readings[second]:
                    if whole_characters(data + more):
                        left.append(((first, second), (data + more).decode()))
                    else:  # cannot be told from a part of a character
                        out[first, second] = True
        for anchor in ("\n", self.head.decode("utf-8", "ignore")[-_NEAR:]):
            left = [(pair, text) for pair, text in left if not out[pair]]
            encoded = self.encoder([anchor + text for _, text in left])
            for (pair, _), ids in zip(left, encoded, strict=True):
                if ids[-2:] == [self.token_ids[pair[0]], self.token_ids[pair[1]]]:
                    out[pair] = True
        return out


def whole_characters(data: bytes) -> bool:
    """Whether bytes are text, no part of a character."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
