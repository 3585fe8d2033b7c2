"""Whatever is passed to whatever is public: one clear error, soon, or it is accepted.

What is public is found by looking, so that what is new joins by itself: all names of the package,
the methods of its classes, and the options of all commands.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_exposure
from hf_exposure import cli
from tests import bad_input
from tests.test_bad_input import ALSO, Hang, bounded, outcome, quoted, shown, summarise

# What a value may be, by an annotation's first word; what is not here is not known.
KINDS: dict[str, Any] = {
    "int": Integral,
    "float": Real,
    "str": str,
    "bool": bool,
    "None": type(None),
    "os.PathLike": Path,
    "Iterable": Iterable,
    "Sequence": Iterable,  # any list
    "Collection": Iterable,
    "tuple": tuple,
    "list": Iterable,
    "Mapping": Mapping,
    "dict": Mapping,
    "SecretFormat": hf_exposure.SecretFormat,
    "Canaries": hf_exposure.Canaries,
    "Canary": hf_exposure.Canary,
    "Exposures": hf_exposure.Exposures,
    "Exposure": hf_exposure.Exposure,
    "History": hf_exposure.History,
    "Insertion": hf_exposure.Insertion,
    "Limits": hf_exposure.Limits,
    "PrivacyArguments": hf_exposure.PrivacyArguments,
}


@dataclass
class Target:
    """Something to call, with what it can be called well with."""

    name: str
    function: Callable[..., Any]
    good: dict[str, Any]

    @property
    def parameters(self) -> list[inspect.Parameter]:
        every = inspect.signature(self.function).parameters.values()
        return [one for one in every if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value may be what an annotation says: also if it is not known what that is."""
    for part in re.split(r" \| (?![^\[]*\])", str(annotation)):
        word = part.partition("[")[0]
        if word not in KINDS:
            return True
        number = word in ("int", "float")
        text = KINDS[word] is Iterable and isinstance(value, (str, bytes))
        if isinstance(value, KINDS[word]) and not (number and isinstance(value, bool)) and not text:
            return True
    return False


def objects() -> dict[str, Any]:
    """One of each public class that can be made, from the table of good calls."""
    found = [getattr(call.function, "__self__", None) for call in bad_input.calls()]
    found += [bad_input.exposures()[0], bad_input.audit()[0], bad_input.extractions()[0]]
    found += [bad_input.exposures().check(hf_exposure.Limits(max_exposure=10))]
    found += [hf_exposure.ExposureCallback(bad_input.CANARIES), bad_input.found()[0]]
    found += [bad_input.exposures().membership(), *bad_input.exposures().formats.values()]
    return {type(one).__name__: one for one in found if not isinstance(one, type)}


@functools.cache
def targets() -> list[Target]:
    """All that is public and takes arguments, but for what a Trainer calls by itself."""
    good = {call.name: call.good for call in bad_input.calls()}
    made, out = objects(), []
    for name in hf_exposure.__all__:
        public = getattr(hf_exposure, name)
        out.append(Target(name, public, good.get(name, {})))
        if not inspect.isclass(public) or name == "Scorer":  # a protocol
            continue
        theirs = {n for base in public.__mro__[1:] for n in vars(base) if not _ours(base)}
        for method in sorted({*dir(public)} - theirs):
            raw = inspect.getattr_static(public, method)
            if method.startswith("_") or not callable(getattr(raw, "__func__", raw)):
                continue
            if not _ours(getattr(raw, "__func__", raw)):
                continue
            bound = isinstance(raw, (classmethod, staticmethod))
            owner = public if bound else made.get(name)
            if owner is not None:
                title = f"{name}.{method}"
                out.append(Target(title, getattr(owner, method), good.get(title, {})))
    return [one for one in out if one.name != "Scorer" and one.parameters]


