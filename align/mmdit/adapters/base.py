"""What a model family must offer, and the conditioning that travels with latents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from align.mmdit.blocks import BlockSettings

PARTS = ("transformer", "vae", "text_encoder")
"""Parts of a pipeline that hold weights; an adapter may be loaded with some of them only."""


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts of a batch."""

    prompt_embeds: Tensor
    """``(B, L, D)``; padded rows end in zeros."""
    mask: Tensor | None = None
    """``(B, L)`` bool, True on real tokens; None when nothing is padded."""

    def __len__(self) -> int:
        return self.prompt_embeds.shape[0]

    def select(self, index: Tensor | Sequence[int] | slice) -> Conditioning:
        """The rows named by ``index``, padding kept: the numbers stay those of the batch."""
        if not isinstance(index, slice):
            index = torch.as_tensor(index, device=self.prompt_embeds.device)
        mask = None if self.mask is None else self.mask[index]
        return Conditioning(self.prompt_embeds[index], mask)

    def trim(self) -> Conditioning:
        """Drop columns that pad every row, and the mask where no padding is left."""
        if self.mask is None:
            return self
        length = int(self.mask.sum(1).max())
        mask = self.mask[:, :length]
        return Conditioning(self.prompt_embeds[:, :length], None if mask.all() else mask)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """Move both tensors; ``dtype`` is that of the embeddings."""
        mask = None if self.mask is None else self.mask.to(device)
        return Conditioning(self.prompt_embeds.to(device=device, dtype=dtype), mask)

    @staticmethod
    def cat(parts: Iterable[Conditioning]) -> Conditioning:
        """Join batches, padding the shorter ones; the mask is None if nothing is padded."""
        parts = list(parts)
        if not parts:
            raise ValueError("Conditioning.cat got no parts; at least one is needed")
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
        return Conditioning(torch.cat(embeds), None if mask.all() else mask)


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

    @property
    def scale_factor(self) -> int:
        """Pixels per latent along a side."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning: ...

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
        """Hidden states after ``num_blocks`` blocks: image ``(B, N, D)``, text, mask."""
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

    def install_blocks(self, transformer: nn.Module, settings: BlockSettings) -> str:
        """Make the bare ``transformer`` compute as ``settings`` say; returns that in words."""
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
    """Images ``(B, 3, H, W)`` in [0, 1] to ``(B, H, W, 3)`` uint8, on the CPU."""
    return (images.detach().cpu().permute(0, 2, 3, 1).float() * 255).round().to(torch.uint8)
