"""Taking a review back: its row stays, an event of the audit trail says that it no longer holds.

The event that recorded the review says what it did to its task, so that exactly that is undone.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, String, cast, exists, func, literal, select
from sqlalchemy.orm import Session

from annotate.store.audit import append_event
from annotate.store.engine import StoreBase
from annotate.store.errors import ConflictError, NotFoundError
from annotate.store.slots import lock_task
from annotate.tables import AssignmentRow, AuditRow, ReviewRow, SnapshotRow, TaskRow, UserRow

WITHDRAWN = "review_withdrawn"


def holds() -> ColumnElement[bool]:
    """Whether a row of `ReviewRow` was not taken back; for WHERE."""
    subject = literal("review:") + cast(ReviewRow.id, String)
    return ~exists().where(AuditRow.subject == subject, AuditRow.action == WITHDRAWN)


class WithdrawalStore(StoreBase):
    """The part of a store that takes reviews back."""

    def withdraw_review(self, reviewer_id: int, review_id: int, now: datetime | None = None) -> str:
        """Take one's own newest review of a task back; the task's id.

        The task is as it was before: open or closed, with the slots that the review withdrew, and
        without the one that it added.

        Raises:
            NotFoundError: no such review of this reviewer.
            ConflictError: it was taken back already, the task was reviewed again or answered since,
                or a snapshot may hold the review.
        """
        now = now or datetime.now(UTC)
        with self._write() as session:
            session.get_one(UserRow, reviewer_id, with_for_update={"key_share": True})
            review = session.get(ReviewRow, review_id)
            if review is None or review.reviewer_id != reviewer_id:
                raise NotFoundError(f"you have given no review {review_id}")
            slots = session.scalars(
                select(AssignmentRow)
                .where(AssignmentRow.task_id == review.task_id)
                .order_by(AssignmentRow.id)
                .with_for_update()
            ).all()
            task = lock_task(session, review.task_id)
            _refuse_what_counts_already(session, review)
            done = _effects(session, review_id)
            _restore(task, {slot.id: slot for slot in slots}, done)
            facts = {"task": task.id, "decision": review.decision}
            append_event(session, reviewer_id, WITHDRAWN, f"review:{review_id}", facts, now)
            return task.id


def _refuse_what_counts_already(session: Session, review: ReviewRow) -> None:
    newest = select(func.max(ReviewRow.id)).where(ReviewRow.task_id == review.task_id, holds())
    if session.scalar(newest) != review.id:
        raise ConflictError(
            f"review {review.id} does not hold any more: it was taken back, or the task was "
            "reviewed again"
        )
    if session.scalar(select(exists().where(SnapshotRow.created_at > review.created_at))):
        raise ConflictError("a snapshot was cut since; review the task again instead")


def _effects(session: Session, review_id: int) -> dict[str, Any]:
    query = select(AuditRow.detail).where(
        AuditRow.subject == f"review:{review_id}", AuditRow.action == "review"
    )
    effects = json.loads(session.scalar(query) or "{}").get("effects")
    if effects is None:
        raise ConflictError("an earlier version gave this review; review the task again instead")
    return effects


def _restore(task: TaskRow, slots: dict[int, AssignmentRow], done: dict[str, Any]) -> None:
    if done["added"] is not None:
        added = slots[done["added"]]
        if added.state != "open":
            raise ConflictError("somebody has taken the returned task since")
        added.state = "void"
        task.k_required -= 1
    for slot_id in done["voided"]:
        slots[slot_id].state = "open"
    closed = done["closed_before"]
    task.closed_at = None if closed is None else datetime.fromisoformat(closed)
