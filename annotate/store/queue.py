"""Which slot an annotator gets next: from the queue, or one of the checks hidden in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product

from sqlalchemy import ColumnElement, Select, TextClause, exists, or_, select, text, update
from sqlalchemy.orm import Session, aliased

from annotate.assignment import display_order, keyed_digest
from annotate.store.checks import CheckStore, Qualification
from annotate.store.policy import WorkPolicy, load_policy
from annotate.store.slots import CHECK_LANE, RANDOM_LANE, SlotStore
from annotate.tables import AssignmentRow, NextTaskRow, TaskRow, UserRow

LEASE = timedelta(minutes=15)

# Written as text so that both planners see the predicate of the partial index.
IN_QUEUE = text("assignment.state IN ('open', 'leased')")
_MINE = aliased(AssignmentRow)


@dataclass(frozen=True)
class Choice:
    """What a user is given next."""

    task_id: str
    assignment_id: int | None
    """A slot of the queue; None for a check, whose slot is made when it is leased."""


class QueueStore(CheckStore, SlotStore):
    """The part of a store that chooses what to hand out."""

    lease: timedelta = LEASE

    def _take_next(self, session: Session, user_id: int, now: datetime) -> int | None:
        """Lease what this user gets next: what they were shown ahead where that still can be,
        else what the policy says; the slot's id, or None."""
        policy = load_policy(session)
        given = self._count_slots(session, user_id, "done", "skipped")
        ahead = self._pop_ahead(session, user_id)
        if policy.annotator_cap and given >= policy.annotator_cap:
            return None
        if (state := self._pending_qualification(session, user_id, policy)) is not None:
            task_id = self._unseen_check(session, user_id, "qualification")
            if state.complete or task_id is None:
                return None
            return self._lease_new(session, task_id, user_id, now + self.lease, now)
        choice = ahead or self._choose(session, user_id, given, now)
        while choice is not None:
            leased = self._lease(session, user_id, choice, now)
            if leased is not None:
                return leased
            choice = self._choose(session, user_id, given, now)
        return None

    def _look_ahead(self, session: Session, user_id: int, now: datetime) -> str | None:
        """Settle which task this user gets after the one in hand; its id, or None.

        A hidden check is settled as any other task is, so that neither what was loaded ahead nor
        how fast a task appears tells it.
        """
        policy = load_policy(session)
        ahead = self._pop_ahead(session, user_id)
        given = self._count_slots(session, user_id, "done", "skipped", "leased")
        if policy.annotator_cap and given >= policy.annotator_cap:
            return None
        if self._pending_qualification(session, user_id, policy) is not None:
            return None  # the answer in hand decides what comes
        if ahead is None or not self._is_free_for(session, user_id, ahead, now):
            ahead = self._choose(session, user_id, given, now)
        if ahead is not None:
            values = {"task_id": ahead.task_id, "assignment_id": ahead.assignment_id}
            session.add(NextTaskRow(user_id=user_id, until=now + self.lease, **values))
        return ahead and ahead.task_id

    def _pop_ahead(self, session: Session, user_id: int) -> Choice | None:
        row = session.get(NextTaskRow, user_id)
        if row is None:
            return None
        session.delete(row)
        session.flush()
        return Choice(row.task_id, row.assignment_id)

    def _choose(self, session: Session, user_id: int, given: int, now: datetime) -> Choice | None:
        """What the policy gives a user who has had ``given`` tasks."""
        policy = load_policy(session)
        draw = self._draw(user_id, given, "check")
        check = None
        if draw < policy.gold_rate:
            check = self._unseen_check(session, user_id, "gold")
        elif draw < policy.gold_rate + policy.repeat_rate:
            check = self._unseen_repeat(session, user_id, policy.repeat_gap)
        if check is not None:
            return Choice(check, None)
        by_chance = self._draw(user_id, given, "lane") < policy.random_share
        lanes = (RANDOM_LANE, None) if by_chance else (None,)
        # What others were shown ahead is left to them, but nobody goes without for it.
        for spared, lane in product((True, False), lanes):
            query = _next_free(user_id, now, lane, spared)
            found = session.execute(query.with_for_update(of=AssignmentRow, skip_locked=True))
            if (row := found.first()) is not None:
                return Choice(row.task_id, row.id)
        return None

    def _lease(self, session: Session, user_id: int, choice: Choice, now: datetime) -> int | None:
        """The slot's id; None where somebody else, or this user, has had it meanwhile."""
        if choice.assignment_id is None:
            if not self._is_free_for(session, user_id, choice, now):
                return None
            return self._lease_new(session, choice.task_id, user_id, now + self.lease, now)
        task = session.get_one(TaskRow, choice.task_id)
        return session.scalar(
            update(AssignmentRow)
            # The predicate again: the row may have changed between the choice and this write.
            .where(AssignmentRow.id == choice.assignment_id, *_may_have(user_id, now))
            .values(
                state="leased",
                annotator_id=user_id,
                attempt=AssignmentRow.attempt + 1,
                lease_until=now + self.lease,
                opened_at=now,
                display_order=display_order(self._secret, task.id, user_id, task.n_candidates),
            )
            .returning(AssignmentRow.id)
            .execution_options(synchronize_session=False)
        )

    def _is_free_for(self, session: Session, user_id: int, choice: Choice, now: datetime) -> bool:
        if choice.assignment_id is None:
            query = select(TaskRow.id).where(
                TaskRow.id == choice.task_id,
                TaskRow.closed_at.is_(None),
                ~exists().where(_MINE.task_id == TaskRow.id, _MINE.annotator_id == user_id),
            )
        else:
            query = select(AssignmentRow.id).where(
                AssignmentRow.id == choice.assignment_id, *_may_have(user_id, now)
            )
        return session.scalar(query) is not None

    def _pending_qualification(
        self, session: Session, user_id: int, policy: WorkPolicy
    ) -> Qualification | None:
        """How the user stands against a qualification set that is still between them and work."""
        user = session.get_one(UserRow, user_id)
        if not policy.qualification_tasks or user.role != "annotator":
            return None
        state = self._qualification(session, user_id, policy)
        return None if state.passed else state

    def _draw(self, user_id: int, given: int, what: str) -> float:
        """In [0, 1): for the studio reproducible, for annotators not to be foreseen."""
        digest = keyed_digest(self._secret, "draw", what, user_id, given)
        return int.from_bytes(digest[:6], "big") / 2**48


