"""Flow-GRPO: exact replay, the published gradient, clipping and KL in nats, and its variants."""

import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from torch.distributions import Independent, Normal, kl_divergence

from align.mmdit.flow import seeded_noise
from align.objectives.flow_grpo import FlowGRPO, TransitionBatch, dppo_surrogate, surrogate
from align.policy import Policy
from align.sampling import sample_sde
from align.sde import gaussian_kl, gaussian_log_prob, sde_step


@pytest.fixture
def policy(adapter, transformer):
    return Policy(adapter, transformer, lora=LoraConfig(r=4, lora_alpha=8))


@pytest.fixture
def batch(adapter, policy, cond, noise):
    """Two recorded steps of three trajectories."""
    drawn = sample_sde(
        adapter,
        policy.transformer,
        cond,
        noise,
        6,
        noise_level=0.7,
        sde_steps=[0, 2],
        step_noise=torch.stack([seeded_noise(1, str(s), 0, noise.shape) for s in range(2)]),
    )
    return TransitionBatch(
        x_t=drawn.x_t.flatten(0, 1),
        x_next=drawn.x_next.flatten(0, 1),
        sigma=drawn.sigma.repeat_interleave(3),
        sigma_next=drawn.sigma_next.repeat_interleave(3),
        cond=cond.select([0, 1, 2, 0, 1, 2]),
        old_log_prob=drawn.log_prob.flatten(),
        advantages=torch.tensor([1.0, -0.5, -0.5, 1.0, -0.5, -0.5]),
    )


def rows(batch, index):
    return TransitionBatch(
        batch.x_t[index],
        batch.x_next[index],
        batch.sigma[index],
        batch.sigma_next[index],
        batch.cond.select(index),
        batch.old_log_prob[index],
        batch.advantages[index],
    )


def test_the_ratio_is_exactly_one_on_replay(policy, batch):
    for part in ([0, 1, 2], [3, 4, 5]):  # the shapes that were rolled out
        output = FlowGRPO(beta=0.1).loss(policy, rows(batch, part))
        assert output.metrics["ratio_mean"] == 1
        assert output.metrics["log_ratio_abs"] == 0
        assert output.metrics["clip_ratio"] == 0
        assert output.metrics["kl"] == 0
        assert output.loss.item() == 0


def test_the_gradient_is_the_published_one_times_sqrt_d(policy, batch, nudge):
    """Flow-GRPO averages the log-probability over D and clips by c / D."""
    nudge(policy.trainable_parameters(), 1e-2)
    with torch.no_grad():
        log_ratio = FlowGRPO().log_prob(policy, batch) - batch.old_log_prob
    clip_range = log_ratio.abs().median().item()  # so that some are clipped and some are not
    objective = FlowGRPO(clip_range=clip_range)
    num_elements = batch.x_t[0].numel()

    mean, std = objective.step(policy, batch)
    std = std.view(-1, 1, 1, 1)
    log_prob = (
        -((batch.x_next - mean) ** 2).double() / (2 * std.double() ** 2)
        - torch.log(std.double())
        - math.log(math.sqrt(2 * math.pi))
    ).mean(dim=(1, 2, 3))
    ratio = torch.exp(log_prob - batch.old_log_prob / num_elements)
    clip = clip_range / num_elements
    published = torch.maximum(
        -batch.advantages * ratio, -batch.advantages * ratio.clamp(1 - clip, 1 + clip)
    ).mean()
    output = objective.loss(policy, batch)
    assert 0 < output.metrics["clip_ratio"] < 1

    parameters = policy.trainable_parameters()
    expected = torch.autograd.grad(published, parameters)
    actual = torch.autograd.grad(output.loss, parameters)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, math.sqrt(num_elements) * theirs, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("side", [8, 32])
def test_the_gradients_size_does_not_depend_on_the_latents_size(side):
    """At ratio 1 the gradient at the velocity is A k z / sqrt(D): its norm is |A| k."""
    shape = (1, 16, side, side)
    num_elements = 16 * side * side
    sigma, sigma_next, advantage = torch.tensor([0.8]), torch.tensor([0.7]), torch.tensor([2.0])
    x_t = seeded_noise(0, "x", 0, shape)
    velocity = seeded_noise(0, "v", 0, shape).requires_grad_(True)
    mean, std = sde_step(x_t, velocity, sigma, sigma_next, 0.7)
    x_next = (mean + std * seeded_noise(0, "z", 0, shape)).detach()
    log_prob = gaussian_log_prob(x_next, mean, std)
    loss = surrogate(log_prob - log_prob.detach(), advantage, 1.0, num_elements).sum()
    (gradient,) = torch.autograd.grad(loss / math.sqrt(num_elements), velocity)

    k = math.sqrt(0.1) * math.sqrt((1 - 0.8) / 0.8) * (1 / 0.7 + 0.7 / 2)
    assert gradient.norm().item() == pytest.approx(2 * k, rel=0.05)


