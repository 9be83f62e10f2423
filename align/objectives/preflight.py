"""Checks that refuse a Flow-GRPO run whose gradients would mean nothing."""

from __future__ import annotations

import torch

from align.objectives.flow_grpo import FlowGRPO, TransitionBatch
from align.policy import Policy
from align.sde import gaussian_kl


class PreflightError(ValueError):
    """A rollout and its replay disagree, or a gradient is missing."""


def preflight(
    objective: FlowGRPO,
    policy: Policy,
    batch: TransitionBatch,
    *,
    max_log_ratio: float = 0.01,
    max_batch_difference: float = 1e-3,
) -> dict[str, float]:
    """Replay recorded steps before the first update and raise `PreflightError` if

    - a log-ratio is not 0 (to ``max_log_ratio`` nats): latents were rounded after drawing,
      guidance was left in, or kernels depend on the batch;
    - one sample alone and in its batch give velocities that differ by more than
      ``max_batch_difference`` of their size: a padding mask is ignored;
    - with ``beta > 0``, the KL has no gradient: it was computed without one.

    No parameter's ``grad`` is touched. Returns what was measured.
    """
    with torch.no_grad():
        log_ratio = objective.log_prob(policy, batch) - batch.old_log_prob.to(batch.x_t.device)
        together = policy.velocity(batch.x_t, batch.sigma, batch.cond)
        alone = policy.velocity(batch.x_t[:1], batch.sigma[:1], batch.cond.select([0]).trim())
    worst = log_ratio.abs().max().item()
    if not worst <= max_log_ratio:
        raise PreflightError(
            f"replaying a rollout gives a log-ratio of {worst:.3g} nats where 0 is right "
            f"(at most {max_log_ratio}): the policy that drew it is not the one that trains"
        )
    difference = ((alone - together[:1]).norm() / together[:1].norm()).item()
    if not difference <= max_batch_difference:
        raise PreflightError(
            f"a sample's velocity changes by {difference:.3g} of its size with its batch "
            f"(at most {max_batch_difference}): check the padding mask"
        )
    measured = {"preflight/log_ratio": worst, "preflight/batch_difference": difference}
    if objective.beta > 0:
        measured["preflight/kl_grad_norm"] = _kl_grad_norm(objective, policy, batch)
    return measured


def _kl_grad_norm(objective: FlowGRPO, policy: Policy, batch: TransitionBatch) -> float:
    # At the start the KL and its gradient are 0, so the reference is moved by one std. The gradient
    # is taken at the mean: parameters may be sharded, and they are what makes the mean need one.
    with policy.reference():
        reference_mean, std = objective.step(policy, batch)
    mean, _ = objective.step(policy, batch)
    if not mean.requires_grad:
        raise PreflightError("the KL to the reference carries no gradient")
    kl = gaussian_kl(mean, reference_mean + std.view(-1, 1, 1, 1), std).mean()
    norm = torch.autograd.grad(kl, mean)[0].double().norm().item()
    if not norm > 0:
        raise PreflightError(f"the KL's gradient has norm {norm}; it must be above 0")
    return norm
