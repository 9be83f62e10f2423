"""Backup and restore: every row of every table as lines of JSON, and the images by hash.

One format for both engines, so that a backup of SQLite restores into PostgreSQL and back. It is
read in one transaction and so is of one moment, while people go on labelling. A backup holds
password hashes and the store's secrets: keep it as safe as the store itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import DateTime, Table, func, insert, select, text
from sqlalchemy.orm import Session

from annotate.migrations import current_revision
from annotate.store.engine import StoreBase
from annotate.store.errors import StoreError
from annotate.tables import Base, CandidateRow, PromptRow, SettingRow, UserRow

if TYPE_CHECKING:
    from annotate.store import PreferenceStore

FORMAT = 1
MANIFEST = "backup.json"
IMAGES = "images"
ROWS_AT_ONCE = 500


@dataclass(frozen=True)
class Backup:
    """A backup as its manifest describes it."""

    folder: Path
    revision: str
    """Of the schema."""
    rows: dict[str, int]
    """By table."""
    files: dict[str, str]
    """SHA-256 of each file of rows."""
    audit_heads: dict[str, tuple[int, str]]
    created_at: str


class BackupStore(StoreBase):
    """The part of a store that is checked and copied out as a whole."""

    def check(self) -> list[str]:
        """What is wrong in the database and with the images; [] when nothing is."""
        with self._read() as session:
            faults = list(_broken_references(session)) if self.is_sqlite else []
            hashes = _image_hashes(session)
        for sha256 in sorted(hashes):
            data = self._stored_image(sha256)
            if data is None:
                faults.append(f"the image {sha256}.png is missing")
            elif hashlib.sha256(data).hexdigest() != sha256:
                faults.append(f"the image {sha256}.png was changed")
        return faults

    def backup(self, folder: str | Path) -> Backup:
        """Write all rows and images into the new folder ``folder``: whole, or not at all.

        Raises:
            FileExistsError: the folder is there already.
            StoreError: an image is missing or damaged: what was written could not be restored.
        """
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"{folder} is there already; a backup is a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        partial.mkdir()
        try:
            self._write_backup(partial)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial)
            raise
        return read_backup(folder)

    def _write_backup(self, folder: Path) -> None:
        rows: dict[str, int] = {}
        files: dict[str, str] = {}
        with self._read() as session:
            if not self.is_sqlite:
                session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            for table in Base.metadata.sorted_tables:
                path = folder / f"{table.name}.jsonl"
                rows[table.name], files[path.name] = _dump(session, table, path)
            hashes = _image_hashes(session)
        (folder / IMAGES).mkdir()
        for sha256 in hashes:
            source = self.image_path(sha256)
            if not source.is_file():
                raise StoreError(f"the store lacks the image {source.name}")
            data = source.read_bytes()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise StoreError(f"the store's image {source} was changed; bring it back first")
            (folder / IMAGES / source.name).write_bytes(data)
        manifest = {
            "format": FORMAT,
            "revision": current_revision(self.engine),
            "rows": rows,
            "files": files,
            "audit_heads": self._heads_in(folder),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    def _heads_in(self, folder: Path) -> dict[str, tuple[int, str]]:
        """The heads as of the rows that were written, not as of a moment later."""
        heads: dict[str, tuple[int, str]] = {}
        for row in _lines(folder / "audit_event.jsonl"):
            number, _ = heads.get(row["actor"], (0, ""))
            if row["number"] > number:
                heads[row["actor"]] = (row["number"], row["sha256"])
        return heads


def read_backup(folder: str | Path) -> Backup:
    """The manifest of a backup, its files of rows verified, its images all there.

    Raises:
        FileNotFoundError: there is no backup in ``folder``.
        StoreError: a file is missing or was changed.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for name, sha256 in manifest["files"].items():
        if not (folder / name).is_file():
            raise StoreError(f"the backup {folder} is incomplete: there is no {name}")
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise StoreError(
                f"{folder / name} was changed after the backup: its SHA-256 is {found}"
            )
    for sha256 in sorted(_named_images(folder)):
        if not (folder / IMAGES / f"{sha256}.png").is_file():
            raise StoreError(
                f"the backup {folder} is incomplete: there is no {IMAGES}/{sha256}.png"
            )
    return Backup(
        folder=folder,
        revision=manifest["revision"],
        rows=manifest["rows"],
        files=manifest["files"],
        audit_heads={actor: tuple(head) for actor, head in manifest["audit_heads"].items()},
        created_at=manifest["created_at"],
    )


