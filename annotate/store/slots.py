"""The slots of a task: closed by an answer, replaced after a skip, added after disagreement."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.schema import Outcome
from annotate.store.engine import StoreBase
from annotate.store.errors import ConflictError
from annotate.tables import AssignmentRow, PickRow, TaskRow

LIVE = ("open", "leased", "done")
RANDOM_LANE, CHECK_LANE = 1, 2
"""Of `annotate.tables.AssignmentRow.lane`."""


def lock_task(session: Session, task_id: str) -> TaskRow:
    """The task's row, locked: under it slots are numbered and a task is closed.

    Slots are always locked before their task, in the order of their ids.
    """
    return session.get_one(TaskRow, task_id, with_for_update={"key_share": True})


def add_slot(session: Session, task: TaskRow, **values) -> AssignmentRow:
    """A further open slot of a locked task; by default where its last one stands in the queue."""
    last = session.scalars(
        select(AssignmentRow)
        .where(AssignmentRow.task_id == task.id)
        .order_by(AssignmentRow.slot.desc())
        .limit(1)
    ).first()
    place = {"rank": last.rank, "lane": last.lane} if last else {}
    row = AssignmentRow(
        **{"state": "open", "attempt": 0, "task_id": task.id, "lane": 1, "is_extra": False}
        | place
        | values,
        slot=last.slot + 1 if last else 1,
    )
    session.add(row)
    session.flush()
    return row


def disagree(picks: list[PickRow]) -> bool:
    """Whether fewer than two in three gave the commonest outcome, or best, or worst."""

    def scattered(answers: list) -> bool:
        top = max(Counter(answers).values())
        return 3 * top < 2 * len(answers)

    if len(picks) < 2:
        return False
    picked = [pick for pick in picks if pick.outcome == Outcome.PICKED]
    if scattered([pick.outcome for pick in picks]):
        return True
    return len(picked) > 1 and (
        scattered([pick.win for pick in picked]) or scattered([pick.lose for pick in picked])
    )


class SlotStore(StoreBase):
    """The part of a store that keeps every task at its number of slots."""

    def _settle_slot(
        self, session: Session, slot: AssignmentRow, user_id: int, outcome: Outcome
    ) -> str:
        """Close the slot for this user if it can be theirs; the status their pick then has."""
        if slot.annotator_id == user_id and slot.state in ("done", "skipped"):
            raise ConflictError(
                "this task is answered already; undo first to change the answer", code="answered"
            )
        if slot.annotator_id != user_id:
            elsewhere = session.scalar(
                select(AssignmentRow.id).where(
                    AssignmentRow.task_id == slot.task_id, AssignmentRow.annotator_id == user_id
                )
            )
            if slot.state != "open" or elsewhere is not None:
                return "void"
        slot.annotator_id = user_id
        slot.lease_until = None
        slot.state = "skipped" if outcome == Outcome.SKIP else "done"
        if outcome == Outcome.SKIP:
            self._open_replacement(session, slot)
        return "current"

    def _open_replacement(self, session: Session, slot: AssignmentRow) -> None:
        """A skipped slot is no answer: another annotator gets the task in its stead."""
        session.flush()
        replacement = session.scalar(
            select(AssignmentRow).where(AssignmentRow.replaces_id == slot.id)
        )
        task = lock_task(session, slot.task_id)
        # A closed task wants no more answers, and a check has a slot for each who is given it.
        if task.closed_at is not None or task.k_required == 0:
            return
        if replacement is not None:
            replacement.state = "open"
            return
        add_slot(
            session,
            task,
            rank=slot.rank,
            lane=slot.lane,
            is_extra=slot.is_extra,
            replaces_id=slot.id,
        )

    def _withdraw_replacement(self, session: Session, slot: AssignmentRow) -> None:
        replacement = session.scalar(
            select(AssignmentRow).where(AssignmentRow.replaces_id == slot.id).with_for_update()
        )
        if replacement is None:
            return
        if replacement.state != "open":
            raise ConflictError(
                "the last answer was a skip, and another annotator has taken that task since",
                code="skip_taken",
            )
        replacement.state = "void"

    def _settle_extra(self, session: Session, task_id: str, max_extra: int) -> None:
        """Ask one more annotator when all have answered and do not agree."""
        task = lock_task(session, task_id)
        if task.closed_at is not None or task.k_required == 0:
            return
        session.flush()
        slots = session.scalars(
            select(AssignmentRow)
            .where(AssignmentRow.task_id == task_id, AssignmentRow.state.in_(LIVE))
            .execution_options(populate_existing=True)
        ).all()
        if any(slot.state != "done" for slot in slots):
            return
        picks = session.scalars(
            select(PickRow).where(PickRow.task_id == task_id, PickRow.status == "current")
        ).all()
        answers = [pick for pick in picks if pick.outcome != Outcome.SKIP]
        extras = sum(slot.is_extra for slot in slots)
        if extras < max_extra and disagree(answers):
            add_slot(session, task, is_extra=True)

    def _withdraw_extra(self, session: Session, task_id: str) -> None:
        """An answer was taken back: whether they disagree is open again."""
        unasked = session.scalars(
            select(AssignmentRow)
            .where(
                AssignmentRow.task_id == task_id,
                AssignmentRow.is_extra,
                AssignmentRow.state == "open",
                AssignmentRow.replaces_id.is_(None),
            )
            .order_by(AssignmentRow.id)
            .with_for_update()
        )
        for slot in unasked:
            slot.state = "void"

    def _count_slots(self, session: Session, user_id: int, *states: str) -> int:
        return session.scalars(
            select(func.count())
            .select_from(AssignmentRow)
            .where(AssignmentRow.annotator_id == user_id, AssignmentRow.state.in_(states))
        ).one()
