"""Diffusion-DPO: four numbers by hand, finite differences, published forms, a short training."""

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from align.objectives.diffusion_dpo import DiffusionDPO, PairBatch, implicit_rewards, pair_errors
from align.objectives.preferences import anchor
from align.policy import Policy

ERRORS = torch.tensor([[0.50, 0.70]])
REFERENCE = torch.tensor([[0.48, 0.60]])


def loss_of(objective, errors, beta=10.0):
    return objective.losses(errors, implicit_rewards(errors, REFERENCE.to(errors), beta))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_four_numbers_by_hand():
    rewards = implicit_rewards(ERRORS, REFERENCE, beta=10.0)
    assert rewards.tolist()[0] == pytest.approx([-0.1, -0.5])
    margin = 0.4
    assert loss_of(DiffusionDPO(beta=10.0), ERRORS).item() == pytest.approx(-log_sigmoid(margin))

    smoothed = loss_of(DiffusionDPO(beta=10.0, label_smoothing=0.1), ERRORS).item()
    assert smoothed == pytest.approx(-0.9 * log_sigmoid(margin) - 0.1 * log_sigmoid(-margin))

    anchored = loss_of(DiffusionDPO(beta=10.0, anchor_weight=2.0, sft_weight=0.3), ERRORS).item()
    assert anchored == pytest.approx(-log_sigmoid(margin) + 2.0 * 0.1 + 0.3 * 0.5)


def test_the_hinge_is_free_while_the_chosen_is_as_likely_as_before():
    better = torch.tensor([[0.47, 0.70]])
    plain = loss_of(DiffusionDPO(beta=10.0), better)
    assert torch.equal(loss_of(DiffusionDPO(beta=10.0, anchor_weight=5.0), better), plain)


def test_rounding_of_a_stored_reference_does_not_switch_the_hinge_on():
    """At the first step the policy is its reference: nothing but the preference may pull."""
    reference = torch.tensor([[0.48, 0.60]])
    plain = DiffusionDPO(beta=2000.0)

    def pull(objective, rounding):
        errors = (reference + rounding).requires_grad_(True)
        rewards = implicit_rewards(errors, reference, 2000.0)
        return torch.autograd.grad(objective.losses(errors, rewards).sum(), errors)[0]

    corner = DiffusionDPO(beta=2000.0, anchor_weight=1.0)
    assert torch.equal(pull(corner, 0.0), pull(plain, 0.0))
    up = torch.tensor([[2e-4, 0.0]])  # 0.2 nats, as bfloat16 rounds
    assert pull(corner, up)[0, 0] > pull(plain, up)[0, 0] + 999
    tolerant = DiffusionDPO(beta=2000.0, anchor_weight=1.0, anchor_tolerance=0.5)
    for rounding in (up, -up):
        assert torch.equal(pull(tolerant, rounding), pull(plain, rounding))
    assert pull(tolerant, 4 * up)[0, 0] > pull(plain, 4 * up)[0, 0] + 999
    assert anchor(torch.tensor([-1.5, -0.5, 0.3]), 0.5).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "objective",
    [
        DiffusionDPO(beta=10.0),
        DiffusionDPO(beta=10.0, label_smoothing=0.2),
        DiffusionDPO(beta=10.0, anchor_weight=1.5, sft_weight=0.5),
    ],
)
def test_gradients_equal_finite_differences(objective):
    errors = ERRORS.double().requires_grad_(True)
    torch.autograd.gradcheck(lambda e: loss_of(objective, e), errors, eps=1e-6, atol=1e-8)
    (gradient,) = torch.autograd.grad(loss_of(objective, errors).sum(), errors)
    if objective == DiffusionDPO(beta=10.0):
        pull = 5.0 / (1 + math.exp(0.4))
        assert gradient.tolist()[0] == pytest.approx([pull, -pull])


def test_an_anchor_of_one_outweighs_any_push_of_the_sigmoid():
    """The chosen's error is above the reference's: descent lowers it, however the pair stands."""
    errors = torch.tensor([[0.9, 0.1]], dtype=torch.double, requires_grad=True)
    plain, anchored = DiffusionDPO(beta=10.0), DiffusionDPO(beta=10.0, anchor_weight=1.0)
    (gradient,) = torch.autograd.grad(loss_of(anchored, errors).sum(), errors)
    assert gradient[0, 0] > 5.0
    (gradient,) = torch.autograd.grad(loss_of(plain, errors).sum(), errors)
    assert gradient[0, 0] < 5.0


