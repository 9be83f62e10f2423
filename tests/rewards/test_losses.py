import itertools
import math

import pytest
import torch

from rewards.losses import all_equal, best_then_worst, bradley_terry, centring


def row(*values):
    return torch.tensor([values], dtype=torch.float64)


def full(scores):
    return torch.ones_like(scores, dtype=torch.bool)


def likelihood(scores, best, worst):
    loss = best_then_worst(scores, full(scores), torch.tensor([best]), torch.tensor([worst]))
    return math.exp(-loss.item())


def test_bradley_terry_is_the_log_odds_of_the_margin():
    assert bradley_terry(torch.tensor(0.0)).item() == pytest.approx(math.log(2))
    p = math.exp(-bradley_terry(torch.tensor(1.5)).item())
    assert math.log(p / (1 - p)) == pytest.approx(1.5, abs=1e-5)


def test_mirrored_pairs_give_complementary_probabilities():
    margins = torch.linspace(-5, 5, 11, dtype=torch.float64)
    p, mirrored = (-bradley_terry(margins)).exp(), (-bradley_terry(-margins)).exp()
    torch.testing.assert_close(p, 1 - mirrored)


def test_soft_votes_are_least_at_their_own_log_odds():
    margins = torch.linspace(-2, 2, 401, dtype=torch.float64)
    best = margins[bradley_terry(margins, 0.6).argmin()]
    assert best.item() == pytest.approx(math.log(0.6 / 0.4), abs=0.01)


def test_two_candidates_are_bradley_terry():
    scores = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros(50, dtype=torch.long)
    loss = best_then_worst(scores, full(scores), zeros, zeros + 1)
    torch.testing.assert_close(loss, bradley_terry(scores[:, 0] - scores[:, 1]))


def test_best_then_worst_by_hand():
    # Strengths 1, 2, 3, 4: best is the 4 with 4/10, then among 1, 2, 3 the worst by 1/strength is
    # the 1 with 1 / (1 + 1/2 + 1/3) = 6/11.
    scores = row(1, 2, 3, 4).log()
    assert likelihood(scores, best=3, worst=0) == pytest.approx(0.4 * 6 / 11)


@pytest.mark.parametrize("count", [2, 3, 5, 9])
def test_the_likelihoods_of_all_picks_sum_to_one(count):
    scores = torch.randn(1, count, dtype=torch.float64)
    picks = itertools.permutations(range(count), 2)
    assert sum(likelihood(scores, *pick) for pick in picks) == pytest.approx(1)


def test_padding_changes_neither_loss_nor_gradient():
    short = row(0.3, -1.0, 2.0).requires_grad_()
    long = row(0.3, -1.0, 2.0, 77.0, -5.0).requires_grad_()
    mask = torch.tensor([[True, True, True, False, False]])
    best, worst = torch.tensor([2]), torch.tensor([1])
    for loss in (
        best_then_worst,
        lambda s, m, *_: all_equal(s, m),
        lambda s, m, *_: centring(s, m),
    ):
        without = loss(short, full(short), best, worst)
        padded = loss(long, mask, best, worst)
        torch.testing.assert_close(without, padded)
        (wanted,) = torch.autograd.grad(without.sum(), short)
        (got,) = torch.autograd.grad(padded.sum(), long)
        torch.testing.assert_close(got[:, :3], wanted)
        assert (got[:, 3:] == 0).all()


def test_equal_scores_are_what_a_tie_asks_for():
    assert all_equal(row(2, 2, 2), full(row(0, 0, 0))).item() == pytest.approx(0)
    scores = row(1, 0).requires_grad_()
    # KL of (1/2, 1/2) to (s(1), s(-1)) = log cosh(1/2)
    loss = all_equal(scores, full(scores))
    assert loss.item() == pytest.approx(math.log(math.cosh(0.5)))
    loss.sum().backward()
    assert scores.grad[0, 0] > 0 > scores.grad[0, 1]


def test_centring_pins_the_mean_alone():
    assert centring(row(1, -1), full(row(0, 0))).item() == 0
    assert centring(row(1, 2), full(row(0, 0))).item() == pytest.approx(2.25)
