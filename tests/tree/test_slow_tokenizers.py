"""The tree holds for tokenizers that transformers runs in Python, and for older kinds of BPE."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertGenerationTokenizer,
    ByT5Tokenizer,
    CanineTokenizer,
    CTRLTokenizer,
    GPTSw3Tokenizer,
    OpenAIGPTTokenizer,
)
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.tree.tokens import TokenTree
from tests.selection import rest_slow
from tests.tiny import corpus
from tests.tree.test_tokens import encoded, leaves, tokens

FORMATS = {
    "digits": SecretFormat("the number is {secret}.", secret="[0-9]{3}"),
    "letters": SecretFormat("my code is {secret}.", secret="[a-e]{4}"),
    "words": SecretFormat(
        "my code is {secret} or not", secret="(the|key|a) (secret|number) [ab]{2}"
    ),
    "hyphens": SecretFormat("my code is {secret}", secret="[0-3a]{2}-[0-3]"),
    "at the end": SecretFormat("the number is {secret}", secret="[0-9]{2}"),
}


def merged(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces of words and merges, a word's last piece marked with </w>."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=400, end_of_word_suffix="</w>", show_progress=False, special_tokens=["<unk>"]
    )
    letters = " ".join("abcdefghijklmnopqrstuvwxyz0123456789.!-@'")
    tokenizer.train_from_iterator([*corpus(), letters, letters.replace(" ", "")], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def ctrl(folder: Path) -> Any:
    vocab, merges = merged(folder)
    pieces = [
        piece.removesuffix("</w>") if piece.endswith("</w>") else piece + "@@" for piece in vocab
    ]
    pieces = list(dict.fromkeys(["<unk>", *pieces, *(piece + "@@" for piece in pieces)]))
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines))
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def openai_gpt(folder: Path) -> Any:
    vocab, merges = merged(folder)
    return OpenAIGPTTokenizer(vocab=vocab, merges=merges)


def sentences(folder: Path, kind: str) -> str:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*corpus(), *"abcdefghijklmnopqrstuvwxyz0123456789.!-"]),
        model_prefix=str(folder / "spiece"),
        vocab_size=300,
        model_type=kind,
        character_coverage=1.0,
        minloglevel=2,
        pad_id=3,
    )
    return str(folder / "spiece.model")


def gpt_sw3(folder: Path) -> Any:
    return GPTSw3Tokenizer(sentences(folder, "bpe"), name_or_path="test")


def bert_generation(folder: Path) -> Any:
    return BertGenerationTokenizer(sentences(folder, "unigram"), bos_token="<s>")


def bert(folder: Path) -> Any:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.!-"
    words = [
        "the",
        "number",
        "is",
        "my",
        "code",
        "secret",
        "key",
        "or",
        "not",
        "##ab",
        "##cd",
        "12",
    ]
    pieces = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *words, *letters]
    pieces += ["##" + letter for letter in letters]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return BertTokenizerLegacy(str(folder / "vocab.txt"))


def byt5(folder: Path) -> Any:
    return ByT5Tokenizer()


MADE = {made.__name__: made for made in (byt5, ctrl, openai_gpt, gpt_sw3, bert_generation, bert)}


@pytest.fixture(scope="module", params=rest_slow(sorted(MADE), ("bert", "openai_gpt")))
def tokenizer(request: Any, tmp_path_factory: Any) -> Iterator[Any]:
    return MADE[request.param](tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_leaves_are_the_encodings_of_all_strings(tokenizer: Any, name: str) -> None:
    fmt = FORMATS[name]
    tree = TokenTree(fmt, tokenizer)
    special = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    expected = {
        tuple(itertools.takewhile(lambda i: i not in special, encoded(tokenizer, fmt.render(s))))
        for s in fmt.enumerate()
    }
    found = [tokens(tree, path) for path in leaves(tree)]
    assert set(found) == expected
    assert len(found) == fmt.size == len(expected)
    for secret in fmt.sample(20, seed=1):
        assert tree.secret(tree.path(secret)) == secret


@pytest.mark.slow  # a vocabulary of 1,114,112
def test_one_number_for_each_character_of_unicode_is_a_vocabulary_too() -> None:
    tokenizer, fmt = CanineTokenizer(), SecretFormat("the code is {secret}.", secret="[éa中]{2}")
    tree = TokenTree(fmt, tokenizer)
    assert tree.way == "single"
    found = {tokens(tree, path)[1:] for path in leaves(tree)}
    assert found == {tuple(map(ord, fmt.render(secret))) for secret in fmt.enumerate()}
