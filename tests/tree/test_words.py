"""Spaces of words: few calls of the tokenizer, the same tree."""

from __future__ import annotations

import random

import numpy as np

from hf_exposure.canaries.automaton import compile_automaton
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.tree.tokens import TokenTree
from tests import tiny


def words(count: int) -> list[str]:
    draw = random.Random(0)
    found: set[str] = set()
    while len(found) < count:
        found.add("".join(draw.choice("abcdeilnorst") for _ in range(draw.randrange(3, 8))))
    return sorted(found)


def test_the_children_of_many_nodes_are_those_of_each_alone_and_asked_for_at_once() -> None:
    one = f"({'|'.join(words(60))})"
    fmt = SecretFormat("My words are {secret}.", f"{one} {one}")
    together, alone = (TokenTree(fmt, tiny.digits_one_by_one()) for _ in range(2))
    assert together.way == "pairs"
    tokens, states = together.children(0)
    keys = together.key(states, tokens).tolist()
    together.forget()
    together.tests._pairs.clear()  # learned in choosing the way
    asked: list[int] = []
    test_pairs = together.tests._test_pairs
    together.tests._test_pairs = lambda pairs: (asked.append(len(pairs)), test_pairs(pairs))[1]
    found = together.all_children(keys)
    assert len(asked) == 1
    for key, (some, following) in zip(keys, found, strict=True):
        expected = alone.children(key)
        assert np.array_equal(some, expected[0]) and np.array_equal(following, expected[1])


def test_the_words_that_occur_in_an_automaton_are_found() -> None:
    automaton = compile_automaton("(the|then|other) [0-9]{2}", before="a ", after=".")
    strings = list(automaton.strings())
    draw = random.Random(1)
    tried = {bytes(draw.choices(b"theno a09.", k=draw.randrange(1, 5))) for _ in range(3000)}
    expected = sorted(word for word in tried if any(word in string for string in strings))
    assert automaton.occurring(tried) == expected
