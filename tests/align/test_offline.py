"""SFT and Diffusion-DPO, from files to what stock diffusers loads."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from run_data import CAPTIONS, dpo_config, losses, sft_config, write_data
from safetensors.torch import load_file

import align.offline
from align.checkpoint import read_json
from align.offline import train_dpo, train_sft
from align.preflight import PreflightError
from annotate.records import Candidate, Outcome, Prompt
from annotate.settings import load_config
from annotate.snapshot import cut_snapshot
from annotate.store import Answer, PreferenceStore


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "data")


def draw(pipeline: DiffusionPipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    return torch.from_numpy(
        pipeline(  # pyright: ignore[reportCallIssue]
            "a red circle",
            num_inference_steps=2,
            height=32,
            width=32,
            true_cfg_scale=1.0,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images
    )


def test_sft_learns_and_its_run_folder_tells_everything(data, untrained_folder, tmp_path):
    config = sft_config(
        data,
        untrained_folder,
        tmp_path / "run",
        max_steps=30,
        save_every=0,
        trackers=["tensorboard"],
    )
    result = train_sft(config)
    rows = losses(result.folder)
    assert rows[30]["validation/loss"] < 0.95 * rows[0]["validation/loss"]
    assert result.steps == 30
    assert result.metrics["step"] == 30
    assert load_config(type(config), result.folder / "config.yaml") == config
    info = read_json(result.folder / "run.json")
    assert info["status"] == "finished"
    assert (info["seed"], info["processes"]) == (0, 1)
    packages = (result.folder / "packages.txt").read_text().splitlines()
    assert f"torch=={torch.__version__}" in packages
    assert info["data"]["train"] == 8
    assert len(info["base"]["sha256"]) == 64
    assert info["code"]["version"]
    assert list((result.folder / "trackers").glob("events.*"))
    trained = draw(DiffusionPipeline.from_pretrained(result.export))
    base = draw(DiffusionPipeline.from_pretrained(untrained_folder))
    assert trained.shape == base.shape
    assert not torch.equal(trained, base)


def test_sft_stops_when_the_held_out_loss_stops_falling(data, untrained_folder, tmp_path):
    config = sft_config(
        data,
        untrained_folder,
        tmp_path / "run",
        optimizer={"lr": 1e-12},
        ema=None,
        max_steps=20,
        validation={"every": 2, "fraction": 0.2, "patience": 2, "min_delta": 0.01},
    )
    assert train_sft(config).steps == 4


def test_buckets_train_images_of_several_shapes(data, untrained_folder, tmp_path):
    """Eight times one as one times eight, and every shape is drawn from its own noise levels."""
    rows = [json.loads(line) for line in (data / "sft.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        with Image.open(data / row["image"]) as image:
            wide = image.resize((64, 32) if i % 2 else (33, 31))
        row["image"] = f"{i}.png"
        wide.save(tmp_path / row["image"])
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = []
    for name, micro in (("whole", None), ("single", 1)):
        config = sft_config(
            data,
            untrained_folder,
            tmp_path / name,
            data={"path": tmp_path / "sft.jsonl", "buckets": [[32, 32], [32, 64], [64, 32]]},
            max_steps=4,
            save_every=0,
            micro_batch_size=micro,
            validation={"every": 4, "draws": 1, "fraction": 0.3},
        )
        train_sft(config)
        found.append(losses(tmp_path / name))
    for step, row in found[0].items():
        for key in row:
            assert found[1][step][key] == pytest.approx(row[key], rel=1e-4), (step, key)


def test_nothing_held_out_is_said(data, untrained_folder, tmp_path):
    config = sft_config(data, untrained_folder, tmp_path / "run", validation={"fraction": 0.0})
    with pytest.raises(ValueError, match=r"sft\.jsonl has no held-out prompts"):
        train_sft(config)
    config = sft_config(
        data, untrained_folder, tmp_path / "run", data={"path": data / "sft.jsonl", "min_score": 6}
    )
    with pytest.raises(ValueError, match=r"sft\.jsonl has no image with a score of at least 6"):
        train_sft(config)


def test_a_missing_model_is_named(data, tmp_path):
    with pytest.raises(FileNotFoundError, match="no diffusers pipeline at"):
        train_sft(sft_config(data, tmp_path / "nowhere", tmp_path / "run"))


def test_a_stored_reference_begins_at_a_margin_of_exactly_0(
    data, untrained_folder, tmp_path, monkeypatch
):
    """Filled with the shapes of training, one pair at a time. Other errors are refused."""
    shared = {"lora": {"rank": 4}, "micro_batch_size": 1, "max_steps": 1, "save_every": 0}
    shared["objective"] = {"beta": 2000}
    config = dpo_config(data, untrained_folder, tmp_path / "run", **shared)
    train_dpo(config)
    assert losses(config.output_dir)[1]["rewards/margins"] == 0
    preflight = read_json(config.output_dir / "run.json")["preflight"]
    assert preflight["reward_max"] == 0
    names = {"accumulated", "batch_difference", "reward_max", "weights_move_output"}
    assert preflight.keys() == names
    stored = align.offline.reference_errors
    monkeypatch.setattr(align.offline, "reference_errors", lambda *args: 1.01 * stored(*args))
    with pytest.raises(PreflightError, match="are those of another model"):
        train_dpo(dpo_config(data, untrained_folder, tmp_path / "other", **shared))


def test_dpo_with_a_lora_prefers_the_chosen_and_exports_what_diffusers_loads(
    data, untrained_folder, tmp_path
):
    config = dpo_config(
        data,
        untrained_folder,
        tmp_path / "run",
        lora={"rank": 4},
        optimizer={"lr": 3e-3},
        max_steps=20,
        save_every=0,
        validation={"every": 10, "draws": 2, "fraction": 0.2},
    )
    result = train_dpo(config)
    rows = losses(result.folder)
    assert rows[1]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert sum(rows[step]["rewards/accuracies"] for step in range(16, 21)) / 5 > 0.9
    assert rows[20]["rewards/margins"] > 0.1
    assert "validation/rewards/accuracies" in rows[20]
    pipeline = DiffusionPipeline.from_pretrained(untrained_folder)
    base = draw(pipeline)
    pipeline.load_lora_weights(result.export)
    assert not torch.equal(draw(pipeline), base)


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_cached_reference_errors_are_those_of_a_live_reference(
    data, untrained_folder, tmp_path, lora
):
    """The first step is in the reference itself; the second sees how far the policy has gone."""
    margins = []
    for mode in ("cached", "live"):
        config = dpo_config(
            data,
            untrained_folder,
            tmp_path / mode,
            reference={"mode": mode, "draws": 1},
            lora=lora,
            optimizer={"lr": 1e-3},
            max_steps=2,
            save_every=0,
        )
        train_dpo(config)
        rows = losses(tmp_path / mode)
        assert rows[1]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert rows[1]["rewards/margins"] == pytest.approx(0, abs=1e-4)
        margins.append(rows[2]["rewards/margins"])
    assert all(abs(margin) > 1e-3 for margin in margins)
    stored = load_file(tmp_path / "cached" / "reference_errors_train.safetensors")["errors"]
    assert stored.shape == (12, 1, 2)


def test_dpo_from_a_snapshot_is_dpo_from_its_pairs(data, untrained_folder, tmp_path):
    snapshot = tmp_path / "snapshot"
    pairs = write_snapshot(data, snapshot)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    common = {"max_steps": 2, "save_every": 0, "batch_size": 2}
    shot = dpo_config(
        data,
        untrained_folder,
        tmp_path / "a",
        data={"type": "snapshot", "path": snapshot},
        **common,
    )
    result = train_dpo(shot)
    info = read_json(result.folder / "run.json")
    assert len(info["data"]["snapshot_digest"]) == 64
    assert (info["data"]["train"], info["data"]["validation"]) == (2, 0)
    plain = dpo_config(
        data,
        untrained_folder,
        tmp_path / "b",
        data={"type": "jsonl", "path": tmp_path / "pairs.jsonl"},
        **common,
    )
    train_dpo(plain)
    assert read_json(tmp_path / "b" / "run.json")["data"]["train"] == 2


def test_an_empty_snapshot_is_refused(data, untrained_folder, tmp_path):
    write_snapshot(data, tmp_path / "snapshot")
    config = dpo_config(
        data,
        untrained_folder,
        tmp_path / "run",
        data={"type": "snapshot", "path": tmp_path / "snapshot", "splits": ["test"]},
    )
    with pytest.raises(ValueError, match=r"snapshot .* has no win-and-lose pick .* splits test"):
        train_dpo(config)
    assert not (tmp_path / "run").exists()


def write_snapshot(data: Path, folder: Path) -> list[dict[str, str]]:
    """Three prompts of three candidates, two with a pick; returns the pairs that they imply."""
    prompts = [Prompt(id=f"p{i}", text=CAPTIONS[i]) for i in range(3)]
    files = {f"p{i}-{k}": data / f"images/{3 * i + k}.png" for i in range(3) for k in range(3)}
    contents = {name: path.read_bytes() for name, path in files.items()}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    candidates = [
        Candidate(id=n, prompt_id=n[:2], image_sha256=digests[n], width=32, height=32)
        for n in files
    ]
    with PreferenceStore.open(folder.with_name("studio"), pseudonym_key="a" * 32) as store:
        store.add_prompts(prompts)
        store.add_candidates(candidates, {digests[n]: contents[n] for n in files})
        user = store.add_user("ada", "a long password")
        shown = {f"p{i}": [n for n in files if n[1] == str(i)] for i in range(3)}
        tasks = {task.prompt_id: task.id for task in store.add_tasks(shown)}
        answers = [
            Answer(task_id=tasks["p0"], outcome=Outcome.PICKED, win_id="p0-2", lose_id="p0-0"),
            Answer(task_id=tasks["p1"], outcome=Outcome.PICKED, win_id="p1-0", lose_id="p1-1"),
            Answer(task_id=tasks["p2"], outcome=Outcome.ALL_BAD),
        ]
        store.add_answers(user.id, answers)
        cut_snapshot(store, folder)
    return [
        {"prompt": CAPTIONS[0], "chosen": str(files["p0-2"]), "rejected": str(files["p0-0"])},
        {"prompt": CAPTIONS[1], "chosen": str(files["p1-0"]), "rejected": str(files["p1-1"])},
    ]
