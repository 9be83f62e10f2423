"""Whether an image shows the texts that it was asked for, and nothing else, legibly."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Image as PILImage

from rewards.base import RewardItem, Score, ScorerSpec
from rewards.text.accuracy import class_accuracy, combine
from rewards.text.engines import PaddleEngine, TextEngine, TextLine
from rewards.text.layout import (
    certainty,
    evenness,
    glyph_profile,
    inside,
    legibility,
    reading_order,
    relative_luminance,
    upright,
)
from rewards.text.matching import Match, match_targets, visible
from rewards.text.targets import TextTarget, parse_quoted, read_targets

__all__ = ["TextRenderingConfig", "TextRenderingScorer"]

logger = logging.getLogger(__name__)

COMPONENTS = (
    "accuracy", "han", "latin", "figures", "precision", "order", "upright", "legibility", "inside",
    "evenness", "certainty",
)  # fmt: skip
_FORMULA = 2
"""Counts the ways in which a score was computed: calibrations hold for one of them."""
LAYOUT = ("order", "upright", "legibility", "inside", "evenness", "certainty")


@dataclass(frozen=True, slots=True)
class TextRenderingConfig:
    """How the measures make one reward:

    accuracy * (1 - p + p * precision) * (1 - l + l * mean of the layout measures).
    """

    precision: float = 0.5
    """p in [0, 1]: what an image of text that nobody asked for loses at most."""
    layout: float = 0.5
    """l in [0, 1]: what a wrong order, turned, faint, clipped or uneven text loses at most."""
    clean_font: str | None = "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc"
    """Font file of the clean renderings that tell what the engine can read, and how even its
    glyphs are; Debian's ``fonts-noto-cjk``. None takes the engine for perfect."""
    clean_face: int = 2
    """Face in that file; 2 is Simplified Chinese."""

    def __post_init__(self) -> None:
        for name in ("precision", "layout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.clean_font is not None and not Path(self.clean_font).is_file():
            raise FileNotFoundError(
                f"clean_font {self.clean_font} is missing: apt-get install fonts-noto-cjk, name "
                "another font with Chinese characters, or set it to null"
            )


@dataclass(frozen=True, slots=True)
class _Clean:
    """What the engine makes of a target drawn without fault."""

    text: str
    confidence: float = 1.0
    profile: float = 0.0


class TextRenderingScorer:
    """Reads the image and holds it against its targets.

    Targets are ``metadata["text_targets"]`` (see `rewards.text.targets.read_targets`), else what
    the prompt quotes. An image without targets is "not applicable", never a 0 or a 1. Components
    that do not apply (no figures, one target and so no order) are left out.
    """

    def __init__(
        self,
        engine: TextEngine | None = None,
        config: TextRenderingConfig | None = None,
    ):
        self.engine = engine or PaddleEngine()
        self.config = config or TextRenderingConfig()
        settings = json.dumps(
            [_FORMULA, self.engine.name, self.engine.version, asdict(self.config)]
        )
        self.spec = ScorerSpec(
            name="text_rendering",
            version=hashlib.sha256(settings.encode()).hexdigest()[:16],
            components=COMPONENTS,
            needs=frozenset({"image"}),
            backbone=self.engine.name,
        )
        self._clean = lru_cache(maxsize=4096)(self._read_clean)
        self._has_warned = False

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """One score per item, in order; see `rewards.base.Scorer`."""
        return [self._score(item) for item in items]

    def _score(self, item: RewardItem) -> Score:
        try:
            targets = self._targets(item)
        except ValueError as error:
            return Score(None, error=str(error))
        if not targets:
            return Score(None)
        if item.image is None:
            return Score(None, error="there is no image")
        try:
            lines = self.engine.read(item.image)
            return self.judge(item.image, targets, lines)
        except (OSError, RuntimeError, SyntaxError, subprocess.TimeoutExpired) as error:
            return Score(None, error=f"{self.engine.name} failed: {error}")

    def judge(
        self, image: PILImage, targets: Sequence[TextTarget], lines: Sequence[TextLine]
    ) -> Score:
        """The score of an image whose lines have been read."""
        clean = [self._clean(target.text) for target in targets]
        matches = match_targets(targets, lines)
        shown = [match.text if match else "" for match in matches]
        accuracies = [
            combine(target.text, text, of.text)
            for target, text, of in zip(targets, shown, clean, strict=True)
        ]
        readable = [value for value in accuracies if value is not None]
        if not readable:
            return Score(None)
        components = {
            "accuracy": sum(readable) / len(readable),
            **_by_class(targets, shown),
            "precision": _precision(matches, lines),
            **self._layout(image, targets, clean, matches, lines),
        }
        layout = [components[name] for name in LAYOUT if name in components]
        p, share = self.config.precision, self.config.layout
        value = components["accuracy"] * (1 - p + p * components["precision"])
        if layout:
            value *= 1 - share + share * sum(layout) / len(layout)
        return Score(value, components)

    def _targets(self, item: RewardItem) -> tuple[TextTarget, ...]:
        targets = read_targets(item.metadata)
        if targets is not None:
            return targets
        quoted = parse_quoted(item.prompt)
        if quoted and not self._has_warned:
            logger.warning(
                "prompt %r has no text_targets in its metadata: what it quotes is taken for them",
                item.prompt,
            )
            self._has_warned = True
        return quoted

    def _layout(
        self,
        image: PILImage,
        targets: Sequence[TextTarget],
        clean: Sequence[_Clean],
        matches: Sequence[Match | None],
        lines: Sequence[TextLine],
    ) -> dict[str, float]:
        found = [match for match in matches if match is not None]
        if not found:
            return {}
        luminance = relative_luminance(image)
        own = [(lines[index], clean[match.target]) for match in found for index in match.lines]
        measured: dict[str, float] = {
            "upright": float(np.mean([upright(line) for line, _ in own])),
            "legibility": float(np.mean([legibility(line, luminance) for line, _ in own])),
            "inside": float(np.mean([inside(line, image) for line, _ in own])),
            "certainty": float(np.mean([certainty(line, of.confidence) for line, of in own])),
        }
        if self.config.clean_font is not None:
            shares = [evenness(glyph_profile(line, luminance), of.profile) for line, of in own]
            measured["evenness"] = float(np.mean(shares))
        order = reading_order(_in_order(targets, found, lines))
        if order is not None:
            measured["order"] = order
        return {name: measured[name] for name in LAYOUT if name in measured}

    def _read_clean(self, text: str) -> _Clean:
        if self.config.clean_font is None:
            return _Clean(text)
        font = ImageFont.truetype(self.config.clean_font, 64, index=self.config.clean_face)
        image = Image.new("RGB", (math.ceil(font.getlength(text)) + 128, 192), "white")
        ImageDraw.Draw(image).text((64, 96), text, fill="black", font=font, anchor="lm")
        lines = self.engine.read(image)
        [match] = match_targets([TextTarget(text)], lines)
        if match is None:
            return _Clean("")
        line = lines[match.lines[0]]
        return _Clean(match.text, line.confidence, glyph_profile(line, relative_luminance(image)))


def _in_order(
    targets: Sequence[TextTarget], found: Sequence[Match], lines: Sequence[TextLine]
) -> list[TextLine]:
    """The first line of each target that has a place in the reading order, in that order."""
    placed = [match for match in found if targets[match.target].order is not None]
    placed.sort(key=lambda match: targets[match.target].order or 0)
    return [lines[match.lines[0]] for match in placed]


def _by_class(targets: Sequence[TextTarget], shown: Sequence[str]) -> dict[str, float]:
    """Mean accuracy of each class over the targets that have it, as read."""
    found: dict[str, list[float]] = {}
    for target, text in zip(targets, shown, strict=True):
        for name, value in class_accuracy(target.text, text).items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _precision(matches: Sequence[Match | None], lines: Sequence[TextLine]) -> float:
    """Share of the recognised characters that show a target; 1 where there is no text."""
    recognised = sum(len(visible(line.text)) for line in lines)
    used = sum(len(match.places) for match in matches if match is not None)
    return used / recognised if recognised else 1.0
