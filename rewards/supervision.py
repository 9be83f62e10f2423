"""What the training picks teach beyond best and worst: reasons, "all bad", who said it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from annotate.records import Outcome, Pick, Question, Snapshot
from rewards.judgements import CandidateSet, Judgement

__all__ = ["supervise"]


def supervise(
    snapshot: Snapshot,
    sets: Sequence[CandidateSet],
    reasons: bool = False,
    all_bad: Literal["ignore", "anchor"] = "ignore",
    annotator_weights: Literal["equal", "reliability"] = "equal",
) -> tuple[CandidateSet, ...]:
    """The training ``sets`` with what else their picks say; as they are under the defaults.

    Only picks on the prompts of ``sets`` are read, for the annotators' reliability too: what is
    held out weighs nothing.

    Args:
        reasons, all_bad, annotator_weights: as in `rewards.config.RewardTrainConfig`.
    """
    picks = {pick.id: pick for pick in snapshot.picks}
    found = {(s.prompt.id, s.candidate_ids): list(s.judgements) for s in sets}
    prompts = {s.prompt.id: s.prompt for s in sets}
    if reasons:
        for judgements in found.values():
            judgements += [t for j in judgements for t in _by_reasons(j, picks[j.pick_id])]
    if all_bad == "anchor":
        winners = _winners(sets)
        for pick in sorted(picks.values(), key=lambda pick: pick.id):
            task = snapshot.task_of[pick.task_id]
            if pick.outcome != Outcome.ALL_BAD or task.prompt_id not in prompts:
                continue
            order = tuple(sorted(task.candidate_ids))
            elsewhere = winners[task.prompt_id, task.question] - set(order)
            judgement = Judgement(
                pick.id, pick.task_id, pick.annotator, task.question, None, None,
                all_bad=True, anchors=tuple(sorted(elsewhere)),
            )  # fmt: skip
            found.setdefault((task.prompt_id, order), []).append(judgement)
    if annotator_weights == "reliability":
        weights = _weights(snapshot, found)
        found = {
            key: [replace(j, weight=weights[j.annotator]) for j in judgements]
            for key, judgements in found.items()
        }
    return tuple(
        CandidateSet(prompts[prompt_id], candidate_ids, tuple(judgements))
        for (prompt_id, candidate_ids), judgements in sorted(found.items())
    )


def _by_reasons(judgement: Judgement, pick: Pick) -> list[Judgement]:
    """What the reasons of a pick for "overall" say on the criteria that they name."""
    if judgement.question != Question.OVERALL or judgement.best is None:
        return []
    sides: dict[Question, set[str]] = defaultdict(set)
    for reason in pick.reasons:
        sides[Question(reason.criterion.value)].add(reason.target)
    return [
        replace(
            judgement,
            question=question,
            best=judgement.best if "win" in targets else None,
            worst=judgement.worst if "lose" in targets else None,
        )
        for question, targets in sorted(sides.items())
    ]


def _winners(sets: Sequence[CandidateSet]) -> dict[tuple[str, Question], set[str]]:
    """Candidates picked as best, by prompt and question."""
    winners: dict[tuple[str, Question], set[str]] = defaultdict(set)
    for candidates in sets:
        for judgement in candidates.judgements:
            if judgement.best is not None:
                name = candidates.candidate_ids[judgement.best]
                winners[candidates.prompt.id, judgement.question].add(name)
    return winners


def _weights(
    snapshot: Snapshot, found: Mapping[tuple[str, tuple[str, ...]], Sequence[Judgement]]
) -> dict[str, float]:
    """Precision of each annotator over the mean of all judgements.

    Whoever shares no task with others has the mean: nothing speaks for or against them.

    Raises:
        ValueError: no training task was answered by two annotators.
    """
    judgements = [j for of in found.values() for j in of]
    picks = {j.pick_id for j in judgements}
    temperatures = snapshot.annotator_temperatures(picks)
    if not temperatures:
        raise ValueError(
            "annotator_weights is 'reliability', but no training task was answered by two "
            "annotators; let some tasks overlap, or set it to 'equal'"
        )
    precision = {name: 1.0 / temperature for name, temperature in temperatures.items()}
    known = [precision[j.annotator] for j in judgements if j.annotator in precision]
    mean = sum(known) / len(known)
    return {j.annotator: precision.get(j.annotator, mean) / mean for j in judgements}
