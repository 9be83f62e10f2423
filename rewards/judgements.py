"""A snapshot seen by a reward model: candidate sets, each with everything judged of it.

Several tasks may ask several questions of the same candidates, and several annotators answer each.
Kept together, the set goes through the model once for all of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from annotate.records import Outcome, Pick, Prompt, Question, Snapshot, Split
from rewards.splits import check_disjoint, set_aside

__all__ = [
    "CandidateSet",
    "Division",
    "Judgement",
    "candidate_sets",
    "divide",
    "keep_training",
]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one annotator said of one candidate set. Positions index ``candidate_ids``."""

    pick_id: str
    task_id: str
    annotator: str
    question: Question
    best: int | None
    """None, like ``worst``, when all were called equal. A reason names one of the two alone."""
    worst: int | None
    all_bad: bool = False
    weight: float = 1.0
    """In training; see `rewards.supervision`."""
    anchors: tuple[str, ...] = ()
    """For "all bad": the candidates that were picked in the prompt's other tasks."""

    def pairs(self, num_candidates: int) -> Iterator[tuple[int, int]]:
        """All implied (better, worse) positions: the best beats all, all others beat the worst."""
        if self.best is None or self.worst is None:
            return
        for other in range(num_candidates):
            if other != self.best:
                yield self.best, other
        for other in range(num_candidates):
            if other not in (self.best, self.worst):
                yield other, self.worst


@dataclass(frozen=True, slots=True)
class CandidateSet:
    prompt: Prompt
    candidate_ids: tuple[str, ...]
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True, slots=True)
class Division:
    """The three parts of a snapshot; no prompt is in two of them."""

    train: tuple[CandidateSet, ...]
    development: tuple[CandidateSet, ...]
    """Chooses the epoch and the temperature."""
    held_out: tuple[CandidateSet, ...]
    """Read by the report alone."""


def candidate_sets(snapshot: Snapshot) -> list[CandidateSet]:
    """The judged candidate sets of a snapshot, in an order that depends on its content alone.

    "All bad", skipped and flagged picks order nothing and are left out.
    """
    found: dict[tuple[str, tuple[str, ...]], list[Judgement]] = defaultdict(list)
    for pick in sorted(snapshot.picks, key=lambda pick: pick.id):
        task = snapshot.task_of[pick.task_id]
        if pick.outcome in (Outcome.PICKED, Outcome.ALL_EQUAL):
            # Sets are shared by tasks that list the same candidates in different orders.
            order = tuple(sorted(task.candidate_ids))
            found[task.prompt_id, order].append(
                _judgement(pick, task.question, task.candidate_ids, order)
            )
    return [
        CandidateSet(snapshot.prompt_of[prompt_id], candidate_ids, tuple(judgements))
        for (prompt_id, candidate_ids), judgements in sorted(found.items())
    ]


def _judgement(
    pick: Pick, question: Question, listed: Sequence[str], order: Sequence[str]
) -> Judgement:
    best = None if pick.win is None else order.index(listed[pick.win])
    worst = None if pick.lose is None else order.index(listed[pick.lose])
    return Judgement(pick.id, pick.task_id, pick.annotator, question, best, worst)


def divide(snapshot: Snapshot, held_out: Split, development_fraction: float, seed: int) -> Division:
    """Cut a snapshot into training, development and held-out sets, by prompt.

    The development part is the validation split; when that is held out itself, it is
    ``development_fraction`` of the training prompts.

    Raises:
        rewards.splits.LeakError: a prompt is in two splits.
        ValueError: a part has no picks.
    """
    check_disjoint(snapshot.prompts)
    parts: dict[Split, list[CandidateSet]] = defaultdict(list)
    for candidates in candidate_sets(snapshot):
        parts[candidates.prompt.split].append(candidates)
    train, development = parts[Split.TRAIN], parts[Split.VALIDATION]
    if held_out == Split.VALIDATION and train:
        aside = set_aside([s.prompt.id for s in train], development_fraction, seed)
        development = [s for s in train if s.prompt.id in aside]
        train = [s for s in train if s.prompt.id not in aside]
    division = Division(tuple(train), tuple(development), tuple(parts[held_out]))
    for name in ("train", "development", "held_out"):
        if not any(j.best is not None for s in getattr(division, name) for j in s.judgements):
            counts = {split.value: _num_picks(parts[split]) for split in Split}
            raise ValueError(
                f"the {name} part of snapshot {snapshot.digest} has no picks, expected at least "
                f"one; picks by split of the prompt: {counts}, held out: {held_out.value!r}"
            )
    return division


def keep_training(
    division: Division, share: float, leave_out: Collection[str], seed: int
) -> Division:
    """``division`` with a share of its training prompts, and nothing of some annotators.

    The held-out part is left as it is.

    Raises:
        ValueError: an annotator has no picks, or nothing is left to learn from.
    """
    known = {j.annotator for part in (division.train, division.development) for s in part
             for j in s.judgements}  # fmt: skip
    if unknown := sorted(set(leave_out) - known):
        raise ValueError(
            f"leave_out names {unknown[0]!r}, who has no training pick (choose from "
            f"{', '.join(sorted(known))})"
        )

    def without(part: Iterable[CandidateSet]) -> tuple[CandidateSet, ...]:
        kept = [
            replace(s, judgements=tuple(j for j in s.judgements if j.annotator not in leave_out))
            for s in part
        ]
        return tuple(s for s in kept if s.judgements)

    train = division.train
    if share < 1.0:
        chosen = set_aside([s.prompt.id for s in train], share, seed)
        train = tuple(s for s in train if s.prompt.id in chosen)
    if leave_out:
        division = replace(division, development=without(division.development))
        train = without(train)
    if not train or not division.development:
        raise ValueError(f"without {', '.join(leave_out)} there is nothing to learn from")
    return replace(division, train=train)


def count_questions(sets: Iterable[CandidateSet]) -> dict[str, int]:
    """How many judgements each question has, by its name."""
    return dict(sorted(Counter(j.question.value for s in sets for j in s.judgements).items()))


def _num_picks(sets: Iterable[CandidateSet]) -> int:
    return sum(len(candidates.judgements) for candidates in sets)
