"""Measures of a scorer against people, on plain arrays; numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Calibration",
    "Comparison",
    "auroc",
    "best_of_n_regret",
    "brier_score",
    "calibration",
    "fit_tie_threshold",
    "kendall_tau_b",
    "paired_difference",
    "prompts_needed",
    "tie_aware_accuracy",
]

Floats = NDArray[np.float64]


def kendall_tau_b(x: ArrayLike, y: ArrayLike) -> float | None:
    """(concordant - discordant) / sqrt((n0 - ties in x)(n0 - ties in y)) (Kendall 1945).

    In [-1, 1]; None where all of ``x`` or all of ``y`` are equal: there is no order to agree with.
    """
    a, b = _same_length(x, y)
    upper = np.triu_indices(len(a), k=1)
    order_a = np.sign(a[:, None] - a[None, :])[upper]
    order_b = np.sign(b[:, None] - b[None, :])[upper]
    norm = float(np.sqrt((order_a != 0).sum() * (order_b != 0).sum()))
    return float((order_a * order_b).sum() / norm) if norm else None


def auroc(scores: ArrayLike, positive: ArrayLike) -> float | None:
    """Probability that a positive scores above a negative, ties counted half (Mann-Whitney).

    None where there are only positives, or none.
    """
    values, truth = _same_length(scores, positive)
    is_positive = truth.astype(bool)
    num_positive, num_negative = int(is_positive.sum()), int((~is_positive).sum())
    if not num_positive or not num_negative:
        return None
    ranks = _mean_ranks(values)
    above = ranks[is_positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def best_of_n_regret(predicted: Sequence[ArrayLike], utility: Sequence[ArrayLike]) -> float:
    """What is lost by taking the candidate with the highest score: mean of max u - u(argmax r).

    Args:
        predicted: scores of each set's candidates; equal best ones share the outcome.
        utility: what people make of the same candidates, e.g. the share of picks as best.
    """
    lost = []
    for scores, values in zip(predicted, utility, strict=True):
        r, u = _same_length(scores, values)
        lost.append(u.max() - u[r == r.max()].mean())
    return float(np.mean(lost))


def tie_aware_accuracy(margins: ArrayLike, outcomes: ArrayLike, threshold: float) -> float:
    """1 for the right outcome of win, loss and tie, a half where exactly one side is a tie.

    As Pick-a-Pic scores it (Kirstain et al. 2023, arXiv 2305.01569). Choose ``threshold`` on the
    validation split.

    Args:
        margins: d; a margin within +- ``threshold`` is called a tie.
        outcomes: 1 win, -1 loss, 0 tie.
    """
    d, truth = _same_length(margins, outcomes)
    _some(d)
    called = np.where(np.abs(d) <= threshold, 0.0, np.sign(d))
    half = (called == 0) != (truth == 0)
    return float(np.where(half, 0.5, called == truth).mean())


def fit_tie_threshold(margins: ArrayLike, outcomes: ArrayLike) -> float:
    """The threshold of the highest `tie_aware_accuracy`; of several, the least."""
    d, truth = _same_length(margins, outcomes)
    _some(d)
    found = np.unique(np.quantile(np.abs(d), np.linspace(0, 1, 201), method="lower"))
    # Below all margins nothing is a tie; beyond the largest everything is.
    choices = [-1.0, *found.tolist()]
    return max(choices, key=lambda threshold: tie_aware_accuracy(d, truth, threshold))


def brier_score(margins: ArrayLike, temperature: float = 1.0) -> float:
    """Mean of (1 - s(d / T))^2, d being the margin for what was chosen; a coin has 0.25."""
    d = _some(np.asarray(margins, dtype=np.float64)) / temperature
    return float(np.square(1.0 / (1.0 + np.exp(np.clip(d, -500, 500)))).mean())


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far confidence is from accuracy, and how far it would be by chance alone."""

    ece: float
    expected: float
    """Mean ECE of a perfectly calibrated model with the same confidences: a finite sample is never
    exactly as accurate as it should be. Only what lies above this speaks against the model."""
    high: float
    """95th percentile of the same."""
    bins: tuple[tuple[float, float, int], ...]
    """(mean confidence, accuracy, count), for a reliability diagram."""


