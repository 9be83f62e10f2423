"""What is judged: prompts, and candidates with their images."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.schema import Candidate, Generation, Prompt, Record, Split
from annotate.store.engine import StoreBase, batches, insert_rows, require_rows
from annotate.store.errors import ConflictError, StoreError
from annotate.store.pictures import png_size
from annotate.tables import CandidateRow, PromptRow

ImageSource = str | Path | Mapping[str, str | Path | bytes]


class ContentStore(StoreBase):
    """The part of a store that holds what is judged. Adding the same again changes nothing."""

    def add_prompts(self, prompts: Iterable[Prompt], images: ImageSource | None = None) -> int:
        """Add prompts, and take in the source pictures of those that ask for an edit.

        Args:
            images: where the source pictures are, as `add_candidates` takes them; one that the
                store has already need not be there.

        Returns:
            How many prompts were new.

        Raises:
            ConflictError: an id is there already with other content; nothing is imported.
            StoreError: a source picture is missing, corrupt, or not what its prompt says.
        """
        wanted = _by_id(prompts)
        for prompt in wanted.values():
            _check_text(prompt)
        self._take_sources(wanted.values(), {} if images is None else images)
        with self._write() as session:
            new = _without_known(wanted, _load_prompts(session, wanted))
            insert_rows(session, PromptRow, [_prompt_values(prompt) for prompt in new])
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
            require_rows(session, PromptRow, {c.prompt_id for c in wanted.values()}, "prompt")
            new = _without_known(wanted, _load_candidates(session, wanted))
            insert_rows(session, CandidateRow, [_candidate_values(candidate) for candidate in new])
        return len(new)

    def prompts(self, split: Split | str | None = None) -> list[Prompt]:
        """Every prompt, or those of one split, sorted by id."""
        query = select(PromptRow)
        if split is not None:
            query = query.where(PromptRow.split == Split(split).value)
        with self._read() as session:
            return sorted(
                (prompt_record(row) for row in session.scalars(query)), key=lambda record: record.id
            )

    def candidates(self, prompt_id: str | None = None) -> list[Candidate]:
        """Every candidate, or those of one prompt, sorted by id."""
        query = select(CandidateRow)
        if prompt_id is not None:
            query = query.where(CandidateRow.prompt_id == prompt_id)
        with self._read() as session:
            return sorted(
                (candidate_record(row) for row in session.scalars(query)),
                key=lambda record: record.id,
            )

    def _take_sources(self, prompts: Iterable[Prompt], images: ImageSource) -> None:
        named = {p.source_image: p.id for p in prompts if p.source_image is not None}
        for sha256, prompt_id in named.items():
            try:
                if self._stored_image(sha256) is None:
                    self._take_picture(sha256, images)
            except StoreError as error:
                raise StoreError(f"source image of prompt {prompt_id!r}: {error}") from error

    def _take_picture(self, sha256: str, images: ImageSource) -> tuple[int, int]:
        """Verify an image and keep it under its hash; returns (width, height)."""
        data = _image_bytes(sha256, images)
        found = sha256_of(data)
        if found != sha256:
            raise StoreError(f"the image's SHA-256 is {found}, expected {sha256}")
        size = png_size(data)
        self._keep_image(sha256, data)
        return size

    def _take_image(
        self, candidate: Candidate, images: ImageSource, checked: dict[str, tuple[int, int]]
    ) -> None:
        """Verify the candidate's image and keep it under its hash."""
        sha256 = candidate.image_sha256
        if sha256 not in checked:
            checked[sha256] = self._take_picture(sha256, images)
        if checked[sha256] != (candidate.width, candidate.height):
            width, height = checked[sha256]
            raise StoreError(
                f"the image is {width} x {height} pixels, "
                f"expected {candidate.width} x {candidate.height}"
            )


def sha256_of(data: bytes) -> str:
    """The name of an image: the SHA-256 of its PNG file's bytes."""
    return hashlib.sha256(data).hexdigest()


def prompt_record(row: PromptRow) -> Prompt:
    """The snapshot record of a row."""
    return Prompt(
        id=row.id,
        text=row.text,
        lang=row.lang,
        category=row.category,
        split=Split(row.split),
        source_image=row.source_image,
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


def _check_text(record: Prompt | Candidate) -> None:
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


def _by_id(records: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in records:
        if found.setdefault(record.id, record) != record:
            raise ConflictError(
                f"{type(record).__name__} {record.id!r} stands twice, with another "
                f"{_differing(found[record.id], record)}"
            )
    return found


def _without_known(wanted: dict[str, Any], known: dict[str, Any]) -> list[Any]:
    for record_id, record in known.items():
        if record != wanted[record_id]:
            raise ConflictError(
                f"{type(record).__name__} {record_id!r} is in the store with another "
                f"{_differing(record, wanted[record_id])}; nothing was imported"
            )
    return [record for record_id, record in wanted.items() if record_id not in known]


def _differing(one: Record, other: Record) -> str:
    """The fields in which two records differ, each with what ``one`` has and what ``other``."""
    known, given = one.model_dump(mode="json"), other.model_dump(mode="json")
    return " and ".join(
        f"{name} ({reprlib.repr(known[name])}, here {reprlib.repr(given[name])})"
        for name in known
        if known[name] != given[name]
    )


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
