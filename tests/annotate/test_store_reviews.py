"""Reviews stand beside picks, and the audit trail tells when a row was touched."""

from __future__ import annotations

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session
from studio import add_users, answer, fill
from test_distribution import work

from annotate.snapshot import cut_snapshot
from annotate.store import ConflictError, NotFoundError, StoreError, Verdict
from annotate.tables import AssignmentRow, PickRow, TaskRow


@pytest.fixture
def studio(store):
    """Two tasks of three candidates: ada and bo reverse each other on one, agree on the other."""
    fill(store, tasks=2, each=3, annotators=2)
    add_users(store, "ada", "bo", "cy")
    add_users(store, "rita", role="reviewer")
    first = store.claim(store.user("ada").id).task_id
    for name in ("ada", "bo"):
        for _ in range(2):
            user = store.user(name).id
            reverse = name == "bo" and store.claim(user).task_id == first
            work(store, user, (2, 0) if reverse else (0, 2))
    return store


def test_the_dispute_queue_has_what_people_disagree_on_or_flagged(studio):
    (dispute,) = studio.disputes()
    assert dispute.agreement == pytest.approx(1 / 3)
    assert [row.annotator for row in dispute.answers] == ["ada", "bo"]
    assert dispute.answers[0].win_id == dispute.answers[1].lose_id == dispute.candidate_ids[0]
    fill(studio, tasks=3, each=3)
    claim = studio.claim(studio.user("cy").id)
    studio.submit(studio.user("cy").id, answer(claim, "flagged", "flag"))
    assert [row.agreement for row in studio.disputes()] == [pytest.approx(1 / 3), 1]


def test_a_flagged_check_is_not_for_the_queue(studio):
    fill(studio, tasks=3, each=3)
    claim = studio.claim(studio.user("cy").id)
    studio.submit(studio.user("cy").id, answer(claim, "flagged", "flag"))
    assert claim.task_id in {row.task_id for row in studio.disputes()}
    with Session(studio.engine) as session, session.begin():
        session.get_one(TaskRow, claim.task_id).kind = "gold"
    assert claim.task_id not in {row.task_id for row in studio.disputes()}


@pytest.mark.parametrize("name", ["ada\u200b", "a\u202eda", "ada\nbo", "a\0da", "a\u2066da"])
def test_no_account_has_invisible_characters_in_its_name(studio, name):
    with pytest.raises(StoreError, match=r"no invisible characters, got U\+"):
        studio.add_user(name, "password-1234")


def test_a_review_overrides_in_the_snapshot_and_not_in_the_store(studio, tmp_path):
    rita, (dispute,) = studio.user("rita").id, studio.disputes()
    with Session(studio.engine) as session:
        before = [(p.id, p.win, p.lose, p.status) for p in session.scalars(select(PickRow))]
    verdict = Verdict(
        decision="override", cause="careless", outcome="picked",
        win_id=dispute.candidate_ids[1], lose_id=dispute.candidate_ids[2],
    )  # fmt: skip
    studio.review(rita, dispute.task_id, verdict)
    with Session(studio.engine) as session:
        assert [(p.id, p.win, p.lose, p.status) for p in session.scalars(select(PickRow))] == before
    assert studio.disputes() == []
    snapshot = cut_snapshot(studio, tmp_path / "s")
    (pick,) = [pick for pick in snapshot.picks if pick.task_id == dispute.task_id]
    assert (pick.annotator, pick.win, pick.lose) == (studio.pseudonym("rita"), 1, 2)
    assert len(studio.labelled(reviewed=False)[3]) == 4
    with pytest.raises(ConflictError, match="it was reviewed"):
        studio.undo(studio.user("ada").id)
    studio.review(rita, dispute.task_id, Verdict(decision="discard", cause="unclear_prompt"))
    assert dispute.task_id not in {pick.task_id for pick in studio.labelled()[3]}
    assert [row["decision"] for row in studio.reviews(dispute.task_id)] == ["discard", "override"]


def test_a_returned_task_goes_to_one_more_annotator(studio):
    (dispute,) = studio.disputes()
    cy = studio.user("cy").id
    assert studio.claim(cy) is None
    studio.review(studio.user("rita").id, dispute.task_id, Verdict(decision="return"))
    assert studio.claim(cy).task_id == dispute.task_id


