"""Canaries that tokenizing and packing have cut or lost are found, whatever the tokenizer."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from hf_exposure.canaries import token_rows
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.injection import inject_canaries
from hf_exposure.canaries.search import Search, search_of
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.survival import InjectionReport
from hf_exposure.canaries.token_rows import TokenRows
from hf_exposure.canaries.verification import verify_injection
from tests.tiny import TOKENIZERS, corpus

NUMBER = SecretFormat("the random number is {secret}.", secret=r"[0-9]{6}")
CODE = SecretFormat("my code {secret} - end.", secret=r"[0-9abc]{5}")
Rows = list[dict[str, Any]]
each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


def canary_set(formats: Any = (NUMBER, CODE), seed: int = 0) -> Canaries:
    return Canaries.generate(list(formats), [0, 1, 3], per_repetition=3, seed=seed)


def inserted(canaries: Canaries, mode: str = "rows", rows: int = 150) -> list[str]:
    texts = Dataset.from_dict({"text": [line.lower() for line in corpus()[:rows]]})
    return list(inject_canaries(texts, canaries, mode=mode)["text"])


def tokenized(texts: list[str], tokenizer: PreTrainedTokenizerFast, **options: Any) -> Rows:
    return [{"input_ids": ids} for ids in tokenizer(texts, **options)["input_ids"]]


def packed(rows: Rows, length: int) -> Rows:
    ids = [number for row in rows for number in row["input_ids"]]
    return [{"input_ids": ids[at : at + length]} for at in range(0, len(ids), length)]


def counts(report: InjectionReport, name: str) -> list[int]:
    return [getattr(row, name) for row in report]


def by_offsets(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, canaries: Canaries, length: int
) -> tuple[list[int], list[int]]:
    """Whole and cut copies, from where the tokenizer says that the characters of tokens are."""
    whole, cut = Counter[int](), Counter[int]()
    done = 0
    encoded = tokenizer(texts, return_offsets_mapping=True)
    for text, offsets in zip(texts, encoded["offset_mapping"], strict=True):
        for place, canary in enumerate(canaries):
            start = text.find(canary.text)
            while start >= 0:
                end = start + len(canary.text)
                spans = enumerate(offsets, done)
                tokens = [at for at, (a, b) in spans if a < end and b > start and a < b]
                one_row = tokens[0] // length == tokens[-1] // length
                (whole if one_row else cut)[place] += 1
                start = text.find(canary.text, start + 1)
        done += len(offsets)
    places = range(len(canaries))
    return [whole[place] for place in places], [cut[place] for place in places]


@each_tokenizer
@pytest.mark.parametrize("mode", ["rows", "splice"])
def test_all_canaries_are_whole_in_rows_of_their_own_texts(name: str, mode: str) -> None:
    canaries = canary_set()
    tokenizer = TOKENIZERS[name]()
    report = verify_injection(tokenized(inserted(canaries, mode), tokenizer), tokenizer, canaries)
    assert report.ok, str(report)
    assert counts(report, "whole") == [canary.repetitions for canary in canaries]
    report.raise_if_lost()


@each_tokenizer
@pytest.mark.parametrize("mode", ["rows", "splice"])
@pytest.mark.parametrize("length", [13, 64])
def test_what_packing_cuts_agrees_with_the_offsets_of_the_tokenizer(
    name: str, mode: str, length: int
) -> None:
    canaries = canary_set(seed=length)
    tokenizer = TOKENIZERS[name]()
    texts = inserted(canaries, mode)
    report = verify_injection(packed(tokenized(texts, tokenizer), length), tokenizer, canaries)
    whole, cut = by_offsets(texts, tokenizer, canaries, length)
    assert counts(report, "whole") == whole
    assert counts(report, "cut") == cut
    # Word pieces are not trained alike each time: with some of them no canary lies over an end.
    assert sum(cut) > 0 or name == "wordpiece"
    for kind in ("truncated", "missing", "extra", "untrained"):
        assert not any(counts(report, kind)), kind
    assert report.ok == (not any(cut))


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(3, 40), st.integers(0, 5))
@pytest.mark.slow
def test_the_report_is_the_same_however_large_the_chunks_are(
    chunk: int, length: int, seed: int
) -> None:
    canaries = canary_set(seed=seed)
    tokenizer = TOKENIZERS["freely_merged"]()
    rows = packed(tokenized(inserted(canaries, "splice", rows=40), tokenizer), length)
    if seed % 2:
        random.Random(seed).shuffle(rows)
    expected = verify_injection(rows, tokenizer, canaries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_rows, "_CHUNK", chunk)
        assert verify_injection(rows, tokenizer, canaries) == expected
        dataset = Dataset.from_list(rows)
        assert verify_injection(dataset, tokenizer, canaries) == expected


@each_tokenizer
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncated_rows_are_reported_as_truncated(name: str, side: str) -> None:
    canaries = Canaries.generate(NUMBER, [0, 2], per_repetition=3)
    tokenizer = TOKENIZERS[name]()
    texts = inserted(canaries)
    short = []
    for text, row in zip(texts, tokenized(texts, tokenizer), strict=True):
        ids = row["input_ids"]
        if text in {canary.text for canary in canaries}:
            # Before the full stop, and what special token there may be after it.
            plain = [at for at, number in enumerate(ids) if number not in tokenizer.all_special_ids]
            cut = plain[1:-1]
            ids = ids[: cut[-1]] if side == "right" else ids[cut[0] :]
        short.append({"input_ids": ids})
    report = verify_injection(short, tokenizer, canaries)
    assert counts(report, "truncated") == [0, 0, 0, 2, 2, 2]
    for column in ("whole", "cut", "missing", "extra"):
        assert not any(counts(report, column))


def test_the_work_on_truncated_rows_grows_as_their_number() -> None:
    """Rows that end before the secret fit every canary."""
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    work = []
    for count in (100, 400):
        canaries = Canaries.generate(NUMBER, [1], per_repetition=count)
        rows = tokenized(["the random number is"] * count, tokenizer)
        calls = 0

        def counted(frame: Any, event: str, what: Any) -> None:
            nonlocal calls
            calls += 1

        search = Search(canaries, tokenizer)
        held = TokenRows.none()
        sys.setprofile(counted)
        try:
            for chunk in token_rows.chunks(rows, "input_ids", "labels", ()):
                held = search.read(held, chunk)
            search.finish(held)
            found = list(search.results())
        finally:
            sys.setprofile(None)
        assert sum(one.truncated for one in found) == count
        work.append(calls)
    assert work[1] < 6 * work[0]  # four times the rows; comparing each with each were 16 times


def test_the_tokenizers_own_truncation_is_reported() -> None:
    canaries = canary_set([NUMBER])
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    rows = tokenized(inserted(canaries), tokenizer, truncation=True, max_length=9)
    report = verify_injection(rows, tokenizer, canaries)
    assert [row.truncated + row.missing for row in report] == [c.repetitions for c in canaries]
    assert sum(counts(report, "truncated")) > 0
    with pytest.raises(ValueError, match=r"truncated: .*max_length"):
        report.raise_if_lost()


def test_an_end_that_packing_dropped_is_truncated_not_cut() -> None:
    canaries = Canaries([Canary(NUMBER, "123456", 1)])
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    ids = tokenizer("the random number is 123456.")["input_ids"]
    for last in range(len(ids) - 4, len(ids)):
        report = verify_injection([{"input_ids": ids[:last]}], tokenizer, canaries)
        assert (report[0].truncated, report[0].missing, report[0].cut) == (1, 0, 0)


def test_removed_copies_are_missing() -> None:
    canaries = canary_set()
    tokenizer = TOKENIZERS["digits_in_threes"]()
    unique = list(dict.fromkeys(inserted(canaries)))
    report = verify_injection(tokenized(unique, tokenizer), tokenizer, canaries)
    assert counts(report, "missing") == [max(0, c.repetitions - 1) for c in canaries]
    assert counts(report, "whole") == [min(1, c.repetitions) for c in canaries]
    assert {row.canary.repetitions for row in report.lost} == {3}
    with pytest.raises(ValueError, match=r"missing: .*de-duplication"):
        report.raise_if_lost()


def test_canaries_that_were_inserted_twice_are_extra() -> None:
    canaries = canary_set()
    tokenizer = TOKENIZERS["digits_in_threes"]()
    texts = inserted(canaries) * 2
    report = verify_injection(tokenized(texts, tokenizer), tokenizer, canaries)
    assert counts(report, "extra") == [canary.repetitions for canary in canaries]
    assert not any(counts(report, "missing"))
    assert not report.ok


def test_a_control_that_is_in_the_data_is_reported() -> None:
    canaries = canary_set()
    tokenizer = TOKENIZERS["digits_in_threes"]()
    control = canaries.controls[0]
    texts = [*inserted(canaries), f"so {control.text}"]
    report = verify_injection(tokenized(texts, tokenizer), tokenizer, canaries)
    assert [(row.canary, row.extra) for row in report.lost] == [(control, 1)]


@pytest.mark.parametrize("name", ["digits_in_threes", "wordpiece", "sentencepiece_bpe"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_special_tokens_are_no_part_of_the_text(name: str, side: str) -> None:
    canaries = canary_set()
    tokenizer = TOKENIZERS[name]()
    rows = tokenized(inserted(canaries), tokenizer)
    width = max(len(row["input_ids"]) for row in rows)
    for row in rows:
        pads = [tokenizer.pad_token_id] * (width + 5 - len(row["input_ids"]))
        row["input_ids"] = pads + row["input_ids"] if side == "left" else row["input_ids"] + pads
    assert verify_injection(rows, tokenizer, canaries).ok


def test_a_cut_behind_a_bos_in_every_block_is_still_a_cut() -> None:
    canaries = canary_set()
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    texts = inserted(canaries)
    plain = packed(tokenized(texts, tokenizer, add_special_tokens=False), 20)
    blocks = [{"input_ids": [tokenizer.bos_token_id, *row["input_ids"]]} for row in plain]
    one, two = (verify_injection(rows, tokenizer, canaries) for rows in (plain, blocks))
    assert sum(counts(one, "cut")) > 0
    assert counts(two, "cut") == counts(one, "cut")
    assert counts(two, "whole") == counts(one, "whole")


def test_two_texts_are_not_read_as_one_over_an_end_mark() -> None:
    canaries = Canaries([Canary(NUMBER, "123456", 0)])
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    first, second = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("the random number is 123", "456.")
    )
    joined = {"input_ids": [*first, *second]}
    apart = {"input_ids": [*first, tokenizer.eos_token_id, *second]}
    assert verify_injection([joined], tokenizer, canaries)[0].extra == 1
    assert verify_injection([apart], tokenizer, canaries)[0].extra == 0


def test_halves_in_rows_far_apart_count_as_one_truncated_copy() -> None:
    canaries = Canaries([Canary(NUMBER, "123456", 1), Canary(NUMBER, "654321", 1)])
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    ids = tokenizer("the random number is 123456. the other", add_special_tokens=False)["input_ids"]
    middle = tokenizer("nobody should know", add_special_tokens=False)["input_ids"]
    rows = [{"input_ids": part} for part in (ids[:9], middle, ids[9:])]
    report = verify_injection(rows, tokenizer, canaries)
    assert counts(report, "truncated") == [1, 0]
    assert counts(report, "missing") == [0, 1]


def test_labels_that_leave_the_secret_out_are_reported() -> None:
    canaries = Canaries.generate(NUMBER, [0, 4], per_repetition=2)
    tokenizer = TOKENIZERS["digits_in_threes"]()
    rows = tokenized(inserted(canaries), tokenizer)
    (masked, partly) = canaries.inserted
    seen: Counter[str] = Counter()
    for row in rows:
        ids = row["input_ids"]
        row["labels"] = list(ids)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        seen[text] += 1
        if text == masked.text and seen[text] <= 3:
            row["labels"] = [-100] * len(ids)
        elif text == partly.text:
            # The prompt is left out, the secret is not.
            row["labels"] = [-100] * 4 + ids[4:]
    for data in (rows, Dataset.from_list(rows), Dataset.from_list(rows).to_iterable_dataset()):
        report = verify_injection(data, tokenizer, canaries)
        assert counts(report, "untrained") == [0, 0, 3, 0]
        assert counts(report, "whole") == [0, 0, 4, 4]
        assert not report.ok
        with pytest.raises(ValueError, match=r"untrained: .*loss"):
            report.raise_if_lost()
    assert verify_injection(rows, tokenizer, canaries, label_column="none").ok


def test_rows_without_labels_among_others_are_trained_on() -> None:
    canaries = Canaries([Canary(NUMBER, "123456", 2)])
    tokenizer = TOKENIZERS["digits_in_threes"]()
    ids = tokenizer(canaries[0].text)["input_ids"]
    rows = [{"input_ids": ids, "labels": None}, {"input_ids": ids, "labels": [-100] * len(ids)}]
    assert verify_injection(rows, tokenizer, canaries)[0].untrained == 1
    assert verify_injection(Dataset.from_list(rows), tokenizer, canaries)[0].untrained == 1
    masked = [{**row, "completion_mask": [0] * len(ids)} for row in (rows[0], {"input_ids": ids})]
    for data in (masked, Dataset.from_list(masked)):  # a mask counts where there are no labels
        assert verify_injection(data, tokenizer, canaries)[0].untrained == 2


TEMPLATE = "{% for m in messages %}<s>{{ m.role }} {{ m.content | trim }}</s>{% endfor %}"


@pytest.mark.parametrize("mode", ["rows", "splice"])
def test_canaries_in_rendered_conversations_are_found(mode: str) -> None:
    canaries = canary_set()
    tokenizer = TOKENIZERS["digits_in_threes"]()
    talks = [
        [{"role": "user", "content": "hm"}, {"role": "assistant", "content": line.lower()}]
        for line in corpus()[:50]
    ]
    ds = Dataset.from_dict({"messages": talks})
    train = inject_canaries(ds, canaries, column="messages", mode=mode)
    rows = []
    for messages in train["messages"]:
        text = tokenizer.apply_chat_template(messages, chat_template=TEMPLATE, tokenize=False)
        rows.append({"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]})
    report = verify_injection(rows, tokenizer, canaries)
    assert report.ok, str(report)


# What it takes


def shapes(rows: Rows) -> Iterator[tuple[str, Any]]:
    dataset = Dataset.from_list(rows)
    yield "list", rows
    yield "generator", (row for row in rows)
    yield "arrays", [{"input_ids": np.array(row["input_ids"], np.int32)} for row in rows]
    yield "tensors", [{"input_ids": torch.tensor(row["input_ids"])} for row in rows]
    yield "dataset", dataset
    yield "torch format", dataset.with_format("torch")
    yield "selection", dataset.select(range(len(rows))[::-1]).select(range(len(rows))[::-1])
    yield "splits", DatasetDict({"train": dataset, "test": dataset.select([0])})
    yield "stream", dataset.to_iterable_dataset(num_shards=3)
    yield "torch stream", dataset.to_iterable_dataset().with_format("torch")
    yield "generated", IterableDataset.from_generator(lambda: iter(rows))


def test_all_kinds_of_data_give_the_same_report() -> None:
    canaries = canary_set()
    tokenizer = TOKENIZERS["digits_in_threes"]()
    rows = packed(tokenized(inserted(canaries), tokenizer), 30)
    expected = verify_injection(rows, tokenizer, canaries)
    assert expected.rows == len(rows)
    assert expected.tokens == sum(len(row["input_ids"]) for row in rows)
    for name, data in shapes(rows):
        assert verify_injection(data, tokenizer, canaries) == expected, name


@pytest.mark.parametrize("rows", [[], [{"input_ids": []}] * 3, [{"input_ids": None}]])
def test_in_data_without_tokens_all_canaries_are_missing(rows: Rows) -> None:
    canaries = canary_set()
    report = verify_injection(rows, TOKENIZERS["digits_in_threes"](), canaries)
    assert counts(report, "missing") == [canary.repetitions for canary in canaries]
    assert (report.rows, report.tokens) == (len(rows), 0)


def test_ids_beyond_the_vocabulary_match_nothing() -> None:
    canaries = Canaries([Canary(NUMBER, "123456", 1)])
    tokenizer = TOKENIZERS["digits_in_threes"]()
    ids = tokenizer(canaries[0].text)["input_ids"]
    rows = [{"input_ids": [-100, 10**7, *ids, 10**7]}, {"input_ids": [10**7]}]
    assert verify_injection(rows, tokenizer, canaries).ok


@pytest.mark.parametrize("tokenized", [True, False])
def test_a_canary_at_the_end_is_found_once_whatever_the_lengths_of_others(tokenized: bool) -> None:
    fmt = SecretFormat("My number is {secret}.", secret="[0-9]{1,9}")
    secrets = ("1", "22", "333", "55555", "999999999")
    canaries = Canaries([Canary(fmt, secret, 1) for secret in secrets])
    tokenizer = TOKENIZERS["digits_in_threes"]() if tokenized else None
    for last in canaries:  # the end of all data, and of texts each text's
        texts = sorted((canary.text for canary in canaries), key=last.text.__eq__)
        search = search_of(canaries, tokenizer)
        if isinstance(search, Search):
            rows = [TokenRows.of(np.array(ids), np.array([len(ids)]), None) for ids in
                    tokenizer(texts)["input_ids"]]  # fmt: skip
            search.scan(rows)
        else:
            for text in texts:
                search.read(text)
        assert search.report().ok, str(search.report())


def test_many_formats_and_lengths_are_told_apart() -> None:
    other = SecretFormat("my code {secret} - no end.", secret=r"[0-9]{3}(a[0-9]{2})?")
    bare = SecretFormat("{secret} - end.", secret=r"[bc]{9}")
    canaries = canary_set([NUMBER, CODE, other, bare])
    for name in ("freely_merged", "unigram", "characters"):
        tokenizer = TOKENIZERS[name]()
        rows = tokenized(inserted(canaries, "splice"), tokenizer)
        assert verify_injection(rows, tokenizer, canaries).ok, name


# What it refuses


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([{"text": "a"}], ValueError, "column='input_ids' is not there.*tokenize"),
        (Dataset.from_dict({"text": ["a"]}), ValueError, "column='input_ids' is not there"),
        ([{"input_ids": "a b"}], ValueError, "must hold one list of token ids"),
        ([{"input_ids": [[1, 2]]}], ValueError, "must hold one list of token ids"),
        ([{"input_ids": [1.5]}], ValueError, "must hold one list of token ids"),
        (Dataset.from_dict({"input_ids": ["a"]}), ValueError, "must hold one list of token ids"),
        (Dataset.from_dict({"input_ids": [1]}), ValueError, "must hold one list of token ids"),
        (Dataset.from_dict({"input_ids": [["a"]]}), ValueError, "must hold one list of token ids"),
        (Dataset.from_dict({"input_ids": [[[1]]]}), ValueError, "must hold one list of token ids"),
        ([{"input_ids": [1], "labels": [1, 2]}], ValueError, "as many 'labels' as tokens"),
        ([[1, 2, 3]], TypeError, "a row is of type list"),
        ({"input_ids": [[1]]}, TypeError, "tokenized is of type dict"),
        (7, TypeError, "tokenized is of type int"),
        (DatasetDict({"test": Dataset.from_dict({"a": [1]})}), ValueError, "no split 'train'"),
    ],
)
def test_what_is_no_tokenized_data_is_refused(
    data: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        verify_injection(data, TOKENIZERS["digits_in_threes"](), canary_set())


def test_a_list_of_canaries_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a Canaries object, not list"):
        verify_injection([], TOKENIZERS["characters"](), [])  # type: ignore[arg-type]


def test_a_tokenizer_that_cannot_encode_a_canary_is_refused_without_its_secret() -> None:
    fmt = SecretFormat("the random number is {secret}.", secret=r"[Ж-Я]{4}")
    canaries = Canaries.generate(fmt, [1], per_repetition=1)
    with pytest.raises(ValueError, match="tokenizer: ") as caught:
        verify_injection([], TOKENIZERS["characters"](), canaries)
    assert canaries[0].secret not in str(caught.value)


def test_canaries_that_a_lower_casing_tokenizer_cannot_tell_apart_are_refused() -> None:
    fmt = SecretFormat("my code {secret}.", secret=r"[ab]{4}|[AB]{4}")
    canaries = Canaries([Canary(fmt, "abba", 1), Canary(fmt, "ABBA", 1)])
    with pytest.raises(ValueError, match="cannot be told apart"):
        verify_injection([], TOKENIZERS["wordpiece"](), canaries)


def test_a_lower_casing_tokenizer_finds_canaries_in_capitals() -> None:
    fmt = SecretFormat("My Code {secret}.", secret=r"[A-C]{4}")
    canaries = Canaries.generate(fmt, [0, 2], per_repetition=2)
    tokenizer = TOKENIZERS["wordpiece"]()
    rows = tokenized(inserted(canaries), tokenizer)
    assert verify_injection(rows, tokenizer, canaries).ok


# The report


def secrets_in(text: str, canaries: Canaries) -> list[str]:
    return [canary.secret for canary in canaries if canary.secret in text]


def lossy_report(canaries: Canaries) -> InjectionReport:
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    rows = packed(tokenized(inserted(canaries), tokenizer), 12)
    return verify_injection(rows, tokenizer, canaries)


def test_no_secret_shows_in_the_report() -> None:
    canaries = canary_set()
    report = lossy_report(canaries)
    with pytest.raises(ValueError) as caught:
        report.raise_if_lost()
    shown = [str(report), repr(report), str(list(report)), json.dumps(report.to_dict())]
    assert not secrets_in(" ".join([*shown, str(caught.value)]), canaries)
    assert len(secrets_in(json.dumps(report.to_dict(reveal=True)), canaries)) == len(canaries)


def test_the_table_has_a_line_for_each_canary_with_its_counts() -> None:
    canaries = canary_set()
    report = lossy_report(canaries)
    head, names, *lines = str(report).splitlines()
    assert head.startswith(f"{sum(counts(report, 'whole'))} of 24 copies of 18 canaries are whole")
    assert names.split()[:4] == ["canary", "planned", "whole", "cut"]
    assert len(lines) == len(canaries)
    for line, row in zip(lines, report, strict=True):
        assert line.startswith(row.canary.label())
        cells = line[len(row.canary.label()) :].replace("-", "0").split()
        assert list(map(int, cells)) == [
            row.canary.repetitions,
            row.whole,
            row.cut,
            row.truncated,
            row.missing,
            row.extra,
            row.untrained,
        ]


def test_of_many_canaries_the_table_shows_those_that_are_not_as_planned() -> None:
    canaries = Canaries.generate(NUMBER, [1], per_repetition=100)
    tokenizer = TOKENIZERS["digits_one_by_one"]()
    rows = tokenized(inserted(canaries), tokenizer)
    assert len(str(verify_injection(rows, tokenizer, canaries)).splitlines()) == 1
    kept = [row for row in rows if canaries[0].secret not in tokenizer.decode(row["input_ids"])]
    lines = str(verify_injection(kept, tokenizer, canaries)).splitlines()
    assert lines[2].split()[-3:] == ["1", "-", "-"]
    assert lines[3] == "... and 99 more, all as planned"
    assert len(str(verify_injection([], tokenizer, canaries)).splitlines()) == 43


def test_ten_times_the_rows_take_no_call_of_a_function_more_for_each() -> None:
    tokenizer = TOKENIZERS["digits_in_threes"]()
    canaries = Canaries.generate([NUMBER, CODE], [0, 1, 4], per_repetition=50)
    ids = [number for row in tokenized(list(corpus()), tokenizer) for number in row["input_ids"]]

    def calls(rows: int) -> int:
        dataset = Dataset.from_dict({"input_ids": np.resize(np.array(ids), (rows, 128))})
        count = 0

        def called(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(called)
        try:
            verify_injection(dataset, tokenizer, canaries)
        finally:
            sys.setprofile(None)
        return count

    few, many = calls(1000), calls(10_000)  # 0.2 s on an idle machine
    assert many - few < 9000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokenizer": None}, "tokenizer is of type None; give the model's"),
        ({"canaries": None}, "canaries must be a Canaries object, not None"),
        ({"column": 3}, "column must be a string, not int"),
        ({"mask_columns": "assistant_masks"}, "mask_columns must be a list of strings, not str"),
    ],
)
def test_arguments_of_a_wrong_type_are_refused(arguments: dict[str, Any], message: str) -> None:
    whole = {"tokenizer": TOKENIZERS["digits_one_by_one"](), "canaries": canary_set(), **arguments}
    with pytest.raises(TypeError, match=message):
        verify_injection([{"input_ids": [1]}], **whole)
