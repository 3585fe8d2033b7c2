"""Secrets in a text: what is found, what is false, and which part of it is secret."""

from __future__ import annotations

import itertools
import random
import re
import sys

import pytest

from hf_exposure.audit.detectors import KINDS, check_kinds, find_secrets
from hf_exposure.audit.finds import Find, shape
from hf_exposure.audit.keys import entropy
from hf_exposure.canaries.formats import HOLE, SecretFormat

# An expired token that was published to show the form; in two pieces, so that no scanner minds.
GITHUB = "ghp_" + "zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ" + "0mLq17"
AWS = "AKIA" + "J2WXYZQRSTUV3456"


def secret_part(text: str, find: Find) -> str:
    return text[find.secret_start : find.secret_end]


def only(text: str, **options: object) -> Find:
    (find,) = find_secrets(text, **options)  # type: ignore[arg-type]
    return find


@pytest.mark.parametrize(
    ("text", "kind", "found", "secret"),
    [
        ("pay with 4111111111111111.", "card", "4111111111111111", "4111111111111111"),
        ("4111 1111 1111 1111", "card", "4111 1111 1111 1111", "4111 1111 1111 1111"),
        ("(3782-822463-10005)", "card", "3782-822463-10005", "3782-822463-10005"),
        (
            "IBAN GB82 WEST 1234 5698 7654 32 AND MORE",
            "iban",
            "GB82 WEST 1234 5698 7654 32",
            "WEST 1234 5698 7654 32",
        ),
        ("DE89370400440532013000", "iban", "DE89370400440532013000", "370400440532013000"),
        ("SSN: 536-90-4399", "ssn", "536-90-4399", "536-90-4399"),
        ("call (212) 555-0100 now", "phone", "(212) 555-0100", "212) 555-0100"),
        ("call +1 212 555 0100 now", "phone", "+1 212 555 0100", "212 555 0100"),
        ("1-800-555-1212", "phone", "1-800-555-1212", "800-555-1212"),
        ("+44 (0)20 7946 0958", "phone", "+44 (0)20 7946 0958", "20 7946 0958"),
        ("011 353 1 679 8700", "phone", "011 353 1 679 8700", "1 679 8700"),
        ("212-555-0100 ext. 34", "phone", "212-555-0100 ext. 34", "212-555-0100 ext. 34"),
        ("<Jo.Doe@mail.example.org>", "email", "Jo.Doe@mail.example.org", "Jo.Doe"),
        ("to jo+news@example.com.", "email", "jo+news@example.com", "jo+news"),
        (f"key={AWS}", "api_key", AWS, AWS[4:]),
        (f"'{GITHUB}'", "api_key", GITHUB, GITHUB[4:-6]),
    ],
)
def test_each_kind_is_found_with_the_part_of_it_that_is_secret(
    text: str, kind: str, found: str, secret: str
) -> None:
    find = only(text)
    assert (find.kind, find.valid, find.text) == (kind, True, found)
    assert text[find.start : find.end] == found
    assert secret_part(text, find) == secret
    assert SecretFormat(HOLE, find.space, find.check).contains(secret)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("card", "4111111111111112"),
        ("iban", "DE89370400440532013001"),
        ("iban", "GB82WEST1234569876543"),
        ("ssn", "666-12-3456"),
        ("ssn", "078-05-1120"),  # printed in wallets, and so used by thousands
        ("phone", "012-555-0100"),
        ("phone", "http://209.203.162.2/x"),
        ("phone", "(194.231.40.201)"),
        ("email", "icon@2x.png"),
        ("email", "jo..doe@example.org"),
        ("api_key", GITHUB[:-1] + "8"),
        ("api_key", "AKIA" + "IOSFODNN7EXAMPLE"),
        ("api_key", "hf_" + "a" * 34),
        ("api_key", "sk-" + "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY2zA4bC6dE8fG0hJ2"),
    ],
)
def test_what_fails_its_validation_is_a_false_find(kind: str, text: str) -> None:
    finds = find_secrets(f"see {text} here", [kind])
    assert [(find.kind, find.valid) for find in finds] == [(kind, False)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "in 2002, 10.5 and 1,234",
        "12:30:45 on 2002-09-20",
        "version 1.2.3.4",
        "a@b",
        "@home",
        "9999999999999999",
        "x4111111111111111",
        "1536-90-43991",
        "IBAN OF ALL THE COMPANIES IN",
    ],
)
def test_ordinary_text_holds_no_valid_find(text: str) -> None:
    assert not [find for find in find_secrets(text) if find.valid]


def test_message_numbers_are_not_addresses() -> None:
    text = (
        "Message-Id: <m2y99x.fsf@maya.example.org>\nReferences: <one@example.org>\n"
        "\t<two@example.org>\nFrom: Three <three@example.org>\n\nReferences to four@example.org\n"
    )
    said = [(secret_part(text, find), find.valid) for find in find_secrets(text, ["email"])]
    assert said == [
        ("m2y99x.fsf", False),
        ("one", False),
        ("two", False),
        ("three", True),
        ("four", True),
    ]


def test_luhn_agrees_with_the_rule_written_out() -> None:
    draw = random.Random(0)
    for _ in range(200):
        digits = "4" + "".join(draw.choice("0123456789") for _ in range(15))
        doubled = [int(d) * (2 - place % 2) for place, d in enumerate(digits)]
        holds = sum(n - 9 if n > 9 else n for n in doubled) % 10 == 0
        assert only(digits, kinds=["card"]).valid is holds


