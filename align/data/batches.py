"""Samples to batches: latents, conditioning, and the noise and noise level of each draw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from align.data.draws import Draws
from align.data.features import Features
from align.data.order import Position
from align.data.rows import CaptionedImage, ImagePair
from align.mmdit.flow import seeded_uniform
from align.objectives.diffusion_dpo import PairBatch
from align.objectives.sft import SFTBatch

__all__ = ["EMPTY_PROMPT", "ImageBatches", "PairBatches"]

EMPTY_PROMPT = " "
"""What stands for no caption, as in the pipeline's own negative prompt."""


class ImageBatches:
    """Batches of captioned images.

    Args:
        caption_dropout: part of the samples that get `EMPTY_PROMPT`, drawn anew each epoch.
        num_draws: if given, the samples have so many fixed draws: batches are made by `at`.
    """

    def __init__(
        self,
        samples: Sequence[CaptionedImage],
        features: Features,
        draws: Draws,
        caption_dropout: float = 0.0,
        num_draws: int = 1,
    ) -> None:
        self.samples = samples
        self.features = features
        self.draws = draws
        self.caption_dropout = caption_dropout
        self.num_draws = num_draws

    @property
    def num_places(self) -> int:
        return len(self.samples) * self.num_draws

    def train(self, positions: Sequence[Position]) -> SFTBatch:
        """A training batch; a sample's draw is the number of its epoch."""
        epochs = [position.epoch for position in positions]
        samples = [self.samples[position.item] for position in positions]
        ids = [sample.id for sample in samples]
        prompts = [
            EMPTY_PROMPT if self._is_dropped(sample.id, epoch) else sample.prompt
            for sample, epoch in zip(samples, epochs, strict=True)
        ]
        sigma = self.draws.sigma(ids, epochs)
        return self._batch(samples, prompts, self.draws.noise(ids, epochs), sigma)

    def at(self, places: Sequence[int]) -> SFTBatch:
        """A validation batch; place ``num_draws * i + k`` is draw k of sample i."""
        samples = [self.samples[place // self.num_draws] for place in places]
        draws = [place % self.num_draws for place in places]
        ids = [f"validation/{sample.id}" for sample in samples]
        sigma = self.draws.spread_sigma(ids, draws, self.num_draws)
        prompts = [sample.prompt for sample in samples]
        return self._batch(samples, prompts, self.draws.noise(ids, draws), sigma)

    def _is_dropped(self, sample_id: str, epoch: int) -> bool:
        if not self.caption_dropout:
            return False
        uniform = seeded_uniform(self.draws.seed, f"caption/{sample_id}", epoch)
        return uniform.item() < self.caption_dropout

    def _batch(
        self,
        samples: Sequence[CaptionedImage],
        prompts: Sequence[str],
        noise: Tensor,
        sigma: Tensor,
    ) -> SFTBatch:
        device = self.features.device
        return SFTBatch(
            latents=self.features.latents([sample.image for sample in samples]),
            cond=self.features.conditioning(prompts),
            noise=noise.to(device),
            sigma=sigma.to(device),
        )


class PairBatches:
    """Batches of preference pairs; the images of a pair share noise and noise level.

    Args:
        num_draws: so many fixed draws a pair, used in turn by its epochs; None draws anew in each.
        prefix: keeps the draws of held-out pairs apart.
    """

    def __init__(
        self,
        pairs: Sequence[ImagePair],
        features: Features,
        draws: Draws,
        num_draws: int | None,
        prefix: str = "",
    ) -> None:
        self.pairs = pairs
        self.features = features
        self.draws = draws
        self.num_draws = num_draws
        self.prefix = prefix
        self.reference_errors: Tensor | None = None
        """``(pairs, num_draws, 2)`` float32 on the CPU, once they are known."""

    @property
    def num_places(self) -> int:
        return len(self.pairs) * (self.num_draws or 1)

    def train(self, positions: Sequence[Position]) -> PairBatch:
        """A training batch; a pair's draw is the number of its epoch, modulo ``num_draws``."""
        epochs = [position.epoch for position in positions]
        draws = [e % self.num_draws for e in epochs] if self.num_draws else epochs
        return self._batch([position.item for position in positions], draws)

    def at(self, places: Sequence[int]) -> PairBatch:
        """Place ``num_draws * i + k`` is draw k of pair i."""
        num_draws = self.num_draws or 1
        return self._batch([p // num_draws for p in places], [p % num_draws for p in places])

    def _batch(self, indices: Sequence[int], draws: Sequence[int]) -> PairBatch:
        pairs = [self.pairs[index] for index in indices]
        ids = [f"{self.prefix}{pair.id}" for pair in pairs]
        if self.num_draws is None:
            sigma = self.draws.sigma(ids, draws)
        else:
            sigma = self.draws.spread_sigma(ids, draws, self.num_draws)
        device = self.features.device
        known = self.reference_errors
        return PairBatch(
            chosen=self.features.latents([pair.chosen for pair in pairs]),
            rejected=self.features.latents([pair.rejected for pair in pairs]),
            cond=self.features.conditioning([pair.prompt for pair in pairs]),
            noise=self.draws.noise(ids, draws).to(device),
            sigma=sigma.to(device),
            reference_errors=None if known is None else known[indices, draws].to(device),
            weights=torch.tensor([pair.weight for pair in pairs], device=device),
        )
