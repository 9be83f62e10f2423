"""What a model family must offer, and the conditioning that travels with latents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from align.mmdit.blocks import BlockSettings

PARTS = ("transformer", "vae", "text_encoder")
"""Parts of a pipeline that hold weights; an adapter may be loaded with some of them only."""


SOURCE_AREA = 1024 * 1024
"""Pixels that the stock editing pipelines bring a source image to before it is encoded."""


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts of a batch, and the images that they ask to edit."""

    prompt_embeds: Tensor
    """``(B, L, D)``; padded rows end in zeros."""
    mask: Tensor | None = None
    """``(B, L)`` bool, True on real tokens; None when nothing is padded."""
    sources: tuple[Tensor, ...] = ()
    """Normalised latents ``(B, C, h, w)`` of each source image in its order, sizes of their own;
    empty where a new picture is asked for. All rows of a batch have as many, of the same sizes."""

    def __len__(self) -> int:
        return self.prompt_embeds.shape[0]

    def select(self, index: Tensor | Sequence[int] | slice) -> Conditioning:
        """The rows named by ``index``, padding kept: the numbers stay those of the batch."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.prompt_embeds.device)
        mask = None if self.mask is None else self.mask[index]
        sources = tuple(source[index] for source in self.sources)
        return Conditioning(self.prompt_embeds[index], mask, sources)

    def trim(self) -> Conditioning:
        """Drop columns that pad every row, and the mask where no padding is left."""
        if self.mask is None:
            return self
        length = int(self.mask.sum(1).max())
        mask = self.mask[:, :length]
        embeds = self.prompt_embeds[:, :length]
        return Conditioning(embeds, None if mask.all() else mask, self.sources)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """Move all tensors; ``dtype`` is that of the embeddings."""
        mask = None if self.mask is None else self.mask.to(device)
        sources = tuple(source.to(device) for source in self.sources)
        return Conditioning(self.prompt_embeds.to(device=device, dtype=dtype), mask, sources)

    @staticmethod
    def cat(parts: Iterable[Conditioning]) -> Conditioning:
        """Join batches, padding the shorter ones; the mask is None if nothing is padded.

        Raises:
            ValueError: there are no parts, or their source images differ in number or size.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("Conditioning.cat got no parts; at least one is needed")
        sizes = [[tuple(source.shape[1:]) for source in part.sources] for part in parts]
        if odd := next((size for size in sizes if size != sizes[0]), None):
            raise ValueError(
                f"a batch has source images of one number and size: got latents {sizes[0]} and "
                f"{odd}; encode and compute them apart"
            )
        length = max(part.prompt_embeds.shape[1] for part in parts)
        embeds, masks = [], []
        for part in parts:
            batch, own_length, width = part.prompt_embeds.shape
            pad = length - own_length
            mask = part.mask
            if mask is None:
                mask = part.prompt_embeds.new_ones((batch, own_length), dtype=torch.bool)
            embeds.append(
                torch.cat([part.prompt_embeds, part.prompt_embeds.new_zeros(batch, pad, width)], 1)
            )
            masks.append(torch.cat([mask, mask.new_zeros(batch, pad)], 1))
        mask = torch.cat(masks)
        sources = tuple(map(torch.cat, zip(*(part.sources for part in parts), strict=True)))
        return Conditioning(torch.cat(embeds), None if mask.all() else mask, sources)


class ModelAdapter(Protocol):
    """One MMDiT family. It holds modules and shapes, never optimizer or training state.

    The transformer is an argument wherever it computes, so that one adapter serves the weights
    that train, their frozen reference, an average, or a module wrapped for several processes.
    """

    transformer: nn.Module | None
    vae: nn.Module | None
    text_encoder: nn.Module | None
    tokenizer: Any
    scheduler_config: Mapping[str, Any]
    folder: Path | None
    """Where the pipeline lies; None for one built in memory."""
    lora_targets: tuple[str, ...]
    """Module name suffixes that a LoRA adapts by default."""
    max_sources: int | None
    """Source images that a prompt may have: 0 for a family that draws from words alone, None for
    any number."""
    text_parts: tuple[str, ...]
    """Folders of a pipeline that an encoded prompt depends on."""

    @property
    def scale_factor(self) -> int:
        """Pixels per latent along a side."""
        ...

    def encode_prompts(
        self,
        prompts: Sequence[str],
        sources: Sequence[Sequence[Image.Image]] = (),
        source_area: int = SOURCE_AREA,
    ) -> Conditioning:
        """Embeddings of ``prompts``, each with its source images where a family looks at them.

        Args:
            sources: of each prompt, upright RGB images; empty: none has any.
            source_area: pixels that a source image is brought to.
        """
        ...

    def check_sources(self, count: int) -> None:
        """Raises `ValueError` if a prompt must not have so many source images; names who may."""
        ...

    def encode_source(self, source: Image.Image, source_area: int = SOURCE_AREA) -> Tensor:
        """Normalised latents ``(C, h, w)`` of a source image, for `Conditioning.sources`."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [-1, 1] to normalised latents ``(B, C, h, w)``."""
        ...

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Normalised latents ``(B, C, h, w)`` to images ``(B, 3, H, W)`` in [0, 1]."""
        ...

    def velocity(
        self, transformer: nn.Module, x_t: Tensor, sigma: Tensor, cond: Conditioning
    ) -> Tensor:
        """Predicted ``noise - x_0``, ``(B, C, h, w)``, in the dtype the transformer puts out."""
        ...

    def guide(self, velocity: Tensor, negative_velocity: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance as the family's own pipeline combines it."""
        ...

    def features(
        self,
        transformer: nn.Module,
        x_t: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        num_blocks: int,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hidden states after ``num_blocks`` blocks: image ``(B, N, D)``, text, mask.

        The image tokens are those of ``x_t``, without source images.
        """
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """``(C, h, w)`` of the latents of an image of ``height`` x ``width`` pixels."""
        ...

    def mu(self, height: int, width: int) -> float:
        """Resolution-dependent shift of the sigmas, for `flow.shift` and `flow.seeded_sigma`."""
        ...

    def sigmas(self, num_steps: int, height: int, width: int) -> Tensor:
        """Sampling sigmas ``(num_steps + 1,)`` of the family's scheduler."""
        ...

    def install_blocks(
        self,
        transformer: nn.Module,
        settings: BlockSettings,
        device: torch.device | None = None,
    ) -> str:
        """Make the bare ``transformer`` compute as ``settings`` say, on ``device`` or where its
        weights are; returns that in words."""
        ...

    def dead_modules(self, transformer: nn.Module) -> tuple[str, ...]:
        """Names of submodules that cannot change the output; their parameters are frozen."""
        ...

    def save_lora(
        self, folder: Path, layers: Mapping[str, Tensor], metadata: Mapping[str, Any]
    ) -> None:
        """Write a LoRA that the family's stock pipeline takes by ``load_lora_weights``."""
        ...

    def save_pipeline(
        self, folder: Path, transformer: nn.Module, state_dict: Mapping[str, Tensor]
    ) -> None:
        """Write a stock pipeline with ``transformer``'s config and the weights ``state_dict``."""
        ...

    def model_sha256(self) -> str:
        """Names the weights and configs of all parts, whatever dtype they were loaded in."""
        ...


def image_to_uint8(images: Tensor) -> Tensor:
    """Images ``(B, 3, H, W)`` in [0, 1] to ``(B, H, W, 3)`` uint8, where they are."""
    pixels = images.detach().permute(0, 2, 3, 1).float() * 255
    return pixels.round().to(torch.uint8).contiguous()
