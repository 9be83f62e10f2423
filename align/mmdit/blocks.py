"""Qwen-Image's blocks for training: the stock modules under a forward pass of our own.

What differs from `QwenImageTransformerBlock.forward`, and why:

- The rotary embedding is in real numbers. Inductor generates no code for complex ones, so the stock
  form splits every block's graph around float32 buffers.
- A batch of prompts of different lengths comes as one row of text tokens without padding; linear
  layers see real tokens only, and attention runs sample by sample on its dense path, with no mask.
- What is kept for the backward pass is decided inside the block, so that `torch.compile` sees the
  checkpoint and fuses what it computes again.

Weights, their names and their modules stay the stock ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn

from align.mmdit.activations import Recompute, check_saved_ops, recomputing
from align.mmdit.attention import AttentionDevice, OpRecorder, choose_attention, require_backend

__all__ = ["BlockSettings", "RealRope", "has_joint_blocks", "install_blocks", "rotate", "unwrap"]

BLOCKS = ("stock", "joint")


@dataclass(frozen=True)
class BlockSettings:
    """How the blocks of a transformer compute; the defaults are diffusers' own way."""

    blocks: Literal["stock", "joint"] = "stock"
    """``joint``: the forward pass of this module."""
    recompute: Recompute = "none"
    """What is computed again in the backward pass; see `align.mmdit.activations`."""
    compile: bool = False
    """`torch.compile` each block by itself; of the joint ones alone."""
    attention: str | None = None
    """A backend of diffusers' dispatcher for joint blocks; None: `choose_attention` does."""

    def __post_init__(self) -> None:
        if self.blocks not in BLOCKS:
            raise ValueError(f"blocks is {self.blocks!r}; choices: {', '.join(BLOCKS)}")
        if self.blocks == "stock" and (self.compile or self.attention):
            raise ValueError(
                f"blocks is 'stock' with compile={self.compile} and attention={self.attention!r}: "
                "both need blocks 'joint' (stock blocks turn in complex numbers, which are not "
                "compiled, and pass masks)"
            )


def install_blocks(transformer: nn.Module, settings: BlockSettings) -> str:
    """Make ``transformer`` compute as ``settings`` say; returns what was chosen, in words.

    The transformer is a bare `QwenImageTransformer2DModel`, its weights where they will compute or
    on the CPU. Compiling comes last: a copy for a reference must be taken before.

    Raises:
        ValueError: the backend is wrong for training, or selective saving would miss a matrix
            product on this device.
    """
    model: Any = transformer
    said = f"blocks {settings.blocks}, recompute {settings.recompute}"
    if settings.blocks == "stock":
        if settings.recompute == "full":
            model.enable_gradient_checkpointing()
        elif settings.recompute == "selective":
            check_saved_ops(_ops_of(model))
            model.enable_gradient_checkpointing(recomputing("selective"))
        return said
    if getattr(model, "zero_cond_t", False):
        raise ValueError("this transformer has zero_cond_t, which joint blocks do not compute")
    choice = choose_attention(AttentionDevice.here(next(model.parameters()).device))
    backend = settings.attention or choice.backend
    require_backend(backend, masked=False)
    if not isinstance(model.pos_embed, RealRope):
        model.pos_embed = RealRope(model.pos_embed)
    for block in model.transformer_blocks:
        block.joint = _Joint(AttentionBackendName(backend), settings.recompute)
        block.forward = MethodType(_forward, block)
    if settings.recompute == "selective":
        check_saved_ops(_ops_of(model))
    if settings.compile:
        for block in model.transformer_blocks:
            block.compile()
    why = "as asked" if settings.attention else choice.reason
    compiled = ", compiled block by block" if settings.compile else ""
    return f"{said}{compiled}; attention {backend} ({choice.kernel}: {why})"


def has_joint_blocks(transformer: nn.Module) -> bool:
    """Whether the module, wrapped or bare, takes text without padding."""
    return isinstance(getattr(unwrap(transformer), "pos_embed", None), RealRope)