def _ours(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith("hf_exposure")


NUMBERS = [-1, 0, -(10**30), 10**400, math.nan, math.inf, -math.inf, 0.5, -0.5, 1e308, 2.0, True]
TEXTS = ["", "nan", "1", "0.5", "-1", "None", "True", "\ud800", "a\0b", "\x1b[31m", "x" * 10**6]
THINGS = [None, ..., bad_input.Nothing(), bad_input.Nothing, print, 3j, np.zeros(2), np.array("3")]
plain = st.one_of(
    st.sampled_from([*NUMBERS, *TEXTS]),
    st.text(st.characters(exclude_characters="/"), max_size=9),
    st.floats(),
    st.integers(-(10**20), -1),
    st.binary(max_size=3),
)
anything = st.one_of(
    plain,
    st.sampled_from([*THINGS, 10**5000]),
    st.lists(plain, max_size=3),
    st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), plain, max_size=2),
    st.tuples(plain, plain),
    st.sets(st.integers(), max_size=2),
)


def judge(target: Target, argument: inspect.Parameter, value: Any) -> str:
    """What comes of one call; what is needed and not known is the same value."""
    call = {**target.good, argument.name: value}
    names = {argument.name, *ALSO.get(argument.name, ()), *quoted(value)}
    for other in target.parameters:
        if other.default is other.empty and other.name not in call:
            call[other.name] = value
            names |= {other.name, *ALSO.get(other.name, ())}
    if fits(value, argument.annotation):
        names |= {target.name.partition(".")[0], "the Hub cannot be reached"}  # it could be right
    result = outcome(functools.partial(target.function, **call), tuple(names))
    if result == "taken" and fits(value, argument.annotation):
        return "accepted"
    return result


def recorded(result: str, what: str, tally: Counter[str], wrong: dict[str, str]) -> None:
    tally[result.partition(":")[0]] += 1
    if result not in ("clear error", "accepted"):
        wrong[what] = result


