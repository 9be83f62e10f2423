"""``winsome store`` and ``winsome snapshot``, from an empty folder to a file of pairs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from studio import add_users, answer
from test_imports import write_folder

from annotate.store import PreferenceStore


def test_from_an_empty_folder_to_pairs(winsome, tmp_path):
    write_folder(tmp_path / "generated")
    assert "add-user studio NAME" in winsome("store init studio")[1]
    assert winsome("store add-user studio ada --password-stdin", "correct horse\n")[0] == 0
    assert "2 prompts, 6 candidates" in winsome("store import studio generated")[1]
    made = winsome("store tasks studio --question detail --question overall --annotators 2")[1]
    assert "New: 4 tasks. Open slots now: 8." in made
    assert "New: 0 tasks" in winsome("store tasks studio --question detail")[1]
    with PreferenceStore.open("studio") as store:
        ada = store.authenticate("ada", "correct horse")
        for n in range(4):
            store.submit(ada.id, answer(store.claim(ada.id), f"k{n}"))
    status = json.loads(winsome("store status studio --json")[1])
    assert (status["picks"], status["slots"]) == ({"picked": 4}, {"done": 4, "open": 4})
    assert "4 done" in winsome("store users studio")[1]

    cut = winsome("snapshot cut studio snapshot --question detail")[1]
    assert winsome("snapshot verify snapshot")[1] == cut
    assert "picks       2 by 1 annotators" in cut
    line = "snapshot pairs snapshot --policy implied_all --output out/pairs.jsonl"
    assert "6 lines" in winsome(line)[1]
    rows = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    assert all((tmp_path / "out" / row["chosen"]).is_file() for row in rows)
    assert {row["question"] for row in rows} == {"detail"}
    assert sum(row["weight"] for row in rows) == pytest.approx(2)
    ranking = winsome("snapshot pairs snapshot --policy ranking")[1].splitlines()
    assert [len(json.loads(row)["middle"]) for row in ranking] == [1, 1]


def test_accounts_change(winsome):
    winsome("store init studio")
    shown = winsome("store add-user studio ada --generate-password")[1]
    password = shown.split()[-1]
    assert "ada is lead, closed" in winsome("store change-user studio ada --role lead --close")[1]
    with PreferenceStore.open("studio") as store:
        assert store.authenticate("ada", password) is None
    winsome("store change-user studio ada --reopen --password-stdin", "another one\n")
    with PreferenceStore.open("studio") as store:
        assert store.authenticate("ada", "another one").role == "lead"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("store status nowhere", "there is no studio at nowhere; `winsome store init nowhere`"),
        ("snapshot cut nowhere s", "there is no studio at nowhere"),
        ("store add-user studio ada", "give --generate-password or --password-stdin"),
        ("store change-user studio ada", "nothing to change"),
        ("store change-user studio ada --close", "there is no user 'ada'; known are: none yet"),
        ("store import studio nothing.json", "there is no nothing.json to import"),
        ("store import studio r.json", "give --annotator and --source-images too"),
        ("store tasks studio", "import candidates first"),
        ("snapshot cut studio s", "no picks to cut a snapshot from"),
        ("snapshot verify s", "no snapshot in s"),
        ("store status empty", "the database at empty is empty: restore a backup"),
        ("db check empty", "the database at empty is empty"),
        ("store import studio latin.txt", "latin.txt, row 1: not UTF-8 text"),
        ("store import studio twice.csv", "twice.csv, row 4: id 'a' is that of row 2"),
        (
            "store policy studio --set typo=1",
            "typo = '1': there is no such field\nfields are: gold",
        ),
        ("store policy studio --set typo", "--set takes FIELD=VALUE, got 'typo'"),
        (
            "store prioritise studio scores.jsonl",
            "names no candidate of this studio, such as ['x']",
        ),
        ("store init studio/winsome.db/x", "cannot use the folder"),
        ("store init postgresql://u@/db", "needs a place for the images"),
        ("store init postgresql://u@/db?host=nowhere --images i", "cannot use the store at"),
    ],
)
def test_each_mistake_is_one_clear_message(winsome, line, message):
    winsome("store init studio")
    Path("r.json").write_text("[]")
    Path("empty").mkdir()
    Path("empty/winsome.db").touch()
    Path("latin.txt").write_bytes("ein Plakat f\xfcr Tee".encode("latin-1"))
    Path("twice.csv").write_text("id,text\na,one\nb,two\na,three\n")
    Path("scores.jsonl").write_text('{"candidate_id": "x", "uncertainty": 1}\n', "utf-8-sig")
    status, _, error = winsome(line)
    assert status == 2
    assert message in error
    assert "Traceback" not in error


def test_the_choices_of_an_option_are_words(winsome, capsys):
    with pytest.raises(SystemExit):
        winsome("store tasks studio --question foo")
    assert (
        "(choose from 'overall', 'aesthetics', 'instruction', 'detail')" in capsys.readouterr().err
    )


def test_a_disk_that_is_full_is_told_with_the_name_of_what_was_written(
    winsome, tmp_path, monkeypatch
):
    write_folder(tmp_path / "generated")
    winsome("store init studio")
    winsome("store import studio generated")
    winsome("store tasks studio")
    with PreferenceStore.open("studio") as store:
        (ada,) = add_users(store, "ada")
        store.submit(ada.id, answer(store.claim(ada.id), "k"))

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", full)
    for line, name in (("snapshot cut studio cut", "cut"), ("db backup studio kept", "kept")):
        status, _, error = winsome(line)
        assert (status, f"{name}: No space left on device" in error) == (2, True), error
        assert not (tmp_path / name).exists()


def test_a_full_disk_loses_nothing(winsome, tmp_path, monkeypatch):
    write_folder(tmp_path / "generated")
    winsome("store init studio")

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        status, _, error = winsome("store import studio generated")
        assert (status, "No space left on device" in error) == (2, True)
    assert list((tmp_path / "studio/images").iterdir()) == []
    assert "6 candidates" in winsome("store import studio generated")[1]


def test_tasks_in_reference_mode_show_the_gold_image_of_their_prompt(winsome, tmp_path):
    write_folder(tmp_path / "generated")
    winsome("store init studio")
    winsome("store import studio generated")
    with PreferenceStore.open("studio") as store:
        gold = store.candidates()[1].id
    assert "nobody" in winsome("store tasks studio --reference nobody")[2]
    assert "New: 2 tasks" in winsome(f"store tasks studio --reference {gold}")[1]
    with PreferenceStore.open("studio") as store:
        references = [
            task.candidate_ids[task.reference] if task.reference is not None else None
            for task in store.tasks()
        ]
    assert sorted(references, key=str) == [None, gold]


def test_gold_tasks_wait_for_their_keys_which_come_from_a_file(winsome, tmp_path):
    write_folder(tmp_path / "generated")
    winsome("store init studio")
    winsome("store import studio generated")
    made = winsome("store tasks studio --kind gold --question detail --question overall")[1]
    assert "4 gold or qualification tasks have no key" in made
    with PreferenceStore.open("studio") as store:
        shown = sorted(store.tasks()[0].candidate_ids)
    keys = tmp_path / "keys.jsonl"

    def key(*lines: dict) -> tuple[int, str, str]:
        keys.write_text("\n".join(map(json.dumps, lines)))
        return winsome("store key studio keys.jsonl")

    right = {"best": shown[:1], "worst": shown[1:], "question": "detail"}
    for wrong, message in (
        ({}, "line 2: a key names at least one candidate"),
        ({"best": shown[:1], "worst": shown[:1]}, "is both the best and the worst"),
        ({"best": ["nobody"]}, r"line 2: no task of kind gold or qualification shows ['nobody']"),
        ({"best": shown, "question": "taste"}, "line 2: question: Input should be"),
        ({"best": shown[:1]}, "line 2: line 1 has a key for"),
    ):
        status, _, error = key(right, wrong)
        assert (status, message in error) == (2, True), error
    status, output, _ = key(right)
    assert (status, "1 tasks have their key.\n3 gold" in output) == (0, True), output
    assert "2 tasks have their key.\n2 gold" in key({"worst": shown[1:]})[1]


def test_the_policy_says_what_its_fields_mean(winsome):
    winsome("store init studio")
    status, output, _ = winsome("store policy studio --set annotator_cap=300")
    assert status == 0
    rows = output.splitlines()
    assert rows[0].split()[:3] == ["gold_rate", "0.0", "Share"]
    assert any(row.split()[:2] == ["annotator_cap", "300"] for row in rows)
