"""Tables for `test_bad_input.py`: for each public callable a good call, and bad values for each
argument."""

from __future__ import annotations

import functools
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import TrainingArguments

import hf_exposure as hx
from tests import tiny

NAN, INF = math.nan, math.inf
HUGE = 10**5000  # no float holds it, and Python does not write its digits


class Nothing:
    """An object of no use to anybody."""


def numbers_from(*values: int) -> Iterator[int]:
    yield from values


# What is bad whatever the argument is for, but for those that the kind itself accepts.
WRONG: list[Any] = [
    b"3",
    Nothing(),
    Nothing,
    3j,
    {},
    {"a": 1},
    [],
    [[]],
    (),
    {1, 2},
    np.zeros(3),
    np.array("3"),
    pd.Series([1.0, 2.0]),
    pd.DataFrame({"a": [1]}),
    torch.zeros(2),
    torch.nn.Linear(1, 1),
    lambda: 3,
    ...,
    NotImplemented,
    range(0),
    Dataset.from_dict({"text": ["a"]}),
]
NO_NUMBER = [*WRONG, "3", "", "three", True, False, np.bool_(True), Path("3")]


def count(least: int = 0, most: float = INF, none: bool = False) -> list[Any]:
    """What is no whole number from `least` to `most`."""
    out = [*NO_NUMBER, 2.0, 1.5, NAN, INF, -INF, np.float64(2), least - 1, -(10**30)]
    out += [torch.tensor(2.5), np.array([2])]
    return out + ([] if none else [None]) + ([most + 1, HUGE] if most < INF else [])


def number(
    least: float = -INF, most: float = INF, none: bool = False, infinite: bool = False
) -> list[Any]:
    """What is no number from `least` to `most`."""
    out = [*NO_NUMBER, NAN, np.float32("nan"), HUGE, -HUGE]
    out += [] if infinite else [INF, -INF]
    out += [least - 1] if least > -INF else []
    return out + ([] if none else [None]) + ([most + 1] if most < INF else [])


SHARE = [*number(), 0, 1, 0.0, 1.0, -0.5, 95, INF]
FLAG = [*WRONG, "no", "yes", "", 0, 1, 2, None, NAN, "False"]
MAYBE_FLAG = [value for value in FLAG if value is not None]
TEXT = [*WRONG, 3, 1.5, None, NAN, True, Path("a")]
MAYBE_TEXT = [value for value in TEXT if value is not None]
FILE = [*WRONG, 3, None, NAN, True, "", "a\0b", "/", "/proc/nothing/here", "x" * 5000]
READ = [*FILE, "/nowhere/at-all.json", "/dev/null"]


def manifests() -> list[Path]:
    """Files that look like manifests and ask for too much, or for nothing that there is."""
    good = CANARIES.to_json()
    bad = {
        "expression": good.replace("[0-9]{3}", "([0-9]{1,1000}){1000}"),
        "template": good.replace("The random", "x" * 10**6),
        "repetitions": re.sub(r'"repetitions": \d+', '"repetitions": 10000000', good),
        "nan": re.sub(r'"repetitions": \d+', '"repetitions": NaN', good),
        "digits": re.sub(r'"repetitions": \d+', '"repetitions": ' + "9" * 5000, good),
        "deep": "[" * 10**5,
        "cut": good[:-9],
        "list": "[1]",
        "empty": "",
    }
    assert all(text != good for text in bad.values())
    for name, text in bad.items():
        (folder() / f"bad {name}.json").write_text(text, encoding="utf-8")
    (folder() / "bad bytes.json").write_bytes(b"\xff\xfe\0")
    return sorted(folder().glob("bad *.json"))


MODEL = [*WRONG, None, 3, "gpt2", "", Path("gpt2"), True, NAN]
TOKENIZER = [*WRONG, 3, "gpt2", True, NAN, Path("gpt2")]


def choice(none: bool = False) -> list[Any]:
    return [*TEXT, "nonsense", "", "AUTO"] if not none else [*MAYBE_TEXT, "nonsense", ""]


@dataclass
class Call:
    """One public callable, how it is called well, and what is bad for each argument."""

    name: str
    function: Callable[..., Any]
    good: dict[str, Any]
    bad: dict[str, list[Any]]
    names: dict[str, str] = field(default_factory=dict)  # what errors call an argument instead


def _without(pool: list[Any], *kinds: type) -> list[Any]:
    """`pool` without what an argument accepts."""
    return [value for value in pool if not isinstance(value, kinds)]


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="bad-input-"))


@functools.cache
def model() -> Any:
    return tiny.llama(len(tokenizer()))


@functools.cache
def tokenizer() -> Any:
    return tiny.TOKENIZERS["digits_one_by_one"]()


FORMAT = hx.SecretFormat("The random number is {secret}.", secret="[0-9]{3}")
CANARIES = hx.Canaries.generate(FORMAT, repetitions=[0, 1, 2], per_repetition=2)


@functools.cache
def exposures() -> Any:
    return hx.measure_exposure(model(), tokenizer(), CANARIES, samples=20)


@functools.cache
def coins() -> Any:
    flipped = hx.Canaries.generate(FORMAT, repetitions=[1], per_repetition=8, inclusion="coin")
    return hx.measure_exposure(model(), tokenizer(), flipped, samples=20)


