"""Noise and noise levels of samples: functions of (seed, sample id, draw) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.config import TimestepConfig
from align.mmdit import flow
from align.mmdit.adapters import ModelAdapter

__all__ = ["Draws"]


@dataclass(frozen=True)
class Draws:
    """Draws for latents of one shape.

    Args:
        seed: the run's.
        shape: ``(C, h, w)`` of a sample's latents.
        mu: shift of the noise levels for this size; 0: none.
        timesteps: the distribution of the noise levels before the shift.
    """

    seed: int
    shape: tuple[int, ...]
    mu: float
    timesteps: TimestepConfig

    @classmethod
    def for_latents(
        cls, seed: int, shape: Sequence[int], adapter: ModelAdapter, timesteps: TimestepConfig
    ) -> Draws:
        """Draws shifted for the size of image that latents of ``shape (C, h, w)`` stand for."""
        height, width = (side * adapter.scale_factor for side in shape[-2:])
        mu = adapter.mu(height, width) if timesteps.shift else 0.0
        return cls(seed, tuple(shape), mu, timesteps)

    def noise(self, ids: Sequence[str], draws: Sequence[int]) -> Tensor:
        """``(B, C, h, w)`` on the CPU."""
        return flow.seeded_noise_batch(self.seed, ids, draws, self.shape)

    def sigma(self, ids: Sequence[str], draws: Sequence[int]) -> Tensor:
        """``(B,)`` on the CPU, as trained on."""
        mean, std = self.timesteps.mean, self.timesteps.std
        return flow.seeded_sigma(self.seed, ids, draws, self.mu, mean, std)

    def spread_sigma(self, ids: Sequence[str], draws: Sequence[int], num_draws: int) -> Tensor:
        """``(B,)``, of the same distribution, but one sample's ``num_draws`` divide it evenly.

        Draw k lies in the k-th of ``num_draws`` equally likely parts: a mean over a sample's draws
        varies far less than over independent ones.
        """
        uniform = torch.stack(
            [flow.seeded_uniform(self.seed, i, k) for i, k in zip(ids, draws, strict=True)]
        )
        quantile = (torch.tensor(draws, dtype=torch.float32) + uniform) / num_draws
        normal = torch.special.ndtri(quantile.double().clamp(1e-6, 1 - 1e-6)).float()
        level = torch.sigmoid(self.timesteps.mean + self.timesteps.std * normal)
        return flow.shift(level, self.mu)
