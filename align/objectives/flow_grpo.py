"""Flow-GRPO (arXiv 2505.05470): policy gradient on the steps of a stochastic sampler.

Everything that a person sets is in nats, of the whole latent, whatever its size. For one step of
a trajectory, with D latent elements, ``l = log p_theta(x' | x) - log p_old(x' | x)`` and c the
clip range::

    r = exp(l / D)
    L = D^(-1/2) [ -D min(A (r - 1), A (clip(r, e^(-c/D), e^(c/D)) - 1)) + beta KL ]

r, and so the policy gradient's direction, is the published one, which averages over D; there a
clip of 1e-5 means 0.7 nats at 512 x 512 and 2.6 at 1024 x 1024. The factor D turns the surrogate
into nats (D (r - 1) = l to first order), beside a KL in nats. D^(-1/2) makes the gradient's size
independent of D: at r = 1 the gradient with respect to the velocity is ``A g z / sqrt(D)`` with z
the step's standard normal noise and g its ``|d mean / d v| / std``, of norm ``|A| g``. The KL takes
the same factor, so that ``beta`` stays a price per nat.

The published code divides the KL by ``2 s^2`` without the step length; here it is the KL between
the two Gaussians, ``|mean - mean_ref|^2 / (2 s^2 (-dt))``, so ``beta`` means the same for any
number of steps. In Flow-GRPO's numbers: ``clip = clip_range / D``, ``beta_published = beta (-dt)``.

Two variants change what is clipped. With ``k`` the step's std and ``d = mean - mean_old``, of which
``l = z d / k - |d|^2 / (2 k^2)``:

GRPO-Guard (arXiv 2510.22319) takes the bias off the log-ratio and its step's size out of it, so
that one clip treats all steps alike, and weighs the steps' gradients alike by their length::

    l -> (l + |d|^2 / (2 k^2)) k = z d        L -> L / (-dt)

Flow-DPPO clips no ratio but masks a step that has gone far enough in the direction its advantage
asks for: ``|d|^2 / (2 k^2) >= c`` nats and ``A l > 0``.
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
    old_mean: Tensor | None = None
    """``(B, C, h, w)`` float32, of the step under the policy that drew it; the variants need it."""

    def first(self) -> TransitionBatch:
        """The first step alone, its padding kept."""
        return TransitionBatch(
            x_t=self.x_t[:1],
            x_next=self.x_next[:1],
            sigma=self.sigma[:1],
            sigma_next=self.sigma_next[:1],
            cond=self.cond.select([0]),
            old_log_prob=self.old_log_prob[:1],
            advantages=self.advantages[:1],
            old_mean=None if self.old_mean is None else self.old_mean[:1],
        )


def surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_range: float, num_elements: int
) -> Tensor:
    """Clipped policy-gradient losses ``(B,)`` in nats, before the factor ``D^(-1/2)``.

    The lesser of the two gains is that of the lesser or, below 0, of the greater log-ratio: chosen
    before the exponential, a step that went too far has no gradient, and none that overflows.
    """
    rises, falls = log_ratio.clamp(max=clip_range), log_ratio.clamp(min=-clip_range)
    chosen = torch.where(advantages > 0, rises, torch.where(advantages < 0, falls, 0))
    return -advantages * num_elements * torch.expm1(chosen / num_elements)


def is_clipped(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """Where a sample is already as far as the clip lets it go in its advantage's direction."""
    log_ratio = log_ratio.detach()
    past = torch.where(advantages > 0, log_ratio > clip_range, log_ratio < -clip_range)
    return past & (advantages != 0)


def dppo_surrogate(
    log_ratio: Tensor, advantages: Tensor, old_kl: Tensor, clip_range: float, num_elements: int
) -> Tensor:
    """Flow-DPPO's losses ``(B,)`` in nats; ``old_kl (B,)`` from the policy that drew the step."""
    masked = (old_kl >= clip_range) & (advantages * log_ratio > 0)
    kept = log_ratio.masked_fill(masked | (advantages == 0), 0)
    return -advantages * num_elements * torch.expm1(kept / num_elements)


VARIANTS = ("grpo", "guard", "dppo")


