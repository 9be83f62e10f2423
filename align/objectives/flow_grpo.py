"""Flow-GRPO (arXiv 2505.05470): policy gradient on the steps of a stochastic sampler.

Everything that a person sets is in nats, of the whole latent, whatever its size. For one step of
a trajectory, with D latent elements, ``l = log p_theta(x' | x) - log p_old(x' | x)`` and c the
clip range::

    r = exp(l / D)
    L = D^(-1/2) [ -D min(A (r - 1), A (clip(r, e^(-c/D), e^(c/D)) - 1)) + beta KL ]

r, and so the policy gradient's direction, is the published one, which averages over D; there a
clip of 1e-5 means 0.7 nats at 512 x 512 and 2.6 at 1024 x 1024. The factor D turns the surrogate
into nats (D (r - 1) = l to first order), beside a KL in nats. D^(-1/2) makes the gradient's size
independent of D: at r = 1 the gradient with respect to the velocity is ``A k z / sqrt(D)`` with z
the step's standard normal noise and k its ``|d mean / d v| / std``, of norm ``|A| k``. The KL takes
the same factor, so that ``beta`` stays a price per nat.

The published code divides the KL by ``2 s^2`` without the step length; here it is the KL between
the two Gaussians, ``|mean - mean_ref|^2 / (2 s^2 (-dt))``, so ``beta`` means the same for any
number of steps. In Flow-GRPO's numbers: ``clip = clip_range / D``, ``beta_published = beta (-dt)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from align.mmdit.adapters.base import Conditioning
from align.objectives.base import LossOutput
from align.policy import Policy
from align.sde import gaussian_kl, gaussian_log_prob, sde_step


@dataclass(frozen=True)
class TransitionBatch:
    """Single steps of stochastic trajectories, any mix of samples and steps."""

    x_t: Tensor
    """``(B, C, h, w)`` float32, before the step."""
    x_next: Tensor
    """``(B, C, h, w)`` float32, as drawn."""
    sigma: Tensor
    """``(B,)``."""
    sigma_next: Tensor
    """``(B,)``."""
    cond: Conditioning
    old_log_prob: Tensor
    """``(B,)`` float64, nats, under the policy that drew the step."""
    advantages: Tensor
    """``(B,)``."""


def surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_range: float, num_elements: int
) -> Tensor:
    """Clipped policy-gradient losses ``(B,)`` in nats, before the factor ``D^(-1/2)``."""
    clipped = log_ratio.clamp(-clip_range, clip_range)
    gain = num_elements * torch.expm1(log_ratio / num_elements)
    clipped_gain = num_elements * torch.expm1(clipped / num_elements)
    return -torch.minimum(advantages * gain, advantages * clipped_gain)


@dataclass(frozen=True)
class FlowGRPO:
    noise_level: float = 0.7
    """``a`` of the sampler; it must be the one that drew the batch."""
    clip_range: float = 1.0
    """Bound on the log-ratio of a step, in nats."""
    beta: float = 0.0
    """Weight of the KL to the reference, per nat; 0 = none, and no reference is needed."""

    def __post_init__(self) -> None:
        for name in ("noise_level", "clip_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.beta < 0:
            raise ValueError(f"beta is {self.beta}; it must not be negative")

    def step(self, policy: Policy, batch: TransitionBatch) -> tuple[Tensor, Tensor]:
        """``mean (B, C, h, w)`` and ``std (B,)`` of the next latents under the policy."""
        velocity = policy.velocity(batch.x_t, batch.sigma, batch.cond)
        return sde_step(batch.x_t, velocity, batch.sigma, batch.sigma_next, self.noise_level)

    def log_prob(self, policy: Policy, batch: TransitionBatch) -> Tensor:
        """``log p(x_next | x_t)``, ``(B,)`` float64, nats.

        A rollout with guidance was not drawn from the policy that trains, which has none: its old
        log-probabilities must be computed anew by this, under ``torch.no_grad``.
        """
        mean, std = self.step(policy, batch)
        return gaussian_log_prob(batch.x_next, mean, std)

    def loss(self, policy: Policy, batch: TransitionBatch) -> LossOutput:
        num_elements = batch.x_t[0].numel()
        device = batch.x_t.device
        mean, std = self.step(policy, batch)
        old_log_prob = batch.old_log_prob.to(device, torch.float64)
        log_ratio = gaussian_log_prob(batch.x_next, mean, std) - old_log_prob
        advantages = batch.advantages.to(device, torch.float64)
        losses = surrogate(log_ratio, advantages, self.clip_range, num_elements)
        kl = torch.zeros_like(losses)
        if self.beta > 0:
            with policy.reference():
                reference_mean, _ = self.step(policy, batch)
            kl = gaussian_kl(mean, reference_mean, std)
            losses = losses + self.beta * kl
        log_ratio = log_ratio.detach()
        clipped = torch.where(
            advantages > 0, log_ratio > self.clip_range, log_ratio < -self.clip_range
        )
        return LossOutput(
            loss=losses.mean().float() / math.sqrt(num_elements),
            metrics={
                "kl": kl.detach().mean().float(),
                "clip_ratio": (clipped & (advantages != 0)).float().mean(),
                "ratio_mean": log_ratio.clamp(max=20).exp().mean().float(),
                "log_ratio_abs": log_ratio.abs().mean().float(),
            },
        )
