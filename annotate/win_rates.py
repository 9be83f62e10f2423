"""Which model version people prefer: Bradley-Terry strengths, ranked by what is certain of them.

R. A. Bradley and M. E. Terry, "Rank analysis of incomplete block designs" (Biometrika 1952):
``P(i beats j) = 1 / (1 + exp(u_j - u_i))``. A tie counts as half a win for each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from annotate.pairs import implied_all
from annotate.schema import Candidate, Outcome, Pick, Task
from annotate.shares import wilson

Floats = NDArray[np.float64]
DRAWS = 500
PRIOR_PRECISION = 0.1
"""Of the strengths' normal prior: a version that never lost is strong, not infinitely so."""
MAX_STEPS = 200
BLIND = "blind-ab"
"""Kind of the tasks that show one image of each of two model versions."""


@dataclass(frozen=True)
class Standing:
    """One model version against the others."""

    model: str
    strength: float
    """Natural log of the odds against strength 0, the mean over all comparisons: a version that was
    compared a few times does not move the others."""
    ci_low: float
    """Of the 95 % interval, from drawing prompts again. Standings are ranked by it."""
    ci_high: float
    win_rate: float
    """Share of its comparisons that it won, a tie being half."""
    n_comparisons: int
    n_wins: int
    n_losses: int
    n_ties: int


@dataclass(frozen=True)
class Pairing:
    """One model version against one other."""

    model: str
    against: str
    n_wins: int
    n_losses: int
    n_ties: int
    n_prompts: int
    win_rate: float
    """Mean over prompts of the share that ``model`` won of its comparisons, a tie being half."""
    ci_low: float
    """Of the 95 % interval over prompts (`wilson`)."""
    ci_high: float


@dataclass(frozen=True)
class Comparisons:
    """How often each version was preferred to each other, prompt by prompt."""

    models: list[str]
    """M of them, sorted."""
    wins: Floats
    """(P, M, M): of P prompts, how often i was preferred to j."""
    ties: Floats
    """(P, M, M), symmetric: how often neither was."""


def bradley_terry(wins: ArrayLike, prior_precision: float = 0.0) -> Floats:
    """(M,) strengths of highest posterior, mean zero; by Newton's method.

    Args:
        wins: (M, M), or (..., M, M) for several at once: how often i was preferred to j.
        prior_precision: of each strength's normal prior; 0 is maximum likelihood, which exists
            only where no group of versions won, or lost, all its comparisons with the rest.

    Raises:
        ValueError: maximum likelihood was asked for, and has no maximum.
    """
    counts = np.asarray(wins, dtype=float)
    if counts.ndim < 2 or counts.shape[-1] != counts.shape[-2] or (counts < 0).any():
        raise ValueError(f"wins must be (M, M) counts of 0 or more, got shape {counts.shape}")
    size = counts.shape[-1]
    games = counts + counts.swapaxes(-1, -2)
    pinned = np.eye(size) * prior_precision + 1 / size
    strengths = np.zeros(counts.shape[:-1])
    for _ in range(MAX_STEPS):
        p = 1 / (1 + np.exp(strengths[..., None, :] - strengths[..., :, None]))
        gradient = (counts - games * p).sum(-1) - prior_precision * strengths
        weight = games * p * (1 - p)
        hessian = pinned - weight
        diagonal = np.arange(size)
        hessian[..., diagonal, diagonal] += weight.sum(-1)
        try:
            step = np.linalg.solve(hessian, gradient[..., None])[..., 0]
        except np.linalg.LinAlgError:
            break
        step /= np.maximum(1, np.abs(step).max(-1, keepdims=True) / 2)
        strengths = strengths + step
        if np.abs(step).max() < 1e-10:
            return strengths - strengths.mean(-1, keepdims=True)
    raise ValueError(
        "the strengths have no maximum: some version won or lost all its comparisons; give a "
        f"prior_precision above 0 (got {prior_precision})"
    )


