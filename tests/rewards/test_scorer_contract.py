"""What `rewards.base.Scorer` promises, held by every kind of scorer that a YAML file can name."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_clip
from chat_server import MODEL, ChatServer
from PIL import Image

from annotate.settings import parse_config
from rewards.base import RewardItem, Scorer
from rewards.config import RewardTrainConfig
from rewards.models import ENCODERS
from rewards.posters.draw import draw
from rewards.posters.spec import caption, random_spec
from rewards.scorers.build import BUILDERS, build_scorer
from rewards.scorers.config import RewardServerConfig
from rewards.service.server import RewardServer
from rewards.train import train_reward


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    folder = tiny_clip.save_clip(tmp_path_factory.mktemp("clip"))
    tiny_clip.save_open_clip(folder / "HPS_v2.1_compressed.pt")
    tiny_clip.save_aesthetic_head(folder / "head.pth")
    return folder


ENCODER_SETTINGS = {
    "diffusion": {"num_blocks": 1, "grid": 4},
    "qwen_vl": {"lora": {"rank": 2}},
    "clip": {"tune": "frozen"},
    "pixels": {"width": 8},
}


@pytest.fixture(scope="module")
def train(random_base, clip_folder, snapshot_folder, tmp_path_factory) -> Callable[[str], Path]:
    """A reward model over an encoder of a type, hardly trained."""
    bases = {"diffusion": random_base, "qwen_vl": random_base, "clip": clip_folder}

    def run(kind: str) -> Path:
        settings = {
            "snapshot": str(snapshot_folder),
            "base": str(bases[kind]) if kind in bases else None,
            "output_dir": str(tmp_path_factory.mktemp("reward")),
            "encoder": {"type": kind, **ENCODER_SETTINGS[kind]},
            "head": {"width": 32, "num_layers": 0},
            "train_share": 0.3,
            "epochs": 1,
        }
        return train_reward(parse_config(RewardTrainConfig, settings)).folder

    return cache(run)


@pytest.fixture(scope="module")
def settings(request, clip_folder) -> Callable[[str], dict[str, Any]]:
    """The settings of each kind; what it needs is made when it is asked for."""
    clip = {"path": str(clip_folder), "tokenizer": str(clip_folder)}
    heads = {"vision_head": 16, "text_head": 16}
    head = {"path": str(clip_folder), "head": str(clip_folder / "head.pth")}

    def make(case: str) -> dict[str, Any]:
        kind, _, encoder = case.partition("-")
        of_kind: dict[str, Callable[[], dict[str, Any]]] = {
            "preference": lambda: {
                "path": str(request.getfixturevalue("train")(encoder)),
                "min_accuracy": 0.0,
            },
            "text_rendering": dict,
            "pickscore": lambda: clip,
            "hpsv2": lambda: clip | heads,
            "clip_score": lambda: clip,
            "laion_aesthetic": lambda: head,
            "judge": lambda: {"url": request.getfixturevalue("chat").url, "model": MODEL},
            "remote": lambda: {"url": request.getfixturevalue("served").url},
        }
        return {"type": kind, **of_kind[kind]()}

    return make


@pytest.fixture(scope="module")
def served(settings):
    with RewardServer(lambda: [build(settings("clip_score"))]) as server:
        server.wait_until_ready()
        yield server


@pytest.fixture(scope="module")
def chat():
    with ChatServer() as server:
        yield server


def build(tree: dict[str, Any]) -> Scorer:
    return build_scorer(parse_config(RewardServerConfig, {"scorers": [tree]}).scorers[0])


CASES = sorted({*BUILDERS} - {"preference"}) + [f"preference-{kind}" for kind in ENCODERS]


@pytest.fixture(scope="module", params=CASES)
def scorer(request, settings) -> Scorer:
    return build(settings(request.param))


@pytest.fixture(scope="module")
def items() -> list[RewardItem]:
    """Two posters of one prompt, and one of a prompt that is longer than any window of CLIP."""
    rng = random.Random(3)
    found = []
    for group in range(2):
        spec = random_spec(rng)
        prompt = caption(spec, "en" if group else "zh") + " very long" * 30 * group
        for index in range(2 - group):
            image = draw(spec, 64, {"muddy": 0.8 * index}, seed=index)
            targets = {"text_targets": [spec.headline]}
            name = f"{group}-{index}"
            found.append(RewardItem(name, f"g{group}", prompt, image=image, metadata=targets))
    return found


@pytest.fixture(scope="module")
def scores(scorer, items):
    return scorer.score(items)


def same(found, expected):
    assert [s.error for s in found] == [s.error for s in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-4)
        assert dict(one.components) == pytest.approx(dict(other.components), abs=1e-4)
        assert one.truncated == other.truncated


def test_nothing_has_no_scores(scorer):
    assert scorer.score([]) == []


def test_every_item_has_its_score_and_knows_its_components(scorer, items, scores):
    assert isinstance(scorer, Scorer)
    assert scorer.spec.backbone, "what shares it could not be warned of"
    assert len(scores) == len(items)
    assert [score.error for score in scores] == [None] * len(items)
    assert all(set(score.components) <= set(scorer.spec.components) for score in scores)
    assert any(score.value is not None for score in scores)


def test_the_same_again_is_the_same_to_the_bit(scorer, items, scores):
    assert scorer.score(items) == scores


def test_order_and_batch_change_nothing(scorer, items, scores):
    same(scorer.score(items[::-1]), scores[::-1])
    same(scorer.score(items[1:2]), scores[1:2])


def test_an_item_without_an_image_is_an_error_and_its_neighbours_are_scored(scorer, items, scores):
    blind = RewardItem("blind", "g0", items[0].prompt, metadata=items[0].metadata)
    first, error, last = scorer.score([items[0], blind, items[1]])
    same([first, last], scores[:2])
    assert error.value is None
    assert "image" in str(error.error)
    assert not error.components


def test_a_damaged_image_is_an_error_and_no_number(scorer, items, tmp_path):
    path = tmp_path / "cut.png"
    items[0].image.save(path)
    path.write_bytes(path.read_bytes()[:600])
    torn = RewardItem("torn", "g0", "p", image=Image.open(path), metadata=items[0].metadata)
    (score,) = scorer.score([torn])
    assert score.value is None
    assert score.error


def test_another_of_the_same_settings_is_the_same_scorer(scorer, settings, request):
    again = build(settings(request.node.callspec.params["scorer"]))
    assert again.spec == scorer.spec


def test_a_scorer_that_reads_part_of_the_prompt_says_so(scorer, scores, request):
    cut = [score.truncated > 0 for score in scores]
    # The remote one is CLIPScore.
    reads_77_tokens = scorer.spec.name in ("pickscore", "hpsv2", "clip_score")
    of_a_window = request.node.callspec.params["scorer"] in ("preference-clip", "preference-pixels")
    assert cut[2] == (reads_77_tokens or of_a_window)
