"""DiffusionNFT and AWM: closed forms in float64, gradients, and what they reduce to."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from align.objectives.matching import AWM, DiffusionNFT, SampleBatch

SHAPE = (4, 3, 4, 4)
D = 3 * 4 * 4


def draw(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def batch():
    return SampleBatch(
        latents=draw(0),
        cond=None,
        noise=draw(1),
        sigma=torch.tensor([0.2, 0.5, 0.7, 0.9], dtype=torch.float64),
        advantages=torch.tensor([1.5, -0.5, 7.0, -7.0], dtype=torch.float64),
        keep=torch.tensor([True, True, True, False]),
        old_velocity=draw(2),
    )


def test_nft_is_its_closed_form(batch):
    velocity, b, limit = draw(3), 0.3, 5.0
    found, _ = DiffusionNFT(strength=b, advantage_clip=limit).losses(batch, velocity)
    expected = []
    for i, sigma in enumerate(batch.sigma.tolist()):
        r = min(1.0, max(0.0, batch.advantages[i].item() / (2 * limit) + 0.5))
        x_0, old, v = batch.latents[i], batch.old_velocity[i], velocity[i]
        x_t = (1 - sigma) * x_0 + sigma * batch.noise[i]
        terms = []
        for towards in (b * v + (1 - b) * old, (1 + b) * old - b * v):
            error = x_t - sigma * towards - x_0
            terms.append(error.square().mean() / error.abs().mean().clamp(min=1e-5))
        expected.append(limit * (r / b * terms[0] + (1 - r) / b * terms[1]))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-10, rtol=1e-10)


def test_nft_on_policy_pulls_by_the_advantage(batch):
    """At v = v_old the loss is blind to r, but its gradient is A times that of flow matching."""
    velocity = batch.old_velocity.clone().requires_grad_(True)
    losses, _ = DiffusionNFT().losses(batch, velocity)
    turned, _ = DiffusionNFT().losses(replace(batch, advantages=-batch.advantages), velocity)
    torch.testing.assert_close(losses, turned, atol=1e-10, rtol=1e-10)
    (found,) = torch.autograd.grad(losses.sum(), velocity)
    sigma = batch.sigma.view(-1, 1, 1, 1)
    error = velocity.detach() - (batch.noise - batch.latents)
    weight = (sigma * error).abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    advantages = batch.advantages.clamp(-5, 5).view(-1, 1, 1, 1)
    expected = advantages * sigma**2 * 2 * error / D / weight
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_awm_is_the_published_ratio_times_sqrt_d(batch):
    velocity = (batch.old_velocity + 0.01 * draw(3)).requires_grad_(True)
    target = batch.noise - batch.latents
    for weighting, weights in (("uniform", 1.0), ("sigma", batch.sigma)):
        objective = AWM(clip_range=0.2, weighting=weighting)
        log_ratio = objective.log_ratio(batch, velocity)
        errors = ((velocity - target) ** 2).flatten(1).mean(1)
        old = ((batch.old_velocity - target) ** 2).flatten(1).mean(1)
        torch.testing.assert_close(log_ratio / D, -weights * (errors - old), atol=1e-6, rtol=1e-5)
    same = AWM().log_ratio(batch, batch.old_velocity)
    assert same.tolist() == [0, 0, 0, 0]


class Fixed:
    """A policy that gives one velocity, and another as its reference."""

    def __init__(self, velocity, reference=None):
        self.value, self.other = velocity, reference

    def velocity(self, x_t, sigma, cond):
        return self.value

    def reference(self):
        import contextlib

        @contextlib.contextmanager
        def swapped():
            self.value, self.other = self.other, self.value
            yield
            self.value, self.other = self.other, self.value

        return swapped()


def test_awm_raises_the_likelihood_of_what_was_rewarded_until_the_clip(batch):
    velocity = batch.old_velocity.float().requires_grad_(True)
    output = AWM(clip_range=0.5).loss(Fixed(velocity), batch)
    (gradient,) = torch.autograd.grad(output.loss, velocity)
    error = velocity.detach() - (batch.noise - batch.latents)
    kept = batch.advantages * batch.keep
    expected = kept.view(-1, 1, 1, 1) * 2 * error / math.sqrt(D) / 4
    torch.testing.assert_close(gradient.double(), expected, atol=1e-5, rtol=1e-4)
    far = (batch.old_velocity - 0.2 * error).float().requires_grad_(True)
    output = AWM(clip_range=0.5).loss(Fixed(far), batch)
    (gradient,) = torch.autograd.grad(output.loss, far)
    # Likelier than before by more than the clip: only where that is punished does it still pull.
    assert [bool(row.abs().sum() > 0) for row in gradient] == [False, True, False, False]
    assert output.metrics["clip_ratio"].item() == 0.5


@pytest.mark.parametrize("objective", [DiffusionNFT(beta=0.7), AWM(beta=0.7)])
def test_the_distance_to_the_reference_is_that_of_velocities(batch, objective):
    velocity, reference = draw(3).float(), draw(4).float()
    plain = replace(objective, beta=0.0).loss(Fixed(velocity), batch).loss
    found = objective.loss(Fixed(velocity, reference), batch).loss
    distances = (velocity - reference).square().flatten(1).mean(1) * batch.keep
    torch.testing.assert_close(
        found - plain, 0.7 * distances.mean().to(found), rtol=1e-4, atol=1e-5
    )


def test_dropped_groups_teach_nothing(batch):
    velocity = (batch.old_velocity + 1e-4 * draw(3)).float().requires_grad_(True)
    for objective in (DiffusionNFT(), AWM()):
        output = objective.loss(Fixed(velocity), batch)
        (gradient,) = torch.autograd.grad(output.loss, velocity)
        assert gradient[3].abs().sum() == 0
        assert gradient[0].abs().sum() > 0
