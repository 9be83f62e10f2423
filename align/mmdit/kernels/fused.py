# pyright: reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false
"""Triton kernels of the elementwise work in a joint block, forward and backward.

Each launch handles whole rows in float32 and rounds once, where the eager twins of
`align.mmdit.kernels.eager` round after every operation. Sums over rows go through partial sums in
an order that does not depend on the launch, so gradients are the same bits every time.

``TRITON_INTERPRET=1`` before the first import runs them on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["add_norm_modulate", "qk_norm_rope"]

ROWS = 16
"""Rows that one program of a backward pass goes through, summing as it goes."""
WARPS = 8
"""Of a program that holds a whole token: a thread has 16 of 4096 numbers."""
HEADS = 16
"""Rows of one head that a program of `qk_norm_rope` holds at once."""


# RMSNorm and rotary embedding, into the joint sequence --------------------------------------------
#
# A row is one head of one token; rows lie one after the other, and so do a row's pairs of numbers,
# which are loaded whole and then taken apart: neighbouring threads read neighbouring bytes.


@triton.jit
def _places(row, tokens, joint_tokens, offset, heads):
    """The token of each row, and the row in the joint sequence; int64, as all products of them."""
    token = row // heads
    sample = token // tokens
    return token % tokens, row + (sample * (joint_tokens - tokens) + offset) * heads


@triton.jit
def _pairs(values, HEADS: tl.constexpr, HALF: tl.constexpr):
    """``(HEADS, WIDTH)`` as its even and its odd columns, float32."""
    return tl.split(tl.reshape(values.to(tl.float32), [HEADS, HALF, 2]))


@triton.jit
def _qk_forward(
    x, weight, table, out, rows, tokens, joint_tokens, offset, heads, eps,
    WIDTH: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """One program: HEADS rows."""
    row = tl.program_id(0).to(tl.int64) * HEADS + tl.arange(0, HEADS)
    token, target = _places(row, tokens, joint_tokens, offset, heads)
    column, inside = tl.arange(0, WIDTH)[None, :], (row < rows)[:, None]
    even, odd = _pairs(
        tl.load(x + row[:, None] * WIDTH + column, mask=inside, other=0.0), HEADS, HALF
    )
    cos, sin = _pairs(
        tl.load(table + token[:, None] * WIDTH + column, mask=inside, other=0.0), HEADS, HALF
    )
    w_even, w_odd = _pairs(tl.load(weight + column), 1, HALF)
    scale = tl.rsqrt((tl.sum(even * even, 1) + tl.sum(odd * odd, 1)) / WIDTH + eps)[:, None]
    even, odd = even * scale * w_even, odd * scale * w_odd
    turned = tl.join(even * cos - odd * sin, even * sin + odd * cos)
    turned = tl.reshape(turned, [HEADS, WIDTH]).to(out.dtype.element_ty)
    tl.store(out + target[:, None] * WIDTH + column, turned, mask=inside)


@triton.jit
def _qk_backward(
    x, weight, table, grad, grad_x, partial, rows, tokens, joint_tokens, offset, heads, eps,
    WIDTH: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS times HEADS rows; leaves its sum of the weight's gradient in
    ``partial``."""
    program = tl.program_id(0)
    column = tl.arange(0, WIDTH)[None, :]
    w_even, w_odd = _pairs(tl.load(weight + column), 1, HALF)
    sum_even = tl.zeros([HEADS, HALF], tl.float32)
    sum_odd = tl.zeros([HEADS, HALF], tl.float32)
    for step in range(ROWS):
        row = (program.to(tl.int64) * ROWS + step) * HEADS + tl.arange(0, HEADS)
        token, source = _places(row, tokens, joint_tokens, offset, heads)
        inside = (row < rows)[:, None]
        even, odd = _pairs(
            tl.load(x + row[:, None] * WIDTH + column, mask=inside, other=0.0), HEADS, HALF
        )
        g_even, g_odd = _pairs(
            tl.load(grad + source[:, None] * WIDTH + column, mask=inside, other=0.0), HEADS, HALF
        )
        cos, sin = _pairs(
            tl.load(table + token[:, None] * WIDTH + column, mask=inside, other=0.0), HEADS, HALF
        )
        scale = tl.rsqrt((tl.sum(even * even, 1) + tl.sum(odd * odd, 1)) / WIDTH + eps)[:, None]
        # Turned back by the same angle, then through the norm.
        y_even, y_odd = g_even * cos + g_odd * sin, g_odd * cos - g_even * sin
        n_even, n_odd = even * scale, odd * scale
        sum_even += y_even * n_even
        sum_odd += y_odd * n_odd
        y_even, y_odd = y_even * w_even, y_odd * w_odd
        mean = ((tl.sum(y_even * n_even, 1) + tl.sum(y_odd * n_odd, 1)) / WIDTH)[:, None]
        result = tl.join((y_even - n_even * mean) * scale, (y_odd - n_odd * mean) * scale)
        result = tl.reshape(result, [HEADS, WIDTH]).to(grad_x.dtype.element_ty)
        tl.store(grad_x + row[:, None] * WIDTH + column, result, mask=inside)
    total = tl.join(tl.sum(sum_even, 0), tl.sum(sum_odd, 0))
    tl.store(partial + program * WIDTH + tl.arange(0, WIDTH), tl.reshape(total, [WIDTH]))


