"""Claim, submit, undo: one annotator's day, on both engines."""

from __future__ import annotations

from datetime import timedelta
from itertools import count

import pytest
from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session
from studio import NOON, add_users, answer, fill

from annotate.records import Outcome
from annotate.store import ConflictError, LeaseError, NotFoundError, PreferenceStore, StoreError
from annotate.tables import PickRow

LATER = NOON + PreferenceStore.lease + timedelta(seconds=1)


def picks_of(store: PreferenceStore) -> list[PickRow]:
    with Session(store.engine) as session:
        return list(session.scalars(select(PickRow).order_by(PickRow.id)))


def test_a_claim_is_the_same_task_until_it_is_answered(store):
    fill(store, tasks=3)
    (ada,) = add_users(store, "ada")
    first = store.claim(ada.id, NOON)
    again = store.claim(ada.id, NOON + timedelta(minutes=1))
    assert again.task_id == first.task_id
    assert again.lease_token == first.lease_token
    assert again.media == first.media
    assert again.lease_until == first.lease_until + timedelta(minutes=1)
    assert first.progress.remaining == 3
    store.submit(ada.id, answer(first, "k1"), NOON)
    second = store.claim(ada.id, NOON)
    assert second.task_id != first.task_id
    assert (second.progress.done, second.progress.remaining) == (1, 2)


def test_positions_become_the_ordinals_that_were_shown_there(store):
    tasks = {task.id: task for task in fill(store, tasks=6)}
    (ada,) = add_users(store, "ada")
    orders = set()
    for n in range(6):
        claim = store.claim(ada.id)
        orders.add(claim.display_order)
        pick = store.submit(ada.id, answer(claim, f"k{n}", win_position=3, lose_position=1))
        assert (pick.win, pick.lose) == (claim.display_order[3], claim.display_order[1])
        shown = tasks[claim.task_id].candidate_ids[pick.win]
        sha256 = next(c.image_sha256 for c in store.candidates() if c.id == shown)
        assert store.media(ada.id, claim.media[3]) == store.image_path(sha256)
    assert len(orders) > 1
    assert store.claim(ada.id) is None


def test_submitting_again_gives_the_same_pick_and_another_body_conflicts(store):
    fill(store, tasks=1)
    (ada,) = add_users(store, "ada")
    claim = store.claim(ada.id)
    first = store.submit(ada.id, answer(claim, "k1", active_ms=10))
    assert store.submit(ada.id, answer(claim, "k1", active_ms=99)) == first
    with pytest.raises(ConflictError, match="another answer"):
        store.submit(ada.id, answer(claim, "k1", win_position=2))
    with pytest.raises(ConflictError, match="answered already"):
        store.submit(ada.id, answer(claim, "k2"))
    assert len(picks_of(store)) == 1


def test_undo_keeps_the_history_and_the_next_submit_is_a_new_revision(store):
    fill(store, tasks=2)
    (ada,) = add_users(store, "ada")
    first = store.claim(ada.id)
    store.submit(ada.id, answer(first, "k1"))
    in_hand = store.claim(ada.id)
    back = store.undo(ada.id)
    assert back.task_id == first.task_id
    assert back.display_order == first.display_order
    assert back.lease_token != first.lease_token
    assert (back.progress.done, back.progress.remaining) == (0, 2)
    revised = store.submit(ada.id, answer(back, "k2", win_position=2))
    assert revised.revision == 2
    assert [pick.status for pick in picks_of(store)] == ["withdrawn", "current"]
    assert store.claim(ada.id).task_id == in_hand.task_id


def test_undo_goes_back_answer_by_answer_and_ends(store):
    fill(store, tasks=2)
    (ada,) = add_users(store, "ada")
    claims = []
    for n in range(2):
        claims.append(store.claim(ada.id))
        store.submit(ada.id, answer(claims[-1], f"k{n}"))
    assert store.undo(ada.id).task_id == claims[1].task_id
    assert store.undo(ada.id).task_id == claims[0].task_id
    assert store.undo(ada.id) is None
    assert store.status().picks == {}


def test_a_lost_lease_goes_to_the_next_annotator_and_the_late_answer_is_kept_void(store):
    fill(store, tasks=1)
    ada, bo = add_users(store, "ada", "bo")
    lost = store.claim(ada.id, NOON)
    assert store.claim(bo.id, NOON) is None
    taken = store.claim(bo.id, LATER)
    assert taken.task_id == lost.task_id
    with pytest.raises(LeaseError, match="gone"):
        store.heartbeat(ada.id, lost.assignment_id, lost.lease_token, LATER)
    late = store.submit(ada.id, answer(lost, "late"), LATER)
    assert late.status == "void"
    assert (late.win, late.lose) == (lost.display_order[0], lost.display_order[1])
    assert store.submit(bo.id, answer(taken, "bo"), LATER).status == "current"
    assert [pick.annotator for pick in store.labelled()[3]] == [store.pseudonym("bo")]


def test_an_expired_lease_that_nobody_took_is_still_good(store):
    fill(store, tasks=1)
    (ada,) = add_users(store, "ada")
    claim = store.claim(ada.id, NOON)
    assert store.submit(ada.id, answer(claim, "k1"), LATER).status == "current"


def test_a_late_answer_takes_its_slot_when_that_is_open_again(store):
    fill(store, tasks=2)
    (ada,) = add_users(store, "ada")
    first = store.claim(ada.id)
    store.submit(ada.id, answer(first, "k1"))
    released = store.claim(ada.id)
    store.undo(ada.id)
    assert store.submit(ada.id, answer(released, "k2")).status == "current"
    assert store.claim(ada.id).task_id == first.task_id


