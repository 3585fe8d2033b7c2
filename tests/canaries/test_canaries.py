"""Canary sets: uniform, distinct, reproducible, masked; manifests that are whole or not there."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.drawing import derived
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.insertion import Insertion
from hf_exposure.canaries.loading import manifests_in
from hf_exposure.canaries.sets import SCHEMA_VERSION, Canaries
from hf_exposure.exposure.results import Exposures

ROOT = Path(__file__).parents[2]
NUMBER = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
PIN = SecretFormat("My code is {secret}.", secret=r"[0-9]{4}")
WORD = SecretFormat("Password: {secret}\n", secret=r"[a-z]{5}(-[a-z]{5})?")
CARD = SecretFormat("Card {secret}!", secret=r"[0-9]{16}", check="luhn")


def first_digits(secrets: list[str]) -> float:
    """p-value of the first digits being uniform."""
    counts = Counter(secret[0] for secret in secrets)
    return float(stats.chisquare([counts[digit] for digit in "0123456789"]).pvalue)


# Drawing


def sorted_generator(n: int) -> list[str]:
    """As TensorFlow Privacy draws: more than needed, made distinct, sorted, the first n taken."""
    draw = random.Random(0)
    return sorted({f"{draw.randrange(10**4):04}" for _ in range(2 * n)})[:n]


def test_secrets_are_uniform_where_those_of_a_sorting_generator_are_not() -> None:
    assert first_digits(sorted_generator(1000)) < 1e-50
    drawn = Canaries.generate(PIN, repetitions=[1], per_repetition=1000)
    assert first_digits([canary.secret for canary in drawn]) > 0.001


def test_each_group_is_uniform_by_itself() -> None:
    drawn = Canaries.generate(PIN, repetitions=[0, 1, 4], per_repetition=400)
    for times in (0, 1, 4):
        group = [canary.secret for canary in drawn if canary.repetitions == times]
        assert first_digits(group) > 0.001


def test_every_secret_of_a_small_space_is_drawn_equally_often() -> None:
    fmt = SecretFormat("{secret}\n", "a|ab|[0-9]b?")
    counts = Counter(
        canary.secret
        for seed in range(1100)
        for canary in Canaries.generate(fmt, [0, 2], per_repetition=2, seed=seed)
    )
    assert len(counts) == fmt.size == 22
    # Without replacement the counts vary less than this test assumes.
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_secrets_are_distinct_and_the_groups_as_large_as_asked_for() -> None:
    drawn = Canaries.generate(PIN, repetitions=[0, 1, 16], per_repetition=3000)
    assert len({canary.secret for canary in drawn}) == 9000
    assert Counter(canary.repetitions for canary in drawn) == {0: 3000, 1: 3000, 16: 3000}
    assert all(PIN.contains(canary.secret) for canary in drawn)


def test_a_whole_secret_space_can_be_drawn() -> None:
    fmt = SecretFormat("{secret}.", "[0-9]{2}")
    drawn = Canaries.generate(fmt, repetitions=[0, 1], per_repetition=50)
    assert sorted(canary.secret for canary in drawn) == list(fmt.enumerate())


def test_equal_seeds_draw_equal_sets_in_every_process() -> None:
    one = Canaries.generate(NUMBER, seed=5, inclusion="coin")
    code = (
        "from hf_exposure.canaries.sets import *; from hf_exposure.canaries.formats import *;"
        f"fmt = SecretFormat(*{(NUMBER.template, NUMBER.secret)!r});"
        "print(json.dumps(Canaries.generate(fmt, seed=5, inclusion='coin').to_dict()))"
    )
    code = "import json;" + code
    env = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert Canaries.from_dict(json.loads(out.stdout)) == one
    assert Canaries.generate(NUMBER, seed=6, inclusion="coin") != one


def test_a_format_draws_the_same_with_and_without_others_beside_it() -> None:
    alone = Canaries.generate(PIN, seed=3)
    both = Canaries.generate([NUMBER, PIN, CARD], seed=3)
    assert both.by_format(PIN) == list(alone)
    assert both.formats == (NUMBER, PIN, CARD)
    assert len(both) == 3 * len(alone)
    assert all(canary.format.contains(canary.secret) for canary in both)


def test_two_formats_of_one_expression_draw_different_secrets() -> None:
    other = SecretFormat("Another code is {secret}.", secret=PIN.secret)
    both = Canaries.generate([PIN, other], per_repetition=20)
    assert [c.secret for c in both.by_format(PIN)] != [c.secret for c in both.by_format(other)]


def test_formats_that_share_texts_never_give_the_same_text_twice() -> None:
    one = SecretFormat("n {secret}.", "[0-9]{2}")
    two = SecretFormat("n 1{secret}.", "[0-9]")
    for seed in range(50):
        both = Canaries.generate([one, two], repetitions=[1], per_repetition=5, seed=seed)
        assert len({canary.text for canary in both}) == 10


def test_references_with_the_seed_of_the_canaries_are_other_secrets() -> None:
    drawn = {canary.secret for canary in Canaries.generate(NUMBER, [1], 500, seed=0)}
    assert drawn.isdisjoint(NUMBER.sample(500, seed=0))
    assert drawn.isdisjoint(NUMBER.sample_distinct(500, seed=0))


def test_generators_of_different_purposes_are_unrelated() -> None:
    names = [(0, "a"), (0, "b"), (1, "a"), (0, "a", "b"), (0, "ab"), (0, None)]
    numbers = [derived(seed, *purpose).getrandbits(64) for seed, *purpose in names]
    assert len(set(numbers)) == len(names)
    assert numbers == [derived(seed, *purpose).getrandbits(64) for seed, *purpose in names]


# include


def test_included_secrets_take_places_of_the_most_repeated_group() -> None:
    drawn = Canaries.generate(NUMBER, [0, 1, 32], per_repetition=2, include=["281265017"])
    assert len(drawn) == 6
    assert [c.repetitions for c in drawn if c.secret == "281265017"] == [32]
    assert Counter(c.repetitions for c in drawn) == {0: 2, 1: 2, 32: 2}


def test_included_canaries_keep_their_repetitions_and_are_added_where_no_group_is_theirs() -> None:
    own = [Canary(NUMBER, "281265017", 7), Canary(PIN, "1234", 3), Canary(NUMBER, "000000000", 1)]
    drawn = Canaries.generate(NUMBER, [0, 1], per_repetition=2, include=own)
    assert {*own} <= {*drawn}
    assert Counter(c.repetitions for c in drawn.by_format(NUMBER)) == {0: 2, 1: 2, 7: 1}
    assert drawn.by_format(PIN) == [own[1]]


def test_an_included_secret_is_not_drawn_again() -> None:
    fmt = SecretFormat("{secret}.", "[0-9]")
    drawn = Canaries.generate(fmt, [1], per_repetition=10, include=["3", "7"])
    assert sorted(c.secret for c in drawn) == list("0123456789")


# The coin


def test_the_coin_leaves_each_canary_in_or_out() -> None:
    drawn = Canaries.generate(NUMBER, [0, 4], per_repetition=500, inclusion="coin")
    group = [c for c in drawn if c.planned is not None]
    assert len(group) == 500
    assert all(c.planned == 4 and c.repetitions in (0, 4) for c in group)
    heads = sum(c.inserted for c in group)
    assert stats.binomtest(heads, 500).pvalue > 0.001
    assert drawn.inclusion == "coin"
    assert len(drawn.controls) == 1000 - heads


def test_coins_are_independent_of_the_secrets() -> None:
    fixed = Canaries.generate(NUMBER, [1, 4], per_repetition=50, seed=2)
    coin = Canaries.generate(NUMBER, [1, 4], per_repetition=50, seed=2, inclusion="coin")
    assert [c.secret for c in fixed] == [c.secret for c in coin]
    pattern = [
        [c.inserted for c in Canaries.generate(NUMBER, [1], 200, seed=s, inclusion="coin")]
        for s in (0, 1)
    ]
    agree = sum(a == b for a, b in zip(*pattern, strict=True))
    assert stats.binomtest(agree, 200).pvalue > 0.001


# The set


def test_a_set_reads_like_a_list_and_a_slice_is_a_set() -> None:
    drawn = Canaries.generate([NUMBER, PIN], [0, 1, 2], per_repetition=1, seed=1)
    drawn.record(Insertion())
    part = drawn[1:3]
    assert isinstance(part, Canaries)
    assert list(part) == [drawn[1], drawn[2]]
    assert (part.insertions, part.seed) == ((Insertion(),), 1)
    assert [*drawn.inserted, *drawn.controls] == sorted(drawn, key=lambda c: not c.inserted)
    assert drawn[0] in drawn
    assert copy.deepcopy(drawn) == drawn == pickle.loads(pickle.dumps(drawn))


def test_a_record_of_insertions_only_grows_and_only_in_one_context() -> None:
    one = Canaries([Canary(PIN, "1234", 1)], insertions=[Insertion(seed=1)])
    two = one.copy()
    assert (two.insertions, list(two)) == ((), list(one))
    one.record(Insertion(seed=1))
    one.record(Insertion(seed=2, num_examples=9))
    assert one.insertions == (Insertion(seed=1), Insertion(seed=2, num_examples=9))
    with pytest.raises(ValueError, match=r"as rows of their own.*cannot be .*within the texts"):
        one.record(Insertion("splice"))
    with pytest.raises(TypeError, match="must be an Insertion, not dict"):
        one.record({"mode": "rows"})  # type: ignore[arg-type]
    assert len(one.insertions) == 2
    two.record(Insertion("splice"))
    assert two.insertions == (Insertion("splice"),)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "row"}, ValueError, "mode='row' is not known; use 'rows' or 'splice'"),
        ({"column": None}, TypeError, "column must be a string, not None"),
        ({"seed": -1}, ValueError, "seed=-1 is too small"),
        ({"num_examples": 0}, ValueError, "num_examples=0 is too small; give at least 1"),
        ({"num_examples": 2.0}, TypeError, "num_examples must be a whole number, not float"),
        ({"near_start": "no"}, TypeError, "near_start must be True or False, not str"),
        ({"chat": None}, TypeError, "chat must be True or False, not None"),
    ],
)
def test_an_insertion_of_wrong_values_is_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Insertion(**arguments)


# Masking


def test_no_secret_shows_in_what_is_printed() -> None:
    drawn = Canaries.generate([PIN, WORD], per_repetition=3, inclusion="coin")
    shown = f"{drawn!r} {drawn} {list(drawn)!r} {drawn[0]} {[c.label() for c in drawn]}"
    assert not [c.secret for c in drawn if c.secret in shown]
    assert Canary(PIN, "1234", 2).label() == "My code is ••••."
    assert Canary(PIN, "1234", 2).label(reveal=True) == "My code is 1234."


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Canary(PIN, "77731"),
        lambda: Canary(PIN, "7773", -1),
        lambda: Canary(PIN, "7773", 2, planned=3),
        lambda: Canaries([Canary(PIN, "7773", 1), Canary(PIN, "7773", 2)]),
        lambda: Canaries.generate(PIN, include=["7773x"]),
        lambda: Canaries.generate(PIN, include=["7773", "7773"]),
        lambda: Canaries.generate(PIN, include="7773"),
        lambda: Canaries.generate(CARD, include=["4539148803437773"]),
    ],
)
def test_errors_name_no_secret(wrong: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        wrong()
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "7773" not in str(chain)
        chain = chain.__cause__ or (None if chain.__suppress_context__ else chain.__context__)


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"formats": []}, ValueError, "formats is empty"),
        ({"formats": "x"}, TypeError, "SecretFormat objects, not str"),
        ({"formats": [PIN, PIN]}, ValueError, "same format twice"),
        ({"repetitions": []}, ValueError, "repetitions is empty"),
        ({"repetitions": [1, -2]}, ValueError, "repetitions=-2"),
        ({"repetitions": 3}, TypeError, "repetitions must be a list"),
        ({"repetitions": [1.5]}, TypeError, "must be a whole number, not float"),
        ({"repetitions": [True]}, TypeError, "must be a whole number, not bool"),
        ({"per_repetition": 0}, ValueError, "per_repetition=0"),
        ({"per_repetition": 5001, "repetitions": [0, 1]}, ValueError, "only 10000 strings"),
        ({"inclusion": "maybe"}, ValueError, "inclusion='maybe'"),
        ({"include": [5]}, TypeError, "must be a Canary or a string, not int"),
    ],
)
def test_arguments_out_of_range_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Canaries.generate(**{"formats": PIN, **arguments})


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="the set is empty"):
        Canaries([])


def test_what_is_no_canary_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a Canary, not str"):
        Canaries(["1234"])  # type: ignore[list-item]


# The manifest


def mixed_set() -> Canaries:
    drawn = Canaries.generate(
        [PIN, WORD, CARD], [0, 1, 3], per_repetition=2, seed=11, inclusion="coin"
    )
    drawn.record(Insertion("splice", "text", seed=0, num_examples=7))
    return drawn


def test_a_manifest_round_trips(tmp_path: Path) -> None:
    drawn = mixed_set()
    path = drawn.save(tmp_path / "new" / "canaries.json")
    loaded = Canaries.load(path)
    assert loaded == drawn
    assert list(loaded) == list(drawn)
    assert (loaded.seed, loaded.inclusion, loaded.insertions) == (11, "coin", drawn.insertions)
    assert json.loads(path.read_text(encoding="utf-8"))["schema_version"] == SCHEMA_VERSION
    assert loaded.save(tmp_path / "again.json").read_bytes() == path.read_bytes()


def changed(**entries: Any) -> dict[str, Any]:
    return {**mixed_set().to_dict(), **entries}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in mixed_set().to_dict().items() if name != key}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(schema_version=99), "schema_version=99 is not known.*reads 2"),
        (changed(schema_version="1"), "schema_version='1' is not known"),
        (without("schema_version"), "lacks the key 'schema_version'"),
        (without("canaries"), "lacks the key 'canaries'"),
        (without("insertions"), "lacks the key 'insertions'"),
        (changed(canaries=[]), "the set is empty"),
        (changed(canaries=[{"format": 0}]), "lacks the key 'secret'"),
        (changed(canaries=[{"format": 9, "secret": "1", "repetitions": 1, "planned": None}]), "."),
        (changed(formats=[{"template": "x"}]), "lacks the key 'secret'"),
        (changed(canaries=7), "not what a manifest has"),
        ([1, 2], "JSON object, not list"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused_by_its_path(
    tmp_path: Path, content: Any, message: str
) -> None:
    path = tmp_path / "canaries.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        Canaries.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b'{"canaries": [{"secret": "7773"', b"\xff7773", b""])
def test_a_broken_file_is_refused_without_its_text(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "canaries.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"not valid JSON|not UTF-8") as caught:
        Canaries.load(path)
    assert "7773" not in str(caught.value)
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_a_canary_that_does_not_match_its_format_is_found_on_loading(tmp_path: Path) -> None:
    content = Canaries([Canary(PIN, "1234", 1)]).to_dict()
    content["canaries"][0]["secret"] = "7773x"
    path = tmp_path / "canaries.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="is not matched by") as caught:
        Canaries.load(path)
    assert "7773" not in str(caught.value)


def test_a_missing_manifest_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Canaries.load(tmp_path / "none.json")


# Killed in the middle

# A process that stops in the middle of writing, and says so. The pauses are in the system's part:
# after half of the bytes, after all of them, and before the rename.
WRITER = """
import os, sys, time
from hf_exposure.utils import files
from hf_exposure.canaries.sets import Canaries

