"""Canaries are inserted exactly, the same way by every road, and nothing else changes."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import (
    Array2D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Json,
    List,
    Value,
    load_from_disk,
)
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.injection import inject_canaries
from hf_exposure.canaries.injector import CanaryInjector
from hf_exposure.canaries.insertion import MODES, REQUEST, Insertion
from hf_exposure.canaries.sets import Canaries
from tests.processes import finished, python

ROOT = Path(__file__).parents[2]
FMT = SecretFormat("The random number is {secret}.", secret=r"[0-9]{9}")
PIN = SecretFormat("My code is {secret}.", secret=r"[0-9]{4}")
N = 60
each_mode = pytest.mark.parametrize("mode", MODES)


def canary_set(**arguments: Any) -> Canaries:
    return Canaries.generate([FMT, PIN], [0, 1, 5], per_repetition=2, **arguments)


def texts(n: int = N) -> list[str]:
    return [f"row {place} has a few words,  two spaces and\ta tab" for place in range(n)]


def dataset(n: int = N) -> Dataset:
    return Dataset.from_dict({"text": texts(n), "id": list(range(n))})


def conversations(n: int = N) -> list[list[dict[str, str]]]:
    return [
        [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": f"question number {place}?"},
            {"role": "assistant", "content": f"answer number {place} to you"},
            {"role": "user", "content": "and then what"},
            {"role": "assistant", "content": f"that was all of {place}"},
        ][: 3 + 2 * (place % 2)]
        for place in range(n)
    ]


def found(rows: list[str], canaries: Canaries) -> list[int]:
    """How often each canary stands in the rows."""
    return [sum(row.count(canary.text) for row in rows) for canary in canaries]


def planned(canaries: Canaries) -> list[int]:
    return [canary.repetitions for canary in canaries]


def without(text: str, canaries: Canaries) -> str:
    """The text with all canaries taken out again, each with the space before it."""
    for canary in canaries:
        text = text.replace(f" {canary.text}", "")
    return text


def mapped(ds: Any, canaries: Canaries, mode: str, n: int = N, **options: Any) -> Any:
    injector = CanaryInjector(canaries, num_examples=n, mode=mode)
    return ds.map(injector, batched=True, with_indices=True, **options)


# What is inserted


@pytest.mark.parametrize("inclusion", ["fixed", "coin"])
def test_each_canary_is_a_row_as_often_as_planned_and_controls_are_not(inclusion: str) -> None:
    canaries = canary_set(inclusion=inclusion)
    train = inject_canaries(dataset(), canaries)
    counts = Counter(train["text"])
    assert [counts[canary.text] for canary in canaries] == planned(canaries)
    assert len(train) == N + sum(planned(canaries))


def test_original_rows_stay_as_they_are_and_in_order() -> None:
    canaries = canary_set()
    train = inject_canaries(dataset(), canaries)
    kept = [row for row in train if row["id"] is not None]
    assert kept == list(dataset())
    added = [row for row in train if row["id"] is None]
    assert {row["text"] for row in added} == {canary.text for canary in canaries.inserted}


def test_spliced_canaries_stand_between_words_and_nothing_else_changes() -> None:
    canaries = canary_set()
    train = inject_canaries(dataset(), canaries, mode="splice")
    assert found(train["text"], canaries) == planned(canaries)
    assert train["id"] == list(range(N))
    assert [without(text, canaries) for text in train["text"]] == texts()
    for text in train["text"]:
        for canary in canaries:
            for match in re.finditer(re.escape(canary.text), text):
                assert re.search(r"\S $", text[: match.start()])
                assert re.match(r" \S", text[match.end() :])


@pytest.mark.parametrize("text", ["", "word", "two  spaces", "tab\tonly", " ", None])
def test_where_no_space_is_between_words_a_spliced_canary_comes_last(text: str | None) -> None:
    canaries = Canaries([Canary(PIN, "1234", 2)])
    ds = Dataset.from_dict({"text": [text]}, features=Features({"text": Value("string")}))
    train = inject_canaries(ds, canaries, mode="splice")
    assert train["text"] == [(text or "") + 2 * " My code is 1234."]


def test_every_space_between_words_gets_canaries_about_equally_often() -> None:
    canaries = Canaries([Canary(PIN, "1234", 3000)])
    ds = Dataset.from_dict({"text": ["a b c d", "e f g"]})
    first, second = inject_canaries(ds, canaries, mode="splice")["text"]
    mark = " My code is 1234."
    counts = [
        part.count(mark)
        for text, words in ((first, "abcd"), (second, "efg"))
        for part in re.split("|".join(f"(?:^| ){word}(?= |$)" for word in words), text)[1:-1]
    ]
    assert sum(counts) == 3000
    assert sum(counts[:3]) == pytest.approx(1500, abs=150)
    assert counts == [pytest.approx(500, abs=100)] * 3 + [pytest.approx(750, abs=130)] * 2


def test_rows_are_inserted_everywhere_from_before_the_first_to_after_the_last() -> None:
    canaries = Canaries([Canary(PIN, "1234", 4000)])
    train = inject_canaries(dataset(4), canaries)
    counts = [0]
    for row in train:
        if row["id"] is None:
            counts[-1] += 1
        else:
            counts.append(0)
    assert counts == [pytest.approx(800, abs=120)] * 5


@each_mode
def test_copies_near_the_start_stand_in_the_first_hundredth(mode: str) -> None:
    canaries = Canaries.generate(FMT, [0, 1, 4], per_repetition=5)
    train = inject_canaries(dataset(1000), canaries, mode=mode, near_start=True)
    head = [text for text, place in zip(train["text"], train["id"], strict=True) if place is None]
    last = max(at for at, text in enumerate(train["text"]) if any(c.text in text for c in canaries))
    assert last < 10 + len(head)
    assert found(train["text"], canaries) == planned(canaries)


def test_near_the_start_of_few_rows_there_are_as_many_as_copies() -> None:
    canaries = Canaries([Canary(PIN, "1234", 20), Canary(PIN, "4321", 1)])
    train = inject_canaries(dataset(100), canaries, mode="splice", near_start=True)
    rows = [place for place, text in enumerate(train["text"]) if "1234" in text]
    assert len(rows) > 5
    assert max(rows) < 20
    assert "4321" in train["text"][0]
    few = inject_canaries(dataset(3), canaries.copy(), near_start=True)
    assert found(few["text"], canaries) == [20, 1]


@each_mode
def test_a_further_canary_or_copy_moves_no_other_one(mode: str) -> None:
    few = Canaries([Canary(PIN, "1111", 3)])
    many = Canaries([Canary(PIN, "2222", 9), Canary(PIN, "1111", 5)])

    def placed(canaries: Canaries) -> Counter[str]:
        train = inject_canaries(dataset(), canaries, mode=mode)
        if mode == "splice":
            return Counter(
                text.replace(" My code is 2222.", "") for text in train["text"] if "1111" in text
            )
        original = 0
        places: list[str] = []
        for row in train:
            original += row["id"] is not None
            places += [str(original)] if "1111" in row["text"] else []
        return Counter(places)

    if mode == "rows":
        assert placed(few) <= placed(many)
    else:
        many = Canaries([Canary(PIN, "2222", 9), Canary(PIN, "1111", 3)])
        assert placed(few) == placed(many)


@each_mode
def test_the_seed_decides_on_the_places(mode: str) -> None:
    rows = {
        seed: list(inject_canaries(dataset(), canary_set(), seed=seed, mode=mode))
        for seed in (0, 1)
    }
    assert rows[0] != rows[1]
    assert rows[0] == list(inject_canaries(dataset(), canary_set(), seed=0, mode=mode))


# The same by every road


@each_mode
@pytest.mark.parametrize("batch_size", [1, 7, N, 1000, None])
def test_rows_are_the_same_whatever_the_batch_size(mode: str, batch_size: int | None) -> None:
    expected = list(inject_canaries(dataset(), canary_set(), mode=mode))
    assert list(mapped(dataset(), canary_set(), mode, batch_size=batch_size)) == expected
    stream = dataset().to_iterable_dataset()
    assert list(mapped(stream, canary_set(), mode, batch_size=batch_size)) == expected


@each_mode
def test_rows_are_the_same_with_two_processes(mode: str) -> None:
    expected = list(inject_canaries(dataset(), canary_set(), mode=mode))
    assert list(mapped(dataset(), canary_set(), mode, num_proc=2, batch_size=10)) == expected


@each_mode
@pytest.mark.parametrize("shards", [1, 4])
def test_a_stream_has_the_same_rows(mode: str, shards: int) -> None:
    canaries = canary_set()
    expected = inject_canaries(dataset(), canaries, mode=mode)
    insertions = canaries.insertions
    stream = dataset().to_iterable_dataset(num_shards=shards)
    result = inject_canaries(stream, canaries, mode=mode, num_examples=N)
    assert isinstance(result, IterableDataset)
    assert list(result) == list(expected) == list(result)
    assert result.features == expected.features
    assert result.num_shards == 1
    assert canaries.insertions == insertions


@pytest.mark.slow
@settings(max_examples=25)
@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(0, 3), st.sampled_from(MODES), st.booleans()
)
def test_all_roads_agree_for_any_number_of_rows(
    n: int, batch_size: int, seed: int, mode: str, near_start: bool
) -> None:
    canaries = Canaries.generate(PIN, [0, 1, 3], per_repetition=2, seed=seed)
    options: dict[str, Any] = {"seed": seed, "mode": mode, "near_start": near_start}
    expected = list(inject_canaries(dataset(n), canaries, **options))
    injector = CanaryInjector(canaries, n, **options)
    call = {"batched": True, "with_indices": True, "batch_size": batch_size}
    assert list(dataset(n).map(injector, **call)) == expected
    stream = dataset(n).to_iterable_dataset(num_shards=min(n, 3))
    assert list(stream.map(injector, **call)) == expected
    assert list(inject_canaries(stream, canaries, num_examples=n, **options)) == expected
    assert found([row["text"] for row in expected], canaries) == planned(canaries)


def test_splits_other_than_train_are_left_alone() -> None:
    splits = {"train": dataset(), "test": dataset(5)}
    expected = list(inject_canaries(dataset(), canary_set()))
    result = inject_canaries(DatasetDict(splits), canary_set())
    assert isinstance(result, DatasetDict)
    assert list(result["train"]) == expected
    assert result["test"] is splits["test"]
    streams = IterableDatasetDict({name: ds.to_iterable_dataset() for name, ds in splits.items()})
    streamed = inject_canaries(streams, canary_set(), num_examples=N)
    assert isinstance(streamed, IterableDatasetDict)
    assert list(streamed["train"]) == expected
    assert list(streamed["test"]) == list(splits["test"])


def identity(rows: list[Any]) -> list[Any]:
    return rows


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_of_a_data_loader_read_each_row_of_a_stream_once(workers: int) -> None:
    canaries = canary_set()
    expected = [row["text"] for row in inject_canaries(dataset(), canaries)]
    stream = dataset().to_iterable_dataset(num_shards=4)
    result = inject_canaries(stream, canaries, num_examples=N)
    loader = DataLoader(result, batch_size=8, num_workers=workers, collate_fn=identity)
    assert [row["text"] for batch in loader for row in batch] == expected


def test_nodes_share_the_rows_of_a_inserted_stream() -> None:
    canaries = canary_set()
    result = inject_canaries(dataset().to_iterable_dataset(num_shards=2), canaries, num_examples=N)
    parts = [
        [row["text"] for row in split_dataset_by_node(result, rank=rank, world_size=2)]
        for rank in (0, 1)
    ]
    assert found(parts[0] + parts[1], canaries) == planned(canaries)
    assert len(parts[0]) + len(parts[1]) == N + sum(planned(canaries))


def test_a_inserted_stream_can_be_shuffled_and_goes_on_where_it_stopped() -> None:
    canaries = canary_set()
    result = inject_canaries(dataset().to_iterable_dataset(), canaries, num_examples=N)
    rows = list(result)
    shuffled = list(result.shuffle(seed=1, buffer_size=50))
    assert shuffled != rows
    assert sorted(map(str, shuffled)) == sorted(map(str, rows))
    iterator = iter(result)
    head = [next(iterator) for _ in range(17)]
    state = result.state_dict()
    again = inject_canaries(dataset().to_iterable_dataset(), canaries, num_examples=N)
    again.load_state_dict(state)
    assert head + list(again) == rows


def test_a_mapped_stream_that_two_workers_read_is_refused() -> None:
    stream = mapped(dataset().to_iterable_dataset(num_shards=2), canary_set(), "rows")
    loader = DataLoader(stream, num_workers=2, collate_fn=identity)
    with pytest.raises(RuntimeError, match=r"worker 1 reads a part.*inject_canaries"):
        list(loader)


# The fingerprint

FRESH = """
import json, os, sys
from datasets import load_from_disk
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.injection import inject_canaries
from hf_exposure.canaries.injector import CanaryInjector
from hf_exposure.canaries.insertion import Insertion

