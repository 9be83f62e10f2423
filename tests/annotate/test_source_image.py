"""Prompts that ask to edit a picture: the picture goes with them, from the file to the snapshot."""

from __future__ import annotations

import json

import pytest
from studio import add_users, answer, make_candidates, png, sha256

from annotate.exports import export_jsonl
from annotate.imports import import_folder
from annotate.prompt_files import read_prompts
from annotate.records import Prompt, load_snapshot
from annotate.snapshot import SnapshotError, cut_snapshot
from annotate.store import NotFoundError, StoreError

SOURCE = png(500)
EDIT = Prompt(id="edit", text="make the star blue", source_image=sha256(SOURCE))


@pytest.fixture
def store(place):
    with place.open() as store:
        yield store


def fill_edit(store) -> None:
    store.add_prompts([EDIT], {EDIT.source_image: SOURCE})
    candidates, images = make_candidates([EDIT], 3)
    store.add_candidates(candidates, images)
    store.add_tasks({EDIT.id: [c.id for c in candidates]})


def test_a_source_picture_goes_with_its_prompt_into_the_snapshot_and_out(store, tmp_path):
    fill_edit(store)
    (ada,) = add_users(store, "ada")
    store.submit(ada.id, answer(store.claim(ada.id), "k1"))
    snapshot = cut_snapshot(store, tmp_path / "cut")
    loaded = load_snapshot(tmp_path / "cut")
    assert loaded.prompts == (EDIT,)
    assert loaded.image_path(EDIT.source_image).parent == tmp_path / "cut" / "images"
    loaded.verify_images()
    export_jsonl(snapshot, snapshot.pairs(), tmp_path / "pairs.jsonl")
    (row,) = map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines())
    assert (tmp_path / row["source_image"]).read_bytes() == SOURCE

    loaded.image_path(EDIT.source_image).write_bytes(png(501))
    with pytest.raises(SnapshotError, match="of prompt 'edit' is damaged"):
        loaded.verify_images()


def test_an_annotator_sees_the_source_of_their_task_and_nobody_else_does(store):
    fill_edit(store)
    ada, bob = add_users(store, "ada", "bob")
    ahead = store.peek(ada.id)
    claim = store.claim(ada.id)
    assert ahead == (*claim.media, claim.source)
    assert store.media(ada.id, claim.source).read_bytes() == SOURCE
    assert EDIT.source_image not in claim.source
    with pytest.raises(NotFoundError):
        store.media(bob.id, claim.source)
    with pytest.raises(NotFoundError):  # it is no candidate, and no example of the guideline
        store.candidate_of_token(ada.id, claim.source)


def test_a_source_picture_that_is_missing_or_another_is_refused(store):
    with pytest.raises(StoreError, match="prompt 'edit': no image with SHA-256"):
        store.add_prompts([EDIT])
    with pytest.raises(StoreError, match="prompt 'edit': the image's SHA-256 is"):
        store.add_prompts([EDIT], {EDIT.source_image: png(1)})
    assert store.prompts() == []


def test_a_backup_has_the_source_pictures_and_a_check_misses_them(store, make_place, tmp_path):
    fill_edit(store)
    backup = store.backup(tmp_path / "backup")
    assert (backup.folder / "images" / f"{EDIT.source_image}.png").read_bytes() == SOURCE
    assert store.check() == []
    store.image_path(EDIT.source_image).unlink()
    assert store.check() == [f"the image {EDIT.source_image}.png is missing"]


def test_prompt_files_name_their_source_by_path_or_hash(store, tmp_path):
    (tmp_path / "star.png").write_bytes(SOURCE)
    (tmp_path / "heart.png").write_bytes(png(502))
    rows = [{"prompt": "make it blue", "source_image": f"{n}.png"} for n in ("star", "heart")]
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    images: dict[str, bytes] = {}
    prompts = read_prompts(file, images=images)
    assert len({prompt.id for prompt in prompts}) == 2  # one text, two pictures
    assert [prompt.source_image for prompt in prompts] == list(images)
    assert store.add_prompts(prompts, images) == 2
    file.write_text(json.dumps({**rows[0], "source_image": prompts[0].source_image}))
    assert read_prompts(file) == prompts[:1]
    file.write_text(json.dumps({**rows[0], "source_image": "none.png"}))
    with pytest.raises(StoreError, match=r"row 1: there is no source image .*none\.png"):
        read_prompts(file)


def test_a_generated_folder_brings_its_source_pictures(store, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"{EDIT.source_image}.png").write_bytes(SOURCE)
    (tmp_path / "prompts.jsonl").write_text(EDIT.model_dump_json() + "\n")
    assert import_folder(store, tmp_path).prompts == 1
    assert store.prompts() == [EDIT]
