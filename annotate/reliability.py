"""How reliable each annotator is: the temperature at which they choose.

Dawid and Skene's model of annotators needs categories that recur; the candidates of a task never
do. Here each task has utilities of its own, and an annotator's temperature says how closely their
best and worst follow what the others' choices make likely (`annotate.plackett_luce`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from annotate.pairs import best_and_worst
from annotate.plackett_luce import Choices, best_worst_choices, fit
from annotate.schema import Outcome, Pick, Task

PRECISION_VARIANCE = 0.5
"""Of the prior of an annotator's log-precision: most lie within a factor of four of each other."""
MAX_TASKS = 2_000
"""The newest tasks that are looked at; more of them only cost time."""


@dataclass(frozen=True)
class Reliability:
    """One annotator's temperature: 0 follows the utilities alone, large clicks at random."""

    annotator: str
    temperature: float
    ci_low: float
    """Of the 95 % interval."""
    ci_high: float
    n_picks: int


def annotator_reliability(tasks: Mapping[str, Task], picks: Iterable[Pick]) -> list[Reliability]:
    """Every annotator with picks on tasks that others answered too, the most reliable first.

    Utilities have variance 1 within a task: a temperature of 1 is an annotator who prefers the
    better of two candidates, one standard deviation apart, in 73 of 100 cases.
    """
    by_task: dict[str, list[Pick]] = {}
    for pick in picks:
        if pick.outcome == Outcome.PICKED:
            by_task.setdefault(pick.task_id, []).append(pick)
    shared = [(t, own) for t, own in by_task.items() if len(own) > 1][-MAX_TASKS:]
    counts = Counter(pick.annotator for _, own in shared for pick in own)
    names = sorted(counts)
    if not names:
        return []
    index = {name: i for i, name in enumerate(names)}
    rows, groups = [], []
    for number, (task_id, own) in enumerate(shared):
        first = len(groups)
        count = len(tasks[task_id].candidate_ids)
        groups += [number] * count
        for pick in own:
            win, lose = (first + ordinal for ordinal in best_and_worst(pick))
            middle = [i for i in range(first, first + count) if i not in (win, lose)]
            rows += best_worst_choices(win, middle, lose, index[pick.annotator])
    found = fit(Choices.collect(rows, groups), precision_variance=PRECISION_VARIANCE)
    low, high = (np.exp(-found.log_precisions + z * found.standard_errors) for z in (-1.96, 1.96))
    reliabilities = [
        Reliability(
            name, float(np.exp(-found.log_precisions[i])), float(low[i]), float(high[i]),
            counts[name],
        )
        for name, i in index.items()
    ]  # fmt: skip
    return sorted(reliabilities, key=lambda r: r.temperature)
