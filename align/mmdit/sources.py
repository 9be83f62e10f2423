"""Images that a prompt asks to edit, at the sizes at which the stock pipelines read them."""

from __future__ import annotations

import math

from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

__all__ = ["check_count", "resize_source", "source_pixels", "source_size"]

MULTIPLE = 32
"""Both sides of a resized source are multiples of so many pixels."""
_PROCESSOR = VaeImageProcessor(vae_scale_factor=16)


def resize_source(source: Image.Image, area: int) -> Image.Image:
    """``source`` with about ``area`` pixels in its own shape; never smaller than 32 x 32."""
    height, width = source_size((source.height, source.width), area)
    return _PROCESSOR.resize(source, height, width)  # pyright: ignore[reportReturnType]


def source_pixels(source: Image.Image, area: int) -> Tensor:
    """``(1, 3, H, W)`` in [-1, 1] of the resized source."""
    height, width = source_size((source.height, source.width), area)
    return _PROCESSOR.preprocess(source, height, width)


def source_size(size: tuple[int, int], area: int) -> tuple[int, int]:
    """Height and width of a source image of ``size (height, width)``, rounded as the pipelines."""
    ratio = size[1] / size[0]
    width = math.sqrt(area * ratio)
    height, width = (
        max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE) for side in (width / ratio, width)
    )
    return height, width


def check_count(count: int, at_most: int | None) -> None:
    """Raises `ValueError` if a prompt has more source images than a family takes."""
    if at_most is not None and count > at_most:
        raise ValueError(
            f"got {count} source image{'s' * (count > 1)}, this model takes "
            f"{f'at most {at_most}' if at_most else 'none'}; pipelines that take them: "
            "QwenImageEditPipeline (1), QwenImageEditPlusPipeline (any number)"
        )
