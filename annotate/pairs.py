"""Picks are facts, pairs are derived: the policies that turn one into the other.

One best and one worst of K candidates order 2K - 3 of the K(K-1)/2 pairs: the best against each
other one, and each other one against the worst. Direct preference optimisation takes the pair
with the largest margin, `win_lose`; a reward model learns more from the same clicks by
`implied_all`, or by `rankings` under the best-then-worst Plackett-Luce likelihood.

Ties, all-bad answers, skips and flags give no pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations

from annotate.schema import Outcome, Pick, PreferencePair, Ranking, Task

Ordinals = tuple[int, int]


def win_lose(n_candidates: int, win: int, lose: int) -> list[Ordinals]:
    """The best against the worst: one (chosen, rejected) pair of ordinals."""
    return [(win, lose)]


def implied_all(n_candidates: int, win: int, lose: int) -> list[Ordinals]:
    """All 2K - 3 (chosen, rejected) pairs of ordinals that best and worst imply."""
    middle = [ordinal for ordinal in range(n_candidates) if ordinal not in (win, lose)]
    return [(win, lose), *((win, other) for other in middle), *((other, lose) for other in middle)]


PAIR_POLICIES: dict[str, Callable[[int, int, int], list[Ordinals]]] = {
    "win_lose": win_lose,
    "implied_all": implied_all,
}


def derive_pairs(
    tasks: Mapping[str, Task], picks: Iterable[Pick], policy: str = "win_lose"
) -> Iterator[PreferencePair]:
    """The preference pairs of ``picks`` under ``policy``; a pick's pairs together weigh 1.

    Args:
        tasks: by id; holds the task of each pick.
        policy: a key of `PAIR_POLICIES`.
    """
    if policy not in PAIR_POLICIES:
        raise ValueError(
            f"unknown pair policy {policy!r}; choose one of {', '.join(PAIR_POLICIES)}"
        )
    for pick in picks:
        if pick.outcome != Outcome.PICKED:
            continue
        task = tasks[pick.task_id]
        ordered = PAIR_POLICIES[policy](len(task.candidate_ids), *best_and_worst(pick))
        for chosen, rejected in ordered:
            yield PreferencePair(
                pick_id=pick.id,
                task_id=task.id,
                prompt_id=task.prompt_id,
                question=task.question,
                annotator=pick.annotator,
                chosen_id=task.candidate_ids[chosen],
                rejected_id=task.candidate_ids[rejected],
                weight=1 / len(ordered),
            )


def derive_rankings(tasks: Mapping[str, Task], picks: Iterable[Pick]) -> Iterator[Ranking]:
    """Each pick as best, undecided middle, worst, for the Plackett-Luce likelihood.

    The annotator chooses the best among all K, then the worst among the K - 1 that are left:
    ``P = exp(u_best) / sum_all exp(u) * exp(-u_worst) / sum_rest exp(-u)``.
    """
    for pick in picks:
        if pick.outcome != Outcome.PICKED:
            continue
        task = tasks[pick.task_id]
        win, lose = best_and_worst(pick)
        yield Ranking(
            pick_id=pick.id,
            task_id=task.id,
            prompt_id=task.prompt_id,
            question=task.question,
            annotator=pick.annotator,
            win_id=task.candidate_ids[win],
            middle_ids=tuple(
                candidate_id
                for ordinal, candidate_id in enumerate(task.candidate_ids)
                if ordinal not in (win, lose)
            ),
            lose_id=task.candidate_ids[lose],
        )


def best_and_worst(pick: Pick) -> Ordinals:
    """(win, lose) ordinals of a pick whose outcome is ``picked``."""
    if pick.win is None or pick.lose is None:
        raise ValueError(f"pick {pick.id} has outcome {pick.outcome.value!r} and names no best")
    return pick.win, pick.lose


def compare_ranks(ranks: Sequence[int]) -> tuple[list[Ordinals], list[Ordinals]]:
    """What a full ranking says about each pair: (better, worse) ordinals, and ties.

    Args:
        ranks: of each candidate, 1 for the best; equal numbers are ties.
    """
    ordered: list[Ordinals] = []
    ties: list[Ordinals] = []
    for (a, rank_a), (b, rank_b) in combinations(enumerate(ranks), 2):
        if rank_a == rank_b:
            ties.append((a, b))
        else:
            ordered.append((a, b) if rank_a < rank_b else (b, a))
    return ordered, ties
