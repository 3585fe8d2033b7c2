"""The tree has one leaf for each secret, the tokenizer's own encoding, under every tokenizer."""

from __future__ import annotations

import itertools
import string
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.tree.tokens import TokenTree
from hf_exposure.tree.walkable import WAYS
from tests.selection import rest_slow
from tests.tiny import SOME_TOKENIZERS, TOKENIZERS

# Formats of small spaces, and what each is there for.
FORMATS = {
    "digits": SecretFormat("The number is {secret}.", secret="[0-9]{2}"),
    "letters": SecretFormat("My code is {secret}!", secret="[a-c]{3}"),
    "mixed case": SecretFormat("The key {secret}.", secret="[abAB]{3}"),
    "spaces": SecretFormat("a {secret}.", secret="[01]{2} [0-3]{2}"),
    "hyphens": SecretFormat("a {secret}.", secret="[0-3]{2}-[0-3]"),
    "contractions": SecretFormat("My code 5{secret}.", secret="[delmrstv']{3}"),
    "optional": SecretFormat("no {secret}.", secret="[0-3]{2}( [0-3])?"),
    "at the end": SecretFormat("number {secret}", secret="[0-9]{2}"),
    "at the start": SecretFormat("{secret} is it.", secret="[0-9]{2}"),
    "no space before": SecretFormat("my code a{secret}.", secret="[0-9a]{2}"),
    "words": SecretFormat("my {secret}.", secret="(the|then|them|your|key)s?"),
    "beyond ASCII": SecretFormat("my {secret}.", secret="[éüa]{2}"),
    "only one": SecretFormat("my {secret}.", secret="abc1"),
    "spaces or not": SecretFormat("my {secret}.", secret="[a ]{3}"),
}
# What cannot be: with the words of the error.
NO_BOS, UNKNOWN, CHANGED = "no token comes before", "cannot encode", "does not keep"
REFUSED = {
    ("freely_merged", "at the start"): NO_BOS,
    ("unigram", "at the start"): NO_BOS,
    ("characters", "at the start"): NO_BOS,
    ("unigram", "beyond ASCII"): UNKNOWN,
    ("wordpiece", "beyond ASCII"): UNKNOWN,
    ("characters", "beyond ASCII"): UNKNOWN,
    ("wordpiece", "mixed case"): CHANGED,
    ("wordpiece", "spaces or not"): CHANGED,
}
LARGE = {
    "digits": SecretFormat("The number is {secret}.", secret="[0-9]{9}"),
    "letters": SecretFormat("My code is {secret}.", secret="[a-i]{8}"),
    "words": SecretFormat("My code is {secret}!", secret="([a-e]{3} ){4}[0-9]{4}"),
}


def allowed(kind: str, name: str) -> bool:
    return (kind, name) not in REFUSED


PAIRS = [pair for pair in itertools.product(sorted(TOKENIZERS), FORMATS) if allowed(*pair)]


def encoded(tokenizer: Any, text: str) -> tuple[int, ...]:
    """A text's tokens as in training, but for what stands behind it."""
    ids = tokenizer(text)["input_ids"]
    while ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return tuple(ids)


def leaves(tree: TokenTree) -> list[tuple[int, ...]]:
    """All leaves that count, without a model: by the same calls as `walk` makes."""
    found: list[tuple[int, ...]] = []
    level: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    while level:
        following = []
        for state, path in level:
            key = tree.key(np.array([state]), np.array([path[-1] if path else -1]))
            for column, to in zip(*map(np.ndarray.tolist, tree.children(int(key[0]))), strict=True):
                following.append((to, (*path, column)))
        if not following:
            break
        fit = tree.possible(np.array([path for _, path in following]))
        level = [node for node, fits in zip(following, fit, strict=True) if fits]
        ends = [path for state, path in level if tree.leaf[state]]
        if ends:
            own = tree.canonical(np.array(ends))
            found += [path for path, counts in zip(ends, own, strict=True) if counts]
        level = [(state, path) for state, path in level if not tree.leaf[state]]
    return found


def tokens(tree: TokenTree, path: Any) -> tuple[int, ...]:
    return (*tree.prompt, *tree.token_ids[list(path)].tolist())


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_the_leaves_are_the_encodings_of_all_strings(kind: str, name: str) -> None:
    tokenizer, fmt = TOKENIZERS[kind](), FORMATS[name]
    tree = TokenTree(fmt, tokenizer)
    expected = {encoded(tokenizer, fmt.render(secret)) for secret in fmt.enumerate()}
    found = [tokens(tree, path) for path in leaves(tree)]
    assert len(found) == fmt.size
    assert set(found) == expected


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_a_path_and_its_secret_belong_together(kind: str, name: str) -> None:
    tokenizer, fmt = TOKENIZERS[kind](), FORMATS[name]
    tree = TokenTree(fmt, tokenizer)
    secrets = list(fmt.enumerate())
    for secret, path in zip(secrets, tree.paths(secrets), strict=True):
        assert tokens(tree, path) == encoded(tokenizer, fmt.render(secret))
        assert tree.secret(path) == secret
    assert np.array_equal(tree.path(secrets[-1]), tree.paths(secrets)[-1])


