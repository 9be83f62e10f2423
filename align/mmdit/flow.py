"""Flow matching with straight paths: the mathematics, without a model.

Conventions (those of diffusers and of the Qwen-Image report)::

    x_t = (1 - sigma) * x_0 + sigma * noise        sigma = 1 is noise, sigma = 0 is the image
    v   = d x_t / d sigma = noise - x_0            the target of the network

Latents are ``(B, C, H, W)``, ``sigma`` is ``(B,)``.

Noise and sigmas are functions of a key ``(seed, sample id, draw)``, never of a running generator:
a sample meets the same noise in a batch of one or of eight, on any rank, before or after a resume.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def per_sample(scalar: Tensor, like: Tensor) -> Tensor:
    """View ``scalar (B,)`` as ``(B, 1, 1, ...)`` so that it broadcasts over ``like (B, ...)``."""
    return scalar.to(like.device).view(-1, *([1] * (like.ndim - 1)))


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; float64 stays, so that closed forms can be compared in it."""
    return values if values.dtype == torch.float64 else values.float()


def interpolate(x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """``x_t = (1 - sigma) x_0 + sigma noise``; ``x_0, noise (B, ...)``, ``sigma (B,)``."""
    sigma = per_sample(sigma, x_0)
    return (1 - sigma) * x_0 + sigma * noise


def velocity_target(x_0: Tensor, noise: Tensor) -> Tensor:
    """``noise - x_0``: what the network learns to predict at every sigma."""
    return noise - x_0


def predict_x0(x_t: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The clean latents that ``velocity`` points at: ``x_t - sigma v``."""
    return x_t - per_sample(sigma, x_t) * velocity


def predict_noise(x_t: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The noise that ``velocity`` points away from: ``x_t + (1 - sigma) v``."""
    return x_t + (1 - per_sample(sigma, x_t)) * velocity


def velocity_error(velocity: Tensor, x_0: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity for each sample, ``(B,)``, in float32 or float64."""
    target = velocity_target(at_least_float32(x_0), at_least_float32(noise))
    error = at_least_float32(velocity) - target
    return error.square().flatten(1).mean(1)


def shift(sigma: Tensor, mu: float) -> Tensor:
    """Move sigmas towards noise: ``e^mu / (e^mu + 1/sigma - 1)``; ``mu = 0`` changes nothing.

    Larger images keep more signal at equal sigma, so they need larger sigmas: `shift_mu`.
    """
    scale = math.exp(mu)
    return scale * sigma / (1 + (scale - 1) * sigma)


def shift_mu(image_seq_len: int, scheduler_config: Mapping[str, Any]) -> float:
    """``mu`` for an image of ``image_seq_len`` tokens, linear in it as `QwenImagePipeline` has it.

    A scheduler without dynamic shifting has a constant shift, ``mu = log(shift)``.
    """
    if not scheduler_config.get("use_dynamic_shifting", False):
        return math.log(scheduler_config.get("shift", 1.0))
    base_len = scheduler_config.get("base_image_seq_len", 256)
    max_len = scheduler_config.get("max_image_seq_len", 4096)
    base_shift = scheduler_config.get("base_shift", 0.5)
    max_shift = scheduler_config.get("max_shift", 1.15)
    slope = (max_shift - base_shift) / (max_len - base_len)
    return image_seq_len * slope + (base_shift - slope * base_len)


def sampling_sigmas(num_steps: int, mu: float, shift_terminal: float | None = None) -> Tensor:
    """Sigmas of an Euler sampler, ``(num_steps + 1,)`` from 1 down to 0, float32 on the CPU.

    Bit for bit those of `FlowMatchEulerDiscreteScheduler` as `QwenImagePipeline` sets it, hence
    numpy's float32 and this order of operations. ``shift_terminal`` stretches the sigmas so that
    the last one before 0 is that value.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; at least 1 is needed")
    sigmas = np.linspace(1.0, 1 / num_steps, num_steps).astype(np.float32)
    sigmas = math.exp(mu) / (math.exp(mu) + (1 / sigmas - 1) ** 1.0)
    if shift_terminal and num_steps > 1:
        complement = 1 - sigmas
        sigmas = 1 - complement / (complement[-1] / (1 - shift_terminal))
    return torch.cat([torch.from_numpy(sigmas).to(torch.float32), torch.zeros(1)])


def _generator(stream: str, seed: int, sample_id: str, draw: int) -> torch.Generator:
    key = f"{stream}/{seed}/{sample_id}/{draw}".encode()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def seeded_noise(seed: int, sample_id: str, draw: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of ``shape``, float32 on the CPU, fixed by the key alone."""
    generator = _generator("noise", seed, sample_id, draw)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def seeded_uniform(seed: int, sample_id: str, draw: int, shape: Sequence[int] = ()) -> Tensor:
    """Uniform numbers in [0, 1) of ``shape``, float32 on the CPU, fixed by the key alone."""
    generator = _generator("uniform", seed, sample_id, draw)
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float32)


def seeded_noise_batch(
    seed: int, sample_ids: Sequence[str], draws: Sequence[int], shape: Sequence[int]
) -> Tensor:
    """`seeded_noise` for each sample, ``(B, *shape)``; ``shape`` is one sample's, (C, H, W)."""
    return torch.stack(
        [seeded_noise(seed, i, draw, shape) for i, draw in zip(sample_ids, draws, strict=True)]
    )


def seeded_sigma(
    seed: int,
    sample_ids: Sequence[str],
    draws: Sequence[int],
    mu: float = 0.0,
    mean: float = 0.0,
    std: float = 1.0,
) -> Tensor:
    """Training sigmas ``(B,)``: logit-normal(mean, std), then `shift` by ``mu``.

    Logit-normal timesteps are those of Stable Diffusion 3 (arXiv 2403.03206, eq. 19).
    """
    normal = torch.stack(
        [
            torch.randn((), generator=_generator("sigma", seed, i, draw), dtype=torch.float32)
            for i, draw in zip(sample_ids, draws, strict=True)
        ]
    )
    return shift(torch.sigmoid(mean + std * normal), mu)
