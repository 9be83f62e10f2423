"""Draws latents from noise: the Euler ODE of the stock pipeline, or an SDE on some steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from align.mmdit.adapters.base import Conditioning, ModelAdapter
from align.mmdit.flow import per_sample
from align.mmdit.modulation import ModulationTables
from align.sde import gaussian_log_prob, sde_step


def guided_velocity(
    adapter: ModelAdapter,
    transformer: nn.Module,
    x_t: Tensor,
    sigma: Tensor,
    cond: Conditioning,
    guidance_scale: float = 1.0,
    negative: Conditioning | None = None,
    one_pass: bool = False,
) -> Tensor:
    """Velocity ``(B, C, h, w)``; with true classifier-free guidance when the scale is above 1.

    Args:
        one_pass: compute both conditionings in one batch of 2 B, the shorter padded: half the
            launches, where a GPU waits for them. The numbers are those of two passes within
            rounding.
    """
    if guidance_scale <= 1:
        return adapter.velocity(transformer, x_t, sigma, cond)
    if negative is None:
        raise ValueError(
            f"guidance_scale is {guidance_scale}: above 1 it needs a negative conditioning, "
            "for example encode_prompts([' ']) repeated for each sample"
        )
    if one_pass:
        both = Conditioning.cat([cond, negative])
        pair = adapter.velocity(transformer, torch.cat([x_t, x_t]), torch.cat([sigma, sigma]), both)
        return adapter.guide(pair[: len(x_t)], pair[len(x_t) :], guidance_scale)
    velocity = adapter.velocity(transformer, x_t, sigma, cond)
    return adapter.guide(
        velocity, adapter.velocity(transformer, x_t, sigma, negative), guidance_scale
    )


@torch.no_grad()
def sample(
    adapter: ModelAdapter,
    transformer: nn.Module,
    cond: Conditioning,
    noise: Tensor,
    num_steps: int,
    guidance_scale: float = 1.0,
    negative: Conditioning | None = None,
    one_pass: bool = False,
) -> Tensor:
    """Latents ``(B, C, h, w)`` that ``noise`` of the same shape flows to, in ``num_steps`` steps.

    The latents keep the parameters' dtype between steps, as in the stock pipeline: from the same
    noise the same image comes out.

    Raises:
        ValueError: what came out is not finite.
    """
    dtype = next(transformer.parameters()).dtype
    height, width = (side * adapter.scale_factor for side in noise.shape[-2:])
    sigmas = adapter.sigmas(num_steps, height, width).to(noise.device)
    latents = noise.to(dtype)
    for sigma, sigma_next in pairwise(sigmas):
        velocity = guided_velocity(
            adapter,
            transformer,
            latents,
            sigma.expand(len(latents)),
            cond,
            guidance_scale,
            negative,
            one_pass,
        )
        latents = (latents.float() + (sigma_next - sigma) * velocity).to(dtype)
    return _require_finite(latents)


@dataclass(frozen=True)
class Trajectory:
    """Drawn latents, and the stochastic steps on the way: S of them, for B samples."""

    latents: Tensor
    """``(B, C, h, w)`` float32, drawn."""
    x_t: Tensor
    """``(S, B, C, h, w)`` float32, before each stochastic step."""
    x_next: Tensor
    """``(S, B, C, h, w)`` float32, after it."""
    sigma: Tensor
    """``(S,)``."""
    sigma_next: Tensor
    """``(S,)``."""
    log_prob: Tensor
    """``(S, B)`` float64, nats: of the steps under the velocities that drew them, guidance
    included."""
    mean: Tensor
    """``(S, B, C, h, w)`` float32: of the Gaussians that the steps were drawn from."""


@torch.no_grad()
def sample_sde(
    adapter: ModelAdapter,
    transformer: nn.Module,
    cond: Conditioning,
    noise: Tensor,
    num_steps: int,
    *,
    noise_level: float,
    sde_steps: Sequence[int],
    step_noise: Tensor,
    guidance_scale: float = 1.0,
    negative: Conditioning | None = None,
    sde: str = "flow",
    one_pass: bool = False,
    shared: int = 1,
    tables: ModulationTables | None = None,
    as_trained: bool = False,
) -> Trajectory:
    """Draw with an SDE on the steps ``sde_steps`` (numbers from 0) and the ODE on the others.

    Latents stay in float32 between steps, so that a replay of a recorded step meets the very
    numbers that were drawn.

    Args:
        noise: ``(B, C, h, w)``.
        noise_level: ``a`` of `sde.sde_step`.
        sde_steps: Ascending, without repeats; the whole batch shares them.
        step_noise: Standard normal ``(S, B, C, h, w)``, one for each of ``sde_steps``.
        sde: Of `sde.SDE_KINDS`.
        one_pass: Of `guided_velocity`.
        shared: So many consecutive samples begin alike: until the first stochastic step they are
            one, and are computed once.
        tables: Of the transformer's modulation, for several batches of the same steps.
        as_trained: Compute the stochastic steps with a gradient, which is thrown away: a GPU may
            take other kernels, and a compiler other graphs, for a pass without one, and then the
            replay of a step would not meet the very bits that drew it. It takes the memory that
            training on the same batch does.

    Raises:
        ValueError: the steps are no steps, samples that are to be shared differ, or what came out
            is not finite.
    """
    steps = [*sde_steps]
    if not steps or steps != sorted({*steps}) or steps[0] < 0 or steps[-1] >= num_steps:
        raise ValueError(
            f"sde_steps is {steps}; expected ascending step numbers of 0 to {num_steps - 1}"
        )
    if step_noise.shape != (len(sde_steps), *noise.shape):
        raise ValueError(
            f"step_noise has shape {tuple(step_noise.shape)}; "
            f"expected {(len(sde_steps), *noise.shape)}"
        )
    height, width = (side * adapter.scale_factor for side in noise.shape[-2:])
    sigmas = adapter.sigmas(num_steps, height, width).to(noise.device)
    recorded: list[tuple[Tensor, ...]] = []
    x_t = noise.float()
    whole = (cond, negative)
    if shared > 1:
        x_t, cond, negative = _first_of_each(shared, x_t, cond, negative)
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        if shared > 1 and step == steps[0]:
            x_t = x_t.repeat_interleave(shared, dim=0)
            cond, negative = whole
        if tables is not None:
            tables.at(step)
        sigma_b, sigma_next_b = sigma.expand(len(x_t)), sigma_next.expand(len(x_t))
        with torch.set_grad_enabled(as_trained and step in steps):
            velocity = guided_velocity(
                adapter, transformer, x_t, sigma_b, cond, guidance_scale, negative, one_pass
            ).detach()
        if step not in sde_steps:
            x_t = x_t + (sigma_next - sigma) * velocity.float()
            continue
        mean, std = sde_step(x_t, velocity, sigma_b, sigma_next_b, noise_level, sde)
        z = step_noise[len(recorded)].to(mean)
        x_next = mean + per_sample(std, mean) * z
        log_prob = gaussian_log_prob(x_next, mean, std)
        recorded.append((x_t, x_next, sigma, sigma_next, log_prob, mean))
        x_t = x_next
    states = [torch.stack(column) for column in zip(*recorded, strict=True)]
    return Trajectory(_require_finite(x_t), *states)


def _require_finite(latents: Tensor) -> Tensor:
    """They would be decoded to black images, which look like any others to a scorer."""
    finite = latents.isfinite().flatten(1).all(1)
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {len(latents)} drawn latents are not finite: the weights "
            "have diverged, the guidance scale or the noise level is too large, or the dtype "
            "overflows"
        )
    return latents


def _first_of_each(
    shared: int, x_t: Tensor, cond: Conditioning, negative: Conditioning | None
) -> tuple[Tensor, Conditioning, Conditioning | None]:
    """The first of every ``shared`` samples, which stands for the others."""
    if len(x_t) % shared:
        raise ValueError(f"{len(x_t)} samples are no groups of {shared} that begin alike")
    first = slice(None, None, shared)
    for values in (x_t, cond.prompt_embeds, *cond.sources):
        if not torch.equal(values[first].repeat_interleave(shared, dim=0), values):
            raise ValueError(
                f"the steps before the first stochastic one are shared by every {shared} samples, "
                "but these begin from other noise or another prompt"
            )
    return x_t[first], cond.select(first), None if negative is None else negative.select(first)
