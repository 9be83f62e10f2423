"""What the figures on annotators' quality are made from: answers with places, times and repeats."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import aliased

from annotate.assignment import MAX_PRIORITY, queue_rank
from annotate.schema import Candidate, Outcome, Pick, Task
from annotate.store.checks import CHECK_KINDS
from annotate.store.content import candidate_record
from annotate.store.engine import batches, require_rows
from annotate.store.errors import StoreError
from annotate.store.results import ResultStore
from annotate.store.slots import RANDOM_LANE
from annotate.store.tasks import load_tasks
from annotate.tables import AssignmentRow, CandidateRow, PickRow, TaskRow, UserRow

CHOSEN_LANE = 0


@dataclass(frozen=True)
class Judged:
    """Current answers as the annotators gave them, with what they are about."""

    tasks: dict[str, Task]
    candidates: dict[str, Candidate]
    picks: list[Pick]
    """Oldest first."""
    names: dict[str, str]
    """Pseudonym -> account: for those who run the studio."""
    times: dict[str, datetime]
    """By pick id."""
    places: dict[str, tuple[int | None, int | None]]
    """By pick id: the positions on the screen of best and worst."""
    by_chance: frozenset[str]
    """Ids of the picks on tasks that chance, not a reward score, put in the queue."""


class QualityStore(ResultStore):
    """The part of a store that the review pages read, and that scores reorder."""

    def judged(self, kinds: Collection[str] | None = None, newest: int | None = None) -> Judged:
        """The current answers but skips, of these kinds of task; None is all but the checks.

        Args:
            newest: how many of them at most; what they are about follows them.
        """
        query = (
            select(PickRow, UserRow.name, UserRow.name_norm, AssignmentRow)
            .join(UserRow, UserRow.id == PickRow.annotator_id)
            .join(AssignmentRow, AssignmentRow.id == PickRow.assignment_id)
            .join(TaskRow, TaskRow.id == PickRow.task_id)
            .where(PickRow.status == "current", PickRow.outcome != Outcome.SKIP)
            .order_by(PickRow.submitted_at.desc(), PickRow.id.desc())
            .limit(newest)
        )
        chosen = TaskRow.kind.not_in(CHECK_KINDS) if kinds is None else TaskRow.kind.in_(kinds)
        picks, names, times, places, by_chance = [], {}, {}, {}, set()
        with self._read() as session:
            rows = session.execute(query.where(chosen)).all()
            for row, name, name_norm, slot in reversed(rows):
                pick = self.pick_record(row, name_norm)
                picks.append(pick)
                names[pick.annotator] = name
                times[pick.id] = row.submitted_at
                if slot.display_order and pick.win is not None and pick.lose is not None:
                    order = slot.display_order
                    places[pick.id] = order.index(pick.win), order.index(pick.lose)
                if slot.lane == RANDOM_LANE:
                    by_chance.add(pick.id)
            tasks = {task.id: task for task in load_tasks(session, {p.task_id for p in picks})}
            shown = {c for task in tasks.values() for c in task.candidate_ids}
            candidates = {
                row.id: candidate_record(row)
                for batch in batches(shown)
                for row in session.scalars(select(CandidateRow).where(CandidateRow.id.in_(batch)))
            }
        return Judged(tasks, candidates, picks, names, times, places, frozenset(by_chance))

    def repeats(self) -> list[tuple[Pick, Pick]]:
        """(first answer, answer to the repeat) of one annotator to the same candidates."""
        first, task = aliased(PickRow), aliased(TaskRow)
        query = (
            select(first, PickRow, UserRow.name_norm)
            .select_from(PickRow)
            .join(task, task.id == PickRow.task_id)
            .join(
                first,
                (first.task_id == task.repeats_id)
                & (first.annotator_id == PickRow.annotator_id)
                & (first.status == "current"),
            )
            .join(UserRow, UserRow.id == PickRow.annotator_id)
            .where(task.repeats_id.is_not(None), PickRow.status == "current")
            .order_by(PickRow.id)
        )
        with self._read() as session:
            return [
                (self.pick_record(a, name), self.pick_record(b, name))
                for a, b, name in session.execute(query)
            ]

    def prioritise(self, values: Mapping[str, float]) -> int:
        """Put open tasks in the order of their worth for learning, the highest first.

        Args:
            values: by task id: what a label is worth, such as the reward model's uncertainty. Those
                that are not named keep their place in the random order, where
                `annotate.store.policy.WorkPolicy.random_share` of all claims go.

        Returns:
            Slots that were moved. Slots in somebody's hands stay where they are.
        """
        if not values:
            return 0
        if any(value != value for value in values.values()):
            raise StoreError("a value is not a number; leave tasks without one out")
        ordered = sorted(values, key=lambda task_id: (values[task_id], task_id))
        moved = 0
        with self._write() as session:
            require_rows(session, TaskRow, values, "task")
            for place, task_id in enumerate(ordered):
                # Only the order matters: priorities spread evenly over their range.
                priority = round((2 * place / max(1, len(ordered) - 1) - 1) * MAX_PRIORITY)
                done = session.execute(
                    update(AssignmentRow)
                    .where(AssignmentRow.task_id == task_id, AssignmentRow.state == "open")
                    .values(lane=CHOSEN_LANE, rank=queue_rank(task_id, priority))
                    .execution_options(synchronize_session=False)
                )
                moved += done.rowcount  # pyright: ignore[reportAttributeAccessIssue]
        return moved
