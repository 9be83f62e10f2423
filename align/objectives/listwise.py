"""Preferences beyond pairs: a best and a worst of many images (Plackett-Luce), or single thumbs
(KTO).

Both learn from the implicit rewards of Diffusion-DPO, ``r(x) = -(beta / 2) (e(x) - e_ref(x))``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from align.mmdit.adapters.base import Conditioning
from align.mmdit.flow import interpolate, velocity_error
from align.objectives.base import LossOutput, by_sigma, mean_output, part_of
from align.objectives.preferences import anchor, implicit_rewards, kto
from align.policy import Policy
from rewards.losses import all_equal, best_then_worst


@dataclass(frozen=True)
class ListBatch:
    """B lists of up to K images; the images of a list share prompt, noise and sigma.

    The best image of a list stands first and the worst last; the order of those between is known
    where ``complete``.
    """

    latents: Tensor
    """``(N, C, h, w)``: the images of all lists, list after list."""
    mask: Tensor
    """``(B, K)`` bool with N times True, at the front of each row."""
    cond: Conditioning
    """Of B rows."""
    noise: Tensor
    """``(B, C, h, w)``."""
    sigma: Tensor
    """``(B,)``."""
    complete: Tensor
    """``(B,)`` bool: the whole order is known, not its ends alone."""
    equal: Tensor
    """``(B,)`` bool: no image was preferred; the order says nothing."""
    desirable: Tensor
    """``(B,)`` bool: the list is liked; read for single images alone."""
    reference_errors: Tensor | None = None
    """``(B, K)`` of `list_errors` under the reference; None computes them."""
    weights: Tensor | None = None
    """``(B,)``; None is 1 for each list."""


def list_errors(policy: Policy, batch: ListBatch) -> Tensor:
    """Mean squared velocity errors ``(B, K)``, 0 outside the mask; float32, one forward pass."""
    rows = batch.mask.nonzero()[:, 0]
    noise, sigma = batch.noise[rows], batch.sigma[rows]
    x_t = interpolate(batch.latents, noise, sigma)
    velocity = policy.velocity(x_t, sigma, batch.cond.select(rows))
    errors = velocity_error(velocity, batch.latents, noise)
    return errors.new_zeros(batch.mask.shape).masked_scatter(batch.mask, errors)


def list_reference_errors(policy: Policy, batch: ListBatch) -> Tensor:
    """`list_errors` of the reference: those stored, or computed where there are none."""
    if batch.reference_errors is not None:
        return batch.reference_errors.to(batch.latents.device)
    with policy.reference():
        return list_errors(policy, batch)


def plackett_luce(rewards: Tensor, mask: Tensor) -> Tensor:
    """``-log`` of the probability of a whole order, best first: ``(B,)`` in nats.

    ``sum_k [logsumexp(r_k, ..., r_K) - r_k]`` (Plackett 1975), ``rewards, mask (B, K)``.
    """
    filled = rewards.masked_fill(~mask, float("-inf"))
    rest = filled.flip(1).logcumsumexp(1).flip(1)
    return torch.where(mask, rest - rewards, 0).sum(1)


class ListObjective(ABC):
    """A loss on lists of images, from the errors of the policy and of its reference."""

    @abstractmethod
    def figures(
        self, batch: ListBatch, errors: Tensor, reference_errors: Tensor
    ) -> dict[str, Tensor]:
        """Loss and figures of each list ``(B,)`` from both models' errors ``(B, K)``."""

    def loss(self, policy: Policy, batch: ListBatch) -> LossOutput:
        figures = self.figures(
            batch, list_errors(policy, batch), list_reference_errors(policy, batch)
        )
        return mean_output(figures, batch.weights)


@dataclass(frozen=True)
class PlackettLuce(ListObjective):
    """Diffusion-DPO on whole lists: the likelihood of what the annotator said about all images.

    A best and a worst are chosen in turn, the best by ``softmax(r)`` and the worst of the others by
    ``softmax(-r)``; a known order is Plackett's and Luce's; "all equal" asks for equal rewards.
    With two images it is Diffusion-DPO.
    """

    beta: float
    """On the mean scale."""
    anchor_weight: float = 0.0
    """Weight of the hinge on the best's loss of implicit reward, in nats; 0 = no hinge."""
    anchor_tolerance: float = 0.0
    """Nats that the best's implicit reward may fall before the hinge pulls."""
    sft_weight: float = 0.0
    """Weight of the best's velocity error itself; 0 = none."""

    def losses(self, batch: ListBatch, errors: Tensor, rewards: Tensor) -> Tensor:
        """``(B,)`` from ``errors`` and implicit ``rewards``, both ``(B, K)``."""
        first = torch.zeros(len(errors), dtype=torch.long, device=errors.device)
        last = batch.mask.sum(1) - 1
        ends = best_then_worst(rewards, batch.mask, first, last)
        losses = torch.where(batch.complete, plackett_luce(rewards, batch.mask), ends)
        losses = losses + self.anchor_weight * anchor(rewards[:, 0], self.anchor_tolerance)
        losses = losses + self.sft_weight * errors[:, 0]
        return torch.where(batch.equal, all_equal(rewards, batch.mask), losses)

    def figures(
        self, batch: ListBatch, errors: Tensor, reference_errors: Tensor
    ) -> dict[str, Tensor]:
        rewards = implicit_rewards(errors, reference_errors, self.beta)
        last = (batch.mask.sum(1) - 1)[:, None]
        chosen, rejected = rewards[:, 0], rewards.gather(1, last).squeeze(1)
        losses, accuracies = self.losses(batch, errors, rewards), (chosen > rejected).float()
        delta = errors - reference_errors
        return {
            "loss": losses,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": accuracies,
            "error/chosen": errors[:, 0],
            "error/chosen_delta": delta[:, 0],
            "error/chosen_reference": reference_errors[:, 0],
            "error/margin_abs": (delta[:, 0] - delta.gather(1, last).squeeze(1)).abs(),
            **by_sigma("loss", losses, batch.sigma),
            **by_sigma("rewards/accuracies", accuracies, batch.sigma),
            **by_sigma("error/chosen_delta", delta[:, 0], batch.sigma),
        }


@dataclass(frozen=True)
class KTO(ListObjective):
    """Kahneman-Tversky optimisation on single images that were liked or not; see
    `preferences.kto`."""

    beta: float
    """On the mean scale."""
    reference_point: float = 0.0
    """z in nats, the same for all samples of a step."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def figures(
        self, batch: ListBatch, errors: Tensor, reference_errors: Tensor
    ) -> dict[str, Tensor]:
        """Loss and figures of each image ``(B,)`` from both models' errors ``(B, 1)``."""
        rewards = implicit_rewards(errors, reference_errors, self.beta)[:, 0]
        liked = batch.desirable
        weights = torch.where(liked, self.desirable_weight, self.undesirable_weight)
        losses = weights * kto(rewards, liked, self.reference_point)
        accuracies = torch.where(liked, rewards > 0, rewards < 0).float()
        return {
            "loss": losses,
            "rewards/mean": rewards,
            "rewards/accuracies": accuracies,
            **part_of("rewards/chosen", rewards, liked),
            **part_of("rewards/rejected", rewards, ~liked),
            **part_of("error/chosen_delta", (errors - reference_errors)[:, 0], liked),
            **part_of("error/chosen_reference", reference_errors[:, 0], liked),
            **by_sigma("loss", losses, batch.sigma),
            **by_sigma("rewards/accuracies", accuracies, batch.sigma),
        }
