"""Which samples a step trains on: a function of the step, so that nothing needs to be resumed."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

__all__ = ["Position", "step_positions"]


class Position(NamedTuple):
    item: int
    """Which sample."""
    epoch: int
    """How often the sample has been drawn before: its draw of noise and noise level."""


@lru_cache(maxsize=4)
def _permutation(seed: int, size: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


def step_positions(seed: int, size: int, batch_size: int, step: int) -> list[Position]:
    """The samples of step ``step`` (from 1): consecutive parts of shuffled epochs.

    Args:
        size: samples in the data; a batch may reach over the end of an epoch.

    Raises:
        ValueError: there are no samples.
    """
    if size < 1:
        raise ValueError("there are no samples to train on")
    start = (step - 1) * batch_size
    return [
        Position(int(_permutation(seed, size, place // size)[place % size]), place // size)
        for place in range(start, start + batch_size)
    ]
