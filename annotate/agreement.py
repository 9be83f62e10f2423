"""How far annotators agree, in the unit in which a reward model is judged: implied pairs.

A reward model's accuracy is the share of held-out pairs that it orders as the annotator did. Its
ceiling is what the annotators themselves reach on that measure: `leave_one_out` lets each of them
be predicted by the others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from annotate.pairs import derive_pairs
from annotate.schema import Pick, Task


@dataclass(frozen=True)
class Agreement:
    """A share of agreeing pairs, its 95 % interval from resampling prompts, and its size."""

    value: float
    ci_low: float
    ci_high: float
    n_pairs: int
    """Pairs that were compared; a pair that two annotators judged counts once for each look."""


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
    for pair, votes in _votes_by_pair(tasks, picks).items():
        counts = Counter(votes.values())
        for vote in votes.values():
            margin = counts[vote] - 1 - counts[not vote]
            if margin:
                agreeing[tasks[pair[0]].prompt_id].append(margin > 0)
    return _estimate(agreeing, seed)


def _votes_by_pair(
    tasks: Mapping[str, Task], picks: Iterable[Pick]
) -> dict[tuple[str, str, str], dict[str, bool]]:
    """(task, a, b) with a < b -> annotator -> whether a was preferred."""
    votes: dict[tuple[str, str, str], dict[str, bool]] = defaultdict(dict)
    for pair in derive_pairs(tasks, picks, "implied_all"):
        a, b = sorted((pair.chosen_id, pair.rejected_id))
        votes[pair.task_id, a, b][pair.annotator] = pair.chosen_id == a
    return votes


def _estimate(agreeing: Mapping[str, list[bool]], seed: int, draws: int = 2_000) -> Agreement:
    """Pairs of one prompt are not independent: the bootstrap draws whole prompts."""
    prompts = [looks for _, looks in sorted(agreeing.items()) if looks]
    if not prompts:
        raise ValueError("no task was answered with win and lose by two annotators")
    hits = np.array([sum(looks) for looks in prompts])
    totals = np.array([len(looks) for looks in prompts])
    drawn = np.random.default_rng(seed).integers(len(prompts), size=(draws, len(prompts)))
    low, high = np.quantile(hits[drawn].sum(1) / totals[drawn].sum(1), [0.025, 0.975])
    return Agreement(
        value=float(hits.sum() / totals.sum()),
        ci_low=float(low),
        ci_high=float(high),
        n_pairs=int(totals.sum()),
    )
