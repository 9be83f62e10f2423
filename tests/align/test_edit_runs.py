"""Runs that learn to edit, and to draw and edit together, from files to images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_data import CAPTIONS, FirstChannel, dpo_config, grpo_config, losses, sft_config, write_data

from align.checkpoint import read_json
from align.commands.contact import send_sheets
from align.config import (
    EvalConfig,
    GenerateConfig,
    JsonlPairsConfig,
    SFTDataConfig,
    SnapshotPairsConfig,
)
from align.data.picks import read_lists, read_pairs, read_thumbs
from align.data.rows import Request, iterate_requests, read_captioned_images
from align.engine import Engine
from align.generate import generate
from align.offline import train_dpo, train_sft
from align.online import train_grpo
from align.scoreboard import evaluate_models
from annotate.exports import export_jsonl
from annotate.imports import import_folder
from annotate.records import Candidate, Outcome, Prompt
from annotate.settings import parse_config
from annotate.snapshot import cut_snapshot
from annotate.store import Answer, PreferenceStore
from rewards.base import RewardItem, Score, ScorerSpec
from rewards.scorers.build import BUILDERS

AREA = 1024
INSTRUCTIONS = ("make the circle blue", "remove the square", "move the circle to the left")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two tasks: drawing, and editing pictures of 32 x 32 pixels."""
    folder = write_data(tmp_path_factory.mktemp("data") / "data")
    rng = np.random.default_rng(1)
    for i in range(6):
        pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"source-{i}.png")
    for name in ("sft", "pairs", "lists"):
        path = folder / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        edits = [
            {**row, "prompt": INSTRUCTIONS[i % 3], "source_image": f"source-{i}.png"}
            for i, row in enumerate(rows[6:])
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:6], *edits]))
    prompts = [
        {"id": f"p{i}", "text": text, **({"source_image": f"source-{i}.png"} if i % 2 else {})}
        for i, text in enumerate((CAPTIONS[0], INSTRUCTIONS[0], CAPTIONS[1], INSTRUCTIONS[0]))
    ]
    lines = [json.dumps(prompt) + "\n" for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(lines))
    return folder


def sft(data: Path, model: Path, output: Path, /, **changes: Any):
    settings = {
        "data": {"path": data / "sft.jsonl", "source_area": AREA, "caption_dropout": 0.3},
        "validation": {"every": 3, "draws": 2, "fraction": 0.2},
        "max_steps": 6,
        "save_every": 3,
    }
    return sft_config(data, model, output, **settings | changes)


def dpo(data: Path, model: Path, output: Path, /, **changes: Any):
    settings = {
        "data": {"type": "jsonl", "path": data / "pairs.jsonl", "source_area": AREA},
        "validation": {"every": 3, "draws": 2, "fraction": 0.2},
        "max_steps": 6,
        "save_every": 3,
    }
    return dpo_config(data, model, output, **settings | changes)


def grpo(data: Path, model: Path, output: Path, /, **changes: Any):
    rollout = {"height": 32, "width": 32, "num_steps": 3, "window": 1, "source_area": AREA}
    settings = {
        "prompts": data / "prompts.jsonl",
        "rollout": rollout | {"guidance_scale": 2.0},
        "max_steps": 4,
        "save_every": 2,
    }
    return grpo_config(data, model, output, **settings | changes)


CASES = {
    "sft": (sft, train_sft),
    "dpo": (dpo, train_dpo),
    "grpo": (grpo, lambda config: train_grpo(config, FirstChannel())),
}


class _Killed(Exception):
    pass


