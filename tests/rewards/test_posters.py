"""The poster world: captions that invert, drawings that degrade, a ruler that is exact."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import rewards.posters
from rewards.posters.designers import studio_designers
from rewards.posters.draw import DEFECTS, draw, quality_score
from rewards.posters.ruler import read_poster, ruler_sha256
from rewards.posters.spec import (
    BUTTONS,
    COLORS,
    HEADLINES,
    PosterSpec,
    caption,
    parse_caption,
    random_spec,
)

FROZEN = Path(rewards.posters.__file__).with_name("ruler.sha256")


def specs(count: int, seed: int = 0) -> list[PosterSpec]:
    rng = random.Random(seed)
    return [random_spec(rng) for _ in range(count)]


def test_the_ruler_is_the_frozen_one():
    """The ruler was fixed before the first alignment run; a change makes old figures void."""
    assert ruler_sha256() == FROZEN.read_text().strip()


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_caption_says_everything_about_its_specification(lang):
    rng = random.Random(1)
    for spec in (random_spec(rng, headlines=HEADLINES) for _ in range(300)):
        assert parse_caption(caption(spec, lang)) == spec


def test_unknown_words_are_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"poster color: got 'teal', expected one of .*'red'"):
        PosterSpec("cream", "circle", "teal", "left", "TEA", "none", "plain")
    with pytest.raises(ValueError, match="not a poster caption: 'a cat'"):
        parse_caption("a cat")
    with pytest.raises(ValueError, match=r"defect: got 'smudge', expected one of .*'blur'"):
        draw(specs(1)[0], defects={"smudge": 0.5})


def test_splits_follow_the_specification_and_have_their_shares():
    drawn = specs(4000)
    share = {name: sum(s.split == name for s in drawn) / 4000 for name in ("validation", "test")}
    assert share["validation"] == pytest.approx(0.1, abs=0.02)
    assert share["test"] == pytest.approx(0.1, abs=0.02)
    assert all(random_spec(random.Random(i), split="test").split == "test" for i in range(20))


def test_a_perfect_drawing_measures_one_on_everything():
    for spec in specs(150):
        reading = read_poster(draw(spec), spec)
        faults = {name: m for name, m in reading.measurements.items() if m < 1.0}
        assert not faults, spec
        assert reading.mean == 1.0


def test_the_drawing_of_another_caption_follows_it_by_about_nothing():
    readings = [read_poster(draw(a), b).instruction for a, b in pairwise(specs(150))]
    assert np.mean(readings) < 0.05


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_criterion_falls_with_the_severity_of_its_defect(defect):
    chosen = [s for s in specs(24) if s.button != "none"]
    means = [
        np.mean(
            [
                getattr(read_poster(draw(s, defects={defect: severity}, seed=3), s), criterion)
                for s in chosen
            ]
        )
        for criterion in [DEFECTS[defect]]
        for severity in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    # The last words of a headline may be gone long before severity 1: level is not a rise.
    assert all(after <= before + 1e-9 for before, after in pairwise(means)), means
    assert means[0] == 1.0
    assert means[-1] < 0.9


def test_a_wrong_word_or_button_costs_half_of_the_instruction_score():
    spec = PosterSpec("cream", "star", "red", "left", "TEA", "yellow", "plain")
    wrong_word = PosterSpec("cream", "star", "red", "left", "山水", "yellow", "plain")
    wrong_both = PosterSpec("cream", "star", "red", "left", "山水", "none", "plain")
    assert read_poster(draw(wrong_word), spec).instruction == 0.5
    assert read_poster(draw(wrong_both), spec).instruction == 0.25


def test_the_quality_score_is_the_severities_as_drawn():
    assert quality_score({}) == 5.0
    assert quality_score({"blur": 0.1}) == pytest.approx(4.8)
    assert quality_score({"blur": 1.0, "noise": 1.0, "muddy": 1.0}) == 1.0


def test_designers_prefer_better_posters_but_not_always_nor_alike():
    """Each finds the clearly worst of five two times in three; they differ among themselves."""
    rng = np.random.default_rng(0)
    designers = studio_designers()
    worst = dict.fromkeys((d.name for d in designers), 0)
    disagreements = 0
    for i, spec in enumerate(specs(30, seed=2)):
        levels = rng.permutation([0.0, 0.01, 0.02, 0.4, 0.9])
        images = [draw(spec, defects={"blur": b, "muddy": b}, seed=i) for b in levels]
        picks = [d.judge(images, spec, "overall", rng) for d in designers]
        for designer, pick in zip(designers, picks, strict=True):
            worst[designer.name] += pick.lose == int(np.argmax(levels))
        disagreements += len({p.win for p in picks}) > 1
    assert min(worst.values()) >= 20, worst
    assert disagreements >= 3


def test_choices_are_distinct_to_the_eye():
    assert len(set(COLORS.values())) == len(COLORS)
    assert set(BUTTONS) <= {*COLORS, "none"}
