"""Canaries in files: nothing changes but the rows that are added."""

from __future__ import annotations

import csv
import gzip
import io
import json
import traceback
import warnings
from datetime import date, datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from hf_exposure.canaries import text_files
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.injection import inject_canaries
from hf_exposure.canaries.row_files import injector_for, row_file
from hf_exposure.canaries.rows import load_rows
from hf_exposure.canaries.sets import Canaries

FORMAT = SecretFormat("CANARY {secret}, she said", secret="[0-9]{6}")
NANOSECONDS = pa.timestamp("ns", "UTC")
BOM = b"\xef\xbb\xbf"

JSON = {
    "days and times": b'{"text":"a b","day":"2021-03-01","at":"2021-03-01T10:20:30+02:00"}\n',
    "fractions": b'{"text":"a b","f":0.30000000000000004,"z":1e-12,"e":1E+400,"n":-0.0}\n',
    "big integers": b'{"text":"a b","id":123456789012345678901234567890}\n{"text":"c","id":1}\n',
    "a number of 5,000 digits": b'{"text":"a b","id":' + b"9" * 5000 + b"}\n",
    "nested values": b'{"text":"a b","m":{"x":[1,{"y":null}],"z":{}}}\n{"text":"c d","m":null}\n',
    "escapes": b'{"text":"caf\\u00e9 \\ud83d\\ude00 a\\/b"}\n{"text":"c\\td"}\n',
    "half a pair": b'{"text":"a \\ud83d b","x":"\\udc00"}\n',
    "text beyond ASCII": '{"text":"über ñ 漢字 😀"}\n{"text":"b b"}\n'.encode(),
    "both": '{"text":"ü \\u00fc x"}\n'.encode(),
    "line separators": '{"text":"a\u2028b \u0085c"}\n{"text":"d"}\n'.encode(),
    "Windows lines": b'{"text": "a b"}\r\n{"text": "c d"}\r\n',
    "old Mac lines": b'{"text": "a b"}\r{"text": "c d"}\r',
    "no last line end": b'{"text": "a b"}\n{"text": "c d"}',
    "blank lines": b'\n\n{"text": "a b"}\n\n  \n{"text": "c d"}\n\n',
    "a byte order mark": BOM + b'{"text": "a b"}\n',
    "spaces": b'{ "text" : "a b" , "x" : [ 1 , 2 ] }  \n  { "text":"c" }\n',
    "other keys in each row": b'{"text":"a b","x":1}\n{"y":2,"text":"c d"}\n{"text":null}\n',
    "a key that is there twice": b'{"text":"no","text":"a b"}\n',
    "missing and null": b'{"id":1,"text":"a b"}\n{"id":2}\n{"id":3,"text":null}\n{}\n',
    "two rows on a line": b'{"text":"a b"} {"text":"c d"}\n',
    "rows over lines": b'{\n  "text": "a b",\n  "x": 1\n}\n{\n  "text": "c d"\n}\n',
    "NaN": b'{"text":"a b","x":NaN,"y":-Infinity}\n',
    "text of quotes": b'{"text":"say \\"hi\\" \\\\ {\\"text\\": 1}"}\n',
    "an array": b'[{"text":"a b"},{"text":"c d"}]',
    "an array over lines": b'[\n  {"text": "a b", "f": 1.0},\n  {"text": "c d", "f": 2.50}\n]\n',
    "bytes that are no UTF-8": b'{"text":"caf\xe9 au lait"}\n',
    "empty text": b'{"text":""}\n{"text":" "}\n',
}
CSV = {
    "leading zeros": b"text,zip\na b,01234\nc d,00000\n",
    "words for nothing": b"text,cc\na b,NA\nnull,None\nnan,\n,n/a\nNA,NaN\n",
    "days and fractions": b"id,text,day,f\n1,a b,2021-03-01,0.30000000000000004\n",
    "quoted cells": b'"text","n"\n"a ""b"" c","1"\n"x, y","2"\n',
    "some quoted": b'text,n\n"a, b",1\nc d,2\n',
    "lines within cells": b'text,n\n"a\nb c\r\nd",1\n"\n\n",2\n',
    "quotes within cells": b'text,n\na "b" c,1\n5" wide,2\n',
    "Windows lines in CSV": b"text,n\r\na b,1\r\nc d,2\r\n",
    "old Mac lines in CSV": b"text,n\ra b,1\rc d,2\r",
    "no last line end in CSV": b"text,n\na b,1\nc d,2",
    "blank lines in CSV": b"\ntext,n\n\na b,1\n  \nc d,2\n\n\n",
    "a byte order mark in CSV": BOM + b'"text",n\na b,1\n',
    "semicolons": b"n;text\n1,5;a b\n2,5;c, d\n",
    "tabs": b"n\ttext\n1\ta b\n2\tc, d\n",
    "short rows": b"n,text,x\n1\n2,a b\n3,c d,4\n",
    "big integers in CSV": b"text,id\na b,123456789012345678901234567890\nc,1e5\n",
    "spaces in cells": b"text, n\n a b , 1\n\tc d,  2  \n",
    "Latin-1": b"text,n\ncaf\xe9 au lait,1\n",
    "a column twice": b"text,text,n\na b,c d,1\n",
    "one column": b"text\na b\nc d\n",
    "text beyond ASCII in CSV": "text,n\nü ñ 漢字,1\n\u2028 x,2\n".encode(),
}
TEXTS = {**{k: (".jsonl", v) for k, v in JSON.items()}, **{k: (".csv", v) for k, v in CSV.items()}}


