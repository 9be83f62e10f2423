"""The final evaluation: held-out prompts, the same noise for every model, the ruler as judge.

This is the only module that may read the ruler (an import contract). Nothing here feeds back into
training: the test split of the poster world is read once, when all training is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotate.records import Candidate, Prompt
from rewards.posters.ruler import CRITERIA, read_poster, ruler_sha256
from rewards.posters.spec import PosterSpec

__all__ = ["CRITERIA", "Interval", "Readings", "compare", "measure", "ruler_sha256"]

Array = NDArray[np.float64]
DRAWS = 2000
"""Bootstrap draws behind every interval."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % percentile bootstrap interval, prompts being the clusters."""

    value: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class Readings:
    """Ruler scores of one model: (prompts, images of a prompt, criteria), each in [0, 1]."""

    scores: Array

    def means(self) -> dict[str, float]:
        """Mean of each criterion, and of the three."""
        each = self.scores.mean(axis=(0, 1))
        return {**dict(zip(CRITERIA, each.tolist(), strict=True)), "mean": float(each.mean())}

    def by_prompt(self) -> Array:
        """(prompts, criteria): the mean over a prompt's images."""
        return self.scores.mean(axis=1)


def measure(prompts: Sequence[Prompt], candidates: Sequence[Candidate], images: Path) -> Readings:
    """Read every candidate's image; each prompt's metadata holds its specification.

    Raises:
        ValueError: the prompts do not all have the same number of candidates.
    """
    rows: dict[str, list[list[float]]] = {prompt.id: [] for prompt in prompts}
    spec_of = {prompt.id: PosterSpec(**prompt.metadata["spec"]) for prompt in prompts}
    for candidate in candidates:
        with Image.open(images / f"{candidate.image_sha256}.png") as image:
            reading = read_poster(image, spec_of[candidate.prompt_id])
        rows[candidate.prompt_id].append([getattr(reading, name) for name in CRITERIA])
    counts = {len(row) for row in rows.values()}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(f"images per prompt: got {sorted(counts)}, expected one number above 0")
    return Readings(np.array(list(rows.values())))


def interval(figure: Callable[[NDArray[np.int64]], float], count: int, seed: int) -> Interval:
    """Bootstrap ``figure``, a function of the indices of the prompts that it is computed on."""
    rng = np.random.default_rng(seed)
    drawn = [figure(rng.integers(0, count, count)) for _ in range(DRAWS)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(figure(np.arange(count)), float(low), float(high))


class Comparison(TypedDict):
    """A model against the better of its baselines."""

    gain: Interval
    """Relative gain of the three criteria's mean; the better baseline is chosen again in every
    bootstrap draw, which favours the baselines."""
    criteria: dict[str, Interval]
    """Paired difference of each criterion to the better baseline."""
    headroom_closed: float
    """Share of what the better baseline lacks to 1."""


def compare(model: Readings, baselines: Mapping[str, Readings], seed: int) -> Comparison:
    """``model`` against the better of ``baselines``."""
    own = model.by_prompt()
    others = {name: readings.by_prompt() for name, readings in baselines.items()}

    def gain(rows: NDArray[np.int64]) -> float:
        return float(own[rows].mean() / max(o[rows].mean() for o in others.values()) - 1.0)

    best = max(others.values(), key=lambda other: float(other.mean()))
    criteria = {
        name: interval(lambda rows, k=k: float((own - best)[rows, k].mean()), len(own), seed)
        for k, name in enumerate(CRITERIA)
    }
    headroom = float((own.mean() - best.mean()) / (1.0 - best.mean()))
    return {
        "gain": interval(gain, len(own), seed),
        "criteria": criteria,
        "headroom_closed": headroom,
    }
