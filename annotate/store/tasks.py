"""Tasks: which candidates are shown together, with a slot for each annotator to judge them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from annotate.assignment import canonical_order, keyed_digest, queue_rank
from annotate.schema import Question, Task
from annotate.store.checks import CHECK_KINDS
from annotate.store.engine import StoreBase, batches, existing_ids, insert_rows, require_rows
from annotate.store.errors import ConflictError, NotFoundError, StoreError
from annotate.store.models import Answer
from annotate.tables import (
    MAX_CANDIDATES,
    AssignmentRow,
    CandidateRow,
    PickRow,
    PromptRow,
    TaskCandidateRow,
    TaskRow,
    UserRow,
)

MAX_ANNOTATORS = 1_000
"""Of one task: each has a row from the start."""


class TaskStore(StoreBase):
    """The part of a store that says what is to be judged, how often and in which order."""

    def add_tasks(
        self,
        candidates: Mapping[str, Sequence[str]] | Iterable[tuple[str, Sequence[str]]],
        question: Question | str = Question.OVERALL,
        annotators_per_task: int = 1,
        kind: str = "standard",
        priority: int = 0,
        seed: int = 0,
        references: Collection[str] = (),
    ) -> list[Task]:
        """Make tasks, each with a slot for each of its annotators.

        A task's id follows from its content, so adding it again changes nothing but the overlap:
        a larger ``annotators_per_task`` adds slots to it.

        Args:
            candidates: (prompt id, ids of the 2 to 9 candidates that the task shows), one a task.
            kind: ``standard``, or any other word that tells tasks apart. ``gold`` and
                ``qualification`` are checks (`annotate.store.checks`): with
                ``annotators_per_task=0`` they stand in no queue.
            priority: a higher one is handed out first (see `annotate.assignment.queue_rank`).
            seed: of the random order that gives each candidate its ordinal.
            references: ids of gold images. A task that shows one is in reference mode: the gold
                image wins, and only the worst of the others is chosen.
        """
        least = 0 if kind in CHECK_KINDS else 1
        if not least <= annotators_per_task <= MAX_ANNOTATORS:
            raise StoreError(
                f"annotators_per_task must be {least} to {MAX_ANNOTATORS}, "
                f"got {annotators_per_task}"
            )
        question = Question(question)
        groups = cast(
            "Iterable[tuple[str, Sequence[str]]]",
            candidates.items() if isinstance(candidates, Mapping) else candidates,
        )
        gold = frozenset(references)
        made = [_make_task(prompt_id, ids, question, kind, seed, gold) for prompt_id, ids in groups]
        tasks = list({task.id: task for task in made}.values())
        with self._write() as session:
            _check_shown(session, tasks)
            known = existing_ids(session, TaskRow, [task.id for task in tasks])
            _insert_tasks(session, [task for task in tasks if task.id not in known])
            _grow_overlap(session, tasks, annotators_per_task, priority)
        return tasks

    def add_answers(self, annotator_id: int, answers: Iterable[Answer]) -> int:
        """Take over answers that were given elsewhere, as this annotator's; how many were new.

        Each takes an open slot of its task, or a further one. An answer of this annotator that is
        there already is left as it is, and so is the first of several to one task.
        """
        wanted: dict[str, Answer] = {}
        for answer in answers:
            wanted.setdefault(answer.task_id, answer)
        with self._write() as session:
            require_rows(session, TaskRow, wanted, "task")
            require_rows(session, UserRow, [annotator_id], "user")
            shown = {task.id: task for task in load_tasks(session, wanted)}
            slots = _load_slots(session, wanted)
            added = 0
            for task_id, answer in wanted.items():
                if any(slot.annotator_id == annotator_id for slot in slots[task_id]):
                    continue
                slot = _fill_slot(session, task_id, slots[task_id], annotator_id)
                session.add(_answered_pick(shown[task_id], answer, slot, annotator_id))
                added += 1
        return added

    def task(self, task_id: str) -> Task:
        """The task of that id."""
        with self._read() as session:
            require_rows(session, TaskRow, [task_id], "task")
            return load_tasks(session, [task_id])[0]

    def tasks(self, kind: str | None = None) -> list[Task]:
        """Every task, or those of one kind, sorted by id."""
        query = select(TaskRow.id)
        if kind is not None:
            query = query.where(TaskRow.kind == kind)
        with self._read() as session:
            return load_tasks(session, session.scalars(query).all())


def load_tasks(session: Session, ids: Iterable[str]) -> list[Task]:
    """The tasks of these ids with their candidates in canonical order, sorted by id."""
    rows: list[TaskRow] = []
    shown: dict[str, list[str]] = {}
    for batch in batches(ids):
        rows += session.scalars(select(TaskRow).where(TaskRow.id.in_(batch)))
        shown.update((task_id, []) for task_id in batch)
        query = (
            select(TaskCandidateRow.task_id, TaskCandidateRow.candidate_id)
            .where(TaskCandidateRow.task_id.in_(batch))
            .order_by(TaskCandidateRow.task_id, TaskCandidateRow.ordinal)
        )
        for task_id, candidate_id in session.execute(query):
            shown[task_id].append(candidate_id)
    tasks = [
        Task(
            id=row.id,
            prompt_id=row.prompt_id,
            question=Question(row.question),
            candidate_ids=tuple(shown[row.id]),
            kind=row.kind,
            reference=row.reference,
        )
        for row in rows
    ]
    return sorted(tasks, key=lambda task: task.id)


def _make_task(
    prompt_id: str,
    candidate_ids: Sequence[str],
    question: Question,
    kind: str,
    seed: int,
    references: frozenset[str],
) -> Task:
    if not 2 <= len(candidate_ids) <= MAX_CANDIDATES:
        raise StoreError(
            f"a task shows 2 to {MAX_CANDIDATES} candidates, got {len(candidate_ids)} "
            f"for prompt {prompt_id!r}"
        )
    if len(set(candidate_ids)) != len(candidate_ids):
        raise StoreError(f"a candidate stands twice in the task of prompt {prompt_id!r}")
    ordered = canonical_order(candidate_ids, seed, prompt_id)
    gold = [candidate_id for candidate_id in ordered if candidate_id in references]
    if len(gold) > 1:
        raise StoreError(f"the task of prompt {prompt_id!r} has {len(gold)} references, at most 1")
    if gold and len(ordered) < 3:
        raise StoreError("in reference mode a task shows the reference and 2 or more others")
    marker = (f"reference {gold[0]}",) if gold else ()
    task_id = keyed_digest(b"task", prompt_id, question.value, kind, *ordered, *marker).hex()[:32]
    return Task(
        id=task_id,
        prompt_id=prompt_id,
        question=question,
        candidate_ids=tuple(ordered),
        kind=kind,
        reference=ordered.index(gold[0]) if gold else None,
    )


def _check_shown(session: Session, tasks: Sequence[Task]) -> None:
    """Every candidate exists and belongs to the task's prompt."""
    require_rows(session, PromptRow, {task.prompt_id for task in tasks}, "prompt")
    shown = {candidate_id for task in tasks for candidate_id in task.candidate_ids}
    require_rows(session, CandidateRow, shown, "candidate")
    prompt_of: dict[str, str] = {}
    for batch in batches(shown):
        query = select(CandidateRow.id, CandidateRow.prompt_id).where(CandidateRow.id.in_(batch))
        prompt_of.update(session.execute(query).all())
    for task in tasks:
        for candidate_id in task.candidate_ids:
            if prompt_of[candidate_id] != task.prompt_id:
                raise ConflictError(
                    f"candidate {candidate_id!r} was drawn for prompt "
                    f"{prompt_of[candidate_id]!r}, not for {task.prompt_id!r}"
                )


