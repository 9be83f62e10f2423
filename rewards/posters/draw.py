"""Paint a poster: perfectly, or with defects of a graded severity.

All geometry is in a 128 x 128 design space; `draw` renders it at any size with 4 x supersampling.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from rewards.posters.glyphs import GLYPHS
from rewards.posters.spec import BACKGROUNDS, COLORS, MARKS, RGB, PosterSpec

DESIGN = 128
"""Side of the design space in which every coordinate of this module is given."""
CENTERS = {"left": (33.0, 74.0), "center": (64.0, 74.0), "right": (95.0, 74.0)}
RADIUS = 21.0
HEADLINE_BOX = (16.0, 12.0, 112.0, 44.0)
BUTTON_BOX = (38.0, 101.0, 90.0, 117.0)
BAND_BOX = (0.0, 7.0, 128.0, 49.0)
FRAME_INSET, FRAME_WIDTH = 3.0, 3.0
DARK: RGB = (24, 22, 28)
LIGHT: RGB = (252, 252, 250)
MUD: RGB = (112, 96, 66)

DEFECTS: dict[str, str] = {
    "misalignment": "aesthetics",
    "muddy": "aesthetics",
    "clutter": "aesthetics",
    "wrong_color": "instruction",
    "wrong_place": "instruction",
    "lost_headline": "instruction",
    "lost_button": "instruction",
    "blur": "detail",
    "noise": "detail",
    "wobble": "detail",
}
"""Each defect and the criterion that it harms."""


def quality_score(defects: Mapping[str, float]) -> float:
    """Score of 1-5 of a drawing from the severities it was drawn with; 5 is without defect."""
    return 5.0 - 4.0 * min(1.0, sum(defects.values()) / 2.0)


def ink_of(background: RGB) -> RGB:
    """Dark ink on a light ground, light ink on a dark one (ITU-R BT.601 luma)."""
    red, green, blue = background
    return DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else LIGHT


def draw(
    spec: PosterSpec, size: int = DESIGN, defects: Mapping[str, float] | None = None, seed: int = 0
) -> Image.Image:
    """Paint ``spec`` as an RGB image of ``size`` x ``size`` pixels.

    Args:
        defects: severity in [0, 1] by a name of `DEFECTS`; absent is 0.
        seed: which clutter, noise, wobble and wrong choice are drawn; without effect on a
            perfect drawing.

    Raises:
        ValueError: an unknown defect, or a severity outside [0, 1].
    """
    severity = dict.fromkeys(DEFECTS, 0.0)
    for name, value in (defects or {}).items():
        if name not in DEFECTS:
            raise ValueError(f"defect: got {name!r}, expected one of {tuple(DEFECTS)}")
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"severity of {name}: got {value}, expected 0 to 1")
        severity[name] = float(value)
    key = "|".join(spec.to_dict().values())
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    image = _paint(spec, size, severity, rng)
    return _degrade(image, severity, rng)


def _paint(
    spec: PosterSpec, size: int, severity: Mapping[str, float], rng: np.random.Generator
) -> Image.Image:
    ground = BACKGROUNDS[spec.background]
    ink = ink_of(ground)
    canvas = _Canvas(size, ground)
    headline_ink = ink
    if spec.layout == "frame":
        canvas.frame(FRAME_INSET, FRAME_WIDTH, ink)
    elif spec.layout == "band":
        canvas.rectangle(BAND_BOX, ink)
        headline_ink = ground
    if severity["clutter"]:
        _clutter(canvas, severity["clutter"], rng)
    slide = 13.0 * severity["misalignment"]
    if spec.headline != "none":
        _headline(canvas, spec.headline, headline_ink, slide, severity["lost_headline"])
    color = COLORS[spec.color]
    others = [value for name, value in COLORS.items() if name != spec.color]
    color = _blend(color, others[int(rng.integers(len(others)))], severity["wrong_color"])
    x, y = CENTERS[spec.position]
    away = min(CENTERS.values(), key=lambda c: abs(abs(c[0] - x) - 31.0))
    _shape(canvas, spec.shape, x + severity["wrong_place"] * (away[0] - x), y, color)
    if spec.button != "none":
        fill = _blend(COLORS[spec.button], ground, severity["lost_button"])
        mark = _blend(LIGHT if spec.button != "yellow" else DARK, ground, severity["lost_button"])
        _button(canvas, fill, mark, -1.3 * slide)
    return canvas.finish()


def _degrade(
    image: Image.Image, severity: Mapping[str, float], rng: np.random.Generator
) -> Image.Image:
    size = image.width
    scale = size / DESIGN
    if severity["wobble"]:
        image = _wobble(image, 2.5 * scale * severity["wobble"], rng)
    if severity["blur"]:
        image = image.filter(ImageFilter.GaussianBlur(2.6 * scale * severity["blur"]))
    if severity["muddy"]:
        mud = Image.new("RGB", image.size, MUD)
        image = Image.blend(image, mud, 0.55 * severity["muddy"])
    if severity["noise"]:
        pixels = np.asarray(image, np.float32)
        pixels = pixels + rng.normal(0.0, 38.0 * severity["noise"], pixels.shape)
        image = Image.fromarray(np.clip(pixels, 0, 255).round().astype(np.uint8))
    return image


def _blend(a: RGB, b: RGB, share: float) -> RGB:
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


class _Canvas:
    """A 4 x supersampled Pillow canvas addressed in design units."""

    def __init__(self, size: int, ground: RGB):
        self.size = size
        self.scale = 4 * size / DESIGN
        self.image = Image.new("RGB", (4 * size, 4 * size), ground)
        self.pen = ImageDraw.Draw(self.image)

    def _xy(self, points):
        return [(x * self.scale, y * self.scale) for x, y in points]

    def rectangle(self, box: tuple[float, float, float, float], fill: RGB) -> None:
        self.pen.rectangle([v * self.scale for v in box], fill=fill)

    def rounded(self, box: tuple[float, float, float, float], radius: float, fill: RGB) -> None:
        self.pen.rounded_rectangle([v * self.scale for v in box], radius * self.scale, fill=fill)

    def frame(self, inset: float, width: float, fill: RGB) -> None:
        far = DESIGN - inset
        box = [v * self.scale for v in (inset, inset, far, far)]
        self.pen.rectangle(box, outline=fill, width=round(width * self.scale))

    def polygon(self, points: list[tuple[float, float]], fill: RGB) -> None:
        self.pen.polygon(self._xy(points), fill=fill)

    def disc(self, x: float, y: float, radius: float, fill: RGB) -> None:
        box = [(x - radius) * self.scale, (y - radius) * self.scale]
        self.pen.ellipse([*box, (x + radius) * self.scale, (y + radius) * self.scale], fill=fill)

    def line(self, points: list[tuple[float, float]], width: float, fill: RGB) -> None:
        self.pen.line(self._xy(points), fill=fill, width=round(width * self.scale), joint="curve")
        for x, y in points:
            self.disc(x, y, width / 2, fill)

    def finish(self) -> Image.Image:
        return self.image.reduce(4)


def _shape(canvas: _Canvas, shape: str, x: float, y: float, fill: RGB) -> None:
    r = RADIUS
    if shape in ("circle", "ring"):
        width = 0.36 * r
        if shape == "circle":
            canvas.disc(x, y, r, fill)
        else:
            turn = [math.tau * i / 72 for i in range(73)]
            middle = r - width / 2
            ring = [(x + middle * math.cos(a), y + middle * math.sin(a)) for a in turn]
            canvas.line(ring, width, fill)
    elif shape == "square":
        canvas.rectangle((x - 0.86 * r, y - 0.86 * r, x + 0.86 * r, y + 0.86 * r), fill)
    elif shape == "triangle":
        canvas.polygon([(x, y - r), (x + 1.1 * r, y + 0.85 * r), (x - 1.1 * r, y + 0.85 * r)], fill)
    elif shape == "star":
        points = []
        for i in range(10):
            radius = 1.15 * r if i % 2 == 0 else 0.46 * r
            angle = -math.pi / 2 + i * math.pi / 5
            points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
        canvas.polygon(points, fill)
    else:
        canvas.polygon(_heart(x, y, r), fill)


def _heart(x: float, y: float, r: float) -> list[tuple[float, float]]:
    points = []
    for i in range(72):
        t = math.tau * i / 72
        across = 16 * math.sin(t) ** 3
        up = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x + across * r / 15, y - (up + 2.5) * r / 15))
    return points


def _headline(canvas: _Canvas, headline: str, ink: RGB, slide: float, lost: float) -> None:
    left, top, right, bottom = HEADLINE_BOX
    height, width = bottom - top, right - left
    glyphs: list[str] = [headline] * 3 if headline in MARKS else list(headline)
    advance = width / len(glyphs)
    side = min(height, advance - 3.0)
    visible_until = right - lost * width
    for i, glyph in enumerate(glyphs):
        x0 = left + advance * i + (advance - side) / 2
        y0 = top + (height - side) / 2
        _glyph(canvas, glyph, x0 + slide, y0, side, ink, visible_until + slide)


def _glyph(
    canvas: _Canvas, glyph: str, x0: float, y0: float, side: float, ink: RGB, limit: float
) -> None:
    """One glyph in a box; what lies right of ``limit`` is not drawn."""
    if x0 >= limit:
        return
    if glyph == "dots":
        canvas.disc(x0 + side / 2, y0 + side / 2, side * 0.26, ink)
        return
    strokes = {
        "dashes": (((10.0, 50.0), (90.0, 50.0)),),
        "crosses": (((14.0, 14.0), (86.0, 86.0)), ((86.0, 14.0), (14.0, 86.0))),
    }.get(glyph) or GLYPHS[glyph]
    for stroke in strokes:
        points = [(x0 + x * side / 100, y0 + y * side / 100) for x, y in stroke]
        clipped = _clip_right(points, limit)
        if len(clipped) > 1:
            canvas.line(clipped, 4.2, ink)


def _clip_right(points: list[tuple[float, float]], limit: float) -> list[tuple[float, float]]:
    """The leading part of a polyline up to where it first passes x = ``limit``."""
    kept: list[tuple[float, float]] = []
    for x, y in points:
        if x > limit:
            if kept:
                px, py = kept[-1]
                share = (limit - px) / (x - px)
                kept.append((limit, py + share * (y - py)))
            break
        kept.append((x, y))
    return kept


def _button(canvas: _Canvas, fill: RGB, mark: RGB, slide: float) -> None:
    left, top, right, bottom = BUTTON_BOX
    canvas.rounded((left + slide, top, right + slide, bottom), 7.0, fill)
    middle = (top + bottom) / 2
    for x in (54.0, 64.0, 74.0):
        x += slide
        canvas.line([(x - 2.5, middle - 4), (x + 2, middle), (x - 2.5, middle + 4)], 2.4, mark)


def _clutter(canvas: _Canvas, severity: float, rng: np.random.Generator) -> None:
    """Specks over the ground: the first ``60 * severity`` of one fixed sequence."""
    where = rng.uniform(4, DESIGN - 4, (60, 2))
    radius = rng.uniform(1.2, 2.8, 60)
    shade = rng.integers(0, 256, (60, 3))
    for i in range(round(60 * severity)):
        red, green, blue = (int(v) for v in shade[i])
        canvas.disc(float(where[i, 0]), float(where[i, 1]), float(radius[i]), (red, green, blue))


def _wobble(image: Image.Image, amplitude: float, rng: np.random.Generator) -> Image.Image:
    """Shake the pixels along a smooth random field of the given amplitude (pixels)."""
    size = image.width
    coarse = rng.normal(0, 1, (2, 24, 24)).astype(np.float32)
    field = np.stack([_enlarge(plane, size) for plane in coarse]) * amplitude
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    return Image.fromarray(
        _bilinear(np.asarray(image, np.float32), rows + field[0], columns + field[1])
    )


def _enlarge(plane: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(plane, "F").resize((size, size), Image.Resampling.BICUBIC))


def _bilinear(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    last = pixels.shape[0] - 1
    rows, columns = np.clip(rows, 0, last), np.clip(columns, 0, last)
    r0, c0 = np.floor(rows).astype(int), np.floor(columns).astype(int)
    r1, c1 = np.minimum(r0 + 1, last), np.minimum(c0 + 1, last)
    fr, fc = (rows - r0)[..., None], (columns - c0)[..., None]
    top = pixels[r0, c0] * (1 - fc) + pixels[r0, c1] * fc
    bottom = pixels[r1, c0] * (1 - fc) + pixels[r1, c1] * fc
    return (top * (1 - fr) + bottom * fr).round().astype(np.uint8)


@lru_cache(maxsize=4096)
def perfect(spec: PosterSpec, size: int = DESIGN) -> np.ndarray:
    """The perfect drawing as (size, size, 3) uint8; cached, so do not write into it."""
    pixels = np.asarray(draw(spec, size))
    pixels.setflags(write=False)
    return pixels