class _QKNormRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        text: Tensor,
        image: Tensor,
        text_weight: Tensor,
        image_weight: Tensor,
        text_table: Tensor,
        image_table: Tensor,
        eps: float,
    ) -> Tensor:
        parts = [
            (x.contiguous(), weight, table.float().contiguous())
            for x, weight, table in (
                (text, text_weight, text_table),
                (image, image_weight, image_table),
            )
        ]
        batch, length, heads, width = text.shape
        joint = text.new_empty(batch, length + image.shape[1], heads, width)
        offset = 0
        for x, weight, table in parts:
            tokens = x.shape[1]
            rows = batch * tokens * heads
            _qk_forward[(triton.cdiv(rows, HEADS),)](
                x, weight, table, joint, rows, tokens, joint.shape[1], offset, heads, eps,
                WIDTH=width, HALF=width // 2, HEADS=HEADS,
            )  # fmt: skip
            offset += tokens
        ctx.save_for_backward(*(tensor for part in parts for tensor in part))
        ctx.eps = eps
        return joint

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        saved, offset, found = ctx.saved_tensors, 0, []
        for x, weight, table in (saved[:3], saved[3:]):
            batch, tokens, heads, width = x.shape
            rows = batch * tokens * heads
            programs = triton.cdiv(rows, ROWS * HEADS)
            grad_x = torch.empty_like(x)
            partial = x.new_empty(programs, width, dtype=torch.float32)
            _qk_backward[(programs,)](
                x, weight, table, grad, grad_x, partial, rows, tokens, grad.shape[1], offset,
                heads, ctx.eps, WIDTH=width, HALF=width // 2, HEADS=HEADS, ROWS=ROWS,
            )  # fmt: skip
            found.append((grad_x, partial.sum(0).to(weight.dtype)))
            offset += tokens
        (grad_text, grad_text_weight), (grad_image, grad_image_weight) = found
        return grad_text, grad_image, grad_text_weight, grad_image_weight, None, None, None


def qk_norm_rope(
    text: Tensor,
    image: Tensor,
    text_weight: Tensor,
    image_weight: Tensor,
    text_table: Tensor,
    image_table: Tensor,
    eps: float,
) -> Tensor:
    """As `eager.qk_norm_rope`, in two launches that write the joint sequence directly."""
    joint = _QKNormRope.apply(text, image, text_weight, image_weight, text_table, image_table, eps)
    assert isinstance(joint, Tensor)
    return joint


# Gated residual, LayerNorm and modulation ---------------------------------------------------------


