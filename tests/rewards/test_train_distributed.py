"""A reward model trained by two processes, under DDP and DeepSpeed ZeRO-3, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from annotate.settings import configs_folder, parse_config
from rewards.config import RewardTrainConfig
from rewards.folder import CHECKPOINTS, METRICS_FILE, WEIGHTS_FILE
from rewards.train import train_reward

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def settings(random_base, snapshot_folder):
    """Qwen2.5-VL by LoRA; every set has as many picks as another, and each rank one set a step."""
    return {
        "snapshot": str(snapshot_folder),
        "base": str(random_base),
        "encoder": {"type": "qwen_vl", "max_prompt_tokens": 16, "lora": {"rank": 4}},
        "head": {"width": 16, "num_members": 1, "dropout": 0.0},
        "train_share": 0.5,
        "annotator_weights": "reliability",
        "batch_size": 2,
        "epochs": 2,
    }


def launch(launcher: str, config: dict, path: Path) -> subprocess.CompletedProcess[str]:
    path.write_text(yaml.safe_dump(config))
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", configs_folder() / f"accelerate/{launcher}_cpu.yaml"),
        *("--main_process_port", "0", "-m", "align.cli", "reward", "train", path),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, cwd=ROOT
    )


def history(folder: Path, name: str) -> list[float]:
    rows = map(json.loads, (folder / METRICS_FILE).read_text().splitlines())
    return [row[name] for row in rows if name in row]


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone")
    return train_reward(parse_config(RewardTrainConfig, settings | {"output_dir": str(output)}))


@pytest.mark.parametrize("launcher", ["ddp", "zero3"])
def test_two_processes_follow_one(launcher, settings, alone, tmp_path):
    output = tmp_path / "launched"
    config = settings | {"output_dir": str(output)}
    done = launch(launcher, config, tmp_path / "launched.yaml")
    assert done.returncode == 0, done.stderr[-4000:]
    shards = list((output / CHECKPOINTS).glob("checkpoint-*/global_step*/zero_pp_rank_1_*"))
    assert bool(shards) == (launcher == "zero3")
    for name in ("loss", "grad_norm", "eval_nll"):
        found, expected = history(output, name), history(alone.folder, name)
        assert len(expected) == settings["epochs"]
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5), name
    report = json.loads((output / "report.json").read_text())
    assert report["accuracy"] == pytest.approx(alone.report["accuracy"], abs=1e-6)
    weights, expected = (load_file(at / WEIGHTS_FILE) for at in (output, alone.folder))
    assert weights.keys() == expected.keys()
