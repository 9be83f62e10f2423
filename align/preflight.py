"""Refuses to start GRPO on a rollout from which nothing, or the wrong thing, would be learnt."""

from __future__ import annotations

import torch
from torch import Tensor

from align.advantage import Advantages
from align.engine import Engine
from align.objectives.flow_grpo import FlowGRPO, TransitionBatch
from align.policy import Policy
from align.sde import gaussian_kl

__all__ = ["PreflightError", "check_kl", "check_replay", "check_rewards"]


class PreflightError(ValueError):
    """The first rollout is not fit to train on; the message has the figures."""


def check_rewards(advantages: Advantages, fraction_equal: float) -> dict[str, float]:
    """Rewards must differ within at least one group.

    Args:
        fraction_equal: share of groups, over all processes, whose rewards are all equal.
    """
    figures = {
        "reward": advantages.reward,
        "reward_std": advantages.reward_std,
        "frac_reward_zero_std": fraction_equal,
    }
    if fraction_equal >= 1:
        raise PreflightError(
            f"the rewards do not vary within any group (mean {advantages.reward:.6g}, mean "
            f"deviation {advantages.reward_std:.3g}): the policy could learn nothing from them"
        )
    return figures


@torch.no_grad()
def check_replay(
    objective: FlowGRPO, policy: Policy, batch: TransitionBatch, tolerance: float
) -> dict[str, float]:
    """A step replayed in the batch that trains, and alone, must have the probability it had.

    Args:
        tolerance: bound on the log-ratio in nats; 0 asks for a ratio of exactly 1.
    """
    figures = {"log_ratio_max": _log_ratio(objective, policy, batch)}
    alone = TransitionBatch(
        x_t=batch.x_t[:1],
        x_next=batch.x_next[:1],
        sigma=batch.sigma[:1],
        sigma_next=batch.sigma_next[:1],
        cond=batch.cond.select([0]),
        old_log_prob=batch.old_log_prob[:1],
        advantages=batch.advantages[:1],
    )
    figures["log_ratio_alone"] = _log_ratio(objective, policy, alone)
    if figures["log_ratio_max"] > tolerance:
        raise PreflightError(
            f"replaying the rollout gives log-ratios up to {figures['log_ratio_max']:.3g} nats "
            f"where {tolerance:g} is allowed ({figures['log_ratio_alone']:.3g} for a step alone): "
            "the policy that trains is not the one that drew. If only the batch size differs, set "
            "recompute_log_probs, or raise ratio_tolerance"
        )
    return figures


def check_kl(
    objective: FlowGRPO, policy: Policy, batch: TransitionBatch, engine: Engine
) -> dict[str, float]:
    """The KL must have a gradient.

    At the start the policy is its reference, where KL and gradient are zero and a KL that is cut
    off from the policy cannot be told from a sound one. So the reference is moved by one
    hundredth of a standard deviation.
    """
    with torch.enable_grad():
        mean, std = objective.step(policy, batch)
        with policy.reference():
            reference_mean, _ = objective.step(policy, batch)
        distance = 0.01 * std.view(-1, 1, 1, 1)
        kl = gaussian_kl(mean, reference_mean + distance, std).mean()
        norm = _gradient_norm(kl, mean, policy, engine) if kl.requires_grad else 0.0
    if not norm > 0:
        raise PreflightError(
            f"the KL to the reference has a gradient of norm {norm:g} at a KL of {kl.item():.3g} "
            "nats: it would not hold the policy back"
        )
    return {"kl_gradient_norm": norm}


def _gradient_norm(kl: Tensor, mean: Tensor, policy: Policy, engine: Engine) -> float:
    # DeepSpeed's shards take gradients only in its own backward pass: there, the way from the KL to
    # the network's output is what can be looked at.
    wanted = [mean] if engine.is_deepspeed else policy.trainable_parameters()
    gradients = torch.autograd.grad(kl, wanted, allow_unused=True)
    return sum(float(g.double().square().sum()) for g in gradients if g is not None) ** 0.5


def _log_ratio(objective: FlowGRPO, policy: Policy, batch: TransitionBatch) -> float:
    log_prob = objective.log_prob(policy, batch)
    return float((log_prob - batch.old_log_prob).abs().max())