@pytest.mark.parametrize("name", CASES)
def test_tasks_take_turns_and_a_killed_run_resumes_exactly(
    data, edit_folder, tmp_path, monkeypatch, name
):
    make, train = CASES[name]
    tasks: list[int] = []
    step_of = Engine.train_step

    def watched(self, step, batches, loss):
        batches = list(batches)
        (count,) = {len(batch.cond.sources) for batch in batches}
        tasks.append(count)
        return step_of(self, step, batches, loss)

    def killed(self, step, batches, loss):
        if step == make(data, edit_folder, tmp_path).max_steps:
            raise _Killed
        return step_of(self, step, batches, loss)

    monkeypatch.setattr(Engine, "train_step", watched)
    train(make(data, edit_folder, tmp_path / "whole"))
    assert set(tasks) == {0, 1}
    monkeypatch.setattr(Engine, "train_step", killed)
    with pytest.raises(_Killed):
        train(make(data, edit_folder, tmp_path / "killed"))
    monkeypatch.setattr(Engine, "train_step", step_of)
    train(make(data, edit_folder, tmp_path / "killed"))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    preflight = read_json(tmp_path / "whole" / "run.json")["preflight"]
    assert preflight["batch_difference"] < 1e-4


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_mixed_batch_whole_and_one_by_one_give_the_same_losses(data, edit_folder, tmp_path, name):
    make, train = CASES[name]
    changes = {"save_every": 0, "max_steps": 4, "optimizer": {"lr": 1e-4}}
    whole = train(make(data, edit_folder, tmp_path / "whole", **changes))
    single = train(make(data, edit_folder, tmp_path / "single", micro_batch_size=1, **changes))
    rows, others = losses(whole.folder), losses(single.folder)
    for step in range(1, 5):
        assert others[step]["loss"] == pytest.approx(rows[step]["loss"], rel=1e-4), step


def test_a_run_draws_samples_of_edits_and_refuses_a_mixture(data, edit_folder, tmp_path):
    lines = (data / "prompts.jsonl").read_text().splitlines()
    (data / "edits.jsonl").write_text("\n".join(lines[1::2]))
    size = {"height": 32, "width": 32, "num_steps": 2, "source_area": AREA, "every": 2}
    changes = {"max_steps": 2, "save_every": 0, "validation": {"every": 0}}
    samples = size | {"prompts": data / "edits.jsonl"}
    result = train_sft(sft(data, edit_folder, tmp_path / "run", samples=samples, **changes))
    with PreferenceStore.open(tmp_path / "studio", pseudonym_key="a" * 32) as store:
        imported = import_folder(store, result.folder / "samples/step-00000002")
    assert (imported.prompts, imported.candidates) == (2, 2)
    samples = size | {"prompts": data / "prompts.jsonl"}
    with pytest.raises(ValueError, match="mixes prompts with and without source images"):
        train_sft(sft(data, edit_folder, tmp_path / "mixed", samples=samples, **changes))


class Kept:
    """Scores how near an image comes to the source that it edits, and keeps its items."""

    spec = ScorerSpec("kept", "1", (), frozenset({"image"}))

    def __init__(self) -> None:
        self.items: list[RewardItem] = []

    def score(self, items: list[RewardItem]) -> list[Score]:
        self.items += items
        # Read once for a group, not once for an image.
        pictures = {id(item.source_images[0]) for item in items}
        assert len(pictures) == len({item.group_id for item in items})
        return [Score(self.nearness(item)) for item in items]

    def nearness(self, item: RewardItem) -> float:
        (source,) = item.source_images
        image = np.asarray(item.image.convert("RGB").resize(source.size), dtype=float)
        return -float(abs(image - np.asarray(source)).mean())

    def check(self, data: Path, names: set[str]) -> None:
        """Each item has the picture of its own prompt, at its own size."""
        assert {item.group_id.rpartition("/")[2] for item in self.items} == names
        for item in self.items:
            with Image.open(data / f"source-{item.group_id[-1]}.png") as picture:
                (source,) = item.source_images
                assert (source.size, source.tobytes()) == ((40, 40), picture.tobytes())


