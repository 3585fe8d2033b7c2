"""The automaton has just the strings that Python's own `re` matches."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_exposure.canaries.automaton import compile_automaton
from hf_exposure.canaries.syntax import escape

ALPHABET = "ab1"
LONGEST = 5
UNIVERSE = [
    "".join(chars) for n in range(LONGEST + 1) for chars in itertools.product(ALPHABET, repeat=n)
]


def expressions() -> st.SearchStrategy[str]:
    """Finite expressions over ALPHABET: classes, alternatives, optional and repeated parts."""
    atoms = st.sampled_from(["a", "b", "1", "[ab]", "[b1]", "[a-b]", "[ab1]", "(?:)"])
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
            inner.map(lambda part: f"({part})?"),
            st.tuples(inner, st.integers(0, 2)).map(lambda pair: f"(?:{pair[0]}){{{pair[1]},2}}"),
        ),
        max_leaves=4,
    )


def brute_force(expression: str) -> list[str]:
    return [text for text in UNIVERSE if re.fullmatch(expression, text)]


@settings(max_examples=150)
@given(expressions())
def test_strings_are_those_that_re_matches(expression: str) -> None:
    automaton = compile_automaton(expression)
    strings = [data.decode() for data in automaton.strings()]
    assert len(strings) == automaton.size == len(set(strings))
    assert strings == sorted(strings)
    assert all(re.fullmatch(expression, text) for text in strings)
    expected = brute_force(expression)
    assert [text for text in strings if len(text) <= LONGEST] == sorted(expected)
    assert [text for text in UNIVERSE if automaton.accepts(text.encode())] == expected


@settings(max_examples=60)
@given(expressions(), st.sampled_from(["", "x", "a", "1("]), st.sampled_from(["", ".", "b", "a1"]))
def test_literal_texts_stand_before_and_after_each_string(
    expression: str, before: str, after: str
) -> None:
    plain = [data.decode() for data in compile_automaton(expression).strings()]
    automaton = compile_automaton(expression, before=before, after=after)
    assert {data.decode() for data in automaton.strings()} == {
        before + text + after for text in plain
    }


@settings(max_examples=60)
@given(expressions())
def test_unrank_counts_through_the_strings_in_their_order(expression: str) -> None:
    automaton = compile_automaton(expression)
    assert [automaton.unrank(index) for index in range(automaton.size)] == list(automaton.strings())


@settings(max_examples=60)
@given(expressions(), st.sampled_from(["", "b", "."]))
def test_prefix_free_means_that_no_string_begins_another(expression: str, after: str) -> None:
    automaton = compile_automaton(expression, after=after)
    strings = list(automaton.strings())
    begins = not {*strings}.isdisjoint(text[:n] for text in strings for n in range(len(text)))
    assert automaton.prefix_free is not begins


@pytest.mark.parametrize(
    ("expression", "strings"),
    [
        ("a|ab", {"a", "ab"}),
        ("ab|a", {"a", "ab"}),
        ("(a|ab)(c|bcd)", {"ac", "abc", "abcd", "abbcd"}),
        ("x(y)?", {"x", "xy"}),
        ("x(y)??", {"x", "xy"}),
        ("(?:a|b){0,2}", {"", "a", "b", "aa", "ab", "ba", "bb"}),
        ("é|ß", {"é", "ß"}),
        (r"a\.b", {"a.b"}),
        (r"[]a]", {"]", "a"}),
        (r"[^\x00-\x60\x62-\U0010ffff]", {"a"}),
        (r"\x41|\u{42}", {"A", "B"}),
        ("[a^$]", {"a", "^", "$"}),
    ],
)
def test_alternatives_and_optional_parts_are_all_there(expression: str, strings: set[str]) -> None:
    assert {data.decode() for data in compile_automaton(expression).strings()} == strings


def test_a_long_form_is_not_lost_behind_a_short_one() -> None:
    assert compile_automaton("[0-9]{4}( [0-9]{4})?").size == 10**4 + 10**8


@pytest.mark.parametrize(
    ("expression", "size"), [(r"\d", 10), (r"\w", 63), (r"\s", 6), (r"[\d\s]", 16)]
)
def test_escapes_mean_ascii(expression: str, size: int) -> None:
    automaton = compile_automaton(expression)
    assert automaton.size == size
    assert all(byte < 128 for byte in automaton.alphabet)


@pytest.mark.parametrize(
    "expression", [r"[^\d\x00]", r"[^\w\x00]", r"[^\s\x00]", r"[^a\x00]", ".", r"a|\d"]
)
def test_classes_match_what_re_matches_all_over_unicode(expression: str) -> None:
    automaton = compile_automaton(expression)
    for text in ["a", "Z", "5", "_", " ", "\n", "\x01", "é", "٣", "漢", "😀"]:
        assert automaton.accepts(text.encode()) is bool(re.fullmatch(expression, text, re.ASCII))


@pytest.mark.parametrize("expression", [r"[^a]", r"\D", r"\W", r"[\x00-\x7f]", r"(?s:.)"])
def test_an_expression_with_all_control_characters_is_told_to_leave_one_out(
    expression: str,
) -> None:
    with pytest.raises(ValueError, match=r"every control character.*\[\^\\x00\]"):
        compile_automaton(expression)


@pytest.mark.parametrize("expression", [r"[\x00-\x07a]", r"[\x00a]", ".", r"[\x00-\x1e\x7f]"])
def test_control_characters_may_be_part_of_a_string(expression: str) -> None:
    automaton = compile_automaton(expression)
    for text in ("\x00", "\x01", "a", "\n", "\x1f", "\x7f"):
        assert automaton.accepts(text.encode()) is bool(re.fullmatch(expression, text)), text


@pytest.mark.parametrize("text", [r"a.b*c", "1-2", "[x]{2}", "a b#c", "\\", "&&~~--", "é|ß", "\n"])
def test_an_escaped_text_matches_itself_alone(text: str) -> None:
    automaton = compile_automaton(escape(text))
    assert [data.decode() for data in automaton.strings()] == [text]


def luhn(text: str) -> bool:
    """The check as it is told: from the right, double every second digit, sum the digits of all."""
    digits = [int(char) for char in text if char.isdigit()]
    total = 0
    for place, digit in enumerate(reversed(digits)):
        total += sum(map(int, str(digit * 2))) if place % 2 else digit
    return total % 10 == 0


@pytest.mark.parametrize(
    ("expression", "before", "after"),
    [
        ("[0-9]{3}", "", ""),
        ("[0-9]{3}", "12", ""),
        ("[0-9]{3}", "1 7", "8."),
        ("[0-9]{2}-[0-9]{2}", "", "34"),
        ("[0-9]{1,3}", "5", "|"),
        ("[ab0-9]{2}", "", ""),
    ],
)
def test_the_luhn_check_reads_the_digits_of_the_secret_alone(
    expression: str, before: str, after: str
) -> None:
    plain = [data.decode() for data in compile_automaton(expression).strings()]
    right = {before + text + after for text in plain if luhn(text)}
    automaton = compile_automaton(expression, before=before, after=after, check="luhn")
    assert {data.decode() for data in automaton.strings()} == right
    assert automaton.size == len(right)


@settings(max_examples=40)
@given(expressions(), st.sets(st.text("ab1", min_size=1, max_size=3), min_size=1, max_size=6))
def test_token_steps_lead_where_the_bytes_of_the_token_lead(
    expression: str, words: set[str]
) -> None:
    vocabulary = {word.encode(): [number] for number, word in enumerate(sorted(words))}
    automaton = compile_automaton(expression, after=".", vocabulary=vocabulary)
    for state, steps in enumerate(automaton.token_steps):
        expected = {
            numbers[0]: reached
            for data, numbers in vocabulary.items()
            if (reached := automaton.run(data, state)) is not None
        }
        assert steps == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("[0-9]+", "infinitely many"),
        ("a*", "infinitely many"),
        ("(ab){2,}", "infinitely many"),
        ("[^\\x00-\\U0010ffff]", "no string"),
        ("a(", "cannot be compiled"),
        ("[b-a]", "cannot be compiled"),
        ("a{2,1}", "cannot be compiled"),
        ("^a", "anchor"),
        ("a$", "anchor"),
        (r"\Aa", "anchor"),
        (r"a\b", "word boundary"),
        ("(?=a)a", "lookaround"),
        ("(?!a)a", "lookaround"),
        ("(?<=a)a", "lookaround"),
        ("(?<!a)a", "lookaround"),
        (r"(a|b)\1", "back-reference"),
        ("(?P<x>a)(?P=x)", "back-reference"),
        (r"(?P<x>a)\k<x>", "cannot be compiled"),
    ],
)
def test_what_is_no_finite_set_of_strings_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_automaton(expression)
