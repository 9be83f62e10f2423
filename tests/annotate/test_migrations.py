"""The schema that migrations make is the schema of `annotate.tables`, there and back."""

from __future__ import annotations

from multiprocessing import get_context

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from studio import add_users, answer, fill

from annotate.migrations import alembic_config, current_revision, downgrade, upgrade
from annotate.store.engine import make_engine
from annotate.tables import Base


def database_url(place) -> str:
    if "://" in place.location:
        return place.location
    return f"sqlite:///{place.location}.db"


@pytest.fixture
def engine(empty_place):
    engine = make_engine(database_url(empty_place))
    yield engine
    engine.dispose()


def differences(engine) -> list:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return compare_metadata(context, Base.metadata)


def constraint_names(engine) -> set[str | None]:
    found = inspect(engine)
    return {
        constraint["name"]
        for table in Base.metadata.tables
        for constraint in [
            *found.get_check_constraints(table),
            *found.get_unique_constraints(table),
            *found.get_foreign_keys(table),
            *found.get_indexes(table),
            found.get_pk_constraint(table),
        ]
    }


def test_migrations_make_the_tables_as_they_are_declared(engine, make_place):
    upgrade(engine)
    assert differences(engine) == []
    declared = make_engine(database_url(make_place(engine.dialect.name, empty=True)))
    Base.metadata.create_all(declared)
    assert constraint_names(engine) == constraint_names(declared)
    declared.dispose()


def test_every_revision_goes_down_and_up_again(engine):
    upgrade(engine)
    revisions = list(ScriptDirectory.from_config(alembic_config()).walk_revisions())
    for script in revisions:
        downgrade(engine, script.down_revision or "base")
        assert current_revision(engine) == script.down_revision
    assert set(inspect(engine).get_table_names()) == {"alembic_version"}
    upgrade(engine)
    assert differences(engine) == []


def test_opening_again_keeps_the_data(place):
    with place.open() as store:
        fill(store, tasks=1)
        (ada,) = add_users(store, "ada")
        pick = store.submit(ada.id, answer(store.claim(ada.id), "k1"))
    with place.open() as store:
        assert [p.id for p in store.labelled()[3]] == [pick.id]


def test_a_newer_store_is_refused_and_left_alone(place):
    with place.open() as store, store._write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ValueError, match=r"'9999'.*newer winsome"):
        place.open()


def open_store(place) -> str:
    with place.open() as store:
        return store.pseudonym("ada")


def test_several_processes_may_open_a_new_store_at_once(empty_place):
    with get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(open_store, [empty_place] * 3))) == 1
