"""What a picture becomes before CLIP sees it; each published scorer has a recipe of its own.

The recipes are written out on Pillow and torch: image processors differ between installations (with
and without torchvision), and a score must not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL.Image import Image as PILImage
from PIL.Image import Resampling
from torch import Tensor

__all__ = ["MEAN", "STD", "Pixels", "crop_openai", "crop_transformers", "pad_hps"]

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP, by channel of RGB in [0, 1]; all scorers here use them."""

Pixels = Callable[[PILImage, int], Tensor]
"""An RGB image and the side that the model sees -> (3, side, side) float32, normalised."""


def crop_openai(image: PILImage, side: int) -> Tensor:
    """Bicubic by Pillow to ``side`` on the shorter edge, then the centre; an odd margin is halved
    to the even number (torchvision's ``Resize`` and ``CenterCrop``, as OpenAI's CLIP has them)."""
    resized = _resize_shorter(image, side)
    left, top = (round((length - side) / 2) for length in resized.size)
    return _normalise(_to_tensor(resized)[:, top : top + side, left : left + side])


def crop_transformers(image: PILImage, side: int) -> Tensor:
    """As `crop_openai`, but an odd margin is halved downwards (transformers' CLIP processor): the
    crop may lie one pixel further to the left or top."""
    resized = _resize_shorter(image, side)
    left, top = ((length - side) // 2 for length in resized.size)
    return _normalise(_to_tensor(resized)[:, top : top + side, left : left + side])


def pad_hps(image: PILImage, side: int) -> Tensor:
    """The whole picture, bicubic on the float tensor to ``side`` on the longer edge, then black
    borders (HPSv2's ``ResizeMaxSize``). Nothing is cropped, and values may leave [0, 1]."""
    pixels = _to_tensor(image)
    height, width = pixels.shape[1:]
    scale = side / max(height, width)
    if scale != 1.0:
        size = [round(height * scale), round(width * scale)]
        pixels = torch.nn.functional.interpolate(
            pixels[None], size, mode="bicubic", align_corners=False, antialias=True
        )[0]
    down, across = (side - length for length in pixels.shape[1:])
    border = (across // 2, across - across // 2, down // 2, down - down // 2)
    return _normalise(torch.nn.functional.pad(pixels, border))


def _resize_shorter(image: PILImage, side: int) -> PILImage:
    width, height = image.size
    shorter = min(width, height)
    size = (int(side * width / shorter), int(side * height / shorter))
    return image if size == image.size else image.resize(size, Resampling.BICUBIC)


def _to_tensor(image: PILImage) -> Tensor:
    """(3, height, width) in [0, 1]."""
    array = np.asarray(image, dtype=np.float32) / 255.0
    return torch.from_numpy(array).permute(2, 0, 1)


def _normalise(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std
