"""Any scorer against people's picks: is a published one, or a judge, worth following here?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from annotate.records import Snapshot, Split
from rewards.agreement import Scores, fit_temperature, scored_pairs
from rewards.audit import audit_biases
from rewards.base import RewardItem, Score, Scorer, ScoringError, batch_places
from rewards.evaluate import build_report, validation_thresholds
from rewards.images import SourcePictures, open_candidate
from rewards.judgements import CandidateSet, candidate_sets

__all__ = ["audit_scorer", "measure_scorer"]

BATCH = 32
"""Images open at a time."""


def measure_scorer(
    scorer: Scorer, snapshot: Snapshot, split: Split = Split.TEST, seed: int = 0
) -> dict[str, Any]:
    """`rewards.evaluate.build_report` of a scorer that was trained elsewhere.

    A question is answered by the component of its name, else by the value. Scores of a scorer need
    not be log-odds: they are divided by a temperature fitted on the validation split for each
    question, where that has picks, and ``temperatures`` says which were; without, calibration and
    likelihood are those of the raw scores. Sets with an image to which the scorer does not apply
    are left out and counted in ``num_not_applicable``; ``truncated`` is the share of images whose
    prompt the scorer could not read to its end.

    Raises:
        ValueError: the split has no picks that the scorer applies to.
        rewards.base.ScoringError: an image could not be scored; names it.
    """
    judged = candidate_sets(snapshot)
    asked = sorted({j.question.value for s in judged for j in s.judgements})
    parts = {
        part: [s for s in judged if s.prompt.split == part]
        for part in dict.fromkeys((Split.VALIDATION, split))
    }
    given = {part: _score_all(scorer, snapshot, sets) for part, sets in parts.items()}
    scores = {part: _by_question(of, asked) for part, of in given.items()}
    kept = {
        part: [s for s in sets if all(name in scores[part] for name in s.candidate_ids)]
        for part, sets in parts.items()
    }
    if not kept[split]:
        raise ValueError(
            f"split {split.value!r} of snapshot {snapshot.digest} has {len(parts[split])} judged "
            f"sets, of which scorer {scorer.spec.name!r} applies to none"
        )
    temperatures: dict[str, float] = {}
    if split != Split.VALIDATION:
        temperatures = _temperatures(kept[Split.VALIDATION], scores[Split.VALIDATION], asked)
    scaled = {
        part: {
            name: {q: value / temperatures.get(q, 1.0) for q, value in row.items()}
            for name, row in of.items()
        }
        for part, of in scores.items()
    }
    thresholds = {}
    if split != Split.VALIDATION:
        thresholds = validation_thresholds(kept[Split.VALIDATION], scaled[Split.VALIDATION], asked)
    criteria = [question for question in asked if question != "overall"] or ["overall"]
    report = build_report(kept[split], scaled[split], criteria, seed, snapshot, thresholds)
    return {
        **report,
        # One value for several questions is no correlation of heads.
        "head_correlation": report["head_correlation"] if scorer.spec.components else {},
        "scorer": {"name": scorer.spec.name, "version": scorer.spec.version},
        "held_out": split.value,
        "snapshot_digest": snapshot.digest,
        "temperatures": temperatures,
        "num_not_applicable": len(parts[split]) - len(kept[split]),
        "truncated": float(np.mean([score.truncated > 0 for score in given[split].values()])),
    }


def _temperatures(
    sets: Sequence[CandidateSet], scores: Scores, questions: Sequence[str]
) -> dict[str, float]:
    """By question, where the sets have pairs of it."""
    pairs = scored_pairs(sets, scores)
    margins = {
        question: np.array([pair.margin for pair in pairs if pair.question == question])
        for question in questions
    }
    return {name: fit_temperature(values) for name, values in margins.items() if len(values)}


def audit_scorer(
    scorer: Scorer, snapshot: Snapshot, split: Split, num_prompts: int
) -> dict[str, Any]:
    """`rewards.audit.audit_biases` on the first prompts of a split, by id."""
    sets = {s.prompt.id: s for s in candidate_sets(snapshot) if s.prompt.split == split}
    chosen = [sets[prompt_id] for prompt_id in sorted(sets)[:num_prompts]]
    pictures = SourcePictures(snapshot)
    items = [_item(snapshot, s, name, pictures) for s in chosen for name in s.candidate_ids]
    return audit_biases(scorer, snapshot, items)


def _by_question(given: Mapping[str, Score], questions: Sequence[str]) -> Scores:
    """By candidate and question; candidates that the scorer does not apply to are left out."""
    return {
        name: {question: score.components.get(question, score.value) for question in questions}
        for name, score in given.items()
        if score.value is not None
    }


def _score_all(
    scorer: Scorer, snapshot: Snapshot, sets: Sequence[CandidateSet]
) -> dict[str, Score]:
    """By candidate."""
    # Sets of one prompt share candidates.
    places = {name: s for s in sets for name in s.candidate_ids}
    bare = [RewardItem(name, s.prompt.id, s.prompt.text) for name, s in places.items()]
    found: dict[str, Score] = {}
    pictures = SourcePictures(snapshot)
    for batch in batch_places(bare, BATCH, scorer.spec.groupwise):
        names = [bare[place].sample_id for place in batch]
        items = [_item(snapshot, places[name], name, pictures) for name in names]
        for item, score in zip(items, scorer.score(items), strict=True):
            if score.error is not None:
                raise ScoringError(
                    f"scorer {scorer.spec.name!r} failed on sample {item.sample_id!r}: "
                    f"{score.error}"
                )
            found[item.sample_id] = score
    return found


def _item(
    snapshot: Snapshot, candidates: CandidateSet, name: str, pictures: SourcePictures
) -> RewardItem:
    prompt = candidates.prompt
    return RewardItem(
        sample_id=name,
        group_id=prompt.id,
        prompt=prompt.text,
        image=open_candidate(snapshot, snapshot.candidate_of[name]),
        metadata={"category": prompt.category, **prompt.metadata},
        source_images=pictures.of(prompt),
    )
