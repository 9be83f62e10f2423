"""How far annotators agree: on implied pairs, beyond chance, and how often they reverse each other.

A reward model's accuracy is the share of held-out pairs that it orders as the annotator did. Its
ceiling is what the annotators themselves reach on that measure: `leave_one_out` lets each of them
be predicted by the others.

Alpha is computed on canonical ordinals: candidates never recur from task to task, so that on their
ids chance agreement would be taken for nothing, and on the places of the screen a full agreement
would look like chance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from annotate.alpha import alpha_of, unit_coincidences
from annotate.pairs import derive_pairs
from annotate.schema import Outcome, Pick, Task

DRAWS = 2_000


@dataclass(frozen=True)
class Agreement:
    """A share of agreeing pairs, its 95 % interval from resampling prompts, and its size."""

    value: float
    ci_low: float
    ci_high: float
    n_pairs: int
    """Pairs that were compared; a pair that two annotators judged counts once for each look."""


@dataclass(frozen=True)
class Shared:
    """What two annotators did on the tasks that both answered with win and lose."""

    first: str
    second: str
    n_tasks: int
    best: float
    """Share of the tasks on which both named the same best."""
    worst: float
    implied_pairs: float | None
    """Share of the pairs that both ordered, ordered alike; None where there is no such pair."""


def annotator_agreement(
    tasks: Mapping[str, Task], picks: Iterable[Pick], seed: int = 0
) -> Agreement:
    """The share of implied pairs that two annotators order alike, over every two of a task."""
    agreeing: dict[str, list[bool]] = defaultdict(list)
    for pair, votes in _votes_by_pair(tasks, picks).items():
        ayes = sum(votes.values())
        nays = len(votes) - ayes
        same = ayes * (ayes - 1) // 2 + nays * (nays - 1) // 2
        agreeing[tasks[pair[0]].prompt_id] += [True] * same + [False] * (ayes * nays)
    return _estimate(agreeing, seed)


def leave_one_out(tasks: Mapping[str, Task], picks: Iterable[Pick], seed: int = 0) -> Agreement:
    """The share of an annotator's implied pairs that the majority of the others orders alike.

    Where the others are tied, or order the pair not at all, the pair says nothing and is left out.
    """
    agreeing: dict[str, list[bool]] = defaultdict(list)
    for _, prompt_id, agrees in _left_out(tasks, picks):
        agreeing[prompt_id].append(agrees)
    return _estimate(agreeing, seed)


def leave_each_out(
    tasks: Mapping[str, Task], picks: Iterable[Pick], seed: int = 0, only: str | None = None
) -> dict[str, Agreement]:
    """`leave_one_out` of each annotator alone; those whom no majority can be held against lack.

    Args:
        only: the annotator to do it for; None is everybody.
    """
    agreeing: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for annotator, prompt_id, agrees in _left_out(tasks, picks):
        if only is None or annotator == only:
            agreeing[annotator][prompt_id].append(agrees)
    return {name: _estimate(own, seed) for name, own in sorted(agreeing.items())}


def _left_out(tasks: Mapping[str, Task], picks: Iterable[Pick]) -> Iterator[tuple[str, str, bool]]:
    """(annotator, prompt, whether the others' majority agrees) of each pair that says something."""
    for pair, votes in _votes_by_pair(tasks, picks).items():
        counts = Counter(votes.values())
        for annotator, vote in votes.items():
            margin = counts[vote] - 1 - counts[not vote]
            if margin:
                yield annotator, tasks[pair[0]].prompt_id, margin > 0


def ordinal_alpha(
    tasks: Mapping[str, Task], picks: Iterable[Pick], which: str = "win", seed: int = 0
) -> Agreement:
    """Krippendorff's alpha on the ordinal of the best (``win``), the worst (``lose``), or on the
    ``outcome``. ``n_pairs`` counts answers to tasks that two or more gave.

    Raises:
        ValueError: no task was so answered by two annotators.
    """
    if which not in ("win", "lose", "outcome"):
        raise ValueError(f"alpha is of win, lose or outcome, got {which!r}")
    rated: dict[str, dict[str, float]] = defaultdict(dict)
    outcomes = list(Outcome)
    for pick in picks:
        value = outcomes.index(pick.outcome) if which == "outcome" else getattr(pick, which)
        if value is not None:
            rated[pick.task_id][pick.annotator] = value
    names = sorted({name for by_name in rated.values() for name in by_name})
    table = np.full((len(names), len(rated)), np.nan)
    for unit, by_name in enumerate(rated.values()):
        for name, value in by_name.items():
            table[names.index(name), unit] = value
    values, units = unit_coincidences(table)
    by_prompt = _sum_by([tasks[task_id].prompt_id for task_id in rated], units)
    drawn = _draw(len(by_prompt), seed)
    resampled = np.tensordot(drawn, by_prompt, axes=1)
    low, high = np.quantile(alpha_of(resampled, values), [0.025, 0.975])
    return Agreement(
        value=float(alpha_of(units.sum(0), values)),
        ci_low=float(low),
        ci_high=float(high),
        n_pairs=round(units.sum()),
    )


def reversal_rate(tasks: Mapping[str, Task], picks: Iterable[Pick], seed: int = 0) -> Agreement:
    """How often, of two annotators on a task, one's best is the other's worst."""
    reversed_: dict[str, list[bool]] = defaultdict(list)
    for own in _picked_by_task(picks).values():
        for a, b in combinations(own, 2):
            prompt_id = tasks[a.task_id].prompt_id
            reversed_[prompt_id].append(a.win == b.lose or a.lose == b.win)
    return _estimate(reversed_, seed)


def annotator_matrix(tasks: Mapping[str, Task], picks: Iterable[Pick]) -> list[Shared]:
    """Every two annotators who share a task, in the order of their names."""
    shared: dict[tuple[str, str], list[tuple[Pick, Pick]]] = defaultdict(list)
    for own in _picked_by_task(picks).values():
        for a, b in combinations(sorted(own, key=lambda pick: pick.annotator), 2):
            shared[a.annotator, b.annotator].append((a, b))
    rows = []
    for (first, second), both in sorted(shared.items()):
        votes = _votes_by_pair(tasks, [pick for pair in both for pick in pair])
        alike = [len(set(vote.values())) == 1 for vote in votes.values() if len(vote) == 2]
        rows.append(
            Shared(
                first=first,
                second=second,
                n_tasks=len(both),
                best=sum(a.win == b.win for a, b in both) / len(both),
                worst=sum(a.lose == b.lose for a, b in both) / len(both),
                implied_pairs=sum(alike) / len(alike) if alike else None,
            )
        )
    return rows


def _picked_by_task(picks: Iterable[Pick]) -> dict[str, list[Pick]]:
    by_task: dict[str, list[Pick]] = defaultdict(list)
    for pick in picks:
        if pick.outcome == Outcome.PICKED:
            by_task[pick.task_id].append(pick)
    return by_task


def _votes_by_pair(
    tasks: Mapping[str, Task], picks: Iterable[Pick]
) -> dict[tuple[str, str, str], dict[str, bool]]:
    """(task, a, b) with a < b -> annotator -> whether a was preferred."""
    votes: dict[tuple[str, str, str], dict[str, bool]] = defaultdict(dict)
    for pair in derive_pairs(tasks, picks, "implied_all"):
        a, b = sorted((pair.chosen_id, pair.rejected_id))
        votes[pair.task_id, a, b][pair.annotator] = pair.chosen_id == a
    return votes


def _estimate(agreeing: Mapping[str, list[bool]], seed: int) -> Agreement:
    """Pairs of one prompt are not independent: the bootstrap draws whole prompts."""
    prompts = [looks for _, looks in sorted(agreeing.items()) if looks]
    if not prompts:
        raise ValueError("no task was answered with win and lose by two annotators")
    hits = np.array([sum(looks) for looks in prompts])
    totals = np.array([len(looks) for looks in prompts])
    drawn = _draw(len(prompts), seed)
    low, high = np.quantile(drawn @ hits / (drawn @ totals), [0.025, 0.975])
    return Agreement(
        value=float(hits.sum() / totals.sum()),
        ci_low=float(low),
        ci_high=float(high),
        n_pairs=int(totals.sum()),
    )


def _draw(count: int, seed: int) -> NDArray[np.int64]:
    """(DRAWS, count) how often each of ``count`` prompts is in each bootstrap sample."""
    return np.random.default_rng(seed).multinomial(count, [1 / count] * count, DRAWS)


def _sum_by(names: list[str], units: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of the same name added up, in the order of the names."""
    _, group = np.unique(names, return_inverse=True)
    summed = np.zeros((group.max() + 1, *units.shape[1:]))
    np.add.at(summed, group, units)
    return summed
