"""Measures a drawn poster from its pixels: the judge of the final evaluation, and of nothing else.

Three criteria in [0, 1]: aesthetics, instruction following, detail fidelity. Each is made of a few
measurements m in [0, 1] and is the product of (1 + m) / 2 over them: a measurement that fails
entirely halves its criterion. A perfect drawing measures exactly 1 on everything (every
measurement has a small dead zone); a perfect drawing of an unrelated specification has almost
every instruction measurement at 0 and so about 0.5 ** 7.

Colours are compared in CIELAB (D65), distances are CIE76 and written dE below.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from rewards.posters.draw import (
    BAND_BOX,
    BUTTON_BOX,
    CENTERS,
    DESIGN,
    FRAME_INSET,
    FRAME_WIDTH,
    HEADLINE_BOX,
    ink_of,
    perfect,
)
from rewards.posters.spec import BACKGROUNDS, COLORS, HEADLINES, SHAPES, PosterSpec

CRITERIA = ("aesthetics", "instruction", "detail")
_SHIFT_X, _SHIFT_Y = 12, 3
"""How far a headline may have slid and still be read, pixels."""


@dataclass(frozen=True)
class Reading:
    """Scores of one poster in [0, 1], with every measurement that they are made of."""

    aesthetics: float
    instruction: float
    detail: float
    measurements: dict[str, float]

    @property
    def mean(self) -> float:
        return (self.aesthetics + self.instruction + self.detail) / 3


def ruler_sha256() -> str:
    """Hash of everything that the reading depends on: this module and what it draws with."""
    digest = hashlib.sha256()
    for name in ("spec.py", "glyphs.py", "draw.py", "ruler.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


def read_poster(image: Image.Image, spec: PosterSpec) -> Reading:
    """Measure ``image``, of any size, against ``spec``; it is read at 128 x 128 pixels."""
    if image.size != (DESIGN, DESIGN):
        image = image.resize((DESIGN, DESIGN), Image.Resampling.LANCZOS)
    look = _Look(np.asarray(image.convert("RGB")))
    truth = _truth(spec)
    instruction = {
        "background": _ramp(_distance(look.ground, truth.ground), 5, 30),
        "layout": _layout(look, spec),
        "shape": _shape_margin(look, spec),
        "color": _ramp(_distance(look.shape_color, _lab_of(COLORS[spec.color])), 8, 40),
        "position": _ramp(_offset(look.center, CENTERS[spec.position]), 3, 18),
        "headline": _headline_margin(look, spec),
        "button": _button(look, spec),
    }
    aesthetics = {
        "alignment": _alignment(look, truth),
        "harmony": _harmony(look),
        "cleanliness": _ramp(look.litter(spec), 0.01, 0.25),
        "contrast": 1.0 - _ramp(look.contrast / truth.contrast, 0.25, 0.9),
    }
    detail = {
        "sharpness": 1.0 - _ramp(look.sharpness / truth.sharpness, 0.25, 0.95),
        "noise": _ramp(look.grain(spec) - truth.grain(spec), 0.4, 8.0),
        "contour": 1.0 - _ramp(max(look.overlaps), 0.7, 0.95),
        "strokes": 1.0 - _ramp(max(look.words), 0.4, 0.97),
    }
    return Reading(
        aesthetics=_halving(aesthetics),
        instruction=_halving(instruction),
        detail=_halving(detail),
        measurements={**aesthetics, **instruction, **detail},
    )


def _halving(measurements: dict[str, float]) -> float:
    return float(np.prod([(1.0 + m) / 2.0 for m in measurements.values()]))


def _ramp(value: float, free: float, lost: float) -> float:
    """1 up to ``free``, 0 from ``lost``, linear between."""
    return float(np.clip((lost - value) / (lost - free), 0.0, 1.0))


class _Look:
    """What the ruler sees in one picture; computed once, blind to the specification."""

    def __init__(self, pixels: np.ndarray):
        self.lab = _lab(pixels)
        self.ground = np.median(_ground_samples(self.lab), axis=0)
        self.from_ground = np.linalg.norm(self.lab - self.ground, axis=-1)
        window = self.from_ground[51:98, 7:121]
        self.level = float(np.percentile(window, 92))
        mask = (window > 0.5 * self.level) & (window > 8.0)
        mask = _main_part(mask)
        rows, columns = np.nonzero(mask)
        self.found = len(rows) > 40
        self.center = (
            (
                (columns.min() + columns.max() + 1) / 2 + 7.0,
                (rows.min() + rows.max() + 1) / 2 + 51.0,
            )
            if self.found
            else (-99.0, -99.0)
        )
        inner = _erode(mask)
        colored = self.lab[51:98, 7:121][inner if inner.sum() > 20 else mask]
        self.shape_color = np.median(colored, axis=0) if self.found else self.ground
        self.overlaps = _overlaps(mask, self.center) if self.found else np.zeros(len(SHAPES))
        self._read_headline()
        self.sharpness = float(np.percentile(_gradient(self.lab), 97))

    def _read_headline(self) -> None:
        left, top, right, bottom = (int(v) for v in HEADLINE_BOX)
        area = self.lab[top - 2 : bottom + 2, left - 10 : right + 10]
        paper = np.median(area.reshape(-1, 3), axis=0)
        away = np.linalg.norm(area - paper, axis=-1)
        self.contrast = float(np.percentile(away, 93))
        ink = np.clip(away / max(self.contrast, 1e-6), 0, 1) if self.contrast > 8 else 0 * away
        self.words, self.slide = _read_words(ink)

    def litter(self, spec: PosterSpec) -> float:
        """Share of the pixels that should be plain ground but lie more than 9 dE off it."""
        plain = _plain_mask(spec)
        return float((self.from_ground[plain] > 9.0).mean())

    def grain(self, spec: PosterSpec) -> float:
        """Root mean square of what a 3 x 3 mean takes out of the plain ground, dE."""
        plain = _erode(_plain_mask(spec))
        residual = self.lab - _blur3(self.lab)
        return float(np.sqrt((residual[plain] ** 2).sum(-1).mean()))


@lru_cache(maxsize=4096)
def _truth(spec: PosterSpec) -> _Look:
    return _Look(perfect(spec))


def _ground_samples(lab: np.ndarray) -> np.ndarray:
    """Pixels beside the shapes and the button, inside a frame and under a band."""
    return np.concatenate(
        [lab[52:120, 8:11].reshape(-1, 3), lab[52:120, 117:120].reshape(-1, 3),
         lab[119:121, 8:120].reshape(-1, 3), lab[98:100, 8:120].reshape(-1, 3)]
    )  # fmt: skip


def _layout(look: _Look, spec: PosterSpec) -> float:
    """How far the frame and the band are there, or not there, as they should be."""
    ink = _lab_of(ink_of(BACKGROUNDS[spec.background]))
    span = _distance(ink, _lab_of(BACKGROUNDS[spec.background]))
    inset, width = int(FRAME_INSET), int(FRAME_WIDTH)
    rim = slice(inset + 1, inset + width - 1)
    far = slice(DESIGN - inset - width + 1, DESIGN - inset - 1)
    ring = np.concatenate(
        [look.from_ground[50:120, rim].ravel(), look.from_ground[50:120, far].ravel(),
         look.from_ground[far, 8:120].ravel()]
    )  # fmt: skip
    top, bottom = int(BAND_BOX[1]), int(BAND_BOX[3])
    strip = np.concatenate(
        [look.from_ground[top + 2 : bottom - 2, 8:14].ravel(),
         look.from_ground[top + 2 : bottom - 2, 114:120].ravel()]
    )  # fmt: skip
    frame = np.clip(np.median(ring) / span, 0, 1)
    band = np.clip(np.median(strip) / span, 0, 1)
    gap = max(abs(frame - (spec.layout == "frame")), abs(band - (spec.layout == "band")))
    return _ramp(gap, 0.2, 0.7)


def _shape_margin(look: _Look, spec: PosterSpec) -> float:
    """By how much the right shape fits better than any other; 1 from 0.6 of a perfect margin."""
    own = SHAPES.index(spec.shape)
    margin = look.overlaps[own] - np.delete(look.overlaps, own).max()
    best = 1.0 - np.delete(_shape_confusion()[own], own).max()
    return float(np.clip(margin / (0.6 * best), 0, 1))


def _headline_margin(look: _Look, spec: PosterSpec) -> float:
    """By how much the right word correlates better than any other, likewise."""
    words = [word for word in HEADLINES if word != "none"]
    own = words.index(spec.headline)
    margin = look.words[own] - np.delete(look.words, own).max()
    truth = _truth(spec).words
    best = truth[own] - np.delete(truth, own).max()
    return float(np.clip(margin / (0.7 * best), 0, 1))


def _button(look: _Look, spec: PosterSpec) -> float:
    left, top, right, bottom = (int(v) for v in BUTTON_BOX)
    area = look.lab[top + 3 : bottom - 3, left + 4 : right - 4].reshape(-1, 3)
    seen = np.median(area, axis=0)
    meant = look.ground if spec.button == "none" else _lab_of(COLORS[spec.button])
    return _ramp(_distance(seen, meant), 8, 40)


def _alignment(look: _Look, truth: _Look) -> float:
    """Headline and button stand centred: the larger slide of the two counts."""
    top, bottom = int(BUTTON_BOX[1]) + 2, int(BUTTON_BOX[3]) - 2
    slide = abs(look.slide)
    strip = look.from_ground[top:bottom, 10:118]
    if truth.from_ground[top:bottom, 10:118].max() > 12 and np.percentile(strip, 95) > 12:
        columns = np.nonzero((strip > 0.5 * np.percentile(strip, 95)).mean(0) > 0.5)[0]
        if len(columns):
            slide = max(slide, abs((columns[0] + columns[-1]) / 2 + 10.5 - DESIGN / 2))
    return _ramp(slide, 1.0, 13.0)


def _harmony(look: _Look) -> float:
    """Ground and shape have colours of the palette, whichever they are."""
    palette = np.stack([_lab_of(c) for c in (*BACKGROUNDS.values(), *COLORS.values())])
    far = [np.linalg.norm(palette - c, axis=-1).min() for c in (look.ground, look.shape_color)]
    return _ramp(float(np.mean(far)), 3.0, 26.0)


@lru_cache
def _shape_templates() -> np.ndarray:
    """Masks (6, 64, 64) of the shapes, each centred by its bounding box."""
    masks = []
    for shape in SHAPES:
        spec = PosterSpec("cream", shape, "blue", "center", "TEA", "none", "plain")
        lab = _lab(perfect(spec))
        far = np.linalg.norm(lab - _lab_of(BACKGROUNDS["cream"]), axis=-1)[51:98, 7:121]
        mask = far > 0.5 * np.percentile(far, 92)
        rows, columns = np.nonzero(mask)
        center = ((columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2)
        masks.append(_centered(mask, center))
    return np.stack(masks)


@lru_cache
def _shape_confusion() -> np.ndarray:
    flat = _shape_templates().reshape(len(SHAPES), -1)
    return np.array([[_iou(a, b) for b in flat] for a in flat])


def _overlaps(mask: np.ndarray, center: tuple[float, float]) -> np.ndarray:
    """Intersection over union with each centred template, the best of 3 x 3 shifts."""
    x, y = center[0] - 7.0, center[1] - 51.0
    best = np.zeros(len(SHAPES))
    for dx in (-1, 0, 1):
        for dy in (-1, 0, 1):
            seen = _centered(mask, (x + dx, y + dy)).ravel()
            scores = [_iou(seen, template.ravel()) for template in _shape_templates()]
            best = np.maximum(best, scores)
    return best


def _centered(mask: np.ndarray, center: tuple[float, float]) -> np.ndarray:
    """A 64 x 64 cut-out of ``mask`` around ``center`` (x, y), zero outside."""
    out = np.zeros((64, 64), bool)
    x0, y0 = round(center[0]) - 32, round(center[1]) - 32
    height, width = mask.shape
    rows = slice(max(0, y0), min(height, y0 + 64))
    columns = slice(max(0, x0), min(width, x0 + 64))
    if rows.start < rows.stop and columns.start < columns.stop:
        part = mask[rows, columns]
        top, left = rows.start - y0, columns.start - x0
        out[top : top + part.shape[0], left : left + part.shape[1]] = part
    return out


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


@lru_cache
def _word_templates() -> np.ndarray:
    """Normalised ink (15, rows * columns) of every headline in the headline box."""
    left, top, right, bottom = (int(v) for v in HEADLINE_BOX)
    rows = []
    for word in HEADLINES:
        if word == "none":
            continue
        lab = _lab(perfect(PosterSpec("cream", "circle", "blue", "center", word, "none", "plain")))
        area = lab[top:bottom, left:right]
        away = np.linalg.norm(area - np.median(area.reshape(-1, 3), axis=0), axis=-1)
        rows.append(_standardised((away / np.percentile(away, 93)).clip(0, 1).ravel()[None])[0])
    return np.stack(rows)


def _read_words(ink: np.ndarray) -> tuple[np.ndarray, float]:
    """Best correlation of each word over shifts, and the slide in pixels of the best word."""
    left, top, right, bottom = (int(v) for v in HEADLINE_BOX)
    margin = ((_SHIFT_Y - 2, _SHIFT_Y - 2), (_SHIFT_X - 10, _SHIFT_X - 10))
    padded = np.pad(ink, margin, mode="edge").astype(np.float32)
    views = np.lib.stride_tricks.sliding_window_view(padded, (bottom - top, right - left))
    rows, columns = views.shape[:2]
    scores = _standardised(views.reshape(rows * columns, -1)) @ _word_templates().T
    best = scores.max(axis=0)
    where = int(scores[:, int(best.argmax())].argmax())
    return np.clip(best, 0, 1), float(where % columns - _SHIFT_X)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Each row (..., D) with mean 0 and norm 1; a constant row becomes 0."""
    centred = values - values.mean(axis=-1, keepdims=True)
    norm = np.linalg.norm(centred, axis=-1, keepdims=True)
    return centred / np.where(norm > 1e-3, norm, np.inf)