def _insert_tasks(session: Session, tasks: Sequence[Task]) -> None:
    """The tasks with the candidates that they show, still without slots."""
    now = datetime.now(UTC)
    rows = [
        {
            **task.model_dump(include={"id", "prompt_id", "question", "kind", "reference"}),
            "n_candidates": len(task.candidate_ids),
            "k_required": 0,
            "created_at": now,
        }
        for task in tasks
    ]
    shown = [
        {
            "task_id": task.id,
            "prompt_id": task.prompt_id,
            "ordinal": ordinal,
            "candidate_id": candidate_id,
        }
        for task in tasks
        for ordinal, candidate_id in enumerate(task.candidate_ids)
    ]
    insert_rows(session, TaskRow, rows)
    insert_rows(session, TaskCandidateRow, shown)


def _grow_overlap(session: Session, tasks: Sequence[Task], annotators: int, priority: int) -> None:
    """Give each task as many more slots as it lacks to be judged by ``annotators``."""
    for batch in batches(task.id for task in tasks):
        query = (
            select(TaskRow.id, TaskRow.k_required, func.coalesce(func.max(AssignmentRow.slot), 0))
            .outerjoin(AssignmentRow, AssignmentRow.task_id == TaskRow.id)
            .where(TaskRow.id.in_(batch))
            .group_by(TaskRow.id, TaskRow.k_required)
        )
        slots = [
            _slot_values(task_id, last + 1 + i, queue_rank(task_id, priority))
            for task_id, k_required, last in session.execute(query)
            for i in range(annotators - k_required)
        ]
        insert_rows(session, AssignmentRow, slots)
        session.execute(
            update(TaskRow)
            .where(TaskRow.id.in_(batch), TaskRow.k_required < annotators)
            .values(k_required=annotators)
            .execution_options(synchronize_session=False)
        )


