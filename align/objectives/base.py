"""What an objective is: a batch in, a loss and its metrics out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeVar

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


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """``mean(weights * values)``: divided by the batch size, not by the weights' sum.

    So the gradient of a batch is the mean of its parts' gradients, however it is split.
    """
    if weights is None:
        return values.mean()
    return (weights.to(values) * values).mean()
