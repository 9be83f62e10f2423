"""Pairs that picks imply: how a model orders them, and how the designers do among themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.judgements import CandidateSet
from rewards.metrics import auroc, brier_score, calibration

__all__ = [
    "ScoredPair",
    "Scores",
    "agreement_pairs",
    "by_designer",
    "cluster_bootstrap",
    "fit_temperature",
    "margins_and_outcomes",
    "measure_pairs",
    "negative_log_likelihood",
    "scored_pairs",
]

NUM_DRAWS = 2000

Scores = Mapping[str, Mapping[str, float]]
"""candidate id -> question -> score"""


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """One implied comparison of a pick, and the model's margin for it."""

    question: str
    prompt_id: str
    set_index: int
    annotator: str
    better: int
    worse: int
    margin: float
    """r(better) - r(worse) in log-odds: positive when the model agrees."""

    @property
    def agreement(self) -> float:
        """1 when the model agrees with the annotator, 0 when not, a half when it cannot tell."""
        return 0.5 + 0.5 * float(np.sign(self.margin))


def scored_pairs(sets: Sequence[CandidateSet], scores: Scores) -> list[ScoredPair]:
    """Every comparison that the picks imply: best over all, all others over the worst."""
    pairs: list[ScoredPair] = []
    for index, candidates in enumerate(sets):
        ids = candidates.candidate_ids
        rows = [scores[candidate_id] for candidate_id in ids]
        for judgement in candidates.judgements:
            question = judgement.question.value
            for better, worse in judgement.pairs(len(ids)):
                if question in rows[better]:
                    margin = rows[better][question] - rows[worse][question]
                    pairs.append(
                        ScoredPair(
                            question,
                            candidates.prompt.id,
                            index,
                            judgement.annotator,
                            better,
                            worse,
                            margin,
                        )
                    )
    return pairs


def margins_and_outcomes(
    sets: Sequence[CandidateSet], scores: Scores, question: str
) -> tuple[list[float], list[int]]:
    """Every pair that a judgement speaks of, ties too: the margin, and 1 for the first being
    better, 0 for a tie. "All equal" is a tie of every two."""
    margins: list[float] = []
    outcomes: list[int] = []
    for candidates in sets:
        rows = [scores[candidate_id] for candidate_id in candidates.candidate_ids]
        if question not in rows[0]:
            continue
        own = [row[question] for row in rows]
        for judgement in candidates.judgements:
            if judgement.question.value != question:
                continue
            is_tie = judgement.best is None
            pairs = combinations(range(len(own)), 2) if is_tie else judgement.pairs(len(own))
            for first, second in pairs:
                margins.append(own[first] - own[second])
                outcomes.append(0 if is_tie else 1)
    return margins, outcomes


def agreement_pairs(pairs: Iterable[ScoredPair]) -> list[tuple[ScoredPair, float]]:
    """Leave one annotator out: each pair that another annotator decided too, and whether alike.

    Returns:
        (pair, 1.0 or 0.0) for each pair and each *other* annotator who was asked the same question
        of the same candidates and whose picks order the same two.
    """
    verdicts: dict[tuple[int, str], dict[tuple[int, int], list[ScoredPair]]]
    verdicts = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        key = (min(pair.better, pair.worse), max(pair.better, pair.worse))
        verdicts[pair.set_index, pair.question][key].append(pair)
    return [
        (pair, float(pair.better == other.better))
        for of_set in verdicts.values()
        for same in of_set.values()
        for pair in same
        for other in same
        if other.annotator != pair.annotator
    ]


def cluster_bootstrap(
    clusters: Sequence[str],
    groups: Sequence[str],
    values: Sequence[float],
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> tuple[float, float | None, float | None]:
    """Mean over groups of each group's mean value, with a 95 % percentile interval.

    Whole clusters (prompts) are drawn with replacement: pairs of one prompt are not independent.

    Returns:
        (estimate, low, high); low and high are None for a single cluster, whose draws are all
        alike.
    """
    cluster_index = np.unique(clusters, return_inverse=True)[1]
    group_names, group_index = np.unique(groups, return_inverse=True)
    shape = (int(cluster_index.max()) + 1, len(group_names))
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (cluster_index, group_index), np.asarray(values, dtype=np.float64))
    np.add.at(counts, (cluster_index, group_index), 1.0)
    estimate = float((sums.sum(0) / counts.sum(0)).mean())
    if shape[0] == 1:
        return estimate, None, None
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(shape[0], np.full(shape[0], 1.0 / shape[0]), size=num_draws)
    drawn_counts = draws @ counts
    # A group that no drawn prompt has is left out of that draw's mean.
    means = np.divide(
        draws @ sums, drawn_counts, out=np.full(drawn_counts.shape, np.nan), where=drawn_counts > 0
    )
    low, high = np.percentile(np.nanmean(means, axis=1), [2.5, 97.5])
    return estimate, float(low), float(high)