calls = 0
original = CanaryInjector.__call__
def counted(self, batch, indices=None):
    global calls
    calls += 1
    return original(self, batch, indices)
CanaryInjector.__call__ = counted

folder, manifest = sys.argv[1:]
ds = load_from_disk(folder)
canaries = Canaries.load(manifest)
canaries.record(Insertion(seed=int(os.environ["PYTHONHASHSEED"])))  # the fingerprint does not care
injector = CanaryInjector(canaries, num_examples=len(ds), fill={"id": -1, "label": 0})
train = ds.map(injector, batched=True, with_indices=True)
other = inject_canaries(ds, canaries.copy(), mode="splice")
print(json.dumps([calls, train._fingerprint, other._fingerprint, len(canaries.insertions)]))
"""


@pytest.mark.slow
def test_equal_arguments_are_read_from_the_cache_in_a_fresh_process(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    dataset().add_column("label", [1] * N).save_to_disk(folder)
    manifest = canary_set().save(tmp_path / "canaries.json")
    script = ["-c", FRESH, folder, manifest]
    # Strings hash differently in each of the two.
    runs = [
        python(script, env={"PYTHONHASHSEED": "1"}),
        finished(
            [sys.executable, *script],
            env={**os.environ, "PYTHONHASHSEED": "2", "PYTHONPATH": str(ROOT)},
        ),
    ]
    assert [run.returncode for run in runs] == [0, 0], [run.stderr for run in runs]
    answers = [json.loads(run.stdout.splitlines()[-1]) for run in runs]
    assert answers[0][0] == 2
    assert answers[1][0] == 0
    assert answers[0][1:] == answers[1][1:]
    assert answers[0][3] == 2


def fingerprint(ds: Dataset, **arguments: Any) -> str:
    options = {"num_examples": N, **arguments}
    canaries = options.pop("canaries", None) or canary_set()
    injector = CanaryInjector(canaries, **options)
    for _ in range(2):
        out = ds.map(injector, batched=True, with_indices=True)
        injector = pickle.loads(pickle.dumps(injector))
    return str(out._fingerprint)


@pytest.mark.slow
def test_different_arguments_have_different_fingerprints(tmp_path: Path) -> None:
    dataset().save_to_disk(tmp_path / "data")
    ds = load_from_disk(tmp_path / "data")
    other = Canaries([*canary_set(), Canary(PIN, "1234", 1)])
    variants: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"mode": "splice"},
        {"near_start": True},
        {"fill": {"id": 0}},
        {"fill": {"id": 1}},
        {"canaries": other},
    ]
    prints = [fingerprint(ds, **variant) for variant in variants]
    assert len(set(prints)) == len(variants)
    assert prints == [fingerprint(ds, **variant) for variant in variants]
    ds = ds.add_column("label", [0] * N)
    assert fingerprint(ds, fill={"id": 0, "label": 1}) == fingerprint(
        ds, fill={"label": 1, "id": 0}
    )


@pytest.mark.slow
def test_a_restored_injector_inserts_the_same() -> None:
    injector = CanaryInjector(canary_set(), N, mode="splice", near_start=True, seed=4)
    again = pickle.loads(pickle.dumps(injector))
    call = {"batched": True, "with_indices": True}
    assert list(dataset().map(again, **call)) == list(dataset().map(injector, **call))
    assert again.insertion == injector.insertion
    assert list(again.canaries) == list(injector.canaries)


# How it was inserted


def test_the_manifest_knows_how_the_canaries_were_inserted(tmp_path: Path) -> None:
    canaries = canary_set()
    inject_canaries(dataset(), canaries, seed=3, mode="splice", near_start=True)
    insertion = Insertion("splice", "text", seed=3, num_examples=N, near_start=True)
    assert canaries.insertions == (insertion,)
    assert Canaries.load(canaries.save(tmp_path / "c.json")).insertions == (insertion,)
    chat = Dataset.from_dict({"messages": conversations()})
    spoken = canaries.copy()
    inject_canaries(chat, spoken, column="messages")
    told = Insertion(column="messages", seed=0, num_examples=N, chat=True, request=REQUEST)
    assert spoken.insertions == (told,)


def test_an_injector_has_its_insertion_and_puts_it_on_record() -> None:
    canaries = canary_set()
    injector = CanaryInjector(canaries, num_examples=np.int64(N), seed=2)
    assert injector.insertion == Insertion("rows", "text", seed=2, num_examples=N)
    assert canaries.insertions == (injector.insertion,)
    assert pickle.loads(pickle.dumps(injector)).insertion == injector.insertion


def test_what_could_not_be_inserted_leaves_the_record_as_it_was() -> None:
    canaries = canary_set()
    canaries.record(Insertion(column="before"))
    with pytest.raises(ValueError, match="does not fit"):
        inject_canaries(dataset(), canaries, fill={"id": "no number"})
    assert canaries.insertions == (Insertion(column="before"),)


def test_a_cell_that_is_run_again_is_on_record_once_and_another_seed_as_well() -> None:
    canaries = canary_set()
    for seed in (0, 0, 1):
        inject_canaries(dataset(), canaries, seed=seed)
    CanaryInjector(canaries, N, seed=1)
    assert [insertion.seed for insertion in canaries.insertions] == [0, 1]


@pytest.mark.parametrize("road", ["inject", "map"])
def test_a_second_insertion_in_another_context_is_refused_with_both_named(road: str) -> None:
    canaries = canary_set()
    inject_canaries(dataset(), canaries)
    said = (
        "inserted as rows of their own in column 'text', .*inserted within the texts of column "
        r"'text' too; insert a copy, canaries\.copy\(\)"
    )
    with pytest.raises(ValueError, match=said):
        if road == "inject":
            inject_canaries(dataset(), canaries, mode="splice")
        else:
            CanaryInjector(canaries, N, mode="splice")
    chat = Dataset.from_dict({"messages": conversations()})
    with pytest.raises(ValueError, match=r"as answers to 'Write one line of text\.' in column"):
        inject_canaries(chat, canaries, column="messages")
    assert [insertion.mode for insertion in canaries.insertions] == ["rows"]
    spliced = canaries.copy()
    train = inject_canaries(dataset(), spliced, mode="splice")
    assert found(train["text"], canaries) == planned(canaries)
    assert [insertion.mode for insertion in spliced.insertions] == ["splice"]


# Inserted twice


def twice(data: Any, canaries: Canaries, **options: Any) -> list[str]:
    """What is warned of when canaries that were inserted before are inserted in the data."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inject_canaries(data, canaries, **options)
    ours = [one for one in caught if "inject_canaries" in str(one.message)]
    assert all(one.filename == __file__ for one in ours)  # the line that called it
    said = [str(one.message) for one in ours]
    assert not any(canary.secret in line for canary in canaries for line in said)
    return said


