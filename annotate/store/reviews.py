"""Review: which tasks their annotators disagree on, and a reviewer's word on them.

A review never touches a pick. It stands beside them, closes its task, and decides what a snapshot
takes from it, until its reviewer takes it back (`annotate.store.withdrawals`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from typing import Any

from pydantic import Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from annotate.schema import Outcome, Question
from annotate.store.audit import append_event
from annotate.store.checks import CHECK_KINDS
from annotate.store.errors import NotFoundError, StoreError
from annotate.store.models import ROLE_LEVEL, Sent
from annotate.store.slots import add_slot, lock_task
from annotate.store.withdrawals import WithdrawalStore, holds
from annotate.tables import (
    CAUSES,
    DECISIONS,
    AssignmentRow,
    PickRow,
    PromptRow,
    ReviewRow,
    TaskCandidateRow,
    TaskRow,
    UserRow,
)


class Verdict(Sent):
    """A reviewer's word on one task."""

    decision: str
    """``confirm`` the answers as they are, ``override`` them, ``discard`` the task, or ``return``
    it to one more annotator."""
    cause: str = "other"
    """Why they disagreed; one of `annotate.tables.CAUSES`."""
    outcome: Outcome | None = None
    """For ``override`` alone."""
    win_id: str | None = None
    lose_id: str | None = None
    note: str = Field(default="", max_length=2000)


@dataclass(frozen=True)
class GivenAnswer:
    """One current answer to a disputed task."""

    annotator: str
    """The account's name: for reviewers, never for a snapshot."""
    outcome: Outcome
    win_id: str | None
    lose_id: str | None
    note: str
    active_ms: int | None


@dataclass(frozen=True)
class Dispute:
    """A task on which annotators disagree, or that one has flagged."""

    task_id: str
    question: Question
    prompt: str
    candidate_ids: tuple[str, ...]
    """In canonical order."""
    answers: tuple[GivenAnswer, ...]
    agreement: float
    """Mean, over every two answers, of what they share of outcome, best and worst; 0 to 1."""
    leverage: int
    """Tasks of the same prompt: a pick weighs more where its prompt has few others."""


MAX_CONSIDERED = 2_000
"""Tasks that the queue of disputes looks at: those last answered, of each kind of dispute."""