def test_scorers_of_a_run_and_of_models_side_by_side_see_the_source_of_each_prompt(
    data, edit_folder, tmp_path, monkeypatch
):
    lines = (data / "prompts.jsonl").read_text().splitlines()
    (data / "edits.jsonl").write_text("\n".join(lines[1::2]))
    gold, reward, judge = Kept(), Kept(), Kept()
    monkeypatch.setitem(BUILDERS, "text_rendering", lambda config: gold)
    shown = {"prompts": data / "edits.jsonl", "height": 32, "width": 32, "num_steps": 2}
    samples = {"every": 2, "source_area": AREA, "gold": {"type": "text_rendering"}}
    changes = {"prompts": data / "edits.jsonl", "max_steps": 1, "save_every": 0}
    changes |= {"contact_sheet_every": 1}
    run = grpo(data, edit_folder, tmp_path / "run", samples=shown | samples, **changes)
    result = train_grpo(run, reward)
    assert len(reward.items) == 2 * run.group_size
    row = losses(result.folder)[1]
    assert row["reward"] == pytest.approx(np.mean([reward.nearness(i) for i in reward.items]))
    with PreferenceStore.open(tmp_path / "studio", pseudonym_key="a" * 32) as store:
        (sheet,) = send_sheets(store, result.folder, annotators=1)
    assert sheet.tasks == 2
    models = [{"name": "base", "model": str(edit_folder)}]
    settings = {"output_dir": tmp_path / "eval", "models": models, "candidates": 2} | shown
    settings |= {"source_area": AREA, "scorers": [{"type": "text_rendering"}], "progress": False}
    config = parse_config(EvalConfig, settings).model_copy(update={"scorers": ()})
    evaluate_models(config, [judge])
    for scorer in (gold, reward, judge):
        scorer.check(data, {"p1", "p3"})


@pytest.mark.parametrize("algorithm", ["nft", "online_dpo"])
def test_other_online_objectives_learn_from_edits(data, edit_folder, tmp_path, algorithm):
    config = grpo(
        data,
        edit_folder,
        tmp_path / "run",
        objective={"algorithm": algorithm, "beta": 0.01},
        rollout={"height": 32, "width": 32, "num_steps": 2, "source_area": AREA},
        max_steps=2,
    )
    assert train_grpo(config, FirstChannel()).steps == 2


def test_a_trained_model_edits_by_words_and_picture(data, edit_folder, tmp_path):
    result = train_sft(sft(data, edit_folder, tmp_path / "run", max_steps=2, save_every=0))
    index = json.loads((result.export / "model_index.json").read_text())
    assert index["_class_name"] == "QwenImageEditPipeline"
    drawn = {}
    for name, batch in (("together", 8), ("alone", 1)):
        folder = tmp_path / name
        generate(draw_config(data, result.export, folder, batch_size=batch))
        lines = (folder / "candidates.jsonl").read_text().splitlines()
        drawn[name] = [Candidate.model_validate_json(line) for line in lines]
        assert [c.prompt_id for c in drawn[name]] == ["p0", "p1", "p2", "p3"]
    pictures = [
        [np.asarray(Image.open(tmp_path / name / "images" / f"{c.image_sha256}.png")).astype(int)
         for c in candidates]
        for name, candidates in drawn.items()
    ]  # fmt: skip
    for together, alone in zip(*pictures, strict=True):
        assert abs(together - alone).max() <= 1
    with PreferenceStore.open(tmp_path / "studio", pseudonym_key="a" * 32) as store:
        assert import_folder(store, tmp_path / "alone").candidates == 4


def draw_config(data: Path, model: Path, output: Path, /, **changes: Any) -> GenerateConfig:
    settings = {
        "model": str(model),
        "prompts": data / "prompts.jsonl",
        "output_dir": output,
        "candidates": 1,
        "height": 32,
        "width": 32,
        "source_area": AREA,
        "num_steps": 2,
        "guidance_scale": 3.0,
    }
    return parse_config(GenerateConfig, settings | changes)


def test_a_source_image_changes_what_is_drawn_from_the_same_noise(data, edit_folder, tmp_path):
    drawn, prompts = [], data / "one.jsonl"
    for number in (1, 3):
        row = {"id": "same", "text": INSTRUCTIONS[0], "source_image": f"source-{number}.png"}
        prompts.write_text(json.dumps(row))
        output = tmp_path / str(number)
        config = draw_config(data, edit_folder, output, prompts=prompts)
        generate(config)
        (line,) = (output / "candidates.jsonl").read_text().splitlines()
        drawn.append(Candidate.model_validate_json(line).image_sha256)
    assert drawn[0] != drawn[1]
    with pytest.raises(ValueError, match="of another source image"):
        generate(config.model_copy(update={"output_dir": tmp_path / "1"}))


