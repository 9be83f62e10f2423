"""Simulated designers: three people with tastes, noise and blind spots, who label like people do.

A designer looks at posters through measurements of their own, which are not the ruler's: blurred
thumbnails held against the poster that the brief describes, the unrest of the quiet areas, the
bite of the edges. Each measurement is distorted by the designer's eyes (colour vision, where they
look) and disturbed by noise, so that two designers agree only in part and nobody is always right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from rewards.posters.draw import BUTTON_BOX, DESIGN, HEADLINE_BOX, perfect
from rewards.posters.spec import PosterSpec

Criterion = Literal["overall", "aesthetics", "instruction", "detail"]

_NORMAL = np.eye(3)
_DEUTAN = np.array([[0.625, 0.375, 0.0], [0.70, 0.30, 0.0], [0.0, 0.30, 0.70]])
"""Red-green confusion, as a mixing matrix of sRGB (after Machado et al., 2009, in rough form)."""


@dataclass(frozen=True)
class Judgement:
    """What a designer does with a task; positions index the images as they were shown."""

    outcome: Literal["picked", "all_bad", "all_equal", "skip"]
    win: int | None = None
    lose: int | None = None


@dataclass(frozen=True)
class Designer:
    """One simulated annotator."""

    name: str
    taste: dict[Criterion, float]
    """Weight of each criterion when the whole is asked for."""
    noise: float
    """Standard deviation of a judgement, in units of the scores, which span about 0 to 1."""
    eyes: np.ndarray = field(default_factory=lambda: _NORMAL)
    """Mixing matrix of sRGB that stands for the designer's colour vision."""
    blind_to: tuple[str, ...] = ()
    """Areas never looked at: ``headline``, ``button`` or ``edges``."""
    skip_rate: float = 0.01

    def judge(
        self,
        images: Sequence[Image.Image],
        spec: PosterSpec,
        question: Criterion,
        rng: np.random.Generator,
    ) -> Judgement:
        """Look at ``images`` and pick the best and the worst of them on ``question``."""
        return self.choose([self.impressions(image, spec)[question] for image in images], rng)

    def choose(self, values: Sequence[float], rng: np.random.Generator) -> Judgement:
        """Pick by impressions, each disturbed by the designer's noise."""
        if rng.random() < self.skip_rate:
            return Judgement("skip")
        felt = np.array(values) + rng.normal(0.0, self.noise, len(values))
        if max(values) < 0.08:
            return Judgement("all_bad")
        if felt.max() - felt.min() < 0.5 * self.noise:
            return Judgement("all_equal")
        return Judgement("picked", int(felt.argmax()), int(felt.argmin()))

    def impressions(self, image: Image.Image, spec: PosterSpec) -> dict[Criterion, float]:
        """How well the designer likes an image on each question, before noise; 1 is flawless."""
        image = image.convert("RGB")
        if image.size != (DESIGN, DESIGN):
            image = image.resize((DESIGN, DESIGN), Image.Resampling.BICUBIC)
        seen, meant = self._see(np.asarray(image)), self._see(perfect(spec))
        parts: dict[Criterion, float] = {
            "aesthetics": self._calm(seen, meant),
            "instruction": self._likeness(seen, meant),
            "detail": self._bite(seen, meant),
        }
        total = sum(self.taste.values())
        overall = sum(weight * parts[name] for name, weight in self.taste.items()) / total
        return {"overall": overall, **parts}

    def _see(self, pixels: np.ndarray) -> np.ndarray:
        return (pixels.astype(np.float32) / 255.0) @ self.eyes.T.astype(np.float32)

    def _likeness(self, seen: np.ndarray, meant: np.ndarray) -> float:
        """Thumbnails of 16 x 16 held side by side, and of the headline at twice that."""
        until = 12 if "button" in self.blind_to else 16
        gaps = np.abs(_thumbnail(seen, 8) - _thumbnail(meant, 8))
        error = 3.0 * float(gaps[6:until].mean())
        if "headline" not in self.blind_to:
            left, top, right, bottom = (int(v) for v in HEADLINE_BOX)
            own, ideal = seen[top:bottom, left:right], meant[top:bottom, left:right]
            error += 1.2 * float(np.abs(_thumbnail(own, 4) - _thumbnail(ideal, 4)).mean())
        return float(np.exp(-2.5 * error))

    def _calm(self, seen: np.ndarray, meant: np.ndarray) -> float:
        """Quiet grounds, an even left and right, and colours as strong as they were meant."""
        gray, ideal = seen.mean(-1), meant.mean(-1)
        unrest = float(gray[54:98, 8:12].std() + gray[54:98, 116:120].std())
        rows = np.r_[14:42, 103:115]
        lean = abs(_balance(gray[rows]) - _balance(ideal[rows]))
        color = abs(_colorfulness(seen) - _colorfulness(meant))
        return float(np.exp(-(4.0 * unrest + 6.0 * lean + 4.0 * color)))

    def _bite(self, seen: np.ndarray, meant: np.ndarray) -> float:
        """How much of the meant edge energy is there, less what shimmers where nothing should."""
        own, ideal = _edges(seen.mean(-1)), _edges(meant.mean(-1))
        if "button" in self.blind_to:
            left, top, right, bottom = (int(v) for v in BUTTON_BOX)
            own[top:bottom, left:right] = ideal[top:bottom, left:right] = 0.0
        on = ideal > 0.08
        kept = min(1.0, float(np.percentile(own, 96) / max(np.percentile(ideal, 96), 1e-3)))
        shimmer = float(own[~on].mean())
        weight = 4.0 if "edges" in self.blind_to else 9.0
        return max(0.0, kept) * float(np.exp(-weight * shimmer))


def _thumbnail(pixels: np.ndarray, cell: int) -> np.ndarray:
    """Mean over cells of ``cell`` x ``cell`` pixels."""
    height, width = (side // cell for side in pixels.shape[:2])
    cut = pixels[: height * cell, : width * cell]
    return cut.reshape(height, cell, width, cell, -1).mean((1, 3))


def _colorfulness(pixels: np.ndarray) -> float:
    return float((pixels.max(-1) - pixels.min(-1)).mean())


def _balance(rows: np.ndarray) -> float:
    """Where the contrast of some rows lies, from -0.5 (left) to 0.5 (right)."""
    away = np.abs(rows - np.median(rows, axis=1, keepdims=True)).sum(0) + 1e-6
    return float((away * np.linspace(-0.5, 0.5, len(away))).sum() / away.sum())


def _edges(gray: np.ndarray) -> np.ndarray:
    out = np.zeros_like(gray)
    out[:-1, :-1] = np.hypot(gray[:-1, 1:] - gray[:-1, :-1], gray[1:, :-1] - gray[:-1, :-1])
    return out


def studio_designers() -> tuple[Designer, ...]:
    """The three designers of the demo."""
    return (
        Designer("ada", {"aesthetics": 1.0, "instruction": 1.5, "detail": 1.0}, noise=0.01),
        Designer(
            "bo",
            {"aesthetics": 1.5, "instruction": 1.0, "detail": 0.7},
            noise=0.018,
            eyes=_DEUTAN,
            blind_to=("button",),
        ),
        Designer(
            "chen",
            {"aesthetics": 0.8, "instruction": 1.2, "detail": 1.6},
            noise=0.014,
            blind_to=("edges",),
        ),
    )
