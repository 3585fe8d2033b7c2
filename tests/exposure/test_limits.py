"""Limits that a release must keep: passed, failed, inconclusive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_exposure.canaries.canary import Canary
from hf_exposure.canaries.limits import Limits
from hf_exposure.canaries.sets import Canaries
from hf_exposure.canaries.survival import InjectionReport, Survival
from hf_exposure.exposure.details import FormatDetails
from hf_exposure.exposure.limits import Check, Outcome, check_exposure, check_tpr
from hf_exposure.exposure.membership import MembershipRow
from hf_exposure.exposure.results import Exposures
from tests.exposure.test_membership import LARGE, exposure

LIMITS = Limits(max_exposure=10, max_tpr=0.05, fpr=0.01)


def spread(count: int = 100) -> list[Any]:
    """Canaries whose ranks are spread evenly, none of them within the first per cent."""
    return [exposure(LARGE, n, 20_000 + n * 900_000 // count) for n in range(count)]


def controls(rank: int = 400_000, count: int = 6) -> list[Any]:
    return [exposure(LARGE, 500 + n, rank, repetitions=0) for n in range(count)]


def named(found: Any) -> dict[str, Outcome]:
    return {check.name: check.outcome for check in found.checks}


def test_untrained_canaries_pass_and_memorized_ones_fail() -> None:
    kept = Exposures([*spread(), *controls()]).check(LIMITS)
    assert kept.outcome is Outcome.PASSED and kept.exit_code == 0
    assert named(kept) == dict.fromkeys(["controls", "exposure", "tpr"], Outcome.PASSED)
    leaking = [exposure(LARGE, 200 + n, 1) for n in range(20)]
    found = Exposures([*spread(), *leaking]).check(LIMITS)
    assert found.exit_code == 1
    assert named(found) == dict.fromkeys(["exposure", "tpr"], Outcome.FAILED)
    assert str(found).endswith("Verdict: failed")
    assert found.to_dict()["checks"][0]["figure"] == 19.9  # coarse, as all that is shown


def test_few_canaries_tell_nothing_of_a_rate() -> None:
    found = Exposures(spread(10)).check(Limits(max_tpr=0.05))
    assert found.exit_code == 3
    assert "canaries would have told" in str(found)


def test_an_interval_across_the_limit_is_inconclusive() -> None:
    found = Exposures(spread(4)).check(Limits(max_exposure=3))
    assert found.outcome is Outcome.PASSED or "chance" in str(found)
    check = check_exposure(Limits(max_exposure=10), [(10.5, 9.0, 12.0)], 0.05)
    assert check.outcome is Outcome.INCONCLUSIVE and "interval" in check.reason


def test_only_the_group_that_limits_name_is_judged() -> None:
    items = [*spread(), *(exposure(LARGE, 300 + n, 1, repetitions=9) for n in range(5))]
    assert Exposures(items).check(Limits(max_exposure=10, repetitions=1)).exit_code == 0
    assert Exposures(items).check(Limits(max_exposure=10, repetitions=9)).exit_code == 1
    missing = Exposures(items).check(Limits(max_exposure=10, repetitions=4))
    assert named(missing) == {"canaries": Outcome.INCONCLUSIVE}


def lost() -> InjectionReport:
    return InjectionReport((Survival(Canary(LARGE, "000001", 1), missing=1),), 5, 50)


@pytest.mark.parametrize(
    ("name", "made", "survival"),
    [
        ("insertion", {"settings": {"inserted": False}}, None),
        ("skipped", {"skipped": [(Canary(LARGE, "999999", 2), "too long")]}, None),
        ("survival", {}, lost()),
        ("text", {"formats": {LARGE: FormatDetails(uniform_bits=2.0)}}, None),
    ],
)
def test_what_is_amiss_makes_a_verdict_inconclusive(
    name: str, made: dict[str, Any], survival: InjectionReport | None
) -> None:
    found = Exposures(spread(), **made).check(LIMITS, survival)
    assert named(found)[name] is Outcome.INCONCLUSIVE
    assert found.exit_code == 3


def test_bounds_are_no_measurement() -> None:
    from dataclasses import replace

    items = [replace(one, exact=False) for one in spread()]
    found = Exposures(items, formats={LARGE: FormatDetails(samples=0)}).check(LIMITS)
    assert named(found)["budget"] is Outcome.INCONCLUSIVE and found.exit_code == 3


@pytest.mark.parametrize("rank", [20, 999_990])
def test_controls_that_are_not_at_chance_put_all_in_doubt(rank: int) -> None:
    leaking = [exposure(LARGE, 200 + n, 1) for n in range(20)]
    found = Exposures([*leaking, *controls(rank)]).check(LIMITS)
    assert named(found)["controls"] is Outcome.INCONCLUSIVE
    assert named(found)["exposure"] is Outcome.FAILED
    assert found.exit_code == 3


def test_limits_that_were_set_with_the_canaries_are_remembered() -> None:
    canaries = Canaries([Canary(LARGE, "000001", 1)], limits=LIMITS)
    assert Canaries.from_dict(canaries.to_dict()).limits == LIMITS
    assert canaries[:1].limits == canaries.copy().limits == LIMITS
    assert "limits" not in Canaries([Canary(LARGE, "000001", 1)]).to_dict()
    measured = Exposures(spread(), settings={"limits": LIMITS.to_dict()})
    assert "limits" not in named(measured.check(LIMITS))
    assert "not those that were set" in str(measured.check(Limits(max_exposure=12)))


def test_limits_are_added_to_a_manifest_and_not_changed_in_it(tmp_path: Path) -> None:
    canaries = Canaries([Canary(LARGE, "000001", 1)])
    file = canaries.save(tmp_path / "canaries.json")
    canaries.limits = LIMITS
    assert Canaries.load(canaries.save(file)).limits == LIMITS
    canaries.limits = Limits(max_exposure=20)
    with pytest.raises(FileExistsError):
        canaries.save(file)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no limit"),
        ({"max_tpr": 2}, "too large"),
        ({"max_exposure": -1}, "too small"),
        ({"max_tpr": 0.1, "fpr": 0}, "fpr"),
        ({"max_tpr": 0.1, "repetitions": 0}, "repetitions"),
        ({"most": 3}, "not known"),
    ],
)
def test_limits_that_make_no_sense_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Limits.from_dict(given)


def alarm(check: Check) -> bool:
    return check.outcome is Outcome.FAILED


@pytest.mark.slow
def test_fifty_looks_at_a_null_training_seldom_raise_an_alarm() -> None:
    """400 trainings of 50 evaluations, each with ranks of its own: the most that looking can do."""
    draw = np.random.default_rng(0)
    strict = Limits(max_exposure=0, max_tpr=0, fpr=0.01)
    count, runs, alarms = 20, 400, 0
    for _ in range(runs):
        for look in range(1, 51):
            p = draw.random(count)
            bits = -np.log2(p)
            highest = [(float(bits.max()),) * 3] * count
            detected = int(np.sum(p <= 0.01))
            share = detected / count
            row = MembershipRow(None, 0.01, count, detected, 0, share, 0, 1, 0.5, 0, 1)
            if alarm(check_exposure(strict, highest, 0.025, look)) or (
                detected > 1 and alarm(check_tpr(strict, row, 0.025, look))
            ):
                alarms += 1
                break
    assert alarms <= 0.05 * runs
    # A single share of the error for every look would raise many.
    assert alarm(check_exposure(strict, [(30.0, 30.0, 30.0)] * count, 0.025, 50))
