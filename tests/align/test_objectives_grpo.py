"""Flow-GRPO: exact replay, the published gradient, clipping and KL in nats, and the preflight."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from torch.distributions import Independent, Normal, kl_divergence

from align.mmdit.flow import seeded_noise
from align.objectives.flow_grpo import FlowGRPO, TransitionBatch, surrogate
from align.objectives.preflight import PreflightError, preflight
from align.policy import Policy
from align.sampling import sample_sde
from align.sde import gaussian_log_prob, sde_step


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


def test_the_preflight_passes_a_sound_rollout(policy, batch):
    measured = preflight(FlowGRPO(beta=0.1), policy, batch)
    assert measured["preflight/log_ratio"] < 0.01
    assert measured["preflight/kl_grad_norm"] > 0
    assert all(p.grad is None for p in policy.trainable_parameters())


def test_the_preflight_refuses_what_would_not_learn(policy, batch, cond):
    objective = FlowGRPO(beta=0.1)
    rounded = replace(batch, x_next=batch.x_next.bfloat16().float())
    with pytest.raises(PreflightError, match="log-ratio of"):
        preflight(objective, policy, rounded)
    with pytest.raises(PreflightError, match="log-ratio of"):
        preflight(FlowGRPO(noise_level=0.8), policy, batch)

    policy.transformer.requires_grad_(False)
    with pytest.raises(PreflightError, match="carries no gradient"):
        preflight(objective, policy, batch)


class Leaky(Policy):
    """Lets the padding of a batch into its attention."""

    def velocity(self, x_t, sigma, cond):
        return super().velocity(x_t, sigma, replace(cond, mask=None))


def test_the_preflight_refuses_padding_that_leaks(adapter, batch):
    policy = Leaky(adapter, copy.deepcopy(adapter.transformer))
    with torch.no_grad():
        old_log_prob = FlowGRPO().log_prob(policy, batch)
    with pytest.raises(PreflightError, match="check the padding mask"):
        preflight(FlowGRPO(), policy, replace(batch, old_log_prob=old_log_prob))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_level": 0.0}, "noise_level is 0.0"),
        ({"clip_range": -1.0}, "clip_range is -1.0"),
        ({"beta": -0.1}, "beta is -0.1"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        FlowGRPO(**options)