def changed(tmp_path: Path, ending: str, data: bytes, mode: str) -> tuple[bytes, Canaries]:
    source = tmp_path / f"rows{ending}"
    source.write_bytes(data)
    canaries = Canaries.generate(FORMAT, repetitions=[0, 1, 3], per_repetition=2, seed=7)
    rows = row_file(source, "text")
    out = io.BytesIO()
    rows.write(out, injector_for(rows, canaries, 5, mode, False))
    return out.getvalue(), canaries


def read(ending: str, data: bytes) -> list[dict[str, Any]]:
    """The rows, by the standard library."""
    text = data.decode("utf-8-sig", "surrogateescape")
    if ending == ".csv":
        some = text.lstrip("\n").splitlines()[0]
        delimiter = next((char for char in ";\t" if char in some), ",")
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
        lines = [line for line in lines if "".join(line).strip(" ") or len(line) > 1]
        place = lines[0].index("text")
        return [
            {"text": (*line, *[""] * 3)[place], "rest": [*line[:place], *line[place + 1 :]]}
            for line in lines[1:]
        ]
    loads = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).raw_decode
    if text.lstrip().startswith("["):
        rows = json.loads(text)
    else:
        rows = []
        while text.strip():
            row, end = loads(text.lstrip())
            rows.append(row)
            text = text.lstrip()[end:]
    return [{"text": row.get("text"), "rest": {**row, "text": 0}} for row in rows]


@pytest.mark.parametrize(("ending", "data"), TEXTS.values(), ids=TEXTS)
def test_a_file_without_the_added_rows_is_the_file_that_was_there(
    tmp_path: Path, ending: str, data: bytes
) -> None:
    made, canaries = changed(tmp_path, ending, data, "rows")
    before, after = read(ending, data), read(ending, made)
    assert [row for row in after if "CANARY" not in (row["text"] or "")] == before
    in_memory = Dataset.from_dict({"text": [f"{n}" for n in range(len(before))]})
    expected = inject_canaries(in_memory, canaries.copy(), seed=5)["text"]
    numbers = iter(range(len(before)))
    names = [t if t and "CANARY" in t else f"{next(numbers)}" for t in (r["text"] for r in after)]
    assert names == list(expected)
    assert made.startswith(BOM) == data.startswith(BOM)
    if not data.lstrip().startswith(b"[") and b"} {" not in data:  # byte by byte
        made, data = made.removeprefix(BOM), data.removeprefix(BOM)
        end = (
            b"\r\n" if b"\r\n" in data else b"\r" if b"\r" in data and b"\n" not in data else b"\n"
        )
        if ending == ".csv" and end == b"\r\n" and b"\na b,1\r\n" not in data:
            end = b"\n"  # the header's
        lines = made.split(end)
        kept = end.join(line for line in lines if b"CANARY" not in line)
        assert kept.rstrip(end) == data.rstrip(end)
        assert made.endswith(end) == data.endswith(end)


@pytest.mark.parametrize(("ending", "data"), TEXTS.values(), ids=TEXTS)
def test_splicing_changes_no_other_cell(tmp_path: Path, ending: str, data: bytes) -> None:
    made, canaries = changed(tmp_path, ending, data, "splice")
    before, after = read(ending, data), read(ending, made)
    texts = [(row["text"] or "") for row in before]
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    expected = inject_canaries(
        Dataset.from_dict({"text": clean}), canaries.copy(), seed=5, mode="splice"
    )["text"]
    found = [(row["text"] or "").encode("utf-8", "replace").decode() for row in after]
    assert found == list(expected)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        if ending == ".csv":  # a short row may have got the column
            assert new["rest"][: len(old["rest"])] == old["rest"]
        else:
            assert new["rest"] == old["rest"]
    untouched = [text for text, new in zip(texts, found, strict=True) if text == new]
    assert len(untouched) + sum("CANARY" in text for text in found) >= len(texts)


@pytest.mark.parametrize(("ending", "data"), TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("mode", ["rows", "splice"])
def test_a_file_that_is_read_in_small_pieces_is_read_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, data: bytes, mode: str
) -> None:
    whole, _ = changed(tmp_path, ending, data, mode)
    monkeypatch.setattr(text_files, "_PIECE", 4)
    assert changed(tmp_path, ending, data, mode)[0] == whole