class ReviewStore(WithdrawalStore):
    """The part of a store that reviewers work with."""

    def review(
        self, reviewer_id: int, task_id: str, verdict: Verdict, now: datetime | None = None
    ) -> int:
        """Put a reviewer's word beside the answers to a task; the review's number.

        Every decision but ``return`` closes the task: its open slots are withdrawn, and no answer
        is taken back any more. The newest review of a task holds.

        Raises:
            StoreError: the user is no reviewer, or the verdict does not fit the task.
        """
        now = now or datetime.now(UTC)
        with self._write() as session:
            _require_reviewer(session, reviewer_id)
            # Slots before the task, as everywhere.
            open_slots = session.scalars(
                select(AssignmentRow)
                .where(AssignmentRow.task_id == task_id, AssignmentRow.state == "open")
                .order_by(AssignmentRow.id)
                .with_for_update()
            ).all()
            if session.get(TaskRow, task_id) is None:
                raise NotFoundError(f"there is no task {task_id!r}")
            task = lock_task(session, task_id)
            row = _review_row(session, task, reviewer_id, verdict, now)
            session.add(row)
            session.flush()
            effects = _apply(session, task, verdict.decision, open_slots, now)
            facts = {**verdict.model_dump(mode="json"), "task": task_id, "effects": effects}
            append_event(session, reviewer_id, "review", f"review:{row.id}", facts, now)
            return row.id

    def disputes(self, limit: int = 50, threshold: float = 0.67) -> list[Dispute]:
        """Tasks that wait for a reviewer: lowest agreement first, then highest leverage.

        They are those that nobody has closed, where all slots are answered and two or more answers
        agree less than ``threshold``, or where somebody has flagged something; of the last
        `MAX_CONSIDERED` of each.
        """
        pending = aliased(AssignmentRow)
        several = (
            select(PickRow.task_id)
            .join(TaskRow, TaskRow.id == PickRow.task_id)
            .where(
                PickRow.status == "current",
                PickRow.outcome != Outcome.SKIP,
                TaskRow.closed_at.is_(None),
                TaskRow.kind.not_in(CHECK_KINDS),
                ~select(pending.id)
                .where(pending.task_id == TaskRow.id, pending.state.in_(["open", "leased"]))
                .exists(),
            )
            .group_by(PickRow.task_id)
            .having(
                (func.count(func.distinct(PickRow.outcome)) > 1)
                | (func.count(func.distinct(PickRow.win)) > 1)
                | (func.count(func.distinct(PickRow.lose)) > 1)
            )
            .order_by(func.max(PickRow.id).desc())
            .limit(MAX_CONSIDERED)
            .subquery()
        )
        flagged = (
            select(PickRow.task_id)
            .join(TaskRow, TaskRow.id == PickRow.task_id)
            .where(
                PickRow.status == "current",
                PickRow.outcome == Outcome.FLAG,
                TaskRow.closed_at.is_(None),
                TaskRow.kind.not_in(CHECK_KINDS),
            )
            .order_by(PickRow.id.desc())
            .limit(MAX_CONSIDERED)
            .subquery()
        )
        with self._read() as session:
            wanted = select(several.c.task_id).union(select(flagged.c.task_id)).subquery()
            given = _answers_to(session, select(wanted.c.task_id))
            found = [
                (_agreement(rows), task_id, rows)
                for task_id, rows in given.items()
                if _agreement(rows) < threshold
                or any(row.outcome == Outcome.FLAG for row, _ in rows)
            ]
            siblings = _siblings(session, [task_id for _, task_id, _ in found])
            found.sort(key=lambda item: (item[0], siblings[item[1]], item[1]))
            return [
                _dispute(session, task_id, rows, agreement, siblings[task_id])
                for agreement, task_id, rows in found[:limit]
            ]

    def reviews(self, task_id: str | None = None) -> list[dict[str, object]]:
        """Every review, or those of one task, newest first: for tables and CSV."""
        query = (
            select(ReviewRow, UserRow.name, holds())
            .join(UserRow, UserRow.id == ReviewRow.reviewer_id)
            .order_by(ReviewRow.id.desc())
        )
        if task_id is not None:
            query = query.where(ReviewRow.task_id == task_id)
        with self._read() as session:
            return [
                {
                    "number": row.id,
                    "task": row.task_id,
                    "reviewer": name,
                    "decision": row.decision,
                    "outcome": row.outcome,
                    "cause": row.cause,
                    "note": row.note,
                    "at": row.created_at.isoformat(timespec="seconds"),
                    "taken back": not stands,
                }
                for row, name, stands in session.execute(query)
            ]


def _apply(
    session: Session,
    task: TaskRow,
    decision: str,
    open_slots: Sequence[AssignmentRow],
    now: datetime,
) -> dict[str, Any]:
    """Do to the task what the decision says; what was done, for `annotate.store.withdrawals`."""
    before = task.closed_at
    voided, added = [], None
    if decision == "return":
        task.closed_at = None
        task.k_required += 1
        added = add_slot(session, task).id
    else:
        task.closed_at = now
        for slot in open_slots:
            slot.state = "void"
            voided.append(slot.id)
    closed = None if before is None else before.isoformat()
    return {"voided": voided, "added": added, "closed_before": closed}


def _require_reviewer(session: Session, user_id: int) -> None:
    user = session.get(UserRow, user_id, with_for_update={"key_share": True})
    if user is None or not user.is_active or ROLE_LEVEL[user.role] < ROLE_LEVEL["reviewer"]:
        raise StoreError("a review takes an active reviewer, lead, engineer or admin")


