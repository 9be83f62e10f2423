"""Tasks whose answer says something about the annotator: qualification, gold, repeats.

They have no slots in the queue (``k_required`` is 0): a slot is made for each annotator who is
given one. Their picks are in no snapshot unless it asks for their kind.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session, aliased

from annotate.assignment import display_order, keyed_digest, queue_rank
from annotate.store.engine import StoreBase, insert_rows
from annotate.store.errors import StoreError
from annotate.store.policy import WorkPolicy, load_policy
from annotate.store.slots import CHECK_LANE, RANDOM_LANE, add_slot, lock_task
from annotate.tables import AssignmentRow, PickRow, TaskCandidateRow, TaskKeyRow, TaskRow

CHECK_KINDS = ("gold", "qualification", "repeat")
KEYED_KINDS = ("gold", "qualification")
_MINE = aliased(AssignmentRow)


@dataclass(frozen=True)
class Qualification:
    """How an annotator stands against the qualification set."""

    answered: int
    required: int
    """0 where the studio asks for none."""
    correct: int
    passed: bool

    @property
    def complete(self) -> bool:
        return self.answered >= self.required


@dataclass(frozen=True)
class KeyedAnswers:
    """An annotator's answers to gold tasks."""

    user_id: int
    answered: int
    correct: int


class CheckStore(StoreBase):
    """The part of a store that tests its annotators."""

    def set_key(self, task_id: str, best: Collection[str], worst: Collection[str] = ()) -> None:
        """Say which answers to a gold or qualification task are right, in place of an older key.

        Args:
            best: candidates of which one must be named the best; none accepts any.
            worst: likewise for the worst.

        Raises:
            StoreError: the task is of another kind, does not show a candidate, or no key is given.
        """
        if not best and not worst:
            raise StoreError("a key names at least one candidate")
        with self._write() as session:
            task = lock_task(session, task_id)
            if task.kind not in KEYED_KINDS:
                raise StoreError(
                    f"task {task_id} is {task.kind}; a key is for {' or '.join(KEYED_KINDS)}"
                )
            query = select(TaskCandidateRow.candidate_id, TaskCandidateRow.ordinal)
            ordinals = dict(session.execute(query.where(TaskCandidateRow.task_id == task_id)).all())
            if unknown := {*best, *worst} - ordinals.keys():
                raise StoreError(f"task {task_id} does not show {min(unknown)!r}")
            for row in session.scalars(select(TaskKeyRow).where(TaskKeyRow.task_id == task_id)):
                session.delete(row)
            session.flush()
            for role, ids in (("win", best), ("lose", worst)):
                session.add_all(
                    TaskKeyRow(task_id=task_id, ordinal=ordinals[name], role=role)
                    for name in set(ids)
                )

    def count_keyless(self) -> int:
        """Gold and qualification tasks that have no key, and so are shown to nobody."""
        query = (
            select(func.count())
            .select_from(TaskRow)
            .where(TaskRow.kind.in_(KEYED_KINDS), ~TaskRow.id.in_(select(TaskKeyRow.task_id)))
        )
        with self._read() as session:
            return session.scalar(query) or 0

    def qualification(self, user_id: int) -> Qualification:
        """How this annotator stands, for the page that tells them."""
        with self._read() as session:
            return self._qualification(session, user_id, load_policy(session))

    def keyed_answers(self, kind: str = "gold") -> list[KeyedAnswers]:
        """Every annotator's answers to the tasks of a kind that has keys."""
        with self._read() as session:
            return _keyed_answers(session, kind)

    def _qualification(self, session: Session, user_id: int, policy: WorkPolicy) -> Qualification:
        found = _keyed_answers(session, "qualification", user_id)
        answered, correct = (found[0].answered, found[0].correct) if found else (0, 0)
        required = policy.qualification_tasks
        enough = correct >= policy.qualification_accuracy * answered
        return Qualification(answered, required, correct, answered >= required and enough)

    def _unseen_check(self, session: Session, user_id: int, kind: str) -> str | None:
        """The id of a keyed task that this user has not seen; None when there is none left."""
        return session.scalar(
            select(TaskRow.id)
            .where(
                TaskRow.id.in_(select(TaskKeyRow.task_id)),
                TaskRow.kind == kind,
                TaskRow.closed_at.is_(None),
                ~exists().where(_MINE.task_id == TaskRow.id, _MINE.annotator_id == user_id),
            )
            .order_by(TaskRow.id)
            .limit(1)
        )

    def _unseen_repeat(self, session: Session, user_id: int, gap: int) -> str | None:
        """The id of a task that shows again what this user picked from ``gap`` answers ago."""
        recent = (
            select(PickRow.id)
            .where(PickRow.annotator_id == user_id)
            .order_by(PickRow.id.desc())
            .offset(gap - 1)
            .limit(1)
            .scalar_subquery()
        )
        repeat = aliased(TaskRow)
        original = session.scalar(
            select(TaskRow.id)
            .join(PickRow, PickRow.task_id == TaskRow.id)
            .where(
                PickRow.annotator_id == user_id,
                PickRow.status == "current",
                PickRow.outcome == "picked",
                PickRow.id <= recent,
                TaskRow.kind.not_in(CHECK_KINDS),
                ~exists()
                .where(repeat.repeats_id == TaskRow.id, _MINE.task_id == repeat.id)
                .where(_MINE.annotator_id == user_id),
            )
            .order_by(TaskRow.id)
            .limit(1)
        )
        return None if original is None else _repeat_of(session, original)

    def _lease_new(
        self, session: Session, task_id: str, user_id: int, until: datetime, now: datetime
    ) -> int:
        """Lease a slot of this user's own of a check."""
        task = lock_task(session, task_id)
        slot = add_slot(
            session,
            task,
            lane=RANDOM_LANE if task.kind == "qualification" else CHECK_LANE,
            rank=queue_rank(task.id),
            state="leased",
            annotator_id=user_id,
            attempt=1,
            lease_until=until,
            opened_at=now,
            display_order=display_order(self._secret, task.id, user_id, task.n_candidates),
        )
        return slot.id


