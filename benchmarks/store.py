"""The preference store under a storm, and with many tasks.

    python -m benchmarks.store storm                                  SQLite in a temporary folder
    python -m benchmarks.store storm --url postgresql+psycopg://...   an empty database
    python -m benchmarks.store scale --tasks 10000 1000000            a store for each size
    python -m benchmarks.store scale --url URL_OF_ONE URL_OF_OTHER    an empty database for each

A storm is several processes of annotators who claim and submit without a pause. Every answer is
sent three times, and processes are killed (SIGKILL) at moments that a seed draws and are replaced.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from annotate.assignment import queue_rank
from annotate.store import PreferenceStore, Submission
from annotate.tables import AssignmentRow, PickRow, TaskRow, UserRow
from benchmarks.record import record

SENDS = 3
CANDIDATES = 6
CHUNK = 20_000
"""Tasks written in one transaction."""
POLL_S = 0.01
COLUMNS = {
    "prompt": ("id", "text", "lang", "category", "split", "metadata", "created_at"),
    "candidate": ("id", "prompt_id", "image_sha256", "width", "height", "created_at"),
    "task": ("id", "prompt_id", "question", "kind", "n_candidates", "k_required", "created_at"),
    "task_candidate": ("task_id", "ordinal", "candidate_id", "prompt_id"),
    "assignment": ("task_id", "slot", "rank", "state", "attempt"),
}
Row = tuple[Any, ...]


def fill(store: PreferenceStore, tasks: int, annotators: int) -> None:
    """``tasks`` prompts with six candidates and a task each, without images.

    In the fastest way of each engine: COPY, or prepared inserts.
    """
    now = datetime.now(UTC)
    created = now.strftime("%Y-%m-%d %H:%M:%S.%f") if store.is_sqlite else now
    for start in range(0, tasks, CHUNK):
        numbers = range(start, min(start + CHUNK, tasks))
        with store._write() as session:
            driver = session.connection().connection.driver_connection
            for table, columns in COLUMNS.items():
                _insert(driver, table, columns, _rows(table, numbers, annotators, created))
    with store._write() as session:
        session.execute(text("ANALYZE"))


def _rows(table: str, numbers: range, annotators: int, created: Any) -> Iterator[Row]:
    for n in numbers:
        task, prompt = f"t{n:07}", f"p{n:07}"
        shown = [(ordinal, f"{prompt}-{ordinal}") for ordinal in range(CANDIDATES)]
        if table == "prompt":
            yield prompt, f"prompt {n}", "en", "", "train", "{}", created
        elif table == "candidate":
            for ordinal, name in shown:
                yield name, prompt, f"{n * CANDIDATES + ordinal:064x}", 1024, 1024, created
        elif table == "task":
            yield task, prompt, "overall", "standard", CANDIDATES, annotators, created
        elif table == "task_candidate":
            yield from ((task, ordinal, name, prompt) for ordinal, name in shown)
        else:
            rank = queue_rank(task)
            yield from ((task, slot, rank, "open", 0) for slot in range(1, annotators + 1))


def _insert(driver: Any, table: str, columns: Iterable[str], rows: Iterator[Row]) -> None:
    names = ", ".join(columns)
    if hasattr(driver, "executemany"):  # sqlite3
        places = ", ".join("?" for _ in columns)
        driver.executemany(f"INSERT INTO {table} ({names}) VALUES ({places})", rows)
        return
    with driver.cursor() as cursor, cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def add_annotators(store: PreferenceStore, count: int) -> list[int]:
    """The ids of new accounts that nobody can sign in to: hashing passwords is not measured."""
    rows = [
        UserRow(
            name=f"annotator {number}",
            name_norm=f"annotator {number}",
            role="annotator",
            password_hash="!",
            is_active=True,
            created_at=datetime.now(UTC),
        )
        for number in range(count)
    ]
    with store._write() as session:
        session.add_all(rows)
        session.flush()
        return [row.id for row in rows]


def label_one(store: PreferenceStore, user_id: int, key: str) -> dict[str, Any] | None:
    """Claim a task and send its answer three times; what was accepted, None for no task."""
    start = time.perf_counter()
    claim = store.claim(user_id)
    claimed = time.perf_counter()
    if claim is None:
        return None
    submission = Submission(
        idempotency_key=key.ljust(8, "-"),
        assignment_id=claim.assignment_id,
        lease_token=claim.lease_token,
        outcome="picked",  # pyright: ignore[reportArgumentType]
        win_position=0,
        lose_position=1,
    )
    before = time.perf_counter()
    picks = [store.submit(user_id, submission) for _ in range(SENDS)]
    sent = (time.perf_counter() - before) / SENDS
    if any(pick != picks[0] for pick in picks):
        raise RuntimeError(f"an answer sent again was another pick: {picks}")
    return {
        "key": submission.idempotency_key,
        "user": user_id,
        "task": claim.task_id,
        "win": picks[0].win,
        "lose": picks[0].lose,
        "claim_ms": round(1000 * (claimed - start), 3),
        "submit_ms": round(1000 * sent, 3),
    }


class Journal:
    """What one process was told is accepted, on the disk before it goes on."""

    def __init__(self, path: Path):
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, entry: dict[str, Any]) -> None:
        os.write(self._descriptor, json.dumps(entry).encode() + b"\n")
        os.fsync(self._descriptor)


def work(location: str, images: str, users: list[int], path: str, life: int) -> None:
    """One process: a thread a user, until nothing is left; every error is in the journal too."""
    journal = Journal(Path(path))

    def one(user_id: int) -> None:
        try:
            for turn in itertools.count():
                accepted = label_one(store, user_id, f"{user_id}-{life}-{turn}")
                if accepted is None:
                    return
                journal.write(accepted)
        except Exception as error:
            journal.write({"error": repr(error)})
            raise

    with (
        PreferenceStore.open(location, images=images) as store,
        ThreadPoolExecutor(len(users)) as pool,
    ):
        for job in [pool.submit(one, user_id) for user_id in users]:
            job.result()


def storm(
    location: str,
    images: str,
    tasks: int,
    processes: int,
    annotators: int,
    kills: int,
    seed: int = 0,
) -> dict[str, Any]:
    """The raw record of one storm with k = 3.

    The seed draws which process is killed, and after how many accepted answers.
    """
    rng = random.Random(seed)
    with PreferenceStore.open(location, images=images) as store:
        fill(store, tasks, annotators=3)
        users = add_annotators(store, annotators)
        engine = store.engine.dialect.name
    moments = sorted(rng.sample(range(3 * tasks // 20, 3 * tasks * 4 // 5), kills))
    with tempfile.TemporaryDirectory(prefix="winsome-storm-") as name:
        folder = Path(name)
        # Forked from a server that has imported everything: a new process costs milliseconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["annotate.store"])

        def launch(index: int, life: int) -> Any:
            arguments = (location, images, users[index::processes], str(folder / f"{index}"), life)
            process = context.Process(target=work, args=arguments)
            process.start()
            return process

        start = time.perf_counter()
        running = [launch(index, 0) for index in range(processes)]
        killed = 0
        for life, moment in enumerate(moments, start=1):
            while len(_journals(folder)) < moment and any(p.is_alive() for p in running):
                time.sleep(POLL_S)
            index = rng.randrange(processes)
            running[index].kill()
            running[index].join()
            killed += running[index].exitcode == -9
            running[index] = launch(index, life)
        for process in running:
            process.join()
        seconds = time.perf_counter() - start
        lines = [json.loads(line) for line in _journals(folder)]
    accepted = [line for line in lines if "error" not in line]
    with PreferenceStore.open(location, images=images) as store:
        counted = _count(store, accepted)
        faults = store.verify_audit()
    return {
        "engine": engine, "tasks": tasks, "annotators": annotators, "processes": processes,
        "kills": killed, "sends": SENDS, "seed": seed, "seconds": seconds,
        "exit_codes": [process.exitcode for process in running],
        "errors": [line["error"] for line in lines if "error" in line],
        "audit_faults": len(faults), **counted,
        "claim_ms": [line["claim_ms"] for line in accepted],
        "submit_ms": [line["submit_ms"] for line in accepted],
    }  # fmt: skip


def _journals(folder: Path) -> list[bytes]:
    """The whole lines of all journals; a kill may cut the last one of each."""
    return [
        line
        for path in folder.iterdir()
        for line in path.read_bytes().splitlines(keepends=True)
        if line.endswith(b"\n")
    ]


def _count(store: PreferenceStore, accepted: list[dict[str, Any]]) -> dict[str, int]:
    """What the store holds at the end, against what its clients were told."""
    with Session(store.engine) as session:
        picks = session.scalars(select(PickRow)).all()
        done = session.scalars(select(AssignmentRow).where(AssignmentRow.state == "done")).all()
        tasks = session.scalars(select(TaskRow.id)).all()
        open_slots = session.scalars(
            select(AssignmentRow.id).where(AssignmentRow.state.in_(["open", "leased"]))
        ).all()
    current = [pick for pick in picks if pick.status == "current"]
    stored = {(p.idempotency_key, p.annotator_id): (p.task_id, p.win, p.lose) for p in current}
    held, answered = defaultdict(list), defaultdict(list)
    for slot in done:
        held[slot.task_id].append(slot.annotator_id)
    for pick in current:
        answered[pick.task_id].append(pick.annotator_id)
    wrong = [
        task
        for task in tasks
        if len(held[task]) != 3
        or len(set(held[task])) != 3
        or sorted(held[task]) != sorted(answered[task])
    ]
    per_annotator = Counter((pick.task_id, pick.annotator_id) for pick in current)
    return {
        "picks": len(current),
        "slots": len(done),
        "open_slots": len(open_slots),
        "accepted": len(accepted),
        "lost": sum(
            stored.get((line["key"], line["user"])) != (line["task"], line["win"], line["lose"])
            for line in accepted
        ),
        "duplicates": sum(count - 1 for count in per_annotator.values()),
        "void": sum(pick.status == "void" for pick in picks),
        "wrong_tasks": len(wrong),
    }


def scale(location: str, images: str, tasks: int, answers: int) -> dict[str, Any]:
    """Latencies of five annotators, one after the other, in a store of ``tasks`` tasks."""
    with PreferenceStore.open(location, images=images) as store:
        start = time.perf_counter()
        fill(store, tasks, annotators=3)
        seconds = time.perf_counter() - start
        found = [
            label_one(store, user_id, f"{user_id}-{turn}")
            for user_id in add_annotators(store, 5)
            for turn in range(answers // 5)
        ]
        rows = [row for row in found if row is not None]
        engine, size = store.engine.dialect.name, _bytes_of(store)
    return {
        "engine": engine,
        "tasks": tasks,
        "candidates": tasks * CANDIDATES,
        "fill_seconds": round(seconds, 1),
        "database_bytes": size,
        "claim_ms": [row["claim_ms"] for row in rows],
        "submit_ms": [row["submit_ms"] for row in rows],
    }


def _bytes_of(store: PreferenceStore) -> int:
    query = (
        "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        if store.is_sqlite
        else "SELECT pg_database_size(current_database())"
    )
    with store._read() as session:
        return session.scalars(text(query)).one()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the preference store.")
    parser.add_argument("what", choices=["storm", "scale"])
    parser.add_argument(
        "--url", nargs="+", help="empty PostgreSQL databases, one for each store (default: SQLite)"
    )
    parser.add_argument("--tasks", type=int, nargs="+", default=None)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--answers", type=int, default=500)
    parser.add_argument("--record", action="store_true", help="write lines under results/")
    args = parser.parse_args()
    command = "python -m benchmarks.store " + args.what
    sizes = args.tasks or ([300] if args.what == "storm" else [10_000, 1_000_000])
    if args.url and len(args.url) != len(sizes):
        parser.error(f"{len(sizes)} store(s) need as many databases, got {len(args.url)} in --url")
    with tempfile.TemporaryDirectory(prefix="winsome-store-") as folder:
        if args.what == "storm":
            raw = storm(
                args.url[0] if args.url else f"{folder}/studio", f"{folder}/images", sizes[0],
                args.processes, args.annotators, args.kills,
            )  # fmt: skip
            names = ("picks_per_s", "claim_p99_ms", "submit_p95_ms", "storm_lost",
                     "storm_duplicates", "storm_wrong_tasks")  # fmt: skip
            bars = [f"store.{raw['engine']}.{name}" for name in names]
        else:
            places = args.url or [f"{folder}/{size}" for size in sizes]
            raw = {
                "stores": [
                    scale(place, f"{folder}/images", size, args.answers)
                    for place, size in zip(places, sizes, strict=True)
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