def test_heartbeat_prolongs_the_lease(store):
    fill(store, tasks=1)
    ada, bo = add_users(store, "ada", "bo")
    claim = store.claim(ada.id, NOON)
    store.heartbeat(ada.id, claim.assignment_id, claim.lease_token, NOON + timedelta(minutes=10))
    assert store.claim(bo.id, LATER) is None


def test_a_skip_gives_the_task_to_somebody_else_and_not_back(store):
    fill(store, tasks=1)
    ada, bo = add_users(store, "ada", "bo")
    skipped = store.claim(ada.id)
    store.submit(ada.id, answer(skipped, "s1", Outcome.SKIP))
    assert store.claim(ada.id) is None
    assert store.progress(ada.id).skipped == 1
    back = store.undo(ada.id)
    assert back.task_id == skipped.task_id
    assert store.claim(bo.id) is None
    store.submit(ada.id, answer(back, "s2", Outcome.SKIP))
    taken = store.claim(bo.id)
    assert taken.task_id == skipped.task_id
    with pytest.raises(ConflictError, match="skip"):
        store.undo(ada.id)


@pytest.mark.parametrize("outcome", ["all_bad", "all_equal", "flag"])
def test_other_outcomes_are_picks_without_win_and_lose(store, outcome):
    fill(store, tasks=1)
    (ada,) = add_users(store, "ada")
    pick = store.submit(ada.id, answer(store.claim(ada.id), "k1", outcome))
    assert (pick.outcome, pick.win, pick.lose) == (outcome, None, None)
    assert store.status().picks == {outcome: 1}


def test_every_annotator_of_a_task_is_another_one(store):
    fill(store, tasks=2, annotators=2)
    users = add_users(store, "ada", "bo", "cy")
    keys = count()
    for user in users:
        while claim := store.claim(user.id):
            store.submit(user.id, answer(claim, f"k{next(keys)}"))
    picks = store.labelled()[3]
    assert len(picks) == 4
    assert len({(pick.task_id, pick.annotator) for pick in picks}) == 4


def test_a_higher_priority_comes_first(store):
    tasks = fill(store, tasks=5)
    candidates = store.candidates("prompt-0")
    (urgent,) = store.add_tasks(
        {"prompt-0": [c.id for c in candidates[:2]]}, question="detail", priority=1
    )
    (ada,) = add_users(store, "ada")
    assert store.claim(ada.id).task_id == urgent.id
    assert len(tasks) == 5


def test_more_annotators_add_slots(store):
    tasks = fill(store, tasks=1)
    groups = {tasks[0].prompt_id: tasks[0].candidate_ids}
    assert store.add_tasks(groups, annotators_per_task=3) == tasks
    assert store.status().slots == {"open": 3}


@pytest.mark.parametrize("token", ["", "1", "1.beef", "x.beef", "²." + "0" * 32])
def test_a_forged_lease_token_is_refused(store, token):
    fill(store, tasks=1)
    (ada,) = add_users(store, "ada")
    claim = store.claim(ada.id)
    forged = answer(claim, "k1").model_copy(update={"lease_token": token})
    with pytest.raises(LeaseError):
        store.submit(ada.id, forged)


def test_a_token_of_another_annotator_opens_nothing(store):
    fill(store, tasks=1)
    ada, bo = add_users(store, "ada", "bo")
    (rex,) = add_users(store, "rex", role="reviewer")
    claim = store.claim(ada.id)
    with pytest.raises(LeaseError):
        store.submit(bo.id, answer(claim, "k1"))
    with pytest.raises(NotFoundError, match="no such image"):
        store.media(bo.id, claim.media[0])
    for token in ("", "AAAA", claim.media[0][:-2], claim.media[0] + "AA", "ä" * 8):
        with pytest.raises(NotFoundError):
            store.media(ada.id, token)
    with pytest.raises(StoreError, match="reviewer"):
        store.media_token(ada, "prompt-0-c0")
    token = store.media_token(rex, "prompt-0-c0")
    assert store.media(rex.id, token).is_file()
    store.update_user(rex.id, role="annotator")
    with pytest.raises(NotFoundError):
        store.media(rex.id, token)


def test_a_position_that_was_not_shown_is_refused(store):
    fill(store, tasks=1, each=4)
    (ada,) = add_users(store, "ada")
    with pytest.raises(StoreError, match="position 4 was not shown"):
        store.submit(ada.id, answer(store.claim(ada.id), "k1", win_position=4))
    assert store.status().slots == {"leased": 1}


@pytest.mark.parametrize(
    ("outcome", "values"),
    [
        ("picked", {"win_position": 1, "lose_position": 1}),
        ("picked", {"win_position": 1, "lose_position": None}),
        ("all_bad", {"win_position": 1}),
        ("flag", {"note": " "}),
    ],
)
def test_a_submission_that_makes_no_sense_is_refused(store, outcome, values):
    fill(store, tasks=1)
    (ada,) = add_users(store, "ada")
    claim = store.claim(ada.id)
    with pytest.raises(ValidationError):
        answer(claim, "k1", outcome, **values)


def test_a_closed_account_gets_no_task(store):
    fill(store, tasks=1)
    (ada,) = add_users(store, "ada")
    store.update_user(ada.id, is_active=False)
    with pytest.raises(NotFoundError, match="active"):
        store.claim(ada.id)
