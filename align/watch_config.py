"""Settings of what a run watches while it trains."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from align.data_config import Fraction, NonNegative, Positive, Side, SourceConfig
from annotate.records import Split
from annotate.settings import Config
from rewards.scorers.config import ScorerConfig

__all__ = ["DivergenceConfig", "SamplesConfig", "ValidationConfig"]


class ValidationConfig(Config):
    """A held-out measure with fixed noise and fixed noise levels for each sample."""

    every: NonNegative = 25
    """Steps between measurements; 0: never."""
    draws: Positive = 4
    """Noise levels and noises for each validation sample, evenly spread over the levels."""
    fraction: Fraction = 0.1
    """Part of the prompts held out where the rows name no split."""
    max_samples: Positive | None = None
    patience: NonNegative = 0
    """Stop after so many measurements in a row without a new lowest loss; 0: never stop early."""
    min_delta: float = Field(default=0.0, ge=0)
    """A new lowest loss must be lower by at least this part of the old one."""


class DivergenceConfig(Config):
    """Stops a run whose gradients have grown, with the batch kept for ``winsome replay``. A loss
    that is not finite always does."""

    factor: float = Field(default=100.0, ge=0)
    """A gradient norm this many times the median of the last steps is too large; 0: none is."""
    steps: Positive = 3
    """So many too large ones in a row stop the run: a single spike is what clipping is for."""
    window: Positive = 50
    """Steps of which the median is; before half as many there is no limit."""


class SamplesConfig(SourceConfig):
    """Images of fixed prompts from fixed noise, drawn while a run trains, under ``samples/``."""

    prompts: Path
    """Text lines, or JSONL of `annotate.records.Prompt`, or a snapshot folder."""
    splits: tuple[Split, ...] = tuple(Split)
    """Only prompts of these splits, where the file names them."""
    every: Positive = 50
    """Optimizer steps between drawings; the first is before training, the last after it."""
    candidates: Positive = 1
    """Images for each prompt."""
    seed: NonNegative = 0
    """Of their noise."""
    height: Side = 128
    width: Side = 128
    num_steps: Positive = 20
    guidance_scale: float = Field(default=1.0, ge=1)
    """True classifier-free guidance; 1: none, at half the cost."""
    batch_size: Positive = 16
    """Images drawn at once by one process."""
    gold: ScorerConfig | None = None
    """Measures the images, as ``samples/gold``; it must not be what the run is rewarded by. null:
    they are drawn and not measured."""
    patience: NonNegative = 0
    """Stop after so many drawings in a row without a new highest mean of ``gold``; 0: never."""

    @model_validator(mode="after")
    def _patience_has_a_scorer(self) -> SamplesConfig:
        if self.patience and self.gold is None:
            raise ValueError(f"patience {self.patience} needs gold, a scorer to go by")
        return self
