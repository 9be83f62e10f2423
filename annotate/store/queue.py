"""Which slot an annotator gets next: from the queue, or one of the checks hidden in it."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, exists, or_, select, text, update
from sqlalchemy.orm import Session, aliased

from annotate.assignment import display_order, keyed_digest
from annotate.store.checks import CheckStore
from annotate.store.policy import load_policy
from annotate.store.slots import SlotStore
from annotate.tables import AssignmentRow, TaskRow, UserRow

LEASE = timedelta(minutes=15)
RANDOM_LANE = 1

# Written as text so that both planners see the predicate of the partial index.
IN_QUEUE = text("assignment.state IN ('open', 'leased')")
_MINE = aliased(AssignmentRow)


class QueueStore(CheckStore, SlotStore):
    """The part of a store that chooses what to hand out."""

    lease: timedelta = LEASE

    def _next_free(
        self, user_id: int, now: datetime, lane: int | None = None
    ) -> Select[int, str, int]:
        """(slot, task, candidates shown) of the first slot that this user may have."""
        query = (
            select(AssignmentRow.id, AssignmentRow.task_id, TaskRow.n_candidates)
            .join(TaskRow, TaskRow.id == AssignmentRow.task_id)
            .where(
                IN_QUEUE,
                _is_free(now),
                ~exists().where(
                    _MINE.task_id == AssignmentRow.task_id, _MINE.annotator_id == user_id
                ),
            )
            .order_by(AssignmentRow.lane, AssignmentRow.rank, AssignmentRow.id)
            .limit(1)
        )
        return query if lane is None else query.where(AssignmentRow.lane == lane)

    def _take_next(self, session: Session, user_id: int, now: datetime) -> int | None:
        """Lease what the policy gives this user next; the slot's id, or None."""
        policy = load_policy(session)
        user = session.get_one(UserRow, user_id)
        given = self._count_slots(session, user_id, "done", "skipped")
        if policy.annotator_cap and given >= policy.annotator_cap:
            return None
        if policy.qualification_tasks and user.role == "annotator":
            state = self._qualification(session, user_id, policy)
            if not state.passed:
                return None if state.complete else self._lease_check(
                    session, user_id, "qualification", now + self.lease, now
                )  # fmt: skip
        draw = self._draw(user_id, given, "check")
        if draw < policy.gold_rate:
            check = self._lease_check(session, user_id, "gold", now + self.lease, now)
        elif draw < policy.gold_rate + policy.repeat_rate:
            check = self._lease_repeat(session, user_id, policy.repeat_gap, now + self.lease, now)
        else:
            check = None
        if check is not None:
            return check
        if self._draw(user_id, given, "lane") < policy.random_share:
            found = self._take_from_queue(session, user_id, now, RANDOM_LANE)
            if found is not None:
                return found
        return self._take_from_queue(session, user_id, now)

    def _take_from_queue(
        self, session: Session, user_id: int, now: datetime, lane: int | None = None
    ) -> int | None:
        """Lease the first slot of the queue that this user may have; its id, or None."""
        free = _is_free(now)
        next_free = self._next_free(user_id, now, lane).with_for_update(
            of=AssignmentRow, skip_locked=True
        )
        while found := session.execute(next_free).first():
            order = display_order(self._secret, found.task_id, user_id, found.n_candidates)
            taken = session.scalar(
                update(AssignmentRow)
                # The predicate again: the row may have changed between the choice and this write.
                .where(AssignmentRow.id == found.id, IN_QUEUE, free)
                .values(
                    state="leased",
                    annotator_id=user_id,
                    attempt=AssignmentRow.attempt + 1,
                    lease_until=now + self.lease,
                    opened_at=now,
                    display_order=order,
                )
                .returning(AssignmentRow.id)
                .execution_options(synchronize_session=False)
            )
            if taken is not None:
                return taken
        return None

    def _draw(self, user_id: int, given: int, what: str) -> float:
        """In [0, 1): for the studio reproducible, for annotators not to be foreseen."""
        digest = keyed_digest(self._secret, "draw", what, user_id, given)
        return int.from_bytes(digest[:6], "big") / 2**48


def _is_free(now: datetime) -> ColumnElement[bool]:
    return or_(AssignmentRow.state == "open", AssignmentRow.lease_until < now)
