"""A studio with work in it comes through every migration: no row changes, no digest either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, MetaData, insert, select
from sqlalchemy.orm import Session
from studio import Place, add_users, answer, fill, make_candidates, png, sha256
from test_migrations import differences

from annotate.migrations import alembic_config, downgrade, upgrade
from annotate.records import Prompt, Run
from annotate.snapshot import cut_snapshot
from annotate.store import Claim, Guideline, PreferenceStore, Verdict
from annotate.store.backup import _advance_sequences
from annotate.store.engine import DATABASE_FILE, make_engine

Rows = dict[str, list[dict[str, Any]]]
REVISIONS = sorted(
    script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()
)


class Labeller:
    """Answers with ordinals, so that a studio's content does not hang on its secret."""

    def __init__(self, store: PreferenceStore, name: str):
        (user,) = add_users(store, name)
        self.store, self.id, self.answers = store, user.id, 0

    def answer(self, outcome: str = "picked", **details: Any) -> Claim:
        claim = self.store.claim(self.id)
        assert claim is not None
        if outcome == "picked":
            shown = range(len(claim.display_order))
            win = claim.reference_position
            best = claim.display_order.index(0) if win is None else win
            worst = next(p for p in shown if p != best)
            details = {"win_position": best, "lose_position": worst, **details}
        self.answers += 1
        self.store.submit(self.id, answer(claim, f"k{self.answers}", outcome, **details))
        return claim


def work_of_0001(store: PreferenceStore, ada: Labeller, bo: Labeller) -> None:
    """Every outcome, an answer taken back and given again, a task in hand, a session, a run."""
    for outcome in ("picked", "skip", "all_bad", "all_equal", "flag", "picked"):
        ada.answer(outcome)
    store.undo(ada.id)
    ada.answer("all_bad")
    bo.answer(telemetry={"zooms": 3, "版本": [1e16, None]}, active_ms=1200)
    bo.answer()
    store.claim(bo.id)
    store.create_session(ada.id)
    store.add_run(Run(id="run", kind="dpo", folder="runs/dpo", metrics={"reward": 0.5}))


def work_of_0002(store: PreferenceStore, ada: Labeller, bo: Labeller) -> None:
    """Reasons, regions and marks under a guideline, "cannot judge", a task with a gold image."""
    (lea,) = add_users(store, "lea", role="lead")
    store.add_guideline(lea.id, Guideline(texts={"zh": {"general": "先看"}}), replaces=None)
    bo.answer(
        reasons=({"target": "win", "criterion": "detail"},),
        regions=({"position": 1, "x": 1, "y": 2, "width": 3, "height": 4},),
        marks=({"position": 0, "rating": 5}, {"position": 2, "thumb": "down"}),
        guideline_version=1,
    )
    bo.answer("cannot_judge")
    ids = [candidate.id for candidate in store.candidates("prompt-0")]
    store.add_tasks({"prompt-0": ids}, "detail", 2, priority=9, references=ids[:1])
    assert bo.answer().reference_position is not None


def work_of_0003(store: PreferenceStore, ada: Labeller, bo: Labeller) -> None:
    """A hidden gold, a repeat, an extra slot, verdicts and a closed task."""
    ids = [candidate.id for candidate in store.candidates("prompt-1")]
    (gold,) = store.add_tasks({"prompt-1": ids}, kind="gold", annotators_per_task=0)
    store.set_key(gold.id, [gold.candidate_ids[0]])
    store.set_policy(gold_rate=0.5, repeat_rate=0.5, repeat_gap=1, max_extra_slots=2)
    while store.status().slots.get("done", 0) < 14:
        (ada if ada.answers < bo.answers else bo).answer()
    (rita,) = add_users(store, "rita", role="reviewer")
    first, second, *_ = sorted({pick.task_id for pick in store.labelled()[3]})
    verdict = Verdict(decision="override", cause="hard", outcome="all_bad")
    store.review(rita.id, first, verdict)
    store.review(rita.id, second, Verdict(decision="discard", cause="other", note="broken"))


def work_of_0004(store: PreferenceStore, ada: Labeller, bo: Labeller) -> None:
    """A task that was shown ahead."""
    (dan,) = add_users(store, "dan")
    assert store.peek(dan.id)


