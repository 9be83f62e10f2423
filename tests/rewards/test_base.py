import math

import pytest

from rewards.base import RewardItem, Score, batch_places


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused_at_the_border(number):
    with pytest.raises(ValueError, match=f"value must be a finite number, got {number}"):
        Score(number)
    with pytest.raises(ValueError, match="score detail must be a finite number"):
        Score(1.0, {"detail": number})


def test_batches_keep_groups_together_where_asked():
    items = [RewardItem(str(i), group, "p") for i, group in enumerate("aababc")]
    assert batch_places(items, 4) == [[0, 1, 2, 3], [4, 5]]
    assert batch_places(items, 4, groupwise=True) == [[0, 1, 3], [2, 4, 5]]
    assert batch_places(items, 2, groupwise=True) == [[0, 1, 3], [2, 4], [5]]
    assert batch_places([], 2) == []


def test_an_error_has_no_value():
    with pytest.raises(ValueError, match="must have no value"):
        Score(0.0, error="timeout")
    assert Score(None, error="timeout").value is None
