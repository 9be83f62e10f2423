"""A run killed by SIGKILL, or stopped by SIGTERM or Ctrl-C, and started again gives the very
numbers of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_data import (
    FirstChannel,
    dpo_config,
    grpo_config,
    lists_config,
    losses,
    nft_config,
    sft_config,
    write_data,
)

from align.checkpoint import read_json
from align.interrupt import listening
from align.offline import train_dpo, train_sft
from align.online import train_grpo

CASES = {
    "sft": (sft_config, train_sft),
    "sft-write": (sft_config, train_sft),
    "sft-press": (sft_config, train_sft),
    "dpo": (dpo_config, train_dpo),
    "grpo": (grpo_config, lambda config: train_grpo(config, FirstChannel())),
    "lists": (lists_config, train_dpo),
    "nft": (nft_config, lambda config: train_grpo(config, FirstChannel())),
}
ATTEMPTS = {"sft": 3, "dpo": 3, "grpo": 3}
"""Killed twice, and finished; the others once."""
STOPPED = {"nft": (6, "143"), "sft-press": (3, "130")}
"""Last step and exit code. Asked by SIGTERM in step 5, where a rollout has two steps, it stops
after 6; by Ctrl-C in step 3, after that."""


@pytest.fixture(scope="module")
def killed(untrained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data, and a folder of runs that were killed after their first checkpoint."""
    data = write_data(tmp_path_factory.mktemp("data") / "data")
    out = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("killed_run.py")
    done = subprocess.run(
        [sys.executable, script, data, untrained_folder, out],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    codes = dict(line.split() for line in done.stdout.splitlines())
    kills = {f"{name}/{n}": "-9" for name in CASES for n in range(1, ATTEMPTS.get(name, 2))}
    expected = kills | {f"{name}/1": code for name, (_, code) in STOPPED.items()}
    assert codes == expected, done.stderr[-3000:]
    return data, out


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", CASES)
def test_after_a_kill_the_losses_are_the_same_numbers(killed, untrained_folder, tmp_path, name):
    data, out = killed
    make_config, train = CASES[name]
    checkpoints = sorted(p.name for p in (out / name / "checkpoints").glob("step-*"))
    if name in STOPPED:
        assert checkpoints[-1] == f"step-{STOPPED[name][0]:08d}"
        assert read_json(out / name / "run.json")["status"] == "stopped"
    else:
        assert checkpoints == ["step-00000005"]
    assert not (out / name / "final").exists()
    train(make_config(data, untrained_folder, tmp_path / name))
    result = train(make_config(data, untrained_folder, out / name))
    resumed, whole = losses(out / name), losses(tmp_path / name)
    assert resumed == whole
    assert max(whole) == 10
    assert all("loss" in row for step, row in whole.items() if step)
    assert read_json(out / name / "run.json")["attempts"] == ATTEMPTS.get(name, 2)
    assert result.export.is_dir()
    assert not list((out / name / "checkpoints").glob(".writing*"))


def test_a_second_ctrl_c_ends_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)
    with listening() as request:
        signal.raise_signal(signal.SIGINT)
        assert (request.is_set, request.name, request.exit_code) == (True, "SIGINT", 130)
        assert "Ctrl-C again stops at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_finished_run_is_not_run_again(killed, untrained_folder, tmp_path):
    data, _ = killed
    config = sft_config(data, untrained_folder, tmp_path / "run", max_steps=2, save_every=0)
    first = train_sft(config)
    stamp = (first.export / "transformer" / "config.json").stat().st_mtime_ns
    assert train_sft(config) == first
    assert (first.export / "transformer" / "config.json").stat().st_mtime_ns == stamp


def test_another_configuration_is_refused_with_the_difference_named(killed, untrained_folder):
    data, out = killed
    with pytest.raises(ValueError, match=r"optimizer\.lr: 0\.001 there, 0\.002 asked"):
        train_sft(sft_config(data, untrained_folder, out / "sft", optimizer={"lr": 2e-3}))


def test_other_data_under_the_same_path_is_refused(killed, untrained_folder, tmp_path):
    data = write_data(tmp_path / "data")
    config = sft_config(data, untrained_folder, tmp_path / "run", max_steps=10, save_every=5)
    from align.trainer import Trainer

    class Interrupted(Exception):
        pass

    def stop(*args):
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_export", stop)
        with pytest.raises(Interrupted):
            train_sft(config)
    lines = (data / "sft.jsonl").read_text().splitlines()
    (data / "sft.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"a run on other data(.|\n)*data\.sha256: .* there"):
        train_sft(config)
