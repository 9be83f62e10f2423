"""Does a scorer pay for what no designer asked for? Edits that should change no score, or little.

Each edit leaves what the picture shows as it is; the shift of the score is in medians of the
margin between two candidates of one prompt: at 1, the edit is worth as much as a better picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from PIL.Image import Image as PILImage
from PIL.Image import Resampling

from annotate.records import Snapshot
from rewards.base import RewardItem, Score, Scorer, ScoringError
from rewards.posters.spec import PosterSpec, caption

__all__ = ["IMAGE_EDITS", "TOLERANCE", "audit_biases", "translate_prompt"]

TOLERANCE = 0.5
"""Medians of the margin; a larger mean shift is a warning."""


def _jpeg(image: PILImage) -> PILImage:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def _sharpen(image: PILImage) -> PILImage:
    return image.filter(ImageFilter.UnsharpMask(radius=1, percent=50, threshold=0))


def _border(image: PILImage) -> PILImage:
    """A dark frame of 2 % of the side over the edge."""
    framed, width = image.copy(), max(1, round(0.02 * min(image.size)))
    last = (image.width - 1, image.height - 1)
    ImageDraw.Draw(framed).rectangle([(0, 0), last], outline="black", width=width)
    return framed


def _half_resolution(image: PILImage) -> PILImage:
    """Half the size and back: what a smaller picture of the same would give."""
    small = image.resize((image.width // 2, image.height // 2), Resampling.LANCZOS)
    return small.resize(image.size, Resampling.LANCZOS)


def _more_text(image: PILImage) -> PILImage:
    """A line that nobody asked for, in the lower left corner."""
    written = image.copy()
    place = (round(0.03 * image.width), image.height - 13)
    ImageDraw.Draw(written).text(place, "www.example.com", fill="black", stroke_width=1,
                                 stroke_fill="white")  # fmt: skip
    return written


IMAGE_EDITS: dict[str, Callable[[PILImage], PILImage]] = {
    "jpeg 95": _jpeg,
    "saturation +10 %": lambda image: ImageEnhance.Color(image).enhance(1.1),
    "contrast +10 %": lambda image: ImageEnhance.Contrast(image).enhance(1.1),
    "sharpness": _sharpen,
    "border": _border,
    "half resolution": _half_resolution,
    "more text": _more_text,
    "mirrored": ImageOps.mirror,
}
"""Name -> what it does to the picture. ``mirrored`` is no flaw of aesthetics or detail, but may be
one of instruction: it tells whether a head reads places at all."""


def translate_prompt(metadata: Mapping[str, Any], lang: str) -> str | None:
    """The same brief in the other of English and Chinese; None where it is not known.

    Read from ``metadata["translations"]``, by language, or made from a poster's specification.
    """
    other = "zh" if lang == "en" else "en"
    if (text := metadata.get("translations", {}).get(other)) is not None:
        return str(text)
    if "spec" in metadata:
        return caption(PosterSpec(**metadata["spec"]), other)
    return None


def audit_biases(
    scorer: Scorer, snapshot: Snapshot, items: Sequence[RewardItem]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Shifts of every head under each edit of `IMAGE_EDITS`, and under a translated prompt.

    Args:
        items: with images, at least two of each of some prompts: margins between them are the
            unit. ``group_id`` is the prompt's id in ``snapshot``.

    Returns:
        edit -> head -> ``shift`` (mean change, in medians of |margin|), ``low`` and ``high`` (95 %,
        by a normal mean over prompts), ``warning`` when the shift is beyond `TOLERANCE`.

    Raises:
        ValueError: no prompt has two items.
        rewards.base.ScoringError: an item could not be scored.
    """
    before = _table(scorer, items)
    units = _median_margins(before, [item.group_id for item in items])
    edited: dict[str, list[tuple[int, RewardItem]]] = {
        name: [
            (i, replace(item, image=edit(item.image.convert("RGB")), latents=None))
            for i, item in enumerate(items)
            if item.image is not None
        ]
        for name, edit in IMAGE_EDITS.items()
    }
    translated = []
    for i, item in enumerate(items):
        prompt = snapshot.prompt_of[item.group_id]
        if (text := translate_prompt(prompt.metadata, prompt.lang)) is not None:
            translated.append((i, replace(item, prompt=text)))
    edited["prompt in the other language"] = translated
    return {name: _shifts(scorer, of, before, units) for name, of in edited.items() if of}


def _shifts(
    scorer: Scorer,
    edited: Sequence[tuple[int, RewardItem]],
    before: Mapping[str, np.ndarray],
    units: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    after = _table(scorer, [item for _, item in edited])
    index = [i for i, _ in edited]
    prompts = np.unique([item.group_id for _, item in edited], return_inverse=True)[1]
    counts = np.bincount(prompts)
    found: dict[str, dict[str, Any]] = {}
    for head, values in after.items():
        change = (values - before[head][index]) / units[head]
        means = np.bincount(prompts, weights=change) / counts
        error = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else 0.0
        shift = float(means.mean())
        found[head] = {
            "shift": shift,
            "low": float(shift - 1.96 * error),
            "high": float(shift + 1.96 * error),
            "warning": abs(shift) > TOLERANCE,
        }
    return found


def _table(scorer: Scorer, items: Sequence[RewardItem]) -> dict[str, np.ndarray]:
    """head -> scores of the items; ``overall`` is the value."""
    scores = scorer.score(items)
    values = [_value(item, score) for item, score in zip(items, scores, strict=True)]
    heads = {name: [score.components[name] for score in scores] for name in scorer.spec.components}
    heads["overall"] = values
    return {name: np.asarray(column, dtype=np.float64) for name, column in heads.items()}


def _value(item: RewardItem, score: Score) -> float:
    if score.value is None:
        cause = score.error or "the scorer is not applicable to it"
        raise ScoringError(f"sample {item.sample_id!r} cannot be audited: {cause}")
    return score.value


def _median_margins(table: Mapping[str, np.ndarray], groups: Sequence[str]) -> dict[str, float]:
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    pairs = [(a, b) for of in members.values() for k, a in enumerate(of) for b in of[k + 1 :]]
    if not pairs:
        raise ValueError("the audit needs two images of one prompt, got one of each")
    first, second = np.array(pairs).T
    return {
        name: max(float(np.median(np.abs(values[first] - values[second]))), 1e-9)
        for name, values in table.items()
    }
