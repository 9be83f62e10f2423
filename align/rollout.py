"""Images drawn by the policy, with the steps that it is then trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.config import RolloutConfig
from align.data.batches import EMPTY_PROMPT
from align.data.features import Features
from align.mmdit.adapters import Conditioning
from align.mmdit.flow import seeded_noise_batch, seeded_uniform
from align.objectives.flow_grpo import TransitionBatch
from align.policy import Policy
from align.sampling import Trajectory, sample_sde
from annotate.records import Prompt

__all__ = ["Group", "Rollout", "draw_rollout", "window_start"]


@dataclass(frozen=True)
class Group:
    """One prompt, of which several images are drawn and compared."""

    prompt: Prompt
    epoch: int
    """How often the prompt was drawn before."""
    size: int

    @property
    def id(self) -> str:
        return f"{self.epoch}/{self.prompt.id}"

    def sample_ids(self) -> list[str]:
        return [f"{self.id}/{i}" for i in range(self.size)]


@dataclass(frozen=True)
class Rollout:
    """N images, group after group, each with its W stochastic steps. On the policy's device."""

    groups: list[Group]
    sample_ids: list[str]
    latents: Tensor
    """``(N, C, h, w)`` at sigma 0, normalised, float32."""
    cond: Conditioning
    """Of N rows, padded alike."""
    x_t: Tensor
    """``(N, W, C, h, w)`` float32, before each step of the window."""
    x_next: Tensor
    """``(N, W, C, h, w)`` float32, after it."""
    sigma: Tensor
    """``(N, W)``."""
    sigma_next: Tensor
    """``(N, W)``."""
    log_prob: Tensor
    """``(N, W)`` float64, nats, under the velocity that drew the step."""

    def transitions(
        self,
        images: Sequence[int],
        steps: Sequence[int],
        advantages: Tensor,
        log_prob: Tensor | None = None,
    ) -> TransitionBatch:
        """Step ``steps[i]`` of image ``images[i]``; ``advantages (N,)``, ``log_prob (N, W)``."""
        rows, columns = torch.as_tensor(images), torch.as_tensor(steps)
        known = self.log_prob if log_prob is None else log_prob
        return TransitionBatch(
            x_t=self.x_t[rows, columns],
            x_next=self.x_next[rows, columns],
            sigma=self.sigma[rows, columns],
            sigma_next=self.sigma_next[rows, columns],
            cond=self.cond.select(rows),
            old_log_prob=known[rows, columns],
            advantages=advantages[rows],
        )


@torch.no_grad()
def draw_rollout(
    policy: Policy,
    features: Features,
    groups: Sequence[Group],
    config: RolloutConfig,
    seed: int,
    iteration: int,
) -> Rollout:
    """Draw all images of ``groups``; every group has the same size.

    The sampler is the Euler ODE except in a window of ``config.window`` stochastic steps, which
    all groups of an iteration share (MixGRPO, arXiv 2507.21802). Noise and window follow from the
    seed, the iteration and the samples' names alone.
    """
    per_batch = max(1, config.batch_size // groups[0].size)
    first = window_start(config, seed, iteration)
    window = range(first, first + config.window)
    parts = [
        _draw(policy, features, groups[start : start + per_batch], config, seed, window)
        for start in range(0, len(groups), per_batch)
    ]
    conds, trajectories = zip(*parts, strict=True)
    sigma, sigma_next = trajectories[0].sigma, trajectories[0].sigma_next
    num_images = sum(group.size for group in groups)
    return Rollout(
        groups=list(groups),
        sample_ids=[i for group in groups for i in group.sample_ids()],
        latents=torch.cat([part.latents for part in trajectories]),
        cond=Conditioning.cat(conds),
        x_t=torch.cat([part.x_t.transpose(0, 1) for part in trajectories]),
        x_next=torch.cat([part.x_next.transpose(0, 1) for part in trajectories]),
        sigma=sigma.expand(num_images, -1),
        sigma_next=sigma_next.expand(num_images, -1),
        log_prob=torch.cat([part.log_prob.T for part in trajectories]),
    )


def _draw(
    policy: Policy,
    features: Features,
    groups: Sequence[Group],
    config: RolloutConfig,
    seed: int,
    window: range,
) -> tuple[Conditioning, Trajectory]:
    ids = [i for group in groups for i in group.sample_ids()]
    cond = features.conditioning([g.prompt.text for g in groups for _ in range(g.size)])
    negative = None
    if config.guidance_scale > 1:
        negative = features.conditioning([EMPTY_PROMPT] * len(ids))
    shape = policy.adapter.latent_shape(config.height, config.width)
    step_noise = torch.stack(
        [seeded_noise_batch(seed, [f"sde/{i}" for i in ids], [s] * len(ids), shape) for s in window]
    )
    trajectory = sample_sde(
        policy.adapter,
        policy.transformer,
        cond,
        seeded_noise_batch(seed, ids, [0] * len(ids), shape).to(features.device),
        config.num_steps,
        noise_level=config.noise_level,
        sde_steps=window,
        step_noise=step_noise.to(features.device),
        guidance_scale=config.guidance_scale,
        negative=negative,
    )
    return cond, trajectory


def window_start(config: RolloutConfig, seed: int, iteration: int) -> int:
    """First stochastic step of an iteration's rollout."""
    first, end = config.window_bounds
    choices = end - first - config.window + 1
    return first + int(seeded_uniform(seed, "window", iteration).item() * choices)