def test_the_clip_is_in_nats_and_stops_the_gradient():
    log_ratio = torch.tensor([0.3, 0.6, -0.6, 0.6, -0.6], dtype=torch.double, requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0], dtype=torch.double)
    losses = surrogate(log_ratio, advantages, clip_range=0.5, num_elements=4096)
    (gradient,) = torch.autograd.grad(losses.sum(), log_ratio)
    # Past the clip on the side that the advantage rewards, nothing more is to be had.
    assert gradient.tolist() == pytest.approx([-1, 0, 0, 1, -1], abs=2e-4)
    expected = [-0.3, -0.5, -0.5, 0.6, 0.6]
    assert losses.tolist() == pytest.approx(expected, rel=2e-4)


def test_a_step_that_went_too_far_or_counts_for_nothing_is_finite():
    """However far: the exponential of its log-ratio would overflow."""
    log_ratio = torch.tensor([1e9, 1e9, -1e9, 0.1], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, 0.0, -1.0, 2.0], dtype=torch.float64)
    losses = surrogate(log_ratio, advantages, clip_range=0.5, num_elements=100)
    bounds = [-math.expm1(0.005) * 100, 0, math.expm1(-0.005) * 100, -math.expm1(0.001) * 200]
    assert losses.tolist() == pytest.approx(bounds, rel=1e-12)
    slopes = [0, 0, 0, -2 * math.exp(0.001)]
    assert torch.autograd.grad(losses.sum(), log_ratio)[0].tolist() == pytest.approx(slopes)
    far = torch.tensor([9.0, 9.0, 9.0, 0.0], dtype=torch.float64)
    losses = dppo_surrogate(log_ratio, advantages, far, clip_range=0.5, num_elements=100)
    assert losses.tolist() == pytest.approx([0, 0, 0, bounds[3]], rel=1e-12)
    assert torch.autograd.grad(losses.sum(), log_ratio)[0].tolist() == pytest.approx(slopes)


def test_the_kl_is_that_of_the_two_gaussians_and_holds_the_policy(policy, batch, nudge):
    nudge(policy.trainable_parameters(), 0.01)
    objective = FlowGRPO(beta=0.25)
    with torch.no_grad():
        mean, std = objective.step(policy, batch)
        with policy.reference():
            reference_mean, _ = objective.step(policy, batch)

    def normal(center):
        return Independent(Normal(center.double(), std.double().view(-1, 1, 1, 1)), 3)

    expected = kl_divergence(normal(mean), normal(reference_mean)).mean()
    still = replace(batch, advantages=torch.zeros(6))
    output = objective.loss(policy, still)
    assert output.metrics["kl"].item() == pytest.approx(expected.item(), rel=1e-4)
    num_elements = batch.x_t[0].numel()
    assert output.loss.item() == pytest.approx(
        0.25 * expected.item() / math.sqrt(num_elements), rel=1e-4
    )
    optimizer = torch.optim.Adam(policy.trainable_parameters(), lr=2e-3)
    for _ in range(10):
        optimizer.zero_grad()
        objective.loss(policy, still).loss.backward()
        optimizer.step()
    assert objective.loss(policy, still).metrics["kl"] < 0.5 * expected


def test_an_update_makes_rewarded_steps_likelier(policy, batch):
    objective = FlowGRPO()
    optimizer = torch.optim.Adam(policy.trainable_parameters(), lr=1e-3)
    objective.loss(policy, batch).loss.backward()
    optimizer.step()
    with torch.no_grad():
        log_ratio = objective.log_prob(policy, batch) - batch.old_log_prob
    assert (batch.advantages * log_ratio).mean() > 1e-3


def test_a_batch_is_the_mean_of_its_steps(policy, batch, nudge):
    nudge(policy.trainable_parameters(), 1e-3)
    objective = FlowGRPO(beta=0.1)

    def gradients(index):
        loss = objective.loss(policy, rows(batch, index)).loss
        return torch.autograd.grad(loss, policy.trainable_parameters())

    halves = gradients([0, 2, 4]), gradients([1, 3, 5])
    for whole, *half in zip(gradients(list(range(6))), *halves, strict=True):
        torch.testing.assert_close(whole, sum(half) / 2, atol=1e-5, rtol=1e-3)


# Variants -----------------------------------------------------------------------------------------