def test_iban_agrees_with_the_remainder_written_out() -> None:
    for end in range(97):
        text = f"DE{end:02d}370400440532013000"
        number = int("370400440532013000" + "1314" + f"{end:02d}")
        assert only(text, kinds=["iban"]).valid is (number % 97 == 1)


def test_finds_do_not_overlap_and_the_first_kind_counts() -> None:
    text = "4111 1111 1111 1111, 212-555-0100, jo@212-555-0100.example.org, 536-90-4399"
    finds = find_secrets(text)
    assert [find.kind for find in finds] == ["card", "phone", "email", "ssn"]
    assert all(a.end <= b.start for a, b in itertools.pairwise(finds))


def test_equal_secrets_have_equal_keys_however_they_are_written() -> None:
    text = "(212) 555-0100 and 212.555.0100 and +1 212 555-0100 and 212-555-0101"
    keys = [find.key for find in find_secrets(text)]
    assert len(set(keys[:3])) == 1 and keys[3] != keys[0]
    one, other = find_secrets("Jo@Example.org jo@example.org")
    assert one.key == other.key


def test_only_the_kinds_asked_for_are_looked_for() -> None:
    text = "4111111111111111 jo@example.org 536-90-4399"
    assert {find.kind for find in find_secrets(text, ["ssn", "card"])} == {"ssn", "card"}


def test_the_region_tells_whose_numbers_may_stand_without_a_country_code() -> None:
    assert only("020 7946 0958", region="GB").valid
    assert not [find for find in find_secrets("020 7946 0958", region="US") if find.valid]
    assert find_secrets("212-555-0100", region=None) == []
    assert only("+1 212-555-0100", region=None).valid


def test_check_digits_and_plans_vouch_and_entropy_does_not() -> None:
    text = f"4111111111111111 536-90-4399 jo@example.org {AWS} {GITHUB} +1 212-555-0100"
    vouched = {find.text: find.checked for find in find_secrets(text)}
    assert [text for text, checked in vouched.items() if not checked] == ["jo@example.org", AWS]


@pytest.mark.parametrize("seed", range(20))
def test_random_strings_of_the_same_shape_have_the_length_and_the_marks_of_the_find(
    seed: int,
) -> None:
    text = f"4111-1111-1111-1111 GB82 WEST 1234 5698 7654 32 (212) 555-0100 x12 jo.d@a.org {AWS}"
    finds = find_secrets(text)
    assert len(finds) == 5
    for find in finds:
        fmt = SecretFormat(HOLE, find.space, find.check)
        secret = secret_part(text, find)
        (other,) = fmt.sample(1, seed)
        assert fmt.contains(secret) and len(other) == len(secret)
        if find.kind != "email":
            assert re.sub(r"[A-Za-z0-9]", "", other) == re.sub(r"[A-Za-z0-9]", "", secret)


def test_a_shape_keeps_marks_and_the_case_of_letters() -> None:
    for text in ("Ab-1.2 (x)*[y]{z}|^$?+\\", "a_b", "", "é1"):
        assert re.fullmatch(shape(text), text)
    assert shape("AB12-cd") == "[A-Z]{2}[0-9]{2}-[a-z]{2}"
    assert not re.fullmatch(shape("1.2"), "1x2")


def test_the_extension_of_a_phone_number_is_a_word_that_stays() -> None:
    find = only("212-555-0100 ext. 34")
    assert find.space == r"[0-9]{3}-[0-9]{3}-[0-9]{4} ext\. [0-9]{2}"


def test_digits_of_other_scripts_are_found_and_do_not_match_their_expression() -> None:
    text = "call ２１２-５５５-０１００ now"
    find = only(text)
    assert find.valid
    assert not SecretFormat(HOLE, find.space).contains(secret_part(text, find))


def test_nothing_of_the_text_is_in_a_repr() -> None:
    text = f"4111111111111111 jo.doe@example.org {GITHUB}"
    for find in find_secrets(text):
        assert find.text not in repr(find) and secret_part(text, find) not in repr(find)
        assert "text" not in repr(find) and "key=" not in repr(find)


@pytest.mark.parametrize(
    ("library", "kind"), [("phonenumbers", "phone"), ("stdnum", "card"), ("stdnum", "iban")]
)
def test_a_missing_library_is_named_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch, library: str, kind: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library}.*hf-exposure\[audit\]"):
        find_secrets("4111111111111111", [kind])
    assert only("jo@example.org", kinds=["email"]).valid  # needs neither


def test_bad_arguments_are_refused_with_what_would_be_right() -> None:
    with pytest.raises(ValueError, match="'passport' is not known; use some of api_key"):
        check_kinds(["card", "passport"])
    with pytest.raises(ValueError, match="nothing is asked for"):
        check_kinds([])
    with pytest.raises(TypeError, match=r"give a list, such as kinds=\['card'\]"):
        check_kinds("card")
    with pytest.raises(ValueError, match="region='us' is not known"):
        find_secrets("", region="us")
    assert check_kinds(None) == KINDS


def test_entropy_is_that_of_the_characters() -> None:
    assert entropy("") == entropy("aaaa") == 0.0
    assert entropy("aabb") == 1.0
    assert entropy("0123456789abcdef") == 4.0
