"""Canaries in .bin and .idx files, against files that are written and read another way here."""

from __future__ import annotations

import struct
import traceback
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hf_exposure import Canaries, SecretFormat, inject_canaries
from hf_exposure.canaries import token_files
from hf_exposure.canaries.megatron import insert_into_megatron, verify_megatron
from tests.tiny import corpus, digits_in_threes

FMT = SecretFormat("My number is {secret}.", secret=r"[0-9]{9}")
CODES = {"u2": 8, "i4": 4}


def canaries() -> Canaries:
    return Canaries.generate(FMT, repetitions=[0, 1, 5], per_repetition=3, seed=5)


def write(prefix: Path, documents: list[list[list[int]]], dtype: str = "u2") -> None:
    """Documents of sequences, as Megatron-LM's preprocess_data.py writes them."""
    sequences = [sequence for document in documents for sequence in document]
    pointers, ends = [0], [0]
    for sequence in sequences:
        pointers.append(pointers[-1] + len(sequence) * np.dtype(dtype).itemsize)
    for document in documents:
        ends.append(ends[-1] + len(document))
    index = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, CODES[dtype])
    index += struct.pack("<QQ", len(sequences), len(ends))
    index += np.array([len(one) for one in sequences], "i4").tobytes()
    index += np.array(pointers[:-1], "i8").tobytes() + np.array(ends, "i8").tobytes()
    prefix.with_suffix(".idx").write_bytes(index)
    flat = [token for sequence in sequences for token in sequence]
    prefix.with_suffix(".bin").write_bytes(np.array(flat, dtype).tobytes())


def read(prefix: Path, dtype: str = "u2") -> list[list[list[int]]]:
    index = prefix.with_suffix(".idx").read_bytes()
    count, ends = struct.unpack("<QQ", index[18:34])
    lengths = np.frombuffer(index, "i4", count, 34)
    pointers = np.frombuffer(index, "i8", count, 34 + 4 * count)
    borders = np.frombuffer(index, "i8", ends, 34 + 12 * count)
    assert len(index) == 34 + 12 * count + 8 * ends
    data = prefix.with_suffix(".bin").read_bytes()
    sequences = [
        np.frombuffer(data, dtype, n, p).tolist() for n, p in zip(lengths, pointers, strict=True)
    ]
    return [sequences[a:b] for a, b in pairwise(borders)]