@each_mode
def test_a_second_insertion_into_the_new_rows_is_warned_of_and_one_in_the_rows_as_they_were_is_not(
    mode: str,
) -> None:
    canaries = canary_set()
    assert not twice(dataset(), canaries, mode=mode)
    result = inject_canaries(dataset(), canaries, mode=mode)
    for changed in ({}, {"seed": 5}, {"near_start": True}):
        assert not twice(dataset(), canaries, mode=mode, **changed)
        (said,) = twice(result, canaries, mode=mode, **changed)
        assert "in it twice now" in said and "column='text'" in said
    shuffled = result.shuffle(seed=3).select(range(N))
    assert len(twice(DatasetDict({"train": shuffled}), canaries, mode=mode)) == 1
    assert not twice(result, Canaries.generate(FMT, [0, 1], seed=9))  # others than those
    assert not twice(result.filter(lambda row: "y code" not in row["text"]), canary_set())


@each_mode
@pytest.mark.parametrize("features", [True, False], ids=["features", "plain"])
def test_a_second_insertion_in_conversations_is_warned_of(mode: str, features: bool) -> None:
    data = Dataset.from_dict({"messages": conversations()})
    if not features:
        data = Dataset.from_list([{"messages": talk} for talk in conversations()])
    canaries = canary_set()
    result = inject_canaries(data, canaries, column="messages", mode=mode)
    assert not twice(data, canaries, column="messages", mode=mode)
    assert len(twice(result, canaries, column="messages", mode=mode)) == 1


