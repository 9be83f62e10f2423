"""Prompts, candidates and preferences from elsewhere, and what is wrong in their files."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow
import pytest
from PIL import Image
from pyarrow import Table, parquet
from studio import add_users, png

from annotate.foreign import import_hpdv3, import_image_folder, import_pickapic
from annotate.prompt_files import read_prompts
from annotate.records import Outcome
from annotate.snapshot import cut_snapshot
from annotate.store import PreferenceStore, StoreError

TEXTS = ['A neon sign that says "OPEN"', "一张海报，标题为「春天」"]


def jpeg(colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (colour, 20, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_the_same_prompts_come_from_every_kind_of_file(tmp_path):
    (tmp_path / "p.txt").write_text("\ufeff" + "\n\n".join([*TEXTS, TEXTS[0]]), encoding="utf-8")
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["caption", "lang"], *([text, ""] for text in TEXTS)])
    rows = [{"prompt": text} for text in TEXTS]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parquet.write_table(Table.from_pylist(rows), tmp_path / "p.parquet")
    read = [read_prompts(path, "test") for path in sorted(tmp_path.iterdir())]
    assert len(read) == 4
    assert all(prompts == read[0] for prompts in read)
    assert [prompt.text for prompt in read[0]] == TEXTS
    assert [(prompt.lang, prompt.split) for prompt in read[0]] == [("en", "test"), ("zh", "test")]


def test_a_row_keeps_what_it_says_of_itself(tmp_path):
    row = {"id": 7, "text": "a", "lang": "de", "split": "validation", "level": 3, "metadata": {}}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (prompt,) = read_prompts(tmp_path / "p.jsonl")
    assert (prompt.id, prompt.lang, prompt.split) == ("7", "de", "validation")
    assert prompt.metadata == {"level": 3}
    (tmp_path / "p.csv").write_text('text,metadata\na,"{""level"": 3}"\n')
    assert read_prompts(tmp_path / "p.csv")[0].metadata == {"level": 3}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "prompt,lang\na,en\nb\n", r"p\.csv, row 3: not as many fields"),
        ("p.csv", "words\na\n", "row 2: no column text, prompt or caption; there are words"),
        ("p.jsonl", '{"text": "a"}\n{"text"', "row 2: not valid JSON"),
        ("p.jsonl", '{"text": "a", "split": "dev"}', r"row 1: split: .* 'test' \(got 'dev'\)$"),
        ("p.parquet", "PAR1", "not a Parquet file"),
        ("p.csv", 'text\na\n"b\nc\n', r"p\.csv, row 3: not valid CSV: unexpected end"),
        ("p.csv", f"text\n{'x' * 131_073}\n", r"p\.csv, row 2: not valid CSV: field larger"),
        ("p.jsonl", '{"prompt": [{"role": "user"}]}', r"row 1: prompt must be text, got \[{'role'"),
        ("p.jsonl", '{"text": "a", "lang": ["en"]}', r"row 1: lang must be .* got \['en'\]"),
        ("p.jsonl", '{"text": "a", "x": ' + "[" * 20_000, "row 1: not valid JSON"),
        ("p.csv", "text,metadata\na,loud\n", r"p\.csv, row 2: metadata must be .* got 'loud'"),
        ("p.jsonl", '{"text": "a", "metadata": [1]}', r"row 1: metadata must be .* got \[1\]"),
        ("p.txt", "a\nb\udcff\n", r"p\.txt, row 2: not UTF-8 text"),
        ("p.xlsx", "", r"none of \.txt, \.csv"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_columns_of_every_type_come_back_the_same(make_place, tmp_path):
    """What Parquet has and JSON has not: a moment, a missing number, pairs, text as bytes."""
    moment = datetime(2024, 1, 2, 3, 4, 5, 600, tzinfo=UTC)
    columns = {
        "caption": pyarrow.array([b"a cat"], pyarrow.binary()),
        "created_at": pyarrow.array([moment]),
        "price": pyarrow.array([Decimal("1.50")]),
        "score": pyarrow.array([float("nan")]),
        "tags": pyarrow.array([[("k", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    }
    parquet.write_table(Table.from_pydict(columns), tmp_path / "p.parquet")
    with make_place("sqlite").open() as store:
        given = read_prompts(tmp_path / "p.parquet")
        assert store.add_prompts(given) == 1
        assert store.add_prompts(read_prompts(tmp_path / "p.parquet")) == 0
        assert store.prompts() == given
    assert given[0].text == "a cat"
    assert given[0].metadata == {
        "created_at": "2024-01-02T03:04:05.000600Z", "price": "1.50", "tags": [["k", 1]]
    }  # fmt: skip
    parquet.write_table(
        Table.from_pylist([{"prompt": "a", "image": b"\xff"}]), tmp_path / "p.parquet"
    )
    with pytest.raises(StoreError, match="row 1: column 'image' is no metadata, leave it out"):
        read_prompts(tmp_path / "p.parquet")


def test_folders_of_images(make_place, tmp_path):
    listed = tmp_path / "listed"
    listed.mkdir()
    for index in range(3):
        (listed / f"{index}.jpg").write_bytes(jpeg(index * 80))
    rows = [{"file_name": f"{index}.jpg", "prompt": TEXTS[index % 2]} for index in range(3)]
    (listed / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    nested = tmp_path / "nested" / "one"
    nested.mkdir(parents=True)
    (nested / "prompt.txt").write_text(TEXTS[0])
    (nested / "a.png").write_bytes(png(3))
    (nested / "notes.md").write_text("not an image")
    with make_place("sqlite").open() as store:
        done = import_image_folder(store, listed)
        assert (done.prompts, done.candidates) == (2, 3)
        assert import_image_folder(store, listed).candidates == 0
        done = import_image_folder(store, tmp_path / "nested")
        assert (done.prompts, done.candidates) == (0, 1)
        ids = [candidate.id for candidate in store.candidates()]
        assert ids == ["listed/0.jpg", "listed/1.jpg", "listed/2.jpg", "nested/one/a.png"]

        (listed / "metadata.jsonl").write_text('{"file_name": "../../x.png", "prompt": "p"}')
        with pytest.raises(StoreError, match="leads out of"):
            import_image_folder(store, listed)
        (nested / "a.png").write_bytes(png(3)[:40])
        with pytest.raises(StoreError, match=r"nested/one/a\.png cannot be decoded"):
            import_image_folder(store, tmp_path / "nested")


def pickapic_rows() -> list[dict]:
    """Rows with the columns of the published data set, images drawn here."""

    def row(ids: tuple[str, str], labels: tuple[float, float], user: int, **other) -> dict:
        best = "none" if labels[0] == labels[1] else ids[labels.index(1)]
        return {
            "are_different": best != "none", "best_image_uid": best, "caption": TEXTS[0],
            "has_label": True, "image_0_uid": ids[0], "image_1_uid": ids[1],
            "jpg_0": jpeg(ord(ids[0])), "jpg_1": jpeg(ord(ids[1])), "label_0": labels[0],
            "label_1": labels[1], "model_0": "a", "model_1": "b", "ranking_id": 1,
            "user_id": user, "num_example_per_prompt": 3, **other,
        }  # fmt: skip

    return [
        row(("a", "b"), (1.0, 0.0), 11),
        row(("b", "a"), (1.0, 0.0), 12),
        row(("a", "c"), (0.5, 0.5), 11),
        row(("b", "c"), (0.0, 1.0), 11, has_label=False),
    ]


def test_pick_a_pic_keeps_users_and_ties(make_place, tmp_path):
    parquet.write_table(Table.from_pylist(pickapic_rows()), tmp_path / "rows.parquet")
    with make_place("sqlite").open() as store:
        done = import_pickapic(store, tmp_path / "rows.parquet")
        assert (done.prompts, done.candidates, done.answers) == (1, 3, 3)
        again = import_pickapic(store, tmp_path / "rows.parquet")
        assert (again.answers, again.repeated) == (0, 3)
        users = {user.name: user.is_active for user in store.users()}
        assert users == {"pickapic-11": False, "pickapic-12": False}
        assert store.authenticate("pickapic-11", "") is None
        snapshot = cut_snapshot(store, tmp_path / "snapshot")
    assert [(p.chosen_id, p.rejected_id) for p in snapshot.pairs()] in (
        [("a", "b"), ("b", "a")],
        [("b", "a"), ("a", "b")],
    )
    assert len(list(snapshot.select(outcome=Outcome.ALL_EQUAL))) == 1

    without = [{**row, "jpg_0": None} for row in pickapic_rows()]
    parquet.write_table(Table.from_pylist(without), tmp_path / "rows.parquet")
    with (
        make_place("sqlite").open() as store,
        pytest.raises(StoreError, match="image a has no bytes in column jpg_0"),
    ):
        import_pickapic(store, tmp_path / "rows.parquet")


def test_of_two_rows_about_the_same_images_the_first_stands_and_the_other_is_counted(
    make_place, tmp_path
):
    """As an export of two questions has them, or a person who changed their mind."""
    first = pickapic_rows()[0]
    rows = [first, first | {"label_0": 0.0, "label_1": 1.0, "best_image_uid": "b"}]
    parquet.write_table(Table.from_pylist(rows), tmp_path / "rows.parquet")
    with make_place("sqlite").open() as store:
        done = import_pickapic(store, tmp_path / "rows.parquet")
        assert (done.answers, done.repeated) == (1, 1)
        [pair] = cut_snapshot(store, tmp_path / "snapshot").pairs()
    assert (pair.chosen_id, pair.rejected_id) == ("a", "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": None}, "row 3: caption: Input should be a valid string"),
        ({"caption": " "}, "row 3: the prompt of a is empty"),
        ({"label_0": None}, "row 3: label_0: Input should be a valid number"),
        ({"label_0": float("nan")}, "row 3: .* 0.5 both; got nan and 0.5"),
        ({"label_0": 1.0}, "row 3: .* 0.5 both; got 1.0 and 0.5"),
        ({"user_id": None}, "row 3: user_id: Input should be a valid string"),
        ({"image_1_uid": "a"}, "row 3: both sides are the image 'a'"),
        ({"jpg_1": b"GIF89a.."}, "row 3: the image c cannot be decoded"),
    ],
)
def test_a_wrong_comparison_of_pick_a_pic_is_named(make_place, tmp_path, change, message):
    rows = pickapic_rows()
    rows[2] |= change
    parquet.write_table(Table.from_pylist(rows), tmp_path / "rows.parquet")
    with make_place("sqlite").open() as store, pytest.raises(StoreError, match=message):
        import_pickapic(store, tmp_path / "rows.parquet")


def write_hpdv3(folder: Path) -> Path:
    """Entries with the keys of the published data set."""
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(jpeg(ord(name)))
    entries = [
        {"prompt": TEXTS[1], "path1": "a.jpg", "path2": "b.jpg", "confidence": 0.97,
         "choice_dist": [18, 1], "model1": "x", "model2": "y"},
        {"prompt": TEXTS[1], "path1": "c.jpg", "path2": "a.jpg", "confidence": 0.6,
         "choice_dist": [11, 8], "model1": "z", "model2": "x"},
    ]  # fmt: skip
    (folder / "train.json").write_text(json.dumps(entries))
    return folder / "train.json"


def test_hpdv3_comparisons_by_confidence(make_place, tmp_path):
    path = write_hpdv3(tmp_path)
    with make_place("sqlite").open() as store:
        (crowd,) = add_users(store, "crowd")
        sure = import_hpdv3(store, path, tmp_path, crowd.id, min_confidence=0.95)
        assert (sure.candidates, sure.answers) == (2, 1)
        rest = import_hpdv3(store, path, tmp_path, crowd.id)
        assert (rest.candidates, rest.answers) == (1, 1)
        snapshot = cut_snapshot(store, tmp_path / "snapshot")
        pairs = {(pair.chosen_id, pair.rejected_id) for pair in snapshot.pairs()}
        assert pairs == {("a.jpg", "b.jpg"), ("c.jpg", "a.jpg")}
        path.write_text('[{"prompt": "p", "path1": "a.jpg"}]')
        with pytest.raises(StoreError, match=r"(?s)entry 0.*path2"):
            import_hpdv3(store, path, tmp_path, crowd.id)
        path.write_text('[{"prompt": "p", "path1": "a.jpg", "path2": "none.jpg"}]')
        with pytest.raises(StoreError, match=r"entry 0: there is no image .*none\.jpg"):
            import_hpdv3(store, path, tmp_path, crowd.id)
        with pytest.raises(ValueError, match="a share from 0 to 1, got 95"):
            import_hpdv3(store, path, tmp_path, crowd.id, min_confidence=95.0)


def test_what_comes_from_elsewhere_is_of_the_split_that_was_named(winsome, tmp_path):
    parquet.write_table(Table.from_pylist(pickapic_rows()), tmp_path / "rows.parquet")
    write_hpdv3(tmp_path)
    winsome("store init studio")
    winsome("store add-user studio crowd --generate-password")
    winsome("store import studio rows.parquet --format pickapic --split validation")
    given = "--source-images . --annotator crowd --split test"
    assert winsome(f"store import studio train.json --format hpdv3 {given}")[0] == 0
    with PreferenceStore.open("studio") as store:
        assert {prompt.text: prompt.split for prompt in store.prompts()} == {
            TEXTS[0]: "validation",
            TEXTS[1]: "test",
        }


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--annotator crowd", "--annotator says nothing of pickapic; it is for imagereward, hpdv3"),
        ("--min-confidence 0.9", "--min-confidence says nothing of pickapic; it is for hpdv3"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(winsome, tmp_path, option, message):
    (tmp_path / "rows.parquet").touch()
    winsome("store init studio")
    status, _, error = winsome(f"store import studio rows.parquet --format pickapic {option}")
    assert status == 2
    assert message in error
