"""`AutoencoderKLQwenImage` on single frames, without the video machinery.

The autoencoder is a causal video model. On the first frame the causal padding shows every 3-D
convolution two frames of zeros before the real one, so only the last temporal slice of its weight
ever meets data, and the temporal resampling convolutions are skipped. An image therefore needs 2-D
convolutions with ``weight[:, :, -1]`` alone: the same numbers up to float32 rounding, about three
times faster on a CPU, and still trainable, since the slices are views of the parameters.

These functions read any `AutoencoderKLQwenImage`, whatever its width and depth.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageAttentionBlock,
    QwenImageCausalConv3d,
    QwenImageResample,
    QwenImageResidualBlock,
    QwenImageRMS_norm,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn


def encode_frame(vae: AutoencoderKLQwenImage, images: Tensor) -> DiagonalGaussianDistribution:
    """The posterior of ``images (B, 3, H, W)`` in [-1, 1]; its samples are ``(B, z_dim, h, w)``.

    The latents are the autoencoder's own, not yet normalised by ``latents_mean`` and
    ``latents_std``.
    """
    encoder: Any = vae.encoder
    x = _conv(encoder.conv_in, images)
    for layer in encoder.down_blocks:
        x = _apply(layer, x)
    x = _mid_block(encoder.mid_block, x)
    x = _conv(encoder.conv_out, encoder.nonlinearity(_rms_norm(encoder.norm_out, x)))
    return DiagonalGaussianDistribution(_conv(vae.quant_conv, x))


def decode_frame(vae: AutoencoderKLQwenImage, latents: Tensor, *, clamp: bool = True) -> Tensor:
    """Images ``(B, 3, H, W)`` of un-normalised ``latents (B, z_dim, h, w)``.

    ``clamp`` limits them to [-1, 1] as the autoencoder does; training one wants it off, or pixels
    beyond the range get no gradient.
    """
    decoder: Any = vae.decoder
    x = _conv(decoder.conv_in, _conv(vae.post_quant_conv, latents))
    x = _mid_block(decoder.mid_block, x)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _residual_block(resnet, x)
        for upsampler in block.upsamplers or ():
            x = _resample(upsampler, x)
    x = _conv(decoder.conv_out, decoder.nonlinearity(_rms_norm(decoder.norm_out, x)))
    return torch.clamp(x, min=-1.0, max=1.0) if clamp else x


def _conv(conv: Any, x: Tensor) -> Tensor:
    # A QwenImageCausalConv3d, which keeps its padding in `_padding`: left, right, top, bottom,
    # before, after.
    left, _, top, _, _, _ = conv._padding
    return F.conv2d(x, conv.weight[:, :, -1], conv.bias, conv.stride[1:], (top, left))


def _rms_norm(norm: QwenImageRMS_norm, x: Tensor) -> Tensor:
    half = x.dtype in (torch.float16, torch.bfloat16)
    normalized = F.normalize(x.float() if half else x, dim=1).to(x.dtype)
    return normalized * norm.scale * norm.gamma.view(-1, 1, 1) + norm.bias


def _residual_block(block: QwenImageResidualBlock, x: Tensor) -> Tensor:
    shortcut = block.conv_shortcut
    h = _conv(shortcut, x) if isinstance(shortcut, QwenImageCausalConv3d) else x
    x = _conv(block.conv1, block.nonlinearity(_rms_norm(block.norm1, x)))
    x = block.nonlinearity(_rms_norm(block.norm2, x))
    return _conv(block.conv2, block.dropout(x)) + h


def _attention(block: QwenImageAttentionBlock, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    qkv = block.to_qkv(_rms_norm(block.norm, x)).reshape(b, 1, 3 * c, h * w).transpose(2, 3)
    q, k, v = qkv.contiguous().chunk(3, dim=-1)
    attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
    return block.proj(attended.reshape(b, c, h, w)) + x


def _mid_block(block: Any, x: Tensor) -> Tensor:
    x = _residual_block(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual_block(resnet, _attention(attention, x))
    return x


def _resample(layer: QwenImageResample, x: Tensor) -> Tensor:
    return layer.resample(x)  # `time_conv` never runs on a first frame


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, QwenImageResidualBlock):
        return _residual_block(layer, x)
    if isinstance(layer, QwenImageResample):
        return _resample(layer, x)
    raise TypeError(f"no single-frame form of {type(layer).__name__}")


def encode_mode(vae: AutoencoderKLQwenImage, images: Tensor) -> Tensor:
    """Mode ``(B, C, h, w)`` of the posterior of ``images (B, 3, H, W)``, as `decode_images`."""
    if _needs_stock_path(vae):
        return vae.encode(images[:, :, None], return_dict=False)[0].mode()[:, :, 0]
    return encode_frame(vae, images).mode()


def decode_images(vae: AutoencoderKLQwenImage, latents: Tensor) -> Tensor:
    """Images ``(B, 3, H, W)`` in [-1, 1] of ``latents (B, C, h, w)``, in 2-D where it may."""
    if _needs_stock_path(vae):
        return vae.decode(latents[:, :, None], return_dict=False)[0][:, :, 0]
    return decode_frame(vae, latents)


def _needs_stock_path(vae: AutoencoderKLQwenImage) -> bool:
    """True for tiling and slicing, and in half precision: there a 2-D and a 3-D convolution round
    differently, up to 4/255 in the image, while in float32 both draw the same."""
    return vae.use_tiling or vae.use_slicing or vae.dtype != torch.float32
