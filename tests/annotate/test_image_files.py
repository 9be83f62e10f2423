"""Images in a remote store: the one in memory, which has the interface of S3 and the others."""

from __future__ import annotations

import fsspec
import pytest
from studio import Place, add_users, answer, fill

from annotate.image_files import ImageFiles
from annotate.snapshot import cut_snapshot, load_snapshot
from annotate.store import StoreAccessError
from annotate.store.backup import restore

URL = "memory://bucket/studio"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The remote file system, empty, with a cache of this machine beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


@pytest.fixture
def remote(bucket, tmp_path):
    with Place(str(tmp_path / "studio"), URL).open() as store:
        fill(store, tasks=2)
        yield store


def empty_cache(store):
    for path in store.images.folder.iterdir():
        path.unlink()


def test_a_studio_keeps_its_images_in_a_remote_store(remote, bucket, tmp_path):
    names = {f"{c.image_sha256}.png" for c in remote.candidates()}
    assert {name.rpartition("/")[2] for name in bucket.find("/bucket/studio")} == names
    assert not (tmp_path / "studio" / "images").exists()
    empty_cache(remote)
    (ada,) = add_users(remote, "ada")
    path = remote.media(ada.id, remote.claim(ada.id).media[0])
    assert path.read_bytes() == bucket.cat_file(f"/bucket/studio/{path.name}")
    assert remote.check() == []

    empty_cache(remote)
    copy = remote.backup(tmp_path / "backup").folder
    with Place(str(tmp_path / "second"), "memory://other").open() as second:
        restore(second, copy)
        assert second.check() == []
        assert {name.rpartition("/")[2] for name in bucket.find("/other")} == names


def test_a_snapshot_without_images_reads_them_from_the_remote_store(remote, tmp_path):
    (ada,) = add_users(remote, "ada")
    remote.submit(ada.id, answer(remote.claim(ada.id), "one"))
    folder = cut_snapshot(remote, tmp_path / "snapshot", with_images=False).folder
    empty_cache(remote)
    load_snapshot(folder, images=URL).verify_images()
    with pytest.raises(FileNotFoundError, match=r"memory://elsewhere"):
        load_snapshot(folder, images="memory://elsewhere").verify_images()


def test_what_was_lost_or_changed_there_is_named_past_the_copies(remote, bucket):
    lost, changed = (c.image_sha256 for c in remote.candidates()[:2])
    bucket.rm_file(f"/bucket/studio/{lost}.png")
    bucket.pipe_file(f"/bucket/studio/{changed}.png", b"other")
    faults = [f"the image {lost}.png is missing", f"the image {changed}.png was changed"]
    assert sorted(remote.check()) == sorted(faults)
    empty_cache(remote)
    with pytest.raises(StoreAccessError, match=f"{changed}.png was changed") as refused:
        remote.image_path(changed)
    assert refused.value.code == "storage"
    assert not remote.image_path(lost).exists()


def test_a_url_of_this_machine_is_its_folder(tmp_path):
    with Place(str(tmp_path / "studio"), f"file://{tmp_path}/pool").open() as store:
        fill(store, tasks=1)
        names = {f"{c.image_sha256}.png" for c in store.candidates()}
        assert {path.name for path in (tmp_path / "pool").iterdir()} == names
        assert store.check() == []


def test_an_unknown_place_is_refused():
    with pytest.raises(ValueError, match="not a place for images: 'nowhere://bucket'"):
        ImageFiles.open("nowhere://bucket")
