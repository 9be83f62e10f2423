import math

import pytest

from rewards.base import Score


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused_at_the_border(number):
    with pytest.raises(ValueError, match=f"value must be a finite number, got {number}"):
        Score(number)
    with pytest.raises(ValueError, match="score detail must be a finite number"):
        Score(1.0, {"detail": number})


def test_an_error_has_no_value():
    with pytest.raises(ValueError, match="must have no value"):
        Score(0.0, error="timeout")
    assert Score(None, error="timeout").value is None
