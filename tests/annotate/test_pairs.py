"""What a pick says about pairs, by hand for small K and as laws for every K."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotate.records import PAIR_POLICIES, Pick, Task, derive_pairs, derive_rankings


def task(k: int) -> Task:
    return Task(id="t", prompt_id="p", candidate_ids=tuple("abcdefghi"[:k]), question="detail")


def pick(win: int | None = None, lose: int | None = None, outcome: str = "picked") -> Pick:
    return Pick(id="x", task_id="t", annotator="ada", outcome=outcome, win=win, lose=lose)


def pairs_of(k: int, picked: Pick, policy: str) -> list[str]:
    return [p.chosen_id + p.rejected_id for p in derive_pairs({"t": task(k)}, [picked], policy)]


def test_pairs_by_hand():
    assert pairs_of(4, pick(2, 0), "win_lose") == ["ca"]
    assert pairs_of(4, pick(2, 0), "implied_all") == ["ca", "cb", "cd", "ba", "da"]
    assert pairs_of(2, pick(1, 0), "implied_all") == ["ba"]


@given(st.data())
def test_two_clicks_imply_2k_minus_3_pairs_that_weigh_one(data):
    k = data.draw(st.integers(2, 9))
    win, lose = data.draw(st.permutations(range(k)))[:2]
    for policy, expected in (("win_lose", 1), ("implied_all", 2 * k - 3)):
        pairs = list(derive_pairs({"t": task(k)}, [pick(win, lose)], policy))
        assert len({frozenset((p.chosen_id, p.rejected_id)) for p in pairs}) == expected
        assert math.isclose(sum(p.weight for p in pairs), 1)
        assert all(p.rejected_id != task(k).candidate_ids[win] for p in pairs)
        assert all(p.chosen_id != task(k).candidate_ids[lose] for p in pairs)
    (ranking,) = derive_rankings({"t": task(k)}, [pick(win, lose)])
    ids = (ranking.win_id, *ranking.middle_ids, ranking.lose_id)
    assert sorted(ids) == sorted(task(k).candidate_ids)


@pytest.mark.parametrize("outcome", ["all_bad", "all_equal", "skip", "flag"])
def test_other_outcomes_order_nothing(outcome):
    for policy in PAIR_POLICIES:
        assert pairs_of(4, pick(outcome=outcome), policy) == []
    assert list(derive_rankings({"t": task(4)}, [pick(outcome=outcome)])) == []


def test_an_unknown_policy_names_the_choices():
    with pytest.raises(ValueError, match="unknown pair policy 'best'; choose one of win_lose"):
        pairs_of(4, pick(0, 1), "best")


@pytest.mark.parametrize(
    ("win", "lose", "outcome"),
    [(None, None, "picked"), (1, 1, "picked"), (0, None, "picked"), (0, 1, "all_bad")],
)
def test_a_pick_that_contradicts_itself_is_no_record(win, lose, outcome):
    with pytest.raises(ValueError, match="outcome 'picked' has a win and another lose"):
        pick(win, lose, outcome)