@functools.cache
def sampled() -> Any:
    return hx.measure_exposure(model(), tokenizer(), CANARIES, method="sampling", samples=20)


@functools.cache
def extractions() -> Any:
    return hx.extract_secrets(model(), tokenizer(), FORMAT, count=1)


@functools.cache
def generations() -> Any:
    return hx.generate_secrets(model(), tokenizer(), CANARIES, num_samples=2)


@functools.cache
def history() -> Any:
    return hx.History([hx.Measurement(step=1, exposures=exposures())])


@functools.cache
def found() -> Any:
    rows = [list(range(5, 15)), list(range(20, 30))]
    return hx.discoverable_extraction(
        model(), tokenizer(), [(row[:5], row[5:]) for row in rows], near=1
    )


@functools.cache
def candidates() -> Any:
    return hx.rank_candidates(model(), tokenizer(), ["123", "456"])


@functools.cache
def text_scores() -> Any:
    return hx.score_texts(model(), tokenizer(), ["the number", "my code"], model())


@functools.cache
def audit() -> Any:
    return hx.audit_dataset(model(), tokenizer(), rows(), samples=20, top=1)


@functools.cache
def rows() -> Any:
    return Dataset.from_dict(
        {"text": [*tiny.corpus()[:20], "My card is 4111 1111 1111 1111, really."]}
    )


@functools.cache
def tokenized() -> Any:
    inserted = hx.inject_canaries(rows(), CANARIES.copy())
    return inserted.map(lambda row: {"input_ids": tokenizer()(row["text"])["input_ids"]})


def _collection(*more: Any) -> list[Any]:
    return [*WRONG, 3, None, NAN, True, "abc", [3], [None], *more]


ITEMS = _without(_collection(), list, tuple, dict, set, range)
SET = _collection({FORMAT}, "canaries.json", Path("canaries.json"), FORMAT)
FORMATS = [*WRONG, None, 3, "[0-9]{3}", True, CANARIES]
EXPOSURES = [*WRONG, 3, "exposures.json", Path("exposures.json"), True, CANARIES]
SCORES = [None, 3, "12", [], ["a"], [[1.0]], [NAN], {"a": 1}, Nothing(), [None], [1j], True]


