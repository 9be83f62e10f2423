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

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, Literal

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor, nn

from align.mmdit.activations import Recompute, check_saved_ops, recomputing
from align.mmdit.attention import AttentionDevice, OpRecorder, choose_attention, require_backend
from align.mmdit.kernels import Kernels, load_kernels

__all__ = ["BlockSettings", "RealRope", "has_joint_blocks", "install_blocks", "unwrap"]

BLOCKS = ("stock", "joint", "fused")


@dataclass(frozen=True)
class BlockSettings:
    """How the blocks of a transformer compute; the defaults are diffusers' own way."""

    blocks: Literal["stock", "joint", "fused"] = "stock"
    """``joint``: the forward pass of this module. ``fused``: its elementwise work in the Triton
    kernels of `align.mmdit.kernels`."""
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


def install_blocks(
    transformer: nn.Module, settings: BlockSettings, device: torch.device | None = None
) -> str:
    """Make ``transformer`` compute as ``settings`` say; returns what was chosen, in words.

    The transformer is a bare `QwenImageTransformer2DModel`. Compiling comes last: a copy for a
    reference must be taken before.

    Args:
        device: where it will compute; None: where its weights are. The attention path and the check
            of selective saving are that device's, while the weights may still wait to be sharded.

    Raises:
        ValueError: the backend is wrong for training, selective saving would miss a matrix product
            on this device, or there is no GPU for the fused kernels.
    """
    model: Any = transformer
    place: torch.device = device or next(model.parameters()).device
    said = f"blocks {settings.blocks}, recompute {settings.recompute}"
    if settings.blocks == "stock":
        if settings.recompute == "full":
            model.enable_gradient_checkpointing()
        elif settings.recompute == "selective":
            check_saved_ops(_ops_of(model, place))
            model.enable_gradient_checkpointing(recomputing("selective"))
        return said
    if getattr(model, "zero_cond_t", False):
        raise ValueError("this transformer has zero_cond_t, which joint blocks do not compute")
    choice = choose_attention(AttentionDevice.here(place))
    if settings.blocks == "fused" and place.type == "cpu" and not _is_interpreted():
        raise ValueError("blocks 'fused' compute on a GPU, got device cpu: take 'joint' or 'stock'")
    backend = settings.attention or choice.backend
    require_backend(backend, masked=False)
    kernels = load_kernels(settings.blocks)
    if not isinstance(model.pos_embed, RealRope):
        model.pos_embed = RealRope(model.pos_embed)
    for block in model.transformer_blocks:
        block.joint = _Joint(AttentionBackendName(backend), settings.recompute, kernels)
        block.forward = MethodType(_forward, block)
    if settings.recompute == "selective":
        check_saved_ops(_ops_of(model, place))
    if settings.compile:
        for block in model.transformer_blocks:
            block.compile()
    why = "as asked" if settings.attention else choice.reason
    compiled = ", compiled block by block" if settings.compile else ""
    return f"{said}{compiled}; attention {backend} ({choice.kernel}: {why})"


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


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
    """The stock position embedding, its complex numbers given as (cosine, sine).

    They travel as the bits of float32: FSDP2 rounds what floats a block is given to bfloat16, and
    a sine or cosine would then be wrong by up to 0.004.
    """

    def __init__(self, stock: nn.Module) -> None:
        super().__init__()
        self.stock = stock

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Tables ``(N, d / 2, 2)`` int32 for image tokens, ``(L, d / 2, 2)`` for text tokens."""
        image, text = self.stock(*args, **kwargs)
        return torch.view_as_real(image).view(torch.int32), torch.view_as_real(text).view(
            torch.int32
        )


# The block ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Joint:
    backend: AttentionBackendName
    recompute: Recompute
    kernels: Kernels


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
    image_table, text_table = (bits.view(torch.float32) for bits in image_rotary_emb)
    arguments = (
        hidden_states, encoder_hidden_states, temb, image_table, text_table, lengths,
    )  # fmt: skip
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
    # Shift, scale and gate of the two halves of a block.
    of_image, of_text = block.img_mod(temb).chunk(6, dim=-1), block.txt_mod(temb).chunk(6, dim=-1)
    _, image_in = _norm(block, block.img_norm1, image, None, None, of_image[:2])
    _, text_in = _norm(block, block.txt_norm1, text, None, None, of_text[:2], lengths)
    image_out, text_out = _attend(block, image_in, text_in, image_table, text_table, lengths)
    image, image_in = _norm(block, block.img_norm2, image, image_out, of_image[2], of_image[3:5])
    text, text_in = _norm(block, block.txt_norm2, text, text_out, of_text[2], of_text[3:5], lengths)
    image = _add_gated(image, block.img_mlp(image_in), of_image[5])
    return _add_gated(text, block.txt_mlp(text_in), of_text[5], lengths), image


def _attend(
    block: Any,
    image: Tensor,
    text: Tensor,
    image_table: Tensor,
    text_table: Tensor,
    lengths: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """Joint attention in the order [text, image], and the two output layers."""
    attn, joint = block.attn, block.joint
    shape = (-1, attn.inner_dim // attn.heads)
    own_image = [layer(image).unflatten(-1, shape) for layer in (attn.to_q, attn.to_k, attn.to_v)]
    own_text = [
        layer(text).unflatten(-1, shape)
        for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    ]
    images, texts = [own_image], [own_text]
    if lengths is not None:
        images = list(zip(*(x.split(1) for x in own_image), strict=True))
        texts = list(zip(*(x.split(list(lengths), dim=1) for x in own_text), strict=True))
    norms = ((attn.norm_added_q, attn.norm_q), (attn.norm_added_k, attn.norm_k))
    parts = []
    for (*image_qk, image_v), (*text_qk, text_v) in zip(images, texts, strict=True):
        table = text_table[: text_v.shape[1]]
        query, key = (
            joint.kernels.qk_norm_rope(
                own, other, text_norm.weight, norm.weight, table, image_table, norm.eps
            )
            for own, other, (text_norm, norm) in zip(text_qk, image_qk, norms, strict=True)
        )
        value = torch.cat([text_v, image_v], dim=1)
        out = dispatch_attention_fn(query, key, value, backend=joint.backend).flatten(2, 3)
        parts.append(out.split([text_v.shape[1], image_v.shape[1]], dim=1))
    text_out = torch.cat([part[0] for part in parts], dim=1) if lengths else parts[0][0]
    image_out = torch.cat([part[1] for part in parts]) if lengths else parts[0][1]
    image_out = attn.to_out[1](attn.to_out[0](image_out.contiguous()))
    return image_out, attn.to_add_out(text_out.contiguous())


def _norm(
    block: Any,
    norm: nn.LayerNorm,
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    modulation: Sequence[Tensor],
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """`Kernels.add_norm_modulate`, sample by sample where they lie in one row."""
    function = block.joint.kernels.add_norm_modulate
    shift, scale = modulation
    if lengths is None:
        return function(x, update, gate, shift, scale, norm.eps)
    empty = [None] * len(lengths)
    rows = zip(
        x.split(list(lengths), dim=1),
        empty if update is None else update.split(list(lengths), dim=1),
        empty if gate is None else gate.split(1),
        shift.split(1),
        scale.split(1),
        strict=True,
    )
    totals, outs = zip(*(function(*row, norm.eps) for row in rows), strict=True)
    return x if update is None else torch.cat(totals, dim=1), torch.cat(outs, dim=1)


def _add_gated(
    x: Tensor, update: Tensor, gate: Tensor, lengths: Sequence[int] | None = None
) -> Tensor:
    """``x + gate update``."""
    if lengths is None:
        return x + gate[:, None] * update
    rows = zip(update.split(list(lengths), dim=1), gate, strict=True)
    return x + torch.cat([own_gate * part for part, own_gate in rows], dim=1)


def _ops_of(model: Any, device: torch.device) -> set[Any]:
    """Operators of one block's forward pass with a gradient, on ``device`` in the model's dtype."""
    block, width = model.transformer_blocks[0], model.inner_dim
    weight = next(p for p in block.parameters() if p.is_floating_point())
    if weight.device.type != device.type:
        block = copy.deepcopy(block).to(device)
    like = {"device": device, "dtype": weight.dtype}
    image = torch.zeros(1, 16, width, **like, requires_grad=True)
    text, temb = torch.zeros(1, 4, width, **like), torch.zeros(1, width, **like)
    rope = model.pos_embed([[(1, 4, 4)]], max_txt_seq_len=4, device=device)
    with torch.enable_grad(), OpRecorder() as recorder:
        block(image, text, None, temb, rope)
    return set(recorder.ops)
