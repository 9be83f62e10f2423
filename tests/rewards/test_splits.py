import pytest

from annotate.records import Prompt, Split
from rewards.components import find_components
from rewards.splits import LeakError, check_disjoint, normalise_prompt, set_aside


def prompts(*texts_and_splits):
    return [
        Prompt(id=f"p{index}", text=text, split=split)
        for index, (text, split) in enumerate(texts_and_splits)
    ]


def test_prompts_are_compared_as_a_reader_takes_them():
    assert normalise_prompt(" A  Red—Poster, ｗｉｄｅ! ") == "a red poster wide"
    assert normalise_prompt("红色海报，“春天”") == "红色海报 春天"


@pytest.mark.parametrize("text", ["a red poster", "A red  poster!", "ａ　ｒｅｄ poster"])
def test_a_prompt_in_two_splits_is_refused(text):
    with pytest.raises(LeakError, match=r"'p0' is in 'train' and 'p1' in 'test'"):
        check_disjoint(prompts(("a red poster", Split.TRAIN), (text, Split.TEST)))


def test_one_split_may_repeat_a_prompt():
    check_disjoint(prompts(("a", Split.TRAIN), ("a", Split.TRAIN), ("b", Split.TEST)))


def test_setting_aside_depends_on_the_prompts_and_the_seed_alone():
    ids = [f"p{index}" for index in range(100)]
    aside = set_aside(ids, 0.15, seed=0)
    assert len(aside) == 15
    assert set_aside(ids[::-1] * 2, 0.15, seed=0) == aside
    assert set_aside(ids, 0.15, seed=1) != aside
    # A new prompt moves at most one other.
    assert len(set_aside([*ids, "new"], 0.15, seed=0) & aside) >= 14


def test_an_instruction_for_another_picture_is_another_prompt():
    def edit(name, split, picture):
        return Prompt(id=name, text="make the star blue", split=split, source_image=picture * 64)

    held_out = edit("b", Split.TEST, "b")
    check_disjoint([edit("a", Split.TRAIN, "a"), held_out])
    assert len(find_components([edit("a", Split.TRAIN, "a"), held_out])) == 2
    with pytest.raises(LeakError, match="'c' is in 'train'"):
        check_disjoint([edit("c", Split.TRAIN, "b"), held_out])
