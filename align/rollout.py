"""Images drawn by the policy, with the steps that it is then trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from align.config import RolloutConfig
from align.data.batches import EMPTY_PROMPT
from align.data.features import Features
from align.data.images import ImageFile
from align.data.rows import Request
from align.mmdit.adapters import Conditioning
from align.mmdit.flow import seeded_noise_batch, seeded_uniform
from align.mmdit.modulation import ModulationTables, modulation_tables
from align.objectives.flow_grpo import TransitionBatch
from align.policy import Policy, unwrap
from align.sampling import Trajectory, sample, sample_sde
from annotate.records import Prompt

__all__ = ["Group", "Rollout", "draw_rollout", "window_start"]


@dataclass(frozen=True)
class Group:
    """One prompt, of which several images are drawn and compared."""

    prompt: Prompt
    epoch: int
    """How often the prompt was drawn before."""
    size: int
    sources: tuple[ImageFile, ...] = ()
    """What the prompt asks to edit."""

    @property
    def request(self) -> Request:
        return Request(self.prompt.text, self.sources)

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
    mean: Tensor
    """``(N, W, C, h, w)`` float32: of the Gaussians that the steps were drawn from."""

    def transitions(
        self, images: Sequence[int], steps: Sequence[int], advantages: Tensor
    ) -> TransitionBatch:
        """Step ``steps[i]`` of image ``images[i]``; ``advantages (N,)``."""
        rows, columns = torch.as_tensor(images), torch.as_tensor(steps)
        return TransitionBatch(
            x_t=self.x_t[rows, columns],
            x_next=self.x_next[rows, columns],
            sigma=self.sigma[rows, columns],
            sigma_next=self.sigma_next[rows, columns],
            # As a batch of the rollout with these rows was padded.
            cond=self.cond.select(rows).trim(),
            old_log_prob=self.log_prob[rows, columns],
            advantages=advantages[rows],
            old_mean=self.mean[rows, columns],
        )


@torch.no_grad()
def draw_rollout(
    policy: Policy,
    features: Features,
    groups: Sequence[Group],
    config: RolloutConfig,
    seed: int,
    iteration: int,
    stochastic: bool = True,
    trained_at_once: int = 0,
    on_batch: Callable[[Tensor], None] | None = None,
) -> Rollout:
    """Draw all images of ``groups``; every group has the same size.

    The sampler is the Euler ODE except in a window of ``config.window`` stochastic steps, which
    all groups of an iteration share (MixGRPO, arXiv 2507.21802): a window of a sample's own would
    compare images of unequal noise. Noise and window follow from the seed, the iteration and the
    samples' names alone.

    Args:
        stochastic: False draws by the ODE alone: the rollout then has no steps to train.
        trained_at_once: rows of a training batch. Where a batch of images is no larger, its
            stochastic steps are computed as training computes them (`sample_sde`).
        on_batch: gets the latents of each batch, in order, before the next one is drawn.
    """
    per_batch = max(1, config.batch_size // groups[0].size)
    images = min(per_batch, len(groups)) * groups[0].size
    as_trained = images <= trained_at_once and config.guidance_scale == 1
    first = window_start(config, seed, iteration)
    window = range(first, first + config.window if stochastic else first)
    kept = config.modulation_tables and stochastic
    with modulation_tables(unwrap(policy.transformer)) if kept else nullcontext() as tables:
        parts = []
        for start in range(0, len(groups), per_batch):
            batch = groups[start : start + per_batch]
            parts.append(_draw(policy, features, batch, config, seed, window, tables, as_trained))
            if on_batch is not None:
                on_batch(parts[-1][1].latents)
    conds, trajectories = zip(*parts, strict=True)
    sigma, sigma_next = trajectories[0].sigma, trajectories[0].sigma_next
    num_images = sum(group.size for group in groups)

    def by_image(name: str) -> Tensor:
        return torch.cat([getattr(part, name).transpose(0, 1) for part in trajectories])

    return Rollout(
        groups=list(groups),
        sample_ids=[i for group in groups for i in group.sample_ids()],
        latents=torch.cat([part.latents for part in trajectories]),
        cond=Conditioning.cat(conds),
        x_t=by_image("x_t"),
        x_next=by_image("x_next"),
        sigma=sigma.expand(num_images, -1),
        sigma_next=sigma_next.expand(num_images, -1),
        log_prob=by_image("log_prob"),
        mean=by_image("mean"),
    )


def _draw(
    policy: Policy,
    features: Features,
    groups: Sequence[Group],
    config: RolloutConfig,
    seed: int,
    window: range,
    tables: ModulationTables | None,
    as_trained: bool,
) -> tuple[Conditioning, Trajectory]:
    ids = [i for group in groups for i in group.sample_ids()]
    requests = [g.request for g in groups for _ in range(g.size)]
    cond = features.conditioning(requests)
    negative = None
    if config.guidance_scale > 1:
        negative = features.conditioning([r.without_words(EMPTY_PROMPT) for r in requests])
    shape = policy.adapter.latent_shape(config.height, config.width)
    begins = [g.id for g in groups for _ in range(g.size)] if config.shared_noise else ids
    noise = seeded_noise_batch(seed, begins, [0] * len(ids), shape).to(features.device)
    if not window:
        latents = sample(
            policy.adapter,
            policy.transformer,
            cond,
            noise,
            config.num_steps,
            config.guidance_scale,
            negative,
            config.guidance_in_one_pass,
        )
        return cond, _without_steps(latents.float())
    step_noise = torch.stack(
        [seeded_noise_batch(seed, [f"sde/{i}" for i in ids], [s] * len(ids), shape) for s in window]
    )
    trajectory = sample_sde(
        policy.adapter,
        policy.transformer,
        cond,
        noise,
        config.num_steps,
        noise_level=config.noise_level,
        sde_steps=window,
        step_noise=step_noise.to(features.device),
        guidance_scale=config.guidance_scale,
        negative=negative,
        sde=config.sde,
        one_pass=config.guidance_in_one_pass,
        shared=groups[0].size if config.shared_noise else 1,
        tables=tables,
        as_trained=as_trained,
    )
    return cond, trajectory


def _without_steps(latents: Tensor) -> Trajectory:
    states, levels = latents.new_zeros(0, *latents.shape), latents.new_zeros(0)
    log_prob = latents.new_zeros(0, len(latents), dtype=torch.float64)
    return Trajectory(latents, states, states, levels, levels, log_prob, states)


def window_start(config: RolloutConfig, seed: int, iteration: int) -> int:
    """First stochastic step of an iteration's rollout (from 1)."""
    first, end = config.window_bounds
    choices = end - first - config.window + 1
    if config.window_order == "progressive":
        return first + (iteration - 1) // config.window_rollouts % choices
    return first + int(seeded_uniform(seed, "window", iteration).item() * choices)
