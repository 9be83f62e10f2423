"""One process is killed; the launch ends, and the next one goes on from the checkpoint.

Two processes under DDP, and four under HSDP that two launchers start, as on two machines.
"""

from __future__ import annotations

import os
import socket
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


def launch(
    launcher: str, machines: int, data: Path, model: Path, out: Path, kill_at: int
) -> list[tuple[int, str]]:
    """The exit code and the errors of each machine's launcher."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    started = []
    for rank in range(machines):
        command = [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", configs_folder() / f"accelerate/{launcher}.yaml"),
            *("--num_machines", machines, "--machine_rank", rank),
            *("--main_process_ip", "127.0.0.1", "--main_process_port", port),
            *(Path(__file__).with_name("killed_launch.py"), data, model, out, kill_at),
        ]
        log = (out.parent / f"machine-{rank}.log").open("w")
        started.append(
            subprocess.Popen(list(map(str, command)), env=environment, stderr=log, cwd=ROOT)
        )
    try:
        codes = [process.wait(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    logs = [out.parent / f"machine-{rank}.log" for rank in range(machines)]
    return [(code, log.read_text()[-3000:]) for code, log in zip(codes, logs, strict=True)]


@pytest.mark.parametrize(
    ("launcher", "machines", "backend", "share"),
    [("ddp_cpu", 1, "replicated", 1.0), ("hsdp_cpu", 2, "hsdp-2x2", 0.5)],
)
def test_a_launch_that_lost_a_process_is_taken_up_again(
    launcher, machines, backend, share, untrained_folder, tmp_path
):
    data = write_data(tmp_path / "data")
    run = tmp_path / "run"
    lost = launch(launcher, machines, data, untrained_folder, run, kill_at=5)
    assert all(code != 0 for code, _ in lost), lost
    assert sorted(p.name for p in (run / "checkpoints").glob("step-*")) == [
        "step-00000002",
        "step-00000004",
    ], lost
    assert not (run / "final").exists()
    again = launch(launcher, machines, data, untrained_folder, run, kill_at=0)
    assert [code for code, _ in again] == [0] * machines, again
    info = read_json(run / "run.json")
    assert (info["attempts"], info["backend"]) == (2, backend)
    for rank in range(info["processes"]):
        held = read_json(tmp_path / f"held-{run.name}-{rank}.json")
        for part in ("weights", "moments"):
            assert held[part] / held["trained"] == pytest.approx(share, abs=0.1), (rank, part)
    train_sft(sft_config(data, untrained_folder, tmp_path / "alone", **SETTINGS))
    alone, found = losses(tmp_path / "alone"), losses(run)
    assert found.keys() == alone.keys() == set(range(1, 7))
    for step, row in alone.items():
        assert found[step]["loss"] == pytest.approx(row["loss"], rel=1e-5), step
