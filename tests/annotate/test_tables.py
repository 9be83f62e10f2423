"""The constraints hold on both engines whoever writes: every test goes round the store's code."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from sqlalchemy import select
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
    UTCDateTime,
)


@pytest.fixture
def labelled(store):
    """A store with one pick and one open task."""
    fill(store, tasks=2, each=3)
    (ada,) = add_users(store, "ada")
    store.submit(ada.id, answer(store.claim(ada.id), "k1"))
    return store


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
    with pytest.raises(ConflictError), labelled._write() as session:
        pick = session.scalars(select(PickRow)).one()
        for name, value in values.items():
            setattr(pick, name, value)


def copy_of(row, **changes):
    values = {c.key: getattr(row, c.key) for c in type(row).__mapper__.column_attrs}
    return type(row)(**{**values, "id": None, **changes})


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
    with pytest.raises(ConflictError), labelled._write() as session:
        session.add(copy_of(session.scalars(select(PickRow)).one(), **changes))


def test_one_annotator_holds_one_slot_of_a_task(labelled):
    with pytest.raises(ConflictError), labelled._write() as session:
        done = session.scalars(select(AssignmentRow).where(AssignmentRow.state == "done")).one()
        session.add(copy_of(done, slot=2))


@pytest.mark.parametrize(
    "values",
    [{"state": "leased"}, {"state": "done"}, {"annotator_id": 1}, {"state": "lost"}],
    ids=str,
)
def test_a_slot_and_its_holder_agree(labelled, values):
    with pytest.raises(ConflictError), labelled._write() as session:
        slot = session.scalars(select(AssignmentRow).where(AssignmentRow.state == "open")).one()
        for name, value in values.items():
            setattr(slot, name, value)


def test_a_task_cannot_show_a_candidate_of_another_prompt(labelled):
    with pytest.raises(ConflictError), labelled._write() as session:
        task = session.scalars(select(TaskRow).where(TaskRow.prompt_id == "prompt-0")).one()
        session.add(
            TaskCandidateRow(
                task_id=task.id, prompt_id="prompt-0", ordinal=3, candidate_id="prompt-1-c0"
            )
        )


@pytest.mark.parametrize("n_candidates", [1, 10])
def test_a_task_has_two_to_nine_candidates(labelled, n_candidates):
    with pytest.raises(ConflictError), labelled._write() as session:
        session.scalars(select(TaskRow)).first().n_candidates = n_candidates


def test_what_is_labelled_cannot_be_deleted(labelled):
    with pytest.raises(ConflictError), labelled._write() as session:
        session.delete(session.scalars(select(TaskRow)).first())


def test_times_come_back_aware_and_in_utc(store):
    there = datetime(2026, 1, 1, 20, tzinfo=timezone(timedelta(hours=8)))
    row = {"kind": "eval", "folder": "f", "config": {}, "status": "running", "metrics": {}}
    with store._write() as session:
        session.add(RunRow(id="r", created_at=there, **row))
    with Session(store.engine) as session:
        found = session.get_one(RunRow, "r").created_at
    assert found == NOON
    assert found.utcoffset() == timedelta(0)
    with pytest.raises(StatementError, match="naive"), store._write() as session:
        session.add(RunRow(id="s", created_at=datetime(2026, 1, 1), **row))
    assert UTCDateTime().process_bind_param(None, None) is None
