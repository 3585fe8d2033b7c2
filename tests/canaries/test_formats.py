"""Secret formats: their size, their members and their draws agree with Python's own `re`."""

from __future__ import annotations

import itertools
import math
import pickle
import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_exposure.canaries.formats import SecretFormat
from tests.canaries.test_automaton import LONGEST, UNIVERSE, brute_force, expressions, luhn


def fmt_of(expression: str) -> SecretFormat:
    """Any expression makes a format where a line break follows."""
    return SecretFormat("code {secret}\n", expression)


@settings(max_examples=120)
@given(expressions())
def test_size_membership_enumeration_and_unrank_agree_with_brute_force(expression: str) -> None:
    fmt = fmt_of(expression)
    secrets = list(fmt.enumerate())
    expected = brute_force(expression)
    assert [secret for secret in secrets if len(secret) <= LONGEST] == sorted(expected)
    assert all(re.fullmatch(expression, secret) for secret in secrets)
    assert fmt.size == len(secrets) == len(set(secrets))
    assert fmt.bits == math.log2(fmt.size)
    assert [fmt.unrank(index) for index in range(fmt.size)] == secrets
    assert [text for text in UNIVERSE if fmt.contains(text)] == expected


@settings(max_examples=40)
@given(expressions(), st.integers(0, 2**32), st.integers(0, 12))
def test_distinct_draws_are_distinct_members_and_none_of_the_excluded(
    expression: str, seed: int, n: int
) -> None:
    fmt = fmt_of(expression)
    exclude = list(itertools.islice(fmt.enumerate(), 1))
    if n > fmt.size - 1:
        with pytest.raises(ValueError, match=rf"n={n} .* only {fmt.size - 1} left"):
            fmt.sample_distinct(n, seed, exclude)
        return
    drawn = fmt.sample_distinct(n, seed, [*exclude, "no member"])
    assert len(set(drawn)) == n
    assert all(fmt.contains(secret) for secret in drawn)
    assert not {*drawn} & {*exclude}
    assert drawn == fmt.sample_distinct(n, seed, exclude)


def test_sizes_that_nobody_could_enumerate_are_exact() -> None:
    assert SecretFormat("{secret}.", "[0-9]{16}").size == 10**16
    assert SecretFormat("{secret}.", "[A-Za-z0-9]{40}").size == 62**40
    assert SecretFormat("{secret}.", "[0-9]{4}( [0-9]{4})?").size == 10**4 + 10**8
    assert SecretFormat("{secret}.", "(a|ab)[0-9]{3}").size == 2000
    card = SecretFormat("My card is {secret}.", "[0-9]{4}( [0-9]{4}){3}", check="luhn")
    assert card.size == 10**15  # one digit in ten is the right one
    assert card.contains("4539 1488 0343 6467")
    assert not card.contains("4539 1488 0343 6466")


@pytest.mark.parametrize("template", ["{secret}.", "12 {secret} 34.", "7{secret}"])
def test_the_luhn_check_keeps_just_the_right_numbers(template: str) -> None:
    fmt = SecretFormat(template, "[0-9]{4}", check="luhn")
    expected = [f"{number:04}" for number in range(10**4) if luhn(f"{number:04}")]
    assert list(fmt.enumerate()) == expected
    assert fmt.size == 1000


@pytest.mark.parametrize(
    ("expression", "check"), [("a|ab", None), ("[0-9](x[0-9])?", None), ("[0-9]{2,3}", "luhn")]
)
def test_sampling_is_uniform_over_secrets_of_all_forms(expression: str, check: str | None) -> None:
    fmt = SecretFormat("{secret}\n", expression, check)
    drawn = fmt.sample(200 * fmt.size, seed=7)
    counts = Counter(drawn)
    assert stats.chisquare([counts[secret] for secret in fmt.enumerate()]).pvalue > 0.001


def test_distinct_draws_of_nearly_all_are_in_random_order() -> None:
    fmt = fmt_of("[0-9]{2}")
    firsts = Counter(fmt.sample_distinct(90, seed)[0][0] for seed in range(2000))
    assert stats.chisquare([firsts[digit] for digit in "0123456789"]).pvalue > 0.001


def test_draws_depend_on_the_seed_alone() -> None:
    fmt = fmt_of("[a-z]{6}")
    assert fmt.sample(5, seed=3) == fmt.sample(9, seed=3)[:5]
    assert fmt.sample(5, seed=3) != fmt.sample(5, seed=4)


def test_the_template_is_kept_to_the_letter() -> None:
    fmt = SecretFormat("<a>\\ ${secret}$%s{} \n", "[0-9]{2}")
    assert (fmt.prefix, fmt.suffix) == ("<a>\\ $", "$%s{} \n")
    assert fmt.render("42") == "<a>\\ $42$%s{} \n"


