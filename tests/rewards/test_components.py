import io
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.fft import dctn

from annotate.records import Prompt, Snapshot, Split
from rewards.components import (
    Component,
    assign_splits,
    check_components,
    check_snapshot,
    find_components,
    perceptual_hash,
    similar_hashes,
    similar_texts,
)
from rewards.posters.draw import draw
from rewards.posters.spec import random_spec
from rewards.splits import LeakError

RNG = random.Random(3)
POSTERS = [draw(random_spec(RNG), 128, {}, seed=index) for index in range(12)]
BRIEF = "a poster for the spring sale of a small bookshop in the old town, with cherry blossom, "


def prompts(*texts, **metadata):
    return [Prompt(id=f"p{i:03d}", text=text, metadata=metadata) for i, text in enumerate(texts)]


def test_texts_that_differ_in_a_word_are_alike():
    texts = [
        BRIEF + "a headline and a button at the bottom in red",
        BRIEF + "a headline and a button at the bottom in tea",
        "something else altogether",
        "春天的书店海报，标题在上方，按钮在下方，背景是樱花和老城",
        "something else altogether",
    ]
    assert similar_texts(texts) == [(2, 4), (0, 1)]
    assert similar_texts(["", "ab", ""]) == [(0, 2)]


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: jpeg(image, 80),
        lambda image: image.resize((97, 97)),
        lambda image: ImageEnhance.Color(image).enhance(1.2),
    ],
    ids=["jpeg", "resized", "saturated"],
)
def test_a_hash_survives_small_changes_and_tells_posters_apart(change):
    hashes = [perceptual_hash(image) for image in POSTERS]
    changed = [perceptual_hash(change(image)) for image in POSTERS]
    links = similar_hashes([*hashes, *changed])
    own = {(i, i + len(POSTERS)) for i in range(len(POSTERS))}
    assert own <= set(links)
    # Drawn posters differ by their specification, some in colour alone: it is they that are split.
    assert len(similar_hashes(hashes)) <= 1


def test_the_hash_is_of_the_lowest_frequencies():
    grey = np.asarray(POSTERS[0].convert("L").resize((64, 64), Image.Resampling.LANCZOS), float)
    low = dctn(grey, norm="ortho")[:16, :16]
    wanted = np.packbits(low.round(6) > np.median(low.round(6))).tobytes()
    assert perceptual_hash(POSTERS[0]) == wanted
    assert len(wanted) == 32
    assert similar_hashes([]) == []


def test_components_join_what_is_alike_by_any_path():
    listed = prompts("first brief of many", "FIRST brief, of many!", "a second", "a third", "x")
    image = perceptual_hash(POSTERS[0])
    hashes = {"p001": [image], "p002": [image, perceptual_hash(POSTERS[1])]}
    found = find_components(listed, hashes)
    assert [c.prompt_ids for c in found] == [("p000", "p001", "p002"), ("p003",), ("p004",)]
    assert found[0].links == {"text": 1, "image": 1}


def test_a_template_joins_only_where_there_are_many():
    def with_template(count):
        return [
            Prompt(id=f"p{i:03d}", text=f"{i:03d} is the number", metadata={"template": i % count})
            for i in range(100)
        ]

    few = find_components(with_template(4), join_by=["template"])
    assert max(len(c.prompt_ids) for c in few) == 1
    many = find_components(with_template(50), join_by=["template"])
    assert {len(c.prompt_ids) for c in many} == {2}


def singles(count):
    return [Component((f"s{i:03d}",), {}) for i in range(count)]


def test_splits_keep_components_whole_and_come_near_the_shares():
    components = [Component(("a", "b", "c"), {"text": 2}), *singles(97)]
    shares = {Split.TRAIN: 0.7, Split.VALIDATION: 0.1, Split.TEST: 0.2}
    split_of = assign_splits(components, shares, seed=0)
    check_components(components, split_of)
    counts = [list(split_of.values()).count(split) for split in shares]
    assert counts == [70, 10, 20]
    assert assign_splits(components[::-1], shares, seed=0) == split_of
    assert assign_splits(components, shares, seed=1) != split_of
    with pytest.raises(ValueError, match="sum to 1"):
        assign_splits(components, {Split.TRAIN: 0.7}, seed=0)


def test_a_cut_component_and_a_giant_one_are_refused():
    components = [Component(("a", "b"), {"image": 1}), *singles(10)]
    split_of = {p: Split.TRAIN for c in components for p in c.prompt_ids} | {"b": Split.TEST}
    with pytest.raises(LeakError, match=r"alike by image \(1\) but .*'test': 'b', 'train': 'a'"):
        check_components(components, split_of)
    giant = [Component(tuple("abcdefgh"), {"text": 7}), *singles(10)]
    with pytest.raises(LeakError, match=r"8 of 18 prompts are alike by text \(7\), more than 30%"):
        assign_splits(giant, {Split.TRAIN: 1.0}, seed=0)


def test_the_command_prints_sizes_and_refuses(snapshot_folder, capsys):
    from align.cli import command_parser
    from rewards.commands.reward import run

    parser = command_parser("reward")
    assert run(parser.parse_args(["splits", str(snapshot_folder), "--by-text-alone"])) == 0
    assert capsys.readouterr().out.startswith("48 prompts, 48 components\n    48 of 1 prompt\n")


def test_the_command_names_a_truncated_image(snapshot_folder, tmp_path, capsys):
    from align.cli import main

    folder = tmp_path / "snapshot"
    shutil.copytree(snapshot_folder, folder)
    image = sorted((folder / "images").iterdir())[0]
    image.write_bytes(image.read_bytes()[:-20])
    assert main(["reward", "splits", str(folder)]) == 2
    error = capsys.readouterr().err
    assert f"the image {image} of candidate " in error
    assert f"expected {image.stem}" in error


def test_drawn_posters_are_alike_by_their_specification():
    text = "a long brief for a poster with a red circle on the left and a headline"
    drawn = [
        Prompt(id=name, text=f"{text} {name}", split=split, metadata={"spec": {"shape": shape}})
        for name, split, shape in (
            ("a", Split.TRAIN, "disc"), ("b", Split.TEST, "ring"), ("c", Split.TRAIN, "disc"),
        )
    ]  # fmt: skip
    snapshot = Snapshot("0", Path(), tuple(drawn), (), (), ())
    components = check_snapshot(snapshot, images=False)
    assert [c.prompt_ids for c in components] == [("a", "c"), ("b",)]
    moved = drawn[2].model_copy(update={"split": Split.TEST})
    with pytest.raises(LeakError, match=r"alike by specification \(1\)"):
        check_snapshot(Snapshot("0", Path(), (*drawn[:2], moved), (), (), ()), images=False)
    # The same captions without a specification are near-duplicates.
    free = tuple(p.model_copy(update={"metadata": {}}) for p in drawn)
    with pytest.raises(LeakError, match="alike by text"):
        check_snapshot(Snapshot("0", Path(), free, (), (), ()), images=False)
