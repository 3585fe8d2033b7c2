"""The report: one page that needs nothing else, says what was found, and keeps secrets."""

from __future__ import annotations

import base64
import functools
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hf_exposure.attacks.extraction import Extraction, Extractions
from hf_exposure.attacks.generations import Generated, Generations
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.chance import group_findings
from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.history import History, Measurement
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.results import Exposures
from hf_exposure.reports.findings import findings_of
from hf_exposure.reports.page import render_report, write_report

FORMAT = SecretFormat("The random number is {secret}.", secret="[0-9]{6}")
CANARIES = Canaries.generate(FORMAT, repetitions=[0, 1, 8, 64], per_repetition=3, seed=5)


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    """The test of the fit is the slow part of a page; its figure is not what is looked at here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_exposure.reports.page._RESAMPLES", 9)
        yield


def exposure(canary: object, bits: float, **changed: object) -> Exposure:
    most = FORMAT.bits
    values = {
        "canary": canary,
        "bits": bits,
        "low": max(0.0, bits - 0.5),
        "high": min(most, bits + 0.5),
        "rank": 2.0 ** (most - bits),
        "rank_low": max(1.0, 2.0 ** (most - bits - 0.5)),
        "rank_high": 2.0 ** (most - max(0.0, bits - 0.5)),
        "certified": max(0.0, bits - 3),
        "ties": 0,
        "exact": False,
        "log_perplexity": 22 - bits,
        "method": "auto",
        "p_value": 2.0**-bits,
    }
    return Exposure(**{**values, **changed})  # type: ignore[arg-type]


def memorized(canary: object) -> Exposure:
    most = FORMAT.bits
    return exposure(
        canary,
        most,
        low=most,
        high=most,
        rank=1.0,
        rank_low=1.0,
        rank_high=1.0,
        exact=True,
        certified=most,
        method="exact",
    )


def measured(share: float = 1.0, **more: object) -> Exposures:
    """Exposures as after a training: the more repetitions the higher."""
    by_repetitions = {0: [0.4, 1.2, 2.9], 1: [1.5, 2.2, 0.7], 8: [9.0, 11.5, 12.5]}
    items, seen = [], dict.fromkeys((0, 1, 8, 64), 0)
    for canary in CANARIES:
        place = seen[canary.repetitions]
        seen[canary.repetitions] += 1
        if canary.repetitions == 64:
            items.append(memorized(canary) if share == 1.0 else exposure(canary, 15 * share))
        else:
            items.append(exposure(canary, share * by_repetitions[canary.repetitions][place]))
    return Exposures(items, forwards=4000, seconds=1.5, settings={"method": "auto"}, **more)  # type: ignore[arg-type]


def history() -> History:
    return History(
        Measurement(
            step,
            measured(step / 30),
            epoch=step / 10,
            tokens=step * 1000,
            metrics={"eval_loss": 5 - step / 20},
        )
        for step in (10, 20, 30)
    )


def extractions() -> Extractions:
    items = [
        Extraction(canary.secret, 3.0 + place, True, 100 + place, canary, FORMAT)
        for place, canary in enumerate(CANARIES)
        if canary.repetitions == 64
    ]
    return Extractions(items, format=FORMAT, forwards=150, seconds=0.2)


def odd_history() -> History:
    """More measurements than a table shows."""
    return History(Measurement(step, measured(step / 30)) for step in range(1, 41))


@functools.cache
def everything(**changed: object) -> str:
    references = [14 + 0.01 * place + (place % 7) for place in range(300)]
    arguments = {
        "exposures": measured(formats={FORMAT: FormatDetails(references=np.array(references))}),
        "history": history(),
        "extractions": extractions(),
        "generations": Generations(
            [Generated(canary, canary.repetitions, 100) for canary in CANARIES],
            attempts=100,
            forwards=900,
            seconds=0.5,
            settings={"constrained": True},
        ),
        "compare": [measured()],
    }
    return render_report(**{**arguments, **changed})  # type: ignore[arg-type]


def pictures(page: str) -> Iterator[str]:
    for data in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page):
        yield base64.b64decode(data).decode("utf-8")


class Checker(HTMLParser):
    """Collects what a page asks the network for, images without a text, tags that do not close."""

    VOID = frozenset({"meta", "img", "link", "br", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.asks: list[str] = []
        self.untold = 0
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        for name in ("src", "href", "srcset", "data", "action"):
            value = known.get(name)
            if value and not value.startswith(("data:", "#")):
                self.asks.append(value)
        if tag in {"script", "link", "iframe", "object"}:
            self.asks.append(tag)
        if tag == "img" and not known.get("alt"):
            self.untold += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()


@pytest.mark.slow
def test_the_page_is_whole_and_asks_for_nothing_from_outside() -> None:
    checker = Checker()
    page = everything()
    checker.feed(page)
    assert checker.asks == []
    assert checker.untold == 0
    assert checker.open == []
    assert "url(" not in page and "@import" not in page
    assert len(list(pictures(page))) == 3


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes() -> None:
    again = everything.__wrapped__()
    assert again == everything()


@pytest.mark.slow
def test_no_secret_is_on_the_page_or_in_its_pictures_unless_asked_for() -> None:
    page = everything()
    everywhere = page + "".join(pictures(page))
    assert not [canary for canary in CANARIES if canary.secret in everywhere]
    assert "Secrets are masked" in page
    revealed = everything(reveal=True)
    assert all(canary.secret in revealed for canary in CANARIES)
    assert "This page holds secrets" in revealed


def test_the_pictures_follow_the_page_into_the_dark() -> None:
    for picture in pictures(everything()):
        assert "prefers-color-scheme: dark" in picture
        drawn = picture.partition("</style>")[2]
        # Whatever has a colour has one that changes.
        assert "var(--c" in drawn
        assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", drawn)


def test_the_training_figure_is_there_in_numbers_too() -> None:
    page = render_report(history=history())
    row = re.search(r"<details>.*?<td[^>]*>20</td>(.*?)</tr>", page, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row[1])
    group = measured(20 / 30).coarse().by_repetitions()
    means = [f"{sum(e.bits for e in group[times]) / 3:.1f}" for times in (0, 1, 8, 64)]
    assert cells == [*means, "4.000"]


def test_a_long_history_has_a_table_of_bounded_length_with_its_first_and_last_step() -> None:
    page = render_report(history=odd_history())
    table = page.partition("<details>")[2].partition("</details>")[0]
    steps = re.findall(r"<tr><td[^>]*>(\d+)</td>", table)
    assert len(steps) == 20 and steps[0] == "1" and steps[-1] == "40"
    assert "20 of 40 measurements" in table


def test_the_methods_on_the_page_are_explained() -> None:
    page = render_report(exposures=measured())
    assert "<strong>auto</strong>" in page and "<strong>exact</strong>" in page
    assert "<strong>sampling</strong>" not in page


def test_a_wrong_argument_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with pytest.raises(TypeError, match="exposures must be an Exposures object, not str"):
        write_report(page, exposures="exposures.json")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="each of them must be an Extractions object, not Extr"):
        write_report(page, exposures=measured(), extractions=list(extractions()))  # type: ignore[arg-type]


def test_the_reason_why_a_canary_was_left_out_is_masked_too() -> None:
    secret = CANARIES[0].secret
    exposures = Exposures([memorized(CANARIES[-1])], skipped=[(CANARIES[0], f"no {secret} here")])
    page = render_report(exposures=exposures)
    assert "could not be scored" in page and "here" in page


def test_masked_canaries_of_a_group_are_not_taken_for_one_another() -> None:
    """They look alike; a table of methods goes by their order, or leaves them out."""
    masked = Exposures.from_dict(measured().to_dict())
    page = render_report(exposures=masked, compare=[masked])
    for one in masked:
        shown = f"{one.bits:.1f} (exact)" if one.exact else f"{one.bits:.1f} ("
        times = 3 if one.canary.repetitions == 64 else 1
        assert page.count(f"<td>{shown}") >= 2 * times
    fewer = Exposures(masked[1:], settings=masked.settings)  # a control is missing
    page = render_report(exposures=masked, compare=[fewer])
    rows = page.partition("What other methods say")[2]
    assert rows.count("<td>–</td>") == 3  # it cannot be told which one


def test_text_from_outside_is_escaped() -> None:
    fmt = SecretFormat("<script>alert('{secret}')</script>", secret="[0-9]{6}")
    canaries = Canaries.generate(fmt, repetitions=[0, 2], per_repetition=1)
    page = render_report(
        exposures=Exposures(
            [exposure(canary, 3.0) for canary in canaries], settings={"model": "<b>me</b>"}
        ),
        title="<i>title</i>",
        notes=["a & b <u>"],
    )
    assert "<script" not in page and "<b>me" not in page and "<i>title" not in page
    assert "<u>" not in page and "a &amp; b" in page


def test_a_history_alone_is_enough_and_its_last_measurement_counts() -> None:
    page = render_report(history=history())
    assert "While it trained" in page
    assert "All 3" not in page  # of 9 inserted canaries 3 are memorized
    assert "3 of 9 inserted canaries are memorized" in page


def test_without_anything_measured_the_error_says_what_to_give() -> None:
    for nothing in (None, History()):
        with pytest.raises(ValueError, match="nothing to report; give exposures"):
            render_report(history=nothing)


def test_odd_measurements_have_a_page_too() -> None:
    infinite = exposure(CANARIES[0], 0.0, log_perplexity=float("inf"))
    for exposures in (
        Exposures([]),
        Exposures([infinite]),
        Exposures([memorized(CANARIES[-1])]),
        Exposures([memorized(CANARIES[-1])], skipped=[(CANARIES[0], "longer than the context")]),
    ):
        page = render_report(exposures=exposures)
        assert ("longer than the context" in page) is bool(exposures.skipped)


def test_exposures_loaded_without_their_secrets_are_reported_alike() -> None:
    loaded = Exposures.from_dict(measured().to_dict())
    assert render_report(exposures=loaded) == render_report(exposures=measured())


def test_the_page_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(tmp_path / "deep" / "report.html", exposures=measured())
    before = path.read_bytes()

    def cut_off(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", cut_off)
    with pytest.raises(OSError, match="disk is full"):
        write_report(path, exposures=measured(), title="another", overwrite=True)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


# The sentences: each has to follow from the figures.


def said(exposures: Exposures) -> str:
    return " ".join(map(str, findings_of(exposures)))


def test_what_is_memorized_is_called_so_and_what_is_not_is_not() -> None:
    assert "3 of 9 inserted canaries are memorized to the point of extraction" in said(measured())
    nothing = Exposures([exposure(canary, 1.4) for canary in CANARIES])
    assert "No inserted canary is shown to be the likeliest string" in said(nothing)
    assert "No repetition group is shown to be more exposed than chance" in said(nothing)
    # Groups of three, errors shared among three groups; such a mean is seen and a lower one not.
    least = stats.chi2.isf(0.05 / 3, 6) / (6 * math.log(2))
    assert f"a mean of less than {least:.1f} bits goes unnoticed" in said(nothing)
    for bits, seen in ((least - 0.05, False), (least + 0.05, True)):
        group = [exposure(c, bits if c.repetitions == 8 else 1.4) for c in CANARIES]
        assert ("above chance" in said(Exposures(group))) == seen


def test_often_planted_canaries_without_a_trace_are_called_unusual() -> None:
    assert "64 insertions leave no trace is unusual" in said(
        Exposures([exposure(canary, 1.4) for canary in CANARIES])
    )
    rare = [exposure(canary, 1.4) for canary in CANARIES if canary.repetitions < 8]
    assert "unusual" not in said(Exposures(rare))


def test_it_is_unusual_too_if_only_those_planted_less_often_stand_out() -> None:
    odd = [exposure(canary, 12.0 if canary.repetitions == 1 else 1.4) for canary in CANARIES]
    told = said(Exposures(odd))
    assert "above chance at these repetitions: 1" in told
    assert "64 insertions leave no trace is unusual" in told
    assert "unusual" not in said(measured())


def test_what_is_open_is_told_beside_what_is_memorized() -> None:
    open_ones = [
        memorized(canary)
        if canary.repetitions == 64
        else exposure(canary, 10.0, rank_low=1.0, high=FORMAT.bits)
        for canary in CANARIES.inserted
    ]
    assert "Of 6 others it cannot be told whether they are" in said(Exposures(open_ones))


def test_bounds_are_no_ground_for_calm() -> None:
    formats = {FORMAT: FormatDetails(samples=0)}
    low = [exposure(c, 0.0, high=FORMAT.bits) for c in CANARIES]
    bounds = said(Exposures(low, formats=formats))
    assert "The exposures are lower bounds only" in bounds
    assert "Whether the control group is at chance was not measured" in bounds
    assert "more exposed than chance was not measured" in bounds
    assert "at chance, as it should be" not in bounds and "unusual" not in bounds
    # What bounds do show is said all the same.
    high = [exposure(c, 15.0 if c.repetitions == 64 else 0.0) for c in CANARIES]
    assert "above chance from 64 repetitions on" in said(Exposures(high, formats=formats))


def test_canaries_without_a_record_of_their_insertion_are_not_said_to_be_in_the_data() -> None:
    items = [exposure(canary, 1.4) for canary in CANARIES]
    assert "were inserted into the training data" in said(
        Exposures(items, settings={"inserted": True})
    )
    unknown = said(Exposures(items, settings={"inserted": False}))
    assert "were to be inserted into the training data" in unknown and "no record" in unknown


def test_text_that_is_less_likely_than_random_tokens_is_an_alarm() -> None:
    items = [exposure(c, 1.4, log_perplexity=20.0) for c in CANARIES]
    for uniform, strange in ((15.0, True), (19.5, False)):
        formats = {FORMAT: FormatDetails(uniform_bits=uniform)}
        told = said(Exposures(items, formats=formats))
        assert ("less likely to the model than random tokens" in told) == strange


def test_sampling_alone_does_not_call_anything_unmemorized() -> None:
    sampled = Exposures(
        [exposure(c, 8.0, method="sampling") for c in CANARIES], settings={"method": "sampling"}
    )
    assert "was not measured" in said(sampled)
    assert "No inserted canary" not in said(sampled)


def test_the_loss_is_said_to_hide_memorization_only_where_there_is_some() -> None:
    hidden = "the loss alone would not have shown"
    assert hidden in " ".join(map(str, findings_of(measured(), history())))
    nothing = Exposures([exposure(c, 1.0) for c in CANARIES])
    quiet = History(
        Measurement(step, nothing, metrics={"eval_loss": 5 - step / 20}) for step in (10, 20)
    )
    assert hidden not in " ".join(map(str, findings_of(nothing, quiet)))


def test_fishers_test_agrees_with_a_simulation_of_strings_never_trained_on() -> None:
    draw = np.random.default_rng(1)
    mean = -np.log2(draw.random((200_000, 3))).mean(axis=1)
    for group in group_findings(measured()):
        if group.repetitions in (0, 1):
            assert group.higher == pytest.approx((mean >= group.mean).mean(), abs=0.005)
    certain = [
        exposure(one.canary, one.bits, low=one.bits, high=one.bits)
        for one in measured()
        if one.canary.repetitions in (0, 1)
    ]
    for group in group_findings(Exposures(certain)):
        assert group.lower == pytest.approx((mean <= group.mean).mean(), abs=0.005)


def test_exposure_above_chance_is_found_from_the_right_repetitions_on() -> None:
    assert "above chance from 8 repetitions on" in said(measured())


def test_a_control_group_that_stands_out_is_an_alarm() -> None:
    quiet = "control group is at chance"
    assert quiet in said(measured())
    loud = Exposures([exposure(c, 12.0 if c.repetitions == 0 else 1.0) for c in CANARIES])
    assert "control group is more exposed than chance" in said(loud)
    none = Exposures([exposure(c, 2.0) for c in CANARIES if c.inserted])
    assert "There is no control group" in said(none)


def test_an_estimate_that_reaches_the_last_rank_is_not_less_exposed_than_chance() -> None:
    """Its p-value is 1, of which the logarithm is 0: no evidence against anything."""
    control = next(canary for canary in CANARIES if not canary.inserted)
    unsure = Exposures([exposure(control, 0.0, low=0.0, high=0.8)])
    assert "control group is at chance" in said(unsure)
    # Nor is a secret of probability 0, which shares its place with unknown others.
    impossible = exposure(control, 0.0, high=0.0, exact=True, log_perplexity=math.inf)
    assert "control group is at chance" in said(Exposures([impossible]))


def test_a_control_group_that_is_never_likely_is_an_alarm() -> None:
    controls = [canary for canary in CANARIES if not canary.inserted]
    low = [exposure(c, 0.1, low=0.1, high=0.1, exact=True) for c in controls * 4]
    assert "control group is less exposed than chance" in said(Exposures(low))


@pytest.mark.slow
@pytest.mark.parametrize("secret", ["[a-c]", "[a-d][0-9]", "[0-9]{6}"])
def test_controls_are_called_less_exposed_by_chance_as_rarely_as_stated(secret: str) -> None:
    """Whatever the size of the secret space, for ranks that are uniform and exact."""
    fmt = SecretFormat("It is {secret}.", secret=secret)
    canaries = Canaries.generate(fmt, [0], 3, seed=1)
    draw = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        ranks = draw.integers(fmt.size, size=3) + 1
        each = [fmt.bits - math.log2(rank) for rank in ranks]
        alarms += "less exposed than chance" in said(
            Exposures(
                [
                    exposure(
                        canary,
                        bits,
                        low=bits,
                        high=bits,
                        rank=float(rank),
                        rank_low=float(rank),
                        rank_high=float(rank),
                        exact=True,
                        certified=bits,
                    )
                    for canary, bits, rank in zip(canaries, each, ranks, strict=True)
                ]
            )
        )
    assert alarms <= 22


@pytest.mark.slow
def test_the_control_group_is_called_exposed_by_chance_as_rarely_as_stated() -> None:
    draw = np.random.default_rng(0)
    controls = [canary for canary in CANARIES if not canary.inserted]
    alarms = 0
    for _ in range(400):
        bits = -np.log2(draw.random(len(controls)))
        alarms += "more exposed than chance" in said(
            Exposures([exposure(c, float(b)) for c, b in zip(controls, bits, strict=True)])
        )
    assert alarms <= 22  # 2.5 % are 10; more than 22 has a probability below 1 in 1000


def test_a_string_that_may_be_the_likeliest_is_not_called_unmemorized() -> None:
    canaries = CANARIES.inserted
    ends = {"rank_low": 1.0, "rank_high": 600.0, "high": FORMAT.bits}
    reaching = [exposure(canary, 19.0, **ends) for canary in canaries]
    told = said(Exposures(reaching))
    assert "Of 9 it cannot be told whether they are" in told and "not memorized" not in told
    assert "9 are among the 1,000 most likely" in told
