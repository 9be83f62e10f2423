"""One of two processes is killed; the launch ends, and the next one goes on from the checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from killed_launch import SETTINGS
from run_data import losses, sft_config, write_data

from align.checkpoint import read_json
from align.offline import train_sft
from annotate.settings import configs_folder

ROOT = Path(__file__).parents[2]


def launch(data: Path, model: Path, out: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", configs_folder() / "accelerate/ddp_cpu.yaml"),
        *("--main_process_port", "0"),
        *(Path(__file__).with_name("killed_launch.py"), data, model, out, kill_at),
    ]
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, cwd=ROOT
    )


def test_a_launch_that_lost_a_process_is_taken_up_again(untrained_folder, tmp_path):
    data = write_data(tmp_path / "data")
    lost = launch(data, untrained_folder, tmp_path / "run", kill_at=5)
    assert lost.returncode != 0
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").glob("step-*")) == [
        "step-00000002",
        "step-00000004",
    ]
    assert not (tmp_path / "run/final").exists()
    again = launch(data, untrained_folder, tmp_path / "run", kill_at=0)
    assert again.returncode == 0, again.stderr[-3000:]
    assert read_json(tmp_path / "run/run.json")["attempts"] == 2
    train_sft(sft_config(data, untrained_folder, tmp_path / "alone", **SETTINGS))
    alone, found = losses(tmp_path / "alone"), losses(tmp_path / "run")
    assert found.keys() == alone.keys() == set(range(1, 7))
    for step, row in alone.items():
        assert found[step]["loss"] == pytest.approx(row["loss"], rel=1e-5), step