@lru_cache(maxsize=4096)
def _plain_mask(spec: PosterSpec) -> np.ndarray:
    """Where a perfect drawing shows the plain ground, 5 pixels away from everything drawn."""
    lab = _lab(perfect(spec))
    drawn = np.linalg.norm(lab - _lab_of(BACKGROUNDS[spec.background]), axis=-1) > 2.0
    for _ in range(5):
        drawn = ~_erode(~drawn)
    plain = ~drawn
    left, _, right, bottom = (int(v) for v in HEADLINE_BOX)
    plain[: bottom + 6] = False
    plain[int(BUTTON_BOX[1]) - 3 : int(BUTTON_BOX[3]) + 3, left:right] = False
    return plain


def _erode(mask: np.ndarray) -> np.ndarray:
    """Keep the pixels whose four neighbours are set; the border is lost."""
    out = np.zeros_like(mask)
    out[1:-1, 1:-1] = (
        mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    )
    return out


def _main_part(mask: np.ndarray) -> np.ndarray:
    """The 8-connected part around the densest point of ``mask`` (within 15 x 15 pixels)."""
    if not mask.any():
        return mask
    summed = np.pad(mask, ((8, 7), (8, 7))).astype(np.int32).cumsum(0).cumsum(1)
    density = summed[15:, 15:] - summed[:-15, 15:] - summed[15:, :-15] + summed[:-15, :-15]
    part = np.zeros_like(mask)
    part.flat[int(np.where(mask, density, -1).argmax())] = True
    size = 0
    while (count := int(part.sum())) != size:
        size = count
        for _ in range(4):
            grown = np.pad(part, 1)
            grown = grown[:-2] | grown[1:-1] | grown[2:]
            part = (grown[:, :-2] | grown[:, 1:-1] | grown[:, 2:]) & mask
    return part


