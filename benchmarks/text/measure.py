"""Text rendering: the scorer on the graded posters, and what its engines read of clean characters.

python -m benchmarks.measure text
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from PIL.Image import Image as PILImage

from benchmarks.text.briefs import BRIEFS
from benchmarks.text.draw import draw_poster, load_font
from benchmarks.text.order import read_order, variants
from rewards.scorers.text_rendering import TextRenderingScorer
from rewards.text.distance import edit_distance
from rewards.text.engines import TextEngine, TextLine
from rewards.text.matching import match_targets, visible
from rewards.text.targets import TextTarget

__all__ = ["CachedEngine", "characters_of_level", "first_quote_reward", "read_level", "score_order"]

PER_ROW, ROWS = 8, 8


class CachedEngine:
    """An engine that remembers in a file what it read: reading the posters takes minutes."""

    def __init__(self, engine: TextEngine, path: Path):
        self._engine, self._path = engine, path
        self.name, self.version = engine.name, engine.version
        self._known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def read(self, image: PILImage) -> list[TextLine]:
        pixels = image.convert("RGB")
        key = hashlib.sha256(f"{self.version}{pixels.size}".encode() + pixels.tobytes()).hexdigest()
        if key not in self._known:
            self._known[key] = [asdict(line) for line in self._engine.read(image)]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._known, ensure_ascii=False))
        return [
            TextLine(**{**line, "quad": tuple(tuple(corner) for corner in line["quad"])})
            for line in self._known[key]
        ]


def first_quote_reward(prompt: str, lines: Sequence[TextLine]) -> float:
    """What open GRPO trainers use: the first straight-quoted string against all text read.

    1 where it occurs in the text; else 1 - edit distance to the *whole* text / its length, at
    least 0. Raises IndexError for a prompt without straight quotes, as they do.
    """
    target = prompt.split('"')[1].replace(" ", "").lower()
    text = "".join(line.text for line in lines).replace(" ", "").lower()
    if target in text:
        return 1.0
    return 1.0 - min(edit_distance(target, text), len(target)) / len(target)


def score_order(engine: TextEngine) -> dict[str, Any]:
    """Both rewards of every graded poster, and of every pair that has an order."""
    scorer = TextRenderingScorer(engine)
    ours: dict[tuple[str, str], float] = {}
    common: dict[tuple[str, str], float] = {}
    for brief in BRIEFS:
        targets = [TextTarget(text, order=place) for place, text in enumerate(brief.lines)]
        for faults in variants():
            image = draw_poster(brief, faults)
            lines = engine.read(image)
            value = scorer.judge(image, targets, lines).value
            assert value is not None, brief.name
            key = brief.name, json.dumps(faults)
            ours[key], common[key] = value, first_quote_reward(brief.prompt, lines)
        print(f"  {engine.name}: {brief.name}", flush=True)
    return {
        "engine": f"{engine.name} {engine.version}",
        "posters": [
            [name, json.loads(faults), ours[name, faults], common[name, faults]]
            for name, faults in ours
        ],
        "pairs": [
            [name, better, worse, *(values[name, json.dumps(faults)]
             for values in (ours, common) for faults in (better, worse))]
            for name, better, worse in read_order()
        ],
    }  # fmt: skip


def characters_of_level(level: int) -> list[str]:
    """The common (1: 3,755) and less common (2: 3,008) characters of GB/T 2312-1980."""
    rows = {1: range(16, 56), 2: range(56, 88)}[level]
    codes = (bytes((0xA0 + row, 0xA0 + cell)) for row in rows for cell in range(1, 95))
    return [text for code in codes if (text := code.decode("gb2312", errors="ignore"))]


def read_level(engine: TextEngine, level: int, count: int = 1024, seed: int = 0) -> dict[str, Any]:
    """``count`` characters of a level, each drawn once without context, 8 x 8 a page at 48 px."""
    characters = random.Random(seed).sample(characters_of_level(level), count)
    rows = ["".join(characters[at : at + PER_ROW]) for at in range(0, len(characters), PER_ROW)]
    right = 0
    for start in range(0, len(rows), ROWS):
        page = rows[start : start + ROWS]
        lines = engine.read(_draw_page(page))
        for row, match in zip(
            page, match_targets([TextTarget(r) for r in page], lines), strict=True
        ):
            shown = visible(match.text) if match else ""
            right += max(0, len(row) - edit_distance(visible(row), shown))
        print(
            f"  {engine.name}: level {level}, {start + len(page)} of {len(rows)} rows", flush=True
        )
    return {
        "engine": f"{engine.name} {engine.version}",
        "characters": len(characters),
        "right": right,
    }


def _draw_page(rows: Sequence[str]) -> PILImage:
    font = load_font("sans", 48)
    image = Image.new("RGB", (PER_ROW * 52 + 96, ROWS * 84 + 60), "white")
    draw = ImageDraw.Draw(image)
    for place, row in enumerate(rows):
        draw.text((48, 72 + 84 * place), row, fill="black", font=font, anchor="lm")
    return image
