"""What is judged: prompts, candidates with their images, tasks with their slots."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from annotate.assignment import canonical_order, keyed_digest, queue_rank
from annotate.schema import Candidate, Generation, Prompt, Question, Record, Split, Task
from annotate.store.engine import StoreBase, batches
from annotate.store.errors import ConflictError, NotFoundError, StoreError
from annotate.tables import (
    MAX_CANDIDATES,
    AssignmentRow,
    CandidateRow,
    PromptRow,
    TaskCandidateRow,
    TaskRow,
)

ImageSource = str | Path | Mapping[str, str | Path | bytes]


class ContentStore(StoreBase):
    """The part of a store that holds what is judged. Importing the same again changes nothing."""

    def add_prompts(self, prompts: Iterable[Prompt]) -> int:
        """Add prompts; returns how many were new.

        Raises:
            ConflictError: an id is there already with other content; nothing is imported.
        """
        wanted = _by_id(prompts)
        for prompt in wanted.values():
            _check_text(prompt)
        with self._write() as session:
            new = _without_known(wanted, _load_prompts(session, wanted))
            _insert(session, PromptRow, [_prompt_values(prompt) for prompt in new])
        return len(new)

    def add_candidates(self, candidates: Iterable[Candidate], images: ImageSource) -> int:
        """Add candidates and take their PNG files in; returns how many were new.

        Args:
            candidates: each names its image by the SHA-256 of the PNG file's bytes.
            images: a folder with ``<sha256>.png`` files, or a mapping from the SHA-256 to a path
                or to the bytes.

        Raises:
            StoreError: an image is missing, corrupt, no PNG, or not what its candidate says. The
                message names each such candidate, and nothing is imported.
        """
        wanted = _by_id(candidates)
        for candidate in wanted.values():
            _check_text(candidate)
        checked: dict[str, tuple[int, int]] = {}
        faults = []
        for candidate in wanted.values():
            try:
                self._take_image(candidate, images, checked)
            except StoreError as error:
                faults.append(f"candidate {candidate.id!r}: {error}")
        if faults:
            shown = "\n  ".join(faults[:20])
            raise StoreError(f"{len(faults)} bad image(s), nothing was imported:\n  {shown}")
        with self._write() as session:
            _require(session, PromptRow, {c.prompt_id for c in wanted.values()}, "prompt")
            new = _without_known(wanted, _load_candidates(session, wanted))
            _insert(session, CandidateRow, [_candidate_values(candidate) for candidate in new])
        return len(new)

    def add_tasks(
        self,
        candidates: Mapping[str, Sequence[str]],
        question: Question | str = Question.OVERALL,
        annotators_per_task: int = 1,
        kind: str = "standard",
        priority: int = 0,
        seed: int = 0,
    ) -> list[Task]:
        """One task for each prompt, with a slot for each of its annotators.

        A task's id follows from its content, so adding it again changes nothing but the overlap:
        a larger ``annotators_per_task`` adds slots to it.

        Args:
            candidates: prompt id -> ids of the 2 to 9 candidates that the task shows.
            kind: ``standard``, or any other word that tells tasks apart (``gold``, ``repeat``).
            priority: a higher one is handed out first (see `annotate.assignment.queue_rank`).
            seed: of the random order that gives each candidate its ordinal.
        """
        if annotators_per_task < 1:
            raise StoreError(f"annotators_per_task must be at least 1, got {annotators_per_task}")
        question = Question(question)
        tasks = [
            _make_task(prompt_id, ids, question, kind, seed)
            for prompt_id, ids in candidates.items()
        ]
        with self._write() as session:
            self._check_shown(session, tasks)
            known = _load_existing(session, TaskRow.id, [task.id for task in tasks])
            new = [task for task in tasks if task.id not in known]
            now = datetime.now(UTC)
            _insert(
                session,
                TaskRow,
                [
                    {
                        **task.model_dump(include={"id", "prompt_id", "question", "kind"}),
                        "n_candidates": len(task.candidate_ids),
                        "k_required": annotators_per_task,
                        "created_at": now,
                    }
                    for task in new
                ],
            )
            _insert(
                session,
                TaskCandidateRow,
                [
                    {
                        "task_id": task.id,
                        "prompt_id": task.prompt_id,
                        "ordinal": ordinal,
                        "candidate_id": candidate_id,
                    }
                    for task in new
                    for ordinal, candidate_id in enumerate(task.candidate_ids)
                ],
            )
            self._add_slots(session, tasks, annotators_per_task, priority)
        return tasks

    def add_slots(self, task_ids: Sequence[str], count: int = 1, priority: int = 0) -> None:
        """Ask ``count`` more annotators about each task."""
        if count < 1:
            raise StoreError(f"count must be at least 1, got {count}")
        with self._write() as session:
            _require(session, TaskRow, set(task_ids), "task")
            for task_id in task_ids:
                last = session.scalar(
                    select(func.max(AssignmentRow.slot)).where(AssignmentRow.task_id == task_id)
                )
                rank = queue_rank(task_id, priority)
                _insert(
                    session,
                    AssignmentRow,
                    [_slot_values(task_id, last + 1 + i, rank) for i in range(count)],
                )
            _raise_k(session, task_ids, by=count)

    def prompts(self, split: Split | str | None = None) -> list[Prompt]:
        """Every prompt, or those of one split, sorted by id."""
        query = select(PromptRow)
        if split is not None:
            query = query.where(PromptRow.split == Split(split).value)
        with self._read() as session:
            return sorted((prompt_record(row) for row in session.scalars(query)), key=_id)

    def candidates(self, prompt_id: str | None = None) -> list[Candidate]:
        """Every candidate, or those of one prompt, sorted by id."""
        query = select(CandidateRow)
        if prompt_id is not None:
            query = query.where(CandidateRow.prompt_id == prompt_id)
        with self._read() as session:
            return sorted((candidate_record(row) for row in session.scalars(query)), key=_id)

    def tasks(self, kind: str | None = None) -> list[Task]:
        """Every task, or those of one kind, sorted by id."""
        query = select(TaskRow)
        if kind is not None:
            query = query.where(TaskRow.kind == kind)
        with self._read() as session:
            return load_tasks(session, session.scalars(query).all())

    def _check_shown(self, session: Session, tasks: Sequence[Task]) -> None:
        """Every candidate exists and belongs to the task's prompt."""
        _require(session, PromptRow, {task.prompt_id for task in tasks}, "prompt")
        shown = {candidate_id for task in tasks for candidate_id in task.candidate_ids}
        prompt_of: dict[str, str] = {}
        for batch in batches(shown):
            query = select(CandidateRow.id, CandidateRow.prompt_id)
            prompt_of.update(session.execute(query.where(CandidateRow.id.in_(batch))).all())
        for task in tasks:
            for candidate_id in task.candidate_ids:
                owner = prompt_of.get(candidate_id)
                if owner is None:
                    raise NotFoundError(f"there is no candidate {candidate_id!r}")
                if owner != task.prompt_id:
                    raise ConflictError(
                        f"candidate {candidate_id!r} was drawn for prompt {owner!r}, "
                        f"not for {task.prompt_id!r}"
                    )

    def _add_slots(
        self, session: Session, tasks: Sequence[Task], annotators: int, priority: int
    ) -> None:
        existing: dict[str, int] = {}
        for batch in batches(task.id for task in tasks):
            query = select(TaskRow.id, TaskRow.k_required).where(TaskRow.id.in_(batch))
            existing.update(session.execute(query).all())
        last = _load_last_slots(session, existing)
        slots = []
        for task in tasks:
            done = existing[task.id] if task.id in last else 0
            first = last.get(task.id, 0) + 1
            rank = queue_rank(task.id, priority)
            slots += [
                _slot_values(task.id, first + i, rank) for i in range(max(0, annotators - done))
            ]
        _insert(session, AssignmentRow, slots)
        _raise_k(session, [task.id for task in tasks], to=annotators)

    def _take_image(
        self, candidate: Candidate, images: ImageSource, checked: dict[str, tuple[int, int]]
    ) -> None:
        """Verify the candidate's image and keep it under its hash."""
        sha256 = candidate.image_sha256
        if sha256 not in checked:
            data = _image_bytes(sha256, images)
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                raise StoreError(f"the image's SHA-256 is {found}, expected {sha256}")
            checked[sha256] = png_size(data)
            write_once(self.image_path(sha256), data)
        if checked[sha256] != (candidate.width, candidate.height):
            width, height = checked[sha256]
            raise StoreError(
                f"the image is {width} x {height} pixels, "
                f"expected {candidate.width} x {candidate.height}"
            )