def pause(*_):
    print("writing", flush=True)
    time.sleep(3600)

stage, path, new = sys.argv[1:]
canaries = Canaries.load(new)
if stage == "half":
    class Half:
        def __init__(self, handle, mode):
            self.file = open(handle, mode, buffering=0)
        def __enter__(self):
            return self
        def __exit__(self, *_):
            self.file.close()
        def write(self, data):
            self.file.write(data[: len(data) // 2])
            pause()
    files.os.fdopen = Half
else:
    setattr(files.os, stage, pause)
canaries.save(path, overwrite=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
@pytest.mark.parametrize("stage", ["half", "fsync", "replace"])
@pytest.mark.parametrize("old", [False, True])
def test_a_process_killed_while_saving_leaves_the_old_manifest_or_none(
    tmp_path: Path, stage: str, old: bool
) -> None:
    new = mixed_set()
    source = new.save(tmp_path / "source.json")
    path = tmp_path / "folder" / "canaries.json"
    before = Canaries([Canary(PIN, "1234", 1)])
    if old:
        before.save(path)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, stage, str(path), str(source)],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    # The half-written bytes are really there, under a name that nobody reads.
    (left,) = [entry for entry in path.parent.iterdir() if entry != path]
    assert left.name.startswith("_")  # the Trainer does not upload it
    assert left.stat().st_size > 0
    if old:
        assert Canaries.load(path) == before
    else:
        assert not path.exists()
    assert Canaries.load(new.save(path, overwrite=True)) == new
    assert [*path.parent.iterdir()] == [path]  # what the killed process left is gone


def test_a_file_that_is_there_is_not_replaced_by_another_manifest(tmp_path: Path) -> None:
    first, second = mixed_set(), Canaries([Canary(PIN, "1234", 1)])
    path = first.save(tmp_path / "canaries.json")
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text(json.dumps(dict(reversed(first.to_dict().items()))))  # keys in any order
    with pytest.raises(FileExistsError, match=r"^Canaries\.save: .*overwrite=True") as caught:
        second.save(path)
    assert "1234" not in str(caught.value)
    assert Canaries.load(path) == first
    further = Insertion("splice", seed=99)
    first.record(further)
    first.save(path)  # the same set, inserted once more since
    assert Canaries.load(path).insertions[-1] == further
    with pytest.raises(FileExistsError):
        first.copy().save(path)  # would lose where they were inserted
    (tmp_path / "mine.json").write_text('{"notes": 1}')
    with pytest.raises(FileExistsError):
        first.save(tmp_path / "mine.json")
    assert Canaries.load(second.save(path, overwrite=True)) == second


def test_a_manifest_is_known_by_its_content(tmp_path: Path) -> None:
    canaries = mixed_set()
    data = canaries.to_dict()
    held = {
        "canaries.json": canaries.to_json(),
        "notes.txt": json.dumps(dict(reversed(data.items()))),
        "deep/er/no_ending": json.dumps({"x" * 9000: 1, **data}),
        "checkpoint-8/mark.json": "\ufeff" + canaries.to_json(),
        "_cut.json": canaries.to_json()[:-50],
        "list.json": json.dumps([data]),
    }
    others = {
        "plain.json": "{}",
        "model.safetensors": "\0" + canaries.to_json(),
        "code.py": f"x = {data}",
        "exposures.json": json.dumps({"kind": "exposures", **data}),
        "empty": "",
    }
    for name, text in {**held, **others}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = {path.relative_to(tmp_path).as_posix() for path in manifests_in(tmp_path)}
    assert found == set(held)


def test_a_seed_that_is_drawn_has_128_bits_and_draws_other_secrets_each_time() -> None:
    sets = [Canaries.generate(PIN, [0, 1], 2, seed=None) for _ in range(4)]
    assert len({one.seed for one in sets}) == 4
    assert max(one.seed or 0 for one in sets) >= 2**100
    assert Canaries.generate(PIN, [0, 1], 2, seed=sets[0].seed) == sets[0]
    assert sets[0].seed is not None and str(sets[0].seed) not in sets[0].card("me/set")


def test_a_seed_that_draws_the_secrets_is_not_shown() -> None:
    canaries = Canaries.generate(PIN, [0, 1], 2, seed=123456789)
    canaries.record(Insertion(seed=123456789))
    canaries.record(Insertion(seed=987))
    card = canaries.card("me/set")
    assert "123456789" not in card + repr(canaries.insertions) and "987" in card
    assert canaries.insertions[0].shown(123456789).get("seed") is None


def test_what_is_no_manifest_is_named_with_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^Canaries\.load: there is no file .*; give the"):
        Canaries.load(tmp_path / "nope.json")
    Exposures([]).save(tmp_path / "exposures.json")
    with pytest.raises(ValueError, match=r"exposures\.json': it holds exposures, not canaries"):
        Canaries.load(tmp_path / "exposures.json")
