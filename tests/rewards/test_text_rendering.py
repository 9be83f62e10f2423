"""The scorer on real posters with a real engine. Reading one takes about a second."""

import pytest
from PIL import Image, ImageDraw

from benchmarks.text.briefs import BRIEFS
from benchmarks.text.draw import draw_poster, load_font
from benchmarks.text.measure import characters_of_level, first_quote_reward
from rewards.base import RewardItem
from rewards.scorers.text_rendering import TextRenderingConfig, TextRenderingScorer
from rewards.text.engines import PaddleEngine, TesseractEngine, TextLine

BRIEF = BRIEFS[0]


def item(image, prompt=BRIEF.prompt, targets=BRIEF.lines):
    metadata = {} if targets is None else {"text_targets": list(targets)}
    return RewardItem("s", "g", prompt, image=image, metadata=metadata)


@pytest.fixture(scope="module")
def scorer():
    return TextRenderingScorer(PaddleEngine(num_threads=1))


def test_the_faults_that_the_common_reward_overlooks_cost_something(scorer):
    clean, missing, upside_down = scorer.score(
        [
            item(draw_poster(BRIEF, faults))
            for faults in ({}, {"missing_line": 1}, {"headline_upside_down": 1})
        ]
    )
    assert clean.value == pytest.approx(1.0, abs=0.02)
    assert missing.components["accuracy"] == pytest.approx(0.75)
    assert missing.value < 0.8
    assert upside_down.components["upright"] == pytest.approx(0.75)
    assert upside_down.value < clean.value
    lines = scorer.engine.read(draw_poster(BRIEF, {"missing_line": 1}))
    assert first_quote_reward(BRIEF.prompt, lines) == 1.0


def test_a_wrong_character_that_is_read_as_the_right_one_costs_certainty(scorer):
    def shown(text):
        image = Image.new("RGB", (520, 200), "#f4ead9")
        font = load_font("sans", 64)
        ImageDraw.Draw(image).text((60, 100), text, fill="#3a2416", font=font, anchor="lm")
        return item(image, targets=["晴空万里"])

    right, wrong = scorer.score([shown("晴空万里"), shown("睛空万里")])
    assert right.components["accuracy"] == wrong.components["accuracy"] == 1.0
    assert wrong.components["certainty"] < 0.95 < right.components["certainty"]
    assert wrong.value < right.value - 0.001


def test_an_image_without_targets_is_not_applicable_and_without_image_an_error(scorer, caplog):
    image = draw_poster(BRIEF)
    plain, empty, broken = scorer.score(
        [item(image, "a red poster", None), item(image, targets=[]), item(None)]
    )
    assert (plain.value, plain.error) == (None, None)
    assert (empty.value, empty.error) == (None, None)
    assert broken.error == "there is no image"
    wrong = RewardItem("s", "g", "p", image=image, metadata={"text_targets": "春"})
    assert "must be a list" in str(scorer.score([wrong])[0].error)
    assert scorer.score([]) == []
    assert caplog.records == []


class Fixed:
    """An engine that reads what it was given: what is tested is the judgement."""

    name, version = "fixed", "1"

    def __init__(self, *texts):
        self.texts = texts

    def read(self, image):
        return [
            TextLine(text, ((40, y), (240, y), (240, y + 30), (40, y + 30)), 1.0)
            for text, y in zip(self.texts, range(10, 1000, 60), strict=False)
        ]


def judge(*texts, targets=None, prompt="“你好” and “Sale”"):
    scorer = TextRenderingScorer(Fixed(*texts), TextRenderingConfig(clean_font=None))
    [score] = scorer.score([item(draw_poster(BRIEF), prompt, targets)])
    return score


def test_a_prompts_quotes_serve_where_there_are_no_targets(caplog):
    score = judge("你好", "sale")
    assert score.components["accuracy"] == 1
    assert "order" not in score.components
    assert "has no text_targets in its metadata" in caplog.text


def test_junk_and_repetition_cost_precision_and_a_lost_line_accuracy():
    assert judge("你好", "Sale").components["precision"] == 1
    assert judge("你好", "Sale", "你好", "你好").components["precision"] == pytest.approx(0.6)
    assert judge("你好", "Sale", "xyzxyz").components["precision"] == pytest.approx(0.5)
    lost = judge("你好")
    assert (lost.components["accuracy"], lost.components["precision"]) == (0.5, 1)
    # A prompt without straight quotes is where the common reward fails altogether.
    with pytest.raises(IndexError):
        first_quote_reward("“你好”", [])


def test_reading_nothing_is_a_true_zero():
    assert judge().value == 0.0


def test_a_failing_engine_is_an_error_and_no_number():
    class Failing(Fixed):
        def read(self, image):
            raise RuntimeError("out of memory")

    scorer = TextRenderingScorer(Failing(), TextRenderingConfig(clean_font=None))
    [score] = scorer.score([item(draw_poster(BRIEF))])
    assert (score.value, score.error) == (None, "fixed failed: out of memory")


def test_settings_are_checked_and_part_of_the_version(tmp_path):
    with pytest.raises(ValueError, match="precision must lie between 0 and 1, got 2"):
        TextRenderingConfig(precision=2)
    with pytest.raises(FileNotFoundError, match="apt-get install fonts-noto-cjk"):
        TextRenderingConfig(clean_font=str(tmp_path / "font.ttf"))
    versions = {
        TextRenderingScorer(
            Fixed(), TextRenderingConfig(layout=share, clean_font=None)
        ).spec.version
        for share in (0.3, 0.5)
    }
    assert len(versions) == 2


def test_the_second_engine_reads_the_poster_too():
    text = " ".join(line.text for line in TesseractEngine().read(draw_poster(BRIEFS[1])))
    assert "Slow Morning Coffee" in text


def test_the_levels_of_the_national_standard():
    assert len(characters_of_level(1)) == 3755
    assert len(characters_of_level(2)) == 3008
    assert (characters_of_level(1)[0], characters_of_level(2)[0]) == ("啊", "亍")
