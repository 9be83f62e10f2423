import numpy as np
import pytest
from scipy import stats

from rewards.metrics import (
    auroc,
    best_of_n_regret,
    brier_score,
    calibration,
    fit_tie_threshold,
    kendall_tau_b,
    paired_difference,
    prompts_needed,
    tie_aware_accuracy,
)

RNG = np.random.default_rng(0)


def test_kendalls_tau_is_that_of_scipy():
    for size in (2, 5, 40):
        x, y = RNG.integers(0, 6, size), RNG.integers(0, 6, size)
        wanted = stats.kendalltau(x, y).statistic
        found = kendall_tau_b(x, y)
        assert (found is None) == bool(np.isnan(wanted))
        if found is not None:
            assert found == pytest.approx(wanted)
    assert kendall_tau_b([1, 1], [1, 2]) is None


def test_auroc_is_the_share_of_pairs_in_order():
    scores, positive = RNG.integers(0, 8, 50), RNG.random(50) < 0.4
    u = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert auroc(scores, positive) == pytest.approx(u / (positive.sum() * (~positive).sum()))
    assert auroc([1, 2], [True, True]) is None


def test_regret_of_the_best_of_n():
    assert best_of_n_regret([[1, 2], [5, 1]], [[0.2, 0.8], [0.3, 0.7]]) == pytest.approx(0.2)
    assert best_of_n_regret([[3, 3]], [[1.0, 0.0]]) == 0.5


def test_accuracy_with_ties_counts_a_half_for_one_sided_ties():
    margins, outcomes = [2.0, -2.0, 0.1, 0.1, 2.0], [1, 1, 0, 1, 0]
    assert tie_aware_accuracy(margins, outcomes, 0.5) == pytest.approx((1 + 0 + 1 + 0.5 + 0.5) / 5)


def test_brier_by_hand():
    assert brier_score([0.0, 0.0]) == 0.25
    assert brier_score([np.log(9.0)]) == pytest.approx(0.01)


def calibrated(size, scale=1.0):
    d = RNG.normal(0, 1.5, size)
    chosen = np.where(RNG.random(size) < 1 / (1 + np.exp(-d)), d, -d)
    return scale * chosen


def test_a_calibrated_models_error_is_what_chance_gives():
    found = [calibration(calibrated(300), num_draws=200) for _ in range(40)]
    ece, expected = np.mean([f.ece for f in found]), np.mean([f.expected for f in found])
    assert expected > 0.03  # a small sample is never exactly as accurate as it should be
    assert ece == pytest.approx(expected, abs=0.006)
    assert np.mean([f.ece > f.high for f in found]) < 0.2


def test_overconfidence_stands_above_chance_and_temperature_mends_it():
    margins = calibrated(2000, scale=3.0)
    assert calibration(margins).ece > calibration(margins).high + 0.05
    mended = calibration(margins, temperature=3.0)
    assert mended.ece < mended.expected + 0.02
    assert sum(count for _, _, count in mended.bins) == 2000
    assert len(mended.bins) == 10


def test_calibration_by_hand():
    # One bin, confidence 0.9 twice, one right: |0.9 - 0.5|. By chance 0, 1 or 2 are right with
    # .01, .18, .81: gaps .9, .4, .1.
    margin = np.log(9.0)
    found = calibration([margin, -margin], num_bins=1, num_draws=20000)
    assert found.ece == pytest.approx(0.4)
    assert found.expected == pytest.approx(0.01 * 0.9 + 0.18 * 0.4 + 0.81 * 0.1, abs=0.005)
    assert calibration([0.0]).ece == 0.0


def test_a_paired_comparison_sees_what_two_intervals_hide():
    prompts = [f"p{i}" for i in range(80) for _ in range(5)]
    hardness = np.repeat(RNG.random(80), 5)
    second = (RNG.random(400) < hardness).astype(float)
    first = np.where((second == 0) & (RNG.random(400) < 0.1), 1.0, second)
    found = paired_difference(prompts, first, second)
    assert found.difference == pytest.approx((first - second).mean())
    assert 0 < found.low < found.difference < found.high
    assert found.high - found.low < 0.08
    assert paired_difference(prompts, second, first).difference == -found.difference


def test_how_many_prompts_an_interval_takes():
    assert prompts_needed(0.05) == 385
    assert prompts_needed(0.05, design_effect=2) == 769
    with pytest.raises(ValueError, match="between 0 and 1, got 5"):
        prompts_needed(5)


def test_lists_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(3,\)"):
        auroc([1, 2], [0, 1, 1])


@pytest.mark.parametrize(
    "measure",
    [
        lambda some: auroc(some, [0, 1, 1]),
        lambda some: kendall_tau_b([1, 2, 3], some),
        lambda some: best_of_n_regret([some], [[1, 2, 3]]),
        lambda some: tie_aware_accuracy(some, [1, 0, -1], 0.5),
        lambda some: paired_difference(["a", "b", "c"], some, [0, 0, 1]),
        brier_score,
        calibration,
    ],
)
def test_what_is_no_number_is_never_ranked_nor_averaged(measure):
    with pytest.raises(ValueError, match="got NaN at place 1"):
        measure([1.0, np.nan, 2.0])


@pytest.mark.parametrize(
    "measure",
    [
        brier_score,
        calibration,
        lambda none: tie_aware_accuracy(none, none, 0.5),
        lambda none: fit_tie_threshold(none, none),
        lambda none: paired_difference(none, none, none),
    ],
)
def test_a_mean_of_nothing_is_refused(measure):
    with pytest.raises(ValueError, match=r"at least one number, got shape \(0,\)"):
        measure([])
