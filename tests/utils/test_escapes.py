"""Text from outside reaches Markdown, HTML, a terminal and JSON as text, whatever is in it."""

from __future__ import annotations

import functools
import io
import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.cli import terminal
from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.history import History, Measurement
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.results import Exposures
from hf_exposure.reports.cards import add_exposure_to_card
from hf_exposure.reports.page import render_report
from hf_exposure.utils.escapes import code_span, markdown, printable

END = "<!-- hf-exposure exposure: end -->"
NASTY = [
    "<img src=x onerror=alert(1)>",
    END,
    "<!-- hf-exposure exposure: begin -->",
    "a | b || c",
    "`code` ``more`` `",
    "[/b][bold]x[/bold] [link](javascript:alert(1)) ![i](j)",
    "\x1b[31mred\x1b]0;title\x07 \x9b2J \x08\x7f",
    "line\nbreak\r\n# heading\n---\n```\n",
    "\u202eright to left\u2066 \u2028",
    "&lt;b&gt; &amp; \\| \\",
    "$x$ ~~gone~~ **bold** __under__",
    ":smile: {{ 7 * 7 }} {% raw %}",
    "nan",
    "-inf",
    "\\nan",
    "中文 ｆｕｌｌ é",
]
texts = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=30),
    st.lists(st.sampled_from([*NASTY, " ", "x"]), min_size=1, max_size=3).map("".join),
)
obeyed = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
quick = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def measured(text: str) -> Exposures:
    """Exposures with the text wherever one from outside can stand."""
    fmt = SecretFormat(text.replace("{secret}", "") + "{secret}" + text[:9], secret="[0-9]{4}")
    items = [
        Exposure(canary, 5.0, 4, 6, 400, 200, 800, 1, 0, False, 90.0, "auto", 0.03)
        for canary in (Canary(fmt, "1234", 8), Canary(fmt, "5678", 8), Canary(fmt, "9012"))
    ]
    found = FormatDetails(uniform_bits=20.0)  # less likely than random tokens: a finding
    return Exposures(
        items,
        settings={"method": "auto", "model": text},
        formats={fmt: found},
        skipped=[(Canary(fmt, "3456", 1), f"for {text}")],
    )


def template(text: str) -> str:
    return measured(text)[0].canary.format.template


def usable(text: str) -> bool:
    return "{secret}" not in text and "{secret}" not in text[:9] + text[:9]


