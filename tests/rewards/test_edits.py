"""Poster edits: instructions that say the target, exact masks, a ruler without free points."""

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rewards.posters.draw import CENTERS, draw
from rewards.posters.edit_ruler import MET, read_edit
from rewards.posters.edits import EDITS, PosterEdit, draw_edit, instruction, random_edit
from rewards.posters.spec import CHOICES, COLORS, PosterSpec

SPEC = PosterSpec("cream", "star", "red", "left", "TEA", "yellow", "frame")


def edits(kind: str, count: int, split: str | None = None) -> list[PosterEdit]:
    rng = random.Random(f"{kind}/{count}")
    return [random_edit(rng, kind=kind, split=split) for _ in range(count)]


@pytest.mark.parametrize("kind", EDITS)
def test_a_copy_scores_nothing_and_the_truth_one(kind):
    for edit in edits(kind, 12):
        drawn = draw_edit(edit)
        copy, truth = read_edit(drawn.source, edit), read_edit(drawn.target, edit)
        assert copy.instruction == 0.0, edit
        assert copy.outside_mask_psnr == np.inf
        assert truth.instruction == 1.0, edit
        assert set(truth.measurements.values()) == {1.0}
        assert truth.met
        assert not copy.met


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("size", [64, 128])
def test_the_mask_is_where_pasting_the_truth_makes_it_whole_and_nowhere_else(kind, size):
    for edit in edits(kind, 6):
        drawn = draw_edit(edit, size)
        source, target = np.array(drawn.source), np.asarray(drawn.target)
        assert 0 < drawn.mask.sum() < 0.5 * size * size
        assert (source != target).any(-1)[drawn.mask].all()
        source[drawn.mask] = target[drawn.mask]
        assert (source == target).all()


def test_a_move_touches_both_places_and_an_extension_one_side():
    move = PosterEdit("move", "position", SPEC, replace(SPEC, position="right"))
    columns = np.nonzero(draw_edit(move).mask.any(0))[0]
    assert columns.min() < CENTERS["left"][0] < CENTERS["right"][0] < columns.max()
    for side, inside in (("left", slice(0, 32)), ("right", slice(96, 128))):
        mask = draw_edit(PosterEdit("extend", side, SPEC, SPEC)).mask
        assert mask.sum() == mask[:, inside].sum()
        assert mask[:, inside].mean() > 0.9


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_instructions_of_one_source_are_all_different(lang):
    source = replace(SPEC, headline="none")
    possible = [
        PosterEdit(kind, part, source, replace(source, **{part: value}))
        for kind, part in [("recolour", "color"), ("recolour", "button"), ("move", "position"),
                           ("add", "headline"), ("remove", "button")]
        for value in CHOICES[part]
        if value != getattr(source, part) and (value == "none") == (kind == "remove")
    ]  # fmt: skip
    possible += [PosterEdit("extend", side, source, source) for side in EDITS["extend"]]
    assert len({instruction(edit, lang) for edit in possible}) == len(possible) == 27


def test_instructions_in_words():
    yellow = PosterEdit("recolour", "color", SPEC, replace(SPEC, color="yellow"))
    word = PosterEdit("add", "headline", replace(SPEC, headline="none"), SPEC)
    extend = PosterEdit("extend", "left", SPEC, SPEC)
    assert instruction(yellow, "en") == "make the star yellow"
    assert instruction(yellow, "zh") == "把星形改成黄色"
    assert instruction(word, "en") == "add the headline “TEA”"
    assert instruction(extend, "zh") == "把海报扩展到左边"


def test_edits_keep_to_their_split_and_their_seed():
    assert {e.source.split for e in edits("add", 20, "test")} == {"test"}
    assert {e.target.split for e in edits("add", 20, "test")} == {"test"}
    assert edits("move", 5) == edits("move", 5)


def test_edits_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match=r"edit: got 'move' of 'color', expected one of .*recolo"):
        PosterEdit("move", "color", SPEC, replace(SPEC, color="blue"))
    with pytest.raises(ValueError, match=r"recolour of 'color' changed \('position',\)"):
        PosterEdit("recolour", "color", SPEC, replace(SPEC, position="right"))
    with pytest.raises(ValueError, match="remove of 'button': got 'yellow' to 'red'"):
        PosterEdit("remove", "button", SPEC, replace(SPEC, button="red"))
    with pytest.raises(ValueError, match="edit kind: got 'crop'"):
        random_edit(random.Random(0), kind="crop")


def test_wrong_answers_score_below_and_a_free_change_elsewhere_halves():
    for edit in edits("recolour", 8):
        wrong = [c for c in COLORS if c not in (edit.source.color, edit.target.color)]
        if edit.part == "color":
            for color in wrong:
                assert not read_edit(draw(replace(edit.source, color=color)), edit).met
        also = replace(edit.target, background={"navy": "mint"}.get(edit.target.background, "navy"))
        assert read_edit(draw(also), edit).instruction <= MET
    for edit in edits("move", 8):
        [third] = {*CENTERS} - {edit.source.position, edit.target.position}
        assert read_edit(draw(replace(edit.source, position=third)), edit).instruction == 0.0
    for edit in edits("add", 8):
        other = "SUN" if edit.target.headline != "SUN" else "ART"
        value = other if edit.part == "headline" else {"red": "blue"}.get(edit.target.button, "red")
        assert not read_edit(draw(replace(edit.target, **{edit.part: value})), edit).met


def test_a_shape_that_stays_where_it_was_is_not_moved():
    edit = PosterEdit("move", "position", SPEC, replace(SPEC, position="right"))
    drawn = draw_edit(edit)
    both = np.array(drawn.target)
    both[52:98, :60] = np.asarray(drawn.source)[52:98, :60]
    assert read_edit(Image.fromarray(both), edit).instruction < 0.01


def test_the_score_rises_with_the_share_of_the_edit_that_was_done():
    edit = PosterEdit("recolour", "color", SPEC, replace(SPEC, color="blue"))
    drawn = draw_edit(edit)
    shares = (0.0, 0.5, 0.7, 0.75, 0.8, 1.0)
    scores = [
        read_edit(Image.blend(drawn.source, drawn.target, share), edit).instruction
        for share in shares
    ]
    assert scores == sorted(scores)
    assert scores[1] == 0.0
    assert any(0.0 < score < 1.0 for score in scores)
    assert scores[-1] == 1.0


def test_what_changes_outside_the_mask_shows_in_decibels_alone():
    edit = PosterEdit("remove", "button", SPEC, replace(SPEC, button="none"))
    drawn = draw_edit(edit)
    grain = np.random.default_rng(0).integers(-10, 11, (128, 128, 3))
    noisy = np.where(drawn.mask[..., None], 0, grain) + np.asarray(drawn.target)
    reading = read_edit(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), edit)
    assert reading.instruction == 1.0
    assert 31.0 < reading.outside_mask_psnr < 35.0
