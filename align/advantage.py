"""Group-relative advantages (GRPO, arXiv 2402.03300), without a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Advantages:
    """What the rewards of complete groups come to."""

    values: Tensor
    """``(groups, group_size)`` float32; 0 in dropped groups."""
    keep: Tensor
    """``(groups,)`` bool; False where all rewards are equal: nothing to learn from."""
    reward: float
    """Mean reward."""
    reward_std: float
    """Mean over the groups of the deviation within a group."""
    frac_reward_zero_std: float
    """Share of dropped groups."""


def group_advantages(rewards: Tensor, min_std: float = 1e-4, clip: float = 5.0) -> Advantages:
    """``(r - group mean) / group std`` of ``rewards (groups, group_size)``.

    Args:
        rewards: One row holds all rewards of one prompt.
        min_std: Groups whose standard deviation is not above it are dropped, in units of the
            reward: dividing by a tiny number would turn rounding into advantages.
        clip: Bound on the advantages' magnitude.

    Raises:
        ValueError: Wrong shape, a group of one, or a reward that is not finite.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)}; expected (groups, group_size) with at "
            "least 2 in a group"
        )
    rewards = rewards.double()
    if not rewards.isfinite().all():
        row, column = (~rewards.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"reward of sample {column} in group {row} is {rewards[row, column].item()}; "
            "a finite number was expected"
        )
    mean = rewards.mean(1, keepdim=True)
    std = rewards.std(1, keepdim=True, correction=0)
    keep = std > min_std
    values = torch.where(keep, (rewards - mean) / std.clamp_min(min_std), torch.zeros_like(rewards))
    return Advantages(
        values=values.clamp(-clip, clip).float(),
        keep=keep.squeeze(1),
        reward=rewards.mean().item(),
        reward_std=std.mean().item(),
        frac_reward_zero_std=1 - keep.double().mean().item(),
    )
