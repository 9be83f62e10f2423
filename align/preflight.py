"""Refuses to start a run from which nothing, or the wrong thing, would be learnt.

Each check runs once, on the real configuration and its first batch, before the first step. It
raises `PreflightError` with the figure found and the one allowed, on all processes alike, and
returns what it measured for run.json. Weights and gradients are left as they were, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from align.advantage import Advantages
from align.engine import BatchPlan, Engine
from align.mmdit.adapters import Conditioning
from align.objectives.flow_grpo import FlowGRPO, TransitionBatch
from align.policy import Policy
from align.rollout import Rollout
from align.sde import gaussian_kl

__all__ = [
    "PreflightError",
    "check_accumulation",
    "check_batch_size",
    "check_groups",
    "check_kl",
    "check_margins",
    "check_ranks",
    "check_replay",
    "check_rewards",
    "check_weights",
]

NUDGE = 1e-3
"""How far weights are moved to see whether the output follows."""


class PreflightError(ValueError):
    """The run is not fit to start; the message has the figures."""


# Of every run -------------------------------------------------------------------------------------


def check_ranks(engine: Engine, policy: Policy) -> dict[str, float]:
    """Processes that each hold all weights must hold the same ones.

    Shards differ by design and are left out.
    """
    if engine.layout.shards_weights or engine.world == 1:
        return {}
    sums = [p.detach().double().sum() for p in policy.trainable_parameters()]
    sums += [p.detach().double().square().sum() for p in policy.trainable_parameters()]
    rows = engine.gather(torch.stack(sums)[None])
    difference = float((rows - rows[:1]).abs().max())
    if difference > 0:
        ranks = (rows != rows[:1]).any(1).nonzero().flatten().tolist()
        raise PreflightError(
            f"the weights of process {ranks[0]} differ from those of process 0 (a parameter's sum "
            f"by {difference:.3g}): each would train a model of its own"
        )
    return {"rank_difference": difference}


def check_accumulation(engine: Engine, plan: BatchPlan, units: int, what: str) -> dict[str, float]:
    """The gradients of one step must be accumulated over all that the step trains on.

    Args:
        units: what one optimizer step trains on, over all processes.
        what: their name, for the message.
    """
    steps = engine.accelerator.gradient_accumulation_steps
    counted = plan.micro * steps * engine.world
    if counted != units:
        raise PreflightError(
            f"an optimizer step would see {counted} {what} ({plan.micro} a micro-batch, {steps} "
            f"accumulated, {engine.world} processes) where it has {units}"
        )
    return {"accumulated": float(steps)}


@torch.no_grad()
def check_weights(
    engine: Engine, policy: Policy, x_t: Tensor, sigma: Tensor, cond: Conditioning
) -> dict[str, float]:
    """Moving the trained weights must move the output: an adapter that is frozen or bound to
    nothing, or a stale copy that computes, learns without effect."""
    before = policy.velocity(x_t, sigma, cond).float()
    with engine.nudged(NUDGE):
        moved = policy.velocity(x_t, sigma, cond).float()
    change = _worst(engine, -float((moved - before).norm() / before.norm()))
    if not change < 0:
        raise PreflightError(
            f"moving {engine.num_trained} trained weights by {NUDGE:g} changes the model's output "
            f"by {-change:g} of its size: what is trained is not what computes"
        )
    return {"weights_move_output": -change}


@torch.no_grad()
def check_batch_size(
    engine: Engine,
    policy: Policy,
    x_t: Tensor,
    sigma: Tensor,
    cond: Conditioning,
    tolerance: float,
) -> dict[str, float]:
    """The sample with the shortest prompt, alone and without padding, must give the velocity that
    it has in its batch.

    Args:
        tolerance: bound on the difference as a part of the velocity's size.
    """
    lengths = torch.ones(len(sigma)) if cond.mask is None else cond.mask.sum(1)
    row = int(lengths.argmin())
    together = policy.velocity(x_t, sigma, cond)[row].float()
    one = slice(row, row + 1)
    alone = policy.velocity(x_t[one], sigma[one], cond.select([row]).trim())[0].float()
    difference = _worst(engine, float((alone - together).norm() / together.norm()))
    if not difference <= tolerance:
        raise PreflightError(
            f"a sample's velocity changes by {difference:.3g} of its size with its batch (at most "
            f"{tolerance:g} is allowed): the padding of its prompt leaks into it, or kernels "
            "depend on the batch more than batch_tolerance allows"
        )
    return {"batch_difference": difference}


# Of runs on stored preferences --------------------------------------------------------------------


def check_margins(engine: Engine, rewards: Tensor, tolerance: float) -> dict[str, float]:
    """Before the first step the policy is its reference: implicit rewards must be 0.

    Args:
        rewards: of the first batch, in nats, from stored reference errors.
        tolerance: bound on their magnitude; with the shapes and kernels of training they are 0.
    """
    worst = _worst(engine, float(rewards.abs().max()))
    if not worst <= tolerance:
        raise PreflightError(
            f"before the first step an implicit reward is {worst:.3g} nats where 0 is right and "
            f"{tolerance:g} is allowed: the stored reference errors are those of another model, or "
            "batch shapes or kernels differ (reference.tolerance)"
        )
    return {"reward_max": worst}


# Of runs on rollouts ------------------------------------------------------------------------------


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


def check_groups(rollout: Rollout) -> dict[str, float]:
    """Images that are compared must answer one prompt and have met the same noise.

    Two groups of one name would be scored as one; a window of a sample's own makes its reward
    incomparable with the others', and the run collapses after some dozens of steps.
    """
    names = [group.id for group in rollout.groups]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PreflightError(f"two groups of a rollout are named {twice!r}: they would be merged")
    size = rollout.groups[0].size
    levels = rollout.sigma.view(len(names), size, -1)
    if (levels != levels[:, :1]).any():
        group = int((levels != levels[:, :1]).flatten(1).any(1).nonzero()[0])
        raise PreflightError(
            f"the images of group {names[group]!r} have stochastic steps at different noise levels "
            f"({levels[group].tolist()}): all of a group must share their window"
        )
    return {"groups": float(len(names))}


@torch.no_grad()
def check_replay(
    objective: FlowGRPO,
    policy: Policy,
    batches: Sequence[TransitionBatch],
    engine: Engine,
    tolerance: float,
) -> dict[str, Any]:
    """A step replayed in the batch that trains must have the probability it had; so alone.

    Args:
        batches: that hold every step of the window at least once.
        tolerance: bound on the log-ratio in nats; 0 asks for a ratio of exactly 1.
    """
    by_sigma: dict[float, float] = {}
    for batch in batches:
        ratios = (objective.log_prob(policy, batch) - batch.old_log_prob).abs().tolist()
        for sigma, ratio in zip(batch.sigma.tolist(), ratios, strict=True):
            by_sigma[sigma] = max(by_sigma.get(sigma, 0.0), ratio)
    by_sigma = {sigma: _worst(engine, ratio) for sigma, ratio in sorted(by_sigma.items())}
    batch = batches[0]
    alone = objective.log_prob(policy, batch.first()) - batch.old_log_prob[:1]
    sigma, worst = max(by_sigma.items(), key=lambda item: item[1])
    figures = {
        "log_ratio_max": worst,
        "log_ratio_alone": _worst(engine, float(alone.abs().max())),
        "log_ratio_by_sigma": {f"{sigma:.4f}": ratio for sigma, ratio in by_sigma.items()},
    }
    if not worst <= tolerance:
        raise PreflightError(
            f"replaying the rollout gives log-ratios up to {worst:.3g} nats where {tolerance:g} is "
            f"allowed (at sigma {sigma:.4f}; {figures['log_ratio_alone']:.3g} for a step alone): "
            "the policy that trains is not the one that drew. If only the batch size differs, set "
            "recompute_log_probs, or raise ratio_tolerance"
        )
    return figures


def check_kl(
    objective: FlowGRPO, policy: Policy, batch: TransitionBatch, engine: Engine
) -> dict[str, float]:
    """The KL must have a gradient.

    At the start the policy is its reference, where KL and gradient are zero and a KL that is cut
    off from the policy cannot be told from a sound one.
    """
    # Shards take gradients only in the backward pass of DeepSpeed or FSDP2: there, the way from the
    # KL to the network's output is what can be looked at.
    look = _kl_in_loss if engine.layout.has_graph_of_parameters else _kl_from_mean
    with torch.enable_grad():
        kl, gradients = look(objective, policy, batch, engine)
    squares = [float(g.double().square().sum()) for g in gradients if g is not None]
    norm = -_worst(engine, -(sum(squares) ** 0.5))
    if not norm > 0:
        raise PreflightError(
            f"the KL to the reference has a gradient of norm {norm:g} at a KL of {kl:.3g} "
            "nats: it would not hold the policy back"
        )
    return {"kl_gradient_norm": norm}


Gradients = Sequence[Tensor | None]


def _kl_in_loss(
    objective: FlowGRPO, policy: Policy, batch: TransitionBatch, engine: Engine
) -> tuple[float, Gradients]:
    """Of the loss itself, which is its KL where all advantages are 0, at weights that were moved a
    little; with respect to the velocities."""
    still = replace(batch, advantages=torch.zeros_like(batch.advantages))
    watched: Any = _Watched(policy)
    with engine.nudged(NUDGE):
        found = objective.loss(watched, still)
        kl = float(found.metrics["kl"])
        if not (watched.velocities and found.loss.requires_grad):
            return kl, ()
        return kl, torch.autograd.grad(found.loss, watched.velocities, allow_unused=True)


def _kl_from_mean(
    objective: FlowGRPO, policy: Policy, batch: TransitionBatch, engine: Engine
) -> tuple[float, Gradients]:
    """To a reference that is moved by one hundredth of a standard deviation, with respect to the
    step's mean."""
    mean, std = objective.step(policy, batch)
    with policy.reference():
        reference_mean, _ = objective.step(policy, batch)
    kl = gaussian_kl(mean, reference_mean + 0.01 * std.view(-1, 1, 1, 1), std).mean()
    return kl.item(), torch.autograd.grad(kl, [mean]) if kl.requires_grad else ()


class _Watched:
    """A policy as objectives see it, whose velocities with a gradient are kept."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.reference = policy.reference
        self.velocities: list[Tensor] = []

    def velocity(self, *asked: Any) -> Tensor:
        velocity = self._policy.velocity(*asked)
        if velocity.requires_grad:  # the reference's has none
            self.velocities.append(velocity)
        return velocity


def _worst(engine: Engine, value: float) -> float:
    """The largest of all processes: what one of them finds, all refuse."""
    return float(engine.gather(torch.tensor([value], dtype=torch.float64)).max())
