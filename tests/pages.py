"""The code on a page of the documentation, and a place where it runs: what README and docs promise.

Python blocks run one after another in one namespace for each page, which begins with what a reader
has: a model, its tokenizer, data, canaries. Sessions (`pycon`) are doctests. Of shell lines every
`hf-exposure` is run on a tiny model, or parsed by the real command line where it would take
minutes; of the others it is seen that their scripts, flags and targets are there.

A block that cannot run has `<!-- not run: why -->` on the line before it.
"""

from __future__ import annotations

import contextlib
import doctest
import itertools
import os
import re
import shlex
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments
from typer.testing import CliRunner

from hf_exposure import Canaries, SecretFormat
from hf_exposure.cli import app
from tests.endpoint import Endpoint
from tests.tiny import TOKENIZERS, conversations, corpus, llama

ROOT = Path(__file__).parents[1]
MINUTES = {"demo"}  # trains for minutes: parsed, not run
# Given where a line does not say: small budgets for a small model.
SMALL = {
    "measure": {"--samples": "100"},
    "audit": {"--samples": "20", "--top": "2"},
    "extract": {"--max-forwards": "500"},
}
# What else a shell line may begin with; `python FILE` and `make TARGET` are looked into.
OTHERS = {"accelerate", "cd", "git", "hf", "pip", "python3", "torchrun", "vllm"}

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>[^>]*) -->\n)?```(?P<kind>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_INDENTED = re.compile(r"^ {4}(?=(?:hf-exposure|make|python|pip) )((?:.*\\\n)*.*)$", re.MULTILINE)
_SHELL = ("hf-exposure", "make", "python", *sorted(OTHERS))


@dataclass(frozen=True)
class Block:
    """A block of code: its kind is "python", "pycon" or "sh"; `why` it is not run, if so."""

    kind: str
    code: str
    why: str | None = None


def blocks(text: str) -> list[Block]:
    """All code on a page, in order; diagrams and output are none."""
    found: list[tuple[int, Block]] = []
    for match in _BLOCK.finditer(text):
        kind, code = match["kind"], match["code"]
        if kind in ("sh", "bash") or (kind == "" and code.startswith(_SHELL)):
            kind = "sh"
        if kind in ("python", "pycon", "sh"):
            found.append((match.start(), Block(kind, code, match["why"])))
    outside = _BLOCK.sub(lambda match: re.sub(r"[^\n]", "#", match[0]), text)
    for match in _INDENTED.finditer(outside):
        found.append((match.start(), Block("sh", match[1])))
    return [block for _, block in sorted(found, key=lambda pair: pair[0])]


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each line of a shell block."""
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.strip(), comments=True)
        if words:
            yield words


def run_page(name: str, folder: str) -> None:
    """Run all code of a page, with `folder` as the working folder; raises where something fails.

    Args:
        name: the page's path from the repository's root.
    """
    known = reader(Path(folder))
    page = (ROOT / name).read_text(encoding="utf-8")
    if '.save("canaries.json")' not in page:  # it reads what its reader has
        known["canaries"].save(Path(folder, "canaries.json"))
    with _inside(folder), _served(known) as address:
        for block in blocks(page):
            if block.why is not None:
                continue
            if block.kind == "sh":
                for words in commands(block):
                    _shell(words, known, address)
            elif block.kind == "pycon":
                _session(block.code, known, name)
            else:
                code = block.code.replace("http://localhost:8000", address)
                exec(compile(code, name, "exec"), known)
            _tokenized(known)


@contextlib.contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def reader(folder: Path) -> dict[str, Any]:
    """What somebody has who reads a page: names as the pages use them."""
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    lines = list(corpus()[:60])
    fmt = SecretFormat("the random number is {secret}.", secret="[0-9]{4}")
    held_out = Dataset.from_dict(dict(tokenizer(lines[:8]))).select_columns(["input_ids"])
    rows = {
        "text": [*lines[:5], "Call me at +1 202-456-1111, the card is 4111 1111 1111 1111."],
        "prefix": lines[:6],
        "suffix": lines[6:12],
    }
    return {
        "dataset": Dataset.from_dict({"text": [*lines, *_many_words()]}),
        "chat": conversations(),
        "rows": Dataset.from_dict(rows),
        "held_out": held_out,
        "model": llama(len(tokenizer)),
        "base": llama(len(tokenizer), seed=1),
        "tokenizer": tokenizer,
        "collator": DataCollatorForLanguageModeling(tokenizer, mlm=False),
        "fmt": fmt,
        "canaries": Canaries.generate(fmt, [0, 1, 4], per_repetition=2),
        "args": TrainingArguments(
            str(folder / "out"),
            num_train_epochs=1,
            per_device_train_batch_size=32,
            eval_strategy="epoch",
            save_strategy="no",
            report_to=[],
            use_cpu=True,
        ),
        "Trainer": Trainer,
    }


def _many_words() -> list[str]:
    """Short lines of 520 words, from which a passphrase's can be chosen."""
    words = ["".join(three) for three in itertools.product("bdfgklmn", "aeiou", "bdfgklmnprstz")]
    return [" ".join(words[place : place + 13]) for place in range(0, len(words), 13)]


def _tokenized(known: dict[str, Any]) -> None:
    """What a reader does with rows that hold canaries: encode them, in the way of the ecosystem."""
    if "train" in known and known.get("_encoded") is not known["train"]:
        tokenizer, train = known["tokenizer"], known["train"]
        known["_encoded"] = train

        def encode(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
            texts = batch["messages"] if "messages" in batch else batch["text"]
            if "messages" in batch:
                texts = tokenizer.apply_chat_template(texts, tokenize=False)
            return {"input_ids": tokenizer(texts)["input_ids"]}

        known["tokenized"] = train.map(encode, batched=True, remove_columns=train.column_names)


@contextlib.contextmanager
def _served(known: dict[str, Any]) -> Iterator[str]:
    """The reader's model at an endpoint on this machine; its address."""
    with Endpoint(known["model"], known["tokenizer"], "vllm", name="my-model") as endpoint:
        yield endpoint.url.removesuffix("/v1")


def _session(code: str, known: dict[str, Any], name: str) -> None:
    """An interactive session gives what the page says."""
    test = doctest.DocTestParser().get_doctest(code, known, name, name, 0)
    said: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(optionflags=flags).run(test, out=said.append, clear_globs=False)
    assert not said, "".join(said)
    known.update(test.globs)


# Shell lines


def _shell(words: list[str], known: dict[str, Any], address: str) -> None:
    if words[0] == "hf-exposure":
        words = [word.replace("http://localhost:8000", address) for word in words[1:]]
        if words[0] in MINUTES or "--help" in words:
            parse(words)
            return
        _prepare(words, known)
        small = SMALL.get(words[0], {}).items()
        words += [word for pair in small if pair[0] not in words for word in pair]
        result = CliRunner().invoke(app, words, catch_exceptions=False, env={"MY_KEY": "none"})
        fine = (0, 3) if words[0] == "gate" else (0,)  # a model so small decides nothing
        assert result.exit_code in fine, f"hf-exposure {shlex.join(words)}\n{result.output}"
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets, f"the Makefile has no target {words[1]!r}"
    elif words[0] == "python":
        _script(words[1:])
    else:
        assert words[0] in OTHERS, f"{words[0]!r} is no command that the pages use"


def parse(words: list[str]) -> None:
    """Raises if the real command line does not understand `words`; runs nothing."""
    group = typer.main.get_command(app)
    assert hasattr(group, "commands")
    command = group.commands[words[0]]
    with command.make_context(words[0], list(words[1:]), resilient_parsing="--help" in words):
        pass


def _script(words: list[str]) -> None:
    """The script is there, and knows the flags: its own, or those of TrainingArguments."""
    path = ROOT / words[0]
    assert path.is_file(), f"there is no {words[0]}"
    source = path.read_text(encoding="utf-8")
    own = set(typing.get_type_hints(TrainingArguments)) if "TrainingArguments" in source else set()
    for flag in (word.removeprefix("--").partition("=")[0] for word in words if word[:2] == "--"):
        name = flag.replace("-", "_")
        assert flag in source or name in source or name in own, f"{words[0]} has no --{flag}"


def _prepare(words: list[str], known: dict[str, Any]) -> None:
    """Put what a command names where it looks for it: the reader's own models and data."""
    given = dict(itertools.pairwise(words))
    for flag in ("--model", "--base"):
        if name := given.get(flag):
            _put_model(name, known, on_hub="--push-to-card" in words and flag == "--model")
    for flag in ("--dataset", "--non-members"):
        if (name := given.get(flag)) and not Path(name).exists():
            known["rows"].to_json(name)
    if (name := given.get("--canaries")) and words[0] != "inject" and not Path(name).exists():
        if name.endswith(".json"):
            known["canaries"].save(name)
        else:
            known["canaries"].push_to_hub(name)
    if name := given.get("--benchmark"):
        Path(name).mkdir(exist_ok=True)
        ids = np.arange(5, 105, dtype=np.uint16).reshape(2, 50) % 300 + 5
        np.save(Path(name) / "train_prefix.npy", ids)
        np.save(Path(name) / "train_suffix.npy", ids[:, :5])


def _put_model(name: str, known: dict[str, Any], on_hub: bool) -> None:
    place = Path("on-the-hub", name) if on_hub else Path(name)
    if not place.exists():
        known["model"].save_pretrained(place)
        known["tokenizer"].save_pretrained(place)
        if on_hub:
            from huggingface_hub import HfApi

            HfApi().create_repo(name, exist_ok=True)
            HfApi().upload_folder(repo_id=name, folder_path=str(place))
