"""Masked figures, held against somebody who has the model and knows all ranks."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from hf_exposure.attacks.candidates import Candidate
from hf_exposure.attacks.examples import Example
from hf_exposure.attacks.extraction import Extraction, Extractions
from hf_exposure.attacks.generations import Generated, Generations
from hf_exposure.attacks.texts import TextScore
from hf_exposure.audit.results import Audit, AuditEntry, masked_canary
from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.formats import SecretFormat
from hf_exposure.canaries.limits import Limits
from hf_exposure.canaries.sets import Canaries
from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.history import History, Measurement
from hf_exposure.exposure.planning import Settings
from hf_exposure.exposure.records import Exposure
from hf_exposure.exposure.results import Exposures
from hf_exposure.exposure.skew_normal import SkewNormal
from hf_exposure.reports.cards import add_exposure_to_card
from hf_exposure.reports.evidence import Evidence
from hf_exposure.reports.gate import to_junit, to_markdown
from hf_exposure.reports.page import render_report
from hf_exposure.training.measuring import Meter

FOUR = SecretFormat("My code is {secret}.", secret="[0-9]{4}")
NINE = SecretFormat("My code is {secret}.", secret="[0-9]{9}")


def ranked(fmt: SecretFormat, rank: float, spread: float = 0.0, **given: Any) -> Exposure:
    """An exposure of a rank, exact unless there is a spread, in bits."""
    most, bits = fmt.bits, fmt.bits - math.log2(rank)
    low, high = max(0.0, bits - spread), min(most, bits + spread)
    usual: dict[str, Any] = {
        "certified": low,
        "ties": 0,
        "exact": not spread,
        "log_perplexity": 4.3 + 0.7 * math.log2(rank),
        "method": "auto",
        "p_value": rank / fmt.size,
    }
    ranks = (rank, 2 ** (most - high), 2 ** (most - low))
    canary = Canary(fmt, fmt.sample(1, seed=1)[0], 8)
    return Exposure(canary, bits, low, high, *ranks, **usual | given)


@pytest.mark.parametrize("fpr", [0.03, 0.01, 0.001])
@pytest.mark.parametrize("method", ["auto", "sampling"])
def test_a_masked_file_detects_no_canary_that_is_not_and_leaves_out_none(
    method: str, fpr: float
) -> None:
    """Across the threshold a step of ranks is undecided; it was taken for its middle before."""
    small = range(1, 400, 3)
    large = (int(fpr * NINE.size * 2 ** (step / 50)) for step in range(-10, 11))
    for one in [*(ranked(FOUR, rank) for rank in small), *(ranked(NINE, rank) for rank in large)]:
        given = {} if method == "auto" else {"exact": False, "low": one.bits - 1, "rank_low": 2.0}
        (true, _) = Exposures([replace(one, method=method, **given)]).membership(fpr)
        masked = Exposures([replace(one, method=method, **given)]).coarse()
        for again in (masked, Exposures.from_dict(masked.to_dict())):
            (row, _) = again.membership(fpr)
            assert row.detected <= true.detected <= row.detected + row.undecided, one.rank


def figures(one: Exposure) -> tuple[str, ...]:
    return tuple(str(getattr(one, entry.name)) for entry in fields(one) if entry.name != "canary")


@pytest.mark.slow
def test_every_masked_figure_but_that_of_rank_1_is_shared_by_many_strings() -> None:
    every = [ranked(FOUR, rank).coarse() for rank in range(1, FOUR.size + 1)]
    shared = Counter(map(figures, every))
    assert shared.pop(figures(every[0])) == 1
    # Log-perplexities cut the steps of ranks anew, and few strings stand at such a cut.
    few = sum(count for count in shared.values() if count < 10)
    assert min(Counter((one.bits, one.low, one.high) for one in every[1:]).values()) >= 14
    assert few <= FOUR.size / 500


@given(
    st.integers(1, 12),
    st.floats(0, 1),
    st.floats(0, 3),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_masked_figures_have_steps_and_stay_what_they_are(
    digits: int, share: float, spread: float, exact: bool, ties: int
) -> None:
    fmt = SecretFormat("My code is {secret}.", secret=f"[0-9]{{{digits}}}")
    rank = float(fmt.size**share)
    one = ranked(fmt, round(rank) if exact else rank, 0.0 if exact else spread + 0.01, ties=ties)
    coarse = one.coarse()
    assert figures(coarse.coarse()) == figures(coarse)
    for value in (coarse.bits, coarse.low, coarse.high, coarse.certified):
        assert round(value, 1) == value
    assert coarse.low <= coarse.bits + 1e-9 and coarse.bits <= coarse.high + 1e-9
    if coarse.rank > 1:
        assert coarse.certified <= one.certified + 0.05
    if fmt.bits - one.high >= 10.1:
        assert abs(coarse.bits - one.bits) <= 0.051
        assert coarse.low <= one.low + 0.051 and coarse.high >= one.high - 0.051


def test_a_log_perplexity_is_told_of_rank_1_and_of_ranks_that_many_share() -> None:
    first, near, far = (ranked(FOUR, rank).coarse() for rank in (1, 300, 3000))
    assert first.log_perplexity == 4.3
    assert math.isnan(near.log_perplexity)
    assert far.log_perplexity == round(4.3 + 0.7 * math.log2(3000))
    unsure = ranked(FOUR, 1.2, 3.0).coarse()
    assert math.isnan(unsure.log_perplexity)


def test_references_of_a_whole_space_do_not_tell_which_strings_are_missing() -> None:
    costs = np.sort(np.random.default_rng(1).normal(30, 4, FOUR.size))
    own = ranked(FOUR, 400, log_perplexity=float(costs[399]))
    details = FormatDetails(references=np.delete(costs, 399), whole_space=True)
    shown = Exposures([own], formats={FOUR: details}).coarse().references[FOUR]
    assert shown.tolist() == np.round(costs, 1).tolist()
    again = Exposures([own], formats={FOUR: details}).coarse().coarse().references[FOUR]
    assert again.tolist() == shown.tolist()
    some = FormatDetails(references=costs[:2000])  # the canary may have been among the draws
    assert not Exposures([own], formats={FOUR: some}).coarse().references


def test_the_count_of_token_forwards_does_not_tell_where_a_search_ended() -> None:
    details = FormatDetails(forwards=51_362, explored=4_711, noise_bits=1.234e-5, tie_bits=9.8e-5)
    shown = Exposures([], forwards=51_362, formats={FOUR: details})
    assert shown.metrics()["eval_exposure_forwards"] == 51_362  # logged as measured
    assert "51,000 token-forwards" in str(shown)
    kept = shown.to_dict()["formats"][0]["details"]
    assert (kept["forwards"], kept["explored"], kept["noise_bits"]) == (51_000, 4_700, 1e-5)


def test_with_reveal_all_figures_keep_their_precision() -> None:
    one = ranked(FOUR, 300)
    kept = Exposures.from_dict(Exposures([one], forwards=51_362).to_dict(reveal=True))
    assert kept[0] == one and kept.forwards == 51_362
    assert Exposures([one]).to_pandas(reveal=True)["rank"][0] == 300
    assert Exposures([one]).to_pandas()["rank"][0] != 300


def test_an_extraction_names_only_canaries_that_no_other_string_precedes() -> None:
    canaries = [Canary(FOUR, secret, 4) for secret in ("1111", "2222", "3333")]
    found = [
        Extraction("1111", 1.0, True, 10, canaries[0], FOUR, 0),
        Extraction("2222", 2.0, True, 20, canaries[1], FOUR, 1),
        Extraction("9999", 3.0, True, 30, None, FOUR),
        Extraction("3333", 4.0, True, 40, canaries[2], FOUR, 2),
    ]
    result = Extractions(found, format=FOUR)
    named = [row[2] for row in result.cells()[1]]
    assert named == ["4 times", "4 times", "–", "–"]
    assert [row[2] for row in result.cells(reveal=True)[1]] == [
        "4 times",
        "4 times",
        "–",
        "4 times",
    ]
    kept = Extractions.from_dict(result.to_dict())
    assert [one.canary is not None for one in kept] == [True, True, False, False]


def test_generation_tells_how_often_only_of_what_is_written_most() -> None:
    rows = [
        Generated(Canary(FOUR, secret, 4), times, 100)
        for secret, times in (("1111", 71), ("2222", 7), ("3333", 0))
    ]
    result = Generations(rows, attempts=100)
    assert [row[2] for row in result.cells()[1]] == ["71 of 100", "yes", "0 of 100"]
    assert [row["times"] for row in result.to_dict()["generations"]] == [71, 1, 0]
    assert [row[2] for row in result.cells(reveal=True)[1]] == ["71 of 100", "7 of 100", "0 of 100"]
    assert [f"times={one.times}" in repr(one) for one in rows] == [True, False, True]


def test_the_repr_of_one_item_shows_coarse_figures() -> None:
    canary = Canary(FOUR, "1234", 3)
    others = {"tokens": 7, "log_perplexity": 66.15354, "zlib": 208.0}
    details = FormatDetails(
        forwards=51_362, noise_bits=1.23456e-5, references=np.array([5.4321]), whole_space=True
    )
    for one in (
        Extraction("1234", 12.34567, True, 2546, canary=canary, format=FOUR, place=4),
        Candidate("", "code 1234", times=1, reference=None, lower=75.35996, **others),
        TextScore(
            "code 1234", base=None, min_k=-9.58875, min_k_plus_plus=-1.2, error_zone=None, **others
        ),
        Example(4, 2, 1, -28.77582, False, 1, prefix=(1, 2), suffix=(1234,), text="1234"),
        details,
        details.coarse(),
        SkewNormal(1.0, 20.0, 3.0, 0.1, references=np.array([5.4321])),
    ):
        said = repr(one)
        assert not re.search(r"\d\.\d{4}|1234|51362|5\.43|canary|[1-9]\.\d+e-05", said), said


@pytest.mark.parametrize("measured", [True, False])
def test_an_audit_is_written_and_shown_with_the_same_steps(measured: bool) -> None:
    canary = masked_canary("[0-9]{4}", None, 4, 1)
    one = ranked(FOUR, 300)
    exposure = Exposure(canary, *(getattr(one, entry.name) for entry in fields(one)[1:]))
    entry = AuditEntry(
        "pin",
        (3,),
        1,
        False,
        4,
        "[0-9]{4}",
        None,
        FOUR.bits,
        12.3456789,
        exposure=exposure if measured else None,
    )
    audit = Audit([entry], forwards=51_362, settings={"kinds": ["pin"]})
    (kept,) = Audit.from_dict(audit.to_dict())
    if measured:
        assert kept.exposure is not None and math.isnan(kept.log_perplexity)
        assert kept.bits == exposure.coarse().bits != exposure.bits
    else:
        assert kept.log_perplexity == 13 and kept.at_least <= entry.at_least
    assert (
        "12.34" not in str(audit) + str(entry) + str(audit.to_dict()) + audit.to_pandas().to_csv()
    )
    assert "51362" not in str(audit.to_dict())


def test_whatever_is_shown_or_shared_depends_on_no_more_than_the_coarse_figures(
    tmp_path: Path,
) -> None:
    canaries = Canaries.generate(NINE, [0, 1, 8], 2, seed=3)
    canaries.save(tmp_path / "canaries.json")  # which gives it a salt
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"some")
    base, one, other = (
        Exposures(
            [
                replace(ranked(NINE, rank, log_perplexity=cost), canary=canary)
                for canary, rank, cost in zip(canaries, ranks, costs, strict=True)
            ],
            forwards=forwards,
            seconds=1.0,
            settings={"method": "exact"},
        )
        for forwards, ranks, costs in (
            (5_000, [5e8] * 6, [41.0] * 6),
            (51_362, [5e8, 3.01e8, 5, 300, 2, 1e4], [41.0, 40.2, 7.3, 11.1, 5.3, 20.2]),
            (51_480, [5.005e8, 3.02e8, 9, 330, 14, 1.003e4], [41.3, 40.1, 7.9, 11.5, 5.9, 20.4]),
        )
    )
    for first, second in zip(
        *(shown(found, base, canaries, weights) for found in (one, other)), strict=True
    ):
        assert first == second


def shown(found: Exposures, base: Exposures, canaries: Canaries, weights: Path) -> Iterator[str]:
    """All that is printed, logged or written of exposures, without `reveal`."""
    yield f"{found}{found!r}{list(found)}{found._repr_html_()}{json.dumps(found.to_dict())}"
    yield str(found.to_pandas().to_csv())
    members, beside = found.membership(), found.beside(base)
    yield f"{members}{members!r}{members._repr_html_()}"
    yield f"{beside}{beside!r}{beside._repr_html_()}"
    history = History(
        Measurement(step, exposures, metrics={"eval_loss": 3.0 - step})
        for step, exposures in enumerate((base, found))
    )
    yield f"{history!r}{list(history)}{json.dumps(history.to_dict())}{history.to_pandas().to_csv()}"
    for per_canary in (False, True):
        card = ModelCard("---\n{}\n---\n")
        yield str(add_exposure_to_card(card, found, history=history, per_canary=per_canary))
    verdict = found.check(Limits(max_exposure=10, max_tpr=0.05, fpr=0.01))
    yield f"{verdict}{verdict!r}{to_junit(verdict)}{to_markdown(verdict)}"
    evidence = Evidence.of(found, canaries, weights=weights, verdict=verdict).to_dict()
    yield json.dumps({name: value for name, value in evidence.items() if name != "seal"})
    yield render_report(exposures=found, history=history, compare=[base])
    yield str(Meter(canaries, None, Settings(), "raise").figures(found))
