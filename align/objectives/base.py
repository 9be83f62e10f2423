"""What an objective is: a batch in, a loss and its metrics out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from align.policy import Policy

BatchT = TypeVar("BatchT", contravariant=True)


@dataclass(frozen=True)
class LossOutput:
    """A loss, averaged over the batch, and what to log beside it."""

    loss: Tensor
    """Scalar float32 with a gradient."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars, each a mean over the batch: they may be averaged over equal batches."""


class Objective(Protocol[BatchT]):
    """Draws no random numbers: noise and sigma come with the batch."""

    def loss(self, policy: Policy, batch: BatchT) -> LossOutput: ...


def mean_output(figures: dict[str, Tensor], weights: Tensor | None) -> LossOutput:
    """The loss and the metrics of a batch from figures ``(B,)`` of its samples, ``loss`` among
    them."""
    return LossOutput(
        loss=weighted_mean(figures["loss"], weights),
        metrics={name: v.detach().mean() for name, v in figures.items() if name != "loss"},
    )


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """``mean(weights * values)``: divided by the batch size, not by the weights' sum.

    So the gradient of a batch is the mean of its parts' gradients, however it is split.
    """
    if weights is None:
        return values.mean()
    return (weights.to(values) * values).mean()


SIGMA_BUCKETS = 4
"""Equal parts of the noise levels from 0 to 1, for which curves are kept apart."""
_SHARE = "/share"


def part_of(name: str, values: Tensor, inside: Tensor) -> dict[str, Tensor]:
    """Figures ``(B,)`` from whose means `finish_parts` makes the mean of ``values`` where
    ``inside``.

    A mean over some of the samples is no mean over equal batches, which need not have any of them.
    What may be averaged are its numerator, ``values`` with 0 outside, and the share inside.
    """
    inside = inside.to(values.device)
    return {name: torch.where(inside, values, 0), name + _SHARE: inside.to(values.dtype)}


def by_sigma(name: str, values: Tensor, sigma: Tensor) -> dict[str, Tensor]:
    """`part_of` ``values (B,)`` for each of `SIGMA_BUCKETS` parts of the noise levels."""
    part = (sigma.float() * SIGMA_BUCKETS).long().clamp(0, SIGMA_BUCKETS - 1)
    figures = {}
    for bucket in range(SIGMA_BUCKETS):
        key = f"{name}/sigma_{bucket / SIGMA_BUCKETS:g}"
        figures |= part_of(key, values, part == bucket)
    return figures


def finish_parts(metrics: dict[str, float]) -> dict[str, float]:
    """Divide the means of `part_of` by their shares; a part without a sample has no line."""
    shares = {key.removesuffix(_SHARE): v for key, v in metrics.items() if key.endswith(_SHARE)}
    finished = {}
    for key, value in metrics.items():
        if key.endswith(_SHARE) or shares.get(key) == 0:
            continue
        finished[key] = value / shares[key] if key in shares else value
    return finished
