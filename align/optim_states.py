"""How an optimizer keeps its numbers small: 8-bit moments, split masters, stochastic rounding."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

__all__ = ["BLOCK", "dequantize", "join", "quantize", "round_stochastically", "split"]

BLOCK = 256
"""Neighbouring elements that share one scale."""


# 8-bit moments ------------------------------------------------------------------------------------


@cache
def dynamic_code(signed: bool) -> Tensor:
    """The 256 levels of dynamic tree quantisation (arXiv 1511.04561, 2110.02861), ascending.

    Seven decades down from 1; the lower the decade, the fewer levels it has. Signed levels lie in
    [-1, 1], unsigned ones in [0, 1]; 0 and 1 are levels.
    """
    levels = [0.0, 1.0]
    for decade in range(7):
        count = 2 ** (6 - decade) * (1 if signed else 2)
        edges = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float64)
        means = ((edges[:-1] + edges[1:]) / 2 * 10.0**-decade).tolist()
        levels += means + ([-x for x in means] if signed else [])
    assert len(levels) == 256
    return torch.tensor(sorted(levels), dtype=torch.float32)


@cache
def _tables(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Levels, and the borders halfway between them."""
    levels = dynamic_code(signed)
    return levels.to(device), ((levels[1:] + levels[:-1]) / 2).to(device)


def quantize(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes ``(N,)`` uint8 and scales ``(N / 256,)`` float32 of ``values (N,)`` float32.

    A block's scale is its largest magnitude. An unsigned value above zero never becomes zero: a
    second moment of zero under a first moment that is not would be a step of m / eps.
    """
    blocks = values.view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    _, borders = _tables(signed, values.device)
    normed = blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(normed, borders, out_int32=True)
    if not signed:
        codes = torch.where(normed > 0, codes.clamp_min(1), codes)
    return codes.to(torch.uint8).view(-1), scales


def dequantize(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """Values ``(N,)`` float32 of `quantize`'s codes and scales."""
    levels, _ = _tables(signed, codes.device)
    return (levels[codes.int()].view(-1, BLOCK) * scales[:, None]).view(-1)


# Weights ------------------------------------------------------------------------------------------


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 tensor as its nearest bfloat16 and the int16 difference of the bit patterns.

    Halves round away from zero, unlike a cast's: then the difference fits in 16 bits.
    """
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    low = (bits - (high << 16)).to(torch.int16)
    return high.to(torch.int16).view(torch.bfloat16), low


def join(weight: Tensor, low: Tensor) -> Tensor:
    """The float32 tensor that `split` took apart, to the bit."""
    high = weight.view(torch.int16).to(torch.int32)
    return ((high << 16) + low).view(torch.float32)


def round_stochastically(master: Tensor, generator: torch.Generator) -> Tensor:
    """bfloat16 neighbours of float32 values, drawn so that the mean is the value.

    Adds 16 random bits below bfloat16's last and cuts them off.
    """
    noise = torch.randint(
        0, 1 << 16, master.shape, dtype=torch.int32, device=master.device, generator=generator
    )
    bits = (master.view(torch.int32) + noise) >> 16
    return bits.to(torch.int16).view(torch.bfloat16)
