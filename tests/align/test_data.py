"""Order, rows, images and cached features."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_data import CAPTIONS, sft_config, write_data

from align.config import JsonlPairsConfig, ResolutionConfig, SFTDataConfig, TimestepConfig
from align.data.buckets import bucket_of_step, nearest_bucket
from align.data.draws import Draws
from align.data.features import FeatureEncoder
from align.data.images import ImageFile
from align.data.order import step_positions
from align.data.picks import read_pairs
from align.data.rows import Request, iterate_prompts, read_captioned_images
from align.engine import Engine, make_accelerator
from annotate.records import Split


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture
def encoder(data, tiny_folder, tmp_path):
    config = sft_config(data, tiny_folder, tmp_path / "run")
    engine = Engine(config, make_accelerator(config))
    return lambda: FeatureEncoder(str(tiny_folder), tmp_path / "cache", engine)


# Order --------------------------------------------------------------------------------------------


def test_every_epoch_holds_each_sample_once_and_a_step_stands_alone():
    taken = [p for step in range(1, 8) for p in step_positions(3, 10, 4, step)]
    assert step_positions(3, 10, 4, 6) == taken[20:24]
    for epoch in (0, 1):
        assert sorted(p.item for p in taken if p.epoch == epoch) == list(range(10))
    assert [p.item for p in taken[:10]] != [p.item for p in taken[10:20]]
    assert step_positions(4, 10, 10, 1) != step_positions(3, 10, 10, 1)


def test_spread_noise_levels_share_out_the_distribution():
    draws = Draws(seed=0, shape=(1,), mu=0.5, timesteps=TimestepConfig())
    ids = [f"s{i}" for i in range(500) for _ in range(4)]
    spread = draws.spread_sigma(ids, [0, 1, 2, 3] * 500, 4)
    plain = draws.sigma(ids, [0, 1, 2, 3] * 500)
    assert spread.view(-1, 4).diff(dim=1).gt(0).all()
    quantiles = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    torch.testing.assert_close(
        spread.quantile(quantiles), plain.quantile(quantiles), atol=0.03, rtol=0
    )


def test_each_step_has_one_bucket_and_a_cycle_meets_all_samples():
    sizes, batch_size = [12, 5, 1], 4
    cycle = 3 + 1 + 1
    steps = [bucket_of_step(0, sizes, batch_size, step) for step in range(1, 2 * cycle + 1)]
    for number in (0, 1):
        buckets = [bucket for bucket, _ in steps[number * cycle :][:cycle]]
        assert sorted(buckets) == [0, 0, 0, 1, 2]
    for bucket, count in enumerate((3, 1, 1)):
        own = [number for b, number in steps if b == bucket]
        assert own == list(range(1, 2 * count + 1))
    orders = {
        tuple(bucket_of_step(0, sizes, batch_size, cycle * n + k)[0] for k in range(1, cycle + 1))
        for n in range(8)
    }
    assert len(orders) > 4
    assert [bucket_of_step(7, [9], 4, step) for step in (1, 2, 9)] == [(0, 1), (0, 2), (0, 9)]


def test_an_image_goes_to_the_bucket_of_its_aspect_ratio():
    buckets = [(64, 64), (32, 32), (32, 64), (64, 32)]
    for size, bucket in (
        ((100, 100), (64, 64)),
        ((40, 38), (32, 32)),
        ((300, 900), (32, 64)),
        ((900, 300), (64, 32)),
    ):
        assert nearest_bucket(size, buckets) == bucket


# Rows ---------------------------------------------------------------------------------------------


def test_low_scores_are_left_out_and_whole_prompts_are_held_out(data):
    rows = read_captioned_images(SFTDataConfig(path=data / "sft.jsonl"), fraction=0.25)
    assert len(rows.train) == 8
    assert len(rows.validation) == 3
    prompts = {row.prompt for row in rows.train} | {row.prompt for row in rows.validation}
    assert CAPTIONS[5] not in prompts
    assert not {row.prompt for row in rows.train} & {row.prompt for row in rows.validation}
    everything = SFTDataConfig(path=data / "sft.jsonl", min_score=None)
    assert len(read_captioned_images(everything, fraction=0.0).train) == 12


def test_instructions_follow_the_prompt(data, tmp_path):
    row = {"prompt": "a poster", "image": str(data / "images/0.png"), "score": 5}
    row |= {"style": "flat", "layout": "", "colour": "warm"}
    (tmp_path / "sft.jsonl").write_text(json.dumps(row) + "\n")
    sample = read_captioned_images(SFTDataConfig(path=tmp_path / "sft.jsonl"), 0.0).train[0]
    assert sample.prompt == "a poster\nStyle: flat\nColour: warm"


def test_a_row_may_name_its_split(data, tmp_path):
    lines = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        line.update(
            chosen=str(data / line["chosen"]),
            rejected=str(data / line["rejected"]),
            split="validation" if i < 2 else "train",
            weight=0.5,
        )
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_pairs(JsonlPairsConfig(path=path), fraction=0.5)
    assert [row.prompt for row in rows.validation] == list(CAPTIONS[:2])
    assert {row.weight for row in rows.train} == {0.5}


def pair(**changes) -> str:
    row = {"prompt": "a", "chosen": "x.png", "rejected": "y.png"}
    return json.dumps(row | changes) + "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no pairs"),
        ("{not json}\n", "line 1"),
        ('{"prompt": "a", "chosen": "x.png"}\n', "line 1: rejected: Field required"),
        (pair(), r"line 1: there is no image at .*x\.png"),
        ("\n" + pair(rejected="z.png"), r"line 2: .*x\.png and .*z\.png are the same image"),
        (pair(chosen=""), r"line 1: chosen: String should have at least 1 character \(got ''\)"),
        (pair(chosen="."), r"line 1: .* is a folder; an image is needed"),
        (pair(weight=math.inf), r"line 1: weight: Input should be a finite number \(got inf\)"),
        (pair(weight=math.nan), r"line 1: weight: Input should be a finite number \(got nan\)"),
        (pair(weight=-1), r"line 1: weight: Input should be greater than 0 \(got -1\)"),
        (pair(weight=True), r"line 1: weight: Input should be a valid number \(got True\)"),
    ],
)
def test_faulty_pairs_name_the_file_and_the_line(tmp_path, content, message):
    if message != r"line 1: there is no image at .*x\.png":
        for name in ("x.png", "z.png"):
            (tmp_path / name).write_bytes(b"the same")
    path = tmp_path / "pairs.jsonl"
    path.write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read_pairs(JsonlPairsConfig(path=path), fraction=0.0)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(("score", "shown"), [(math.nan, "nan"), (True, "True"), ("5", "'5'")])
def test_a_score_is_a_number(tmp_path, score, shown):
    path = tmp_path / "sft.jsonl"
    path.write_text(json.dumps({"prompt": "a", "image": "x.png", "score": score}))
    with pytest.raises(ValueError, match=rf"line 1: score: .* \(got {shown}\)"):
        read_captioned_images(SFTDataConfig(path=path), 0.0)


def test_an_image_that_is_not_the_recorded_one_is_named(data):
    content = (data / "images/0.png").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    assert ImageFile(data / "images/0.png", found).sha256 == found
    with pytest.raises(
        ValueError, match=rf"0\.png was changed: .* is {found}, expected {'0' * 64}"
    ):
        _ = ImageFile(data / "images/0.png", "0" * 64).sha256


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at .*nothing\.jsonl"):
        read_pairs(JsonlPairsConfig(path=tmp_path / "nothing.jsonl"), fraction=0.0)


def test_prompts_come_from_text_and_from_records(tmp_path):
    text = tmp_path / "prompts.txt"
    text.write_text("one\n\n “two” \none\n红色\n", encoding="utf-8")
    prompts = list(iterate_prompts(text))
    assert [(p.text, p.lang) for p in prompts] == [("one", "en"), ("“two”", "en"), ("红色", "zh")]
    assert len({p.id for p in prompts}) == 3
    records = tmp_path / "prompts.jsonl"
    records.write_text(
        '{"id": "a", "text": "A"}\n{"id": "b", "text": "B", "split": "test"}\n', encoding="utf-8"
    )
    assert [p.id for p in iterate_prompts(records, [Split.TRAIN])] == ["a"]
    records.write_text('{"id": "a", "text": "A"}\n{"id": "a", "text": "B"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="'a' stands twice"):
        list(iterate_prompts(records))


def test_prompts_of_other_encodings_and_of_no_asked_split_are_named(tmp_path):
    text, records = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    text.write_bytes("one\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts\.txt, line 2: not UTF-8 .*0xe9.*as UTF-8"):
        list(iterate_prompts(text))
    text.write_text("\ufeffone\ntwo\n", encoding="utf-8")
    assert [p.text for p in iterate_prompts(text)] == ["one", "two"]
    records.write_text('\ufeff{"id": "a", "text": "A", "split": "test"}\n', encoding="utf-8")
    assert [p.text for p in iterate_prompts(records)] == ["A"]
    none = r"prompts\.jsonl has no prompts of the splits train; it has some of test"
    with pytest.raises(ValueError, match=none):
        list(iterate_prompts(records, [Split.TRAIN]))


def test_a_file_of_ties_alone_says_what_would_train_on_them(data):
    rows = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]
    path = data / "ties.jsonl"
    path.write_text("\n".join(json.dumps({**row, "tie": True}) for row in rows))
    assert len(read_pairs(JsonlPairsConfig(path=path), 0.0, ties=True).train) == len(rows)
    with pytest.raises(ValueError, match=r"ties\.jsonl has no pairs .* objective\.tie_threshold"):
        read_pairs(JsonlPairsConfig(path=path), 0.0)


@pytest.mark.parametrize("name", ["prompts.csv", "prompts.json", "prompts.parquet"])
def test_a_table_is_not_read_as_lines_of_text(tmp_path, name):
    (tmp_path / name).write_text("prompt,lang\na cat,en\n")
    with pytest.raises(ValueError, match=rf"\.txt \(one a line\), \.jsonl .*, got .*{name}"):
        next(iterate_prompts(tmp_path / name))


# Features -----------------------------------------------------------------------------------------


def test_cached_features_are_those_of_the_encoders_and_are_encoded_once(
    data, encoder, adapter, monkeypatch
):
    images = [ImageFile(data / f"images/{i}.png") for i in (0, 1, 0)]
    prompts = [CAPTIONS[0], "red", CAPTIONS[1]]
    resolution = SFTDataConfig(path=data / "sft.jsonl", height=32, width=32)
    requests = [Request(prompt) for prompt in prompts]
    features = encoder().encode(images, requests, resolution)
    with torch.no_grad():
        latents = adapter.encode_images(torch.stack([i.load(resolution) for i in images]))
        cond = adapter.encode_prompts(prompts)
    torch.testing.assert_close(features.latents(images), latents, atol=1e-5, rtol=0)
    found = features.conditioning(requests)
    torch.testing.assert_close(found.mask, cond.mask)
    torch.testing.assert_close(found.prompt_embeds, cond.prompt_embeds, atol=1e-5, rtol=0)
    assert features.conditioning([requests[1]] * 2).mask is None

    def fail(*args):
        raise AssertionError("an encoder was loaded though everything is in the cache")

    again = encoder()
    monkeypatch.setattr(FeatureEncoder, "_encode_images", fail)
    monkeypatch.setattr(FeatureEncoder, "_encode_prompts", fail)
    assert torch.equal(again.encode(images, requests, resolution).latents(images), latents)


def test_a_corrupt_image_and_a_truncated_one_are_named(data, encoder, tmp_path):
    whole = (data / "images/0.png").read_bytes()
    for content in (b"not an image", whole[: len(whole) // 2]):
        path = tmp_path / "broken.png"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
            encoder().encode([ImageFile(path)], [])


def test_an_image_of_any_kind_is_read_as_people_see_it(tmp_path):
    grey = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "sixteen_bits.png")
    half_seen = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    half_seen.paste((255, 0, 0, 255), (0, 0, 8, 16))
    half_seen.save(tmp_path / "alpha.png")
    palette = Image.new("P", (16, 16), 3)
    palette.putpalette([0] * 12)
    palette.save(tmp_path / "palette.png", transparency=3)
    Image.new("F", (16, 16), 0.5).save(tmp_path / "floats.tiff")

    def read(name):
        return ImageFile(tmp_path / name).load(ResolutionConfig())

    assert torch.equal(read("sixteen_bits.png")[0].flatten(), torch.arange(256) / 127.5 - 1)
    assert read("alpha.png")[:, 0, [0, -1]].T.tolist() == [[1, -1, -1], [1, 1, 1]]
    assert read("palette.png").min() == 1
    with pytest.raises(ValueError, match=r"floats\.tiff cannot be read: mode 'F' says not which"):
        read("floats.tiff")


def test_images_of_different_sizes_are_named(data, encoder, tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (64, 32)).save(path)
    files = [ImageFile(data / "images/0.png"), ImageFile(path)]
    with pytest.raises(
        ValueError, match=r"different sizes: .*0\.png is 32 x 32, .*wide\.png is 64"
    ):
        encoder().encode(files, [])
    Image.new("RGB", (40, 32)).save(tmp_path / "odd.png")
    with pytest.raises(
        ValueError, match=r"odd\.png does not fit the model: image size is 32 x 40; .* data\.height"
    ):
        encoder().encode([ImageFile(tmp_path / "odd.png")], [])
    fitted = SFTDataConfig(path=path, height=32, width=32)
    assert encoder().encode(files, [], fitted).latents(files).shape[0] == 2
