"""Preference losses against closed forms in float64, their gradients, and what follows a run."""

from __future__ import annotations

import json
import math
from itertools import permutations

import pytest
import torch

from align.config import AutoBetaConfig, DPOObjectiveConfig
from align.objectives.base import by_sigma, finish_parts, part_of
from align.objectives.diffusion_dpo import DiffusionDPO, region_error
from align.objectives.feedback import Feedback, RunningMean, adapted_beta
from align.objectives.listwise import KTO, ListBatch, PlackettLuce, plackett_luce
from align.objectives.preferences import (
    MARGIN_LOSSES,
    implicit_rewards,
    kto,
    preference_losses,
    tie_losses,
)

MARGINS = torch.linspace(-4, 4, 41, dtype=torch.float64)


def exactly(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def test_each_loss_is_its_closed_form():
    exactly(preference_losses(MARGINS), torch.log(1 + torch.exp(-MARGINS)))
    exactly(preference_losses(MARGINS, "hinge"), (1 - MARGINS).clamp(min=0))
    beta = 7.0  # the published form is of the log-ratio h = m / beta, and of diffusers' 2 h
    published = (MARGINS / beta - 1 / (2 * beta)) ** 2
    exactly(preference_losses(MARGINS, "ipo"), beta**2 * published)


def test_smoothing_mixes_the_loss_with_that_of_the_flipped_pair():
    for loss_type in MARGIN_LOSSES:
        plain, flipped = (preference_losses(sign * MARGINS, loss_type) for sign in (1, -1))
        mixed = preference_losses(MARGINS, loss_type, torch.full_like(MARGINS, 0.3))
        exactly(mixed, 0.7 * plain + 0.3 * flipped)
    # Its minimum is where the model agrees with the annotators: sigmoid(m) = 1 - eps.
    best = MARGINS[preference_losses(MARGINS, label_smoothing=0.2).argmin()]
    assert abs(best.item() - math.log(0.8 / 0.2)) <= 0.1


def test_a_win_a_loss_and_a_tie_have_probability_one_together():
    threshold = 0.7
    win = torch.exp(-preference_losses(MARGINS, tie_threshold=threshold))
    loss = torch.exp(-preference_losses(-MARGINS, tie_threshold=threshold))
    tie = torch.exp(-tie_losses(MARGINS, threshold))
    exactly(win + loss + tie, torch.ones_like(MARGINS))
    strength = torch.exp(MARGINS)  # Rao and Kupper's own form, of two strengths and nu
    nu = math.exp(threshold)
    exactly(tie, (nu**2 - 1) * strength / ((strength + nu) * (1 + nu * strength)))
    assert MARGINS[tie.argmax()].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("threshold", "least"), [(1e-6, -math.log(5e-7)), (400.0, 0.0)])
def test_the_likelihood_of_a_tie_holds_at_thresholds_of_any_size(threshold, least):
    even = torch.zeros(1, dtype=torch.float64)
    assert tie_losses(even, threshold).item() == pytest.approx(least, rel=1e-5)


def test_kto_is_its_closed_form_and_pulls_the_two_kinds_apart():
    desirable = torch.arange(len(MARGINS)) % 2 == 0
    found = kto(MARGINS, desirable, reference_point=0.4)
    gain = torch.where(desirable, MARGINS - 0.4, 0.4 - MARGINS)
    exactly(found, 1 - sigmoid(gain))
    rewards = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(kto(rewards, torch.tensor([True, False]), 0.0).sum(), rewards)
    assert gradient.tolist() == pytest.approx([-0.25, 0.25])


@pytest.mark.parametrize("loss_type", MARGIN_LOSSES)
def test_gradients_are_finite_differences(loss_type):
    margins = (MARGINS[::5] + 0.013).requires_grad_(True)  # off the hinge's corner
    assert torch.autograd.gradcheck(
        lambda m: preference_losses(m, loss_type, 0.2, 0.3 if loss_type == "sigmoid" else 0.0),
        margins,
    )
    assert torch.autograd.gradcheck(lambda m: tie_losses(m, 0.3), margins)
    assert torch.autograd.gradcheck(lambda m: kto(m, m > 0, 0.1), margins)


# Lists --------------------------------------------------------------------------------------------


def list_batch(mask, complete=False, equal=False, desirable=True):
    size = len(mask)

    def flags(value):
        return torch.full((size,), value)

    sigma = torch.full((size,), 0.5)
    return ListBatch(
        None, mask, None, None, sigma, flags(complete), flags(equal), flags(desirable)
    )  # fmt: skip