def test_of_a_stream_it_is_said_that_it_may_have_the_canaries_already() -> None:
    canaries = canary_set()
    stream = dataset().to_iterable_dataset()
    result = inject_canaries(stream, canaries, num_examples=N)
    assert not twice(stream, canaries, num_examples=N)  # with the added rows it would be longer
    longer = N + sum(planned(canaries))
    (said,) = twice(result, canaries, num_examples=longer)
    assert "If they are in this stream already" in said


# Other columns


def picture(shade: int) -> bytes:
    import io

    data = io.BytesIO()
    PIL.Image.new("RGB", (3, 2), (shade, 0, 0)).save(data, "JPEG", quality=30)
    return data.getvalue()


def rich_dataset(n: int = 12) -> Dataset:
    features = Features(
        {
            "image": Image(),
            "text": Value("large_string"),
            "label": ClassLabel(names=["no", "yes"]),
            "small": Value("int8"),
            "half": Value("float16"),
            "time": Value("timestamp[us]"),
            "grid": Array2D((2, 2), "int32"),
            "nested": {"a": List(Value("int16")), "b": Value("string")},
            "anything": Json(),
            "data": Value("binary"),
            "fixed": List(Value("uint8"), length=2),
        }
    )
    return Dataset.from_dict(
        {
            "image": [{"bytes": picture(shade), "path": f"{shade}.jpg"} for shade in range(n)],
            "text": texts(n),
            "label": [place % 2 for place in range(n)],
            "small": list(range(n)),
            "half": [place / 2 for place in range(n)],
            "time": [np.datetime64(1_000_007 * place, "us") for place in range(n)],
            "grid": [[[place, 1], [2, 3]] for place in range(n)],
            "nested": [{"a": [place], "b": None} for place in range(n)],
            "anything": [{"k": place} if place % 2 else ["x", 1.5] for place in range(n)],
            "data": [bytes([place]) for place in range(n)],
            "fixed": [[place, 255] for place in range(n)],
        },
        features=features,
    )