def _gradient(lab: np.ndarray) -> np.ndarray:
    across = np.linalg.norm(lab[:-1, 1:] - lab[:-1, :-1], axis=-1)
    down = np.linalg.norm(lab[1:, :-1] - lab[:-1, :-1], axis=-1)
    return np.hypot(across, down)


def _blur3(lab: np.ndarray) -> np.ndarray:
    grown = np.pad(lab, ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = lab.shape[:2]
    parts = [grown[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.sum(parts, axis=0) / 9.0


_LINEAR = np.array(
    [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.arange(256) / 255],
    np.float32,
)
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip
_WHITE = np.array([0.95047, 1.0, 1.08883])
_TO_LAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]], np.float32)


def _lab(pixels: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) uint8 to CIELAB under D65, float32."""
    xyz = _LINEAR[pixels] @ (_TO_XYZ / _WHITE[:, None]).T.astype(np.float32)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return f @ _TO_LAB.T - np.array([16, 0, 0], np.float32)


@lru_cache
def _lab_of(color: tuple[int, int, int]) -> np.ndarray:
    return _lab(np.array(color, np.uint8))


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))


def _offset(a: tuple[float, float], b: tuple[float, float]) -> float:
    return float(np.hypot(a[0] - b[0], a[1] - b[1]))
