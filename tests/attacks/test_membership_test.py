"""A test of membership on texts: its rates are those that it states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from hf_exposure import MembershipTest, TextScore, TextScores, membership_test
from hf_exposure.attacks.membership import auc_interval, told_apart
from tests.peers import peer_package


def texts(values: np.ndarray, base: bool = True) -> TextScores:
    """Scores in which `values` are bits per token that speak for membership."""
    return TextScores(
        TextScore("secret text", 2, -2 * v, 10.0 if base else None, 100.0, v, v, 1.0 * base or None)
        for v in values
    )


@pytest.mark.parametrize("n", [100, 150, 1000])
def test_at_most_the_stated_share_of_new_texts_is_detected_if_there_is_nothing_to_tell(
    n: int,
) -> None:
    draw, detected, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        row = told_apart("x", draw.normal(size=200), draw.normal(size=n), 0.01, 0.95)
        assert row.detected is not None
        detected += row.detected
    # Of n + 1 texts that are alike the last is among the k highest with probability k / (n + 1).
    rate = (n + 1) // 100 / (n + 1)
    # Members of one trial share a threshold, so that their number varies more than a binomial one.
    assert detected / (200 * trials) == pytest.approx(rate, rel=0.2)


def test_the_area_is_that_of_all_pairs_ties_at_one_half() -> None:
    draw = np.random.default_rng(1)
    members, others = draw.integers(5, size=30) + 1.0, draw.integers(5, size=120) * 1.0
    row = membership_test(members, others).headline
    pairs = np.sign(members[:, None] - others[None, :])
    assert row.auc == pytest.approx((pairs.mean() + 1) / 2)
    with peer_package("memaudit") as peer:
        assert row.auc == pytest.approx(peer.audit.roc_auc(members, others))


@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0])
def test_intervals_of_the_area_hold_it_as_often_as_stated(shift: float) -> None:
    draw, truth, trials = np.random.default_rng(2), stats.norm.cdf(shift / np.sqrt(2)), 400
    held = 0
    for _ in range(trials):
        low, high = auc_interval(draw.normal(shift, size=20), draw.normal(size=100), 0.9)
        held += low <= truth <= high
    assert held / trials > 0.87


def test_below_100_non_members_there_is_no_headline_but_a_sentence() -> None:
    draw = np.random.default_rng(3)
    few = membership_test(texts(draw.normal(3, size=50)), texts(draw.normal(size=99)))
    assert few.tpr is None and few.auc > 0.9
    assert "needs at least 100 non-members, and there are 99" in str(few)
    enough = membership_test(texts(draw.normal(3, size=50)), texts(draw.normal(size=100)))
    assert enough.tpr is not None and enough.headline.low is not None
    assert enough.headline.low < enough.tpr
    assert membership_test([1.0], [0.0] * 20, fpr=0.05).tpr == 1.0


def test_a_threshold_counts_ties_against_detection() -> None:
    assert membership_test([1.0, 2.0], [0.0] * 99 + [1.0]).headline.detected == 1


def test_the_headline_is_chosen_beforehand_and_needs_what_it_needs() -> None:
    draw = np.random.default_rng(4)
    with_base, without = texts(draw.normal(size=100)), texts(draw.normal(size=100), base=False)
    assert membership_test(with_base, with_base).by == "ratio"
    assert membership_test(without, without).by == "min_k_plus_plus"
    assert len(membership_test(with_base, with_base)) == 6
    assert len(membership_test(without, with_base)) == 4
    with pytest.raises(ValueError, match="by='ratio'"):
        membership_test(without, without, by="ratio")
    with pytest.raises(TypeError, match="both"):
        membership_test(without, [1.0])
    with pytest.raises(ValueError, match="members is empty"):
        membership_test([], [1.0])
    with pytest.raises(ValueError, match="NaN"):
        membership_test([1.0], [float("nan")])


def test_it_comes_back_from_a_file_and_shows_no_text(tmp_path: Path) -> None:
    found = membership_test(texts(np.arange(50.0)), texts(np.arange(200.0)))
    path = found.save(tmp_path / "test.json")
    assert "secret" not in path.read_text() + str(found)
    again = MembershipTest.load(path)
    assert list(again) == list(found) and str(again) == str(found)
