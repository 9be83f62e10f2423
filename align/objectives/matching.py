"""Online objectives on clean samples alone: DiffusionNFT and Advantage Weighted Matching.

Both need of a rollout no more than the images drawn, by any sampler, and their advantages. They mix
an image with fresh noise, as in pretraining, and compare the policy with the one that drew: stored
velocities or errors at the very same noise and noise level take the place of an old model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from align.mmdit.adapters.base import Conditioning
from align.mmdit.flow import at_least_float32, interpolate, predict_x0, velocity_error
from align.objectives.base import LossOutput, mean_output
from align.objectives.flow_grpo import is_clipped, surrogate
from align.policy import Policy

MIN_WEIGHT = 1e-5
"""Least divisor of DiffusionNFT's errors."""


@dataclass(frozen=True)
class SampleBatch:
    """Drawn images, each at one noise and noise level."""

    latents: Tensor
    """``(B, C, h, w)`` float32, as drawn, at sigma 0."""
    cond: Conditioning
    noise: Tensor
    """``(B, C, h, w)``."""
    sigma: Tensor
    """``(B,)``."""
    advantages: Tensor
    """``(B,)``, in standard deviations."""
    keep: Tensor
    """``(B,)`` bool, False in groups from which nothing is to be learnt."""
    old_velocity: Tensor
    """``(B, C, h, w)`` float32, of the policy that drew, at this noise and noise level."""


def sample_velocity(policy: Policy, batch: SampleBatch) -> Tensor:
    """The policy's velocity at the batch's noise, ``(B, C, h, w)`` float32; without guidance."""
    x_t = interpolate(batch.latents, batch.noise, batch.sigma)
    return at_least_float32(policy.velocity(x_t, batch.sigma, batch.cond))


@dataclass(frozen=True)
class DiffusionNFT:
    """Pulls towards what was rewarded and, by a reflected policy, away from what was not
    (arXiv 2509.16117)::

        r    = clip(A / (2 A_max) + 1/2, 0, 1)
        v+   = b v + (1 - b) v_old              v-  = (1 + b) v_old - b v
        x_0+- = x_t - sigma v+-                 w+- = stopgrad mean_D |x_0+- - x_0|
        L    = A_max [r / b mean_D |x_0+ - x_0|^2 / w+ + (1 - r) / b mean_D |x_0- - x_0|^2 / w-]
               + beta mean_D |v - v_ref|^2

    While v is v_old the loss is the same for every r, but its gradient is not: with respect to v it
    is ``A sigma^2 / w`` times that of the flow-matching error ``mean_D |v - (noise - x_0)|^2``.
    """

    strength: float = 1.0
    """b: how far the two policies lie from the old one."""
    advantage_clip: float = 5.0
    """A_max, in standard deviations."""
    beta: float = 0.0
    """Weight of the squared distance to the reference's velocity; 0 = none."""

    def loss(self, policy: Policy, batch: SampleBatch) -> LossOutput:
        velocity = sample_velocity(policy, batch)
        losses, figures = self.losses(batch, velocity)
        losses = losses + self.beta * _reference_distance(self.beta, policy, batch, velocity)
        return mean_output({"loss": losses} | figures, batch.keep)

    def losses(self, batch: SampleBatch, velocity: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """``(B,)`` without the distance to the reference, and figures."""
        b, old = self.strength, batch.old_velocity
        x_t = interpolate(batch.latents, batch.noise, batch.sigma)
        share = (batch.advantages / (2 * self.advantage_clip) + 0.5).clamp(0, 1)

        def pull(towards: Tensor) -> Tensor:
            error = predict_x0(x_t, towards, batch.sigma) - batch.latents
            weight = error.detach().abs().flatten(1).mean(1).clamp_min(MIN_WEIGHT)
            return error.square().flatten(1).mean(1) / weight

        positive = pull(b * velocity + (1 - b) * old)
        negative = pull((1 + b) * old - b * velocity)
        losses = self.advantage_clip * (share * positive + (1 - share) * negative) / b
        moved = (velocity - old).detach().square().flatten(1).mean(1)
        return losses, {"velocity_moved": moved}


@dataclass(frozen=True)
class AWM:
    """Policy gradient with the flow-matching error for a log-likelihood (arXiv 2509.25050)::

        l = -D w(sigma) (e - e_old),   e = mean_D |v - (noise - x_0)|^2
        L = D^(-1/2) [-D min(A (r - 1), A (clip(r) - 1))],   r = exp(l / D)

    The published loss is that of the ratio r with the clip ``clip_range / D``; the factor
    ``sqrt(D)`` is Flow-GRPO's here, so that the settings mean the same to both.
    """

    clip_range: float = 1.0
    """Bound on l, in nats."""
    beta: float = 0.0
    """Weight of the squared distance to the reference's velocity; 0 = none."""
    weighting: str = "uniform"
    """w: ``uniform`` is 1, ``sigma`` is sigma."""

    def loss(self, policy: Policy, batch: SampleBatch) -> LossOutput:
        velocity = sample_velocity(policy, batch)
        log_ratio = self.log_ratio(batch, velocity)
        num_elements = batch.latents[0].numel()
        advantages = batch.advantages.double()
        losses = surrogate(log_ratio, advantages, self.clip_range, num_elements)
        losses = losses.to(velocity.dtype) / math.sqrt(num_elements)
        losses = losses + self.beta * _reference_distance(self.beta, policy, batch, velocity)
        log_ratio = log_ratio.detach()
        figures = {
            "clip_ratio": is_clipped(log_ratio, advantages, self.clip_range).float(),
            "log_ratio_abs": log_ratio.abs().float(),
        }
        return mean_output({"loss": losses} | figures, batch.keep)

    def log_ratio(self, batch: SampleBatch, velocity: Tensor) -> Tensor:
        """``(B,)`` float64, nats."""
        errors, old_errors = (
            velocity_error(v, batch.latents, batch.noise).double()
            for v in (velocity, batch.old_velocity)
        )
        weights = batch.sigma.double() if self.weighting == "sigma" else 1.0
        return -batch.latents[0].numel() * weights * (errors - old_errors)


def _reference_distance(
    beta: float, policy: Policy, batch: SampleBatch, velocity: Tensor
) -> Tensor:
    """``mean_D |v - v_ref|^2``, ``(B,)``; 0 where it has no weight, without a forward pass."""
    if not beta:
        return torch.zeros(len(velocity), device=velocity.device)
    with policy.reference():
        reference = sample_velocity(policy, batch)
    return (velocity - reference).square().flatten(1).mean(1)