def test_guard_and_dppo_have_the_published_gradient(policy, batch, nudge):
    """GRPO-Guard's RatioNorm with 1 / (-dt), and Flow-DPPO's mask, as published, times sqrt(D)."""
    with torch.no_grad():
        _, old_mean = FlowGRPO().replay(policy, batch)
    batch = replace(batch, old_mean=old_mean)
    nudge(policy.trainable_parameters(), 1e-2)
    mean, std = FlowGRPO().step(policy, batch)
    num_elements = mean[0].numel()
    k = std.double().view(-1, 1, 1, 1)
    old_log_prob = batch.old_log_prob / num_elements
    log_prob = -((batch.x_next - mean) ** 2).double() / (2 * k**2) - torch.log(k)
    log_prob = (log_prob - math.log(math.sqrt(2 * math.pi))).mean(dim=(1, 2, 3))
    distance = ((mean - old_mean) ** 2).double().mean(dim=(1, 2, 3)) / (2 * std.double() ** 2)
    dt = (batch.sigma_next - batch.sigma).double()
    advantages = batch.advantages.double()

    guarded = (log_prob - old_log_prob + distance) * std.double()
    clip = guarded.detach().abs().median().item()
    ratio = torch.exp(guarded)
    guard = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    guard = (guard / -dt).mean()
    ratio = torch.exp(log_prob - old_log_prob)
    threshold = distance.detach().median().item()
    masked = (distance >= threshold) & (
        ((advantages > 0) & (ratio > 1)) | ((advantages < 0) & (ratio < 1))
    )
    assert 0 < masked.sum() < 6
    dppo = torch.where(masked, 0.0, -advantages * ratio).mean()

    parameters = policy.trainable_parameters()
    for variant, clip_range, published in (("guard", clip, guard), ("dppo", threshold, dppo)):
        objective = FlowGRPO(clip_range=clip_range * num_elements, variant=variant)
        output = objective.loss(policy, batch)
        assert 0 < output.metrics["clip_ratio"] < 1
        expected = torch.autograd.grad(published, parameters, retain_graph=True)
        for ours, theirs in zip(
            torch.autograd.grad(output.loss, parameters), expected, strict=True
        ):
            torch.testing.assert_close(ours, math.sqrt(num_elements) * theirs, atol=1e-5, rtol=5e-3)
    with pytest.raises(ValueError, match="'guard' needs the means"):
        FlowGRPO(variant="guard").loss(policy, replace(batch, old_mean=None))


def test_guards_log_ratio_is_the_noise_times_the_shift():
    """``(l + |d|^2 / 2 k^2) k = z d``: no bias, and the same spread for every step's length."""
    shape = (64, 4, 4, 4)
    old_mean, z = seeded_noise(0, "m", 0, shape), seeded_noise(0, "z", 0, shape)
    shift = 0.01 * seeded_noise(0, "d", 0, shape)
    for k in (0.05, 0.5):
        std = torch.full((64,), k)
        x_next = old_mean + k * z
        log_ratio = gaussian_log_prob(x_next, old_mean + shift, std) - gaussian_log_prob(
            x_next, old_mean, std
        )
        guarded = (log_ratio + gaussian_kl(old_mean + shift, old_mean, std)) * std.double()
        torch.testing.assert_close(
            guarded, (z * shift).flatten(1).sum(1).double(), atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize("variant", ["grpo", "guard", "dppo"])
def test_the_expected_score_is_zero_at_ratio_one(variant):
    """With one advantage for all, steps drawn from the policy pull it nowhere on average."""
    count, shape = 4000, (1, 4, 4)
    sigma, sigma_next = torch.full((count,), 0.8), torch.full((count,), 0.7)
    x_t = seeded_noise(0, "x", 0, shape).expand(count, *shape)
    velocity = seeded_noise(0, "v", 0, shape).requires_grad_(True)
    mean, std = sde_step(x_t, velocity.expand(count, *shape), sigma, sigma_next, 0.7)
    z = seeded_noise(0, "z", 0, (count, *shape))
    x_next = (mean + std.view(-1, 1, 1, 1) * z).detach()
    old = gaussian_log_prob(x_next, mean, std).detach()
    batch = TransitionBatch(
        x_t, x_next, sigma, sigma_next, None, old, torch.ones(count), mean.detach()
    )
    log_ratio = gaussian_log_prob(x_next, mean, std) - old
    losses, _ = FlowGRPO(variant=variant).losses(batch, log_ratio, mean, std)
    (gradient,) = torch.autograd.grad(losses.mean(), velocity)
    (single,) = torch.autograd.grad(
        FlowGRPO(variant=variant).losses(batch, *_again(x_t, velocity, batch, old))[0][0], velocity
    )
    # A mean over n independent draws is smaller than one of them by sqrt(n).
    assert gradient.norm() < 4 * single.norm() / math.sqrt(count)


def _again(x_t, velocity, batch, old):
    mean, std = sde_step(
        x_t, velocity.expand(len(x_t), *velocity.shape), batch.sigma, batch.sigma_next, 0.7
    )
    return gaussian_log_prob(batch.x_next, mean, std) - old, mean, std


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_level": 0.0}, "noise_level is 0.0"),
        ({"clip_range": -1.0}, "clip_range is -1.0"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"variant": "ppo"}, "choices: grpo, guard, dppo"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FlowGRPO(**options)