def test_conversations_keep_what_is_beside_the_changed_content(tmp_path: Path) -> None:
    lines = [
        '{"text":[{"role":"user","content":"a\\u00e9","weight":1.0},'
        '{"role":"assistant","content":"b c","weight":0.10}], "id":01e0}'.replace("01e0", "1e0"),
        '{"text":[{"content":"only asked","role":"user"}], "id":2}',
    ]
    made, canaries = changed(tmp_path, ".jsonl", "\n".join(lines).encode(), "splice")
    first, second = made.decode().split("\n")
    assert first.startswith('{"text":[{"role":"user","content":"a\\u00e9","weight":1.0},')
    assert first.endswith('"weight":0.10}], "id":1e0}') and "CANARY" in first
    assert second.startswith('{"text":[{"content":"only asked","role":"user"}')
    rows = [json.loads(line) for line in lines]
    expected = inject_canaries(
        Dataset.from_list(rows), canaries.copy(), column="text", seed=5, mode="splice"
    )
    contents = [[m["content"] for m in json.loads(line)["text"]] for line in (first, second)]
    assert contents == [[m["content"] for m in row["text"]] for row in expected]


@pytest.mark.parametrize("mode", ["rows", "splice"])
def test_parquet_keeps_its_schema_and_all_values(tmp_path: Path, mode: str) -> None:
    table = pa.table(
        {
            "text": pa.array(["a b", None, "c d", "e f", "g h"], pa.large_string()),
            "kind": pa.array(["x", "y", "x", None, "y"]).dictionary_encode(),
            "day": pa.array([date(2021, 3, 1)] * 5, pa.date32()),
            "at": pa.array(
                [datetime(2021, 3, 1, tzinfo=timezone.utc)] * 5, pa.timestamp("ns", "UTC")
            ),
            "price": pa.array([Decimal("1.10")] * 5, pa.decimal128(30, 2)),
            "small": pa.array([1, 2, 3, None, 5], pa.uint8()),
            "bytes": pa.array([b"\x00", b"", None, b"x", b"y"]),
            "nested": pa.array([[{"x": 1}], [], None, [{"x": None}], [None]]),
        }
    ).replace_schema_metadata({"mine": "kept"})
    source = tmp_path / "rows.parquet"
    pq.write_table(table, source, row_group_size=2, compression="zstd")
    canaries = Canaries.generate(FORMAT, repetitions=[0, 1, 3], per_repetition=2, seed=7)
    rows = row_file(source, "text")
    with open(tmp_path / "out.parquet", "wb") as file:
        rows.write(file, injector_for(rows, canaries, 5, mode, False))
    made = pq.read_table(tmp_path / "out.parquet")
    assert made.schema.equals(pq.read_table(source).schema, check_metadata=True)
    expected = inject_canaries(
        Dataset.from_dict({"text": table["text"].to_pylist()}), canaries.copy(), seed=5, mode=mode
    )
    assert made["text"].to_pylist() == list(expected["text"])
    old = [row for row in made.to_pylist() if "CANARY" not in (row["text"] or "")]
    if mode == "rows":
        assert old == table.to_pylist()
    else:
        assert made.drop_columns("text").equals(pq.read_table(source).drop_columns("text"))


@pytest.mark.parametrize(
    ("ending", "data", "said"),
    [
        (".jsonl", b'{"text": "a"}\n{"text": secret}\n', "not valid JSON at row 2"),
        (".jsonl", b'{"text": "a"}\n["secret"]\n', "row 2 that is no JSON object"),
        (".jsonl", b'[{"text": "secret"}', "not valid JSON"),
        (".jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16"),
        (".jsonl", gzip.compress(b'{"text": "secret"}\n'), "is compressed; decompress it"),
        (".csv", bytes.fromhex("28b52ffd") + b"text", "is compressed; decompress it"),
        (".jsonl", b'{"text": 5}\n', "must hold text or conversations"),
        (".jsonl", b"\n\n", "column='text' is not there"),
        (".jsonl", b"[" * 100_000, "not valid JSON"),
        (".csv", b'text,n\n"secret,1\n', "ends within a quoted cell"),
        (".csv", b"body,n\nsecret,1\n", "column='text' is not there"),
        (".csv", b"text,n\n", "no rows"),
        (".parquet", b"secret", "no Parquet file"),
        (".csv", b"", "is empty"),
    ],
)
def test_what_cannot_be_read_is_refused_and_not_quoted(
    tmp_path: Path, ending: str, data: bytes, said: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        changed(tmp_path, ending, data, "rows")
    assert "secret" not in "".join(traceback.format_exception(caught.value))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(data))
    with pytest.raises(ValueError, match="not known how to read it; decompress it"):
        load_rows(tmp_path / "rows.jsonl.gz")


def test_rows_that_have_the_canaries_already_are_noticed(tmp_path: Path) -> None:
    made, canaries = changed(tmp_path, ".csv", CSV["quoted cells"], "rows")
    (tmp_path / "again.csv").write_bytes(made)
    with pytest.warns(UserWarning, match="in it twice now"):
        injector_for(row_file(tmp_path / "again.csv", "text"), canaries, 5, "rows", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        injector_for(row_file(tmp_path / "rows.csv", "text"), canaries, 5, "rows", False)