def _review_row(
    session: Session, task: TaskRow, reviewer_id: int, verdict: Verdict, now: datetime
) -> ReviewRow:
    if task.kind in CHECK_KINDS:
        raise StoreError(f"task {task.id} is a check ({task.kind}); those are not reviewed")
    for name, value, choices in (
        ("decision", verdict.decision, DECISIONS), ("cause", verdict.cause, CAUSES)
    ):  # fmt: skip
        if value not in choices:
            raise StoreError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
    named = (verdict.win_id, verdict.lose_id)
    if verdict.decision != "override" and (verdict.outcome or named != (None, None)):
        raise StoreError(f"decision {verdict.decision!r} takes no answer; to give one, override")
    if verdict.decision == "override" and verdict.outcome is None:
        raise StoreError("to override, give an outcome")
    if (verdict.outcome == Outcome.PICKED) != (None not in named):
        raise StoreError("outcome 'picked' takes win_id and lose_id, any other outcome neither")
    query = select(TaskCandidateRow.candidate_id, TaskCandidateRow.ordinal)
    ordinals = dict(session.execute(query.where(TaskCandidateRow.task_id == task.id)).all())
    for candidate_id in named:
        if candidate_id is not None and candidate_id not in ordinals:
            raise StoreError(f"task {task.id} does not show candidate {candidate_id!r}")
    if named[0] is not None and named[0] == named[1]:
        raise StoreError(f"win and lose are the same candidate, {named[0]!r}")
    return ReviewRow(
        task_id=task.id,
        reviewer_id=reviewer_id,
        decision=verdict.decision,
        outcome=verdict.outcome.value if verdict.outcome else None,
        win=None if named[0] is None else ordinals[named[0]],
        lose=None if named[1] is None else ordinals[named[1]],
        cause=verdict.cause,
        note=verdict.note,
        created_at=now,
    )


Rows = list[tuple[PickRow, str]]


def _answers_to(session: Session, task_ids) -> Mapping[str, Rows]:
    """Each task's current answers, with the names of those who gave them."""
    query = (
        select(PickRow, UserRow.name)
        .join(UserRow, UserRow.id == PickRow.annotator_id)
        .where(
            PickRow.task_id.in_(task_ids),
            PickRow.status == "current",
            PickRow.outcome != Outcome.SKIP,
        )
        .order_by(PickRow.id)
    )
    given: dict[str, Rows] = defaultdict(list)
    for row, name in session.execute(query):
        given[row.task_id].append((row, name))
    return given


def _agreement(rows: Rows) -> float:
    shares = []
    for (a, _), (b, _) in combinations(rows, 2):
        if a.outcome != b.outcome:
            shares.append(0.0)
        elif a.outcome == Outcome.PICKED:
            shares.append((1 + (a.win == b.win) + (a.lose == b.lose)) / 3)
        else:
            shares.append(1.0)
    return sum(shares) / len(shares) if shares else 1.0


def _siblings(session: Session, task_ids: list[str]) -> Counter[str]:
    """How many tasks the prompt of each of these tasks has."""
    other = aliased(TaskRow)
    query = (
        select(TaskRow.id, func.count())
        .join(other, other.prompt_id == TaskRow.prompt_id)
        .where(TaskRow.id.in_(task_ids))
        .group_by(TaskRow.id)
    )
    return Counter(dict(session.execute(query).all()))


def _dispute(
    session: Session, task_id: str, rows: Rows, agreement: float, leverage: int
) -> Dispute:
    task = session.get_one(TaskRow, task_id)
    ids = tuple(
        session.scalars(
            select(TaskCandidateRow.candidate_id)
            .where(TaskCandidateRow.task_id == task_id)
            .order_by(TaskCandidateRow.ordinal)
        )
    )
    answers = tuple(
        GivenAnswer(
            annotator=name,
            outcome=Outcome(row.outcome),
            win_id=None if row.win is None else ids[row.win],
            lose_id=None if row.lose is None else ids[row.lose],
            note=row.note,
            active_ms=row.active_ms,
        )
        for row, name in rows
    )
    prompt = session.get_one(PromptRow, task.prompt_id).text
    return Dispute(task_id, Question(task.question), prompt, ids, answers, agreement, leverage)
