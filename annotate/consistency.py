"""How steady one annotator is: against themselves, against the screen, and over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from annotate.agreement import Agreement, leave_each_out
from annotate.schema import Outcome, Pick, Task

MIN_WINDOW = 5
"""Tasks below which a window's agreement says nothing."""


@dataclass(frozen=True)
class SelfConsistency:
    """Of the tasks that an annotator was given twice, how many were answered alike."""

    annotator: str
    n_repeats: int
    same_outcome: float
    same_best: float | None
    """Of those picked both times; None where there are none."""
    same_worst: float | None


@dataclass(frozen=True)
class PositionBias:
    """Whether the place on the screen decides: it was drawn at random, so it must not."""

    counts: tuple[int, ...]
    """How often each position was chosen."""
    expected: tuple[float, ...]
    """How often, had the position not mattered."""
    chi_squared: float
    p_value: float


@dataclass(frozen=True)
class Window:
    """Agreement with the others on some consecutive tasks of one annotator."""

    start: datetime
    end: datetime
    agreement: Agreement


def self_consistency(
    answers: Iterable[tuple[Pick, Pick]],
) -> list[SelfConsistency]:
    """From each annotator's (first answer, answer to the repeat) to the same candidates."""
    by_annotator: dict[str, list[tuple[Pick, Pick]]] = {}
    for first, again in answers:
        by_annotator.setdefault(first.annotator, []).append((first, again))
    rows = []
    for annotator, both in sorted(by_annotator.items()):
        picked = [(a, b) for a, b in both if a.outcome == b.outcome == Outcome.PICKED]
        rows.append(
            SelfConsistency(
                annotator=annotator,
                n_repeats=len(both),
                same_outcome=sum(a.outcome == b.outcome for a, b in both) / len(both),
                same_best=_share([a.win == b.win for a, b in picked]),
                same_worst=_share([a.lose == b.lose for a, b in picked]),
            )
        )
    return rows


def position_bias(
    chosen: Iterable[tuple[int, int]], draws: int = 2_000, seed: int = 0
) -> PositionBias:
    """Pearson's chi-squared of chosen positions against a fair draw.

    Args:
        chosen: (position chosen, number of positions shown) of each answer.

    The p-value is from drawing positions again: with tasks of several sizes and few answers the
    statistic does not follow its textbook distribution.
    """
    listed = list(chosen)
    if not listed:
        raise ValueError("no answer names a position")
    positions, shown = np.array(listed).T
    width = int(shown.max())
    places = np.arange(width)
    expected = ((places < shown[:, None]) / shown[:, None]).sum(0)

    def statistic(counts):
        return ((counts - expected) ** 2 / expected).sum(-1)

    counts = np.bincount(positions, minlength=width)
    rng = np.random.default_rng(seed)
    drawn = np.zeros((draws, width))
    for size, many in zip(*np.unique(shown, return_counts=True), strict=True):
        drawn[:, :size] += rng.multinomial(many, [1 / size] * size, draws)
    found = statistic(counts)
    # The small constant keeps equal statistics equal whatever the order of summing.
    extreme = int((statistic(drawn) >= found - 1e-9).sum())
    return PositionBias(
        counts=tuple(map(int, counts)),
        expected=tuple(map(float, expected)),
        chi_squared=float(found),
        p_value=(1 + extreme) / (1 + draws),
    )


def agreement_over_time(
    tasks: Mapping[str, Task],
    picks: Sequence[Pick],
    times: Mapping[str, datetime],
    annotator: str,
    size: int = 50,
) -> list[Window]:
    """Drift: an annotator's agreement with the others, in windows of ``size`` of their tasks.

    Args:
        times: when each pick was given, by pick id.
    """
    if size < MIN_WINDOW:
        raise ValueError(f"a window has at least {MIN_WINDOW} tasks, got {size}")
    others: dict[str, list[Pick]] = {}
    own = []
    for pick in picks:
        if pick.outcome != Outcome.PICKED:
            continue
        if pick.annotator == annotator:
            own.append(pick)
        else:
            others.setdefault(pick.task_id, []).append(pick)
    shared = sorted(
        (pick for pick in own if pick.task_id in others), key=lambda pick: times[pick.id]
    )
    windows = []
    for start in range(0, len(shared), size):
        part = shared[start : start + size]
        if len(part) < MIN_WINDOW:
            continue
        about = [pick for mine in part for pick in (mine, *others[mine.task_id])]
        if agreement := leave_each_out(tasks, about, only=annotator).get(annotator):
            windows.append(Window(times[part[0].id], times[part[-1].id], agreement))
    return windows


def _share(hits: list[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None
