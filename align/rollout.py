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
from align.mmdit.flow import seeded_noise, seeded_noise_batch, seeded_uniform
from align.objectives.flow_grpo import TransitionBatch
from align.policy import Policy
from align.sampling import guided_velocity
from align.sde import gaussian_log_prob, sde_step
from annotate.records import Prompt

__all__ = ["Group", "Rollout", "draw_rollout"]


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
    policy: Policy, features: Features, groups: Sequence[Group], config: RolloutConfig, seed: int
) -> Rollout:
    """Draw all images of ``groups``; every group has the same size.

    The sampler is the Euler ODE except in a window of ``config.window`` steps, where it is the
    stochastic step of `align.sde`; a group's images share the window (MixGRPO, arXiv 2507.21802).
    Noise and window follow from the seed and the sample's name alone.
    """
    parts = []
    per_batch = max(1, config.batch_size // groups[0].size)
    for start in range(0, len(groups), per_batch):
        parts.append(_draw(policy, features, groups[start : start + per_batch], config, seed))
    if len(parts) == 1:
        return parts[0]
    tensors = ("latents", "x_t", "x_next", "sigma", "sigma_next", "log_prob")
    return Rollout(
        groups=list(groups),
        sample_ids=[i for part in parts for i in part.sample_ids],
        cond=Conditioning.cat([part.cond for part in parts]),
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in tensors},
    )


def _draw(
    policy: Policy, features: Features, groups: Sequence[Group], config: RolloutConfig, seed: int
) -> Rollout:
    adapter, device = policy.adapter, features.device
    ids = [i for group in groups for i in group.sample_ids()]
    prompts = [group.prompt.text for group in groups for _ in range(group.size)]
    cond = features.conditioning(prompts)
    negative = None
    if config.guidance_scale > 1:
        negative = features.conditioning([EMPTY_PROMPT] * len(ids))
    starts = torch.tensor(
        [_window_start(group, config, seed) for group in groups for _ in range(group.size)],
        device=device,
    )
    sigmas = adapter.sigmas(config.num_steps, config.height, config.width).to(device)
    shape = adapter.latent_shape(config.height, config.width)
    x = seeded_noise_batch(seed, ids, [0] * len(ids), shape).to(device)
    record = {
        "x_t": x.new_zeros(len(ids), config.window, *shape),
        "x_next": x.new_zeros(len(ids), config.window, *shape),
        "sigma": x.new_zeros(len(ids), config.window),
        "sigma_next": x.new_zeros(len(ids), config.window),
        "log_prob": x.new_zeros(len(ids), config.window, dtype=torch.float64),
    }
    for step in range(config.num_steps):
        sigma, sigma_next = (sigmas[i].expand(len(ids)) for i in (step, step + 1))
        velocity = guided_velocity(
            adapter, policy.transformer, x, sigma, cond, config.guidance_scale, negative
        ).float()
        x_next = x + (sigmas[step + 1] - sigmas[step]) * velocity
        column = step - starts
        rows = ((column >= 0) & (column < config.window)).nonzero()[:, 0]
        if len(rows):
            mean, std = sde_step(
                x[rows], velocity[rows], sigma[rows], sigma_next[rows], config.noise_level
            )
            noise = torch.stack([seeded_noise(seed, f"sde/{ids[i]}", step, shape) for i in rows])
            x_next[rows] = mean + std.view(-1, 1, 1, 1) * noise.to(device)
            place = (rows, column[rows])
            record["x_t"][place], record["x_next"][place] = x[rows], x_next[rows]
            record["sigma"][place], record["sigma_next"][place] = sigma[rows], sigma_next[rows]
            record["log_prob"][place] = gaussian_log_prob(x_next[rows], mean, std)
        x = x_next
    return Rollout(groups=list(groups), sample_ids=ids, latents=x, cond=cond, **record)


def _window_start(group: Group, config: RolloutConfig, seed: int) -> int:
    first, end = config.window_bounds
    choices = end - first - config.window + 1
    uniform = seeded_uniform(seed, f"window/{group.id}", 0).item()
    return first + min(int(uniform * choices), choices - 1)
