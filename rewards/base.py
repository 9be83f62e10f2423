"""What every scorer speaks: `RewardItem` in, `Score` out.

A scorer answers in one of three ways and never mixes them up: a finite number (higher is better),
``None`` for "not applicable to this item", or an error that names the cause. A failed item is never
a zero: a zero cannot be told from a true one, and a policy would learn from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = [
    "RewardItem",
    "Score",
    "Scorer",
    "ScorerSpec",
    "ScoringError",
    "batch_places",
    "complete_scores",
]


class ScoringError(RuntimeError):
    """A scorer failed on an item, or broke its contract; the message names the sample."""


@dataclass(frozen=True, slots=True, eq=False)
class RewardItem:
    """One sample to score: an image, its latents, or both, and what it was drawn for."""

    sample_id: str
    group_id: str
    """Samples of one group answer the same prompt and are compared with one another."""
    prompt: str
    image: Image | None = None
    latents: Tensor | None = None
    """(C, h, w), normalised, at sigma 0."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source_images: Sequence[Image] = ()
    """The pictures that the prompt edits, in its order, upright RGB of their own sizes; empty: the
    prompt draws. Items that share a picture hold one object, so that it is read once."""


@dataclass(frozen=True, slots=True)
class Score:
    """A scorer's answer for one item; NaN and infinity are refused here, at the border."""

    value: float | None
    """Higher is better; None says "not applicable", or that ``error`` is set."""
    components: Mapping[str, float] = field(default_factory=dict)
    """One value per criterion, on the scale of ``value``."""
    sigma: float | None = None
    """The scorer's own standard deviation of ``value``, where it has one."""
    error: str | None = None
    truncated: int = 0
    """Tokens at the end of the prompt that the scorer did not read, for want of room."""

    def __post_init__(self) -> None:
        if self.error is not None and self.value is not None:
            raise ValueError(f"a score with the error {self.error!r} must have no value")
        numbers = {"value": self.value, "sigma": self.sigma, **self.components}
        for name, number in numbers.items():
            if number is not None and not math.isfinite(number):
                raise ValueError(f"score {name} must be a finite number, got {number}")


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """Who a scorer is: two scorers of one name and version give the same numbers."""

    name: str
    version: str
    """Changes with the weights, the configuration and the base model."""
    components: tuple[str, ...]
    needs: frozenset[str]
    """The item fields that it reads, of ``image`` and ``latents``; any one of them is enough."""
    backbone: str = ""
    """Names the network that it looks through; scorers of one backbone share their blind spots."""
    groupwise: bool = False
    """A score depends on the other samples of its group, which must all come in one call."""


@runtime_checkable
class Scorer(Protocol):
    """Scores items one by one, or, where ``spec.groupwise`` says so, group by group.

    One score per item, in order; the same item (in the same group) scores the same in any batch and
    at any time.
    """

    spec: ScorerSpec

    def score(self, items: Sequence[RewardItem]) -> list[Score]: ...


def batch_places(
    items: Sequence[RewardItem], batch_size: int, groupwise: bool = False
) -> list[list[int]]:
    """Places of the items by batch, in order; ``groupwise`` keeps each group together, so that a
    batch is as large as a group at least."""
    units: dict[object, list[int]] = {}
    for place, item in enumerate(items):
        units.setdefault(item.group_id if groupwise else place, []).append(place)
    batches: list[list[int]] = []
    for unit in units.values():
        if batches and len(batches[-1]) + len(unit) <= batch_size:
            batches[-1] += unit
        else:
            batches.append(list(unit))
    return batches


def complete_scores(scorer: Scorer, items: Sequence[RewardItem]) -> list[Score]:
    """One score an item: a mean with holes where a scorer failed would be one of other images.

    Raises:
        ScoringError: it failed on an item; names scorer, item and cause.
    """
    scores = scorer.score(items)
    for item, score in zip(items, scores, strict=True):
        if score.error is not None:
            raise ScoringError(
                f"scorer {scorer.spec.name!r} failed on sample {item.sample_id!r}: {score.error}"
            )
    return scores
