"""Images that a prompt asks to edit, at the sizes at which the stock pipelines read them."""

from __future__ import annotations

from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from align.mmdit.source_sizes import source_size

__all__ = ["resize_source", "source_pixels"]

_PROCESSOR = VaeImageProcessor(vae_scale_factor=16)


def resize_source(source: Image.Image, area: int) -> Image.Image:
    """``source`` with about ``area`` pixels in its own shape; never smaller than 32 x 32."""
    height, width = source_size((source.height, source.width), area)
    return _PROCESSOR.resize(source, height, width)  # pyright: ignore[reportReturnType]


def source_pixels(source: Image.Image, area: int) -> Tensor:
    """``(1, 3, H, W)`` in [-1, 1] of the resized source."""
    height, width = source_size((source.height, source.width), area)
    return _PROCESSOR.preprocess(source, height, width)
