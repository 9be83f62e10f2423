"""The published scorers on CLIP against their published definitions, on random weights."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tiny_clip
import torch
from PIL import Image
from PIL.Image import Resampling
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from annotate.settings import parse_config
from rewards.base import RewardItem
from rewards.composition import Calibration, CompositeScorer, Part
from rewards.posters.draw import draw
from rewards.posters.spec import random_spec
from rewards.scorers import clip_weights
from rewards.scorers.build import build_scorer
from rewards.scorers.clip import clean_openai
from rewards.scorers.clip_images import MEAN, STD, crop_openai, crop_transformers, pad_hps
from rewards.scorers.config import RewardServerConfig

SIZES = ((64, 64), (61, 40), (40, 63), (33, 32), (35, 32), (32, 32), (20, 29), (200, 64))


def picture(size, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def normalised(array):
    """(h, w, 3) in [0, 1] -> (3, h, w)."""
    return torch.from_numpy(((array - np.array(MEAN)) / np.array(STD)).transpose(2, 0, 1)).float()


@pytest.mark.parametrize("size", SIZES)
def test_pickscore_sees_what_its_processor_makes(size):
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    expected = processor(picture(size), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(crop_transformers(picture(size), 32), expected)


@pytest.mark.parametrize("size", SIZES)
def test_openais_crop_is_torchvisions(size):
    width, height = size
    if width <= height:
        resized = picture(size).resize((32, int(32 * height / width)), Resampling.BICUBIC)
    else:
        resized = picture(size).resize((int(32 * width / height), 32), Resampling.BICUBIC)
    left = round((resized.width - 32) / 2.0)
    top = round((resized.height - 32) / 2.0)
    cut = np.asarray(resized.crop((left, top, left + 32, top + 32)), dtype=np.float64) / 255
    torch.testing.assert_close(crop_openai(picture(size), 32), normalised(cut))


def test_the_two_crops_differ_by_a_pixel_at_a_margin_of_three():
    # 3 / 2 is 2 for torchvision, which rounds halves to even, and 1 for transformers.
    image = picture((35, 32))
    assert not torch.equal(crop_openai(image, 32), crop_transformers(image, 32))
    assert torch.equal(crop_openai(image, 32)[:, :, :-1], crop_transformers(image, 32)[:, :, 1:])


@pytest.mark.parametrize("size", SIZES)
def test_hps_sees_the_whole_picture_on_black(size):
    scale = 32 / max(size)
    width, height = (round(length * scale) for length in size)
    array = np.asarray(picture(size), dtype=np.float32) / 255
    canvas = np.zeros((32, 32, 3))
    top, left = (32 - height) // 2, (32 - width) // 2
    for channel in range(3):
        # Pillow filters floats by the same antialiased cubic as torchvision does tensors.
        plane = Image.fromarray(array[..., channel]).resize((width, height), Resampling.BICUBIC)
        canvas[top : top + height, left : left + width, channel] = np.asarray(plane)
    torch.testing.assert_close(pad_hps(picture(size), 32), normalised(canvas), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  “a ‘red’ car”  ", "\"a 'red' car\""),
        ("ＳＡＬＥ！ 全场五折，￥99", "SALE! 全场五折,¥99"),
        ("cats &amp;amp; dogs", "cats & dogs"),
        ("eﬃcient", "efficient"),
    ],
)
def test_prompts_are_cleaned_as_openais_tokenizer_does(text, clean):
    assert clean_openai(text) == clean


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    tiny_clip.save_clip(path)
    tiny_clip.save_open_clip(path / "HPS_v2.1_compressed.pt")
    tiny_clip.save_aesthetic_head(path / "head.pth")
    return path


def opened(kind, folder, **settings):
    own = {
        "pickscore": {"tokenizer": str(folder)},
        "hpsv2": {"tokenizer": str(folder), "vision_head": 16, "text_head": 16},
        "clip_score": {},
        "laion_aesthetic": {"head": str(folder / "head.pth")},
    }[kind]
    tree = {"type": kind, "path": str(folder), **own, **settings}
    return build_scorer(parse_config(RewardServerConfig, {"scorers": [tree]}).scorers[0])


def items(count=3):
    rng = random.Random(0)
    prompts = ("a red car", "一只猫。", "ＳＡＬＥ “now”")
    return [
        RewardItem(str(i), "g", prompts[i % 3], image=draw(random_spec(rng), 80, seed=i))
        for i in range(count)
    ]


def values(scorer, these):
    return [score.value for score in scorer.score(these)]


def test_pickscore_is_the_logit_of_its_own_model_and_processor(folder):
    model, names = CLIPModel.from_pretrained(folder).eval(), tiny_clip.tokenizer()
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    expected = []
    for item in items():
        text = names(
            item.prompt, padding=True, truncation=True, max_length=tiny_clip.ROOM,
            return_tensors="pt",
        )  # fmt: skip
        pixels = processor(item.image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected.append(model(pixel_values=pixels, **text).logits_per_image.item())
    assert np.ptp(expected) > 0.1
    assert values(opened("pickscore", folder), items()) == pytest.approx(expected, abs=1e-4)


def test_hps_scores_as_open_clip_does_with_the_same_file(folder):
    model = tiny_clip.save_open_clip(folder / "HPS_v2.1_compressed.pt")
    names = tiny_clip.tokenizer()
    expected = []
    for item in items():
        ids = names(clean_openai(item.prompt))["input_ids"]
        row = torch.zeros(1, tiny_clip.ROOM, dtype=torch.long)  # open_clip pads with 0
        row[0, : len(ids)] = torch.tensor(ids)
        with torch.no_grad():
            image = model.encode_image(pad_hps(item.image, tiny_clip.SIDE)[None])
            expected.append(torch.cosine_similarity(image, model.encode_text(row)).item())
    assert np.ptp(expected) > 0.01
    scorer = opened("hpsv2", folder)
    assert values(scorer, items()) == pytest.approx(expected, abs=1e-5)
    assert scorer.spec.backbone == "clip-vit-2x32-8"


def test_clipscore_is_hessels_formula(folder):
    model, names = CLIPModel.from_pretrained(folder).eval(), tiny_clip.tokenizer()
    expected = []
    for item in items():
        text = names("A photo depicts " + clean_openai(item.prompt), truncation=True,
                     max_length=tiny_clip.ROOM, return_tensors="pt")  # fmt: skip
        with torch.no_grad():
            found = model(pixel_values=crop_openai(item.image, 32)[None], **text)
        expected.append(2.5 * max((found.image_embeds * found.text_embeds).sum().item(), 0))
    assert values(opened("clip_score", folder), items()) == pytest.approx(expected, abs=1e-5)


def test_the_aesthetic_predictor_is_its_layers_on_a_unit_embedding(folder):
    model = CLIPModel.from_pretrained(folder).eval()
    head = tiny_clip.save_aesthetic_head(folder / "head.pth")
    expected = []
    for item in items():
        with torch.no_grad():
            image = model.get_image_features(crop_openai(item.image, 32)[None]).pooler_output
            expected.append(head(image / image.norm()).item())
    assert np.ptp(expected) > 1e-4
    scorer = opened("laion_aesthetic", folder)
    assert values(scorer, items()) == pytest.approx(expected, abs=1e-6)
    assert values(scorer, [RewardItem("x", "g", "anything", image=items()[0].image)]) == (
        pytest.approx(expected[:1], abs=1e-6)
    )


def test_what_a_long_prompt_loses_is_counted_and_carried_on(folder):
    scorer = opened("pickscore", folder)
    image = items()[0].image
    room = tiny_clip.ROOM - 2  # start and end
    short, long = (RewardItem(n, "g", "a" * k, image=image) for n, k in (("s", room), ("l", 90)))
    first, second = scorer.score([short, long])
    assert (first.truncated, second.truncated) == (0, 90 - room)
    other = RewardItem("o", "g", "a" * 90 + "b", image=image)  # what comes later is not read
    assert scorer.score([other])[0].value == pytest.approx(second.value, abs=1e-6)
    calibration = Calibration("pickscore", scorer.spec.version, 0.0, 1.0, 2)
    composite = CompositeScorer([Part(scorer, calibration)])
    assert [s.truncated for s in composite.score([short, long])] == [0, 90 - room]


def test_weights_settings_and_precision_make_the_version(folder, tmp_path):
    scorer = opened("clip_score", folder)
    assert opened("clip_score", folder, batch_size=2).spec == scorer.spec
    other = tiny_clip.save_clip(tmp_path, seed=5)
    versions = {
        scorer.spec.version,
        opened("clip_score", other).spec.version,
        opened("clip_score", folder, prefix="").spec.version,
        opened("clip_score", folder, dtype="bfloat16").spec.version,
    }
    assert len(versions) == 4
    half = opened("clip_score", folder, dtype="bfloat16")
    assert values(half, items()) == pytest.approx(values(scorer, items()), abs=0.1)


def test_missing_weights_name_folder_and_hub_id(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    nowhere = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=rf"pickscore: no weights at '{nowhere}'.*hf down"):
        opened("pickscore", folder, path=nowhere)
    with pytest.raises(FileNotFoundError, match=r"pickscore: .*'yuvalkirstain/PickScore_v1'"):
        opened("pickscore", folder, path=None)
    with pytest.raises(FileNotFoundError, match=r"hf download xswu/HPSv2 HPS_v2\.1_compressed\.pt"):
        opened("hpsv2", folder, path=None)
    with pytest.raises(FileNotFoundError, match=r"HPS_v2\.1_compressed\.pt'"):
        opened("hpsv2", folder, path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"clip_score \(tokenizer\)"):
        opened("clip_score", folder, tokenizer=nowhere)


def test_weights_that_are_not_all_there_are_refused(folder, tmp_path):
    model = CLIPModel.from_pretrained(folder)
    state = model.state_dict()
    del state["text_projection.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="it lacks text_projection"):
        opened("clip_score", folder, path=str(tmp_path))
    state = tiny_clip.save_open_clip(tmp_path / "whole.pt").state_dict()
    for name in ("visual.proj", "visual.ln_post.bias"):
        rest = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ValueError, match=r"visual.proj|post_layernorm\.bias"):
            clip_weights.from_open_clip(rest, 16, 16)
    with pytest.raises(ValueError, match="adapter"):
        clip_weights.from_open_clip(state | {"adapter.weight": torch.ones(1)}, 16, 16)
    with pytest.raises(ValueError, match=r"expected \['layers\.0\.bias'"):
        clip_weights.aesthetic_head({"0.weight": torch.ones(1)})
