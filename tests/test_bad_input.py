"""Whatever is wrong with an argument, there is one clear error: ours, which names the argument."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_exposure
from hf_exposure.canaries.size import TooMuch, check_size
from tests import bad_input

PACKAGE = str(Path(hf_exposure.__file__).parent)
# What errors call an argument that another part reads: a list of canaries is the set's items.
ALSO = {
    "in_scores": ("canaries in",),
    "out_scores": ("canaries in",),
    "canaries": ("items",),
    "data": ("manifest", "Limits"),
    "repo_id": ("could not",),
    "fill": ("column=",),
    "tokenized": ("a row", "column="),
    "batch": ("column=",),
    "items": ("two canaries",),
    "base": ("model",),
    "reference": ("model",),
    "indices": ("with_indices", "has a row"),
    "count": ("secret",),
    "ds": ("num_examples=0",),  # an empty one
    "gguf_file": ("tokenizer can be loaded",),
}
SECONDS = 5.0  # of processor time
CLEAR = (TypeError, ValueError, OSError, RuntimeError, IndexError)


class Hang(BaseException):
    """Five seconds of processor time are over."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Raise `Hang` after five seconds of processor time, however busy the machine is."""

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(call: Callable[[], Any], names: tuple[str, ...]) -> str:
    """ "clear error", "raw error", "hang" or "taken", with what happened behind it."""
    begun = time.process_time()
    try:
        with bounded(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            call()
    except Hang:
        return "hang"
    except Exception as error:
        if time.process_time() - begun > SECONDS:
            return "hang"
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = last.filename.startswith(PACKAGE) and _raises(last)
        known = isinstance(error, CLEAR) and type(error).__module__ in (
            "builtins",
            "hf_exposure.canaries.size",
            "hf_exposure.exposure.results",
        )
        if ours and known and any(_names(name, str(error)) for name in names):
            return "clear error"
        return f"raw error: {type(error).__name__}: {str(error)[:200]}"
    return "taken"


def _names(name: str, error: str) -> bool:
    """Whether an error has a name in it, as a word of its own."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", error) is not None


def _raises(frame: traceback.FrameSummary) -> bool:
    """Whether the error was raised by this line, and not in a library that it calls."""
    lines = Path(frame.filename).read_text(encoding="utf-8").splitlines()
    first = (frame.lineno or 1) - 1
    return "raise" in " ".join(lines[max(0, first - 1) : first + 1])


def quoted(value: Any) -> tuple[str, ...]:
    """How errors quote a file's name, which says as much as the argument's name."""
    return (repr(str(value)),) if isinstance(value, (str, Path)) and str(value) else ()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken for the name of a file is not one of the checkout."""
    monkeypatch.chdir(tmp_path)


def shown(value: Any) -> str:
    return (
        "HUGE"
        if isinstance(value, int) and abs(value) > 10**1000
        else " ".join(repr(value).split())[:60]
    )


def summarise(tally: Counter[str]) -> str:
    return (
        f"inputs {sum(tally.values())}, clear errors {tally['clear error']}, "
        f"raw errors {tally['raw error'] + tally['taken']}, hangs {tally['hang']}"
    )


@pytest.mark.slow
def test_every_public_callable_refuses_bad_arguments_with_one_clear_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally: Counter[str] = Counter()
    wrong: dict[str, str] = {}
    for call in bad_input.calls():
        for argument, pool in call.bad.items():
            for value in pool:
                given = {**call.good, argument: value}
                names = (argument, *ALSO.get(argument, ()), *quoted(value))
                result = outcome(functools.partial(call.function, **given), names)
                tally[result.partition(":")[0]] += 1
                if result != "clear error":
                    wrong[f"{call.name}({argument}={shown(value)})"] = result
    with capsys.disabled():
        print(f"\n{summarise(tally)}")
    assert tally["clear error"] >= 1_000
    assert not wrong


@pytest.mark.slow
def test_the_table_has_every_public_name() -> None:
    without = {"BudgetError", "Scorer", "metric_path"}  # nothing to pass by oneself
    made = {"AuditEntry", "Audit", "EpsilonBound", "FormatDetails", "Exposure", "Extraction"}
    made |= {"Extractions", "Generations", "Candidate", "Candidates", "Discoverable"}
    made |= {"Check", "Membership", "MembershipRow", "Verdict"}
    made |= {"MembershipTest", "MembershipTestRow", "TextScore", "TextScores"}
    named = {call.name.partition(".")[0] for call in bad_input.calls()}
    assert set(hf_exposure.__all__) - without - made <= named


@pytest.mark.slow
@pytest.mark.parametrize(
    "expression",
    [
        "([0-9]{1,1000}){1000}",
        "[0-9]{100000}",
        "(a|b|ab){5000}",
        "[ab]{0,30}a[ab]{25}x",
        "(a|b)*a(a|b){30}",
        "(([0-9]{50}){50}){50}",
        "([0-9]{1,100}){1,100}x",
        "[0-9]{99999999999999999999}",
        "(" * 500 + "a" + ")" * 500,
        "a" * 10**6,
        r"\p{L}{3000}",
    ],
    ids=range(11),
)
def test_an_expression_that_is_too_much_work_is_refused_before_it_is_compiled(
    expression: str,
) -> None:
    with bounded(), pytest.raises(TooMuch, match="shorter or simpler"):
        check_size(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "[0-9]{9}",
        r"4[0-9]{3}( ?[0-9]{4}){3}",
        r"[a-z]{3,12}\.[a-z]{3,12}@[a-z]{2,8}\.(com|org)!",
        "(?i:[a-f]{4})|(?P<n>x{2})",
        r"[[:alpha:]]{3}[^\]]\x41\u{1F600}",
        "(?:(?:" + "|".join(f"w{place}" for place in range(500)) + ") ){5}x",
        # Words of which many begin others, as those of a language do.
        "(?:(?:" + "|".join(f"w{place:b}" for place in range(1, 2048)) + ") ){6}x",
        r"\p{Lu}{8}",
        "[0-9]{3000}",
    ],
)
def test_expressions_of_an_ordinary_size_are_let_through(expression: str) -> None:
    check_size(expression)


