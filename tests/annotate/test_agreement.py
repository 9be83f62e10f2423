"""Agreement on implied pairs, by hand and at its two ends."""

from __future__ import annotations

import random

import pytest

from annotate.agreement import annotator_agreement, leave_one_out
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