@pytest.mark.parametrize("decision", ["discard", "return"])
def test_a_review_that_is_taken_back_leaves_all_as_it_was(studio, decision, tmp_path):
    def state():
        with Session(studio.engine) as session:
            slots = session.scalars(select(AssignmentRow).order_by(AssignmentRow.id))
            tasks = session.scalars(select(TaskRow).order_by(TaskRow.id))
            return [(s.id, s.state) for s in slots if s.state != "void"], [
                (t.id, t.k_required, t.closed_at) for t in tasks
            ]

    rita, (dispute,) = studio.user("rita").id, studio.disputes()
    before, labelled = state(), studio.labelled()
    number = studio.review(rita, dispute.task_id, Verdict(decision=decision))
    assert state() != before
    with pytest.raises(NotFoundError, match="you have given no review"):
        studio.withdraw_review(studio.user("ada").id, number)
    assert studio.withdraw_review(rita, number) == dispute.task_id
    assert (state(), studio.labelled(), studio.disputes()) == (before, labelled, [dispute])
    assert [row["taken back"] for row in studio.reviews()] == [True]
    assert studio.verify_audit() == []
    with pytest.raises(ConflictError, match="does not hold any more"):
        studio.withdraw_review(rita, number)
    again = studio.review(rita, dispute.task_id, Verdict(decision=decision))
    if decision == "return":
        work(studio, studio.user("cy").id)
        refusal = "somebody has taken the returned task"
    else:
        cut_snapshot(studio, tmp_path / "s")
        refusal = "a snapshot was cut since"
    with pytest.raises(ConflictError, match=refusal):
        studio.withdraw_review(rita, again)


def test_answers_are_counted_by_the_database(studio):
    claim = studio.claim(studio.user("cy").id)
    assert claim is None
    counts = studio.answer_counts()
    assert [(row.annotator, row.outcome, row.answers) for row in counts] == [
        ("ada", "picked", 2),
        ("bo", "picked", 2),
    ]
    assert counts[0].day == studio.label_events()[0].submitted_at.date().isoformat()
    assert [e.annotator for e in studio.label_events(newest=1)] == ["bo"]
    newest, everything = studio.judged(newest=3), studio.judged()
    assert newest.picks == everything.picks[1:]


@pytest.mark.parametrize(
    ("who", "verdict", "message"),
    [
        ("ada", {"decision": "confirm"}, "takes an active reviewer"),
        ("rita", {"decision": "agree"}, "choose one of confirm, override"),
        ("rita", {"decision": "confirm", "cause": "tired"}, "unknown cause 'tired'"),
        ("rita", {"decision": "confirm", "outcome": "all_bad"}, "takes no answer"),
        ("rita", {"decision": "override"}, "give an outcome"),
        ("rita", {"decision": "override", "outcome": "picked", "win_id": "x"}, "neither"),
        (
            "rita",
            {"decision": "override", "outcome": "picked", "win_id": "x", "lose_id": "y"},
            "does not show candidate 'x'",
        ),
    ],
)
def test_a_verdict_that_cannot_be(studio, who, verdict, message):
    (dispute,) = studio.disputes()
    with pytest.raises(StoreError, match=message):
        studio.review(studio.user(who).id, dispute.task_id, Verdict(**verdict))
    assert studio.reviews() == []
    with pytest.raises(NotFoundError, match="no task"):
        studio.review(studio.user("rita").id, "none", Verdict(decision="confirm"))


def tamper(store, statement: str) -> None:
    """Change rows behind the triggers' back, as somebody with the database in hand can."""
    if store.is_sqlite:
        off = [f"DROP TRIGGER audit_event_no_{verb}" for verb in ("update", "delete")]
    else:
        off = ["ALTER TABLE audit_event DISABLE TRIGGER USER"]
    with store._write() as session:
        for line in (*off, statement):
            session.execute(text(line))
        if not store.is_sqlite:
            session.execute(text("ALTER TABLE audit_event ENABLE TRIGGER USER"))


EVENT = "actor <> 'system' AND number = 1"


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        (f"UPDATE audit_event SET detail = '{{}}' WHERE {EVENT}", "was changed: its hash"),
        (f"DELETE FROM audit_event WHERE {EVENT}", "events are missing"),
        ("UPDATE pick SET win = lose, lose = win WHERE id = 2", "pick 2 was changed: lose, win"),
        ("UPDATE pick SET status = 'void' WHERE id = 3", "pick 3 was changed: status"),
        ("DELETE FROM pick WHERE id = 4", "pick 4 is gone"),
    ],
)
def test_a_touched_row_is_found(studio, statement, fault):
    studio.undo(studio.user("ada").id)
    heads = studio.audit_heads()
    assert studio.verify_audit(heads) == []
    tamper(studio, statement)
    assert any(fault in line for line in studio.verify_audit())


def test_the_newest_events_cannot_be_cut_off_behind_a_known_head(studio):
    heads = studio.audit_heads()
    actor = f"user:{studio.user('bo').id}"
    tamper(studio, f"DELETE FROM audit_event WHERE actor = '{actor}' AND number = 2")
    assert f"audit event 2 of {actor} is gone" in studio.verify_audit(heads)


def test_the_database_itself_refuses_to_change_the_trail(studio):
    for statement in ("UPDATE audit_event SET detail = ''", "DELETE FROM audit_event"):
        with (
            pytest.raises((DatabaseError, ConflictError, OSError), match="only ever added to"),
            studio._write() as session,
        ):
            session.execute(text(statement))
    assert studio.verify_audit() == []
