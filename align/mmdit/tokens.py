"""Latents as the transformer's tokens, and back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["num_tokens", "pack", "unpack"]


def pack(latents: Tensor) -> Tensor:
    """Latents ``(B, C, h, w)`` to tokens ``(B, h w / 4, 4 C)`` of 2 x 2 patches."""
    b, c, h, w = latents.shape
    patches = latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, (h // 2) * (w // 2), 4 * c)


def num_tokens(latents: Tensor) -> int:
    """Tokens that `pack` makes of each of ``latents (B, C, h, w)``."""
    return latents.shape[-2] * latents.shape[-1] // 4


def unpack(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Inverse of `pack`; ``size`` is ``(h, w)`` of the latents."""
    h, w = size
    b, _, channels = tokens.shape
    patches = tokens.reshape(b, h // 2, w // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, channels // 4, h, w)