@pytest.mark.parametrize(("kind", "name"), sorted(REFUSED))
def test_what_a_tokenizer_cannot_write_is_refused_without_showing_a_secret(
    kind: str, name: str
) -> None:
    fmt = FORMATS[name]
    with pytest.raises(ValueError, match=REFUSED[kind, name]) as caught:
        TokenTree(fmt, TOKENIZERS[kind]())
    rest = str(caught.value).replace(fmt.template, "")
    if kind != "wordpiece" or name != "spaces or not":
        assert not [secret for secret in fmt.enumerate() if secret in rest]


def test_a_secret_at_the_start_needs_a_token_before_it_and_can_get_one() -> None:
    fmt, tokenizer = FORMATS["at the start"], TOKENIZERS["freely_merged"]()
    tree = TokenTree(fmt, tokenizer, bos=True)
    assert tree.prompt == [tokenizer.bos_token_id]
    assert len(leaves(tree)) == fmt.size
    with pytest.raises(ValueError, match="no token comes before"):
        TokenTree(fmt, TOKENIZERS["digits_one_by_one"](), bos=False)


def test_bos_can_be_left_out() -> None:
    fmt, tokenizer = FORMATS["digits"], TOKENIZERS["digits_one_by_one"]()
    assert TokenTree(fmt, tokenizer).prompt[0] == tokenizer.bos_token_id
    without = TokenTree(fmt, tokenizer, bos=False)
    assert without.prompt == TokenTree(fmt, tokenizer).prompt[1:]
    assert len(leaves(without)) == fmt.size


@pytest.mark.parametrize("kind", rest_slow(sorted(TOKENIZERS), SOME_TOKENIZERS))
@pytest.mark.parametrize("name", sorted(LARGE))
def test_random_secrets_of_a_large_space_are_in_the_tree(kind: str, name: str) -> None:
    tokenizer, fmt = TOKENIZERS[kind](), LARGE[name]
    tree = TokenTree(fmt, tokenizer)
    for secret in fmt.sample(100, seed=5):
        path = tree.path(secret)
        assert tokens(tree, path) == encoded(tokenizer, fmt.render(secret))
        assert tree.secret(path) == secret
        state = 0
        for depth in range(1, len(path) + 1):
            last = int(path[depth - 2]) if depth > 1 else -1
            key = tree.key(np.array([state]), np.array([last]))
            columns, states = tree.children(int(key[0]))
            (place,) = np.flatnonzero(columns == path[depth - 1])
            assert tree.possible(path[None, :depth])[0]
            state = int(states[place])
        assert tree.leaf[state]
        assert tree.canonical(path[None])[0]


@pytest.mark.parametrize("kind", rest_slow(sorted(TOKENIZERS), SOME_TOKENIZERS))
def test_the_share_of_false_leaves_is_that_of_random_descents(kind: str) -> None:
    tree = TokenTree(LARGE["letters"], TOKENIZERS[kind]())
    draw = np.random.default_rng(0)
    counted = []
    for _ in range(200):
        state, path = 0, [-1]
        while not tree.leaf[state]:
            key = tree.key(np.array([state]), np.array([path[-1]]))
            columns, states = tree.children(int(key[0]))
            paths = np.array([[*path[1:], column] for column in columns.tolist()])
            fit = np.flatnonzero(tree.possible(paths)) if len(paths) else []
            if not len(fit):
                break
            place = draw.choice(fit)
            path.append(int(columns[place]))
            state = int(states[place])
        else:
            counted.append(tree.canonical(np.array([path[1:]]))[0])
    false = 1 - np.mean(counted)
    assert abs(false - tree.false_share) < 4 * np.sqrt(0.25 / len(counted))
    assert tree.way in WAYS


@pytest.mark.parametrize(
    ("kind", "name", "way"),
    [
        ("digits_one_by_one", "digits", "single"),
        ("characters", "contractions", "single"),
        ("digits_in_threes", "digits", "pairs"),
        ("sentencepiece_bpe", "letters", "pairs"),
        ("contractions", "contractions", "text"),
        ("wordpiece", "letters", "text"),
    ],
)
def test_the_cheapest_way_that_holds_is_chosen(kind: str, name: str, way: str) -> None:
    tree = TokenTree(FORMATS[name], TOKENIZERS[kind]())
    assert (tree.way, tree.false_share) == (way, 0.0)