def _next_free(user_id: int, now: datetime, lane: int | None, spared: bool) -> Select[int, str]:
    """(slot, task) of the first slot of the queue that this user may have.

    Args:
        spared: leave out what others were shown ahead.
    """
    query = (
        select(AssignmentRow.id, AssignmentRow.task_id)
        .where(*_may_have(user_id, now))
        .order_by(AssignmentRow.lane, AssignmentRow.rank, AssignmentRow.id)
        .limit(1)
    )
    if spared:
        promised = exists().where(
            NextTaskRow.assignment_id == AssignmentRow.id,
            NextTaskRow.user_id != user_id,
            NextTaskRow.until > now,
        )
        query = query.where(~promised)
    # Hidden checks are in no queue, whatever becomes of their lease.
    wanted = AssignmentRow.lane < CHECK_LANE if lane is None else AssignmentRow.lane == lane
    return query.where(wanted)


def _may_have(user_id: int, now: datetime) -> tuple[ColumnElement[bool] | TextClause, ...]:
    """The slot is open or its lease is over, and the user has no other slot of its task."""
    return (
        IN_QUEUE,
        or_(AssignmentRow.state == "open", AssignmentRow.lease_until < now),
        ~exists().where(_MINE.task_id == AssignmentRow.task_id, _MINE.annotator_id == user_id),
    )
