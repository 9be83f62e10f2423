"""The constraints hold on both engines whoever writes: every test goes round the store's code."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session
from studio import NOON, add_users, answer, fill

from annotate.store import ConflictError
from annotate.tables import (
    AssignmentRow,
    PickRow,
    RunRow,
    TaskCandidateRow,
    TaskRow,
)


@pytest.fixture
def labelled(store):
    """A store with one pick, one leased task and one open task."""
    fill(store, tasks=3, each=3)
    (ada,) = add_users(store, "ada")
    store.submit(ada.id, answer(store.claim(ada.id), "k1"))
    store.claim(ada.id)
    return store


def execute(store, statement) -> None:
    with store._write() as session:
        session.execute(statement.execution_options(synchronize_session=False))


def add_copy(store, row, where, **changes) -> None:
    """Insert the one row again with ``changes``."""
    with store._write() as session:
        found = session.scalars(select(row).where(where)).one()
        values = {c.key: getattr(found, c.key) for c in row.__mapper__.column_attrs}
        values.pop("id", None)
        session.add(row(**{**values, **changes}))


@pytest.mark.parametrize(
    "values",
    [
        {"win": 3},
        {"win": 0, "lose": 0},
        {"win": None},
        {"outcome": "all_bad"},
        {"outcome": "good", "win": None, "lose": None},
        {"status": "maybe"},
    ],
    ids=str,
)
def test_a_pick_names_two_candidates_that_its_task_shows(labelled, values):
    with pytest.raises(ConflictError):
        execute(labelled, update(PickRow).values(**values))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"revision": 2},
        {"revision": 2, "idempotency_key": "another key"},
        {"idempotency_key": "another key", "status": "withdrawn"},
        {"revision": 2, "idempotency_key": "another key", "task_id": "elsewhere"},
    ],
    ids=["copy", "same key", "two current", "same revision", "other task"],
)
def test_a_pick_cannot_be_doubled(labelled, changes):
    with pytest.raises(ConflictError):
        add_copy(labelled, PickRow, PickRow.id > 0, **changes)


def test_one_annotator_holds_one_slot_of_a_task(labelled):
    with pytest.raises(ConflictError):
        add_copy(labelled, AssignmentRow, AssignmentRow.state == "done", slot=2)


def test_one_annotator_holds_one_lease(labelled):
    leased = {"state": "leased", "annotator_id": 1, "lease_until": NOON}
    with pytest.raises(ConflictError):
        execute(
            labelled,
            update(AssignmentRow).where(AssignmentRow.state == "open").values(**leased),
        )


@pytest.mark.parametrize(
    "values",
    [{"state": "leased"}, {"state": "done"}, {"annotator_id": 1}, {"state": "lost"}],
    ids=str,
)
def test_a_slot_and_its_holder_agree(labelled, values):
    with pytest.raises(ConflictError):
        execute(
            labelled,
            update(AssignmentRow).where(AssignmentRow.state == "open").values(**values),
        )


def test_a_task_cannot_show_a_candidate_of_another_prompt(labelled):
    with pytest.raises(ConflictError):
        add_copy(
            labelled,
            TaskCandidateRow,
            TaskCandidateRow.candidate_id == "prompt-0-c0",
            ordinal=3,
            candidate_id="prompt-1-c0",
        )


@pytest.mark.parametrize("n_candidates", [1, 10])
def test_a_task_has_two_to_nine_candidates(labelled, n_candidates):
    with pytest.raises(ConflictError):
        execute(labelled, update(TaskRow).values(n_candidates=n_candidates))


def test_what_is_labelled_cannot_be_deleted(labelled):
    with pytest.raises(ConflictError):
        execute(labelled, delete(TaskRow))


def test_times_come_back_aware_and_in_utc(store):
    there = datetime(2026, 1, 1, 20, tzinfo=timezone(timedelta(hours=8)))
    row = {"kind": "eval", "folder": "f", "config": {}, "status": "running", "metrics": {}}
    with store._write() as session:
        session.add(RunRow(id="r", created_at=there, **row))
    with Session(store.engine) as session:
        found = session.get_one(RunRow, "r").created_at
    assert found == NOON
    assert found.utcoffset() == timedelta(0)
    with pytest.raises(StatementError, match="naive"):
        execute(store, update(RunRow).values(created_at=datetime(2026, 1, 1)))