def test_pairs_of_contractions_would_be_wrong_with_the_right_number_of_them() -> None:
    """Why the set of paths is compared, and not how many there are."""
    fmt, tokenizer = FORMATS["contractions"], TOKENIZERS["contractions"]()
    tree = TokenTree(fmt, tokenizer)
    expected = {encoded(tokenizer, fmt.render(secret)) for secret in fmt.enumerate()}
    tree.choose("pairs")
    assert {tokens(tree, path) for path in leaves(tree)} < expected


def looks_ahead() -> Any:
    """Splits a run of spaces before a word as GPT-2 does; only in "  ue" are they two tokens."""
    merges = [("u", "e"), *(("Ġ", letter) for letter in string.ascii_lowercase), ("Ġ", "Ġ")]
    pieces = [*"Ġ.", *string.ascii_lowercase, *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("way", ["pairs", "text"])
def test_a_secret_that_the_way_misses_is_in_the_tree_once_it_was_asked_for(way: str) -> None:
    """A canary's own path is walked, even if the check on making the tree has foreseen none."""
    fmt, tokenizer = FORMATS["contractions"], TOKENIZERS["contractions"]()
    if way == "text":
        fmt, tokenizer = SecretFormat("my{secret}.", secret="[ ]{2}[a-z]{2}"), looks_ahead()
    tree = TokenTree(fmt, tokenizer)
    tree.choose(way)
    expected = {encoded(tokenizer, fmt.render(secret)) for secret in fmt.enumerate()}
    missed = expected - {tokens(tree, path) for path in leaves(tree)}
    assert missed
    for secret in fmt.enumerate():
        tree.path(secret)
    assert {tokens(tree, path) for path in leaves(tree)} == expected


@pytest.mark.parametrize("kind", ["digits_one_by_one", "digits_in_threes", "freely_merged"])
def test_added_tokens_that_are_not_special_are_tokens_like_others(kind: str) -> None:
    tokenizer = TOKENIZERS[kind].__wrapped__()
    tokenizer.add_tokens(["00", "7.", "  "])
    fmt = SecretFormat("The number is {secret}.", secret="[07 ]{4}")
    tree = TokenTree(fmt, tokenizer)
    expected = {encoded(tokenizer, fmt.render(secret)) for secret in fmt.enumerate()}
    assert {tokens(tree, path) for path in leaves(tree)} == expected
    assert set(tokenizer.convert_tokens_to_ids(["00", "7.", "  "])) <= set(tree.token_ids.tolist())
    assert len(expected) == fmt.size


def test_special_tokens_never_occur_within_a_secret() -> None:
    tokenizer = TOKENIZERS["freely_merged"]()
    tree = TokenTree(SecretFormat("a {secret}!", secret="[<s/]{1,4}"), tokenizer)
    assert not set(tree.token_ids.tolist()) & set(tokenizer.all_special_ids)
    with pytest.raises(ValueError, match="does not keep the text"):
        TokenTree(SecretFormat("a {secret}!", secret="[<>s/]{1,4}"), tokenizer)  # "<s>"


def test_an_added_token_that_brings_a_space_of_its_own_is_refused() -> None:
    """As with Llama 2's normalizer, under which "00" within a word is "▁00"."""
    tokenizer = TOKENIZERS["sentencepiece_bpe"].__wrapped__()
    tokenizer.add_tokens(["00"])
    with pytest.raises(ValueError, match=r"^tokenizer: "):
        TokenTree(SecretFormat("The number is {secret}.", secret="[07]{4}"), tokenizer)


@pytest.mark.parametrize("name", ["digits", "letters", "beyond ASCII"])
def test_a_slow_tokenizer_has_a_tree_too(name: str) -> None:
    tokenizer, fmt = ByT5Tokenizer(), FORMATS[name]
    tree = TokenTree(fmt, tokenizer)
    expected = {encoded(tokenizer, fmt.render(secret)) for secret in fmt.enumerate()}
    assert {tokens(tree, path) for path in leaves(tree)} == expected


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@pytest.mark.parametrize("before", [" ", "\n", "the random number is "])
def test_what_stands_before_the_template_is_encoded_with_it(kind: str, before: str) -> None:
    tokenizer, fmt = TOKENIZERS[kind](), FORMATS["digits"]
    if kind in ("unigram", "characters") and before == "\n":
        with pytest.raises(ValueError, match="cannot encode"):
            TokenTree(fmt, tokenizer, before=before)
        return
    tree = TokenTree(fmt, tokenizer, before=before)
    expected = {encoded(tokenizer, before + fmt.render(secret)) for secret in fmt.enumerate()}
    assert {tokens(tree, path) for path in leaves(tree)} == expected


def test_other_contexts_have_other_prompts() -> None:
    fmt, tokenizer = FORMATS["digits"], TOKENIZERS["freely_merged"]()
    assert TokenTree(fmt, tokenizer).prompt != TokenTree(fmt, tokenizer, before=" ").prompt


def test_the_cut_comes_earlier_where_a_secret_merges_with_the_template() -> None:
    tokenizer = TOKENIZERS["freely_merged"]()
    fmt = SecretFormat("the cod{secret}.", secret="[a-z]{2}")
    tree = TokenTree(fmt, tokenizer)
    expected = {encoded(tokenizer, fmt.render(secret)) for secret in fmt.enumerate()}
    assert {tokens(tree, path) for path in leaves(tree)} == expected
    # Whatever was before the cut is the same for all of them, and as long as it can be.
    common = [len(set(column)) == 1 for column in zip(*expected, strict=False)]
    assert all(common[: len(tree.prompt)])


def test_counts_of_states_are_counts_of_strings() -> None:
    fmt = FORMATS["optional"]
    tree = TokenTree(fmt, TOKENIZERS["digits_one_by_one"]())
    assert 2 ** tree.log2_counts[0] == pytest.approx(fmt.size)
    assert (tree.log2_counts[tree.leaf] == 0).all()


def test_equal_keys_have_equal_children() -> None:
    """The same node asked for again, after what was remembered has been let go."""
    tree = TokenTree(LARGE["letters"], TOKENIZERS["freely_merged"]())
    assert tree.way == "pairs"
    root = int(tree.key(np.array([0]), np.array([-1]))[0])
    columns, states = tree.children(root)
    keys = np.unique(tree.key(states, columns))
    assert len(keys) == len(columns)  # no two nodes of another last token share one
    first = [tree.children(int(key)) for key in keys]
    tree.forget()
    for key, (some, to) in zip(keys[::-1], first[::-1], strict=True):
        again = tree.children(int(key))
        assert np.array_equal(again[0], some)
        assert np.array_equal(again[1], to)


def test_children_are_the_same_however_many_are_remembered(monkeypatch: Any) -> None:
    fmt, tokenizer = FORMATS["letters"], TOKENIZERS["freely_merged"]()
    expected = leaves(TokenTree(fmt, tokenizer))
    monkeypatch.setattr("hf_exposure.tree.walkable._KEPT", 3)
    assert leaves(TokenTree(fmt, tokenizer)) == expected


def test_pairs_that_are_tested_only_when_taken_give_the_same_leaves(monkeypatch: Any) -> None:
    fmt, tokenizer = FORMATS["letters"], TOKENIZERS["freely_merged"]()
    expected = leaves(TokenTree(fmt, tokenizer))
    monkeypatch.setattr("hf_exposure.tree.walkable._EAGER", 0)
    assert sorted(leaves(TokenTree(fmt, tokenizer))) == sorted(expected)


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_descending_along_tokens_stops_at_a_leaf_and_outside_the_tree(kind: str) -> None:
    fmt, tokenizer = FORMATS["digits"], TOKENIZERS[kind]()
    tree = TokenTree(fmt, tokenizer)
    path = tree.path("42")
    after = encoded(tokenizer, fmt.render("42"))[len(tree.prompt) :]
    found, state = tree.descend([*after, 7, 7])
    assert np.array_equal(found, path)
    assert state is not None
    assert tree.leaf[state]
    found, state = tree.descend([*after[:-1], tokenizer.eos_token_id])
    assert np.array_equal(found, path[:-1])
    assert state is None


@pytest.mark.slow
def test_random_paths_are_those_of_random_secrets() -> None:
    tree = TokenTree(LARGE["digits"], TOKENIZERS["digits_in_threes"]())
    assert [tree.secret(path) for path in tree.random_paths(5, seed=3)] == LARGE["digits"].sample(
        5, seed=3
    )


def test_one_token_for_unknown_and_for_the_end_is_no_unknown_where_the_template_has_it() -> None:
    tokenizer = TOKENIZERS["freely_merged"].__wrapped__()
    tokenizer.unk_token = "</s>"
    fmt = FORMATS["digits"]
    tree = TokenTree(fmt, tokenizer, before="</s>")
    assert tree.prompt[0] == tokenizer.convert_tokens_to_ids("</s>")
    assert len(leaves(tree)) == fmt.size