def raw(ds: Dataset) -> list[dict[str, Any]]:
    """Rows as they are stored, nothing decoded."""
    return list(ds.with_format("arrow")[:].to_pylist())


@each_mode
@pytest.mark.parametrize("road", ["inject", "map", "map by ones"])
def test_features_and_stored_values_stay_exactly_as_they_are(mode: str, road: str) -> None:
    ds = rich_dataset()
    canaries = canary_set()
    if road == "inject":
        train = inject_canaries(ds, canaries, mode=mode)
    else:
        train = mapped(ds, canaries, mode, len(ds), batch_size=1 if road != "map" else 1000)
    assert train.features == ds.features
    assert train.data.schema.types == ds.data.schema.types
    rows = raw(train)
    if mode == "splice":
        assert [{**row, "text": without(row["text"], canaries)} for row in rows] == raw(ds)
        return
    assert [row for row in rows if row["label"] is not None] == raw(ds)
    for row in rows:
        if row["label"] is None:
            rest = {name for name, value in row.items() if value is not None}
            assert rest <= {"text", "nested"}
            assert row["nested"] is None or set(row["nested"].values()) == {None}


@each_mode
def test_a_stream_keeps_features_and_media(mode: str) -> None:
    ds = rich_dataset()
    canaries = canary_set()
    expected = inject_canaries(ds, canaries, mode=mode)
    stream = inject_canaries(ds.to_iterable_dataset(), canaries, mode=mode, num_examples=len(ds))
    assert stream.features == ds.features
    images = [row["image"] for row in stream.decode(False)]
    assert [image and image["bytes"] for image in images] == [
        row["image"] and row["image"]["bytes"] for row in raw(expected)
    ]
    rows = list(stream)
    for name in ("text", "label", "small", "time", "anything", "data", "fixed"):
        assert [row[name] for row in rows] == list(expected[name]), name
    shown = next(row["image"] for row in rows if row["image"] is not None)
    assert isinstance(shown, PIL.Image.Image)


