"""Agreement by hand, at its two ends, and beside published figures and the package krippendorff."""

from __future__ import annotations

import random
from datetime import timedelta

import krippendorff
import numpy as np
import pytest
from studio import NOON

from annotate.agreement import (
    annotator_agreement,
    annotator_matrix,
    leave_each_out,
    leave_one_out,
    ordinal_alpha,
    reversal_rate,
)
from annotate.alpha import LEVELS, krippendorff_alpha
from annotate.consistency import agreement_over_time, position_bias, self_consistency
from annotate.records import Pick, Task


def tasks_of(count: int, k: int = 4) -> dict[str, Task]:
    return {
        f"t{i}": Task(
            id=f"t{i}", prompt_id=f"p{i}", candidate_ids=tuple(f"{i}{c}" for c in "abcd"[:k])
        )
        for i in range(count)
    }


def pick(task: str, annotator: str, win: int, lose: int) -> Pick:
    return Pick(
        id=f"{task}{annotator}",
        task_id=task,
        annotator=annotator,
        outcome="picked",
        win=win,
        lose=lose,
    )


def test_by_hand():
    # ada: a > b > c and a > c; bo the reverse; cy as ada.
    tasks = tasks_of(1, k=3)
    picks = [pick("t0", "ada", 0, 2), pick("t0", "bo", 2, 0), pick("t0", "cy", 0, 2)]
    both = annotator_agreement(tasks, picks)
    assert (both.value, both.n_pairs) == (pytest.approx(3 / 9), 9)
    # bo is outvoted on each pair; ada and cy each see one for and one against them: no majority.
    left_out = leave_one_out(tasks, picks)
    assert (left_out.value, left_out.n_pairs) == (0, 3)


def test_pairs_that_only_one_annotator_orders_say_nothing():
    # ada orders a over c and d, and b over d; bo orders b over c and d, and a over d.
    picks = [pick("t0", "ada", 0, 3), pick("t0", "bo", 1, 3)]
    agreement = annotator_agreement(tasks_of(1), picks)
    assert (agreement.value, agreement.n_pairs) == (pytest.approx(3 / 4), 4)


def test_full_agreement_is_one_and_chance_is_half():
    tasks = tasks_of(200)
    rng = random.Random(0)
    orders = {task: rng.sample(range(4), 2) for task in tasks}
    same = [pick(t, who, *orders[t]) for t in tasks for who in ("ada", "bo", "cy")]
    assert annotator_agreement(tasks, same).ci_low == 1
    assert leave_one_out(tasks, same).value == 1
    free = [pick(t, who, *rng.sample(range(4), 2)) for t in tasks for who in ("ada", "bo", "cy")]
    for measured in (annotator_agreement(tasks, free), leave_one_out(tasks, free)):
        assert measured.ci_low < 0.5 < measured.ci_high
        assert measured.ci_high - measured.ci_low < 0.15


def test_one_annotator_alone_agrees_with_nobody():
    with pytest.raises(ValueError, match="by two annotators"):
        leave_one_out(tasks_of(1), [pick("t0", "ada", 0, 1)])


# Four observers, twelve units: the worked example of Krippendorff (2011), section D.
EXAMPLE = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, np.nan, np.nan, np.nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, np.nan, 3],
        [np.nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, np.nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, np.nan],
    ]
)


def test_alpha_is_that_of_the_published_example():
    published = {"nominal": 0.743, "ordinal": 0.815, "interval": 0.849}
    assert {level: round(krippendorff_alpha(EXAMPLE, level), 3) for level in LEVELS} == published


@pytest.mark.parametrize("level", LEVELS)
def test_alpha_is_that_of_the_package_with_values_missing(level):
    rng = np.random.default_rng(0)
    for raters, units in ((2, 7), (3, 40), (6, 25)):
        ratings = rng.integers(0, 5, (raters, units)).astype(float)
        ratings[rng.random(ratings.shape) < 0.4] = np.nan
        expected = krippendorff.alpha(ratings, level_of_measurement=level)
        assert krippendorff_alpha(ratings, level) == pytest.approx(expected, abs=1e-6)


