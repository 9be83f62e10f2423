"""What reading does not tell: order, uprightness, legibility, clipping, evenness, doubt.

An engine reads text that is upside down, blurred or faint as well as any; a person does not. Each
measure is a number in [0, 1], 1 for a poster as a printer would pass it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from rewards.text.engines import TextLine

__all__ = [
    "certainty",
    "evenness",
    "glyph_profile",
    "inside",
    "legibility",
    "precedes",
    "reading_order",
    "relative_luminance",
    "upright",
]

ENOUGH_CONTRAST = 3.0
"""Ratio of luminances from which large text is legible (WCAG 2.2, 1.4.3)."""
PIXEL_EDGE = 2.0
"""Width in pixels of the sharpest edge that antialiased drawing gives."""
ILLEGIBLE_BLUR = 0.3
"""Width of a stroke's edge, beyond the pixel grid's, as a share of the line's height."""
BORDER = 1.5
"""Pixels: text nearer to the border than this runs out of the image."""
FREE_TILT = 3.0
"""Degrees."""


def reading_order(lines: Sequence[TextLine]) -> float | None:
    """Share of pairs that a reader meets in the listed order: (1 + Kendall's tau) / 2.

    None for fewer than two lines.
    """
    pairs = list(combinations(lines, 2))
    if not pairs:
        return None
    return float(np.mean([precedes(first, second) for first, second in pairs]))


def precedes(a: TextLine, b: TextLine) -> bool:
    """Whether a reader meets ``a`` before ``b``: rows from the top, each from the left.

    Of two vertical lines the right one comes first.
    """
    left_a, top_a, right_a, bottom_a = a.bounds
    left_b, top_b, right_b, bottom_b = b.bounds
    overlap = min(bottom_a, bottom_b) - max(top_a, top_b)
    if overlap > 0.5 * min(bottom_a - top_a, bottom_b - top_b):
        leftmost = left_a + right_a < left_b + right_b
        return not leftmost if a.is_vertical and b.is_vertical else leftmost
    return top_a + bottom_a < top_b + bottom_b


def upright(line: TextLine) -> float:
    """1 within `FREE_TILT` of upright, 0 from 90 degrees."""
    return float(np.clip((90.0 - abs(line.angle)) / (90.0 - FREE_TILT), 0.0, 1.0))


def inside(line: TextLine, image: Image) -> float:
    """0 for a line that reaches the image's border, else 1."""
    left, top, right, bottom = line.bounds
    margin = min(left, top, image.width - right, image.height - bottom)
    return float(margin > BORDER)


def certainty(line: TextLine, clean: float) -> float:
    """The engine's confidence as a share of that on a clean rendering, at most 1.

    A glyph that is nearly the right one may be read as right, with less confidence.
    """
    return 1.0 if clean <= 0.0 else min(1.0, line.confidence / clean)


def legibility(line: TextLine, luminance: NDArray[np.float64]) -> float:
    """Contrast times sharpness of a line, each in [0, 1].

    Args:
        luminance: (H, W) relative luminance in [0, 1], see `relative_luminance`.
    """
    crop = _crop(line, luminance)
    if min(crop.shape) < 3:
        return 0.0
    dark, light = np.percentile(crop, [2, 98])
    ratio = (light + 0.05) / (dark + 0.05)
    contrast = np.clip(np.log(ratio) / np.log(ENOUGH_CONTRAST), 0.0, 1.0)
    vertical, horizontal = np.gradient(crop)
    slope = float(np.percentile(np.hypot(vertical, horizontal), 99))
    if slope <= 0.0:
        return 0.0
    edge = (light - dark) / slope
    blur = np.sqrt(max(edge**2 - PIXEL_EDGE**2, 0.0)) / line.height
    return float(contrast * np.clip(1.0 - blur / ILLEGIBLE_BLUR, 0.0, 1.0))


def relative_luminance(image: Image) -> NDArray[np.float64]:
    """(H, W) in [0, 1], linear light (IEC 61966-2-1, ITU-R BT.709)."""
    srgb = np.asarray(image.convert("RGB"), dtype=np.float64) / 255.0
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def glyph_profile(line: TextLine, luminance: NDArray[np.float64]) -> float:
    """How even a line's glyphs are in height: mean over the largest, of windows of half a height.

    A text has its own value, by its characters; it is to be held against a clean rendering of the
    same text. 0 where there is no ink.
    """
    crop = _crop(line, luminance)
    if abs(line.angle) > 45 or line.is_vertical:
        crop = crop.T
    if min(crop.shape) < 3:
        return 0.0
    dark, light = np.percentile(crop, [2, 98])
    ink = crop > (dark + light) / 2
    if ink.mean() > 0.5:
        ink = ~ink  # dark on light
    width = max(crop.shape[0] // 2, 1)
    extents = []
    for start in range(0, max(ink.shape[1] - width, 1), max(width // 4, 1)):
        rows = np.flatnonzero(ink[:, start : start + width].any(axis=1))
        if len(rows):
            extents.append(rows[-1] - rows[0] + 1)
    return float(np.mean(extents) / np.max(extents)) if extents else 0.0


def evenness(profile: float, clean: float) -> float:
    """A line's `glyph_profile` as a share of its clean rendering's, at most 1."""
    return 1.0 if clean <= 0.0 else min(1.0, profile / clean)


def _crop(line: TextLine, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    left, top, right, bottom = (round(value) for value in line.bounds)
    return pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