def unwrap(module: nn.Module) -> nn.Module:
    """The bare module inside DDP, a DeepSpeed engine or torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None) or getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


# Rotary embedding ---------------------------------------------------------------------------------


class RealRope(nn.Module):
    """The stock position embedding, its complex numbers given as (cosine, sine)."""

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.stock = stock

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Tables ``(N, d / 2, 2)`` for image tokens and ``(L, d / 2, 2)`` for text tokens."""
        image, text = self.stock(*args, **kwargs)
        return torch.view_as_real(image), torch.view_as_real(text)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring pairs of ``x (B, S, H, d)`` by the angles of ``table (S, d / 2, 2)``.

    ``(a + ib)(cos + i sin)`` in float32, in the order of the stock complex product.
    """
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table[:, None].unbind(-1)
    turned = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


# The block ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Joint:
    backend: AttentionBackendName
    recompute: Recompute


def _forward(
    self: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    encoder_hidden_states_mask: Tensor | None,
    temb: Tensor,
    image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
    modulate_index: Any = None,
) -> tuple[Tensor, Tensor]:
    """The signature of the stock block; ``joint_attention_kwargs`` may bring ``text_lengths``."""
    assert image_rotary_emb is not None
    assert modulate_index is None
    if encoder_hidden_states_mask is not None:
        raise ValueError(
            "joint blocks take text without padding: pass the tokens of all samples as one row "
            "and their numbers as attention_kwargs['text_lengths']"
        )
    lengths = (joint_attention_kwargs or {}).get("text_lengths")
    arguments = (hidden_states, encoder_hidden_states, temb, *image_rotary_emb, lengths)
    if torch.is_grad_enabled():
        return recomputing(self.joint.recompute)(_joint_block, self, *arguments)
    return _joint_block(self, *arguments)


def _joint_block(
    block: Any,
    image: Tensor,
    text: Tensor,
    temb: Tensor,
    image_table: Tensor,
    text_table: Tensor,
    lengths: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """Text and image after one block.

    Args:
        image: ``(B, N, D)``.
        text: ``(B, L, D)``; with ``lengths``, ``(1, sum of lengths, D)``.
        temb: ``(B, D)``.
        lengths: text tokens of each sample; None: L for each.
    """
    image_1, image_2 = block.img_mod(temb).chunk(2, dim=-1)
    text_1, text_2 = block.txt_mod(temb).chunk(2, dim=-1)
    image_out, text_out = _attend(
        block,
        _modulate(block.img_norm1(image), image_1),
        _modulate(block.txt_norm1(text), text_1, lengths),
        image_table,
        text_table,
        lengths,
    )
    image = _add_gated(image, image_out, image_1)
    text = _add_gated(text, text_out, text_1, lengths)
    image_out = block.img_mlp(_modulate(block.img_norm2(image), image_2))
    text_out = block.txt_mlp(_modulate(block.txt_norm2(text), text_2, lengths))
    return _add_gated(text, text_out, text_2, lengths), _add_gated(image, image_out, image_2)


def _attend(
    block: Any,
    image: Tensor,
    text: Tensor,
    image_table: Tensor,
    text_table: Tensor,
    lengths: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """Joint attention in the order [text, image], and the two output layers."""
    attn = block.attn
    shape = (-1, attn.inner_dim // attn.heads)
    if lengths is not None:
        text_table = torch.cat([text_table[:length] for length in lengths])
    image_qkv = (
        rotate(attn.norm_q(attn.to_q(image).unflatten(-1, shape)), image_table),
        rotate(attn.norm_k(attn.to_k(image).unflatten(-1, shape)), image_table),
        attn.to_v(image).unflatten(-1, shape),
    )
    text_qkv = (
        rotate(attn.norm_added_q(attn.add_q_proj(text).unflatten(-1, shape)), text_table),
        rotate(attn.norm_added_k(attn.add_k_proj(text).unflatten(-1, shape)), text_table),
        attn.add_v_proj(text).unflatten(-1, shape),
    )
    if lengths is None:
        images, texts = [image_qkv], [text_qkv]
    else:
        images = list(zip(*(x.split(1) for x in image_qkv), strict=True))
        texts = list(zip(*(x.split(list(lengths), dim=1) for x in text_qkv), strict=True))
    parts = []
    for own_image, own_text in zip(images, texts, strict=True):
        query, key, value = (
            torch.cat(pair, dim=1) for pair in zip(own_text, own_image, strict=True)
        )
        out = dispatch_attention_fn(query, key, value, backend=block.joint.backend).flatten(2, 3)
        parts.append(out.split([own_text[0].shape[1], image.shape[1]], dim=1))
    text_out = torch.cat([part[0] for part in parts], dim=1) if lengths else parts[0][0]
    image_out = torch.cat([part[1] for part in parts]) if lengths else parts[0][1]
    image_out = attn.to_out[1](attn.to_out[0](image_out.contiguous()))
    return image_out, attn.to_add_out(text_out.contiguous())


def _modulate(x: Tensor, modulation: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """``x (1 + scale) + shift``; ``modulation (B, 3 D)`` holds shift, scale and gate."""
    shift, scale, _ = modulation.chunk(3, dim=-1)
    if lengths is None:
        return x * (1 + scale[:, None]) + shift[:, None]
    rows = zip(x.split(list(lengths), dim=1), scale, shift, strict=True)
    return torch.cat([part * (1 + own_scale) + own_shift for part, own_scale, own_shift in rows], 1)


def _add_gated(
    x: Tensor, update: Tensor, modulation: Tensor, lengths: Sequence[int] | None = None
) -> Tensor:
    """``x + gate update``."""
    gate = modulation.chunk(3, dim=-1)[2]
    if lengths is None:
        return x + gate[:, None] * update
    rows = zip(update.split(list(lengths), dim=1), gate, strict=True)
    return x + torch.cat([own_gate * part for part, own_gate in rows], dim=1)


def _ops_of(model: Any) -> set[Any]:
    """Operators of one block's forward pass with a gradient, on the model's device and dtype."""
    weight = next(p for p in model.transformer_blocks.parameters() if p.is_floating_point())
    like = {"device": weight.device, "dtype": weight.dtype}
    block, width = model.transformer_blocks[0], model.inner_dim
    image = torch.zeros(1, 16, width, **like, requires_grad=True)
    text, temb = torch.zeros(1, 4, width, **like), torch.zeros(1, width, **like)
    rope = model.pos_embed([[(1, 4, 4)]], max_txt_seq_len=4, device=weight.device)
    with torch.enable_grad(), OpRecorder() as recorder:
        block(image, text, None, temb, rope)
    return set(recorder.ops)
