"""Draws a brief as a poster, with its text as asked or with graded faults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.Image import Image as PILImage

from benchmarks.text.briefs import JUNK, Brief

__all__ = ["FAULTS", "FONTS", "draw_poster", "load_font"]

WIDTH, HEIGHT = 640, 800
SIZES = (104, 50, 42, 32)
"""Of the four lines, in pixels; a longer line is drawn smaller."""
TOPS = (150, 300, 420, 700)
MARGIN = 40

FONTS: dict[str, tuple[str, int, str]] = {
    "sans": ("opentype/noto/NotoSansCJK-Regular.ttc", 2, "fonts-noto-cjk"),
    "sans-bold": ("opentype/noto/NotoSansCJK-Bold.ttc", 2, "fonts-noto-cjk"),
    "serif": ("opentype/noto/NotoSerifCJK-Regular.ttc", 2, "fonts-noto-cjk"),
    "serif-bold": ("opentype/noto/NotoSerifCJK-Bold.ttc", 2, "fonts-noto-cjk"),
    "latin": ("truetype/dejavu/DejaVuSans.ttf", 0, "fonts-dejavu-core"),
    "latin-bold": ("truetype/dejavu/DejaVuSans-Bold.ttf", 0, "fonts-dejavu-core"),
    "latin-serif": ("truetype/dejavu/DejaVuSerif.ttf", 0, "fonts-dejavu-core"),
}
"""Key -> file under /usr/share/fonts, face in it (2 is Simplified Chinese), Debian package."""
OTHER_FONT = {
    "sans": "serif-bold",
    "sans-bold": "serif",
    "serif": "sans-bold",
    "serif-bold": "sans",
}

FAULTS: dict[str, tuple[str, ...]] = {
    "wrong_character": ("one", "two", "three"),
    "wrong_price": ("one figure",),
    "missing_line": ("the footer", "the footer and the English line"),
    "garbled_english": ("one letter", "several", "nearly all"),
    "junk": ("one line", "three lines"),
    "repeated_headline": ("once", "three times"),
    "reversed_order": ("two lines swapped", "bottom to top"),
    "headline_upside_down": ("by 180 degrees",),
    "poster_upside_down": ("by 180 degrees",),
    "sideways": ("the whole poster by 90 degrees",),
    "blurred": ("1.5 px", "3 px", "6 px"),
    "clipped": ("a quarter of the headline", "half of it"),
    "faint": ("ink near the background", "nearer"),
    "mixed_fonts": ("every second character of the headline in another face and size",),
}
"""Fault -> what its levels 1, 2 ... are; each level is the one before and more."""


@dataclass(frozen=True)
class Line:
    text: str
    font: str
    size: int
    top: int
    left: int | None = None
    """None centres it."""
    upside_down: bool = False
    mixed: bool = False


@lru_cache(maxsize=64)
def load_font(key: str, size: int) -> ImageFont.FreeTypeFont:
    """A face of `FONTS`.

    Raises:
        FileNotFoundError: it is not installed; names its Debian package.
    """
    name, face, package = FONTS[key]
    path = Path("/usr/share/fonts") / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: apt-get install {package}")
    return ImageFont.truetype(str(path), size, index=face)


def draw_poster(brief: Brief, faults: Mapping[str, int] | None = None) -> PILImage:
    """A poster of 640 x 800; ``faults`` maps names of `FAULTS` to levels from 1."""
    faults = dict(faults or {})
    for name, level in faults.items():
        if not 1 <= level <= len(FAULTS[name]):
            raise ValueError(f"{name} has levels 1 to {len(FAULTS[name])}, got {level}")
    paper, ink = brief.colours
    image = Image.new("RGB", (WIDTH, HEIGHT), paper)
    _decorate(image, ink)
    ink = _mix(ink, paper, (0.0, 0.8, 0.9)[faults.get("faint", 0)])
    for line in _lines(brief, faults):
        _write(image, line, ink)
    if sigma := (0, 1.5, 3.0, 6.0)[faults.get("blurred", 0)]:
        image = image.filter(ImageFilter.GaussianBlur(sigma))
    if "poster_upside_down" in faults:
        image = image.transpose(Image.Transpose.ROTATE_180)
    if "sideways" in faults:
        image = image.transpose(Image.Transpose.ROTATE_90)
    return image


def _lines(brief: Brief, faults: Mapping[str, int]) -> list[Line]:
    """What is written, after the faults in what is said and where."""
    lines = [
        _fitted(text, font, size, top)
        for text, font, size, top in zip(brief.lines, brief.fonts, SIZES, TOPS, strict=True)
    ]
    headline, english, mixed, footer = lines
    if level := faults.get("wrong_character"):
        headline = replace(headline, text=brief.wrong[level - 1])
    if level := faults.get("garbled_english"):
        english = _fitted(brief.garbled[level - 1], english.font, SIZES[1], english.top)
    if "wrong_price" in faults:
        mixed = replace(mixed, text=brief.wrong_price)
    if level := faults.get("clipped"):
        width = load_font(headline.font, headline.size).getlength(headline.text)
        headline = replace(headline, left=-round(width * (0.25, 0.5)[level - 1]))
    if "headline_upside_down" in faults:
        headline = replace(headline, upside_down=True)
    if "mixed_fonts" in faults:
        headline = replace(headline, mixed=True)
    lines = [headline, english, mixed, footer]
    if level := faults.get("reversed_order"):
        order = ((1, 0, 2, 3), (3, 2, 1, 0))[level - 1]
        tops = ((180, 280, 470, 700), (170, 280, 390, 520))[level - 1]
        lines = [replace(lines[i], top=top) for i, top in zip(order, tops, strict=True)]
    if level := faults.get("missing_line"):
        missing = {footer.text, english.text} if level == 2 else {footer.text}
        lines = [line for line in lines if line.text not in missing]
    for row in range((0, 1, 3)[faults.get("repeated_headline", 0)]):
        copy = _fitted(headline.text, headline.font, 60, (490, 585, 40)[row])
        lines.append(replace(copy, left=(90, 320, 30)[row]))
    for row in range((0, 1, 3)[faults.get("junk", 0)]):
        junk = _fitted(JUNK[row], "sans", 30, (645, 500, 570)[row])
        lines.append(replace(junk, left=60 + 120 * row))
    return lines


def _fitted(text: str, font: str, size: int, top: int) -> Line:
    width = load_font(font, size).getlength(text)
    return Line(text, font, min(size, int(size * (WIDTH - 2 * MARGIN) / width)), top)


def _decorate(image: PILImage, ink: str) -> None:
    """A frame and a disc, as posters have: they hold no text and touch none."""
    draw = ImageDraw.Draw(image)
    draw.rectangle((14, 14, WIDTH - 15, HEIGHT - 15), outline=ink, width=2)
    draw.ellipse((WIDTH // 2 - 36, 62, WIDTH // 2 + 36, 134), outline=ink, width=6)


def _write(image: PILImage, line: Line, ink: str) -> None:
    font = load_font(line.font, line.size)
    width, height = math.ceil(font.getlength(line.text)) + 20, math.ceil(line.size * 1.6)
    layer = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(layer)
    if line.mixed:
        x = 0.0
        for index, character in enumerate(line.text):
            odd = index % 2 == 1
            face = load_font(OTHER_FONT[line.font], round(line.size * 0.72)) if odd else font
            draw.text((x, height // 2), character, fill=255, font=face, anchor="lm")
            x += face.getlength(character)
    else:
        draw.text((0, height // 2), line.text, fill=255, font=font, anchor="lm")
    if line.upside_down:
        layer = layer.transpose(Image.Transpose.ROTATE_180)
    left = (WIDTH - width) // 2 if line.left is None else line.left
    image.paste(Image.new("RGB", layer.size, ink), (left, line.top), layer)


def _mix(colour: str, other: str, share: float) -> str:
    """``share`` of ``other`` in ``colour``; both ``#rrggbb``."""
    a, b = ([int(text[start : start + 2], 16) for start in (1, 3, 5)] for text in (colour, other))
    mixed = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)
