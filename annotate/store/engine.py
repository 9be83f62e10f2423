"""The connection to a store: engine, transactions, migrations, the signing secret."""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Engine, Insert, create_engine, event, insert, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from annotate.image_files import ImageFiles
from annotate.migrations import current_revision, upgrade
from annotate.store.errors import ConflictError, NotFoundError, StoreAccessError, StoreError
from annotate.tables import SettingRow

DATABASE_FILE = "winsome.db"
IMAGES_FOLDER = "images"
BUSY_TIMEOUT_S = 5
"""Seconds that a request waits for another writer: well under a page's own limit of 15 s."""
MAX_BOUND_VALUES = 500


class StoreBase:
    """An open store: where it is, and its two kinds of transaction."""

    def __init__(self, engine: Engine, images: ImageFiles, pseudonym_key: str | None = None):
        self.engine = engine
        self.images = images
        self._writer = engine.execution_options(winsome_write=True)
        # SQLite has one writer: queueing in the process is fairer and faster than busy polling.
        self._write_lock = threading.Lock() if self.is_sqlite else None
        self._secret, self._pseudonym_key = self._load_keys(pseudonym_key)

    @classmethod
    def open(
        cls,
        location: str | Path,
        images: str | Path | None = None,
        pseudonym_key: str | None = None,
    ) -> Self:
        """Open a store, creating it and bringing its schema up to date where needed.

        Args:
            location: a folder (SQLite at ``winsome.db`` in it), or a database URL.
            images: where the PNG files lie: a folder or an fsspec URL (``s3://bucket/prefix``); by
                default ``images`` in the folder. A database URL needs it.
            pseudonym_key: names annotators in snapshots. By default a random one is drawn when
                the store is made; give one to get equal pseudonyms from several stores.

        Raises:
            StoreAccessError: the folder or the database cannot be used.
            StoreError: the schema is newer than this version of winsome, or the key differs.
        """
        text = str(location)
        if "://" in text:
            if images is None:
                raise ValueError("a database URL needs a place for the images beside it")
            url = text
        else:
            folder = Path(location)
            images = images or folder / IMAGES_FOLDER
            _make_folder(folder)
            url = f"sqlite:///{folder / DATABASE_FILE}"
        files = _open_images(images)
        try:
            engine = make_engine(url)
        except ArgumentError as error:
            raise ValueError(f"not a database URL: {text!r} ({error})") from error
        try:
            with _explained_errors(engine):
                upgrade(engine)
            return cls(engine, files, pseudonym_key)
        except BaseException:
            engine.dispose()
            raise

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def image_path(self, image_sha256: str) -> Path:
        """The image with these bytes on this machine; from a remote store it is fetched once.

        Raises:
            StoreAccessError: the remote store cannot be used.
        """
        with _explained_files():
            return self.images.path(image_sha256)

    def _stored_image(self, image_sha256: str) -> bytes | None:
        with _explained_files():
            return self.images.stored(image_sha256)

    def _keep_image(self, image_sha256: str, data: bytes) -> None:
        with _explained_files():
            self.images.put(image_sha256, data)

    @contextmanager
    def _read(self) -> Iterator[Session]:
        """A transaction that only reads; on SQLite it sees one moment and blocks nobody."""
        with (
            _explained_errors(self.engine),
            Session(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        """A transaction that may write; committed on leaving, or rolled back whole."""
        with (
            _explained_errors(self.engine),
            self._turn_to_write(),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def _turn_to_write(self) -> Iterator[None]:
        if self._write_lock is None:
            yield
            return
        # The thread before may itself wait for another process so long.
        if not self._write_lock.acquire(timeout=2 * BUSY_TIMEOUT_S):
            where = self.engine.url.render_as_string(hide_password=True)
            raise StoreAccessError(f"the store at {where} is busy with another write", code="busy")
        try:
            yield
        finally:
            self._write_lock.release()

    def _insert_new(self, row: type[Any]) -> Insert:
        """An INSERT that leaves rows alone which exist already."""
        dialect = sqlite if self.is_sqlite else postgresql
        return dialect.insert(row).on_conflict_do_nothing()

    def _load_keys(self, pseudonym_key: str | None) -> tuple[bytes, bytes]:
        wanted = {
            "secret": secrets.token_hex(32),
            "pseudonym_key": pseudonym_key or secrets.token_hex(32),
        }
        with self._read() as session:
            stored = dict(session.execute(select(SettingRow.key, SettingRow.value)).all())
        if not wanted.keys() <= stored.keys():
            with self._write() as session:
                rows = [{"key": key, "value": value} for key, value in wanted.items()]
                session.execute(self._insert_new(SettingRow), rows)
                stored = dict(session.execute(select(SettingRow.key, SettingRow.value)).all())
        if pseudonym_key is not None and stored["pseudonym_key"] != pseudonym_key:
            raise ConflictError("this store was made with another pseudonym key")
        return bytes.fromhex(stored["secret"]), stored["pseudonym_key"].encode()


def holds_studio(location: str | Path) -> bool:
    """Whether there is a schema in the database at ``location``, of whatever revision.

    Raises:
        StoreAccessError: the database cannot be read.
    """
    text = str(location)
    url = text if "://" in text else f"sqlite:///{Path(location) / DATABASE_FILE}"
    try:
        engine = make_engine(url)
    except ArgumentError as error:
        raise ValueError(f"not a database URL: {text!r} ({error})") from error
    try:
        with _explained_errors(engine):
            return current_revision(engine) is not None
    finally:
        engine.dispose()


def make_engine(url: str) -> Engine:
    """An engine whose transactions are safe under several processes.

    SQLite: foreign keys, WAL, and every write begins with BEGIN IMMEDIATE. A deferred transaction
    that reads first and then writes fails at once when another has written, whatever the timeout.
    """
    parsed = make_url(url)
    # Text that is exact and valid JSON: NaN is refused here rather than by PostgreSQL alone.
    options: dict[str, Any] = {"json_serializer": _dump_json}
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError(f"a store lives in sqlite or postgresql, got {parsed.drivername!r}")
    if parsed.get_backend_name() == "postgresql":
        return create_engine(parsed, pool_pre_ping=True, **options)
    engine = create_engine(
        parsed, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}, **options
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin in _begin_sqlite, not in the driver
    for pragma in ("foreign_keys=ON", "journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    write = connection.get_execution_options().get("winsome_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _dump_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreAccessError(f"cannot use the folder {folder}: {error.strerror}") from error


def _open_images(location: str | Path) -> ImageFiles:
    with _explained_files():
        files = ImageFiles.open(location)
    _make_folder(files.folder)
    return files


@contextmanager
def _explained_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreAccessError(str(error), code="storage") from error


@contextmanager
def _explained_errors(engine: Engine) -> Iterator[None]:
    """Turn what a person can act on into one clear error; a wrong query stays what it is."""
    try:
        yield
    except IntegrityError as error:
        raise ConflictError(f"the store refuses this: {str(error.orig).strip()}") from error
    except DataError as error:
        raise StoreError(f"the store cannot hold this: {str(error.orig).strip()}") from error
    except DatabaseError as error:
        if type(error) not in (OperationalError, DatabaseError):
            raise
        where = engine.url.render_as_string(hide_password=True)
        number = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF  # without the extended code
        is_busy = number in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        raise StoreAccessError(
            f"cannot use the store at {where}: {str(error.orig).strip()}",
            code="busy" if is_busy else "storage",
        ) from error


def batches(values: Iterable[Any], size: int = MAX_BOUND_VALUES) -> Iterator[list[Any]]:
    """Cut ``values`` into lists that fit the engines' limit on bound parameters."""
    iterator = iter(values)
    while batch := list(islice(iterator, size)):
        yield batch


def existing_ids(session: Session, row: Any, ids: Iterable[Any]) -> set[Any]:
    """Those of ``ids`` that the table has."""
    return {
        found
        for batch in batches(ids)
        for found in session.scalars(select(row.id).where(row.id.in_(batch)))
    }


def require_rows(session: Session, row: Any, ids: Iterable[Any], noun: str) -> None:
    """NotFoundError names the first of ``ids`` that the table lacks."""
    wanted = set(ids)
    missing = sorted(wanted - existing_ids(session, row, wanted))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise NotFoundError(f"there is no {noun} {', '.join(map(repr, missing[:3]))}{more}")


def insert_rows(session: Session, row: Any, values: list[dict[str, Any]]) -> None:
    """INSERT many rows, given by attribute name; none is fine."""
    if values:
        session.execute(insert(row), values)