def test_secrets_outside_ascii_are_whole_characters() -> None:
    fmt = SecretFormat("Passwort: {secret}.", "[äöü€😀]{2}")
    assert fmt.size == 25
    assert set(fmt.enumerate()) == {a + b for a in "äöü€😀" for b in "äöü€😀"}
    assert all(fmt.contains(secret) for secret in fmt.sample(20))
    assert not fmt.contains("ä")


@pytest.mark.parametrize("other", [None, 12, b"12", ["12"]])
def test_what_is_no_string_is_no_member(other: object) -> None:
    assert not fmt_of("[0-9]{2}").contains(other)  # type: ignore[arg-type]


def test_half_a_surrogate_pair_is_no_member() -> None:
    assert fmt_of("[?]").contains("?")
    assert not fmt_of("[?]").contains("\ud800")


@pytest.mark.parametrize("index", [-1, 100])
def test_there_is_no_secret_beyond_the_last(index: int) -> None:
    with pytest.raises(IndexError, match=rf"index={index} is not in 0..99"):
        fmt_of("[0-9]{2}").unrank(index)


def test_a_format_survives_json_and_pickle_and_is_equal_by_its_arguments() -> None:
    fmt = SecretFormat("{secret}.", "[0-9]{4}", check="luhn")
    for copy in (SecretFormat.from_dict(fmt.to_dict()), pickle.loads(pickle.dumps(fmt))):
        assert copy == fmt
        assert hash(copy) == hash(fmt)
        assert list(copy.enumerate()) == list(fmt.enumerate())
    assert fmt != SecretFormat("{secret}.", "[0-9]{4}")
    assert "_automaton" not in repr(fmt)


@pytest.mark.parametrize(
    ("template", "expression", "message"),
    [
        ("{secret}.", "[0-9]+", r"secret=r\"\[0-9\]\+\" .*infinitely many.*\[0-9\]\{1,12\}"),
        ("{secret}.", "[^\\x00-\\U0010ffff]", "no string"),
        ("{secret}.", "(?=1)1", "lookaround"),
        ("{secret}.", r"([0-9])\1", "back-reference"),
        ("{secret}.", "[0-9", "cannot be compiled"),
        ("no hole", "[0-9]", "0 holes"),
        ("{secret} {secret}", "[0-9]", "2 holes"),
        ("{secret}", "[0-9]{1,9}", "beginning of another"),
        ("{secret}", "a|ab", "beginning of another"),
        ("{secret}.", "[0-9.]{1,4}", r"before '\.'.*beginning of another"),
        ("{secret}", "(?:)", "empty string only"),
    ],
)
def test_what_cannot_be_a_format_is_refused(template: str, expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SecretFormat(template, expression)


def test_a_check_that_no_secret_passes_is_refused() -> None:
    with pytest.raises(ValueError, match="no string"):
        SecretFormat("{secret}.", "1", check="luhn")


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(ValueError, match="check='iban' is not known"):
        SecretFormat("{secret}.", "[0-9]", check="iban")


@pytest.mark.parametrize(("template", "expression"), [(1, "a"), ("{secret}", None)])
def test_arguments_that_are_no_strings_are_refused(template: object, expression: object) -> None:
    with pytest.raises(TypeError, match="must be a string"):
        SecretFormat(template, expression)  # type: ignore[arg-type]


@settings(max_examples=80)
@given(expressions(), st.sampled_from(["", "b", ".", "1b"]))
def test_a_format_is_refused_just_when_a_secret_with_its_suffix_begins_another(
    expression: str, suffix: str
) -> None:
    whole = [secret + suffix for secret in fmt_of(expression).enumerate()]
    begins = not {*whole}.isdisjoint(text[:n] for text in whole for n in range(len(text)))
    try:
        SecretFormat("{secret}" + suffix, expression)
    except ValueError as error:
        assert begins or whole == [""], error
    else:
        assert not begins
        assert whole != [""]


@pytest.mark.parametrize("value", [-1, 1.0, "1", None, True])
def test_draws_refuse_a_number_or_seed_that_is_no_whole_number_from_0_on(value: Any) -> None:
    fmt = SecretFormat("The number is {secret}.", secret=r"[0-9]{4}")
    for draw in (fmt.sample, fmt.sample_distinct):
        with pytest.raises((TypeError, ValueError), match=r"sample.*: n(=-1| must be)"):
            draw(value)
        with pytest.raises((TypeError, ValueError), match=r"sample.*: seed(=-1| must be)"):
            draw(2, seed=value)