def mutations(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values of a JSON tree."""
    yield path
    inner = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in inner:
        yield from mutations(value, (*path, key))


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """`data` with another value at one place; without it where the value is `...`."""
    if not path:
        return None if value is ... else value
    out = dict(data) if isinstance(data, dict) else list(data)
    if value is ... and len(path) == 1:
        del out[path[0]]
    else:
        out[path[0]] = changed(data[path[0]], path[1:], value)
    return out


LOADED = ["Exposures", "Extractions", "Generations", "Discoverable", "Candidates", "Audit"]
JUNK: list[Any] = [None, "x", -1, 1.5, True, [], {}, [None], {"a": 1}, 10**30, "nan", "\ud800", ...]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["canaries", "history", *LOADED])
def test_a_damaged_file_is_read_or_refused_with_an_error_that_names_it(
    name: str, tmp_path: Path
) -> None:
    calls = {call.name: call for call in bad_input.calls()}
    own = {"canaries": "Canaries.load", "history": "History.load"}.get(name, f"{name}.load")
    load = calls[own].function
    text = Path(calls[own].good["path"]).read_text(encoding="utf-8")
    data = json.loads(text)
    paths = list(mutations(data))
    path = tmp_path / "damaged.json"
    wrong: dict[str, str] = {}

    def read(content: str, what: str) -> None:
        path.write_text(content, encoding="utf-8")
        result = outcome(lambda: load(path), (str(path),))
        if result not in ("clear error", "taken"):  # what is not needed may be anything
            wrong[what] = result

    for end in range(0, len(text) - 2, max(1, len(text) // 40)):
        read(text[:end], f"cut at {end}")

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(st.sampled_from(paths), st.sampled_from(JUNK))
    def damage(place: tuple[Any, ...], value: Any) -> None:
        read(json.dumps(changed(data, place, value)), f"{place} = {value!r}")

    damage()
    assert not wrong


def test_an_interrupted_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_exposure.utils.files import write_text

    path = write_text(tmp_path / "out.json", "old")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    for step in ("fsync", "chmod", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                write_text(path, "new")
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["out.json"]


@pytest.mark.parametrize("method", ["auto", "sampling", "exact"])
def test_an_interrupted_measurement_leaves_no_hook_and_the_model_in_its_mode(method: str) -> None:
    model = bad_input.model().train()
    forward, passed = model.model.forward, 0

    def interrupt(*args: Any, **given: Any) -> Any:
        nonlocal passed
        passed += 1
        if passed == 2:
            raise KeyboardInterrupt
        return forward(*args, **given)

    model.model.forward = interrupt
    try:
        with pytest.raises(KeyboardInterrupt):
            hf_exposure.measure_exposure(
                model, bad_input.tokenizer(), bad_input.CANARIES, method=method, samples=20
            )
        assert model.training
        assert not any(
            part._forward_hooks or part._forward_pre_hooks or part._backward_hooks
            for part in model.modules()
        )
    finally:
        del model.model.forward
        model.eval()
