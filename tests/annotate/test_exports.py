"""What is exported is what was picked: each format is read again."""

from __future__ import annotations

import json

import pytest
from datasets import load_dataset
from pyarrow import parquet
from studio import add_users, answer, fill

from align.cli import main
from annotate.exports import EXPORTS
from annotate.foreign import import_hpdv3, import_pickapic
from annotate.snapshot import cut_snapshot


@pytest.fixture
def snapshot(make_place, tmp_path):
    """Two people: they agree on the first task, one calls the second equal."""
    with make_place("sqlite").open() as store:
        fill(store, tasks=2, each=3, annotators=2)
        for name in ("ada", "bo"):
            (user,) = add_users(store, name)
            for number in range(2):
                claim = store.claim(user.id)
                order = claim.display_order
                values = {"win_position": order.index(0), "lose_position": order.index(2)}
                equal = name == "bo" and number == 1
                submission = (
                    answer(claim, f"k{number}", "all_equal")
                    if equal
                    else answer(claim, f"k{number}", **values)
                )
                store.submit(user.id, submission)
        return cut_snapshot(store, tmp_path / "snapshot")


def chosen(snapshot) -> list[tuple[str, str]]:
    return sorted((p.chosen_id, p.rejected_id) for p in snapshot.pairs("implied_all"))


def test_lines_and_columns_name_the_images(snapshot, tmp_path):
    pairs = snapshot.pairs("implied_all")
    assert EXPORTS["jsonl"](snapshot, pairs, tmp_path / "out/pairs.jsonl") == 9
    assert EXPORTS["parquet"](snapshot, pairs, tmp_path / "out/pairs.parquet") == 9
    lines = (tmp_path / "out/pairs.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert parquet.read_table(tmp_path / "out/pairs.parquet").to_pylist() == [
        {key: row[key] for key in parquet.read_schema(tmp_path / "out/pairs.parquet").names}
        for row in rows
    ]
    images = {(tmp_path / "out" / row["chosen"]).resolve().stem for row in rows}
    assert images == {snapshot.candidate_of[name].image_sha256 for name, _ in chosen(snapshot)}
    assert {row["annotator"] for row in rows} == {pick.annotator for pick in snapshot.picks}


def test_trl_columns_load_as_images(snapshot, tmp_path):
    pairs = snapshot.pairs()
    assert EXPORTS["trl"](snapshot, pairs, tmp_path / "trl.parquet") == 3
    rows = load_dataset(
        "parquet", data_files=str(tmp_path / "trl.parquet"), split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert rows.column_names == ["prompt", "chosen", "rejected"]
    assert rows[0]["chosen"].size == (8, 6)
    assert rows[0]["prompt"] == snapshot.prompt_of[pairs[0].prompt_id].text


def test_pick_a_pic_and_back(snapshot, tmp_path, make_place):
    path = tmp_path / "pickapic.parquet"
    # Nine pairs, and three of the answer "all equal" to a task of three.
    assert EXPORTS["pickapic"](snapshot, snapshot.pairs("implied_all"), path) == 12
    rows = parquet.read_table(path).to_pylist()
    assert {row["best_image_uid"] for row in rows if not row["are_different"]} == {"none"}
    assert all(row["image_0_uid"] < row["image_1_uid"] for row in rows)
    with make_place("sqlite").open() as store:
        import_pickapic(store, path)
        again = cut_snapshot(store, tmp_path / "again")
    assert chosen(again) == chosen(snapshot)
    assert len({pick.annotator for pick in again.picks}) == 2


def test_hpdv3_is_the_majority_and_back(snapshot, tmp_path, make_place):
    path = tmp_path / "hpdv3.json"
    # On the first task both ordered the same three pairs, on the second one person did.
    assert EXPORTS["hpdv3"](snapshot, snapshot.pairs("implied_all"), path) == 6
    rows = json.loads(path.read_text())
    assert sorted(row["choice_dist"] for row in rows) == [[1, 0]] * 3 + [[2, 0]] * 3
    assert all(row["confidence"] == 1 for row in rows)
    with make_place("sqlite").open() as store:
        (crowd,) = add_users(store, "crowd")
        assert import_hpdv3(store, path, tmp_path, crowd.id).answers == 6


@pytest.mark.parametrize("name", EXPORTS)
def test_a_changed_image_is_named_and_nothing_is_written(snapshot, tmp_path, name):
    first = snapshot.candidate_of[snapshot.pairs()[0].chosen_id]
    image = snapshot.image_path(first)
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    expected = rf"{first.image_sha256}\.png .* is \w+, expected {first.image_sha256}"
    with pytest.raises(ValueError, match=expected):
        EXPORTS[name](snapshot, snapshot.pairs(), tmp_path / "out" / "pairs")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(("only", "rows"), [("overall", 6), ("detail", 0)])
def test_ties_are_of_the_question_that_was_asked_for(
    snapshot, tmp_path, monkeypatch, capsys, only, rows
):
    monkeypatch.chdir(tmp_path)
    line = ["snapshot", "export", "snapshot", "p.parquet", "--format", "pickapic"]
    assert main([*line, "--question", only]) == 0
    assert f"{rows} rows in p.parquet" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXPORTS)
def test_questions_that_a_format_cannot_tell_apart_are_named(
    make_place, tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    with make_place("sqlite").open() as store:
        (task,) = fill(store, tasks=1, each=3)
        (user,) = add_users(store, "ada")
        store.add_tasks({task.prompt_id: task.candidate_ids}, "detail")
        for key in "ab":
            store.submit(user.id, answer(store.claim(user.id), key))
        cut_snapshot(store, tmp_path / "snapshot")
    line = ["snapshot", "export", "snapshot", "out", "--format", name]
    assert main(line) == 0
    told = f"{name} has no column for the question: the answers to detail, overall stand there"
    assert (told in capsys.readouterr().err) == (name not in ("jsonl", "parquet"))
    assert main([*line, "--question", "detail"]) == 0
    assert capsys.readouterr().err == ""


def test_the_command_writes_a_file_or_nothing(snapshot, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["snapshot", "export", "snapshot", "pairs.json", "--format", "hpdv3"]) == 0
    assert "2 rows in pairs.json" in capsys.readouterr().out
    for image in (tmp_path / "snapshot/images").iterdir():
        image.unlink()
    assert main(["snapshot", "export", "snapshot", "trl.parquet", "--format", "trl"]) == 2
    assert "cut the snapshot with its images" in capsys.readouterr().err
    assert not list(tmp_path.glob("trl*"))