@functools.cache
def calls() -> list[Call]:
    """The table."""
    out: list[Call] = []

    def add(function: Any, good: dict[str, Any], name: str | None = None, /, **bad: Any) -> None:
        names = bad.pop("names", {})
        title = name or getattr(function, "__qualname__", repr(function))
        out.append(Call(title, function, good, bad, names))

    new = folder() / "new.json"
    saved = exposures().save(folder() / "exposures.json")
    scoring = {
        "batch_size": count(1, none=True),
        "bos": MAYBE_FLAG,
        "progress": FLAG,
    }
    run = {"model": model(), "tokenizer": tokenizer()}
    runs = {"model": MODEL, "tokenizer": [*TOKENIZER, None]}

    expressions = [
        "([0-9]{1,1000}){1000}",
        "[0-9]+",
        "(",
        "a{2,1}",
        "[a-z",
        "(?=a)b",
        r"\1",
        "^a$",
        "([0-9]{1,100}){1,100}x",
        "(a|b|ab){5000}",
        "[0-9]{100000}",
        "(([0-9]{50}){50}){50}",
        "\ud800",
        "[^a]{20000}",
        r"\p{L}{300}",
        "(" * 500 + "a" + ")" * 500,
        "[0-9]{99999999999999999999}",
        "a" * 10**6,
        "|".join(str(n) for n in range(200_000)),
    ]
    templates = [
        "",
        "no hole",
        "{secret}{secret}",
        "{secret}" + "x" * 10**6,
        "x" * 10**6 + "{secret}",
    ]
    add(
        hx.SecretFormat,
        {"template": FORMAT.template, "secret": FORMAT.secret, "check": None},
        template=[*TEXT, *templates, "\ud800{secret}"],
        secret=[*TEXT, *expressions],
        check=choice(none=True),
    )
    add(FORMAT.render, {"secret": "123"}, secret=TEXT)
    add(FORMAT.unrank, {"index": 3}, index=[*count(0, 999), np.float32(1)])
    add(
        FORMAT.sample,
        {"n": 2, "seed": 0},
        n=[*count(), 10**12, HUGE],
        seed=count(),
    )
    add(
        FORMAT.sample_distinct,
        {"n": 2, "seed": 0, "exclude": ()},
        n=[*count(0, 1000), 10**12],
        seed=count(),
        exclude=[None, 3, "123", Nothing(), NAN, True],
    )
    documents: list[Any] = [*_without(WRONG, dict), None, 3, "{}", {}, {"a": 1}]
    add(
        hx.SecretFormat.from_dict,
        {"data": FORMAT.to_dict()},
        data=documents,
    )
    one = CANARIES[0]
    add(
        hx.Canary,
        {"format": FORMAT, "secret": "123", "repetitions": 2, "planned": 2},
        format=FORMATS,
        secret=[*TEXT, "12", "1234", "abc", "\ud800"],
        repetitions=[*count(), 10**12],
        planned=[*count(none=True), 3],
    )
    add(one.label, {"reveal": False}, "Canary.label", reveal=FLAG)
    add(
        hx.Canary.from_dict,
        {"data": one.to_dict([FORMAT], True), "formats": [FORMAT]},
        data=documents,
        formats=[None, 3, [], "a", [3], Nothing()],
    )
    add(
        one.to_dict,
        {"formats": [FORMAT], "reveal": False},
        formats=[None, 3, [], "a", [3], Nothing()],
        reveal=FLAG,
    )
    add(
        hx.Canaries,
        {"items": [one], "seed": None, "inclusion": "fixed", "insertions": ()},
        items=[*SET, [one, one], [one, 3], (n for n in [3])],
        seed=count(none=True),
        inclusion=choice(),
        insertions=[3, None, "rows", [3], [None], Nothing(), NAN],
    )
    add(
        hx.Canaries.generate,
        {
            "formats": FORMAT,
            "repetitions": [0, 1],
            "per_repetition": 1,
            "seed": 0,
            "include": (),
            "inclusion": "fixed",
        },
        formats=[*_without(WRONG, list, tuple), [], None, 3, "a", [3], [FORMAT, FORMAT], [None]],
        repetitions=[
            *[None, 3, "1", [], ["1"], [1.0], [-1], [NAN], [None], [True], [[1]], Nothing(), "0,1"],
            *[{"a": 1}, {1: 2}, np.array([0.5]), [10**12], range(0), b"12"],
        ],
        per_repetition=[*count(1), 10**7, 10**12],
        seed=count(none=True),
        include=[None, 3, "123", [3], [None], one, ["abc"], [b"123"], Nothing(), NAN, True],
        inclusion=choice(),
    )
    add(CANARIES.by_format, {"fmt": FORMAT}, fmt=FORMATS)
    add(
        CANARIES.copy().record,
        {"insertion": hx.Insertion()},
        insertion=[*WRONG, None, 3, "rows"],
    )
    add(
        CANARIES.check_insertion,
        {"insertion": hx.Insertion()},
        insertion=[*WRONG, None, 3, "rows"],
    )
    add(hx.Canaries.from_dict, {"data": CANARIES.to_dict()}, data=documents)
    manifest = CANARIES.save(folder() / "canaries.json")
    add(CANARIES.save, {"path": folder() / "other.json"}, path=FILE)
    add(hx.Canaries.load, {"path": manifest}, path=[*READ, *manifests()])
    add(
        hx.load_canaries,
        {"name": manifest, "revision": None},
        name=[*READ, *manifests()],
        revision=[*MAYBE_TEXT, "main"],
    )
    add(CANARIES.card, {"repo_id": "me/it", "reveal": False}, repo_id=TEXT, reveal=FLAG)
    hub: dict[str, Any] = {"private": True, "token": None, "revision": None, "commit_message": "m"}
    repos = [*TEXT, "", "a/b/c", "../..", "a b", "me/\0"]
    add(
        CANARIES.push_to_hub,
        {"repo_id": "me/it", **hub, "reveal": False},
        repo_id=repos,
        private=FLAG,
        token=[3, [], Nothing(), b"a"],
        revision=MAYBE_TEXT,
        commit_message=TEXT,
        reveal=FLAG,
    )
    add(
        hx.Canaries.from_hub,
        {"repo_id": "me/it", "revision": None, "token": None},
        repo_id=repos,
        revision=MAYBE_TEXT,
        token=[3, [], Nothing(), b"a"],
    )
    add(CANARIES.__getitem__, {"index": 0}, "Canaries.__getitem__", index=[None, "0", 1.0, NAN])
    add(
        hx.Insertion,
        {
            "mode": "rows",
            "column": "text",
            "seed": 0,
            "num_examples": 3,
            "near_start": False,
            "chat": False,
            "request": "Write.",
            "shards": None,
        },
        mode=choice(),
        column=TEXT,
        seed=count(none=True),
        num_examples=count(1, none=True),
        near_start=FLAG,
        chat=FLAG,
        request=TEXT,
        shards=[3, "3", [4], [-1, 4], [1.5, 1.5], ["3"], [None], [NAN], Nothing(), b"3"],
    )
    add(
        hx.Insertion.from_dict, {"data": hx.Insertion().to_dict()}, data=[*documents[:-2], {"a": 1}]
    )
    inserting = {
        "column": [*TEXT, "nothing"],
        "seed": count(),
        "mode": choice(),
        "near_start": FLAG,
    }
    fills = [3, "a", [3], Nothing(), {"nothing": 3}, {3: 3}, NAN, True]
    add(
        lambda **given: hx.CanaryInjector(**given),
        {
            "canaries": CANARIES.copy(),
            "num_examples": 21,
            "column": "text",
            "seed": 0,
            "mode": "rows",
            "near_start": False,
            "chat": None,
            "fill": None,
        },
        "CanaryInjector",
        canaries=SET,
        num_examples=count(1),
        **{**inserting, "column": TEXT},
        chat=MAYBE_FLAG,
        fill=[3, "a", [3], Nothing(), {3: 3}, NAN, True],
    )
    injector = hx.CanaryInjector(CANARIES.copy(), 21)
    add(
        injector,
        {"batch": rows()[:], "indices": list(range(21))},
        "CanaryInjector.__call__",
        batch=[None, 3, "a", [], {}, {"text": None}, {"other": ["a"]}, Nothing(), NAN],
        indices=[None, 3, "a", [], ["a"], [0.5], [-1], [NAN], Nothing(), [*range(20), 10**9]],
    )
    add(
        hx.inject_canaries,
        {
            "ds": rows(),
            "canaries": CANARIES.copy(),
            "column": "text",
            "seed": 0,
            "mode": "rows",
            "near_start": False,
            "num_examples": None,
            "fill": None,
            "tokenizer": None,
        },
        ds=[*WRONG[:-1], None, 3, "data.jsonl", Path("a"), [{"text": "a"}], rows().select([])],
        canaries=SET,
        **inserting,
        num_examples=[*count(1, none=True)],
        fill=fills,
        tokenizer=[*TOKENIZER, tokenizer()],  # the rows are texts
    )
    add(
        hx.verify_injection,
        {
            "tokenized": tokenized(),
            "tokenizer": tokenizer(),
            "canaries": CANARIES,
            "column": "input_ids",
            "label_column": "labels",
            "mask_columns": ("assistant_masks",),
        },
        tokenized=[  # negative ids are placeholders, such as of images, and match nothing
            None,
            3,
            "a",
            [3],
            [{}],
            [{"input_ids": "abc"}],
            [{"input_ids": [0.5]}],
            NAN,
            [{"input_ids": 3}],
            Nothing(),
            rows(),
            [{"input_ids": ["1"]}],
        ],
        tokenizer=[*TOKENIZER, None],
        canaries=SET,
        column=[*TEXT, "nothing"],
        label_column=TEXT,
        mask_columns=[None, 3, [3], [None], "assistant_masks", Nothing(), NAN],
    )
    add(
        hx.load_rows,
        {"name": str(folder() / "rows.jsonl"), "config": None, "split": "train"},
        name=READ,
        config=MAYBE_TEXT,
        split=[*TEXT, "nonsense"],
    )
    rows().to_json(folder() / "rows.jsonl")
    add(
        hx.load_model,
        {
            "name": str(folder() / "model"),
            "tokenizer": None,
            "revision": None,
            "device": None,
            "dtype": "auto",
            "gguf_file": None,
        },
        name=[*READ, str(folder())],
        tokenizer=[*_without(MAYBE_TEXT, Path), "/nowhere/at/all"],  # a path may be one on the Hub
        revision=MAYBE_TEXT,
        device=[*MAYBE_TEXT, "nonsense"],
        dtype=[*TEXT, "nonsense", "", "int8"],
        gguf_file=[*MAYBE_TEXT, "nothing.gguf"],
    )
    model().save_pretrained(folder() / "model")
    tokenizer().save_pretrained(folder() / "model")
    forwards = [*count(0, none=True)]
    add(
        hx.measure_exposure,
        {
            **run,
            "canaries": CANARIES,
            "method": "auto",
            "samples": 20,
            "max_forwards": None,
            "confidence": 0.95,
            "seed": 0,
            "batch_size": None,
            "accelerator": None,
            "progress": False,
            "bos": None,
            "unscorable": "raise",
            "score": "log_perplexity",
            "base": None,
        },
        **runs,
        canaries=SET,
        score=[*choice(), "ratio"],
        base=[value for value in MODEL if value is not None],
        method=choice(),
        samples=[*count(), 10**12, HUGE],
        max_forwards=forwards,
        confidence=SHARE,
        seed=count(),
        accelerator=[3, "cpu", Nothing(), [], True, NAN],
        unscorable=choice(),
        **scoring,
    )
    add(
        hx.extract_secrets,
        {
            **run,
            "fmt": FORMAT,
            "count": 1,
            "beam_width": None,
            "max_forwards": None,
            "canaries": None,
            "bos": None,
            "batch_size": None,
            "progress": False,
        },
        **runs,
        fmt=FORMATS,
        count=count(1),
        beam_width=count(1, none=True),
        max_forwards=forwards,
        canaries=[value for value in SET if value is not None],
        **scoring,
    )
    add(
        hx.generate_secrets,
        {
            **run,
            "canaries": CANARIES,
            "num_samples": 2,
            "constrained": True,
            "seed": 0,
            "bos": None,
            "batch_size": 2,
            "progress": False,
            "resume": None,
            "temperature": 1.0,
        },
        **runs,
        canaries=SET,
        num_samples=[*count(), 10**12],
        constrained=FLAG,
        seed=count(),
        bos=MAYBE_FLAG,
        batch_size=count(1),
        progress=FLAG,
        resume=[3, [], Nothing(), True, NAN, "/", "a\0b"],
        temperature=["1", NAN, -1.0, 0.0, 1e-92, [], Nothing()],
    )
    pairs = [([5, 6, 7], [8, 9]), ([5, 6], [8, 9, 10])]
    add(
        hx.discoverable_extraction,
        {
            **run,
            "pairs": pairs,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "prefix_tokens": 3,
            "suffix_tokens": 3,
            "near": 0,
            "columns": None,
            "bos": None,
            "batch_size": None,
            "max_forwards": None,
            "progress": False,
        },
        model=MODEL,
        tokenizer=TOKENIZER,
        pairs=[
            None,
            3,
            "ab",
            [3],
            [(1,)],
            [([1], [2], [3])],
            [("a", 3)],
            [([0.5], [1])],
            NAN,
            [],
            [([-1], [1])],
            [([10**9], [1])],
            Nothing(),
            {"a": 1},
            [None],
            [([], [])],
            True,
        ],
        temperature=[*number(0), 0, -0.1],
        top_k=count(),
        top_p=[*number(0, 1), 0],
        prefix_tokens=count(1),
        suffix_tokens=count(1),
        near=count(),
        columns=[3, [], ["a", "b", "c"], Nothing(), ("a", 3), True, NAN, ()],
        max_forwards=forwards,
        **scoring,
    )
    add(
        hx.rank_candidates,
        {
            **run,
            "generated": ["123"],
            "by": "log_perplexity",
            "prefix": "",
            "reference": model(),
            "reference_tokenizer": None,
            "bos": None,
            "batch_size": None,
            "progress": False,
        },
        **runs,
        generated=[
            None,
            3,
            "abc",
            [3],
            {"a": "b"},
            {"a": 0.5},
            {"a": -1},
            {3: 1},
            [b"a"],
            Nothing(),
            [None],
            NAN,
            True,
        ],
        by=choice(),
        prefix=TEXT,
        reference=[value for value in MODEL if value is not None],
        reference_tokenizer=TOKENIZER,
        **scoring,
    )
    add(
        hx.score_texts,
        {
            **run,
            "texts": ["the number"],
            "base": model(),
            "k": 20.0,
            "bos": None,
            "batch_size": None,
            "progress": False,
        },
        **runs,
        texts=[None, 3, "abc", [3], [None], [b"a"], ["a", 3], [""], {"a": "b"}, NAN, Nothing()],
        base=[value for value in MODEL if value is not None],
        k=[*number(0, 100), 0],
        **scoring,
    )
    own = hx.Canaries.load(CANARIES.copy().save(folder() / "own.json"))
    add(
        hx.Evidence.of,
        {
            "exposures": exposures(),
            "canaries": own,
            "weights": None,
            "data": None,
            "extractions": (),
            "generations": None,
            "verdict": None,
        },
        "Evidence.of",
        exposures=EXPOSURES,
        canaries=[*WRONG, None, 3, "a", hx.Canaries.generate(FORMAT, seed=99)],
        weights=["/nowhere", 3, Nothing(), [], True],
        data=["/nowhere", 3, [3], Nothing(), True],
        extractions=[3, [3], "a", Nothing(), True],
        generations=[*WRONG, 3, "a"],
        verdict=[*WRONG, 3, "a"],
    )
    evidence = hx.Evidence.of(exposures(), own)
    add(
        evidence.verify,
        {"canaries": own, "weights": None, "data": None},
        "Evidence.verify",
        canaries=[*WRONG, None, 3, "a"],
        weights=["/nowhere", 3, Nothing(), [], True],
        data=["/nowhere", 3, [3], Nothing(), True],
    )
    add(hx.Evidence, {"content": {}}, content=[3, None, "a", [], [3], Nothing(), True])
    groups = [
        None,
        3,
        "abc",
        ["a"],
        [None],
        [NAN],
        [],
        [[1.0]],
        NAN,
        Nothing(),
        True,
        text_scores(),
    ]
    add(
        hx.membership_test,
        {"members": [1.0], "non_members": [0.0], "by": None, "fpr": 0.01, "confidence": 0.95},
        members=groups,
        non_members=groups,
        by=choice(none=True),
        fpr=SHARE,
        confidence=SHARE,
    )
    add(
        hx.audit_dataset,
        {
            **run,
            "dataset": rows(),
            "column": "text",
            "base": None,
            "kinds": None,
            "region": "US",
            "limit": None,
            "top": 1,
            "before": 20,
            "max_characters": 1000,
            "samples": 20,
            "max_forwards": None,
            "confidence": 0.95,
            "seed": 0,
            "batch_size": None,
            "bos": None,
            "base_tokenizer": None,
            "progress": False,
        },
        **runs,
        dataset=[None, 3, "rows.jsonl", Nothing(), NAN, True, {"a": 1}],
        column=[*TEXT, "nothing"],
        base=[value for value in MODEL if value is not None],
        kinds=[3, "card", ["nonsense"], [3], Nothing(), [], True, NAN],
        region=[*MAYBE_TEXT, "nonsense", ""],
        limit=count(1, none=True),
        top=count(none=True),
        before=count(1),
        max_characters=count(1),
        samples=[*count(), 10**12],
        max_forwards=forwards,
        confidence=SHARE,
        seed=count(),
        base_tokenizer=TOKENIZER,
        **scoring,
    )
    add(
        hx.find_secrets,
        {"text": "a", "kinds": None, "region": "US"},
        text=TEXT,
        kinds=[3, "card", ["nonsense"], [3], Nothing(), [], True, NAN],
        region=[*MAYBE_TEXT, "nonsense", ""],
    )
    add(
        hx.CompletionsScorer,
        {
            "base_url": "http://127.0.0.1:9/v1",
            "model": "m",
            "api_key": None,
            "batch_size": 2,
            "workers": 1,
            "timeout": 1.0,
            "retries": 0,
            "whole_text": False,
            "extra_body": None,
        },
        base_url=[*TEXT, "", "nonsense", "ftp://a", "http://"],
        model=[*TEXT, ""],
        api_key=MAYBE_TEXT,
        batch_size=count(1),
        workers=[*count(1), 10**9],
        timeout=[*number(0), 0],
        retries=count(),
        whole_text=FLAG,
        extra_body=[3, "a", [3], Nothing(), {3: 3}, {"a": Nothing()}, NAN, True],
    )
    add(
        hx.CompletionsScorer("http://127.0.0.1:9/v1", "m", retries=0).log_perplexities,
        {"fmt": FORMAT, "secrets": ["123"], "before": ""},
        fmt=FORMATS,
        secrets=[None, 3, "123", [3], [None], Nothing(), NAN, [b"1"]],
        before=TEXT,
    )
    add(
        hx.Limits,
        {"max_exposure": 10, "max_tpr": 0.05, "fpr": 0.01, "repetitions": None},
        max_exposure=number(0, none=True),
        max_tpr=number(0, 1, none=True),
        fpr=SHARE,
        repetitions=count(1, none=True),
    )
    add(
        hx.choose_words,
        {"tokenizer": tokenizer(), "texts": ["the cat and the dog saw"], "size": 2},
        tokenizer=[None, 3, "gpt2", NAN, True],
        texts=[None, 3, "the cat", [3], [None], [b"cat"], NAN, Nothing()],
        size=[*count(1), 10**7],
    )
    add(
        hx.SecretFormat.words,
        {"template": "I say {secret}.", "words": ["red", "blue"], "count": 2},
        template=[*TEXT, "no hole"],
        words=[None, 3, "red", [], [3], [""], ["a b"], ["a", "a"], NAN, Nothing()],
        count=[*count(1), 10**7],
    )
    add(
        exposures().membership,
        {"fpr": 0.1},
        "Exposures.membership",
        fpr=[None, "a", [], ["a"], [None], 0, 1, -0.1, NAN, [NAN], Nothing(), True, {}],
    )
    add(
        exposures().check,
        {"limits": hx.Limits(max_exposure=10), "survival": None, "look": 1},
        "Exposures.check",
        limits=[*WRONG, None, 3, "a"],
        survival=[*WRONG, 3, "a"],
        look=count(1),
    )
    references = np.linspace(5.0, 20.0, 50)
    fit = hx.SkewNormal.fit(references)
    floats: list[Any] = [None, 3, "12", [], ["a"], [NAN, 1.0], [INF] * 9, Nothing(), [None]]
    floats += [[[1.0, 2.0]], [1j], True, {"a": 1}]
    add(
        hx.sampling_exposure,
        {
            "log_perplexity": 3.0,
            "references": references,
            "confidence": 0.95,
            "tie": 0.0,
            "log2_size": 30.0,
        },
        log_perplexity=number(infinite=True),
        references=[value for value in floats if value != [INF] * 9],
        confidence=SHARE,
        tie=number(0),
        log2_size=number(0, infinite=True),
    )
    add(
        hx.skewnorm_exposure,
        {"log_perplexity": 3.0, "fit": fit, "log2_size": 30.0, "confidence": 0.95},
        log_perplexity=number(infinite=True),
        fit=[*WRONG, None, 3, "a"],
        log2_size=number(0, infinite=True),
        confidence=SHARE,
    )
    add(hx.SkewNormal.fit, {"references": references}, references=floats)
    add(
        fit.p_value,
        {"resamples": 2, "seed": 0},
        resamples=[*count(), 10**12],
        seed=count(),
    )
    add(fit.exposure, {"log_perplexity": 3.0}, log_perplexity=number(infinite=True))
    add(
        fit.density,
        {"log_perplexities": references},
        log_perplexities=[None, "12", ["a"], Nothing(), [None], [1j], {"a": 1}],
    )
    scores = np.arange(40.0)
    add(
        hx.estimate_epsilon,
        {
            "in_scores": scores,
            "out_scores": scores - 5,
            "delta": 1e-6,
            "confidence": 0.95,
            "method": "one_run",
            "guesses": None,
            "threshold": None,
            "repetitions": 1,
            "seed": 0,
        },
        in_scores=SCORES,
        out_scores=SCORES,
        delta=[*number(0, 1), 1, -1e-9],
        confidence=SHARE,
        method=choice(),
        guesses=[
            *_without(count(1, none=True), tuple),
            (1,),
            ("a", 1),
            (1, 2, 3),
            (0.5, 1),
            (-1, 1),
        ],
        threshold=number(none=True, infinite=True),
        repetitions=count(1),
        seed=count(),
    )
    add(
        hx.canary_scores,
        {"exposures": coins(), "repetitions": None},
        exposures=[*EXPOSURES, None],
        repetitions=[*count(1, none=True), 77],
    )
    spent = [(5.0, 0.01, 100)]  # more noise, less work
    histories = [3, "a", [3], [(1,)], [("a", "b", "c")], [(NAN, 0.1, 1)], Nothing(), None]
    histories += [[(0.5, 2.0, 10)], [(0.5, 0.1, -1)], [(0.5, 0.1, 1.5)], [(-1.0, 0.1, 1)]]
    add(
        hx.spent_epsilon,
        {"spent": spent, "delta": 1e-5, "accountant": "rdp"},
        spent=histories,
        delta=SHARE,
        accountant=choice(),
    )
    add(
        hx.group_epsilon,
        {"spent": spent, "delta": 1e-5, "rows": 2},
        spent=histories,
        delta=SHARE,
        rows=count(1),
    )
    add(
        hx.noise_for_epsilon,
        {
            "target_epsilon": 3.0,
            "delta": 1e-5,
            "sampling_rate": 0.01,
            "steps": 10,
            "accountant": "rdp",
            "spent": (),
        },
        target_epsilon=[*number(0), 0],
        delta=SHARE,
        sampling_rate=number(0, 1),
        steps=count(1),
        accountant=choice(),
        spent=histories,
    )
    add(
        hx.PrivacyArguments,
        {
            "target_epsilon": 3.0,
            "noise_multiplier": None,
            "delta": 1e-5,
            "per_sample_max_grad_norm": 1.0,
            "accountant": "rdp",
            "max_physical_batch_size": None,
            "per_sample": "hooks",
            "noise_seed": None,
        },
        target_epsilon=[*number(0, none=True), 0],
        noise_multiplier=number(0, none=True),
        delta=[value for value in SHARE if value is not None],
        per_sample_max_grad_norm=[*number(0), 0],
        accountant=choice(),
        max_physical_batch_size=count(1, none=True),
        per_sample=choice(),
        noise_seed=count(none=True),
    )
    add(
        hx.PrivateTrainer,
        {
            "model": model(),
            "args": TrainingArguments(
                str(folder() / "private"),
                per_device_train_batch_size=2,
                use_cpu=True,
                report_to="none",
            ),
            "data_collator": None,
            "train_dataset": tokenized(),
            "privacy": hx.PrivacyArguments(noise_multiplier=1.0),
        },
        model=_without(MODEL, torch.nn.Module),
        args=[*WRONG, None, 3, "a", NAN, True],
        data_collator=[3, "a", [], Nothing(), True, NAN],
        train_dataset=[None, 3, "", "a", Nothing(), Nothing, True, NAN, [], {}],
        privacy=[*WRONG, None, 3, "a", True, {"noise_multiplier": 1.0}],
    )
    add(
        lambda **given: hx.ExposureCallback(**given),
        {
            "canaries": CANARIES,
            "tokenizer": tokenizer(),
            "every_n_steps": None,
            "method": "auto",
            "samples": 20,
            "max_forwards": None,
            "seed": 0,
            "output_dir": None,
            "confidence": 0.95,
            "batch_size": None,
            "bos": None,
            "output_file": None,
            "trainer": None,
            "errors": "warn",
        },
        "ExposureCallback",
        canaries=SET,
        tokenizer=TOKENIZER,
        every_n_steps=count(1, none=True),
        method=choice(),
        samples=[*count(), 10**12],
        max_forwards=forwards,
        seed=count(),
        output_dir=[3, [], Nothing(), True, NAN, b"a"],
        confidence=SHARE,
        batch_size=count(1, none=True),
        bos=MAYBE_FLAG,
        output_file=[3, [], Nothing(), True, NAN, b"a"],
        trainer=[3, "a", Nothing(), [], True],
        errors=choice(),
    )
    results = exposures()
    add(
        hx.Exposures,
        {"items": list(results), "formats": results.formats, "skipped": ()},
        items=ITEMS,
        formats=[3, "a", [3], Nothing(), {3: 3}, NAN, True],
        skipped=[3, None, "a", [3], Nothing(), NAN],
    )
    for title, result in {
        "Exposures": results,
        "Extractions": extractions(),
        "Generations": generations(),
        "Discoverable": found(),
        "Candidates": candidates(),
        "Audit": audit(),
        "TextScores": text_scores(),
        "MembershipTest": hx.membership_test([1.0], [0.0]),
    }.items():
        kept = result.save(folder() / f"{title}.json")
        add(
            result.save,
            {"path": folder() / f"new {title}.json", "reveal": False},
            f"{title}.save",
            path=FILE,
            reveal=FLAG,
        )
        add(result.load, {"path": kept}, f"{title}.load", path=READ)
        add(result.to_dict, {"reveal": False}, f"{title}.to_dict", reveal=FLAG)
        add(result.from_dict, {"data": result.to_dict()}, f"{title}.from_dict", data=documents)
        if hasattr(result, "to_pandas"):
            add(result.to_pandas, {"reveal": False}, f"{title}.to_pandas", reveal=FLAG)
        add(result.table, {"reveal": False}, f"{title}.table", reveal=FLAG)
        add(
            result.__getitem__,
            {"index": 0},
            f"{title}.__getitem__",
            index=[None, "0", 1.0, NAN],
        )
    add(results.metrics, {"prefix": "eval_"}, "Exposures.metrics", prefix=TEXT)
    add(results.gained, {"base": results}, "Exposures.gained", base=[*EXPOSURES, None])
    add(results.beside, {"base": results}, "Exposures.beside", base=[*EXPOSURES, None])
    add(
        results.is_bound,
        {"one": results[0]},
        "Exposures.is_bound",
        one=[*WRONG, None, 3, "a"],
    )
    hits = found()
    add(hits.log2_p, {"near": False}, "Discoverable.log2_p", near=FLAG)
    counts = [*number(0), 0, -3]
    add(
        hits.probability,
        {"n": 10, "near": False},
        "Discoverable.probability",
        n=counts,
        near=FLAG,
    )
    add(hits.queries, {"p": 0.5, "near": False}, "Discoverable.queries", p=SHARE, near=FLAG)
    add(
        hits.rate,
        {"n": 10, "p": 0.5, "near": False, "confidence": 0.95},
        "Discoverable.rate",
        n=counts,
        p=SHARE,
        near=FLAG,
        confidence=SHARE,
    )
    lists = [None, "12", ["a"], Nothing(), [None], [NAN], [], [0], {"a": 1}, [True], [1j]]
    add(
        hits.rates,
        {"n": (1, 10), "p": (0.1, 0.5), "near": False},
        "Discoverable.rates",
        n=[*lists, 3],
        p=[*lists, 3, [2.0]],
        near=FLAG,
    )
    add(
        hits.curve,
        {"n": [1, 10], "p": 0.5, "near": False},
        "Discoverable.curve",
        n=lists,
        p=[*lists, 2.0],
        near=FLAG,
    )
    add(candidates().ranked, {"by": "zlib"}, "Candidates.ranked", by=choice())
    add(candidates()[0].score, {"by": "zlib"}, "Candidate.score", by=choice())
    add(text_scores()[0].score, {"by": "zlib"}, "TextScore.score", by=choice())
    add(text_scores().scores, {"by": "zlib"}, "TextScores.scores", by=choice())
    measured = history()
    add(hx.History, {"items": list(measured)}, items=ITEMS)
    add(
        hx.Measurement,
        {"step": 1, "exposures": results, "epoch": None, "tokens": None, "metrics": {}},
        step=count(),
        exposures=[*EXPOSURES, None],
        epoch=number(0, none=True),
        tokens=count(none=True),
        metrics=[3, None, "a", [3], Nothing(), NAN],
    )
    add(hx.History().append, {"measurement": measured[0]}, measurement=[*WRONG, None, 3, "a"])
    add(measured.save, {"path": new, "reveal": False}, path=FILE, reveal=FLAG)
    add(
        hx.History.load,
        {"path": measured.save(folder() / "history.json"), "canaries": None},
        path=READ,
        canaries=[3, "a", Nothing(), [], [3], True, NAN],
    )
    add(measured.upto, {"step": 1}, step=count())
    add(measured.to_pandas, {"reveal": False}, "History.to_pandas", reveal=FLAG)
    add(measured[0].line, {"reveal": False}, "Measurement.line", reveal=FLAG)
    parts = {
        "history": [*WRONG, 3, "a", True, results],
        "extractions": [3, None, "a", [3], Nothing(), NAN, True, results],
        "generations": [*WRONG, 3, "a", True, results],
    }
    empty: dict[str, Any] = {"history": None, "extractions": (), "generations": None}
    add(
        hx.write_report,
        {
            "path": folder() / "report.html",
            "exposures": results,
            **empty,
            "compare": (),
            "title": "t",
            "notes": (),
            "reveal": False,
        },
        path=FILE,
        exposures=EXPOSURES,
        **parts,
        compare=[3, None, "a", [3], Nothing(), NAN],
        title=TEXT,
        notes=[3, None, [3], Nothing(), NAN, b"a"],
        reveal=FLAG,
    )
    card = folder() / "README.md"
    card.write_text("---\ntags: []\n---\n# A model\n")
    cards = [*WRONG, 3, None, NAN, True, "/proc/nothing/all.md", "a\0b", ""]
    add(
        hx.add_exposure_to_card,
        {"card": card, "exposures": results, "model_name": None, **empty},
        card=cards,
        exposures=EXPOSURES,
        model_name=MAYBE_TEXT,
        **parts,
    )
    add(
        hx.push_exposure,
        {
            "repo_id": "me/it",
            "exposures": results,
            "token": None,
            "revision": None,
            "create_pr": False,
            "commit_message": "m",
            **empty,
        },
        repo_id=repos,
        exposures=EXPOSURES,
        token=[3, [], Nothing(), b"a"],
        revision=MAYBE_TEXT,
        create_pr=FLAG,
        commit_message=TEXT,
        **parts,
    )
    add(
        hx.add_privacy_to_card,
        {"card": card, "statement": {}},
        statement=[3, None, "a", [3], Nothing(), NAN, {}, {"a": 1}],
    )
    add(
        hx.plot_exposure_by_repetitions,
        {"exposures": results, "ax": None},
        exposures=[*EXPOSURES, None],
        ax=[3, "a", Nothing(), [], True],
    )
    add(
        hx.plot_exposure_over_training,
        {"history": measured, "ax": None, "loss": "eval_loss"},
        history=[*parts["history"], None],
        ax=[3, "a", Nothing(), [], True],
        loss=TEXT,
    )
    add(
        hx.plot_extraction_cost,
        {"extractions": extractions(), "exposures": results, "ax": None},
        extractions=parts["extractions"],
        exposures=[*EXPOSURES, None],
        ax=[3, "a", Nothing(), [], True],
    )
    add(
        hx.plot_log_perplexities,
        {"exposures": sampled(), "fmt": None, "ax": None, "reveal": False},
        exposures=[*EXPOSURES, None],
        fmt=[value for value in FORMATS if value is not None],
        ax=[3, "a", Nothing(), [], True],
        reveal=FLAG,
    )
    add(
        hx.load_benchmark,
        {"folder": folder(), "split": "train"},
        folder=[*READ, folder()],
        split=[*TEXT, "nonsense", "a\0b"],
    )
    assert saved
    return out
