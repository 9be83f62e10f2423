"""Diffusion-DPO for flow matching (arXiv 2311.12908), with an anchor on the chosen image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from align.mmdit.adapters.base import Conditioning
from align.mmdit.flow import (
    at_least_float32,
    interpolate,
    velocity_error,
    velocity_target,
)
from align.objectives.base import LossOutput, by_sigma, mean_output
from align.objectives.preferences import (
    MARGIN_LOSSES,
    anchor,
    implicit_rewards,
    preference_losses,
    tie_losses,
)
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
    rejected_noise: Tensor | None = None
    """``(B, C, h, w)`` where each image is mixed with the noise that it was drawn from (PNAPO,
    arXiv 2605.09433): ``noise`` is then the chosen's. None: the pair shares ``noise``."""
    region: Tensor | None = None
    """``(B, 1, h, w)`` weights of the latent's places in the errors; None: all count alike."""
    label_smoothing: Tensor | None = None
    """``(B,)`` chance that a pair is the wrong way round; None: the objective's own."""
    ties: Tensor | None = None
    """``(B,)`` bool, True where neither image was preferred; None: no ties."""


def pair_errors(policy: Policy, batch: PairBatch) -> Tensor:
    """Mean squared velocity errors ``(B, 2)``: chosen, rejected; float32, from one forward pass."""
    num_pairs = len(batch.sigma)
    twice = torch.arange(num_pairs).repeat(2)
    latents = torch.cat([batch.chosen, batch.rejected])
    if batch.rejected_noise is None:
        noise = batch.noise.repeat(2, 1, 1, 1)
    else:
        noise = torch.cat([batch.noise, batch.rejected_noise])
    sigma = batch.sigma.repeat(2)
    velocity = policy.velocity(interpolate(latents, noise, sigma), sigma, batch.cond.select(twice))
    if batch.region is None:
        errors = velocity_error(velocity, latents, noise)
    else:
        errors = region_error(velocity, latents, noise, batch.region.repeat(2, 1, 1, 1))
    return errors.view(2, num_pairs).T


def pair_reference_errors(policy: Policy, batch: PairBatch) -> Tensor:
    """`pair_errors` of the reference: those stored, or computed where there are none."""
    if batch.reference_errors is not None:
        return batch.reference_errors.to(batch.chosen.device)
    with policy.reference():
        return pair_errors(policy, batch)


def region_error(velocity: Tensor, x_0: Tensor, noise: Tensor, region: Tensor) -> Tensor:
    """Squared error of the velocity averaged with the weights ``region (B, 1, h, w)``: ``(B,)``.

    A mean over the region: its size does not change the scale on which beta works.
    """
    target = velocity_target(at_least_float32(x_0), at_least_float32(noise))
    squares = (at_least_float32(velocity) - target).square()
    weights = at_least_float32(region).expand_as(squares)
    return (squares * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)