def _load_slots(session: Session, task_ids: Iterable[str]) -> dict[str, list[AssignmentRow]]:
    slots: dict[str, list[AssignmentRow]] = defaultdict(list)
    for batch in batches(task_ids):
        query = (
            select(AssignmentRow)
            .where(AssignmentRow.task_id.in_(batch))
            .order_by(AssignmentRow.slot)
            .with_for_update()
        )
        for slot in session.scalars(query):
            slots[slot.task_id].append(slot)
    return slots


def _fill_slot(
    session: Session, task_id: str, slots: list[AssignmentRow], annotator_id: int
) -> AssignmentRow:
    """Close an open slot for this annotator, or a new one when none is open."""
    slot = next((slot for slot in slots if slot.state == "open"), None)
    if slot is None:
        number = slots[-1].slot + 1 if slots else 1
        rank = slots[-1].rank if slots else queue_rank(task_id)
        slot = AssignmentRow(**_slot_values(task_id, number, rank))
        session.add(slot)
    slot.state = "done"
    slot.annotator_id = annotator_id
    session.flush()
    return slot


def _answered_pick(task: Task, answer: Answer, slot: AssignmentRow, annotator_id: int) -> PickRow:
    for candidate_id in (answer.win_id, answer.lose_id):
        if candidate_id is not None and candidate_id not in task.candidate_ids:
            raise NotFoundError(f"task {task.id} does not show candidate {candidate_id!r}")
    ordinal = {candidate_id: i for i, candidate_id in enumerate(task.candidate_ids)}
    body = f"{task.id}\0{answer.outcome.value}\0{answer.win_id}\0{answer.lose_id}"
    return PickRow(
        idempotency_key=f"import-{task.id}",
        body_sha256=hashlib.sha256(body.encode()).hexdigest(),
        assignment_id=slot.id,
        task_id=task.id,
        annotator_id=annotator_id,
        revision=1,
        status="current",
        outcome=answer.outcome.value,
        win=None if answer.win_id is None else ordinal[answer.win_id],
        lose=None if answer.lose_id is None else ordinal[answer.lose_id],
        note="",
        telemetry={},
        submitted_at=datetime.now(UTC),
    )


def _slot_values(task_id: str, slot: int, rank: int) -> dict[str, Any]:
    return {"task_id": task_id, "slot": slot, "rank": rank, "state": "open", "attempt": 0}
