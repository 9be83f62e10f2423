"""Any order of claims, answers, skips, undos, lost leases and late answers keeps the promises."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from itertools import count

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import select
from sqlalchemy.orm import Session
from studio import NOON, add_users, answer, fill

from annotate.store import Claim, ConflictError, LeaseError, PreferenceStore, Verdict
from annotate.tables import AssignmentRow, PickRow, TaskRow

ANNOTATORS_PER_TASK = 2
USERS = st.integers(0, 2)


class Studio(RuleBasedStateMachine):
    """Three annotators at two tasks of two slots; the clock goes on only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = PreferenceStore.open(self.folder.name)
        fill(self.store, tasks=2, each=3, annotators=ANNOTATORS_PER_TASK)
        self.ids = [user.id for user in add_users(self.store, "ada", "bo", "cy")]
        self.now = NOON
        self.keys = count()
        self.seen: list[list[Claim]] = [[], [], []]
        self.store.set_policy(max_extra_slots=1)
        (self.reviewer,) = add_users(self.store, "rita", role="reviewer")
        self.tasks = [task.id for task in self.store.tasks()]
        self.reviewed: set[str] = set()

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(user=USERS)
    def claim(self, user: int) -> None:
        claim = self.store.claim(self.ids[user], self.now)
        if claim is not None:
            assert claim.lease_until == self.now + self.store.lease
            self.seen[user].append(claim)

    @rule(user=USERS)
    def peek(self, user: int) -> None:
        """Showing a task ahead changes nothing but who gets it next."""
        before = self.store.status().slots
        self.store.peek(self.ids[user], self.now)
        assert self.store.status().slots == before

    @rule(
        user=USERS, back=st.integers(1, 4), outcome=st.sampled_from(["picked", "skip", "all_bad"])
    )
    def submit(self, user: int, back: int, outcome: str) -> None:
        """An answer to a claim that the user has seen, perhaps long ago."""
        if len(self.seen[user]) < back:
            return
        submission = answer(self.seen[user][-back], f"key-{next(self.keys)}", outcome)
        try:
            pick = self.store.submit(self.ids[user], submission, self.now)
        except ConflictError:  # answered already
            return
        assert self.store.submit(self.ids[user], submission, self.now) == pick

    @rule(user=USERS)
    def undo(self, user: int) -> None:
        closed = self.closed()
        try:
            claim = self.store.undo(self.ids[user], self.now)
        except ConflictError:  # closed, or a skip whose task somebody else has taken since
            return
        if claim is not None:
            assert claim.task_id not in closed
            self.seen[user].append(claim)
            assert self.store.claim(self.ids[user], self.now).task_id == claim.task_id

    @rule(user=USERS)
    def heartbeat(self, user: int) -> None:
        if not self.seen[user]:
            return
        claim = self.seen[user][-1]
        with suppress(LeaseError):
            self.store.heartbeat(self.ids[user], claim.assignment_id, claim.lease_token, self.now)

    @rule(task=st.integers(0, 1), decision=st.sampled_from(["confirm", "discard", "return"]))
    def review(self, task: int, decision: str) -> None:
        """A reviewer may speak at any time, and again."""
        before = self.answers(self.tasks[task])
        verdict = Verdict(decision=decision, cause="hard")
        self.store.review(self.reviewer.id, self.tasks[task], verdict, self.now)
        assert self.answers(self.tasks[task]) == before
        assert (self.tasks[task] in self.closed()) == (decision != "return")
        self.reviewed.add(self.tasks[task])

    @rule()
    def close(self) -> None:
        """A snapshot closes the tasks that all have answered, and no other."""
        with Session(self.store.engine) as session:
            pending = set(
                session.scalars(
                    select(AssignmentRow.task_id).where(AssignmentRow.state.in_(["open", "leased"]))
                )
            )
        before = self.closed()
        self.store.add_snapshot("0" * 64, "folder", {}, self.tasks)
        assert self.closed() == before | (set(self.tasks) - pending)

    def closed(self) -> set[str]:
        with Session(self.store.engine) as session:
            query = select(TaskRow.id).where(TaskRow.closed_at.is_not(None))
            return set(session.scalars(query))

    def answers(self, task_id: str) -> list[tuple]:
        columns = (PickRow.id, PickRow.status, PickRow.outcome, PickRow.win, PickRow.lose)
        with Session(self.store.engine) as session:
            query = select(*columns).where(PickRow.task_id == task_id).order_by(PickRow.id)
            return [tuple(row) for row in session.execute(query)]

    @rule()
    def wait(self) -> None:
        self.now += self.store.lease + timedelta(seconds=1)

    @invariant()
    def promises(self) -> None:
        assert self.store.verify_audit() == []
        with Session(self.store.engine) as session:
            slots = session.scalars(select(AssignmentRow)).all()
            picks = session.scalars(select(PickRow)).all()
        live = [slot for slot in slots if slot.state in ("open", "leased", "done")]
        wanted = Counter(slot.task_id for slot in live if not slot.is_extra)
        extras = Counter(slot.task_id for slot in live if slot.is_extra)
        # A review withdraws open slots, and "return" adds one: there the count is its own.
        closed = self.closed()
        for task_id in self.tasks:
            if task_id not in self.reviewed | closed:
                assert wanted[task_id] == ANNOTATORS_PER_TASK
            assert extras[task_id] <= 1
            if task_id in closed:
                assert not [s for s in live if s.task_id == task_id and s.state == "open"]
        closed = {slot.id: slot for slot in slots if slot.state in ("done", "skipped")}
        current = {pick.assignment_id: pick for pick in picks if pick.status == "current"}
        assert closed.keys() == current.keys()
        for slot_id, pick in current.items():
            assert pick.annotator_id == closed[slot_id].annotator_id
            assert (pick.outcome == "skip") == (closed[slot_id].state == "skipped")
        for number, user_id in enumerate(self.ids):
            progress = self.store.progress(user_id)
            mine = [slot for slot in slots if slot.annotator_id == user_id]
            held = {slot.task_id for slot in mine}
            free = {s.task_id for s in slots if s.state == "open"} - held
            leased = [slot for slot in mine if slot.state == "leased"]
            assert len(leased) <= 1, number
            assert progress.remaining == len(free) + len(leased)
            assert progress.done == sum(slot.state == "done" for slot in mine)


TestStudio = Studio.TestCase
TestStudio.settings = settings(
    max_examples=8,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