def _repeat_of(session: Session, original_id: str) -> str:
    """The id of the task that shows the same candidates again; made where needed."""
    original = lock_task(session, original_id)
    task_id = keyed_digest(b"task", "repeat", original.id).hex()[:32]
    if session.get(TaskRow, task_id) is None:
        copied = ("prompt_id", "question", "n_candidates", "reference")
        session.add(
            TaskRow(
                id=task_id,
                kind="repeat",
                k_required=0,
                repeats_id=original.id,
                created_at=original.created_at,
                **{name: getattr(original, name) for name in copied},
            )
        )
        session.flush()
        shown = session.scalars(
            select(TaskCandidateRow).where(TaskCandidateRow.task_id == original.id)
        )
        rows = [
            {
                "task_id": task_id,
                "ordinal": row.ordinal,
                "candidate_id": row.candidate_id,
                "prompt_id": row.prompt_id,
            }
            for row in shown
        ]
        insert_rows(session, TaskCandidateRow, rows)
    return task_id


def _keyed_answers(session: Session, kind: str, user_id: int | None = None) -> list[KeyedAnswers]:
    """Answers to keyed tasks; one is right when its best and its worst are in the key."""
    query = (
        select(PickRow.annotator_id, PickRow.task_id, PickRow.win, PickRow.lose)
        .join(TaskRow, TaskRow.id == PickRow.task_id)
        .where(
            PickRow.task_id.in_(select(TaskKeyRow.task_id)),
            TaskRow.kind == kind,
            PickRow.status == "current",
            PickRow.outcome != "skip",
        )
    )
    if user_id is not None:
        query = query.where(PickRow.annotator_id == user_id)
    keys: dict[tuple[str, str], set[int]] = {}
    for row in session.scalars(
        select(TaskKeyRow)
        .join(TaskRow, TaskRow.id == TaskKeyRow.task_id)
        .where(TaskRow.kind == kind)
    ):
        keys.setdefault((row.task_id, row.role), set()).add(row.ordinal)
    counted: dict[int, list[bool]] = {}
    for annotator_id, task_id, win, lose in session.execute(query):
        wanted = keys.get((task_id, "win")), keys.get((task_id, "lose"))
        right = all(
            accepted is None or given in accepted
            for accepted, given in zip(wanted, (win, lose), strict=True)
        )
        counted.setdefault(annotator_id, []).append(right)
    return [
        KeyedAnswers(annotator_id, len(right), sum(right))
        for annotator_id, right in sorted(counted.items())
    ]