def restore(store: PreferenceStore, folder: str | Path) -> Backup:
    """Fill an empty store from a backup: its rows in one transaction, its images before them.

    The store takes the secrets of the backup: leases, media tokens and pseudonyms stay valid. Open
    it again afterwards.

    Raises:
        StoreError: the store is not empty, or the backup is of another schema or damaged.
    """
    backup = read_backup(folder)
    here = current_revision(store.engine)
    if backup.revision != here:
        raise StoreError(
            f"the backup has schema revision {backup.revision}, this version writes {here}: "
            "restore it with the version of winsome that made it, then upgrade"
        )
    for sha256 in sorted(_named_images(backup.folder)):
        path = backup.folder / IMAGES / f"{sha256}.png"
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(f"the image {path} was changed after the backup")
        store._keep_image(sha256, data)
    with store._write() as session:
        taken = session.scalar(select(func.count()).select_from(UserRow))
        if taken or session.scalar(select(func.count()).select_from(CandidateRow)):
            raise StoreError("the store is not empty; restore into a new one")
        for row in session.scalars(select(SettingRow)).all():
            session.delete(row)
        session.flush()
        for table in Base.metadata.sorted_tables:
            _load(session, table, backup.folder / f"{table.name}.jsonl")
        if not store.is_sqlite:
            _advance_sequences(session)
    return backup


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no backup in {folder}: there is no {MANIFEST}")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise StoreError(f"{path} must hold an object, got {type(manifest).__name__}")
    missing = {"format", "revision", "rows", "files", "audit_heads", "created_at"} - {*manifest}
    if missing:
        raise StoreError(f"{path} lacks {', '.join(sorted(missing))}")
    if manifest["format"] != FORMAT:
        raise StoreError(f"{path} has format {manifest['format']}, this version reads {FORMAT}")
    return manifest


def _dump(session: Session, table: Table, path: Path) -> tuple[int, str]:
    """Write a table's rows in the order of their keys; how many, and the file's SHA-256."""
    count, digest = 0, hashlib.sha256()
    query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=500)
    with path.open("wb") as file:
        for row in session.execute(query).mappings():
            values = {
                name: value.isoformat() if isinstance(value, datetime) else value
                for name, value in row.items()
            }
            line = json.dumps(values, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            digest.update(line)
            file.write(line)
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return count, digest.hexdigest()


def _load(session: Session, table: Table, path: Path) -> None:
    # A row may point at one of its own table that comes later: those links are set at the end.
    own = {key.parent.name for key in table.foreign_keys if key.column.table is table}
    links: list[dict[str, Any]] = []
    batch: list[dict[str, Any]] = []
    for values in _lines(path):
        for column in table.columns:
            if values[column.name] is not None and isinstance(_impl(column), DateTime):
                values[column.name] = datetime.fromisoformat(values[column.name])
        if any(values[name] is not None for name in own):
            links.append({**values})
            values.update(dict.fromkeys(own))
        batch.append(values)
        if len(batch) == ROWS_AT_ONCE:
            session.execute(insert(table), batch)
            batch = []
    if batch:
        session.execute(insert(table), batch)
    for values in links:
        session.execute(
            table.update()
            .where(table.c.id == values["id"])
            .values({name: values[name] for name in own})
        )


def _impl(column: Any) -> Any:
    return getattr(column.type, "impl_instance", column.type)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _advance_sequences(session: Session) -> None:
    """PostgreSQL numbers on from its sequences, which explicit ids do not move."""
    for table in Base.metadata.sorted_tables:
        for column in table.primary_key.columns:
            name = session.scalar(
                text("SELECT pg_get_serial_sequence(:table, :column)"),
                {"table": table.name, "column": column.name},
            )
            if name:
                newest = session.scalar(select(func.max(column)))
                if newest is not None:
                    session.execute(text("SELECT setval(:name, :to)"), {"name": name, "to": newest})


def _image_hashes(session: Session) -> set[str]:
    """The SHA-256 of every image that a row names."""
    sources = session.scalars(select(PromptRow.source_image).distinct())
    return {
        *session.scalars(select(CandidateRow.image_sha256).distinct()),
        *(sha256 for sha256 in sources if sha256 is not None),
    }


def _named_images(folder: Path) -> set[str]:
    """The same of a backup's rows."""
    columns = (("candidate", "image_sha256"), ("prompt", "source_image"))
    named = {row.get(name) for t, name in columns for row in _lines(folder / f"{t}.jsonl")}
    return {sha256 for sha256 in named if sha256 is not None}


def _broken_references(session: Session) -> Iterator[str]:
    for fault in session.execute(text("PRAGMA integrity_check")).scalars():
        if fault != "ok":
            yield f"the database is damaged: {fault}"
    for table, row, parent, _ in session.execute(text("PRAGMA foreign_key_check")):
        yield f"row {row} of {table} names a {parent} that is not there"
