"""Settings of the encoders that a reward model can look through; free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from annotate.settings import Config

__all__ = [
    "EXECUTION",
    "ClipEncoderConfig",
    "DiffusionEncoderConfig",
    "EncoderConfig",
    "LoraSettings",
    "NetworkConfig",
    "PixelsEncoderConfig",
    "QwenVLEncoderConfig",
]

EXECUTION = {"batch_size", "learning_rate", "gradient_checkpointing"}
"""Settings that do not change what an encoder computes: no part of its identity."""


class DiffusionEncoderConfig(Config):
    """Features of the first blocks of the frozen base MMDiT, read from latents."""

    needs_base: ClassVar[bool] = True

    type: Literal["diffusion"] = "diffusion"
    num_blocks: int = Field(default=2, ge=1)
    """How many of the base's first blocks are run."""
    sigmas: tuple[float, ...] = Field(default=(0.1,), min_length=1)
    """Noise levels at which the latents are read, each in (0, 1); one forward pass each."""
    noise_seed: int = 0
    """Seeds the prior noise, which is the same for every candidate: a score is a function of the
    latents and the prompt alone."""
    grid: int = Field(default=8, ge=2, le=64)
    """Image tokens are averaged to ``grid`` x ``grid``, whatever the resolution."""
    source_area: int = Field(default=1024 * 1024, ge=32 * 32)
    """Pixels that a picture which the prompt edits is brought to, in its own shape, for a base that
    edits; the stock pipelines' number. Best that of the policy's ``rollout.source_area``."""
    batch_size: int = Field(default=32, ge=1)
    """Candidates per forward pass; without effect on the features."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the base is loaded in. The heads are float32 always."""

    @model_validator(mode="after")
    def _check_sigmas(self) -> DiffusionEncoderConfig:
        for sigma in self.sigmas:
            if not 0.0 < sigma < 1.0:
                raise ValueError(f"sigmas must lie between 0 and 1, got {sigma}")
        return self


class LoraSettings(Config):
    """Low-rank adapters on the linear layers of an encoder's transformers (peft)."""

    rank: int = Field(default=16, ge=1)
    alpha: float | None = Field(default=None, gt=0.0)
    """The update is scaled by ``alpha / rank``; null: alpha equals rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)


class NetworkConfig(Config):
    """What all encoders share that read pixels and tokens by a network of transformers."""

    needs_base: ClassVar[bool] = True

    tune: Literal["frozen", "lora", "full"] = "lora"
    """``frozen``: its features are computed once and cached. Otherwise it trains with the heads,
    all of it or low-rank adapters, and batches carry pixels and tokens."""
    lora: LoraSettings = LoraSettings()
    """For ``tune: lora``."""
    learning_rate: float = Field(default=1e-4, gt=0.0)
    """Of the encoder's weights, where they train; the heads have the run's own."""
    batch_size: int = Field(default=16, ge=1)
    """Candidates per forward pass when none is trained; without effect on the scores."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the base is loaded in. Adapters and heads are float32 always."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _check_dtype(self) -> NetworkConfig:
        if self.tune == "full" and self.dtype != "float32":
            raise ValueError(
                "tune 'full' needs dtype 'float32', got 'bfloat16', in which small updates of a "
                "weight are rounded away"
            )
        return self


class QwenVLEncoderConfig(NetworkConfig):
    """Qwen2.5-VL, the family of Qwen-Image's text encoder, with a token for each criterion."""

    type: Literal["qwen_vl"]
    min_pixels: int = Field(default=56 * 56, ge=28 * 28)
    """Smaller images are enlarged to about so many pixels, at their own aspect."""
    max_pixels: int = Field(default=256 * 28 * 28, ge=28 * 28)
    """Larger ones are reduced; 28 x 28 pixels are a token."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    """Of the prompt; what is beyond is left out, and the score says how much."""
    grid: int = Field(default=8, ge=2, le=64)
    """For ``tune: frozen``: image tokens are averaged to ``grid`` x ``grid``."""

    @model_validator(mode="after")
    def _check_pixels(self) -> QwenVLEncoderConfig:
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels must be at most max_pixels, got {self.min_pixels} and "
                f"{self.max_pixels}"
            )
        return self


class ClipEncoderConfig(NetworkConfig):
    """A CLIP or SigLIP of transformers: tokens of both towers, and their embeddings."""

    type: Literal["clip"]
    grid: int = Field(default=4, ge=2, le=64)
    """Patch tokens are averaged to ``grid`` x ``grid``."""


class PixelsEncoderConfig(Config):
    """A small network of its own over the pixels and the prompt's words, trained from nothing."""

    needs_base: ClassVar[bool] = False

    type: Literal["pixels"]
    side: int = Field(default=64, ge=32)
    """Images are scaled to a square of so many pixels; a multiple of 8. Statistics are taken of
    the whole image beside."""
    width: int = Field(default=32, ge=8)
    """Channels after the last convolution, a multiple of 8, and size of a word's embedding."""
    num_buckets: int = Field(default=4096, ge=64)
    """Words are hashed into so many embeddings."""
    max_words: int = Field(default=64, ge=1)
    """Of the prompt; a Chinese character is a word. What is beyond is left out, and the score
    says how much."""
    learning_rate: float = Field(default=1e-3, gt=0.0)
    """Of the network; the heads have the run's own."""
    batch_size: int = Field(default=64, ge=1)
    """Candidates per forward pass when none is trained; without effect on the scores."""

    @model_validator(mode="after")
    def _check_sizes(self) -> PixelsEncoderConfig:
        for name in ("side", "width"):
            if getattr(self, name) % 8:
                raise ValueError(f"{name} must be a multiple of 8, got {getattr(self, name)}")
        return self


def _type(settings: Any) -> Any:
    """The diffusion-native encoder where none is named."""
    if isinstance(settings, Mapping):
        return settings.get("type", "diffusion")
    return getattr(settings, "type", None)


EncoderConfig = Annotated[
    Annotated[DiffusionEncoderConfig, Tag("diffusion")]
    | Annotated[QwenVLEncoderConfig, Tag("qwen_vl")]
    | Annotated[ClipEncoderConfig, Tag("clip")]
    | Annotated[PixelsEncoderConfig, Tag("pixels")],
    Discriminator(_type),
]
