"""The preference store under a storm, and with many tasks.

    python -m benchmarks.store storm                           SQLite in a temporary folder
    python -m benchmarks.store storm --url postgresql+psycopg://...   an empty database
    python -m benchmarks.store scale --tasks 10000 1000000

A storm is several processes of annotators who claim and submit without a pause; every answer is
sent three times, and processes are killed in the middle and started again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import random
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session

from annotate.assignment import queue_rank
from annotate.records import Prompt
from annotate.store import PreferenceStore, Submission
from annotate.tables import AssignmentRow, CandidateRow, PickRow, TaskCandidateRow, TaskRow
from benchmarks.record import record

SENDS = 3
CANDIDATES = 6
CHUNK = 5_000


def fill(store: PreferenceStore, tasks: int, annotators: int) -> None:
    """``tasks`` prompts with six candidates and a task each, without images."""
    now = datetime.now(UTC)
    for start in range(0, tasks, CHUNK):
        numbers = range(start, min(start + CHUNK, tasks))
        store.add_prompts(Prompt(id=f"p{n:07}", text=f"prompt {n}") for n in numbers)
        candidates, made, shown, slots = [], [], [], []
        for n in numbers:
            task_id, prompt_id = f"t{n:07}", f"p{n:07}"
            made.append(
                {
                    "id": task_id, "prompt_id": prompt_id, "question": "overall",
                    "kind": "standard", "n_candidates": CANDIDATES, "k_required": annotators,
                    "created_at": now,
                }
            )  # fmt: skip
            for ordinal in range(CANDIDATES):
                name = f"{prompt_id}-{ordinal}"
                candidates.append(
                    {
                        "id": name, "prompt_id": prompt_id, "image_sha256": f"{n:064x}",
                        "width": 1024, "height": 1024, "generation": None, "created_at": now,
                    }
                )  # fmt: skip
                shown.append(
                    {
                        "task_id": task_id, "prompt_id": prompt_id, "ordinal": ordinal,
                        "candidate_id": name,
                    }
                )  # fmt: skip
            slots += [
                {"task_id": task_id, "slot": slot, "rank": queue_rank(task_id), "state": "open",
                 "attempt": 0}
                for slot in range(1, annotators + 1)
            ]  # fmt: skip
        with store._write() as session:
            for row, rows in (
                (CandidateRow, candidates), (TaskRow, made), (TaskCandidateRow, shown),
                (AssignmentRow, slots),
            ):  # fmt: skip
                session.execute(insert(row), rows)
    with store._write() as session:
        session.execute(text("ANALYZE"))


def label(
    store: PreferenceStore, user_id: int, tag: str, limit: int | None = None
) -> list[tuple[str, int, float, float]]:
    """Label until nothing is left: (key, pick's number, claim ms, submit ms) of each answer."""
    done = []
    for number in itertools.count() if limit is None else range(limit):
        start = time.perf_counter()
        claim = store.claim(user_id)
        claimed = time.perf_counter()
        if claim is None:
            break
        key = f"{tag}-{number}".ljust(8, "-")
        submission = Submission(
            idempotency_key=key,
            assignment_id=claim.assignment_id,
            lease_token=claim.lease_token,
            outcome="picked",  # pyright: ignore[reportArgumentType]
            win_position=0,
            lose_position=1,
        )
        before = time.perf_counter()
        ids = [store.submit(user_id, submission).id for _ in range(SENDS)]
        sent = (time.perf_counter() - before) / SENDS
        assert len(set(ids)) == 1, ids
        done.append((key, user_id, 1000 * (claimed - start), 1000 * sent))
    return done


def work(location: str, images: str, users: list[int], log: str, life: int) -> None:
    """One process: a thread a user; every accepted answer is written down at once."""
    with (
        PreferenceStore.open(location, images=images) as store,
        ThreadPoolExecutor(len(users)) as pool,
        Path(log).open("a", buffering=1) as file,
    ):

        def one(user_id: int) -> None:
            for turn in itertools.count():
                # One answer at a time, so that a kill loses nothing that was not written down.
                found = label(store, user_id, f"{user_id}-{life}-{turn}", limit=1)
                if not found:
                    return
                file.write(json.dumps(found[0]) + "\n")

        for job in [pool.submit(one, user_id) for user_id in users]:
            job.result()


def storm(
    location: str, images: str, tasks: int, processes: int, annotators: int, kills: int
) -> dict[str, Any]:
    """The raw record of one storm with k = 3."""
    rng = random.Random(0)
    with PreferenceStore.open(location, images=images) as store:
        fill(store, tasks, annotators=3)
        users = [store.add_user(f"annotator {i}", "storm storm").id for i in range(annotators)]
        engine = store.engine.dialect.name
    folder = Path(tempfile.mkdtemp(prefix="winsome-storm-"))
    context = multiprocessing.get_context("spawn")

    def launch(index: int, life: int) -> Any:
        arguments = (location, images, users[index::processes], str(folder / f"{index}"), life)
        process = context.Process(target=work, args=arguments)
        process.start()
        return process

    start = time.perf_counter()
    running = {index: launch(index, 0) for index in range(processes)}
    for life in range(1, kills + 1):
        time.sleep(rng.uniform(1, 3))
        index = rng.randrange(processes)
        running[index].kill()
        running[index].join()
        running[index] = launch(index, life)
    for process in running.values():
        process.join()
    seconds = time.perf_counter() - start
    lines = [
        json.loads(line)
        for path in folder.iterdir()
        for line in path.read_text().splitlines()
        if line.endswith("]")
    ]
    exits = [process.exitcode for process in running.values()]
    with PreferenceStore.open(location, images=images) as store:
        counted = _count(store, lines)
        faults = store.verify_audit()
    return {
        "engine": engine, "tasks": tasks, "annotators": annotators, "processes": processes,
        "kills": kills, "sends": SENDS, "seconds": seconds, "exit_codes": exits,
        "audit_faults": len(faults), **counted,
        "claim_ms": [round(line[2], 3) for line in lines],
        "submit_ms": [round(line[3], 3) for line in lines],
    }  # fmt: skip


def _count(store: PreferenceStore, lines: list[Any]) -> dict[str, int]:
    with Session(store.engine) as session:
        picks = session.execute(
            select(PickRow.idempotency_key, PickRow.annotator_id, PickRow.task_id, PickRow.status)
        ).all()
        done = session.execute(
            select(AssignmentRow.task_id, AssignmentRow.annotator_id).where(
                AssignmentRow.state == "done"
            )
        ).all()
        tasks = session.scalars(select(func.count()).select_from(TaskRow)).one()
    stored = {(key, user) for key, user, _, _ in picks}
    holders = Counter(task for task, _ in {tuple(row) for row in done})
    current = Counter((task, user) for _, user, task, status in picks if status == "current")
    return {
        "picks": sum(current.values()),
        "accepted": len(lines),
        "lost": sum((line[0], line[1]) not in stored for line in lines),
        "duplicates": sum(count - 1 for count in current.values()),
        "void": sum(status == "void" for *_, status in picks),
        "wrong_tasks": tasks - sum(count == 3 for count in holders.values()),
    }


def scale(location: str, images: str, tasks: int, answers: int) -> dict[str, Any]:
    """Latencies of one annotator after another in a store of ``tasks`` tasks."""
    with PreferenceStore.open(location, images=images) as store:
        fill(store, tasks, annotators=3)
        users = [store.add_user(f"annotator {i}", "scale scale").id for i in range(5)]
        rows = [row for u in users for row in label(store, u, f"s{u}", limit=answers // 5)]
    return {
        "tasks": tasks,
        "claim_ms": [round(row[2], 3) for row in rows],
        "submit_ms": [round(row[3], 3) for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the preference store.")
    parser.add_argument("what", choices=["storm", "scale"])
    parser.add_argument("--url", help="an empty PostgreSQL database (default: SQLite)")
    parser.add_argument("--tasks", type=int, nargs="+", default=None)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--answers", type=int, default=500)
    parser.add_argument("--record", action="store_true", help="write lines under results/")
    args = parser.parse_args()
    command = "python -m benchmarks.store " + args.what
    with tempfile.TemporaryDirectory(prefix="winsome-store-") as folder:
        if args.what == "storm":
            raw = storm(
                args.url or f"{folder}/studio", f"{folder}/images", (args.tasks or [300])[0],
                args.processes, args.annotators, args.kills,
            )  # fmt: skip
            names = ("picks_per_s", "claim_p99_ms", "submit_p95_ms", "storm_lost",
                     "storm_duplicates", "storm_wrong_tasks")  # fmt: skip
            bars = [f"store.{raw['engine']}.{name}" for name in names]
        else:
            # Each size has a store of its own; one URL takes one size.
            sizes = args.tasks or [10_000, 1_000_000]
            raw = {
                "stores": [
                    scale(args.url or f"{folder}/{size}", f"{folder}/images", size, args.answers)
                    for size in sizes
                ]
            }
            bars = ["store.claim_p95_ms_1m_tasks"] if sizes[-1] == 1_000_000 else []
    if args.record and bars:
        for line in record(bars, raw, command):
            print(f"{line['bar']} = {line['value']:.4g} {line['unit']}")
    else:
        print(json.dumps(_summary(raw)))


def _summary(raw: dict[str, Any]) -> dict[str, Any]:
    def short(part: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in part.items():
            if name.endswith("_ms"):
                ordered = sorted(value)
                for percent in (50, 95, 99):
                    place = len(ordered) * percent // 100
                    found[f"{name[:-3]}_p{percent}_ms"] = ordered[place]
            else:
                found[name] = value
        return found

    return {"stores": [short(p) for p in raw["stores"]]} if "stores" in raw else short(raw)


if __name__ == "__main__":
    main()