def png_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a PNG whose pixels all decode; StoreError for anything else."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.format != "PNG":
                raise StoreError(f"the image is {image.format}, expected PNG")
            return image.size
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"the image cannot be decoded: {error}") from error


def write_once(path: Path, data: bytes) -> None:
    """Write a content-addressed file; readers see all of it or nothing, also after a crash."""
    if path.exists():
        return
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def prompt_record(row: PromptRow) -> Prompt:
    """The snapshot record of a row."""
    return Prompt(
        id=row.id,
        text=row.text,
        lang=row.lang,
        category=row.category,
        split=Split(row.split),
        metadata=row.metadata_json,
    )


def candidate_record(row: CandidateRow) -> Candidate:
    """The snapshot record of a row."""
    return Candidate(
        id=row.id,
        prompt_id=row.prompt_id,
        image_sha256=row.image_sha256,
        width=row.width,
        height=row.height,
        generation=None if row.generation is None else Generation(**row.generation),
    )


def load_tasks(session: Session, rows: Sequence[TaskRow]) -> list[Task]:
    """The records of these rows with their candidates in canonical order, sorted by id."""
    shown: dict[str, list[str]] = {row.id: [] for row in rows}
    for batch in batches(shown):
        query = (
            select(TaskCandidateRow.task_id, TaskCandidateRow.candidate_id)
            .where(TaskCandidateRow.task_id.in_(batch))
            .order_by(TaskCandidateRow.task_id, TaskCandidateRow.ordinal)
        )
        for task_id, candidate_id in session.execute(query):
            shown[task_id].append(candidate_id)
    tasks = [
        Task(
            id=row.id,
            prompt_id=row.prompt_id,
            question=Question(row.question),
            candidate_ids=tuple(shown[row.id]),
            kind=row.kind,
        )
        for row in rows
    ]
    return sorted(tasks, key=_id)


