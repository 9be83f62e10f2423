"""A snapshot is the same from either engine, says what it was cut from, and notices tampering."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from studio import add_users, answer, fill, make_candidates, make_prompts

from annotate.records import SnapshotError, load_snapshot
from annotate.snapshot import cut_snapshot
from annotate.store import Answer, ConflictError, PreferenceStore

IDS = ["b", "A", "ä", "a", "Z", "你", "a-1"]
GOLDEN = "afa2c3a6dde5f5f3161e0f44c6ccfb3a634bce247e969ceb19914797cf232ff7"


def label(store: PreferenceStore, reverse: bool) -> None:
    """The same labelled studio whatever the order in which it is filled."""
    step = -1 if reverse else 1
    prompts = [
        prompt.model_copy(update={"id": name})
        for prompt, name in zip(make_prompts(len(IDS)), IDS, strict=True)
    ]
    candidates, images = make_candidates(prompts, each=4)
    store.add_prompts(prompts[::step])
    store.add_candidates(candidates[::step], images)
    groups = {p.id: [c.id for c in candidates if c.prompt_id == p.id][::step] for p in prompts}
    users = add_users(store, *["ada", "bo"][::step])
    for question in ["overall", "detail"][::step]:
        tasks = store.add_tasks(groups, question, annotators_per_task=2)
        for user in users:
            answers = []
            for task in tasks[::step]:
                best = f"{task.prompt_id}-c{len(task.prompt_id) % 4}"
                worst = next(c for c in sorted(task.candidate_ids) if c != best)
                if user.name == "bo" and task.prompt_id == "Z":
                    answers.append(Answer(task_id=task.id, outcome="all_equal"))
                    continue
                answers.append(
                    Answer(task_id=task.id, outcome="picked", win_id=best, lose_id=worst)
                )
            store.add_answers(user.id, answers)


def cut(store: PreferenceStore, folder, **options):
    return cut_snapshot(store, folder, **options)


def test_the_digest_is_the_same_from_both_engines_and_in_any_order(make_place, tmp_path):
    digests = {}
    for engine in ("sqlite", "postgresql"):
        for reverse in (False, True):
            with make_place(engine).open(pseudonym_key="a key") as store:
                label(store, reverse)
                snapshot = cut(store, tmp_path / f"{engine}-{reverse}")
                digests[engine, reverse] = snapshot.digest
    # Fixed for good: a change of format takes a new format number.
    assert set(digests.values()) == {GOLDEN}, digests


@pytest.fixture
def studio(store):
    """Three tasks, on the prompts 0, 1 (train) and 2 (validation), labelled by one person."""
    fill(store, tasks=3, each=3)
    (ada,) = add_users(store, "Ada Annotator")
    for n in range(3):
        store.submit(ada.id, answer(store.claim(ada.id), f"k{n}"))
    return store


@pytest.fixture
def snapshot(studio, tmp_path):
    return cut(studio, tmp_path / "snapshot")


def test_a_snapshot_holds_what_the_store_holds(studio, snapshot):
    prompts, candidates, tasks, picks = map(tuple, studio.labelled())
    assert (snapshot.prompts, snapshot.candidates) == (prompts, candidates)
    assert (snapshot.tasks, snapshot.picks) == (tasks, picks)
    assert load_snapshot(snapshot.folder).digest == snapshot.digest
    snapshot.verify_images()
    assert [entry.digest for entry in studio.snapshots()] == [snapshot.digest]
    pseudonyms = {pick.annotator for pick in picks}
    assert pseudonyms == {studio.pseudonym("ada annotator")}
    text = "".join(path.read_text() for path in snapshot.folder.glob("*.json*"))
    assert "annotator" in text
    assert "ada annotator" not in text.lower()


def test_pairs_follow_question_and_split(snapshot):
    assert len(snapshot.pairs()) == 3
    assert len(snapshot.pairs("implied_all")) == 9
    assert len(snapshot.pairs("implied_all", split="train")) == 6
    assert {p.prompt_id for p in snapshot.pairs(split="validation")} == {"prompt-2"}
    assert snapshot.pairs(question="detail") == []
    assert len(snapshot.rankings(split="train")) == 2
    with pytest.raises(ValueError, match="tset"):
        snapshot.pairs(split="tset")


def test_times_and_telemetry_are_outside_the_digest(studio, snapshot, tmp_path):
    with studio._write() as session:
        session.connection().exec_driver_sql(
            "UPDATE pick SET active_ms = 5, submitted_at = '2020-01-01 00:00:00+00'"
        )
    assert cut(studio, tmp_path / "later").digest == snapshot.digest
    assert cut(studio, tmp_path / "bare", with_images=False).digest == snapshot.digest


def test_an_undone_pick_is_not_in_the_next_snapshot(studio, tmp_path):
    claim = studio.undo(studio.user("ada annotator").id)
    snapshot = cut(studio, tmp_path / "next")
    assert claim.task_id not in snapshot.task_of
    assert len(load_snapshot(snapshot.folder).picks) == 2


def test_what_is_in_a_snapshot_cannot_be_taken_back(studio, snapshot):
    with pytest.raises(ConflictError, match="is in a snapshot"):
        studio.undo(studio.user("ada annotator").id)
    assert len(load_snapshot(snapshot.folder).picks) == 3


def test_filters_keep_what_they_name(studio, tmp_path):
    train = cut(studio, tmp_path / "train", splits=["train"])
    assert {prompt.id for prompt in train.prompts} == {"prompt-0", "prompt-1"}
    assert train.spec["splits"] == ["train"]
    with pytest.raises(SnapshotError, match="no picks to cut a snapshot from under these"):
        cut(studio, tmp_path / "detail", questions=["detail"])
    assert not (tmp_path / "detail").exists()


def test_a_store_without_picks_gives_one_clear_error(store, tmp_path):
    fill(store)
    with pytest.raises(SnapshotError, match="no picks to cut a snapshot from; label some"):
        cut(store, tmp_path / "snapshot")


def test_a_folder_is_never_overwritten(studio, snapshot, tmp_path):
    assert cut(studio, snapshot.folder).digest == snapshot.digest
    (bo,) = add_users(studio, "bo")
    fill(studio, tasks=3, each=3, annotators=2)
    studio.submit(bo.id, answer(studio.claim(bo.id), "one more"))
    with pytest.raises(FileExistsError, match="is there already"):
        cut(studio, snapshot.folder)
    assert load_snapshot(snapshot.folder).digest == snapshot.digest


@pytest.mark.parametrize("damage", [None, b"\x89PNG"], ids=["missing", "damaged"])
def test_a_bad_image_in_the_store_leaves_no_snapshot(studio, tmp_path, damage):
    candidate = studio.candidates()[4]
    path = studio.image_path(candidate.image_sha256)
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(SnapshotError, match=candidate.id):
        cut(studio, tmp_path / "snapshot")
    assert [p for p in tmp_path.iterdir() if "snapshot" in p.name] == []


def replace_in(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("picks.jsonl", '"win":', '"win": ', "picks.jsonl was changed"),
        ("prompts.jsonl", "poster", "Poster", "prompts.jsonl was changed"),
        ("snapshot.json", '"digest": "', '"digest": "0', "says digest 0"),
        ("snapshot.json", '"format": 1', '"format": 2', "format 2, this version reads 1"),
        ("snapshot.json", '"spec"', '"specification"', "lacks spec"),
        ("snapshot.json", "{", "", "not valid JSON"),
    ],
)
def test_a_change_is_noticed(snapshot, file, old, new, message):
    replace_in(snapshot.folder / file, old, new)
    with pytest.raises(SnapshotError, match=message):
        load_snapshot(snapshot.folder)


def test_a_manifest_that_is_no_object_is_named(snapshot):
    (snapshot.folder / "snapshot.json").write_text("[]")
    with pytest.raises(SnapshotError, match=r"snapshot\.json must hold an object, got list"):
        load_snapshot(snapshot.folder)


def test_a_missing_file_or_folder_is_named(snapshot, tmp_path):
    (snapshot.folder / "tasks.jsonl").unlink()
    with pytest.raises(SnapshotError, match=r"there is no tasks\.jsonl"):
        load_snapshot(snapshot.folder)
    with pytest.raises(FileNotFoundError, match="no snapshot in"):
        load_snapshot(tmp_path / "nowhere")


def test_a_damaged_image_is_named_and_one_elsewhere_is_found(studio, snapshot, tmp_path):
    candidate = snapshot.candidates[1]
    path = snapshot.folder / "images" / f"{candidate.image_sha256}.png"
    path.write_bytes(b"?")
    with pytest.raises(SnapshotError, match=candidate.id):
        load_snapshot(snapshot.folder).verify_images()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=candidate.image_sha256):
        load_snapshot(snapshot.folder).image_path(candidate)
    elsewhere = load_snapshot(snapshot.folder, images=studio.images.location)
    elsewhere.verify_images()
    assert elsewhere.image_path(candidate) == studio.image_path(candidate.image_sha256)


def test_the_reader_needs_pydantic_alone(snapshot):
    program = (
        "import sys, json; from annotate.records import load_snapshot;"
        f"n = len(load_snapshot({str(snapshot.folder)!r}).pairs('implied_all'));"
        "heavy = {'sqlalchemy', 'alembic', 'torch', 'numpy', 'PIL', 'argon2'} & set(sys.modules);"
        "print(json.dumps([n, sorted(heavy)]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert json.loads(done.stdout) == [9, []], done.stderr
