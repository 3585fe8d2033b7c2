"""A table of what must be found and what must not, from the rules of the formats.

Card numbers have their issuers' first digits and lengths and Luhn's check digit; account numbers
are the examples of the IBAN registry; keys are made up here, in pieces, so that no scanner of
secrets minds the table.
"""

from __future__ import annotations

import random
import string
import sys
import zlib
from pathlib import Path

import pytest

from hf_exposure.audit.detectors import find_secrets

_ALNUM = string.digits + string.ascii_uppercase + string.ascii_lowercase


def drawn(seed: int, count: int, alphabet: str = _ALNUM) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(alphabet) for _ in range(count))


def github(seed: int) -> str:
    """The last six characters are the CRC-32 of the thirty before them, in base 62."""
    body = drawn(seed, 30)
    number, check = zlib.crc32(body.encode()), ""
    for _ in range(6):
        number, place = divmod(number, 62)
        check = _ALNUM[place] + check
    return f"ghp_{body}{check}"


_BASE32 = string.ascii_uppercase + "234567"
KEYS = {
    "AWS": "AKIA" + drawn(1, 16, _BASE32),
    "ASIA": "ASIA" + drawn(2, 16, _BASE32),
    "GITHUB": github(3),
    "SLACK": "xoxb-"
    + f"{drawn(4, 12, string.digits)}-{drawn(5, 12, string.digits)}-{drawn(6, 24)}",
    "STRIPE": "sk_live_" + drawn(7, 24),
    "GOOGLE": "AIza" + drawn(8, 35),
    "OPENAI": "sk-" + drawn(9, 20) + "T3BlbkFJ" + drawn(10, 20),
    "PROJECT": "sk-proj-" + drawn(11, 40) + "T3BlbkFJ" + drawn(12, 40),
    "HF": "hf_" + drawn(13, 34),
    "PAT": "github_pat_" + drawn(14, 22) + "_" + drawn(15, 59),
    "SHORT_AWS": "AKIA" + drawn(1, 15, _BASE32),
    "LOWER_AWS": "akia" + drawn(1, 16, _BASE32),
    "FLAT_HF": "hf_" + "a" * 34,
    "FALSE_GITHUB": github(3)[:-1] + ("0" if github(3)[-1] != "0" else "1"),
    "EXAMPLE_AWS": "AKIA" + "IOSFODNN7EXAMPLE",
    "OTHER_SK": "sk-" + drawn(16, 48),
    "ANTHROPIC": "sk-ant-" + drawn(17, 20) + "T3BlbkFJ" + drawn(18, 20),
}


def table() -> list[list[str]]:
    lines = (Path(__file__).parent / "finds.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = []
    for line in lines:
        for name, key in KEYS.items():
            line = line.replace(f"{{{name}}}", key)
        rows.append([cell.replace("\\n", "\n") for cell in line.split("\t")])
    return rows


def test_the_table_has_hundreds_of_lines_for_all_kinds() -> None:
    finds = [find for _, _, *finds in table() for find in finds]
    assert len(table()) >= 200
    for kind in ("api_key", "iban", "card", "ssn", "email", "phone"):
        assert sum(find.startswith(f"{kind}=") for find in finds) >= 20
    assert sum(not finds for _, _, *finds in table()) >= 80


@pytest.mark.parametrize("row", table(), ids=lambda row: f"{row[0]}: {row[1][:40]!r}")
def test_a_text_holds_the_finds_of_the_table_and_no_others(row: list[str]) -> None:
    _, text, *expected = row
    finds = [find for find in find_secrets(text) if find.valid]
    assert [f"{find.kind}={find.text}" for find in finds] == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        "4",
        "4111 ",
        "4111-",
        "2125 ",
        pytest.param("21 25 ", marks=pytest.mark.slow),
        "2 ",
        "212 555 ",
        "212-555-0100 ",
        "+1 ",
        "536-90-",
        "DE89 3704 ",
        "DE89",
        "jo.",
        "jo@example.",
        "jo@example.org ",
        "...",
        "hf_",
        "sk-",
        "2221 4111 1111 1111 1111 ",
        "DE88370400440532013000 ",
        "Message-Id: <jo@example.org>\n",
    ],
)
def test_work_grows_with_the_length_of_the_text_and_no_faster(part: str) -> None:
    def work(length: int) -> int:
        """Calls of Python's and C's functions, which no other load on the machine changes."""
        text = (part * (length // len(part) + 1))[:length]
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event.endswith("call")

        sys.setprofile(count)
        try:
            find_secrets(text)
        finally:
            sys.setprofile(None)
        return calls

    find_secrets(part * 20)  # what is loaded once
    one, other = work(1_000), work(4_000)
    assert other < 5 * one + 2_000  # four times the text