def compare(
    tasks: Mapping[str, Task], candidates: Mapping[str, Candidate], picks: Iterable[Pick]
) -> Comparisons:
    """The comparisons between model versions that ``picks`` made.

    Every pair of candidates that a pick orders (`annotate.pairs.implied_all`) or calls equal counts
    where two versions drew them. Candidates of unknown origin are left out, as are skips, flags and
    all-bad answers.
    """
    model_of = {c.id: c.generation.model for c in candidates.values() if c.generation}
    counted: dict[str, list[tuple[str, str, float]]] = defaultdict(list)
    for pick in picks:
        task = tasks[pick.task_id]
        for a, b, won in _comparisons(task, pick):
            first, second = (model_of.get(task.candidate_ids[ordinal]) for ordinal in (a, b))
            if first and second and first != second:
                counted[task.prompt_id].append((first, second, won))
    names = sorted({name for rows in counted.values() for row in rows for name in row[:2]})
    index = {name: i for i, name in enumerate(names)}
    wins, ties = np.zeros((2, len(counted), len(names), len(names)))
    for prompt, rows in enumerate(counted.values()):
        for first, second, won in rows:
            i, j = index[first], index[second]
            if won == 0.5:
                ties[prompt, [i, j], [j, i]] += 1
            else:
                wins[prompt, i, j] += 1
    return Comparisons(names, wins, ties)


def standings(
    tasks: Mapping[str, Task],
    candidates: Mapping[str, Candidate],
    picks: Iterable[Pick],
    seed: int = 0,
) -> list[Standing]:
    """The model versions that ``picks`` compared, by the lower end of their strength's interval.

    The interval draws whole prompts: pairs of one prompt hang together.
    """
    found = compare(tasks, candidates, picks)
    return _rank(found, seed) if found.models else []


def pairings(
    tasks: Mapping[str, Task], candidates: Mapping[str, Candidate], picks: Iterable[Pick]
) -> list[Pairing]:
    """Every two model versions that ``picks`` compared, both ways round."""
    found = compare(tasks, candidates, picks)
    rows = []
    for i, j in permutations(range(len(found.models)), 2):
        wins, losses, ties = found.wins[:, i, j], found.wins[:, j, i], found.ties[:, i, j]
        games = wins + losses + ties
        compared = games > 0
        if not compared.any():
            continue
        rate = float(((wins + ties / 2)[compared] / games[compared]).mean())
        prompts = int(compared.sum())
        low, high = wilson(rate, prompts)
        counts = (int(wins.sum()), int(losses.sum()), int(ties.sum()))
        rows.append(Pairing(found.models[i], found.models[j], *counts, prompts, rate, low, high))
    return rows


def _comparisons(task: Task, pick: Pick) -> list[tuple[int, int, float]]:
    """(a, b, 1 where a was preferred, a half where neither) of ordinals."""
    count = len(task.candidate_ids)
    if pick.win is not None and pick.lose is not None:
        return [(a, b, 1.0) for a, b in implied_all(count, pick.win, pick.lose)]
    if pick.outcome == Outcome.ALL_EQUAL:
        return [(a, b, 0.5) for a, b in combinations(range(count), 2)]
    return []


def _rank(compared: Comparisons, seed: int) -> list[Standing]:
    per_prompt = compared.wins + compared.ties / 2
    wins = per_prompt.sum(0)
    games = wins.sum(1) + wins.sum(0)
    won, tied = compared.wins.sum(0), compared.ties.sum(0)

    def centred(counts: Floats) -> Floats:
        strengths = bradley_terry(counts, PRIOR_PRECISION)
        return strengths - (strengths @ games / games.sum())[..., None]

    strengths = centred(wins)
    prompts = len(per_prompt)
    drawn = np.random.default_rng(seed).multinomial(prompts, [1 / prompts] * prompts, DRAWS)
    resampled = np.einsum("dp,pij->dij", drawn, per_prompt)
    low, high = np.quantile(centred(resampled), [0.025, 0.975], axis=0)
    found = [
        Standing(
            model=name,
            strength=float(strengths[i]),
            ci_low=float(low[i]),
            ci_high=float(high[i]),
            win_rate=float(wins[i].sum() / games[i]),
            n_comparisons=round(games[i]),
            n_wins=int(won[i].sum()),
            n_losses=int(won[:, i].sum()),
            n_ties=int(tied[i].sum()),
        )
        for i, name in enumerate(compared.models)
    ]
    return sorted(found, key=lambda standing: (-standing.ci_low, standing.model))
