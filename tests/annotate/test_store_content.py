"""Prompts, candidates with their images, tasks, accounts, runs: what a store takes and refuses."""

from __future__ import annotations

import os
import re
import reprlib
from datetime import timedelta

import pytest
from studio import NOON, PASSWORD, add_users, fill, make_candidates, make_prompts, png, sha256

from annotate.records import Prompt, Run, Split
from annotate.store import (
    Answer,
    ConflictError,
    NotFoundError,
    PreferenceStore,
    StoreAccessError,
    StoreError,
)


def test_content_comes_back_as_it_was_given(store):
    prompts = make_prompts(3)
    candidates, images = make_candidates(prompts, each=2)
    assert store.add_prompts(prompts) == 3
    assert store.add_candidates(candidates, images) == 6
    assert store.add_prompts(prompts) == 0
    assert store.add_candidates(candidates, {}.fromkeys(images) | images) == 0
    assert store.prompts() == prompts
    assert store.prompts("validation") == prompts[2:]
    assert store.candidates() == candidates
    for candidate in candidates:
        data = store.image_path(candidate.image_sha256).read_bytes()
        assert data == images[candidate.image_sha256]


def test_images_may_come_from_a_folder_or_from_paths(store, tmp_path):
    prompts = make_prompts(2)
    candidates, images = make_candidates(prompts, each=1)
    store.add_prompts(prompts)
    for name, data in images.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    assert store.add_candidates(candidates[:1], tmp_path) == 1
    paths = {name: tmp_path / f"{name}.png" for name in images}
    assert store.add_candidates(candidates[1:], paths) == 1


def damaged(data: bytes) -> bytes:
    return data[:-20] + b"\0" * 20


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (None, "no image"),
        (b"not an image", "cannot be decoded"),
        (damaged(png(1)), "cannot be decoded"),
        (b"wrong bytes", "expected"),
        (png(1, size=(4, 4)), "4 x 4 pixels"),
    ],
    ids=["missing", "no image", "damaged", "other hash", "other size"],
)
def test_a_bad_image_is_named_and_nothing_is_imported(store, broken, message):
    prompts = make_prompts(1)
    candidates, images = make_candidates(prompts, each=3)
    store.add_prompts(prompts)
    if broken is None:
        del images[candidates[1].image_sha256]
    elif broken == b"wrong bytes":
        images[candidates[1].image_sha256] = broken
    else:
        images[sha256(broken)] = broken
        candidates[1] = candidates[1].model_copy(update={"image_sha256": sha256(broken)})
    with pytest.raises(StoreError, match=rf"(?s)'prompt-0-c1'.*{message}"):
        store.add_candidates(candidates, images)
    assert store.candidates() == []


def test_the_same_id_with_other_content_is_a_conflict(store):
    prompts = make_prompts(2)
    store.add_prompts(prompts[:1])
    changed = prompts[0].model_copy(update={"text": "other"})
    known = re.escape(reprlib.repr(prompts[0].text))
    message = rf"'prompt-0' is in the store with another text \({known}, here 'other'\);"
    with pytest.raises(ConflictError, match=message):
        store.add_prompts([prompts[1], changed])
    other = changed.model_copy(update={"split": Split.TEST})
    with pytest.raises(
        ConflictError,
        match=r"'prompt-0' stands twice, with another text.* and split \('train', here 'test'\)",
    ):
        store.add_prompts([prompts[0], other])
    assert store.prompts() == prompts[:1]


@pytest.mark.parametrize("text", ["nul \0", "lone \ud800"])
def test_text_that_postgresql_cannot_hold_is_refused_by_both(store, text):
    with pytest.raises(StoreError):
        store.add_prompts([Prompt(id="p", text=text)])


def test_a_task_shows_two_to_nine_known_candidates_of_its_prompt(store):
    fill(store, tasks=2, each=3)
    with pytest.raises(StoreError, match="2 to 9 candidates, got 1"):
        store.add_tasks({"prompt-0": ["prompt-0-c0"]})
    with pytest.raises(StoreError, match="twice"):
        store.add_tasks({"prompt-0": ["prompt-0-c0", "prompt-0-c0"]})
    with pytest.raises(ConflictError, match="drawn for prompt 'prompt-1'"):
        store.add_tasks({"prompt-0": ["prompt-0-c0", "prompt-1-c0"]})
    with pytest.raises(NotFoundError, match="'nope'"):
        store.add_tasks({"prompt-0": ["prompt-0-c0", "nope"]})
    with pytest.raises(StoreError, match="must be 1 to 1000, got 1000000000"):
        store.add_tasks({"prompt-0": ["prompt-0-c0", "prompt-0-c1"]}, annotators_per_task=10**9)
    with pytest.raises(NotFoundError, match="no prompt 'nope'"):
        store.add_tasks({"nope": ["prompt-0-c0", "prompt-0-c1"]})