def sequences_of(tokenizer: Any, line: str) -> list[list[int]]:
    """A line as a document of one or two sequences, ending as Megatron ends documents."""
    ids = [*tokenizer(line, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return [ids] if len(ids) % 2 else [ids[:5], ids[5:]]


@pytest.mark.parametrize("dtype", CODES)
def test_files_get_what_a_dataset_of_their_documents_would_get(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "_DOCUMENTS", 7)  # so that there are several parts
    monkeypatch.setattr(token_files, "_TOKENS", 60)
    tokenizer, lines = digits_in_threes(), corpus()[:50]
    parts = {"a": lines[:20], "b": [], "c": lines[20:]}
    for name, own in parts.items():
        write(tmp_path / name, [sequences_of(tokenizer, line) for line in own], dtype)
    prefixes = [str(tmp_path / name) for name in parts]
    chosen = canaries()
    written = insert_into_megatron(prefixes, tmp_path / "out", chosen, tokenizer, seed=3)
    assert [path.name for path in written] == ["a", "b", "c"]
    expected = inject_canaries(Dataset.from_dict({"text": lines}), canaries(), seed=3)["text"]
    texts = set(lines)
    documents = [
        sequences_of(tokenizer, line)
        if line in texts
        else [[ids for one in sequences_of(tokenizer, line) for ids in one]]
        for line in expected
    ]
    found = [one for name in parts for one in read(tmp_path / "out" / name, dtype)]
    assert found == documents
    report = verify_megatron(written, tokenizer, chosen)
    assert report.ok and report.rows == len(expected)
    assert not verify_megatron(prefixes, tokenizer, chosen).ok
    assert chosen.insertions[0].shards == (20, 0, 30)
    # A task for each file writes the same.
    for number in range(3):
        insert_into_megatron(prefixes, tmp_path / "one", canaries(), tokenizer, seed=3, only=number)
    for path in (tmp_path / "out").iterdir():
        assert (tmp_path / "one" / path.name).read_bytes() == path.read_bytes()


def test_documents_without_special_tokens_get_canaries_without_them(tmp_path: Path) -> None:
    tokenizer = digits_in_threes()
    lines = tokenizer(list(corpus()[:9]), add_special_tokens=False)["input_ids"]
    write(tmp_path / "a", [[ids] for ids in lines])
    insert_into_megatron([str(tmp_path / "a")], tmp_path / "out", canaries(), tokenizer)
    special = set(tokenizer.all_special_ids)
    found = read(tmp_path / "out" / "a")
    assert len(found) == 9 + 18 and not any(special & set(ids) for (ids,) in found)


def test_memory_does_not_grow_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_files, "_DOCUMENTS", 500)
    monkeypatch.setattr(token_files, "_TOKENS", 5000)
    tokenizer = digits_in_threes()
    rng = np.random.default_rng(0)
    peaks = []
    for count in (5_000, 50_000):
        lengths = np.full(count, 12, "i4")
        prefix = tmp_path / str(count)
        index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, count, count + 1)
        index += lengths.tobytes() + (24 * np.arange(count, dtype="i8")).tobytes()
        index += np.arange(count + 1, dtype="i8").tobytes()
        prefix.with_suffix(".idx").write_bytes(index)
        ids = rng.integers(5, 200, 12 * count, dtype="u2")
        prefix.with_suffix(".bin").write_bytes(ids.tobytes())
        del index, ids
        tracemalloc.start()
        insert_into_megatron([str(prefix)], tmp_path / "out", canaries(), tokenizer)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    tokenizer, prefix = digits_in_threes(), tmp_path / "a"
    ids = [[int(token)] for token in range(5, 30)]
    write(prefix, [ids])

    def refused(why: str, *args: Any) -> None:
        with pytest.raises(ValueError, match=why):
            insert_into_megatron(*args)

    folder, chosen = tmp_path / "out", canaries()
    refused("where the files are", [str(prefix)], tmp_path, chosen, tokenizer)
    refused("the same name", [str(prefix)] * 2, folder, chosen, tokenizer)
    whole = prefix.with_suffix(".idx").read_bytes()
    for index, why in (
        (b"TNTIDX" + whole[6:], "no index"),
        (whole[:17] + b"\x07" + whole[18:], "no whole numbers"),
        (whole[:-8], "not whole"),
        (whole[:134] + whole[142:], "not whole"),
        (whole[:134] + whole[142:150] * 2 + whole[150:], "one after another"),
        (whole[:26] + bytes(8) + whole[34:-16], "not whole"),
        (whole[:-16] + struct.pack("<q", 99) + whole[-8:], "index is damaged"),
    ):
        prefix.with_suffix(".idx").write_bytes(index)
        refused(why, [str(prefix)], folder, chosen, tokenizer)
    prefix.with_suffix(".idx").write_bytes(whole)
    prefix.with_suffix(".bin").write_bytes(b"\5\0")
    refused("a: the tokens end before their index", [str(prefix)], folder, chosen, tokenizer)
    refused("a list of at least one", str(prefix), folder, chosen, tokenizer)
    refused("a list of at least one", [], folder, chosen, tokenizer)
    prefix.with_suffix(".bin").unlink()
    refused(r"there is no file .*a\.bin'", [str(prefix)], folder, chosen, tokenizer)
    assert not chosen.insertions and not list(folder.glob("a.*"))


def test_a_tokenizer_that_quotes_what_it_was_given_tells_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, chosen = digits_in_threes(), canaries()
    write(tmp_path / "a", [[[5, 6]]])

    def quote(self: Any, texts: Any, **settings: Any) -> Any:
        raise KeyError(f"cannot encode {[canary.text for canary in chosen]}")

    monkeypatch.setattr(type(tokenizer), "__call__", quote)
    monkeypatch.setattr(type(tokenizer), "backend_tokenizer", None)
    prefixes = [str(tmp_path / "a.bin")]  # with its ending, which is meant the same
    for use in (
        lambda: insert_into_megatron(prefixes, tmp_path / "out", chosen, tokenizer),
        lambda: verify_megatron(prefixes, tokenizer, chosen),
    ):
        with pytest.raises(RuntimeError, match="cannot encode") as raised:
            use()
        said = "".join(traceback.format_exception(raised.value))
        assert not any(canary.secret in said for canary in chosen)