def work_of_0005(store: PreferenceStore, ada: Labeller, bo: Labeller) -> None:
    source = png(900)
    prompt = Prompt(id="edit", text="make it blue", source_image=sha256(source))
    store.add_prompts([prompt], {sha256(source): source})
    candidates, images = make_candidates([prompt], 3)
    store.add_candidates(candidates, images)
    store.add_tasks({prompt.id: [c.id for c in candidates]})


WORK: dict[str, Callable[[PreferenceStore, Labeller, Labeller], None]] = {
    "0001": work_of_0001,
    "0002": work_of_0002,
    "0003": work_of_0003,
    "0004": work_of_0004,
    "0005": work_of_0005,
}


def make_studio(place: Place, revision: str) -> None:
    """A studio of today with all that people could do in it at ``revision``."""
    with place.open() as store:
        fill(store, tasks=8, each=4, annotators=2)
        people = Labeller(store, "ada"), Labeller(store, "bo")
        for known, work in WORK.items():
            if known <= revision:
                work(store, *people)


def engine_of(place: Place) -> Engine:
    """What `PreferenceStore.open` uses, without bringing the schema up to date."""
    if "://" in place.location:
        return make_engine(place.location)
    Path(place.location).mkdir(exist_ok=True)
    return make_engine(f"sqlite:///{place.location}/{DATABASE_FILE}")


def read_rows(engine: Engine, columns: MetaData) -> Rows:
    """The rows of each table of ``columns``, of its columns alone, in the order of its key."""
    with engine.connect() as connection:
        return {
            table.name: [
                dict(row)
                for row in connection.execute(
                    select(table).order_by(*table.primary_key.columns)
                ).mappings()
            ]
            for table in columns.sorted_tables
            if table.name != "alembic_version"
        }


def reflect(engine: Engine) -> MetaData:
    metadata = MetaData()
    metadata.reflect(engine)
    return metadata


def as_of(revision: str, rows: Rows) -> Rows:
    """What stood in these columns at ``revision`` where today's studio has it otherwise."""
    checks = {task["id"] for task in rows["task"] if task["kind"] in ("gold", "repeat")}
    slots = [
        {**slot, "lane": 1} if revision == "0003" and slot["task_id"] in checks else slot
        for slot in rows["assignment"]
    ]
    return {**rows, "assignment": slots}


def write_rows(engine: Engine, rows: Rows, metadata: MetaData) -> None:
    with engine.begin() as connection:
        for name, values in rows.items():
            # A repeat names the task that it shows again, which must be there.
            ordered = sorted(values, key=lambda row: row.get("repeats_id") is not None)
            if ordered:
                connection.execute(insert(metadata.tables[name]), ordered)


def digest_of(place: Place, tmp_path, name: str) -> str:
    with place.open() as store:
        return cut_snapshot(store, tmp_path / name, with_images=False).digest


@pytest.mark.parametrize("revision", REVISIONS)
def test_work_of_every_revision_comes_up_to_date(place, make_place, tmp_path, revision):
    make_studio(place, revision)
    source = engine_of(place)
    target = Place(make_place(source.dialect.name, empty=True).location, place.images)
    engine = engine_of(target)
    upgrade(engine, revision)
    old = reflect(engine)
    today = read_rows(source, old)
    assert today["pick"]
    before = as_of(revision, today)
    write_rows(engine, before, old)

    upgrade(engine)
    assert read_rows(engine, old) == today
    assert differences(engine) == []
    downgrade(engine, revision)
    assert read_rows(engine, old) == before
    assert set(reflect(engine).tables) == set(old.tables)
    upgrade(engine)
    assert read_rows(engine, old) == today
    if engine.dialect.name == "postgresql":
        with Session(engine) as session, session.begin():
            _advance_sequences(session)  # rows with ids of their own do not move them
    assert digest_of(target, tmp_path, "after") == digest_of(place, tmp_path, "before")

    with target.open() as store:
        assert (store.check(), store.verify_audit()) == ([], [])
        (cy,) = add_users(store, "cy")
        while claim := store.claim(cy.id):
            store.submit(cy.id, answer(claim, f"c{claim.assignment_id}", "all_bad"))
        assert store.progress(cy.id).done > 0
        assert store.verify_audit() == []
    source.dispose()
    engine.dispose()


def test_the_newest_revision_has_work_of_its_own():
    assert list(WORK) == REVISIONS, f"give WORK what people can do since {REVISIONS[-1]}"
