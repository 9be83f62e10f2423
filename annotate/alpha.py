"""Krippendorff's alpha: agreement beyond chance, whoever judged what, with values missing.

K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011),
https://repository.upenn.edu/asc_papers/43.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Level = Literal["nominal", "ordinal", "interval"]
LEVELS: tuple[Level, ...] = ("nominal", "ordinal", "interval")
Floats = NDArray[np.float64]


def krippendorff_alpha(ratings: ArrayLike, level: Level = "nominal") -> float:
    """Alpha of ``ratings``: 1 is full agreement, 0 what chance gives, below 0 is disagreement.

    ``alpha = 1 - D_observed / D_expected``, both means of a squared difference between values: of
    two raters on one unit, and of any two values. A unit that fewer than two rated says nothing.
    Where all paired values are the same, nobody disagreed and alpha is 1.

    Args:
        ratings: (raters, units); NaN where a rater did not judge a unit.
        level: how far two values are apart: not at all or wholly (``nominal``), by the ranks
            between them (``ordinal``), or by their difference (``interval``).

    Raises:
        ValueError: no unit was rated twice, so that agreement is not defined.
    """
    values, coincidences = unit_coincidences(ratings)
    return float(alpha_of(coincidences.sum(0), values, level))


def unit_coincidences(ratings: ArrayLike) -> tuple[Floats, Floats]:
    """What each unit adds to the coincidence matrix, so that units can be drawn again.

    Returns:
        (V,) values that occur, and (units, V, V): in unit u, of its ``m_u`` values, how many
        ordered pairs are (c, k), divided by ``m_u - 1``.
    """
    table = np.asarray(ratings, dtype=float)
    if table.ndim != 2:
        raise ValueError(f"ratings must be (raters, units), got shape {table.shape}")
    values = np.unique(table[~np.isnan(table)])
    counts = (table[:, :, None] == values).sum(0).astype(float)  # (units, V)
    rated = counts.sum(1)
    if not (rated >= 2).any():
        raise ValueError("no unit was rated by two, so agreement is not defined")
    pairs = counts[:, :, None] * counts[:, None, :]
    diagonal = np.arange(len(values))
    pairs[:, diagonal, diagonal] -= counts
    pairs[rated >= 2] /= (rated[rated >= 2] - 1)[:, None, None]
    return values, pairs


def alpha_of(coincidences: Floats, values: Floats, level: Level = "nominal") -> Floats:
    """Alpha of summed coincidences (..., V, V); 1 where only one value occurs."""
    totals = coincidences.sum(-1)  # (..., V)
    distance = _squared_distance(totals, values, level)
    observed = (coincidences * distance).sum((-1, -2))
    expected = (totals[..., :, None] * totals[..., None, :] * distance).sum((-1, -2))
    pairable = totals.sum(-1)
    return 1 - np.divide(
        (pairable - 1) * observed, expected, out=np.zeros_like(expected), where=expected > 0
    )


def _squared_distance(totals: Floats, values: Floats, level: Level) -> Floats:
    """(..., V, V) squared differences between values."""
    if level == "nominal":
        return 1 - np.eye(len(values))
    if level == "interval":
        return (values[:, None] - values[None, :]) ** 2
    if level == "ordinal":
        # From the middle of one value's ranks to the middle of the other's.
        middle = totals.cumsum(-1) - totals / 2
        return (middle[..., :, None] - middle[..., None, :]) ** 2
    raise ValueError(f"unknown level {level!r}; choose one of {', '.join(LEVELS)}")
