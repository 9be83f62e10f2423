"""Draws latents from noise: the Euler ODE of the stock pipeline."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from align.mmdit.adapters.base import Conditioning, ModelAdapter


def guided_velocity(
    adapter: ModelAdapter,
    transformer: nn.Module,
    x_t: Tensor,
    sigma: Tensor,
    cond: Conditioning,
    guidance_scale: float = 1.0,
    negative: Conditioning | None = None,
) -> Tensor:
    """Velocity ``(B, C, h, w)``; with true classifier-free guidance when the scale is above 1."""
    velocity = adapter.velocity(transformer, x_t, sigma, cond)
    if guidance_scale <= 1:
        return velocity
    if negative is None:
        raise ValueError(
            f"guidance_scale is {guidance_scale}: above 1 it needs a negative conditioning, "
            "for example encode_prompts([' ']) repeated for each sample"
        )
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
) -> Tensor:
    """Latents ``(B, C, h, w)`` that ``noise`` of the same shape flows to, in ``num_steps`` steps.

    The latents keep the parameters' dtype between steps, as in the stock pipeline: from the same
    noise the same image comes out.
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
        )
        latents = (latents.float() + (sigma_next - sigma) * velocity).to(dtype)
    return latents
