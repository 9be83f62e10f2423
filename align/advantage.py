"""Group-relative advantages (GRPO, arXiv 2402.03300), without a model.

All take the group's mean off. What they divide by differs: the group's own deviation, that of all
rewards of the step (``scale``), or, for several rewards, each by its own group deviation first
(GDPO, arXiv 2601.05242).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Advantages:
    """What the rewards of complete groups come to."""

    values: Tensor
    """``(groups, group_size)`` float32; 0 in dropped groups and for samples without a reward."""
    keep: Tensor
    """``(groups,)`` bool; False where all rewards are nearly equal, or fewer than two known:
    nothing to learn from."""
    reward: float
    """Mean of the known rewards."""
    reward_std: float
    """Mean over the groups of the deviation within a group."""
    frac_reward_zero_std: float
    """Share of dropped groups."""


def group_advantages(
    rewards: Tensor,
    min_std: float = 1e-4,
    clip: float = 5.0,
    known: Tensor | None = None,
    min_range: float = 0.0,
    scale: float | None = None,
) -> Advantages:
    """``(r - group mean) / group std`` of ``rewards (groups, group_size)``.

    Args:
        rewards: One row holds all rewards of one prompt.
        min_std: Groups whose standard deviation is not above it are dropped, in units of the
            reward: dividing by a tiny number would turn rounding into advantages.
        clip: Bound on the advantages' magnitude.
        known: ``(groups, group_size)`` bool; samples without a reward are left out of their
            group's mean and deviation. None: all are known.
        min_range: Groups whose best and worst are not further apart are dropped too; 0: none.
        scale: Divide by this instead of the group's own deviation.

    Raises:
        ValueError: Wrong shape, a group of one, a known reward that is not finite, or none known.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)}; expected (groups, group_size) with at "
            "least 2 in a group"
        )
    known = torch.ones_like(rewards, dtype=torch.bool) if known is None else known
    if known.shape != rewards.shape or not known.any():
        raise ValueError(
            f"known has shape {tuple(known.shape)} and {int(known.sum())} true values; expected "
            f"{tuple(rewards.shape)} and at least one"
        )
    rewards = rewards.double()
    if not rewards[known].isfinite().all():
        row, column = (known & ~rewards.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"reward of sample {column} in group {row} is {rewards[row, column].item()}; "
            "a finite number was expected"
        )
    rewards = rewards.masked_fill(~known, 0.0)
    count = known.sum(1, keepdim=True).clamp_min(1)
    mean = rewards.sum(1, keepdim=True) / count
    deviation = (rewards - mean).masked_fill(~known, 0.0)
    std = (deviation.square().sum(1, keepdim=True) / count).sqrt()
    keep = std > min_std
    if min_range > 0:
        highest = rewards.masked_fill(~known, -math.inf).amax(1, keepdim=True)
        lowest = rewards.masked_fill(~known, math.inf).amin(1, keepdim=True)
        keep = keep & (highest - lowest > min_range)
    divisor = std.clamp_min(min_std) if scale is None else max(scale, min_std)
    values = torch.where(keep, deviation / divisor, torch.zeros_like(rewards))
    return Advantages(
        values=values.clamp(-clip, clip).float(),
        keep=keep.squeeze(1),
        reward=rewards[known].mean().item(),
        reward_std=std.mean().item(),
        frac_reward_zero_std=1 - keep.double().mean().item(),
    )


def decoupled_rewards(
    rewards: Mapping[str, Tensor], weights: Mapping[str, float], known: Tensor | None = None
) -> Tensor:
    """GDPO's sum of rewards that were each brought to standard scores within their group.

    ``sum_k w_k (r_k - group mean_k) / group std_k``: a reward of small spread then counts for as
    much as one of large spread, and two of different scales do not drown each other. The result,
    ``(groups, group_size)``, is a reward; its advantages are to be taken with the step's deviation.

    Args:
        rewards: By name, each ``(groups, group_size)``.
        weights: By name; empty weighs all alike.
        known: As in `group_advantages`.
    """
    weights = weights or dict.fromkeys(rewards, 1.0)
    scores = [
        w * group_advantages(rewards[name], clip=math.inf, known=known).values
        for name, w in weights.items()
    ]
    return torch.stack(scores).sum(0) / sum(weights.values())