def test_alpha_of_full_agreement_one_task_and_one_rater():
    assert krippendorff_alpha([[2, 2, 2], [2, 2, np.nan]]) == 1
    assert krippendorff_alpha([[1], [1], [1]]) == 1
    # One task, two values: what is seen is as far apart as what chance gives, and half as likely.
    assert krippendorff_alpha([[0], [1]]) == krippendorff.alpha(
        [[0], [1]], level_of_measurement="nominal"
    )
    with pytest.raises(ValueError, match="rated by two"):
        krippendorff_alpha([[1, 2, 3]])


def test_alpha_of_picks_is_on_ordinals_with_an_interval_around_it():
    tasks = tasks_of(60)
    rng = random.Random(1)
    free = [pick(t, who, *rng.sample(range(4), 2)) for t in tasks for who in ("ada", "bo")]
    for which in ("win", "lose"):
        found = ordinal_alpha(tasks, free, which)
        assert found.ci_low < 0 < found.ci_high
        ratings = np.array([[getattr(p, which) for p in free[i::2]] for i in range(2)])
        expected = krippendorff.alpha(ratings, level_of_measurement="nominal")
        assert found.value == pytest.approx(expected, abs=1e-6)
        assert found.n_pairs == 120
    assert ordinal_alpha(tasks, free, "outcome").value == 1
    with pytest.raises(ValueError, match="win, lose or outcome"):
        ordinal_alpha(tasks, free, "best")


def test_reversals_and_the_matrix_by_hand():
    tasks = tasks_of(2, k=3)
    picks = [
        pick("t0", "ada", 0, 2), pick("t0", "bo", 2, 1), pick("t0", "cy", 0, 1),
        pick("t1", "ada", 1, 2), pick("t1", "bo", 1, 0),
    ]  # fmt: skip
    # Of four times two annotators on a task, ada's worst was bo's best once.
    assert reversal_rate(tasks, picks).value == 1 / 4
    by_names = {(row.first, row.second): row for row in annotator_matrix(tasks, picks)}
    ada_bo = by_names["ada", "bo"]
    assert (ada_bo.n_tasks, ada_bo.best, ada_bo.worst) == (2, 1 / 2, 0)
    # On t0 they order 0-1 alike, 0-2 and 1-2 not; on t1 1-0 and 1-2 alike, 0-2 not.
    assert ada_bo.implied_pairs == pytest.approx(3 / 6)
    assert by_names["bo", "cy"].n_tasks == 1
    assert leave_each_out(tasks, picks).keys() == {"ada", "bo", "cy"}


def test_repeats_positions_and_drift():
    first, again = pick("t0", "ada", 0, 1), pick("t0r", "ada", 0, 2)
    bad = Pick(id="b", task_id="t1", annotator="ada", outcome="all_bad")
    (row,) = self_consistency([(first, again), (bad, again)])
    assert (row.n_repeats, row.same_outcome, row.same_best, row.same_worst) == (2, 0.5, 1, 0)

    fair = position_bias([(i % 4, 4) for i in range(80)] + [(i % 2, 2) for i in range(20)])
    assert (fair.counts, fair.p_value) == ((30, 30, 20, 20), 1)
    assert position_bias([(0, 4)] * 30 + [(1, 4)] * 10).p_value < 0.001
    with pytest.raises(ValueError, match="no answer"):
        position_bias([])

    tasks = tasks_of(40)
    picks = [pick(t, who, 0, 3) for t in tasks for who in ("bo", "cy")]
    drifting = [pick(t, "ada", *((0, 3) if i < 20 else (3, 0))) for i, t in enumerate(tasks)]
    times = {p.id: NOON + timedelta(minutes=i) for i, p in enumerate(drifting)}
    windows = agreement_over_time(tasks, picks + drifting, times, "ada", size=20)
    assert [window.agreement.value for window in windows] == [1, 0]
    assert windows[1].start == NOON + timedelta(minutes=20)