@triton.jit
def _norm_forward(
    x, update, gate, shift, scale, total, out, statistics, tokens, width, eps,
    HAS_UPDATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one token."""
    row = tl.program_id(0).to(tl.int64)  # products with the width pass int32
    sample = row // tokens
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_UPDATE:
        add = tl.load(update + row * width + column, mask=inside, other=0.0).to(tl.float32)
        weight = tl.load(gate + sample * width + column, mask=inside, other=0.0).to(tl.float32)
        value = (value + add * weight).to(total.dtype.element_ty)
        tl.store(total + row * width + column, value, mask=inside)
        value = value.to(tl.float32)  # the norm sees what the residual stream keeps
    mean = tl.sum(value, 0) / width
    centred = tl.where(inside, value - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 0) / width + eps)
    factor = tl.load(scale + sample * width + column, mask=inside, other=0.0).to(tl.float32)
    move = tl.load(shift + sample * width + column, mask=inside, other=0.0).to(tl.float32)
    result = centred * rstd * (1 + factor) + move
    tl.store(out + row * width + column, result.to(out.dtype.element_ty), mask=inside)
    tl.store(statistics + 2 * row, mean)
    tl.store(statistics + 2 * row + 1, rstd)


@triton.jit
def _norm_backward(
    total, update, gate, scale, statistics, grad_total, grad_out, grad_x, grad_update,
    partial, tokens, width, programs,
    HAS_UPDATE: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS tokens of one sample; leaves its sums over tokens in ``partial``."""
    program, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    factor = tl.load(scale + sample * width + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.zeros([BLOCK], tl.float32)
    if HAS_UPDATE:
        weight = tl.load(gate + sample * width + column, mask=inside, other=0.0).to(tl.float32)
    to_shift = tl.zeros([BLOCK], tl.float32)
    to_scale = tl.zeros([BLOCK], tl.float32)
    to_gate = tl.zeros([BLOCK], tl.float32)
    for step in range(ROWS):
        token = program * ROWS + step
        if token < tokens:
            row = sample * tokens + token
            place = row * width + column
            mean = tl.load(statistics + 2 * row)
            rstd = tl.load(statistics + 2 * row + 1)
            value = tl.load(total + place, mask=inside, other=0.0).to(tl.float32)
            normed = tl.where(inside, (value - mean) * rstd, 0.0)
            upstream = tl.load(grad_out + place, mask=inside, other=0.0).to(tl.float32)
            to_shift += upstream
            to_scale += upstream * normed
            inner = upstream * (1 + factor)
            first = tl.sum(inner, 0) / width
            second = tl.sum(inner * normed, 0) / width
            whole = (inner - first - normed * second) * rstd
            whole += tl.load(grad_total + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(grad_x + place, whole.to(grad_x.dtype.element_ty), mask=inside)
            if HAS_UPDATE:
                add = tl.load(update + place, mask=inside, other=0.0).to(tl.float32)
                to_gate += whole * add
                result = (whole * weight).to(grad_update.dtype.element_ty)
                tl.store(grad_update + place, result, mask=inside)
    start = partial + ((sample * programs + program) * 3) * width + column
    tl.store(start, to_shift, mask=inside)
    tl.store(start + width, to_scale, mask=inside)
    tl.store(start + 2 * width, to_gate, mask=inside)


class _AddNormModulate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        update: Tensor | None,
        gate: Tensor | None,
        shift: Tensor,
        scale: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        batch, tokens, width = x.shape
        x, shift, scale = x.contiguous(), shift.contiguous(), scale.contiguous()
        has_update = update is not None
        update = update.contiguous() if update is not None else x
        gate = gate.contiguous() if gate is not None else shift
        total = torch.empty_like(x) if has_update else x
        out = torch.empty_like(x)
        statistics = x.new_empty(batch * tokens, 2, dtype=torch.float32)
        _norm_forward[(batch * tokens,)](
            x, update, gate, shift, scale, total, out, statistics, tokens, width, eps,
            HAS_UPDATE=has_update, BLOCK=triton.next_power_of_2(width), num_warps=WARPS,
        )  # fmt: skip
        ctx.save_for_backward(total, update, gate, scale, statistics)
        ctx.has_update = has_update
        return (total if has_update else x.view_as(x)), out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total, update, gate, scale, statistics = ctx.saved_tensors
        batch, tokens, width = total.shape
        programs = triton.cdiv(tokens, ROWS)
        grad_x = torch.empty_like(total)
        grad_update = torch.empty_like(total) if ctx.has_update else grad_x
        partial = total.new_empty(batch, programs, 3, width, dtype=torch.float32)
        _norm_backward[(programs, batch)](
            total, update, gate, scale, statistics, grads[0].contiguous(), grads[1].contiguous(),
            grad_x, grad_update, partial, tokens, width, programs,
            HAS_UPDATE=ctx.has_update, BLOCK=triton.next_power_of_2(width), ROWS=ROWS,
            num_warps=WARPS,
        )  # fmt: skip
        to_shift, to_scale, to_gate = partial.sum(1).to(scale.dtype).unbind(1)
        if not ctx.has_update:
            return grad_x, None, None, to_shift, to_scale, None
        return grad_x, grad_update, to_gate, to_shift, to_scale, None


def add_norm_modulate(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """As `eager.add_norm_modulate`, in one launch."""
    total, out = _AddNormModulate.apply(x, update, gate, shift, scale, eps)  # type: ignore[misc]
    return total, out
