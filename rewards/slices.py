"""Where a reward model is good and where it is not: by kind of prompt, of pair and of annotator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from annotate.records import Snapshot
from rewards.judgements import CandidateSet
from rewards.metrics import best_of_n_regret, kendall_tau_b

if TYPE_CHECKING:
    from rewards.agreement import ScoredPair

__all__ = ["ranking_quality", "slice_accuracy"]

MIN_PAIRS = 20
"""Slices of fewer pairs are left out: their share says nothing."""


def slice_accuracy(
    pairs: Sequence[ScoredPair], sets: Sequence[CandidateSet], snapshot: Snapshot | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy by prompt ``language`` and ``category``, ``annotator``, ``margin``, ``models``.

    ``margin`` is by thirds of the model's own |margin|. ``models`` tells pairs drawn by one model
    from pairs of two, and needs the snapshot.

    Returns:
        slice -> value -> {"accuracy", "num_pairs"}; values of fewer than `MIN_PAIRS` left out.
    """
    prompts = {candidates.prompt.id: candidates.prompt for candidates in sets}
    thirds = np.quantile([abs(pair.margin) for pair in pairs], [1 / 3, 2 / 3]) if pairs else []
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        prompt = prompts[pair.prompt_id]
        place = int(np.searchsorted(thirds, abs(pair.margin)))
        of = {
            "language": prompt.lang,
            "category": prompt.category,
            "annotator": pair.annotator,
            "margin": ("small", "middle", "large")[place],
            "models": _models(pair, sets, snapshot),
        }
        for name, value in of.items():
            if value:
                found[name][value].append(pair.agreement)
    return {
        name: {
            value: {"accuracy": float(np.mean(shares)), "num_pairs": len(shares)}
            for value, shares in sorted(values.items())
            if len(shares) >= MIN_PAIRS
        }
        for name, values in found.items()
    }


def _models(pair: ScoredPair, sets: Sequence[CandidateSet], snapshot: Snapshot | None) -> str:
    if snapshot is None:
        return ""
    ids = sets[pair.set_index].candidate_ids
    drawn = [snapshot.candidate_of[ids[place]].generation for place in (pair.better, pair.worse)]
    hashes = {generation.model_sha256 for generation in drawn if generation is not None}
    if None in drawn:
        return ""
    return "same" if len(hashes) == 1 else "different"


def ranking_quality(
    sets: Sequence[CandidateSet], scores: Mapping[str, Mapping[str, float]], question: str
) -> dict[str, Any]:
    """How the model orders whole candidate sets, against the picks.

    Returns:
        - ``tau_b``: mean over judgements of Kendall's tau-b with best > others > worst; None
          without any.
        - ``regret``: share of picks as best that is lost by taking the model's best candidate, and
          ``regret_random`` by taking any.
    """
    taus, predicted, utility = [], [], []
    for candidates in sets:
        count = len(candidates.candidate_ids)
        judged = [
            (j.best, j.worst)
            for j in candidates.judgements
            if j.question.value == question and j.best is not None and j.worst is not None
        ]
        rows = [scores[candidate_id] for candidate_id in candidates.candidate_ids]
        if not judged or question not in rows[0]:
            continue
        own = [row[question] for row in rows]
        for best, worst in judged:
            order = np.ones(count)
            order[best], order[worst] = 2.0, 0.0
            tau = kendall_tau_b(own, order)
            taus.append(0.0 if tau is None else tau)
        predicted.append(own)
        picked = np.bincount([best for best, _ in judged], minlength=count)
        utility.append(picked / len(judged))
    if not taus:
        return {"tau_b": None, "regret": None, "regret_random": None}
    equal = [np.zeros(len(row)) for row in predicted]
    return {
        "tau_b": float(np.mean(taus)),
        "regret": best_of_n_regret(predicted, utility),
        "regret_random": best_of_n_regret(equal, utility),
    }