def negative_log_likelihood(margins: NDArray[np.float64], temperature: float = 1.0) -> float:
    """Mean of -log s(d / T), in nats; log 2 is a coin."""
    return float(np.logaddexp(0.0, -margins / temperature).mean())


def fit_temperature(margins: NDArray[np.float64]) -> float:
    """T > 0 that minimises the negative log likelihood of s(d / T), within [0.05, 20].

    The likelihood is convex in 1 / T, so that bisecting its slope finds the minimum.
    """
    low, high = 1 / 20, 1 / 0.05
    for _ in range(60):
        middle = (low + high) / 2
        slope = -(margins / (1.0 + np.exp(np.clip(margins * middle, -500, 500)))).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(2 / (low + high))


def measure_pairs(pairs: Sequence[ScoredPair], seed: int = 0) -> dict[str, Any]:
    """Accuracy with its interval, beside the designers' agreement, and the calibration.

    ``ceiling_gap`` is accuracy less ceiling on the pairs that two designers decided.
    ``auroc_decided`` tells pairs on which all designers agree from those on which they do not, by
    the size of the margin: 0.5 is a model that is as sure of the one as of the other.
    """
    accuracy, low, high = cluster_bootstrap(
        [pair.prompt_id for pair in pairs],
        [pair.question for pair in pairs],
        [pair.agreement for pair in pairs],
        seed,
    )
    shared = agreement_pairs(pairs)
    designers, model, gap = beside_designers(shared, seed)
    margins = np.array([pair.margin for pair in pairs])
    found = calibration(margins)
    return {
        "accuracy": accuracy,
        "ci_low": low,
        "ci_high": high,
        "ceiling": designers[0],
        "ceiling_low": designers[1],
        "ceiling_high": designers[2],
        "accuracy_on_ceiling_pairs": model[0],
        "ceiling_gap": gap[0],
        "ceiling_gap_low": gap[1],
        "ceiling_gap_high": gap[2],
        "auroc_decided": _auroc_decided(shared),
        "nll": negative_log_likelihood(margins),
        "brier": brier_score(margins),
        "ece": found.ece,
        "ece_expected": found.expected,
        "ece_high": found.high,
        "reliability": [list(bin) for bin in found.bins],
        "num_pairs": len(pairs),
    }


_Bounds = tuple[float | None, float | None, float | None]


def beside_designers(
    shared: Sequence[tuple[ScoredPair, float]], seed: int
) -> tuple[_Bounds, _Bounds, _Bounds]:
    """Designers' agreement, the model's on the same pairs, and the difference, with intervals."""
    if not shared:
        nothing = (None, None, None)
        return nothing, nothing, nothing
    prompts = [pair.prompt_id for pair, _ in shared]
    groups = [pair.question for pair, _ in shared]

    def bounds(values: list[float]) -> _Bounds:
        return cluster_bootstrap(prompts, groups, values, seed)

    return (
        bounds([alike for _, alike in shared]),
        bounds([pair.agreement for pair, _ in shared]),
        # Both meet the same prompts in every draw: the interval is that of the difference.
        bounds([pair.agreement - alike for pair, alike in shared]),
    )


def by_designer(pairs: Sequence[ScoredPair], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Each designer left out: the model against their picks, and the other designers against them.

    Returns:
        pseudonym -> accuracy, ceiling and ceiling_gap with ``_low`` and ``_high``, ``num_pairs``.
    """
    shared = agreement_pairs(pairs)
    found: dict[str, dict[str, Any]] = {}
    for name in sorted({pair.annotator for pair in pairs}):
        own = [pair for pair in pairs if pair.annotator == name]
        accuracy = cluster_bootstrap(
            [pair.prompt_id for pair in own],
            [pair.question for pair in own],
            [pair.agreement for pair in own],
            seed,
        )
        others, _, gap = beside_designers([s for s in shared if s[0].annotator == name], seed)
        found[name] = {
            **_named("accuracy", accuracy),
            **_named("ceiling", others),
            **_named("ceiling_gap", gap),
            "num_pairs": len(own),
        }
    return found


def _named(name: str, bounds: _Bounds) -> dict[str, float | None]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), bounds, strict=True))


def _auroc_decided(shared: Sequence[tuple[ScoredPair, float]]) -> float | None:
    """None where designers agree on all pairs, or on none."""
    alike: dict[tuple[int, str, frozenset[int]], list[float]] = defaultdict(list)
    size: dict[tuple[int, str, frozenset[int]], float] = {}
    for pair, agreed in shared:
        key = pair.set_index, pair.question, frozenset((pair.better, pair.worse))
        alike[key].append(agreed)
        size[key] = abs(pair.margin)
    return auroc([size[key] for key in alike], [float(min(of)) for of in alike.values()])
