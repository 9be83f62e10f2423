"""Diffusion-DPO for flow matching (arXiv 2311.12908), with an anchor on the chosen image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.mmdit.adapters.base import Conditioning
from align.mmdit.flow import interpolate, velocity_error
from align.objectives.base import LossOutput, weighted_mean
from align.policy import Policy


@dataclass(frozen=True)
class PairBatch:
    """Preference pairs; the two images of a pair share prompt, noise and sigma."""

    chosen: Tensor
    """``(B, C, h, w)``, normalised latents."""
    rejected: Tensor
    """``(B, C, h, w)``."""
    cond: Conditioning
    noise: Tensor
    """``(B, C, h, w)``."""
    sigma: Tensor
    """``(B,)``."""
    reference_errors: Tensor | None = None
    """``(B, 2)`` of `pair_errors` under the reference, for this noise and sigma; None computes
    them."""
    weights: Tensor | None = None
    """``(B,)``; None is 1 for each pair."""


def implicit_rewards(errors: Tensor, reference_errors: Tensor, beta: float) -> Tensor:
    """``-(beta / 2) (e - e_ref)`` of the chosen and the rejected, ``(B, 2)``, in nats.

    ``e (B, 2)`` are velocity errors averaged over the latent. What DPO classifies is the margin,
    ``reward_chosen - reward_rejected``.
    """
    return -(beta / 2) * (errors - reference_errors)


def pair_errors(policy: Policy, batch: PairBatch) -> Tensor:
    """Mean squared velocity errors ``(B, 2)``: chosen, rejected; float32, from one forward pass."""
    num_pairs = len(batch.sigma)
    twice = torch.arange(num_pairs).repeat(2)
    latents = torch.cat([batch.chosen, batch.rejected])
    noise, sigma = batch.noise.repeat(2, 1, 1, 1), batch.sigma.repeat(2)
    velocity = policy.velocity(interpolate(latents, noise, sigma), sigma, batch.cond.select(twice))
    return velocity_error(velocity, latents, noise).view(2, num_pairs).T


@dataclass(frozen=True)
class DiffusionDPO:
    """The sigmoid loss on pairs::

        e(x)   = mean_D |v(x_t, sigma, c) - (noise - x)|^2
        margin = -(beta / 2) [(e_w - e_w_ref) - (e_l - e_l_ref)]
        L      = -(1 - eps) log sigmoid(margin) - eps log sigmoid(-margin)
                 + anchor_weight relu((beta / 2) (e_w - e_w_ref)) + sft_weight e_w

    The errors are means over the latent's D elements, as in Flow-GRPO's and Flow-Factory's DPO.
    On the sum scale ``beta_sum = beta / D``; the Qwen-Image report writes no 1/2, so its beta is
    half of this one.

    DPO is content to make both errors worse as long as the rejected one worsens faster, and its
    accuracy stays at 1 meanwhile. The anchor is what keeps the chosen image likely: the hinge
    costs nothing while the chosen's error is below the reference's, and from ``anchor_weight = 1``
    outweighs any push of the sigmoid above it. Watch ``error/chosen_delta``.
    """

    beta: float | None = 2000.0
    """On the mean scale; None when ``beta_sum`` is given."""
    beta_sum: float | None = None
    """On the sum scale; it is multiplied by the number of latent elements."""
    label_smoothing: float = 0.0
    """Assumed share of flipped pairs (cDPO), in [0, 0.5); 0 trusts every pick."""
    anchor_weight: float = 0.0
    """Weight of the hinge on the chosen's loss of implicit reward, in nats; 0 = no hinge."""
    sft_weight: float = 0.0
    """Weight of the chosen's velocity error itself; 0 = none."""

    def __post_init__(self) -> None:
        if (self.beta is None) == (self.beta_sum is None):
            raise ValueError(
                f"beta is {self.beta} and beta_sum is {self.beta_sum}; give exactly one, None "
                "for the other"
            )
        if not (self.beta or self.beta_sum or 0) > 0:
            raise ValueError(f"beta is {self.beta or self.beta_sum}; it must be above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 0.5)")
        if self.anchor_weight < 0 or self.sft_weight < 0:
            raise ValueError(
                f"anchor_weight is {self.anchor_weight} and sft_weight is {self.sft_weight}; "
                "neither may be negative"
            )

    def mean_beta(self, num_elements: int) -> float:
        """beta on the mean scale, for latents of ``num_elements``."""
        return self.beta if self.beta is not None else (self.beta_sum or 0.0) * num_elements

    def loss(self, policy: Policy, batch: PairBatch) -> LossOutput:
        if batch.reference_errors is None:
            with policy.reference():
                reference_errors = pair_errors(policy, batch)
        else:
            reference_errors = batch.reference_errors.to(batch.chosen.device)
        errors = pair_errors(policy, batch)
        rewards = implicit_rewards(
            errors, reference_errors, self.mean_beta(batch.chosen[0].numel())
        )
        losses = self.losses(errors, rewards)
        rewards = rewards.detach()
        margins = rewards[:, 0] - rewards[:, 1]
        chosen_delta = (errors[:, 0] - reference_errors[:, 0]).detach()
        return LossOutput(
            loss=weighted_mean(losses, batch.weights),
            metrics={
                "rewards/chosen": rewards[:, 0].mean(),
                "rewards/rejected": rewards[:, 1].mean(),
                "rewards/margins": margins.mean(),
                "rewards/accuracies": (margins > 0).float().mean(),
                "error/chosen": errors[:, 0].detach().mean(),
                "error/rejected": errors[:, 1].detach().mean(),
                "error/chosen_delta": chosen_delta.mean(),
            },
        )

    def losses(self, errors: Tensor, rewards: Tensor) -> Tensor:
        """Loss of each pair ``(B,)`` from its ``errors (B, 2)`` and implicit ``rewards (B, 2)``."""
        margins = rewards[:, 0] - rewards[:, 1]
        smoothing = self.label_smoothing
        losses = -(1 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins)
        losses = losses + self.anchor_weight * F.relu(-rewards[:, 0])
        return losses + self.sft_weight * errors[:, 0]
