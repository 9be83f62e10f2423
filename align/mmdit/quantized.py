"""A frozen base in 8 or 4 bits under a LoRA: linear layers that are widened where they compute.

``fp8`` keeps float8 (e4m3) values with a scale for each row; ``nf4`` the 16 levels of QLoRA's
NormalFloat (arXiv 2305.14314, without its double quantisation) with a scale for every 64 weights.
A layer's weight exists in full only while its product runs, in the forward and again in the
backward pass: nothing of it is kept between them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NF4", "Quantization", "QuantizedLinear", "dequantize", "quantize", "quantize_blocks"]

Quantization = Literal["fp8", "nf4"]

BLOCK = 64
FP8 = torch.float8_e4m3fn
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels as published (arXiv 2305.14314, appendix E)."""


def quantize(weight: Tensor, kind: Quantization) -> tuple[Tensor, Tensor]:
    """Codes and float32 scales of ``weight (R, C)``.

    Codes are uint8. ``fp8``: ``(R, C)``, the bits of float8 values, and ``(R, 1)``. ``nf4``:
    ``(R C / 2,)``, of two neighbours the first in the high half, and ``(R C / 64, 1)``.

    Raises:
        ValueError: nf4 of a weight that does not divide into blocks of 64.
    """
    values = weight.detach().float()
    if kind == "fp8":
        scales = values.abs().amax(1, keepdim=True) / torch.finfo(FP8).max
        return (values / _divisor(scales)).to(FP8).view(torch.uint8), scales
    if values.numel() % BLOCK:
        raise ValueError(f"nf4 takes blocks of {BLOCK} weights, got {tuple(weight.shape)}")
    blocks = values.view(-1, BLOCK)
    scales = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4, device=weight.device)
    indices = torch.bucketize(blocks / _divisor(scales), (levels[1:] + levels[:-1]) / 2)
    first, second = indices.view(-1, 2).to(torch.uint8).unbind(1)
    return (first << 4) | second, scales


def dequantize(codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight ``shape`` in ``dtype``, each value rounded once."""
    if codes.dim() == 2:
        return codes.view(FP8).float().mul_(scales).to(dtype)
    pairs = _pairs(codes.device)[codes.int()]
    return pairs.view(-1, BLOCK).mul_(scales).view(shape).to(dtype)


@cache
def _pairs(device: torch.device) -> Tensor:
    """``(256, 2)``: the two levels of each byte."""
    levels = torch.tensor(NF4)
    return torch.cartesian_prod(levels, levels).to(device)


def _divisor(scales: Tensor) -> Tensor:
    """A block of zeros is divided by something that is not zero."""
    return scales.clamp_min(torch.finfo(torch.float32).tiny)


class QuantizedLinear(nn.Linear):
    """A frozen linear layer, its weight in codes; the compute type is that of ``linear``."""

    codes: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear, kind: Quantization) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = linear.weight.dtype
        codes, scales = quantize(linear.weight, kind)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_parameter("bias", linear.bias)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Widened anew each time."""
        shape = (self.out_features, self.in_features)
        return dequantize(self.codes, self.scales, shape, self.dtype)

    def forward(self, input: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        return _Product.apply(input.to(self.dtype), self.codes, self.scales, self.bias, shape)


class _Product(torch.autograd.Function):
    """``x W' + b`` with a gradient for x alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        shape: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.shape = shape
        return F.linear(x, dequantize(codes, scales, shape, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = grads
        codes, scales = ctx.saved_tensors
        return grad @ dequantize(codes, scales, ctx.shape, grad.dtype), None, None, None, None


def quantize_blocks(
    transformer: nn.Module, kind: Quantization, device: torch.device | str
) -> nn.Module:
    """Quantise the linear layers of the blocks of ``transformer``, frozen and on any device, and
    bring it to ``device``: layer by layer, so that the whole never lies there wide."""
    for block in cast(Any, transformer).transformer_blocks:
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    setattr(module, name, QuantizedLinear(child.to(device), kind))
    return transformer.to(device)