def calibration(
    margins: ArrayLike, num_bins: int = 10, temperature: float = 1.0, num_draws: int = 1000,
    seed: int = 0,
) -> Calibration:  # fmt: skip
    """Expected calibration error over bins of equal mass, and its value under calibration.

    Confidence is max(p, 1 - p) with p = s(d / T); a margin of exactly 0 is half right.
    """
    d = _some(np.asarray(margins, dtype=np.float64)) / temperature
    d = d[np.argsort(np.abs(d), kind="stable")]
    confidence = 1.0 / (1.0 + np.exp(-np.abs(d)))
    correct = 0.5 + 0.5 * np.sign(d)
    edges = np.linspace(0, len(d), min(num_bins, len(d)) + 1).round().astype(int)
    drawn = np.random.default_rng(seed).random((num_draws, len(d))) < confidence
    by_chance = _binned_gap(confidence, drawn.astype(np.float64), edges)
    return Calibration(
        ece=float(_binned_gap(confidence, correct[None], edges)[0]),
        expected=float(by_chance.mean()),
        high=float(np.percentile(by_chance, 95)),
        bins=tuple(
            (float(confidence[a:b].mean()), float(correct[a:b].mean()), int(b - a))
            for a, b in pairwise(edges)
        ),
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model's mean minus another's on the same pairs, with a 95 % interval."""

    difference: float
    low: float
    high: float


def paired_difference(
    clusters: Sequence[str], first: ArrayLike, second: ArrayLike, num_draws: int = 2000,
    seed: int = 0,
) -> Comparison:  # fmt: skip
    """Compare two models on the same pairs: bootstrap of the difference over whole prompts.

    Both models meet the same hard prompts in every draw, so the interval is that of the difference
    and not of two unrelated accuracies.
    """
    a, b = _same_length(first, second)
    _some(a)
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.bincount(index, weights=a - b, minlength=len(names))
    counts = np.bincount(index, minlength=len(names))
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1.0 / len(names)), size=num_draws)
    means = (draws @ sums) / (draws @ counts)
    low, high = np.percentile(means, [2.5, 97.5])
    return Comparison(float(sums.sum() / counts.sum()), float(low), float(high))


def prompts_needed(half_width: float, design_effect: float = 1.0) -> int:
    """Prompts for a 95 % interval of +- ``half_width`` around an accuracy, at worst (p = 1/2).

    ``design_effect`` is the variance of the clustered mean over that of independent pairs.
    """
    if not 0.0 < half_width < 1.0:
        raise ValueError(f"half_width must lie between 0 and 1, got {half_width}")
    return int(np.ceil(0.25 * (1.96 / half_width) ** 2 * design_effect))


def _binned_gap(confidence: Floats, correct: Floats, edges: NDArray[np.int_]) -> Floats:
    """Mean |confidence - accuracy| over bins by their mass; a row of ``correct`` gives a number."""
    gaps = np.concatenate([np.zeros((len(correct), 1)), np.cumsum(correct - confidence, 1)], 1)
    return np.abs(np.diff(gaps[:, edges], axis=1)).sum(axis=1) / len(confidence)


def _mean_ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[index]


def _same_length(x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"expected two lists of one length, got shapes {a.shape} and {b.shape}")
    return _without_nan(a), _without_nan(b)


def _some(values: Floats) -> Floats:
    """At least one number, for what is a mean of them."""
    if values.ndim != 1 or not len(values):
        raise ValueError(f"expected a list of at least one number, got shape {values.shape}")
    return _without_nan(values)


def _without_nan(values: Floats) -> Floats:
    # NaN has no rank, and compared with anything it would count as a loss or a win.
    if np.isnan(values).any():
        raise ValueError(f"expected numbers, got NaN at place {int(np.isnan(values).argmax())}")
    return values
