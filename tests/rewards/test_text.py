import itertools
import random

import numpy as np
import pytest
from PIL import Image

from rewards.text.accuracy import class_accuracy, combine
from rewards.text.distance import edit_distance, find_best
from rewards.text.engines import TextLine, open_engine
from rewards.text.layout import inside, legibility, reading_order, relative_luminance, upright
from rewards.text.matching import match_targets
from rewards.text.targets import TextTarget, parse_quoted, read_targets


def line(text, left=0, top=0, width=100, height=20, **more):
    right, bottom = left + width, top + height
    return TextLine(text, ((left, top), (right, top), (right, bottom), (left, bottom)), 1.0, **more)


def quoted(prompt):
    return [target.text for target in parse_quoted(prompt)]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a poster "Sale" and "New"', ["Sale", "New"]),
        ("海报，标题“春节快乐”，副标题「新年」和『大吉』", ["春节快乐", "新年", "大吉"]),
        ("标题「他说『好』了」", ["他说『好』了"]),
        ("“it’s ‘here’ now”", ["it’s ‘here’ now"]),
        ("it’s a designer's poster", []),
        ('an 8" screen', []),
        ("“never closed", []),
        ('empty "" and " "', []),
        ("no quotes", []),
    ],
)
def test_quotes_of_every_kind_are_parsed(prompt, texts):
    assert quoted(prompt) == texts


def test_structured_targets_come_with_their_order():
    listed = read_targets({"text_targets": ["春", {"text": "Sale", "role": "button"}]})
    assert listed == (TextTarget("春", order=0), TextTarget("Sale", role="button"))
    assert read_targets({}) is None
    with pytest.raises(ValueError, match=r"keys \['order', 'role', 'text'\], got \['txt'\]"):
        read_targets({"text_targets": [{"txt": "Sale"}]})
    with pytest.raises(ValueError, match="must be a list of texts"):
        read_targets({"text_targets": "Sale"})
    with pytest.raises(ValueError, match="must hold a character, got ' '"):
        read_targets({"text_targets": [" "]})


def test_the_best_part_is_that_of_an_exhaustive_search():
    rng = random.Random(0)
    for _ in range(60):
        pattern = "".join(rng.choices("ab", k=rng.randint(1, 5)))
        text = "".join(rng.choices("abc", k=rng.randint(0, 8)))
        distance, start, end = find_best(pattern, text)
        parts = [text[i:j] for i, j in itertools.combinations_with_replacement(range(9), 2)]
        assert distance == min(edit_distance(pattern, part) for part in parts)
        assert edit_distance(pattern, text[start:end]) == distance
    assert edit_distance("kitten", "sitting") == 3


def matched(targets, lines):
    return [m and m.text for m in match_targets([TextTarget(t) for t in targets], lines)]


def test_a_target_wrapped_over_lines_and_a_line_with_two_targets():
    wrapped = [line("summer sale", top=0), line("starts today", top=22)]
    assert matched(["Summer Sale Starts Today"], wrapped) == ["summer sale starts today"]
    assert matched(["全场五折", "Sale"], [line("全场五折 Sale")]) == ["全场五折", "sale"]


def test_targets_share_no_character_and_the_whole_cost_is_least():
    lines = [line("coffee", top=0), line("toffee", top=300)]
    # Alone, each target would take the first line; together one has to make do with the other.
    assert matched(["coffee", "coffee"], lines) == ["coffee", "toffee"]
    assert matched(["toffee", "coffee"], lines) == ["toffee", "coffee"]
    assert matched(["coffee", "coffee"], lines[:1]).count(None) == 1
    assert matched(["咖啡"], lines) == [None]


def test_lines_far_apart_are_not_one_text():
    lines = [line("summer", top=0), line("sale", top=400)]
    assert matched(["summer sale"], lines) == ["summer"]


def test_accuracy_by_class():
    target = "全场五折 Sale 50% OFF ¥99"
    assert class_accuracy(target, target) == {"han": 1, "latin": 1, "figures": 1}
    assert class_accuracy(target, "全场伍折 sale 50% off ¥99") == {
        "han": 0.75, "latin": 1, "figures": 1
    }  # fmt: skip
    # A price is right or wrong; a word with one wrong letter is wrong, its letters nearly right.
    assert class_accuracy(target, "全场五折 Sale 30% OFF ¥99")["figures"] == 0.5
    assert class_accuracy("Sale", "Sole")["latin"] == pytest.approx((0 + 0.75) / 2)
    assert class_accuracy("ＳＡＬＥ 50％", "sale 50%") == {"latin": 1, "figures": 1}


def test_accuracy_is_held_against_what_the_engine_reads_of_a_clean_rendering():
    # Half of the Chinese read where the engine reads that half of it clean: nothing is wrong.
    assert combine("龘靐龖龗", "龘靐", clean="龘靐") == 1.0
    assert combine("龘靐龖龗", "龖龗", clean="龘靐") == 0.5
    assert combine("龘靐", "", clean="龘") is not None
    assert combine("龘靐龖", "", clean="龘") is None
    assert combine("龘靐 sale", "sale", clean="sale") == 1.0
    assert combine("!?", "!?", clean="!?") == 1.0
    # Sans, a capital I is an l; that excuses no other letter.
    assert combine("The Island", "The lsland", clean="The lsland") == 1.0
    assert combine("The Island", "The Island", clean="The lsland") == 1.0
    assert combine("The Island", "The lsIand", clean="The lsland") < 0.7


def test_reading_order_counts_pairs():
    a, b, c = line("a", top=0), line("b", top=100), line("c", left=200, top=100)
    assert reading_order([a, b, c]) == 1
    assert reading_order([c, b, a]) == 0
    assert reading_order([b, a, c]) == pytest.approx(2 / 3)
    assert reading_order([a]) is None
    # Chinese columns run from the right.
    columns = [
        line("左", 0, 0, 20, 100, is_vertical=True),
        line("右", 50, 0, 20, 100, is_vertical=True),
    ]
    assert reading_order(columns[::-1]) == 1


def test_uprightness_and_clipping():
    assert [upright(line("a", angle=angle)) for angle in (0, 2, -90, 180)] == [1, 1, 0, 0]
    assert 0.4 < upright(line("a", angle=-45)) < 0.6
    image = Image.new("RGB", (300, 300))
    assert inside(line("a", left=10, top=10), image) == 1
    assert inside(line("a", left=0, top=10), image) == 0
    assert inside(line("a", left=200, top=10), image) == 0


def test_legibility_falls_with_contrast_and_blur():
    stripes = np.zeros((20, 100))
    stripes[:, ::10] = stripes[:, 1::10] = stripes[:, 2::10] = 1

    def of(ink, paper=255, blur=0):
        pixels = np.where(stripes > 0, ink, paper).astype(float)
        for _ in range(blur):
            pixels[:, 1:-1] = (pixels[:, :-2] + 2 * pixels[:, 1:-1] + pixels[:, 2:]) / 4
        image = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
        return legibility(line("a"), relative_luminance(image))

    assert of(0) == 1
    assert 1 > of(170) > of(220) > of(250) >= 0
    assert 1 > of(0, blur=8) > of(0, blur=20)
    assert of(255) == 0


def test_an_unknown_engine_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"'easyocr' \(choose from ppocr_v6, tesseract\)"):
        open_engine("easyocr")