def test_published_forms_agree():
    """Qwen-Image's report: beta' (diff_policy - diff_ref) without 1/2, so beta' = beta / 2."""
    beta = 10.0
    rewards = implicit_rewards(ERRORS, REFERENCE, beta)
    margin = (rewards[:, 0] - rewards[:, 1]).item()
    diff_policy = (ERRORS[:, 0] - ERRORS[:, 1]).item()
    diff_reference = (REFERENCE[:, 0] - REFERENCE[:, 1]).item()
    assert margin == pytest.approx(-(beta / 2) * (diff_policy - diff_reference))
    assert DiffusionDPO(beta=None, beta_sum=0.5).mean_beta(4096) == 2048
    assert DiffusionDPO(beta=2000.0).mean_beta(4096) == 2000


@pytest.fixture
def policy(adapter, transformer):
    return Policy(adapter, transformer, lora=LoraConfig(r=4, lora_alpha=8))


@pytest.fixture
def batch(adapter, cond, noise):
    return PairBatch(
        chosen=noise.roll(1, 0),
        rejected=noise.roll(2, 0),
        cond=cond,
        noise=noise,
        sigma=torch.tensor([0.3, 0.5, 0.8]),
    )


def test_at_the_start_nothing_is_preferred(policy, batch):
    output = DiffusionDPO(beta=500.0).loss(policy, batch)
    assert output.loss.item() == pytest.approx(math.log(2))
    assert output.metrics["rewards/margins"] == 0
    assert output.metrics["error/chosen_delta"] == 0


def test_a_pair_shares_noise_and_sigma(policy, batch):
    same = replace(batch, rejected=batch.chosen)
    errors = pair_errors(policy, same)
    torch.testing.assert_close(errors[:, 0], errors[:, 1], atol=1e-6, rtol=0)
    both = pair_errors(policy, batch)
    torch.testing.assert_close(both[:, 0], errors[:, 0], atol=1e-6, rtol=1e-6)


def test_cached_reference_errors_replace_the_reference(policy, batch, nudge):
    with torch.no_grad():
        cached = pair_errors(policy, batch)
    nudge(policy.trainable_parameters(), 0.02)
    live = DiffusionDPO(beta=500.0).loss(policy, batch)
    from_cache = DiffusionDPO(beta=500.0).loss(policy, replace(batch, reference_errors=cached))
    assert torch.equal(live.loss, from_cache.loss)
    assert live.metrics == from_cache.metrics
    assert live.metrics["rewards/margins"] != 0


def test_a_batch_is_the_mean_of_its_pairs(policy, batch, nudge):
    nudge(policy.trainable_parameters(), 0.02)
    objective = DiffusionDPO(beta=500.0, anchor_weight=0.5)

    def gradients(index):
        part = PairBatch(
            batch.chosen[index],
            batch.rejected[index],
            batch.cond.select(index).trim(),
            batch.noise[index],
            batch.sigma[index],
            weights=torch.tensor([1.0, 0.5, 2.0])[index],
        )
        loss = objective.loss(policy, part).loss
        return torch.autograd.grad(loss, policy.trainable_parameters())

    parts = [gradients([i]) for i in range(3)]
    for whole, *single in zip(gradients([0, 1, 2]), *parts, strict=True):
        torch.testing.assert_close(whole, sum(single) / 3, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("anchor_weight", [0.0, 1.0])
def test_training_prefers_the_chosen_and_the_anchor_keeps_it_likely(policy, batch, anchor_weight):
    objective = DiffusionDPO(beta=500.0, anchor_weight=anchor_weight)
    optimizer = torch.optim.Adam(policy.trainable_parameters(), lr=2e-3)
    for _ in range(12):
        output = objective.loss(policy, batch)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert output.metrics["rewards/accuracies"] == 1
    assert output.metrics["rewards/margins"] > 1
    if anchor_weight:
        assert output.metrics["error/chosen_delta"] < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 10.0, "beta_sum": 1.0}, "give exactly one"),
        ({"beta": None}, "give exactly one"),
        ({"beta": 0.0}, "must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"anchor_weight": -1.0}, "anchor_weight is -1.0"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionDPO(**options)