@pytest.mark.parametrize("stream", [False, True])
def test_added_rows_have_what_fill_says(stream: bool) -> None:
    ds = rich_dataset()
    fill = {"label": "yes", "small": 7, "anything": {"canary": True}}
    train = inject_canaries(
        ds.to_iterable_dataset() if stream else ds, canary_set(), num_examples=len(ds), fill=fill
    )
    added = [row for row in train if row["data"] is None]
    assert len(added) == sum(planned(canary_set()))
    for row in added:
        assert (row["label"], row["small"], row["anything"]) == (1, 7, {"canary": True})
    assert train.features == ds.features


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
def test_the_format_of_a_dataset_is_kept(kind: str) -> None:
    ds = dataset().add_column("n", list(range(N)))
    canaries = canary_set()
    expected = list(inject_canaries(ds, canaries)["text"])
    train = inject_canaries(
        ds.with_format(kind, columns=["text"], output_all_columns=False), canaries
    )
    assert (train.format["type"], train.format["columns"]) == (kind, ["text"])
    assert list(train.with_format(None)["text"]) == expected
    assert train.column_names == ["text", "id", "n"]
    stream = ds.select_columns(["text"]).to_iterable_dataset().with_format(kind)
    stream = inject_canaries(stream, canaries, num_examples=N)
    assert [row["text"] for row in stream.with_format(None)] == expected
    if kind == "torch":
        numbers = ds.to_iterable_dataset().with_format("torch")
        numbers = inject_canaries(numbers, canaries, num_examples=N, fill={"n": 0, "id": 0})
        assert isinstance(next(iter(numbers))["n"], torch.Tensor)


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "arrow"])
def test_mapping_a_formatted_dataset_is_refused(kind: str) -> None:
    with pytest.raises(TypeError, match=r"with_format\(None\)"):
        mapped(dataset().with_format(kind), canary_set(), "rows")


def test_a_stream_of_unknown_features_is_inserted_all_the_same() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield from dataset()

    stream = IterableDataset.from_generator(rows)
    assert stream.features is None
    result = inject_canaries(stream, canary_set(), num_examples=N)
    assert list(result) == list(inject_canaries(dataset(), canary_set()))
    assert result.features is None


# Conversations


def chat_dataset(**more: Any) -> Dataset:
    return Dataset.from_dict({"messages": conversations(), "id": list(range(N)), **more})


