"""Poster edits: an instruction, the picture it starts from, the truth it asks for, and where.

An edit leads from one `PosterSpec` to another by changing one field, or gives a poster back the
side that its canvas lacks. Everything outside the region that it changes stays as it was, to the
pixel.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from rewards.posters.draw import DESIGN, draw
from rewards.posters.spec import (
    _ZH,  # the ruler's hash freezes that module, and so the table's private name
    BUTTONS,
    CHOICES,
    HAN_WORDS,
    LATIN_WORDS,
    PosterSpec,
    random_spec,
)

__all__ = [
    "EDITS",
    "EMPTY",
    "DrawnEdit",
    "PosterEdit",
    "draw_edit",
    "empty_side",
    "instruction",
    "random_edit",
]

EDITS: dict[str, tuple[str, ...]] = {
    "recolour": ("color", "button"),
    "move": ("position",),
    "add": ("headline", "button"),
    "remove": ("headline", "button"),
    "extend": ("left", "right"),
}
"""Each kind of edit and its parts: a field of the specification, or a side of the canvas."""
EMPTY = (255, 255, 255)
"""The canvas where nothing has been painted yet."""
EMPTY_WIDTH = 32
"""Width of the side that ``extend`` has to paint, in the design space of `draw.DESIGN`."""


@dataclass(frozen=True, order=True)
class PosterEdit:
    """One edit. Its fields agree, or it is a ValueError."""

    kind: str
    part: str
    source: PosterSpec
    target: PosterSpec

    def __post_init__(self) -> None:
        if self.part not in EDITS.get(self.kind, ()):
            raise ValueError(f"edit: got {self.kind!r} of {self.part!r}, expected one of {EDITS}")
        before, after = self.source.to_dict(), self.target.to_dict()
        changed = tuple(name for name in before if before[name] != after[name])
        expected = () if self.kind == "extend" else (self.part,)
        if changed != expected:
            raise ValueError(f"{self.kind} of {self.part!r} changed {changed}, expected {expected}")
        was, is_now = before.get(self.part) != "none", after.get(self.part) != "none"
        if (was, is_now) != {"add": (False, True), "remove": (True, False)}.get(
            self.kind, (True, True)
        ):
            raise ValueError(
                f"{self.kind} of {self.part!r}: got {before[self.part]!r} to {after[self.part]!r}"
            )


@dataclass(frozen=True)
class DrawnEdit:
    """The pictures of an edit, each of ``size`` x ``size`` pixels."""

    source: Image.Image
    target: Image.Image
    mask: np.ndarray
    """(size, size) bool, true exactly where source and target differ."""


def random_edit(
    rng: random.Random, *, kind: str | None = None, split: str | None = None
) -> PosterEdit:
    """Draw an edit: its kind and part uniformly, then its posters, both of ``split`` if named."""
    kind = rng.choice(list(EDITS)) if kind is None else kind
    if kind not in EDITS:
        raise ValueError(f"edit kind: got {kind!r}, expected one of {tuple(EDITS)}")
    part = rng.choice(EDITS[kind])
    while True:
        source = _source(rng, kind, part, split)
        target = source
        if kind != "extend":
            choices = [v for v in _after(kind, part) if v != getattr(source, part)]
            target = replace(source, **{part: rng.choice(choices)})
        if split is None or target.split == split:
            return PosterEdit(kind, part, source, target)


def _source(rng: random.Random, kind: str, part: str, split: str | None) -> PosterSpec:
    headlines, buttons = (*LATIN_WORDS, *HAN_WORDS), BUTTONS
    if kind == "add":
        headlines = ("none",) if part == "headline" else headlines
        buttons = ("none",) if part == "button" else buttons
    elif part == "button":
        buttons = BUTTONS[1:]
    return random_spec(rng, split=split, headlines=headlines, buttons=buttons)


def _after(kind: str, part: str) -> tuple[str, ...]:
    """Values that ``part`` may take by an edit of ``kind``."""
    if kind == "remove":
        return ("none",)
    if part == "headline":
        return (*LATIN_WORDS, *HAN_WORDS)
    return tuple(value for value in CHOICES[part] if value != "none")


def instruction(edit: PosterEdit, lang: str) -> str:
    """What an editor is told, ``en`` or ``zh``: with the source it says the target in full."""
    if lang not in ("en", "zh"):
        raise ValueError(f"instruction language: got {lang!r}, expected 'en' or 'zh'")
    source, part = edit.source, edit.part
    value = part if edit.kind == "extend" else getattr(edit.target, part)
    chinese = lang == "zh"
    if chinese:
        value = _ZH.get(value, value)
    shape = _ZH[source.shape] if chinese else source.shape
    if edit.kind == "recolour":
        thing = shape if part == "color" else ("按钮" if chinese else "button")
        return f"把{thing}改成{value}" if chinese else f"make the {thing} {value}"
    if edit.kind == "move":
        return f"把{shape}移到{value}" if chinese else f"move the {shape} to the {value}"
    if edit.kind == "extend":
        return f"把海报扩展到{value}" if chinese else f"extend the poster to the {value}"
    if edit.kind == "remove":
        thing = {"headline": "标题", "button": "按钮"}[part] if chinese else part
        return f"去掉{thing}" if chinese else f"remove the {thing}"
    if part == "headline":
        return f"加上标题“{value}”" if chinese else f"add the headline “{value}”"
    return f"加上{value}按钮" if chinese else f"add a {value} button"


def draw_edit(edit: PosterEdit, size: int = DESIGN) -> DrawnEdit:
    """Paint source and target, both without defect."""
    source, target = draw(edit.source, size), draw(edit.target, size)
    if edit.kind == "extend":
        source = empty_side(source, edit.part)
    mask = (np.asarray(source) != np.asarray(target)).any(axis=-1)
    return DrawnEdit(source, target, mask)


def empty_side(image: Image.Image, side: str) -> Image.Image:
    """A copy of ``image`` whose ``left`` or ``right`` quarter is not painted yet."""
    width = round(EMPTY_WIDTH * image.width / DESIGN)
    start = {"left": 0, "right": image.width - width}[side]
    image = image.copy()
    image.paste(EMPTY, (start, 0, start + width, image.height))
    return image
