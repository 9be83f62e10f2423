"""Backup, restore, check: the same snapshot comes out again, on either engine."""

from __future__ import annotations

import pytest
from studio import add_users, answer, fill

from align.cli import main
from annotate.snapshot import cut_snapshot
from annotate.store import PreferenceStore, StoreError
from annotate.store.backup import read_backup, restore


def labelled(store: PreferenceStore) -> None:
    """Two people; one skip with its replacement, one undo, one lease in hand."""
    fill(store, tasks=3, each=3, annotators=2)
    ada, bo = add_users(store, "ada", "bo")
    store.submit(ada.id, answer(store.claim(ada.id), "k0", "skip"))
    for number in range(2):
        store.submit(ada.id, answer(store.claim(ada.id), f"k1{number}"))
    store.undo(ada.id)
    store.submit(bo.id, answer(store.claim(bo.id), "k2", "flag"))


@pytest.mark.parametrize(("source", "target"), [("sqlite", "postgresql"), ("postgresql", "sqlite")])
def test_what_was_backed_up_comes_back_on_the_other_engine(make_place, tmp_path, source, target):
    with make_place(source).open() as store:
        labelled(store)
        ada = store.user("ada")
        claim = store.claim(ada.id)
        backup = store.backup(tmp_path / "backup")
        digest = cut_snapshot(store, tmp_path / "before").digest
        with pytest.raises(FileExistsError, match="a backup is a new folder"):
            store.backup(tmp_path / "backup")
    place = make_place(target)
    with place.open() as store:
        restore(store, tmp_path / "backup")
        with pytest.raises(StoreError, match="not empty"):
            restore(store, tmp_path / "backup")
    with place.open() as store:
        assert cut_snapshot(store, tmp_path / "after").digest == digest
        assert store.check() == []
        assert store.verify_audit(backup.audit_heads) == []
        assert store.authenticate("ada", "correct horse").name == "ada"
        # Leases go on, and new rows get numbers of their own.
        assert store.claim(ada.id).lease_token == claim.lease_token
        store.submit(ada.id, answer(claim, "after"))
        fill(store, tasks=5, each=3)
        add_users(store, "cy")


def test_damage_is_found(make_place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with PreferenceStore.open("studio") as store:
        labelled(store)
        image = store.image_path(store.candidates()[0].image_sha256)
    assert main(["db", "backup", "studio", "backup"]) == 0
    assert main(["db", "check", "studio", "--since", "backup"]) == 0
    assert "is sound" in capsys.readouterr().out
    data = image.read_bytes()
    image.write_bytes(data[:-1])
    assert main(["db", "check", "studio"]) == 2
    assert f"{image.name} was changed" in capsys.readouterr().out
    assert main(["db", "backup", "studio", "second"]) == 2
    assert f"{image.name} was changed; bring it back first" in capsys.readouterr().err
    image.unlink()
    assert main(["db", "backup", "studio", "second"]) == 2
    assert not (tmp_path / "second").exists()

    assert main(["db", "restore", "backup", "again"]) == 0
    assert main(["db", "check", "again"]) == 0
    picks = tmp_path / "backup" / "pick.jsonl"
    picks.write_bytes(picks.read_bytes().replace(b"flag", b"skip"))
    with pytest.raises(StoreError, match=r"pick\.jsonl was changed after the backup"):
        read_backup(tmp_path / "backup")
    assert main(["db", "restore", "backup", "third"]) == 2
    assert not (tmp_path / "third").exists()


def test_a_backup_that_lost_an_image_restores_nothing(make_place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with make_place("sqlite").open() as store:
        labelled(store)
        store.backup(tmp_path / "backup")
        lost = store.candidates()[0].image_sha256
    (tmp_path / "backup" / "images" / "Thumbs.db").touch()
    assert main(["db", "restore", "backup", "again"]) == 0
    (tmp_path / "backup" / "images" / f"{lost}.png").unlink()
    assert main(["db", "restore", "backup", "third"]) == 2
    assert f"incomplete: there is no images/{lost}.png" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
    manifest = tmp_path / "backup" / "backup.json"
    manifest.write_text(manifest.read_text()[:-9])
    with pytest.raises(StoreError, match=r"backup\.json is not valid JSON"):
        read_backup(tmp_path / "backup")
    manifest.write_text("null")
    with pytest.raises(StoreError, match=r"backup\.json must hold an object, got NoneType"):
        read_backup(tmp_path / "backup")


def test_accounts_and_policy_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["store", "init", "studio"])
    assert main(["db", "user", "studio", "ada", "--generate-password"]) == 0
    assert main(["db", "user", "studio", "ada", "--role", "reviewer", "--close"]) == 0
    assert main(["db", "user", "studio"]) == 0
    assert "ada  reviewer  (closed)" in capsys.readouterr().out
    assert (
        main(["store", "policy", "studio", "--set", "gold_rate=0.04", "--set", "max_extra_slots=2"])
        == 0
    )
    assert "gold_rate               0.04" in capsys.readouterr().out
    assert main(["store", "policy", "studio", "--set", "gold=1"]) == 2
    assert "fields are: gold_rate" in capsys.readouterr().err
    assert main(["db", "audit", "studio"]) == 0
    out = capsys.readouterr().out
    assert "system  policy  work_policy" in out
    assert "system  add-user  user:1" in out