def test_in_chat_data_a_canary_is_an_answer_in_a_conversation_of_its_own() -> None:
    canaries = canary_set()
    train = inject_canaries(chat_dataset(), canaries, column="messages")
    assert train.features == chat_dataset().features
    added = [row["messages"] for row in train if row["id"] is None]
    assert all(
        [message["role"] for message in messages] == ["user", "assistant"]
        and messages[0]["content"] == REQUEST
        for messages in added
    )
    assert found([messages[1]["content"] for messages in added], canaries) == planned(canaries)
    assert [row for row in train if row["id"] is not None] == list(chat_dataset())


def test_in_chat_data_canaries_are_spliced_into_answers() -> None:
    canaries = canary_set()
    train = inject_canaries(chat_dataset(), canaries, column="messages", mode="splice")
    says: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    for messages in train["messages"]:
        for message in messages:
            says[message["role"]].append(message["content"])
    assert found(says["assistant"], canaries) == planned(canaries)
    assert not any(found(says["system"] + says["user"], canaries))
    spliced = [
        [{**message, "content": without(message["content"], canaries)} for message in messages]
        for messages in train["messages"]
    ]
    assert spliced == conversations()


@pytest.mark.parametrize(
    "messages",
    [[], None, [{"role": "user", "content": "hm"}], [{"role": "assistant", "content": None}]],
)
def test_a_conversation_without_an_answer_gets_one(messages: Any) -> None:
    canaries = Canaries([Canary(PIN, "1234", 1)])
    features = Features({"chat": List({"role": Value("string"), "content": Value("string")})})
    ds = Dataset.from_dict({"chat": [messages]}, features=features)
    (result,) = inject_canaries(ds, canaries, column="chat", mode="splice")["chat"]
    assert result[-1] == {"role": "assistant", "content": " My code is 1234."}
    assert result[: len(messages or [])] == (messages or result[:0])


@each_mode
def test_messages_keep_their_further_keys(mode: str) -> None:
    extended = [[{**m, "name": "x", "weight": 1} for m in c] for c in conversations()]
    ds = Dataset.from_dict({"messages": extended, "id": list(range(N))})
    canaries = canary_set()
    expected = inject_canaries(ds, canaries, column="messages", mode=mode)
    assert expected.features == ds.features
    for stream in (ds.to_iterable_dataset(), IterableDataset.from_generator(lambda: iter(ds))):
        result = inject_canaries(stream, canaries, column="messages", mode=mode, num_examples=N)
        assert list(result) == list(expected)
    keys = {"role", "content", "name", "weight"}
    assert all({*message} == keys for row in expected for message in row["messages"])


def test_messages_of_mixed_content_are_kept() -> None:
    mixed = [
        [
            {"role": "user", "content": "call"},
            {"role": "assistant", "content": "yes", "tool": {"a": place}},
        ]
        for place in range(10)
    ]
    ds = Dataset.from_dict(
        {"messages": mixed, "id": list(range(10))},
        features=Features({"messages": List(Json()), "id": Value("int64")}),
    )
    canaries = canary_set()
    train = inject_canaries(ds, canaries, column="messages")
    assert train.features == ds.features
    assert [row["messages"] for row in train if row["id"] is not None] == list(ds["messages"])
    added = [row["messages"][1]["content"] for row in train if row["id"] is None]
    assert found(added, canaries) == planned(canaries)
    stream = inject_canaries(ds.to_iterable_dataset(), canaries, column="messages", num_examples=10)
    assert list(stream) == list(train)