def test_plackett_luce_is_a_distribution_over_orders():
    rewards = torch.tensor([0.3, -1.2, 0.8, 2.0], dtype=torch.float64)
    orders = torch.tensor(list(permutations(range(4))))
    losses = plackett_luce(rewards[orders], torch.ones(len(orders), 4, dtype=torch.bool))
    assert torch.exp(-losses).sum().item() == pytest.approx(1, abs=1e-10)
    first = torch.softmax(rewards, 0)[1]
    rest = torch.softmax(rewards[[0, 2, 3]], 0)[1]
    last = torch.softmax(rewards[[0, 3]], 0)[0]
    expected = -torch.log(first * rest * last)  # the order 1, 2, 0, 3
    place = orders.tolist().index([1, 2, 0, 3])
    exactly(losses[place], expected)


def test_lists_of_two_are_dpo_and_padding_says_nothing():
    errors = torch.tensor([[0.5, 0.7, 0.0], [0.5, 0.6, 0.9]], dtype=torch.float64)
    reference = torch.tensor([[0.48, 0.6, 0.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = implicit_rewards(errors, reference, 10.0)
    objective = PlackettLuce(10.0, anchor_weight=2.0, sft_weight=0.3)
    found = objective.losses(list_batch(mask), errors, rewards)
    pair = DiffusionDPO(beta=10.0, anchor_weight=2.0, sft_weight=0.3)
    exactly(found[:1], pair.losses(errors[:1, :2], rewards[:1, :2]))
    # Best by softmax(r) of three, then worst by softmax(-r) of the other two.
    r = rewards[1]
    expected = -torch.log(torch.softmax(r, 0)[0] * torch.softmax(-r[1:], 0)[1]) + 0.3 * 0.5
    exactly(found[1], expected)


def test_all_equal_asks_for_equal_rewards():
    rewards = torch.tensor([[0.4, 0.4, 0.4], [0.0, 0.5, 1.0]], dtype=torch.float64)
    mask = torch.ones(2, 3, dtype=torch.bool)
    losses = PlackettLuce(10.0).losses(list_batch(mask, equal=True), rewards, rewards)
    assert losses[0].item() == pytest.approx(0, abs=1e-12)
    expected = -torch.log_softmax(rewards[1], 0).mean() - math.log(3)
    exactly(losses[1], expected)


def test_kto_weighs_and_reports_the_two_kinds_apart():
    errors = torch.tensor([[0.4], [0.6], [0.8]])
    reference = torch.tensor([[0.5], [0.5], [0.5]])
    batch = list_batch(torch.ones(3, 1, dtype=torch.bool))
    batch = ListBatch(**{**vars(batch), "desirable": torch.tensor([True, False, False])})
    figures = KTO(10.0, 0.1, 1.0, 2.0).figures(batch, errors, reference)
    expected = [1 - sigmoid(torch.tensor(0.4)), *(2 * sigmoid(torch.tensor([-0.6, -1.6])))]
    assert figures["loss"].tolist() == pytest.approx([float(x) for x in expected])
    metrics = finish_parts({name: v.mean().item() for name, v in figures.items()})
    assert metrics["rewards/chosen"] == pytest.approx(0.5)
    assert metrics["rewards/rejected"] == pytest.approx((-0.5 - 1.5) / 2)
    assert metrics["error/chosen_delta"] == pytest.approx(-0.1)
    assert metrics["rewards/accuracies"] == 1


# Regions and scales -------------------------------------------------------------------------------


def test_a_region_is_a_mean_over_its_places():
    shape = (2, 3, 4, 4)
    generator = torch.Generator().manual_seed(0)
    velocity, x_0, noise = (torch.randn(shape, generator=generator) for _ in range(3))
    region = torch.zeros(2, 1, 4, 4)
    region[0, 0, :2] = 1.0
    region[1] = 0.5
    squares = (velocity - (noise - x_0)) ** 2
    expected = torch.stack([squares[0, :, :2].mean(), squares[1].mean()])
    torch.testing.assert_close(region_error(velocity, x_0, noise, region), expected)


def test_beta_means_the_same_at_every_resolution():
    """Errors of equal size per element: equal margins on the mean scale, and beta_sum = beta /
    D."""
    errors, reference = torch.tensor([[0.5, 0.7]]), torch.tensor([[0.48, 0.6]])
    for num_elements in (1024, 65536):
        by_sum = DiffusionDPO(beta=None, beta_sum=2000 / num_elements)
        assert by_sum.mean_beta(num_elements) == pytest.approx(2000)
        sums = -(2000 / num_elements / 2) * num_elements * (errors - reference)
        torch.testing.assert_close(implicit_rewards(errors, reference, 2000.0), sums)


def test_the_rejected_may_count_for_less():
    errors = torch.tensor([[0.50, 0.70]], dtype=torch.float64)
    rewards = torch.tensor([[-0.1, -0.5]], dtype=torch.float64)
    found = DiffusionDPO(beta=10.0, rejected_weight=0.6).losses(errors, rewards)
    exactly(found, torch.log(1 + torch.exp(-torch.tensor([-0.1 + 0.3], dtype=torch.float64))))


def test_a_pairs_own_smoothing_and_ties_take_their_places():
    errors = torch.tensor([[0.5, 0.7]] * 3, dtype=torch.float64)
    rewards = torch.tensor([[-0.1, -0.5]] * 3, dtype=torch.float64)
    objective = DiffusionDPO(beta=10.0, tie_threshold=0.5, anchor_weight=1.0)
    found = objective.losses(
        errors,
        rewards,
        torch.tensor([0.0, 0.25, 0.0], dtype=torch.float64),
        torch.tensor([False, False, True]),
    )
    margin = torch.tensor([0.4], dtype=torch.float64)
    exactly(found[:1], preference_losses(margin, tie_threshold=0.5) + 0.1)
    exactly(found[1:2], preference_losses(margin, "sigmoid", 0.25, 0.5) + 0.1)
    exactly(found[2:], tie_losses(margin, 0.5))
    with pytest.raises(ValueError, match="needs a tie_threshold above 0"):
        DiffusionDPO(beta=10.0).losses(errors, rewards, None, torch.tensor([True] * 3))


# What a run learns about itself -------------------------------------------------------------------


def test_parts_are_the_same_means_in_one_batch_and_in_eight():
    values = torch.arange(8.0)
    sigma = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.9, 1.0, 0.6, 0.3])
    whole = {k: v.mean().item() for k, v in by_sigma("loss", values, sigma).items()}
    single = [by_sigma("loss", values[i : i + 1], sigma[i : i + 1]) for i in range(8)]
    split = {k: sum(part[k].item() for part in single) / 8 for k in whole}
    expected = {"loss/sigma_0": 4 / 3, "loss/sigma_0.25": 4.5, "loss/sigma_0.5": 6.0}
    expected["loss/sigma_0.75"] = 4.5
    assert finish_parts(whole) == pytest.approx(expected)
    assert finish_parts(split) == pytest.approx(expected)
    nobody = {k: v.mean().item() for k, v in part_of("x", values, values < 0).items()}
    assert finish_parts({**nobody, "y": 1.0}) == {"y": 1.0}


def test_auto_beta_brings_the_gradients_factor_to_its_target():
    config = AutoBetaConfig(target=0.2, lowest=10, highest=1e6)
    beta = adapted_beta(config, 2000.0, margin_abs=0.003)
    assert 1 / (1 + math.exp(beta / 2 * 0.003)) == pytest.approx(0.2)
    assert adapted_beta(config, 2000.0, None) == 2000
    assert adapted_beta(config, 2000.0, 0.0) == 1e6
    assert adapted_beta(config, 2000.0, 10.0) == 10


def test_feedback_follows_the_steps_and_survives_a_checkpoint():
    config = DPOObjectiveConfig(auto_beta=AutoBetaConfig(), chosen_alarm=0.05)
    feedback = Feedback(config)
    steady = {"error/chosen_reference": 0.4, "error/margin_abs": 0.002}
    assert not feedback.observe(1, steady | {"error/chosen_delta": -0.1})
    assert feedback.chosen_rise == pytest.approx(-0.25)
    resumed = Feedback(config)
    resumed.load_state_dict(json.loads(json.dumps(feedback.state_dict())))
    for step in range(2, 40):
        row = steady | {"error/chosen_delta": 0.06}
        assert feedback.observe(step, row) == resumed.observe(step, row)
        assert feedback.beta(2000.0) == resumed.beta(2000.0)
    assert feedback.chosen_rise > 0.05
    assert 2 < feedback.alarm_step == resumed.alarm_step < 40
    assert not feedback.observe(41, row)  # it goes off once
    mean = RunningMean(decay=0.5)
    for value in (1.0, 3.0):
        mean.observe(value)
    assert mean.value == pytest.approx((0.25 * 1 + 0.5 * 3) / 0.75)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "slic"}, "choices: sigmoid, hinge, ipo"),
        ({"loss_type": "ipo", "tie_threshold": 0.1}, "only the sigmoid has"),
        ({"rejected_weight": 0.0}, "rejected_weight is 0.0"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionDPO(**options)


def test_a_setting_that_would_do_nothing_is_refused():
    with pytest.raises(
        ValueError, match=r"anchor_weight is 1\.0 but loss_type 'kto' does not read"
    ):
        DPOObjectiveConfig(loss_type="kto", anchor_weight=1.0)
    with pytest.raises(ValueError, match=r"tie_threshold is 0\.5 .* sigmoid do"):
        DPOObjectiveConfig(loss_type="ipo", tie_threshold=0.5)