def test_a_task_does_not_depend_on_how_its_candidates_were_listed(store):
    fill(store, tasks=1, each=4)
    ids = [f"prompt-0-c{i}" for i in range(4)]
    forwards = store.add_tasks({"prompt-0": ids}, question="detail", seed=3)
    assert store.add_tasks([("prompt-0", ids[::-1])], question="detail", seed=3) == forwards
    assert store.add_tasks({"prompt-0": ids}, question="detail", seed=4) != forwards
    assert set(forwards[0].candidate_ids) == set(ids)
    assert store.task(forwards[0].id) == forwards[0]
    with pytest.raises(NotFoundError, match="no task 'nope'"):
        store.task("nope")


def test_answers_from_elsewhere_take_slots_once(store):
    (task, other) = fill(store, tasks=2)
    ada, bo = add_users(store, "ada", "bo")
    win, lose = task.candidate_ids[2], task.candidate_ids[0]
    answers = [
        Answer(task_id=task.id, outcome="picked", win_id=win, lose_id=lose),
        Answer(task_id=other.id, outcome="all_equal"),
    ]
    assert store.add_answers(ada.id, answers) == 2
    assert store.add_answers(ada.id, answers) == 0
    assert store.add_answers(bo.id, answers[:1]) == 1
    picks = store.labelled()[3]
    assert sorted((p.win, p.lose) for p in picks if p.task_id == task.id) == [(2, 0), (2, 0)]
    assert store.status().slots == {"done": 3}


def test_accounts(store):
    ada = store.add_user(" Ada ", PASSWORD, "lead")
    assert store.authenticate("ADA", PASSWORD) == ada == store.user("ada")
    assert store.authenticate("ada", "wrong password") is None
    assert store.authenticate("nobody", PASSWORD) is None
    with pytest.raises(ConflictError, match="already"):
        store.add_user("ada", PASSWORD)
    with pytest.raises(StoreError, match="choose one of annotator"):
        store.add_user("bo", PASSWORD, "boss")
    with pytest.raises(StoreError, match="at least 8"):
        store.add_user("bo", "short")
    with pytest.raises(NotFoundError, match="known are: Ada"):
        store.user("bo")
    assert (ada.at_least("reviewer"), ada.at_least("admin")) == (True, False)


def test_sessions(store):
    (ada,) = add_users(store, "ada")
    token = store.create_session(ada.id, NOON)
    assert store.session_user(token, NOON) == ada
    assert store.session_user(token, NOON + timedelta(days=30)) is None
    assert store.session_user("guess", NOON) is None
    store.revoke_session(token)
    assert store.session_user(token, NOON) is None
    token = store.create_session(ada.id, NOON)
    store.update_user(ada.id, password="another one")
    assert store.session_user(token, NOON) is None
    assert store.authenticate("ada", "another one") == ada


def test_runs_are_listed_newest_first_and_brought_up_to_date(store):
    first = Run(id="r1", kind="dpo", folder="runs/r1", config={"beta": 1e16}, created_at=NOON)
    second = Run(id="r2", kind="reward", folder="runs/r2", created_at=NOON + timedelta(1))
    store.add_run(first)
    store.add_run(second)
    done = store.add_run(first.model_copy(update={"status": "finished", "metrics": {"loss": 0.5}}))
    assert store.runs() == [second, done]
    assert store.runs("dpo") == [done]
    assert store.run("r1").created_at == NOON
    with pytest.raises(NotFoundError, match="'r3'"):
        store.run("r3")


def test_pseudonyms_are_the_stores_own_unless_a_key_is_given(make_place):
    places = [make_place("sqlite") for _ in range(3)]
    with places[0].open(pseudonym_key="k") as a, places[1].open(pseudonym_key="k") as b:
        assert a.pseudonym("ada") == b.pseudonym("ada") != a.pseudonym("bo")
        with places[2].open() as c:
            assert c.pseudonym("ada") != a.pseudonym("ada")
    with pytest.raises(ConflictError, match="another pseudonym key"):
        places[0].open(pseudonym_key="other")


def test_a_place_that_cannot_be_used_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreAccessError, match="cannot use the folder"):
        PreferenceStore.open(tmp_path / "file" / "studio")
    (tmp_path / "studio").mkdir()
    (tmp_path / "studio" / "winsome.db").write_bytes(os.urandom(4096))
    with pytest.raises(StoreAccessError, match="not a database"):
        PreferenceStore.open(tmp_path / "studio")
    with pytest.raises(ValueError, match="place for the images"):
        PreferenceStore.open("postgresql://nowhere/db")
    with pytest.raises(ValueError, match="sqlite or postgresql, got 'mysql'"):
        PreferenceStore.open("mysql://nowhere/db", images=tmp_path)