def test_a_base_that_only_draws_refuses_source_images(data, untrained_folder, tmp_path):
    choices = r"takes none; pipelines that take them: QwenImageEditPipeline"
    for make, train in CASES.values():
        with pytest.raises(ValueError, match=rf"source-\d\.png, but .*{choices}"):
            train(make(data, untrained_folder, tmp_path / train.__name__))
    with pytest.raises(ValueError, match=rf"make the circle blue.*{choices}"):
        generate(draw_config(data, untrained_folder, tmp_path / "drawn"))


def test_references_follow_the_source_and_one_image_is_all_that_the_first_edit_model_takes(
    data, edit_folder, tmp_path
):
    row = {"prompt": "as the others", "image": "images/0.png", "source_image": "source-0.png"}
    row["reference_images"] = ["source-1.png", "source-2.png"]
    path = data / "references.jsonl"
    path.write_text(json.dumps(row))
    settings = {"path": path, "min_score": None}
    (sample,) = read_captioned_images(SFTDataConfig.model_validate(settings), 0.0).train
    assert [source.path.name for source in sample.sources] == [f"source-{i}.png" for i in range(3)]
    config = sft(data, edit_folder, tmp_path / "run", data=settings, validation={"every": 0})
    refused = r"'as the others' comes with .*source-2\.png, but .*got 3 source images.*at most 1"
    with pytest.raises(ValueError, match=refused):
        train_sft(config)


def test_a_source_image_that_is_missing_or_no_png_is_named(data, tmp_path):
    path = tmp_path / "prompts.jsonl"
    for name, message in (("none.png", "there is no image at"), ("a.jpg", "no PNG file")):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
        path.write_text(json.dumps({"id": "a", "text": "x", "source_image": name}))
        with pytest.raises((FileNotFoundError, ValueError), match=f"prompt 'a'.*{message}"):
            list(iterate_requests(path))
    row = {"prompt": "x", "image": str(data / "images/0.png"), "source_image": "none.png"}
    (tmp_path / "sft.jsonl").write_text(json.dumps(row))
    config = sft(data, tmp_path, tmp_path / "run", data={"path": tmp_path / "sft.jsonl"})
    with pytest.raises(ValueError, match="has no image with a score"):
        train_sft(config)


def test_picks_on_edits_keep_their_source_from_store_to_batch(data, tmp_path):
    pngs = [(data / f"images/{i}.png").read_bytes() for i in range(4)]
    digests = [hashlib.sha256(png).hexdigest() for png in pngs]
    prompt = Prompt(id="edit", text=INSTRUCTIONS[0], source_image=digests[0])
    candidates = [
        Candidate(id=f"c{i}", prompt_id="edit", image_sha256=digests[i], width=32, height=32)
        for i in range(1, 4)
    ]
    with PreferenceStore.open(tmp_path / "studio", pseudonym_key="a" * 32) as store:
        images = dict(zip(digests, pngs, strict=True))
        store.add_prompts([prompt], images)
        store.add_candidates(candidates, images)
        user = store.add_user("ada", "a long password")
        (task,) = store.add_tasks({"edit": [c.id for c in candidates]})
        answer = Answer(task_id=task.id, outcome=Outcome.PICKED, win_id="c1", lose_id="c3")
        store.add_answers(user.id, [answer])
        snapshot = cut_snapshot(store, tmp_path / "cut")
    config = SnapshotPairsConfig(path=tmp_path / "cut")
    for read in (read_pairs, read_lists, read_thumbs):
        for sample in read(config, 0.0).train:
            (source,) = sample.sources
            assert source.path.read_bytes() == pngs[0]
            assert sample.request == Request(INSTRUCTIONS[0], (source,))
    ((_, request),) = iterate_requests(tmp_path / "cut")
    assert request.identity == (INSTRUCTIONS[0], digests[0])
    export_jsonl(snapshot, snapshot.pairs(), tmp_path / "pairs.jsonl")
    exported = JsonlPairsConfig(path=tmp_path / "pairs.jsonl")
    (pair,) = read_pairs(exported, 0.0).train
    assert pair.request.identity == request.identity
