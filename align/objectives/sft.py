"""Supervised fine-tuning: conditional flow matching."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from align.mmdit.adapters.base import Conditioning
from align.mmdit.flow import interpolate, velocity_error
from align.objectives.base import LossOutput, weighted_mean
from align.policy import Policy


@dataclass(frozen=True)
class SFTBatch:
    latents: Tensor
    """``(B, C, h, w)``, normalised."""
    cond: Conditioning
    noise: Tensor
    """``(B, C, h, w)``."""
    sigma: Tensor
    """``(B,)``."""
    weights: Tensor | None = None
    """``(B,)``; None is 1 for each sample."""


def noised(batch: SFTBatch) -> Tensor:
    """``x_t (B, C, h, w)``."""
    return interpolate(batch.latents, batch.noise, batch.sigma)


def sft_errors(policy: Policy, batch: SFTBatch) -> Tensor:
    """Mean squared velocity errors ``(B,)``, float32."""
    velocity = policy.velocity(noised(batch), batch.sigma, batch.cond)
    return velocity_error(velocity, batch.latents, batch.noise)


@dataclass(frozen=True)
class SFT:
    """``L = E mean_D |v_theta(x_t, sigma, c) - (noise - x_0)|^2``, in float32."""

    def loss(self, policy: Policy, batch: SFTBatch) -> LossOutput:
        errors = sft_errors(policy, batch)
        return LossOutput(
            loss=weighted_mean(errors, batch.weights), metrics={"error": errors.detach().mean()}
        )
