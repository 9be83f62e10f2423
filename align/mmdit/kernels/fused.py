# pyright: reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
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


# RMSNorm and rotary embedding, into the joint sequence --------------------------------------------


@triton.jit
def _qk_forward(
    x, weight, table, out, tokens, joint_tokens, offset, heads, eps,
    WIDTH: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One program: one token of one sample, all heads in turn."""
    row = tl.program_id(0)
    sample, token = row // tokens, row % tokens
    pair = tl.arange(0, HALF)
    cos = tl.load(table + token * WIDTH + 2 * pair)
    sin = tl.load(table + token * WIDTH + 2 * pair + 1)
    w_even = tl.load(weight + 2 * pair).to(tl.float32)
    w_odd = tl.load(weight + 2 * pair + 1).to(tl.float32)
    for head in range(heads):
        source = x + (row * heads + head) * WIDTH
        target = out + ((sample * joint_tokens + offset + token) * heads + head) * WIDTH
        even = tl.load(source + 2 * pair).to(tl.float32)
        odd = tl.load(source + 2 * pair + 1).to(tl.float32)
        scale = tl.rsqrt((tl.sum(even * even, 0) + tl.sum(odd * odd, 0)) / WIDTH + eps)
        even, odd = even * scale * w_even, odd * scale * w_odd
        tl.store(target + 2 * pair, (even * cos - odd * sin).to(out.dtype.element_ty))
        tl.store(target + 2 * pair + 1, (even * sin + odd * cos).to(out.dtype.element_ty))


@triton.jit
def _qk_backward(
    x, weight, table, grad, grad_x, partial, rows, tokens, joint_tokens, offset, heads, eps,
    WIDTH: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """One program: ROWS tokens; leaves its sum of the weight's gradient in ``partial``."""
    program = tl.program_id(0)
    pair = tl.arange(0, HALF)
    w_even = tl.load(weight + 2 * pair).to(tl.float32)
    w_odd = tl.load(weight + 2 * pair + 1).to(tl.float32)
    sum_even = tl.zeros([HALF], tl.float32)
    sum_odd = tl.zeros([HALF], tl.float32)
    for step in range(ROWS):
        row = program * ROWS + step
        if row < rows:
            sample, token = row // tokens, row % tokens
            cos = tl.load(table + token * WIDTH + 2 * pair)
            sin = tl.load(table + token * WIDTH + 2 * pair + 1)
            for head in range(heads):
                source = (row * heads + head) * WIDTH
                upstream = grad + ((sample * joint_tokens + offset + token) * heads + head) * WIDTH
                g_even = tl.load(upstream + 2 * pair).to(tl.float32)
                g_odd = tl.load(upstream + 2 * pair + 1).to(tl.float32)
                even = tl.load(x + source + 2 * pair).to(tl.float32)
                odd = tl.load(x + source + 2 * pair + 1).to(tl.float32)
                scale = tl.rsqrt((tl.sum(even * even, 0) + tl.sum(odd * odd, 0)) / WIDTH + eps)
                # Turned back by the same angle, then through the norm.
                y_even, y_odd = g_even * cos + g_odd * sin, g_odd * cos - g_even * sin
                n_even, n_odd = even * scale, odd * scale
                sum_even += y_even * n_even
                sum_odd += y_odd * n_odd
                y_even, y_odd = y_even * w_even, y_odd * w_odd
                mean = (tl.sum(y_even * n_even, 0) + tl.sum(y_odd * n_odd, 0)) / WIDTH
                element = grad_x.dtype.element_ty
                tl.store(grad_x + source + 2 * pair, ((y_even - n_even * mean) * scale).to(element))
                tl.store(
                    grad_x + source + 2 * pair + 1, ((y_odd - n_odd * mean) * scale).to(element)
                )
    tl.store(partial + program * WIDTH + 2 * pair, sum_even)
    tl.store(partial + program * WIDTH + 2 * pair + 1, sum_odd)


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
            _qk_forward[(batch * tokens,)](
                x, weight, table, joint, tokens, joint.shape[1], offset, heads, eps,
                WIDTH=width, HALF=width // 2,
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
            rows = batch * tokens
            programs = triton.cdiv(rows, ROWS)
            grad_x = torch.empty_like(x)
            partial = x.new_empty(programs, width, dtype=torch.float32)
            _qk_backward[(programs,)](
                x, weight, table, grad, grad_x, partial, rows, tokens, grad.shape[1], offset,
                heads, ctx.eps, WIDTH=width, HALF=width // 2, ROWS=ROWS,
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
    row = tl.program_id(0)
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
    program, sample = tl.program_id(0), tl.program_id(1)
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
            HAS_UPDATE=has_update, BLOCK=triton.next_power_of_2(width),
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
