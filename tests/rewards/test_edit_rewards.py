"""Reward models and scorers of edits: what is right depends on the picture that was to be kept."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from align.config import GRPOConfig
from align.online import train_grpo
from annotate.records import Candidate, Outcome, Prompt, Split, load_snapshot
from annotate.settings import parse_config
from annotate.snapshot import cut_snapshot
from annotate.store import Answer, PreferenceStore
from rewards.against_people import audit_scorer, measure_scorer
from rewards.base import RewardItem, Score, ScorerSpec
from rewards.config import DiffusionEncoderConfig, RewardTrainConfig
from rewards.evaluate import audit_model, evaluate_model
from rewards.models.diffusion import DiffusionEncoder
from rewards.scorers import load_scorer
from rewards.scorers.build import snapshot_items
from rewards.train import train_reward

LEVELS = {"dark": 60, "bright": 200}
AREA = 32 * 32


def png(rng, level):
    pixels = np.clip(rng.normal(level, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def snapshot_of_edits(tmp_path_factory):
    """One instruction, the same two candidates everywhere: the better is as light as the source."""
    folder, rng = tmp_path_factory.mktemp("edits"), np.random.default_rng(0)
    files = {name: png(rng, level) for name, level in LEVELS.items()}
    prompts, candidates, best = [], [], {}
    splits = [Split.TRAIN] * 32 + [Split.VALIDATION] * 6 + [Split.TEST] * 10
    for index in range(len(splits)):
        name = f"p{index:02d}"
        best[name] = "dark" if index % 2 else "bright"
        files[name] = png(rng, LEVELS[best[name]])
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, split in zip(best, splits, strict=True):
        prompts.append(Prompt(id=name, text="make it", split=split, source_image=digests[name]))
        candidates += [
            Candidate(id=f"{name}-{level}", prompt_id=name, image_sha256=digests[level],
                      width=32, height=32)
            for level in LEVELS
        ]  # fmt: skip
    with PreferenceStore.open(folder / "studio", pseudonym_key="a" * 32) as store:
        images = {digests[name]: data for name, data in files.items()}
        store.add_prompts(prompts, images)
        store.add_candidates(candidates, images)
        tasks = store.add_tasks({name: [f"{name}-{level}" for level in LEVELS] for name in best})
        user = store.add_user("ada", "correct horse battery")
        answers = []
        for task in tasks:
            win = f"{task.prompt_id}-{best[task.prompt_id]}"
            (lose,) = set(task.candidate_ids) - {win}
            answers.append(
                Answer(task_id=task.id, outcome=Outcome.PICKED, win_id=win, lose_id=lose)
            )
        store.add_answers(user.id, answers)
        cut_snapshot(store, folder / "snapshot")
    return folder / "snapshot"


def settings(snapshot, base, output, **encoder):
    return parse_config(
        RewardTrainConfig,
        {
            "snapshot": str(snapshot),
            "base": str(base),
            "output_dir": str(output),
            "encoder": encoder,
            "head": {"width": 32, "num_members": 1, "dropout": 0.0},
            "learning_rate": 3e-3,
            "epochs": 12,
            "patience": 12,
        },
    )


DIFFUSION = {"type": "diffusion", "num_blocks": 1, "grid": 4, "source_area": AREA}
QWEN = {"type": "qwen_vl", "lora": {"rank": 4}, "learning_rate": 3e-3}


@pytest.mark.parametrize("encoder", [DIFFUSION, QWEN, QWEN | {"tune": "frozen", "grid": 2}])
def test_a_reward_model_learns_what_the_source_alone_tells_and_pays_for_it(
    snapshot_of_edits, edit_base, tmp_path, encoder
):
    folder = train_reward(settings(snapshot_of_edits, edit_base, tmp_path, **encoder)).folder
    scorer, snapshot = load_scorer(folder), load_snapshot(snapshot_of_edits)
    assert evaluate_model(folder, scorer, snapshot, Split.TEST)["accuracy"] > 0.9
    assert measure_scorer(scorer, snapshot)["accuracy"] > 0.9
    shift = audit_model(folder, scorer, snapshot, Split.TEST, 4)["mirrored"]["overall"]
    assert shift == audit_scorer(scorer, snapshot, Split.TEST, 4)["mirrored"]["overall"]
    # The same image, liked or not by what it was to keep.
    item, _, of_other, _ = snapshot_items(snapshot, 4)
    kept, lost = scorer.score([item, replace(item, source_images=of_other.source_images)])
    assert abs(kept.value - lost.value) > 1.0
    rollout = {"height": 32, "width": 32, "num_steps": 2, "window": 1, "source_area": AREA}
    grpo = {
        "model": str(edit_base),
        "prompts": snapshot_of_edits,
        "output_dir": tmp_path / "grpo",
        "reward": {"path": folder, "min_accuracy": 0.9},
        "rollout": rollout,
        "lora": {"rank": 2},
        "group_size": 2,
        "prompts_per_step": 2,
        "max_steps": 1,
        "save_every": 0,
        "trackers": [],
    }
    assert train_grpo(parse_config(GRPOConfig, grpo)).steps == 1


def test_edits_encoded_beforehand_are_known_by_what_their_pictures_show(
    snapshot_of_edits, edit_base
):
    config = DiffusionEncoderConfig(grid=4, source_area=AREA)
    items = snapshot_items(load_snapshot(snapshot_of_edits), 6)
    expected = DiffusionEncoder.open(config, str(edit_base), "cpu").encode(items)
    encoder = DiffusionEncoder.open(config, str(edit_base), "cpu")
    encoder.prepare((item.prompt, item.source_images) for item in items)
    encoder._adapter.encode_prompts = None
    copies = [
        replace(item, source_images=[of.copy() for of in item.source_images]) for item in items
    ]
    for found, known in zip(encoder.encode(copies), expected, strict=True):
        torch.testing.assert_close(found.image, known.image, rtol=1e-4, atol=1e-4)


def test_a_base_that_only_draws_refuses_edits_by_name(snapshot_of_edits, random_base, tmp_path):
    message = r"sample 'p00-bright': .*takes none; pipelines that take them.*type 'qwen_vl'"
    with pytest.raises(ValueError, match=message):
        train_reward(settings(snapshot_of_edits, random_base, tmp_path, **DIFFUSION))
    encoder = DiffusionEncoder.open(DiffusionEncoderConfig(), str(random_base), "cpu")
    with pytest.raises(ValueError, match=r"the prompt 'make it': .*takes none"):
        encoder.prepare([("make it", [Image.new("RGB", (32, 32))])])


class Nearness:
    """Prefers what is as light as the source: the truth of these edits."""

    spec = ScorerSpec("nearness", "1", (), frozenset({"image"}))

    def score(self, items: list[RewardItem]) -> list[Score]:
        return [Score(-abs(_light(i.image) - _light(i.source_images[0]))) for i in items]


def _light(image: Image.Image) -> float:
    return float(np.asarray(image).mean())


def test_any_scorer_is_measured_with_the_source_at_hand(snapshot_of_edits):
    snapshot = load_snapshot(snapshot_of_edits)
    assert measure_scorer(Nearness(), snapshot)["accuracy"] == 1.0
    items = snapshot_items(snapshot, 4)
    assert [item.group_id for item in items] == ["p00", "p00", "p01", "p01"]
    assert items[0].source_images[0] is items[1].source_images[0]
    assert items[1].source_images[0].tobytes() != items[2].source_images[0].tobytes()
