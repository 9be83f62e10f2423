"""Posters for pretraining, from the poster world's specifications of the train split."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from align.pretrain.config import StageConfig
from rewards.posters.draw import DEFECTS, draw, quality_score
from rewards.posters.spec import (
    HAN_WORDS,
    HEADLINES,
    LATIN_WORDS,
    LAYOUTS,
    MARKS,
    PosterSpec,
    caption,
    random_spec,
)

_CONTENT = {
    "none": {"headlines": ("none",), "buttons": ("none",), "layouts": ("plain",)},
    "marks": {"headlines": ("none", *MARKS), "layouts": ("plain",)},
    "glyphs": {"headlines": (*MARKS, *LATIN_WORDS, *HAN_WORDS), "layouts": ("plain",)},
    "layouts": {"headlines": (*LATIN_WORDS, *HAN_WORDS), "layouts": LAYOUTS},
}


def random_defects(rng: random.Random, min_quality: float) -> dict[str, float]:
    """Severities of one or two defects whose quality score is at least ``min_quality``.

    A defect of instruction following contradicts the caption, as captions found beside pictures do
    at times.
    """
    names = rng.sample([*DEFECTS], rng.choice((1, 1, 2)))
    shares = [rng.uniform(0.3, 1.0) for _ in names]
    total = (5.0 - min_quality) / 2.0 * rng.uniform(0.5, 1.0)
    severities = {n: min(1.0, total * s / sum(shares)) for n, s in zip(names, shares, strict=True)}
    assert quality_score(severities) >= min_quality - 1e-9
    return severities


@dataclass(frozen=True)
class Pool:
    """Posters of one stage: images ``(N, 3, size, size)`` uint8 and their captions."""

    images: Tensor
    captions: list[str]


def stage_spec(rng: random.Random, stage: StageConfig) -> PosterSpec:
    return random_spec(rng, split="train", **_CONTENT[stage.text])


def draw_pool(stage: StageConfig, seed: int) -> Pool:
    """Draw the posters of a stage, English and Chinese captions in equal shares."""
    rng = random.Random(f"{seed}/{stage.name}")
    images = torch.empty(stage.pool, 3, stage.size, stage.size, dtype=torch.uint8)
    captions = []
    for i in range(stage.pool):
        spec = stage_spec(rng, stage)
        perfect = rng.random() < stage.perfect_share
        defects = {} if perfect else random_defects(rng, stage.min_quality)
        images[i] = to_tensor(draw(spec, stage.size, defects, seed=i))
        captions.append(caption(spec, rng.choice(("en", "zh"))))
    return Pool(images, captions)


def draw_crops(
    rng: random.Random, count: int, crop: int, sizes: tuple[int, ...], min_quality: float
) -> Tensor:
    """Random square cut-outs of posters of every kind: ``(count, 3, crop, crop)`` in [-1, 1]."""
    crops = torch.empty(count, 3, crop, crop)
    for i in range(count):
        spec = random_spec(rng, split="train", headlines=HEADLINES)
        size = max(crop, rng.choice(sizes))
        defects = random_defects(rng, min_quality) if rng.random() < 0.5 else {}
        image = to_tensor(draw(spec, size, defects, seed=rng.getrandbits(31)))
        top, left = rng.randint(0, size - crop), rng.randint(0, size - crop)
        crops[i] = to_unit(image[:, top : top + crop, left : left + crop])
    return crops


def to_tensor(image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_unit(images: Tensor) -> Tensor:
    """uint8 pixels to [-1, 1]."""
    return images.float() / 127.5 - 1.0
