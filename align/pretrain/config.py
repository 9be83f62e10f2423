"""Settings of ``winsome pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from annotate.settings import Config


class AutoencoderConfig(Config):
    """How the autoencoder learns: first both halves, then the decoder alone."""

    steps: int = Field(gt=0)
    """Optimizer steps of encoder and decoder together."""
    decoder_steps: int = Field(ge=0)
    """Further steps of the decoder, the latents staying as they are; 0 = none."""
    batch_size: int = Field(gt=0)
    crop: int = Field(gt=0, multiple_of=8)
    """Side of the square that is cut from each poster, pixels."""
    lr: float = Field(gt=0)
    decoder_lr: float = Field(gt=0)
    edge_weight: float = Field(ge=0)
    """Weight of the L1 loss between the image gradients; 0 = plain L1."""
    kl_weight: float = Field(ge=0)
    """Weight of the posterior's KL divergence to a standard normal, per latent element."""
    min_quality: float = Field(ge=1, le=5)
    """Half of the posters are defective drawings of at least this quality score."""


class StageConfig(Config):
    """One stage of the curriculum."""

    name: str
    size: int = Field(gt=0, multiple_of=16)
    """Side of the images, pixels."""
    text: Literal["none", "marks", "glyphs", "layouts"]
    """What may stand on a poster: nothing; marks; also words; also frames and bands."""
    min_quality: float = Field(ge=1, le=5)
    """No poster of a lower quality score (1-5) enters."""
    perfect_share: float = Field(ge=0, le=1)
    """Share of posters without any defect; the others' severities are drawn at random."""
    pool: int = Field(gt=0)
    """Number of distinct posters drawn and encoded for the stage."""
    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    lr: float = Field(gt=0)
    """Peak learning rate: 5 % linear warm-up, then a cosine to a twentieth of it."""


class PretrainConfig(Config):
    """``winsome pretrain``: everything that makes the tiny pipeline."""

    output: Path
    """Folder of the finished diffusers pipeline (bf16)."""
    run: Path
    """Folder of checkpoints, metrics and sample grids."""
    seed: int = 0
    autoencoder: AutoencoderConfig
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    caption_dropout: float = Field(ge=0, lt=1)
    """Share of captions replaced by the empty one, which teaches the unconditional velocity."""
    ema_decay: float = Field(gt=0, lt=1)
    weight_decay: float = Field(ge=0)
    grad_clip: float = Field(gt=0)
    logit_mean: float = 0.0
    """Mean of the logit-normal distribution that timesteps are drawn from, before the shift."""
    logit_std: float = Field(default=1.0, gt=0)
    bf16: bool = True
    """Run forward passes under bfloat16 autocast where the processor has the instructions."""
    save_every: int = Field(gt=0)
    """Optimizer steps between two checkpoints."""