class Tags(HTMLParser):
    """The tags and comments of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(text: str) -> str:
    """The text as people see it, one space for each gap."""
    return " ".join(printable(" ".join(text.split())).split())


@pytest.mark.slow
@quick
@given(texts)
def test_markdown_shows_a_text_and_reads_none_of_it(text: str) -> None:
    rows = f"| a | b |\n|---|---|\n| {markdown(text)} | x{markdown(text)} |\n"
    page = Tags(MarkdownIt("commonmark", {"html": True}).enable("table").render(rows))
    assert page.tags == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]
    assert " ".join(page.text.split()) == f"a b {shown(text)} x{shown(text)}".replace("b  x", "b x")
    line = Tags(MarkdownIt("commonmark", {"html": True}).render(f"- so {markdown(text)}\n"))
    assert line.tags == ["ul", "li"] and " ".join(line.text.split()) == f"so {shown(text)}".strip()


@quick
@given(texts.filter(bool))
def test_a_code_span_holds_a_text_whole(text: str) -> None:
    line = f"x {code_span(text)} y"
    page = Tags(MarkdownIt("commonmark", {"html": True}).render(line))
    assert page.tags == ["p", "code"]
    assert page.text.strip() in (f"x {printable(text)} y", f"x  {printable(text)}  y")


@quick
@given(st.text(st.characters(exclude_categories=[]), max_size=40))
def test_what_is_printed_has_nothing_that_a_terminal_obeys(text: str) -> None:
    plain = printable(text)
    assert not [char for char in plain if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]
    assert not obeyed.search(plain) and printable(plain) == plain
    if text.isprintable():
        assert plain == text


@quick
@given(text=texts.filter(usable))
def test_tables_show_templates_names_and_reasons_as_text(text: str) -> None:
    exposures = measured(text)
    held = io.StringIO()
    Console(file=held, width=1000, force_terminal=False).print(exposures)  # with markup on
    for told in (held.getvalue(), str(exposures), repr(exposures)):
        assert not obeyed.search(told)
        assert printable(f"for {text}").strip() in told
    assert set(Tags(exposures._repr_html_()).tags) <= {
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "p",
    }


@quick
@given(texts)
def test_commands_print_strings_as_they_are(text: str) -> None:
    held = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for console in (terminal.out, terminal.progress):
            patch.setattr(console, "_file", held)
        terminal.out.print(f"{text}: written", soft_wrap=True)
        terminal.fail(text)
        patch.setattr("sys.stdout", held)
        terminal.print_json({text: text})
    told = held.getvalue()
    assert not obeyed.search(told.replace("\r", ""))
    printed = printable(text, keep="\n\t").expandtabs()
    assert told.expandtabs().startswith(f"{printed}: written\nError: {printed}")
    assert json.loads(told[told.index("{\n") if "{\n" not in text else told.rindex("\n{\n") :]) == {
        text: text
    }


@pytest.mark.slow
@quick
@given(text=texts.filter(usable))
@example(text=END)
def test_three_updates_give_a_card_one_table(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "escaped.md"
    path.write_text("---\nlicense: mit\n---\n# Mine\n", encoding="utf-8")
    exposures = measured(text)
    for _ in range(3):
        add_exposure_to_card(path, exposures)
    card = path.read_text(encoding="utf-8")
    assert card.count("## Memorization") == card.count("| canary |") == 1
    body = ModelCard(card).text
    assert body.count(END) == 1 and "<img" not in body
    page = Tags(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))
    own = {"h1", "h2", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "p", "code"}
    assert set(page.tags) <= {*own, "comment"} and page.tags.count("comment") == 2
    assert page.tags.count("code") == 1 and page.tags.count("td") == 12


@functools.cache
def tags_of_a_plain_report() -> list[str]:
    return Tags(render_report(exposures=measured("x"), title="x", notes=["x"])).tags


@pytest.mark.slow
@settings(quick, max_examples=8)
@given(text=texts.filter(usable))
def test_a_report_shows_text_and_obeys_none(text: str) -> None:
    page = render_report(exposures=measured(text), title=text, notes=[text])
    assert Tags(page).tags == tags_of_a_plain_report()


@quick
@given(texts.filter(usable), st.floats(allow_nan=True))
def test_texts_stay_texts_and_numbers_numbers_when_saved_and_loaded(
    text: str, number: float
) -> None:
    given_ = measured(text).coarse()  # as the file will have it
    given_.settings |= {"note": text, "nested": [{"x": [text, number]}], "number": number}
    history = History([Measurement(3, given_, metrics={"eval_loss": number})])
    loaded = History.from_dict(json.loads(json.dumps(history.to_dict(), allow_nan=False)))
    for back in (
        Exposures.from_dict(json.loads(json.dumps(given_.to_dict()))),
        loaded[0].exposures,
    ):
        assert repr(back.settings) == repr(given_.settings)
        assert back.skipped[0][1] == given_.skipped[0][1]
        assert back[0].canary.format == given_[0].canary.format
    assert repr(loaded[0].metrics) == repr(history[0].metrics)


@pytest.mark.parametrize("secret", ["nan", "inf"])
def test_a_secret_that_reads_like_a_number_stays_one(secret: str, tmp_path: Path) -> None:
    fmt = SecretFormat("{secret} is my name", secret="[a-z]{3}")
    one = Exposure(Canary(fmt, secret, 2), 5, 4, 6, 400, 200, 800, 1, 0, False, 9.0, "auto", 0.03)
    path = Exposures([one]).save(tmp_path / "exposures.json", reveal=True)
    assert Exposures.load(path)[0].canary == one.canary
