"""An annotator's work: claim a task, keep it, answer it, take the answer back."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import exists, func, select, text, update
from sqlalchemy.orm import Session, aliased

from annotate.assignment import display_order
from annotate.schema import Question
from annotate.store.audit import append_event, pick_facts
from annotate.store.details import (
    NO_DETAILS,
    Details,
    details_of,
    image_sizes,
    load_details,
    save_details,
    withdrawn_answer,
)
from annotate.store.errors import ConflictError, LeaseError, NotFoundError, StoreError
from annotate.store.guidelines import no_version
from annotate.store.leases import LeaseStore
from annotate.store.media import MediaStore
from annotate.store.models import Claim, Progress, StoredPick, Submission
from annotate.store.policy import load_policy
from annotate.store.queue import QueueStore
from annotate.store.results import ResultStore
from annotate.store.slots import CHECK_LANE, lock_task
from annotate.tables import (
    AssignmentRow,
    GuidelineRow,
    PickRow,
    PromptRow,
    TaskRow,
    UserRow,
)

PROGRESS_LIMIT = 1_000
"""Tasks still to do are counted up to here: a studio may have a million."""

_MINE = aliased(AssignmentRow)
_IS_OPEN = text("assignment.state = 'open'")


class WorkStore(LeaseStore, QueueStore, MediaStore, ResultStore):
    """The part of a store that hands tasks out and takes answers in.

    ``now`` is the clock (aware UTC); tests and simulations pass their own.
    """

    def claim(self, user_id: int, now: datetime | None = None) -> Claim | None:
        """The user's next task, or the one in hand; None when nothing is left for this user."""
        now = now or datetime.now(UTC)
        with self._write() as session:
            self._lock_user(session, user_id)
            held = session.scalar(
                select(AssignmentRow)
                .where(AssignmentRow.annotator_id == user_id, AssignmentRow.state == "leased")
                # Without the lock another user could take an expired lease in between.
                .with_for_update()
            )
            assignment_id = held.id if held else self._take_next(session, user_id, now)
            if assignment_id is None:
                return None
            if held:
                held.lease_until = now + self.lease
            shown = self._show(session, assignment_id, user_id)
        return Claim(**shown, progress=self.progress(user_id))

    def heartbeat(
        self, user_id: int, assignment_id: int, lease_token: str, now: datetime | None = None
    ) -> datetime:
        """Prolong a lease; returns its new end. LeaseError when it is gone."""
        now = now or datetime.now(UTC)
        attempt = self._check_lease_token(user_id, assignment_id, lease_token)
        with self._write() as session:
            renewed = session.scalar(
                update(AssignmentRow)
                .where(
                    AssignmentRow.id == assignment_id,
                    AssignmentRow.annotator_id == user_id,
                    AssignmentRow.state == "leased",
                    AssignmentRow.attempt == attempt,
                )
                .values(lease_until=now + self.lease)
                .returning(AssignmentRow.id)
            )
            if renewed is None:
                raise LeaseError("the lease on this task is gone; claim again", code="lease_gone")
        return now + self.lease

    def submit(
        self, user_id: int, submission: Submission, now: datetime | None = None
    ) -> StoredPick:
        """Record an answer; sending the same submission again returns the same pick.

        An answer that comes after its lease was lost takes the slot when that is open again, and
        is otherwise kept with status ``void``: no work is lost, and no slot is filled twice.

        Raises:
            ConflictError: the key was used for another answer, or the task is answered already.
            LeaseError: the lease token was never given to this user for this assignment.
        """
        now = now or datetime.now(UTC)
        self._check_lease_token(user_id, submission.assignment_id, submission.lease_token)
        body = _body_sha256(submission)
        with self._write() as session:
            self._lock_user(session, user_id)
            known = session.scalar(
                select(PickRow).where(
                    PickRow.annotator_id == user_id,
                    PickRow.idempotency_key == submission.idempotency_key,
                )
            )
            if known is not None:
                if known.body_sha256 != body:
                    raise ConflictError(
                        f"idempotency key {submission.idempotency_key!r} was used for another "
                        "answer; a new answer needs a new key",
                        code="key_used",
                    )
                details = load_details(session, [known.id]).get(known.id, NO_DETAILS)
                return self._stored_pick(session, known, details)
            slot = session.scalar(
                select(AssignmentRow)
                .where(AssignmentRow.id == submission.assignment_id)
                .with_for_update()
            )
            if slot is None:
                raise NotFoundError(f"there is no assignment {submission.assignment_id}")
            status = self._settle_slot(session, slot, user_id, submission.outcome)
            version = submission.guideline_version
            if version is not None and session.get(GuidelineRow, version) is None:
                raise no_version(version)
            row, details = self._new_pick(session, slot, user_id, submission, status)
            row.body_sha256 = body
            row.submitted_at = now
            session.add(row)
            session.flush()
            save_details(session, row, details)
            facts = {**pick_facts(row), "status": row.status}
            append_event(session, user_id, "pick", f"pick:{row.id}", facts, now)
            if status == "current" and (extra := load_policy(session).max_extra_slots):
                self._settle_extra(session, slot.task_id, extra)
            return self._stored_pick(session, row, details)

    def undo(self, user_id: int, now: datetime | None = None) -> Claim | None:
        """Take the user's latest answer back and give its task into their hands again.

        The pick stays in the history as ``withdrawn``; the next submit writes a new revision. A
        task that was in hand goes back to the queue. None when there is nothing to take back.

        Raises:
            ConflictError: its task is closed, or the answer was a skip and another annotator has
                taken the task since.
        """
        now = now or datetime.now(UTC)
        with self._write() as session:
            self._lock_user(session, user_id)
            pick = session.scalar(
                select(PickRow)
                .where(PickRow.annotator_id == user_id, PickRow.status == "current")
                .order_by(PickRow.id.desc())
                .limit(1)
            )
            if pick is None:
                return None
            slot = session.get_one(AssignmentRow, pick.assignment_id, with_for_update=True)
            if lock_task(session, slot.task_id).closed_at is not None:
                raise ConflictError(
                    "the task of the last answer is closed: it was reviewed, or is in a snapshot",
                    code="closed",
                )
            self._withdraw_extra(session, slot.task_id)
            if slot.state == "skipped":
                self._withdraw_replacement(session, slot)
            session.execute(
                update(AssignmentRow)
                .where(AssignmentRow.annotator_id == user_id, AssignmentRow.state == "leased")
                .values(state="open", annotator_id=None, lease_until=None)
            )
            pick.status = "withdrawn"
            append_event(session, user_id, "undo", f"pick:{pick.id}", {}, now)
            slot.state = "leased"
            slot.attempt += 1
            slot.lease_until = now + self.lease
            slot.opened_at = now
            session.flush()
            shown = self._show(session, slot.id, user_id)
        return Claim(**shown, progress=self.progress(user_id))

    def progress(self, user_id: int) -> Progress:
        """How far the user is."""
        held = (
            select(AssignmentRow.state, AssignmentRow.lane, func.count())
            .where(AssignmentRow.annotator_id == user_id)
            .group_by(AssignmentRow.state, AssignmentRow.lane)
        )
        held_already = exists().where(
            _MINE.task_id == AssignmentRow.task_id, _MINE.annotator_id == user_id
        )
        open_to_me = select(AssignmentRow.task_id).where(_IS_OPEN, ~held_already).distinct()
        counts: Counter[str] = Counter()
        with self._read() as session:
            for state, lane, count in session.execute(held):
                counts[state] += count
                counts["checks"] += count if lane == CHECK_LANE else 0
            limited = open_to_me.limit(PROGRESS_LIMIT + counts["checks"]).subquery()
            left = session.scalars(select(func.count()).select_from(limited)).one()
        left += counts["leased"]
        # A hidden check was not counted before it came. Were it only added, the step of the two
        # numbers would tell it; so it takes one off what is left, as any other task does.
        unseen = max(left - counts["checks"], min(left, 1))
        return Progress(
            done=counts["done"],
            skipped=counts["skipped"],
            remaining=min(unseen, PROGRESS_LIMIT),
        )

    def _new_pick(
        self,
        session: Session,
        slot: AssignmentRow,
        user_id: int,
        submission: Submission,
        status: str,
    ) -> tuple[PickRow, Details]:
        """The pick's row and details, their positions turned into ordinals."""
        task = session.get_one(TaskRow, slot.task_id)
        shown = task.n_candidates
        order = display_order(self._secret, slot.task_id, user_id, shown)
        win, lose = submission.win_position, submission.lose_position
        if win is not None and lose is not None and max(win, lose) >= shown:
            raise StoreError(f"position {max(win, lose)} was not shown; there are 0 to {shown - 1}")
        if task.reference is not None and win is not None and order[win] != task.reference:
            raise StoreError(
                f"the best is the reference at position {order.index(task.reference)}, got {win}"
            )
        sizes = image_sizes(session, task.id) if submission.regions else []
        details = details_of(submission, order, sizes)
        revisions = session.scalars(
            select(func.coalesce(func.max(PickRow.revision), 0)).where(
                PickRow.task_id == slot.task_id, PickRow.annotator_id == user_id
            )
        ).one()
        row = PickRow(
            idempotency_key=submission.idempotency_key,
            assignment_id=slot.id,
            task_id=slot.task_id,
            annotator_id=user_id,
            revision=revisions + 1,
            status=status,
            outcome=submission.outcome.value,
            win=None if win is None else order[win],
            lose=None if lose is None else order[lose],
            note=submission.note,
            active_ms=submission.active_ms,
            wall_ms=submission.wall_ms,
            first_action_ms=submission.first_action_ms,
            telemetry=submission.telemetry,
            guideline_version=submission.guideline_version,
        )
        return row, details

    def _show(self, session: Session, assignment_id: int, user_id: int) -> dict[str, Any]:
        """What a `Claim` says of a leased slot, all but the progress: that takes no write lock."""
        slot = session.get_one(AssignmentRow, assignment_id, populate_existing=True)
        task = session.get_one(TaskRow, slot.task_id)
        prompt = session.get_one(PromptRow, task.prompt_id)
        sizes = image_sizes(session, task.id)
        order = slot.display_order
        assert order is not None
        reference = task.reference
        return {
            "assignment_id": slot.id,
            "task_id": task.id,
            "lease_token": self._lease_token(user_id, slot.id, slot.attempt),
            "lease_until": slot.lease_until,
            "prompt": prompt.text,
            "lang": prompt.lang,
            "question": Question(task.question),
            "display_order": tuple(order),
            "media": tuple(self._shown_token(user_id, task.id, ordinal) for ordinal in order),
            "sizes": tuple(sizes[ordinal] for ordinal in order),
            "reference_position": None if reference is None else order.index(reference),
            "source": prompt.source_image and self._source_token(user_id, task.id),
            "previous": withdrawn_answer(session, slot) if slot.attempt > 1 else None,
        }

    def _stored_pick(self, session: Session, row: PickRow, details: Details) -> StoredPick:
        name = session.get_one(UserRow, row.annotator_id).name_norm
        pick = self.pick_record(row, name, details)
        return StoredPick.model_validate(
            {**pick.model_dump(), "status": row.status, "submitted_at": row.submitted_at}
        )

    def _lock_user(self, session: Session, user_id: int) -> None:
        """Serialise one user's requests (two tabs, a retry); the user must be active."""
        row = session.get(UserRow, user_id, with_for_update={"key_share": True})
        if row is None or not row.is_active:
            raise NotFoundError(f"there is no active user with id {user_id}")


def _body_sha256(submission: Submission) -> str:
    """What makes two submissions the same answer; timings may differ between tries."""
    untold = {"idempotency_key", "lease_token", "telemetry", "guideline_version"}
    body = submission.model_dump(
        mode="json", exclude=untold | {"active_ms", "wall_ms", "first_action_ms"}
    )
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