@dataclass(frozen=True)
class FlowGRPO:
    noise_level: float = 0.7
    """``a`` of the sampler; it must be the one that drew the batch."""
    clip_range: float = 1.0
    """Bound on the log-ratio of a step, in nats. guard: on ``z d``, which is nats of a step whose
    std is 1. dppo: on the divergence from the policy that drew it, in nats."""
    beta: float = 0.0
    """Weight of the KL to the reference, per nat; 0 = none, and no reference is needed."""
    sde: str = "flow"
    """Of `sde.SDE_KINDS`; it must be the one that drew the batch."""
    variant: str = "grpo"
    """``grpo``, ``guard`` or ``dppo``."""

    def __post_init__(self) -> None:
        for name in ("noise_level", "clip_range"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.beta < 0:
            raise ValueError(f"beta is {self.beta}; it must not be negative")
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}; choices: {', '.join(VARIANTS)}")

    def step(self, policy: Policy, batch: TransitionBatch) -> tuple[Tensor, Tensor]:
        """``mean (B, C, h, w)`` and ``std (B,)`` of the next latents under the policy."""
        velocity = policy.velocity(batch.x_t, batch.sigma, batch.cond)
        return sde_step(
            batch.x_t, velocity, batch.sigma, batch.sigma_next, self.noise_level, self.sde
        )

    def replay(self, policy: Policy, batch: TransitionBatch) -> tuple[Tensor, Tensor]:
        """``log p(x_next | x_t)``, ``(B,)`` float64 in nats, and the mean ``(B, C, h, w)``.

        A rollout with guidance was not drawn from the policy that trains, which has none: its old
        log-probabilities and means must be computed anew by this, under ``torch.no_grad``.
        """
        mean, std = self.step(policy, batch)
        return gaussian_log_prob(batch.x_next, mean, std), mean

    def log_prob(self, policy: Policy, batch: TransitionBatch) -> Tensor:
        """The first of `replay`."""
        return self.replay(policy, batch)[0]

    def loss(self, policy: Policy, batch: TransitionBatch) -> LossOutput:
        num_elements = batch.x_t[0].numel()
        device = batch.x_t.device
        mean, std = self.step(policy, batch)
        old_log_prob = batch.old_log_prob.to(device, torch.float64)
        log_ratio = gaussian_log_prob(batch.x_next, mean, std) - old_log_prob
        losses, clipped = self.losses(batch, log_ratio, mean, std)
        kl = torch.zeros_like(losses)
        if self.beta > 0:
            with policy.reference():
                reference_mean, _ = self.step(policy, batch)
            kl = gaussian_kl(mean, reference_mean, std)
            losses = losses + self.beta * kl
        log_ratio = log_ratio.detach()
        return LossOutput(
            loss=losses.mean().to(mean.dtype) / math.sqrt(num_elements),
            metrics={
                "kl": kl.detach().mean().float(),
                "clip_ratio": clipped.float().mean(),
                "ratio_mean": log_ratio.clamp(max=20).exp().mean().float(),
                "log_ratio_abs": log_ratio.abs().mean().float(),
            },
        )

    def losses(
        self, batch: TransitionBatch, log_ratio: Tensor, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses ``(B,)`` in nats, without KL, and where the policy gradient is cut off."""
        num_elements = mean[0].numel()
        advantages = batch.advantages.to(mean.device, torch.float64)
        if self.variant == "grpo":
            losses = surrogate(log_ratio, advantages, self.clip_range, num_elements)
            return losses, is_clipped(log_ratio, advantages, self.clip_range)
        if batch.old_mean is None:
            raise ValueError(f"the variant {self.variant!r} needs the means that the steps had")
        old_kl = gaussian_kl(mean, batch.old_mean, std)
        if self.variant == "dppo":
            kept = old_kl.detach()
            losses = dppo_surrogate(log_ratio, advantages, kept, self.clip_range, num_elements)
            return losses, (kept >= self.clip_range) & (advantages * log_ratio > 0)
        guarded = (log_ratio + old_kl) * std.double()
        length = (batch.sigma - batch.sigma_next).to(mean.device, torch.float64)
        losses = surrogate(guarded, advantages, self.clip_range, num_elements) / length
        return losses, is_clipped(guarded, advantages, self.clip_range)
