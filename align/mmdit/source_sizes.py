"""How large, and how many, the source pictures of an edit may be. Torch-free."""

from __future__ import annotations

import math

__all__ = ["CONDITION_AREA", "MAX_SOURCES", "check_count", "seen_tokens", "source_size"]

MAX_SOURCES = {"QwenImageEditPipeline": 1, "QwenImageEditPlusPipeline": None}
"""Source pictures of a prompt; None: any number. Other pipelines take none."""
MULTIPLE = 32
"""Both sides of a resized source are multiples of so many pixels."""
CONDITION_AREA = 384 * 384
"""Pixels at which the text encoder of Qwen-Image-Edit-2509 sees a source image."""
SEEN_PIXELS = 28
"""Of a side, that the vision tower of Qwen2.5-VL makes one token of: two patches of 14."""


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


def seen_tokens(size: tuple[int, int]) -> int:
    """Tokens of the text encoder for an image of ``size (height, width)``, as its processor
    rounds."""
    return math.prod(max(1, round(side / SEEN_PIXELS)) for side in size)
