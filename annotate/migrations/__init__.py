"""Brings a store's schema up to date; the revisions are in ``versions/``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

# Any number will do, as long as every process takes the same.
_ADVISORY_LOCK = 0x77696E736F6D65


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for the packaged revisions, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def current_revision(engine: Engine) -> str | None:
    """The revision of the store's schema; None for an empty database."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def head_revision() -> str | None:
    """The newest revision that this version of winsome knows."""
    return ScriptDirectory.from_config(alembic_config()).get_current_head()


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the schema to ``revision``; several processes may do so at once.

    Raises:
        ValueError: the store was written by a newer version, whose revision is unknown here.
    """
    scripts = ScriptDirectory.from_config(alembic_config())
    known = {script.revision for script in scripts.walk_revisions()}
    current = current_revision(engine)
    if current == scripts.get_current_head() and revision == "head":
        return
    if current is not None and current not in known:
        raise ValueError(
            f"the store has schema revision {current!r}, which this version of winsome does not "
            f"know (its newest is {scripts.get_current_head()!r}): use a newer winsome"
        )
    _run(engine, command.upgrade, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Take the schema back to ``revision``; ``base`` empties the database."""
    _run(engine, command.downgrade, revision)


def _run(engine: Engine, action: Callable[[Config, str], None], revision: str) -> None:
    is_sqlite = engine.dialect.name == "sqlite"
    with engine.execution_options(winsome_write=True).connect() as connection:
        if is_sqlite:
            # A batch migration rebuilds tables, which must not cascade; no effect inside BEGIN.
            _set_foreign_keys(connection, "OFF")
        try:
            with connection.begin():
                if not is_sqlite:
                    connection.execute(
                        text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK}
                    )
                action(alembic_config(connection), revision)
        finally:
            if is_sqlite:
                _set_foreign_keys(connection, "ON")


def _set_foreign_keys(connection: Connection, state: str) -> None:
    cursor = connection.connection.cursor()
    cursor.execute(f"PRAGMA foreign_keys={state}")
    cursor.close()