def _make_task(
    prompt_id: str, candidate_ids: Sequence[str], question: Question, kind: str, seed: int
) -> Task:
    if not 2 <= len(candidate_ids) <= MAX_CANDIDATES:
        raise StoreError(
            f"a task shows 2 to {MAX_CANDIDATES} candidates, got {len(candidate_ids)} "
            f"for prompt {prompt_id!r}"
        )
    if len(set(candidate_ids)) != len(candidate_ids):
        raise StoreError(f"a candidate stands twice in the task of prompt {prompt_id!r}")
    ordered = canonical_order(candidate_ids, seed, prompt_id)
    task_id = keyed_digest(b"task", prompt_id, question.value, kind, *ordered).hex()[:32]
    return Task(
        id=task_id, prompt_id=prompt_id, question=question, candidate_ids=tuple(ordered), kind=kind
    )


def _image_bytes(sha256: str, images: ImageSource) -> bytes:
    if isinstance(images, Mapping):
        source = images.get(sha256)
        if source is None:
            raise StoreError(f"no image with SHA-256 {sha256} was given")
        if isinstance(source, bytes):
            return source
        path = Path(source)
    else:
        path = Path(images) / f"{sha256}.png"
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read the image {path}: {error.strerror}") from error


def _check_text(record: Record) -> None:
    """Both engines can hold it: no NUL, no lone surrogate, no NaN."""
    try:
        text = record.model_dump_json()
        text.encode()
    except ValueError as error:
        raise StoreError(f"{record!r} cannot be stored: {error}") from error
    if "\\u0000" in text:
        raise StoreError(f"{type(record).__name__} {record.id!r} has a NUL character in its text")


def _prompt_values(prompt: Prompt) -> dict[str, Any]:
    values = prompt.model_dump(mode="json")
    values["metadata_json"] = values.pop("metadata")
    return {**values, "created_at": datetime.now(UTC)}


def _candidate_values(candidate: Candidate) -> dict[str, Any]:
    return {**candidate.model_dump(mode="json"), "created_at": datetime.now(UTC)}


def _slot_values(task_id: str, slot: int, rank: int) -> dict[str, Any]:
    return {"task_id": task_id, "slot": slot, "rank": rank, "state": "open", "attempt": 0}


def _insert(session: Session, row: type[Any], values: list[dict[str, Any]]) -> None:
    if values:
        session.execute(insert(row), values)


def _by_id(records: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in records:
        if found.setdefault(record.id, record) != record:
            raise ConflictError(f"{type(record).__name__} {record.id!r} stands twice, differently")
    return found


def _without_known(wanted: dict[str, Any], known: dict[str, Any]) -> list[Any]:
    for record_id, record in known.items():
        if record != wanted[record_id]:
            raise ConflictError(
                f"{type(record).__name__} {record_id!r} is in the store with other content; "
                "nothing was imported"
            )
    return [record for record_id, record in wanted.items() if record_id not in known]


def _load_prompts(session: Session, ids: Iterable[str]) -> dict[str, Prompt]:
    return {
        row.id: prompt_record(row)
        for batch in batches(ids)
        for row in session.scalars(select(PromptRow).where(PromptRow.id.in_(batch)))
    }


def _load_candidates(session: Session, ids: Iterable[str]) -> dict[str, Candidate]:
    return {
        row.id: candidate_record(row)
        for batch in batches(ids)
        for row in session.scalars(select(CandidateRow).where(CandidateRow.id.in_(batch)))
    }


def _load_existing(session: Session, column: Any, ids: Iterable[str]) -> set[str]:
    return {
        found
        for batch in batches(ids)
        for found in session.scalars(select(column).where(column.in_(batch)))
    }


def _load_last_slots(session: Session, task_ids: Iterable[str]) -> dict[str, int]:
    last: dict[str, int] = {}
    for batch in batches(task_ids):
        query = (
            select(AssignmentRow.task_id, func.max(AssignmentRow.slot))
            .where(AssignmentRow.task_id.in_(batch))
            .group_by(AssignmentRow.task_id)
        )
        last.update(session.execute(query).all())
    return last


def _raise_k(session: Session, task_ids: Iterable[str], *, to: int = 0, by: int = 0) -> None:
    for batch in batches(task_ids):
        query = update(TaskRow).where(TaskRow.id.in_(batch))
        if to:
            query = query.where(TaskRow.k_required < to).values(k_required=to)
        else:
            query = query.values(k_required=TaskRow.k_required + by)
        session.execute(query.execution_options(synchronize_session=False))


def _require(session: Session, row: Any, ids: set[str], noun: str) -> None:
    missing = sorted(ids - _load_existing(session, row.id, ids))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise NotFoundError(f"there is no {noun} {', '.join(map(repr, missing[:3]))}{more}")


def _id(record: Any) -> str:
    return record.id