@dataclass(frozen=True)
class DiffusionDPO:
    """A preference loss on pairs::

        e(x)   = mean_D |v(x_t, sigma, c) - (noise - x)|^2
        r(x)   = -(beta / 2) (e(x) - e_ref(x))
        margin = r(x_w) - rejected_weight r(x_l)
        L      = (1 - eps) f(margin) + eps f(-margin)
                 + anchor_weight relu(-r(x_w) - anchor_tolerance) + sft_weight e(x_w)

    with ``f(m) = -log sigmoid(m)`` for Diffusion-DPO, and others in `align.objectives.preferences`.
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
    loss_type: str = "sigmoid"
    """``sigmoid``, ``hinge`` or ``ipo``: f."""
    label_smoothing: float = 0.0
    """Assumed share of flipped pairs (cDPO), in [0, 0.5); 0 trusts every pick."""
    tie_threshold: float = 0.0
    """Half the width, in nats, of the margins that count as equal; 0: a batch may hold no ties."""
    rejected_weight: float = 1.0
    """Weight of the rejected's reward in the margin; below 1 the chosen counts for more."""
    anchor_weight: float = 0.0
    """Weight of the hinge on the chosen's loss of implicit reward, in nats; 0 = no hinge."""
    anchor_tolerance: float = 0.0
    """Nats that the chosen's implicit reward may fall before the hinge pulls."""
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
        if self.loss_type not in MARGIN_LOSSES:
            raise ValueError(
                f"loss_type is {self.loss_type!r}; choices: {', '.join(MARGIN_LOSSES)}"
            )
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must lie in [0, 0.5)")
        if self.tie_threshold < 0 or (self.tie_threshold and self.loss_type != "sigmoid"):
            raise ValueError(
                f"tie_threshold is {self.tie_threshold} with loss_type {self.loss_type!r}; it must "
                "not be negative, and only the sigmoid has a probability of a tie"
            )
        if not 0 < self.rejected_weight <= 1:
            raise ValueError(f"rejected_weight is {self.rejected_weight}; it must lie in (0, 1]")
        if min(self.anchor_weight, self.anchor_tolerance, self.sft_weight) < 0:
            raise ValueError(
                f"anchor_weight is {self.anchor_weight}, anchor_tolerance {self.anchor_tolerance} "
                f"and sft_weight {self.sft_weight}; none may be negative"
            )

    def mean_beta(self, num_elements: int) -> float:
        """beta on the mean scale, for latents of ``num_elements``."""
        return self.beta if self.beta is not None else (self.beta_sum or 0.0) * num_elements

    def loss(self, policy: Policy, batch: PairBatch) -> LossOutput:
        reference_errors = pair_reference_errors(policy, batch)
        figures = self.figures(batch, pair_errors(policy, batch), reference_errors)
        return mean_output(figures, batch.weights)

    def figures(
        self, batch: PairBatch, errors: Tensor, reference_errors: Tensor
    ) -> dict[str, Tensor]:
        """Loss and figures of each pair ``(B,)`` from both models' errors ``(B, 2)``."""
        rewards = implicit_rewards(
            errors, reference_errors, self.mean_beta(batch.chosen[0].numel())
        )
        losses = self.losses(errors, rewards, batch.label_smoothing, batch.ties)
        margins = rewards[:, 0] - rewards[:, 1]
        accuracies = (margins > 0).float()
        delta = errors - reference_errors
        return {
            "loss": losses,
            "rewards/chosen": rewards[:, 0],
            "rewards/rejected": rewards[:, 1],
            "rewards/margins": margins,
            "rewards/accuracies": accuracies,
            "error/chosen": errors[:, 0],
            "error/rejected": errors[:, 1],
            "error/chosen_delta": delta[:, 0],
            "error/chosen_reference": reference_errors[:, 0],
            "error/margin_abs": (delta[:, 0] - delta[:, 1]).abs(),
            **by_sigma("loss", losses, batch.sigma),
            **by_sigma("rewards/accuracies", accuracies, batch.sigma),
            **by_sigma("error/chosen_delta", delta[:, 0], batch.sigma),
        }

    def losses(
        self,
        errors: Tensor,
        rewards: Tensor,
        label_smoothing: Tensor | None = None,
        ties: Tensor | None = None,
    ) -> Tensor:
        """Loss of each pair ``(B,)`` from its ``errors (B, 2)`` and implicit ``rewards (B, 2)``.

        Args:
            label_smoothing: ``(B,)``, instead of the objective's own.
            ties: ``(B,)`` bool; a tie has neither anchor nor SFT term, for it has no chosen.
        """
        margins = rewards[:, 0] - self.rejected_weight * rewards[:, 1]
        smoothing = self.label_smoothing if label_smoothing is None else label_smoothing
        losses = preference_losses(margins, self.loss_type, smoothing, self.tie_threshold)
        losses = losses + self.anchor_weight * anchor(rewards[:, 0], self.anchor_tolerance)
        losses = losses + self.sft_weight * errors[:, 0]
        if ties is None:
            return losses
        if not self.tie_threshold:
            raise ValueError("the batch holds ties; the objective needs a tie_threshold above 0")
        tied = rewards[:, 0] - rewards[:, 1]
        return torch.where(ties, tie_losses(tied, self.tie_threshold), losses)