def test_an_injector_goes_by_the_name_of_the_column_unless_told() -> None:
    injector = CanaryInjector(canary_set(), N, column="messages")
    assert injector.insertion.chat
    expected = list(inject_canaries(chat_dataset(), canary_set(), column="messages"))
    assert list(chat_dataset().map(injector, batched=True, with_indices=True)) == expected
    told = CanaryInjector(canary_set(), N, column="talk", chat=True)
    talk = chat_dataset().rename_column("messages", "talk")
    rows = list(talk.map(told, batched=True, with_indices=True))
    assert [row["talk"] for row in rows] == [row["messages"] for row in expected]


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"column": "body"}, ValueError, r"column='body' is not there, only \['text', 'id'\]"),
        ({"fill": {"body": 1}}, ValueError, "'body' is not there"),
        ({"fill": {"text": "x"}}, ValueError, "fill has 'text'"),
        ({"fill": {"id": "x"}}, ValueError, r"fill=\{'id': 'x'\} does not fit the column"),
        ({"column": "id"}, TypeError, "must hold text or conversations, but has.*int64"),
        ({"num_examples": N + 1}, ValueError, f"num_examples={N + 1} was promised.*has {N} rows"),
        ({"num_examples": N - 1}, ValueError, f"num_examples={N - 1} was promised.*has {N} rows"),
        ({"mode": "append"}, ValueError, "mode='append' is not known"),
        ({"seed": "x"}, TypeError, "seed must be a whole number, not str"),
        ({"canaries": [1]}, TypeError, "must be a Canaries object, not list"),
    ],
)
def test_wrong_arguments_are_refused_at_the_door(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = {"canaries": canary_set(), **arguments}
    with pytest.raises(error, match=message):
        inject_canaries(dataset(), **options)


@pytest.mark.parametrize(
    ("ds", "error", "message"),
    [
        (["text"], TypeError, "ds is of type list"),
        (dataset(0), ValueError, "num_examples=0"),
        (DatasetDict({"test": dataset()}), ValueError, r"no split 'train', only \['test'\]"),
        (Dataset.from_dict({"text": [["a"]]}), TypeError, "must hold text or conversations"),
        (
            Dataset.from_dict({"text": [[{"from": "a", "value": "b"}]]}),
            TypeError,
            "must have the keys 'role' and 'content'",
        ),
        (
            Dataset.from_dict({"text": [[{"role": "a", "content": [{"type": "text"}]}]]}),
            TypeError,
            "content of messages.*must be text",
        ),
    ],
)
def test_data_that_cannot_be_inserted_is_refused(
    ds: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        inject_canaries(ds, Canaries([Canary(PIN, "1234", 9)]), mode="splice")


def test_a_stream_needs_the_number_of_its_rows() -> None:
    with pytest.raises(ValueError, match="num_examples=None, but a stream"):
        inject_canaries(dataset().to_iterable_dataset(), canary_set())


@each_mode
def test_a_stream_that_is_shorter_than_promised_says_so_at_its_end(mode: str) -> None:
    stream = dataset().to_iterable_dataset()
    result = inject_canaries(stream, canary_set(), mode=mode, num_examples=N + 1)
    rows = []
    with pytest.raises(ValueError, match=rf"num_examples={N + 1} was promised.*has {N} rows"):
        rows.extend(iter(result))
    short = iter(result)
    seen = []
    with pytest.raises(ValueError):
        while True:
            seen.append(next(short))
    assert len(seen) >= N


@each_mode
@pytest.mark.parametrize("road", ["inject", "map", "map stream"])
def test_more_rows_than_promised_are_refused(mode: str, road: str) -> None:
    with pytest.raises(ValueError, match=rf"num_examples={N - 1} was promised.*a row {N}"):
        if road == "inject":
            stream = dataset().to_iterable_dataset()
            list(inject_canaries(stream, canary_set(), mode=mode, num_examples=N - 1))
        elif road == "map":
            mapped(dataset(), canary_set(), mode, N - 1)
        else:
            list(mapped(dataset().to_iterable_dataset(), canary_set(), mode, N - 1))


def test_a_stream_that_was_split_by_node_is_refused() -> None:
    stream = split_dataset_by_node(dataset().to_iterable_dataset(), rank=0, world_size=2)
    with pytest.raises(ValueError, match="insert them first"):
        inject_canaries(stream, canary_set(), num_examples=N // 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batched": True}, "batched=True, with_indices=True"),
        ({"with_indices": True}, "batched=True, with_indices=True"),
    ],
)
def test_an_injector_that_is_called_otherwise_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        dataset().map(CanaryInjector(canary_set(), N), **options)


def test_an_injector_refuses_a_column_that_is_not_there_or_holds_something_else() -> None:
    call = {"batched": True, "with_indices": True}
    with pytest.raises(ValueError, match="column='body' is not there"):
        dataset().map(CanaryInjector(canary_set(), N, column="body"), **call)
    with pytest.raises(ValueError, match="fill: 'body' is not there"):
        dataset().map(CanaryInjector(canary_set(), N, fill={"body": 1}), **call)
    with pytest.raises(TypeError, match=r"must hold text \(chat=False\), but a row has int"):
        dataset().map(CanaryInjector(canary_set(), N, column="id"), **call)
    with pytest.raises(TypeError, match=r"must hold conversations \(chat=True\)"):
        dataset().map(CanaryInjector(canary_set(), N, chat=True), **call)


def test_errors_and_representations_show_no_secret() -> None:
    canaries = canary_set()
    with pytest.raises(TypeError) as caught:
        inject_canaries(dataset(), canaries, column="id")
    shown = f"{caught.value} {CanaryInjector(canaries, N)!r}"
    assert not [canary for canary in canaries if canary.secret in shown]