@pytest.mark.slow
def test_whatever_is_passed_to_whatever_is_public_ends_well(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tally: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    for name in ("opacus", "dp_accounting.pld.privacy_loss_distribution"):
        importlib.import_module(name)  # which takes seconds
    every = [(target, one) for target in targets() for one in target.parameters]

    @settings(max_examples=8)
    @given(anything)
    def draw(value: Any) -> None:
        for target, argument in every:
            what = f"{target.name}({argument.name}={shown(value)})"
            recorded(judge(target, argument, value), what, tally, wrong)

    draw()
    with capsys.disabled():
        print(f"\n{summarise(tally)}")
    assert tally["clear error"] >= 1_000
    assert not wrong, list(wrong.items())[:9]


# Commands

COMMANDS: dict[str, click.Command] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
WORDS = [
    "",
    "nonsense",
    "-1",
    "0.5",
    "nan",
    "1e400",
    "10000000000000000000000",
    "7" * 5000,
    "/",
    "/proc/nothing/here",
    "/dev/null/nothing",
    "([0-9]{1,1000}){1000}",
    "[0-9]+",
    "{secret}" + "x" * 10**6,
    "\udcff",
    "[/b]",
    "http://127.0.0.1:9/v1",
    "0,1,10000000000",
]


@functools.cache
def well_called() -> dict[str, list[str]]:
    """Arguments with which each command works, but for the demo, which has to be refused."""
    folder = bad_input.folder()
    bad_input.calls()  # writes the files
    model = ["--model", str(folder / "model")]
    rows, manifest = str(folder / "rows.jsonl"), str(folder / "canaries.json")
    others = folder / "others.txt"
    others.write_text("a line of words\nand one more", encoding="utf-8")
    return {
        "inject": ["--dataset", rows, "--output", "new.jsonl", "--canaries", "new.json",
                   "--template", "A {secret}.", "--secret", "[0-9]{4}", "--repetitions", "0,1"],
        "measure": [*model, "--canaries", manifest, "--samples", "20"],
        "extract": [*model, "--canaries", manifest, "--count", "1"],
        "audit": [*model, "--dataset", rows, "--samples", "20", "--top", "1"],
        "score": [*model, "--dataset", rows, "--non-members", str(others)],
        "discover": [*model, "--dataset", rows, "--limit", "2", "--prefix-tokens", "3",
                     "--suffix-tokens", "3"],
        "report": [str(folder / "Exposures.json"), "--output", "page.html"],
        "gate": [str(folder / "Exposures.json"), "--max-exposure", "10"],
        "demo": ["--text", "/proc/nothing.txt"],
    }  # fmt: skip


def run(arguments: list[str], names: Iterable[str]) -> str:
    """What comes of a command: an error is clear that has few lines, no traceback, and a name."""
    told, shown_ = io.StringIO(), io.StringIO()
    form, streams, argv = warnings.formatwarning, (cli.out.file, cli.progress.file), sys.argv
    sys.argv, code = ["hf-exposure", *arguments], None
    try:
        cli.out.file, cli.progress.file = shown_, told
        with bounded(), contextlib.redirect_stdout(shown_), contextlib.redirect_stderr(told):
            cli.main()
    except SystemExit as end:
        code = end.code
    except Hang:
        return "hang"
    except Exception as error:
        return f"raw error: {type(error).__name__}: {str(error)[:200]}"
    finally:
        sys.argv, warnings.formatwarning = argv, form
        cli.out.file, cli.progress.file = streams
    said = told.getvalue()
    if code in (0, None) or (arguments[0] == "gate" and code in (1, 3) and "Error" not in said):
        return "accepted"
    flat = " ".join(re.sub(r"[│╭╮╰╯─]", " ", said).split())
    few = len(said.splitlines()) < 10 and len(said) < 1500
    clear = few and "Traceback" not in said and "Error" in said and "Errno" not in said
    if clear and any(name in flat for name in names):
        return "clear error"
    return f"raw error: {flat[:300]}"


def options() -> list[tuple[str, click.Parameter]]:
    """All that a command can be given a value for."""
    return [
        (name, option)
        for name, command in COMMANDS.items()
        for option in command.params
        if not getattr(option, "is_flag", False) and option.name != "help"
    ]


def given_to(name: str, option: click.Parameter, word: str) -> str:
    """What comes of a word in the place of one option's value."""
    well = well_called().get(name, [])
    if isinstance(option, click.Argument):
        arguments = [name, word, *well[1:]]
    else:
        arguments = [name, *well, option.opts[0], word]
    # A new command may lack an argument, and the demo has to be refused.
    refused = ["--text", "paragraphs"] if name == "demo" else [] if well else ["Missing argument"]
    names = [*option.opts, *refused, f"{option.name}=", *SAID.get(str(option.name), ())]
    for made in ("new.jsonl", "new.json", "page.html"):
        Path(made).unlink(missing_ok=True)
    return run(arguments, [*names, repr(word)] if word else names)


# What errors say instead of an option's name.
SAID: dict[str, tuple[str, ...]] = {
    "canaries_revision": ("leave out the revision",),
    "template": ("SecretFormat: template",),
    "secret": ("SecretFormat: secret", "distinct canaries are asked for"),
    "dataset": ("give --text or --dataset",),
    "results": ("gate: ", "report: ", "an argument has"),
    "report": ("an argument has",),
}
LONG_WORK = ("max_forwards", "epochs")  # of which a lot may be asked for


@pytest.mark.slow
def test_whatever_is_given_to_whatever_option_ends_well(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tally: Counter[str] = Counter()
    wrong: dict[str, str] = {}

    @settings(max_examples=200)
    @given(st.sampled_from(options()), st.sampled_from(WORDS))
    def draw(option: tuple[str, click.Parameter], word: str) -> None:
        name, parameter = option
        if not (parameter.name in LONG_WORK and word.isdigit()):
            what = f"{name} {parameter.name} {word[:40]!r}"
            recorded(given_to(name, parameter, word), what, tally, wrong)

    draw()
    with capsys.disabled():
        print(f"\n{summarise(tally)}")
    assert not wrong, list(wrong.items())[:9]
