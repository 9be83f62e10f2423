"""The editing benchmark: its rows, and its bars by hand."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from benchmarks.bars import BARS
from benchmarks.edit import _read, edits, write_edits
from rewards.posters.edits import EDITS, draw_edit

MET, GAP = (
    BARS[f"edit.{name}"].formula for name in ("instruction_met", "outside_mask_psnr_gap_db")
)


def test_rows_hold_every_kind_in_both_languages_and_are_held_out_by_specification(tmp_path):
    path = write_edits(tmp_path, "train", 20)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    made = list(edits("train", 20))
    assert [row["prompt"] for row in rows] == [words for _, words in made]
    assert set(Counter(edit.kind for edit, _ in made).values()) == {20 // len(EDITS)}
    assert {words.isascii() for _, words in made if "“" not in words} == {True, False}
    assert {edit.source.split for edit, _ in made} == {"train"}
    assert {edit.target.split for edit, _ in edits("test", 20)} == {"test"}
    source = np.asarray(Image.open(tmp_path / rows[0]["source_image"]))
    assert (source == np.asarray(draw_edit(made[0][0]).source)).all()


def test_the_truth_is_met_and_a_copy_is_not():
    for edit, words in edits("test", 5):
        drawn = draw_edit(edit)
        blurred = drawn.target.resize((64, 64)).resize((128, 128))
        truth, copy = (_read(edit, words, image, blurred) for image in (drawn.target, drawn.source))
        assert (truth["met"], copy["met"], truth["copy_instruction"]) == (True, False, 0)


def test_the_bars_count_and_average():
    row = {"words": "", "copy_instruction": 0.0, "outside_psnr": 30.0, "trip_outside_psnr": 34.0}
    raw = {"edits": [row | {"met": i < 50} for i in range(200)]}
    assert MET(raw) == 25
    assert GAP(raw) == 4
    with pytest.raises(ValueError, match="has 199 edits, expected 200"):
        MET({"edits": raw["edits"][1:]})
    raw["edits"][3] = raw["edits"][3] | {"copy_instruction": 0.1, "words": "make it blue"}
    with pytest.raises(ValueError, match=r"copies score above 0 for .*make it blue"):
        MET(raw)
