"""The elementwise work of a joint block in plain torch: what the fused kernels must equal, and what
`torch.compile` fuses by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["add_norm_modulate", "qk_norm_rope", "rotate"]


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring pairs of ``x (B, S, H, d)`` by the angles of ``table (S, d / 2, 2)``.

    ``(a + ib)(cos + i sin)`` in float32, in the order of the stock complex product.
    """
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table[:, None].unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def qk_norm_rope(
    text: Tensor,
    image: Tensor,
    text_weight: Tensor,
    image_weight: Tensor,
    text_table: Tensor,
    image_table: Tensor,
    eps: float,
) -> Tensor:
    """Queries or keys of the joint sequence [text, image], ``(B, L + N, H, d)``.

    Args:
        text: ``(B, L, H, d)``, projected.
        image: ``(B, N, H, d)``.
        text_weight: ``(d,)`` of the RMSNorm over d.
        image_weight: ``(d,)``.
        text_table: ``(L, d / 2, 2)`` of `rotate`.
        image_table: ``(N, d / 2, 2)``.
    """
    parts = ((text, text_weight, text_table), (image, image_weight, image_table))
    return torch.cat([rotate(_rms_norm(x, w, eps), table) for x, w, table in parts], dim=1)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In the order of roundings of diffusers' RMSNorm."""
    normed = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    half = weight.dtype in (torch.float16, torch.bfloat16)
    return (normed.to(weight.dtype) if half else normed) * weight


def add_norm_modulate(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """``x + gate update``, and its ``LayerNorm (1 + scale) + shift``, both ``(B, S, D)``.

    Args:
        x: ``(B, S, D)``.
        update: ``(B, S, D)``; None: nothing is added, and the first result is ``x``.
        gate: ``(B, D)``, with ``update``.
        shift: ``(B, D)``.
        scale: ``(B, D)``.
    """
    if update is not None:
        assert gate is not None
        x = x + gate[:, None] * update
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return x, normed * (1 + scale[:, None]) + shift[:, None]
