"""Drawing and editing in one run: each step has one task.

Requests of a batch have as many source images as one another, of the same sizes, because the
transformer's sequence is as long in every row. As with aspect-ratio buckets, the task of a step and
its samples are functions of the step, and each task has the steps that its samples fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from align.data.buckets import bucket_of_step
from align.data.features import Features
from align.data.order import Position, step_positions
from align.data.rows import Request

__all__ = ["by_task", "task_of_step"]


class _Asked(Protocol):
    @property
    def request(self) -> Request: ...


A = TypeVar("A", bound=_Asked)


def by_task(samples: Sequence[A], features: Features) -> list[list[A]]:
    """The samples of each task, in their order; drawing without source images comes first."""
    shapes = [features.source_shapes(sample.request) for sample in samples]
    return [
        [sample for sample, own in zip(samples, shapes, strict=True) if own == task]
        for task in sorted(set(shapes))
    ]


def task_of_step(
    seed: int, batch_size: int, sizes: Sequence[int], step: int
) -> tuple[int, list[Position]]:
    """Which task step ``step`` (from 1) trains on, and which of its samples.

    Args:
        sizes: samples of each task, none of them 0.
    """
    task, number = bucket_of_step(seed, sizes, batch_size, step)
    return task, step_positions(seed, sizes[task], batch_size, number)
