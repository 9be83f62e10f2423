import itertools
import math

import choix
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from rewards.losses import (
    all_bad,
    all_equal,
    best_then_worst,
    bradley_terry,
    centring,
    gaussian_bradley_terry,
    plackett_luce,
    rao_kupper,
)


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


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_mirrored_pairs_are_the_same_to_the_bit():
    margins = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(bradley_terry(margins, 0.75), bradley_terry(-margins, 0.25))
    variance = margins.square()
    mirrored = gaussian_bradley_terry(-margins, variance, 0.25).flip(0)
    torch.testing.assert_close(
        gaussian_bradley_terry(margins, variance, 0.75).flip(0), mirrored, rtol=0, atol=1e-14
    )
    shares = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    swapped = shares[[1, 0, 2]]
    assert torch.equal(rao_kupper(margins, 0.4, shares), rao_kupper(-margins, 0.4, swapped))


def likelihoods(margin, k):
    outcomes = torch.eye(3, dtype=torch.float64)
    return (-rao_kupper(numbers(*[margin] * 3), k, outcomes)).exp()


def test_rao_kupper_by_hand():
    # Strengths 3 and 1 with theta = e^k = 2: 3/(3+2), 1/(1+6), and (4-1)*3*1/((3+2)(1+6)).
    torch.testing.assert_close(likelihoods(math.log(3), math.log(2)), numbers(3 / 5, 1 / 7, 9 / 35))
    for margin, k in ((0.0, 1e-6), (2.0, 0.3), (-40.0, 1.0), (0.5, 60.0)):
        assert likelihoods(margin, k).sum().item() == pytest.approx(1)
    # Without a threshold it is Bradley-Terry.
    assert rao_kupper(numbers(1.3), 1e-12, numbers(1, 0, 0)).item() == pytest.approx(
        bradley_terry(numbers(1.3)).item()
    )


def test_the_tie_threshold_is_learned_from_the_share_of_ties():
    # At d = 0 the tie has probability (t - 1) / (t + 1), t = e^k: half of the votes make t = 3.
    raw = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=50)

    def closure():
        optimizer.zero_grad()
        k = torch.nn.functional.softplus(raw)
        loss = rao_kupper(numbers(0.0), k, numbers(0.25, 0.25, 0.5)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.nn.functional.softplus(raw).item() == pytest.approx(math.log(3), rel=1e-4)


@pytest.mark.parametrize(("d", "v"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 4.0), (3.0, 9.0)])
def test_gaussian_uncertainty_is_the_integral(d, v):
    integral, _ = quad(lambda z: norm.pdf(z, d, math.sqrt(v)) / (1 + math.exp(-z)), -40, 40)
    loss = gaussian_bradley_terry(numbers(d), numbers(v))
    assert math.exp(-loss.item()) == pytest.approx(integral, rel=2e-4)
    # The probit approximation of Mackay (1992) is near.
    near = bradley_terry(numbers(d / math.sqrt(1 + math.pi * v / 8)))
    assert loss.item() == pytest.approx(near.item(), abs=0.05)


def test_doubt_costs_where_right_and_pays_where_wrong():
    right, wrong = numbers(2.0), numbers(-2.0)
    none, some = numbers(0.0), numbers(1.0)
    torch.testing.assert_close(gaussian_bradley_terry(right, none), bradley_terry(right))
    assert gaussian_bradley_terry(right, some) > gaussian_bradley_terry(right, none)
    assert gaussian_bradley_terry(wrong, some) < gaussian_bradley_terry(wrong, none)


RANKINGS = [(0, 1, 2, 3), (1, 0, 3, 2), (0, 2, 1, 3), (3, 0, 1, 2), (0, 1, 3, 2), (2, 1, 0, 3)]


def test_plackett_luce_is_that_of_choix():
    scores = numbers(0.3, -0.2, 0.9, 0.0)
    rows = scores.expand(len(RANKINGS), -1)
    loss = plackett_luce(rows, full(rows), torch.tensor(RANKINGS))
    wanted = choix.log_likelihood_rankings(RANKINGS, scores.numpy())
    assert -loss.sum().item() == pytest.approx(wanted)
    top = plackett_luce(rows, full(rows), torch.tensor(RANKINGS)[:, :1])
    data = [(r[0], r[1:]) for r in RANKINGS]
    assert -top.sum().item() == pytest.approx(choix.log_likelihood_top1(data, scores.numpy()))


def test_the_most_likely_scores_are_those_of_choix():
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-9)

    def closure():
        optimizer.zero_grad()
        rows = scores.expand(len(RANKINGS), -1)
        loss = plackett_luce(rows, full(rows), torch.tensor(RANKINGS)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    wanted = torch.from_numpy(choix.opt_rankings(4, RANKINGS))
    torch.testing.assert_close((scores - scores.mean()).detach(), wanted, atol=1e-4, rtol=0)


def test_rankings_of_several_lengths_stand_in_one_batch():
    scores = torch.randn(2, 4, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    ranking = torch.tensor([[2, 0, 1, 3], [1, 2, -1, -1]])
    both = plackett_luce(scores, mask, ranking)
    alone = plackett_luce(scores[1:, :3], full(scores[1:, :3]), ranking[1:, :2])
    torch.testing.assert_close(both[1:], alone)


def test_all_bad_stands_below_what_was_picked_elsewhere():
    scores, anchor = row(1.0, 3.0), numbers(2.0)
    wanted = (math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2
    assert all_bad(scores, full(scores), anchor).item() == pytest.approx(wanted)
    mask = torch.tensor([[True, False]])
    assert all_bad(scores, mask, anchor).item() == pytest.approx(math.log1p(math.exp(-1)))


def test_gradients_are_those_of_finite_differences():
    scores = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True] * 4, [True] * 4, [True, True, True, False]])
    ranking = torch.tensor([[0, 3, 1, 2], [2, 1, -1, -1], [1, 0, 2, -1]])
    best, worst = torch.tensor([0, 1, 2]), torch.tensor([1, 3, 0])
    margin, k = numbers(0.4, -1.0).requires_grad_(), numbers(0.3).requires_grad_()
    variance = numbers(0.5, 2.0).requires_grad_()
    shares = torch.tensor([[0.5, 0.2, 0.3], [0.0, 0.0, 1.0]], dtype=torch.float64)
    for function, inputs in (
        (lambda s: plackett_luce(s, mask, ranking), (scores,)),
        (lambda s: best_then_worst(s, mask, best, worst), (scores,)),
        (lambda s: all_bad(s, mask, numbers(0.1, 0.2, 0.3)), (scores,)),
        (lambda s: all_equal(s, mask), (scores,)),
        (lambda d, t: rao_kupper(d, t, shares), (margin, k)),
        (lambda d, v: gaussian_bradley_terry(d, v, 0.8), (margin, variance)),
        (lambda d: bradley_terry(d, 0.8), (margin,)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
