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

from annotate.store import Claim, ConflictError, LeaseError, PreferenceStore
from annotate.tables import AssignmentRow, PickRow

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

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(user=USERS)
    def claim(self, user: int) -> None:
        claim = self.store.claim(self.ids[user], self.now)
        if claim is not None:
            assert claim.lease_until == self.now + self.store.lease
            self.seen[user].append(claim)

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
        try:
            claim = self.store.undo(self.ids[user], self.now)
        except ConflictError:  # a skip whose task somebody else has taken since
            return
        if claim is not None:
            self.seen[user].append(claim)
            assert self.store.claim(self.ids[user], self.now).task_id == claim.task_id

    @rule(user=USERS)
    def heartbeat(self, user: int) -> None:
        if not self.seen[user]:
            return
        claim = self.seen[user][-1]
        with suppress(LeaseError):
            self.store.heartbeat(self.ids[user], claim.assignment_id, claim.lease_token, self.now)

    @rule()
    def wait(self) -> None:
        self.now += self.store.lease + timedelta(seconds=1)

    @invariant()
    def promises(self) -> None:
        with Session(self.store.engine) as session:
            slots = session.scalars(select(AssignmentRow)).all()
            picks = session.scalars(select(PickRow)).all()
        tasks = {slot.task_id for slot in slots}
        wanted = Counter(s.task_id for s in slots if s.state in ("open", "leased", "done"))
        assert wanted == dict.fromkeys(tasks, ANNOTATORS_PER_TASK)
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
