import math

import pytest

from rewards.base import RewardItem, Score, Scorer, ScorerSpec, ScoringError, score_values


class Fixed:
    """A scorer that answers what it was given."""

    spec = ScorerSpec("fixed", "1", (), frozenset({"image"}))

    def __init__(self, *scores):
        self.scores = list(scores)

    def score(self, items):
        return self.scores


ITEMS = [RewardItem("a", "g", "a cat"), RewardItem("b", "g", "a cat")]


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


def test_a_failed_item_stops_the_caller_and_names_the_sample():
    scorer = Fixed(Score(1.0), Score(None, error="timeout"))
    with pytest.raises(ScoringError, match="'fixed' failed on sample 'b': timeout"):
        score_values(scorer, ITEMS)


def test_not_applicable_is_no_failure():
    scores = score_values(Fixed(Score(None), Score(0.5)), ITEMS)
    assert [score.value for score in scores] == [None, 0.5]


def test_a_lost_score_is_noticed():
    with pytest.raises(ScoringError, match="returned 1 scores for 2 items"):
        score_values(Fixed(Score(1.0)), ITEMS)
    assert isinstance(Fixed(), Scorer)
