"""Several processes and threads label at once: every task ends with exactly k annotators."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context

from sqlalchemy import select
from sqlalchemy.orm import Session
from studio import Place, add_users, answer, fill

from annotate.store import ConflictError, PreferenceStore
from annotate.tables import AssignmentRow, PickRow
from benchmarks.store import storm

TASKS, ANNOTATORS_PER_TASK, PROCESSES, THREADS = 30, 3, 3, 2


def label_all(store: PreferenceStore, user_id: int, rng: random.Random) -> int:
    """Label until nothing is left, each answer sent twice, some skipped or taken back."""
    sent = 0
    while claim := store.claim(user_id):
        sent += 1
        key = f"{user_id}-{sent}"
        outcome = rng.choices(["picked", "all_bad", "skip"], [8, 1, 1])[0]
        submission = answer(claim, key, outcome)
        first = store.submit(user_id, submission)
        assert store.submit(user_id, submission) == first
        if rng.random() < 0.2:
            # Refused after a skip whose task somebody else has taken since.
            with suppress(ConflictError):
                store.undo(user_id)
    return sent


def work(place: Place, user_ids: list[int], seed: int) -> int:
    """One process: its users are threads over one store."""
    with place.open() as store, ThreadPoolExecutor(len(user_ids)) as pool:
        jobs = [
            pool.submit(label_all, store, user_id, random.Random(seed * 100 + user_id))
            for user_id in user_ids
        ]
        return sum(job.result(timeout=120) for job in jobs)


def test_a_storm_of_claims_and_submits_fills_every_slot_once(place):
    with place.open() as store:
        fill(store, tasks=TASKS, each=3, annotators=ANNOTATORS_PER_TASK)
        names = [f"annotator {i}" for i in range(PROCESSES * THREADS)]
        ids = [user.id for user in add_users(store, *names)]
        shares = [(place, ids[i::PROCESSES], i) for i in range(PROCESSES)]
        with get_context("spawn").Pool(PROCESSES) as pool:
            sent = sum(pool.starmap(work, shares))
        assert sent >= TASKS * ANNOTATORS_PER_TASK
        with Session(store.engine) as session:
            slots = session.scalars(select(AssignmentRow)).all()
            picks = session.scalars(select(PickRow)).all()
        done = [slot for slot in slots if slot.state == "done"]
        skipped = [slot for slot in slots if slot.state == "skipped"]
        open_slots = Counter(slot.task_id for slot in slots if slot.state == "open")
        assert not [slot for slot in slots if slot.state == "leased"]
        filled = Counter(slot.task_id for slot in done)
        tasks = {slot.task_id for slot in slots}
        # A slot stays open only where every annotator has answered or skipped its task.
        assert {task: filled[task] + open_slots[task] for task in tasks} == dict.fromkeys(
            tasks, ANNOTATORS_PER_TASK
        )
        holders = [(slot.task_id, slot.annotator_id) for slot in done + skipped]
        assert len(set(holders)) == len(holders)
        current = [pick for pick in picks if pick.status == "current"]
        assert sorted(pick.assignment_id for pick in current) == sorted(
            slot.id for slot in done + skipped
        )
        assert not [pick for pick in picks if pick.status == "void"]
        assert len(picks) == sent


def test_a_storm_with_kills_loses_and_doubles_nothing(place):
    found = storm(
        place.location, place.images, tasks=60, processes=8, annotators=50, kills=4, seed=7
    )
    assert (found["errors"], found["exit_codes"]) == ([], [0] * 8)
    assert found["kills"] == 4
    assert (found["picks"], found["slots"], found["open_slots"]) == (180, 180, 0)
    assert (found["wrong_tasks"], found["duplicates"], found["lost"], found["void"]) == (0,) * 4
    # A kill between the store's answer and the journal leaves a pick that is in no journal.
    assert 180 - 4 * 7 <= found["accepted"] <= 180
    assert found["audit_faults"] == 0
