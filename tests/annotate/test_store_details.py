"""What a pick says beyond best and worst, reference mode, history, guidelines."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from sqlalchemy import text
from studio import add_users, answer, fill, make_candidates, make_prompts

from annotate.records import Mark, Reason, Region, load_snapshot
from annotate.snapshot import cut_snapshot
from annotate.store import ConflictError, Guideline, NotFoundError, StoreError

REASONS = (
    {"target": "win", "criterion": "detail"},
    {"target": "lose", "criterion": "aesthetics"},
)


@pytest.fixture
def store(place):
    with place.open() as store:
        yield store


def test_details_reach_the_snapshot_by_ordinals_and_come_back_after_undo(store, tmp_path):
    fill(store, tasks=1)
    (ada,) = add_users(store, "ada")
    claim = store.claim(ada.id)
    order = claim.display_order
    given = {
        "reasons": REASONS,
        "regions": ({"position": 1, "x": 2, "y": 1, "width": 6, "height": 5},),
        "marks": (
            {"position": 3, "rating": 5},
            {"position": 0, "rating": 4, "thumb": "up"},
        ),
    }
    sent = answer(claim, "k1", **given)
    pick = store.submit(ada.id, sent)
    assert store.submit(ada.id, sent) == pick
    assert pick.reasons == tuple(Reason(**r) for r in sorted(REASONS, key=lambda r: r["target"]))
    assert pick.regions == (Region(ordinal=order[1], x=2, y=1, width=6, height=5),)
    assert set(pick.marks) == {
        Mark(ordinal=order[3], rating=5),
        Mark(ordinal=order[0], rating=4, thumb="up"),
    }
    with pytest.raises(ConflictError, match="another answer"):
        store.submit(ada.id, answer(claim, "k1", **{**given, "regions": ()}))

    back = store.undo(ada.id)
    previous = back.previous
    assert (previous.win_position, previous.lose_position) == (0, 1)
    assert previous.regions == sent.regions
    assert {m.position: m for m in previous.marks} == {m.position: m for m in sent.marks}
    assert store.claim(ada.id).previous == previous  # also after a reload

    again = store.submit(ada.id, answer(back, "k2", **given))
    snapshot = cut_snapshot(store, tmp_path / "cut")
    (stored,) = load_snapshot(snapshot.folder).picks
    assert stored.id == again.id
    assert (stored.reasons, stored.regions, stored.marks) == (
        pick.reasons, pick.regions, pick.marks,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"marks": ({"position": 4, "rating": 3},)}, "position 4 was not shown"),
        (
            {"regions": ({"position": 0, "x": 3, "y": 0, "width": 6, "height": 1},)},
            r"ends at \(9, 1\), outside its image of 8 x 6",
        ),
    ],
)
def test_a_detail_lies_on_an_image_that_was_shown(store, details, message):
    fill(store, tasks=1)
    (ada,) = add_users(store, "ada")
    claim = store.claim(ada.id)
    with pytest.raises(StoreError, match=message):
        store.submit(ada.id, answer(claim, "k1", **details))
    assert store.labelled()[3] == []


@pytest.mark.parametrize(
    "details",
    [
        {"reasons": (REASONS[0], REASONS[0])},
        {"marks": ({"position": 0},)},
        {"marks": ({"position": 0, "rating": 1}, {"position": 0, "thumb": "up"})},
        {"marks": ({"position": 0, "rating": 6},)},
        {"outcome": "all_bad", "reasons": REASONS},
        {"outcome": "cannot_judge", "win_position": 0},
    ],
)
def test_details_that_contradict_themselves_are_refused(store, details):
    fill(store, tasks=1)
    (ada,) = add_users(store, "ada")
    with pytest.raises(ValidationError):
        answer(store.claim(ada.id), "k1", **details)


def test_the_database_refuses_a_mark_on_an_image_that_was_not_shown(store):
    fill(store, tasks=1)
    (ada,) = add_users(store, "ada")
    store.submit(ada.id, answer(store.claim(ada.id), "k1"))
    insert = text(
        "INSERT INTO pick_mark (pick_id, ordinal, task_id, rating) "
        "SELECT id, :ordinal, task_id, 5 FROM pick"
    )
    with store._write() as session:
        session.execute(insert, {"ordinal": 3})
    with pytest.raises(ConflictError), store._write() as session:
        session.execute(insert, {"ordinal": 4})


def test_in_reference_mode_the_gold_image_wins(store):
    prompts = make_prompts(1)
    candidates, images = make_candidates(prompts, 4)
    store.add_prompts(prompts)
    store.add_candidates(candidates, images)
    group = {prompts[0].id: [c.id for c in candidates]}
    gold = candidates[2].id
    (plain,) = store.add_tasks(group, priority=-1)
    (task,) = store.add_tasks(group, references=[gold])
    assert task.id != plain.id
    assert task.candidate_ids[task.reference] == gold
    assert store.task(task.id) == task
    (ada,) = add_users(store, "ada")
    claim = store.claim(ada.id)
    position = claim.reference_position
    assert claim.display_order[position] == task.reference
    other, lose = (i for i in range(4) if i != position and i != (position + 1) % 4)
    with pytest.raises(StoreError, match=f"reference at position {position}, got {other}"):
        store.submit(ada.id, answer(claim, "k1", win_position=other, lose_position=lose))
    pick = store.submit(ada.id, answer(claim, "k2", win_position=position, lose_position=lose))
    assert pick.win == task.reference
    assert store.claim(ada.id).reference_position is None
    with pytest.raises(StoreError, match="2 references"):
        store.add_tasks(group, references=[gold, candidates[0].id])


def test_what_comes_next_can_be_looked_at_and_is_what_comes(store):
    fill(store, tasks=2)
    ada, bob = add_users(store, "ada", "bob")
    first = store.peek(ada.id)
    assert first == store.peek(ada.id) != store.peek(bob.id)
    claim = store.claim(ada.id)
    assert claim.media == first
    ahead = store.peek(ada.id)
    store.submit(ada.id, answer(claim, "k1"))
    assert store.claim(ada.id).media == ahead
    assert store.peek(ada.id) == ()


def test_annotators_see_their_own_answers_newest_first(store):
    fill(store, tasks=3)
    ada, bob = add_users(store, "ada", "bob")
    shown = []
    for index, outcome in enumerate(("picked", "cannot_judge")):
        claim = store.claim(ada.id)
        shown.append((claim.prompt, claim.media))
        store.submit(ada.id, answer(claim, f"k{index}", outcome))
    newest, oldest = store.history(ada.id)
    assert (newest.prompt, newest.outcome, newest.win) == (shown[1][0], "cannot_judge", None)
    assert (oldest.win, oldest.lose) == shown[0][1][:2]
    assert store.history(ada.id, before=newest.number) == [oldest]
    assert store.history(bob.id) == []


def test_guidelines_are_versions_that_picks_point_at(store):
    fill(store, tasks=1)
    (ada,) = add_users(store, "ada")
    (lea,) = add_users(store, "lea", role="lead")
    win, lose = (c.id for c in store.candidates()[:2])
    example = {"question": "detail", "win_id": win, "lose_id": lose, "why": {"en": "sharp"}}
    first = Guideline(texts={"en": {"general": "Look first."}}, examples=[example])
    assert store.guideline() is None
    assert store.add_guideline(lea.id, first, replaces=None).version == 1
    second = Guideline(texts={"en": {"detail": "edges"}, "zh": {"detail": "边缘"}})
    assert store.add_guideline(lea.id, second, replaces=1).version == 2
    assert store.guideline().guideline == second
    assert store.guideline_version() == 2
    assert store.guideline(1).guideline == first
    with pytest.raises(ConflictError, match=r"at version 2 .* from version 1"):
        store.add_guideline(lea.id, first, replaces=1)
    with pytest.raises(StoreError, match="a lead"):
        store.add_guideline(ada.id, first, replaces=2)
    missing = Guideline(texts={}, examples=[{**example, "win_id": "nobody's"}])
    with pytest.raises(NotFoundError, match="nobody's"):
        store.add_guideline(lea.id, missing, replaces=2)
    token = store.example_token(ada.id, win)
    assert store.candidate_of_token(ada.id, token) == win
    path = store.media(ada.id, token)
    assert path == store.image_path(store.candidates()[0].image_sha256)

    store.submit(ada.id, answer(store.claim(ada.id), "k1", guideline_version=2))
    with store._read() as session:
        assert session.scalar(text("SELECT guideline_version FROM pick")) == 2
