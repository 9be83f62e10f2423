"""What is written is whole or not there, whatever happens while it is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_data import losses, sft_config, write_data

from align.checkpoint import CheckpointFolder, atomic_file, atomic_folder, atomic_write, read_json
from align.metrics import read_metrics
from align.offline import train_sft

DISK_FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from run_data import sft_config
from align.offline import train_sft
data, model, out = map(Path, sys.argv[1:])
config = sft_config(data, model, out, max_steps=6, save_every=2)
import align.trainer
save = align.trainer.Trainer._save
def limited(self, *state):
    if state[0] == 4:
        # No file may grow beyond a megabyte: what a full disk does to a checkpoint.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    save(self, *state)
align.trainer.Trainer._save = limited
try:
    train_sft(config)
except OSError as error:
    print(error)
"""


def test_a_folder_replaces_the_old_one_only_when_it_is_whole(tmp_path):
    target = tmp_path / "final"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")

    def interrupted():
        with atomic_folder(target) as folder:
            (folder / "a").write_text("2")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        interrupted()
    assert (target / "a").read_text() == "1"
    with atomic_folder(target) as folder:
        (folder / "b").write_text("3")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path):
    path = tmp_path / "run.json"
    atomic_write(path, "{}")
    with (
        pytest.raises(OSError, match=r"cannot write .*run\.json: No space left"),
        atomic_file(path),
    ):
        raise OSError(28, os.strerror(28))
    assert read_json(path) == {}
    path.write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_json(path)


def test_only_whole_checkpoints_count_and_the_newest_stay(tmp_path):
    checkpoints = CheckpointFolder(tmp_path, keep=2)
    for step in (5, 10, 15):
        checkpoints.path(step).mkdir()
    (tmp_path / ".writing-step-00000020").mkdir()
    assert checkpoints.steps() == [5, 10, 15]
    checkpoints.prune()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
    assert checkpoints.latest() == (15, tmp_path / "step-00000015")


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]
    for damaged in (b'{"step"\n{"step": 2}\n', b"\x00\xff\n{}\n"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: not JSON"):
            read_metrics(path)


def test_a_full_disk_names_the_checkpoint_and_keeps_the_last_good_one(untrained_folder, tmp_path):
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    script = DISK_FULL.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", script, data, untrained_folder, out], capture_output=True, text=True
    )
    assert done.stdout.strip().startswith(f"cannot write {out}/checkpoints/step-00000004: "), (
        done.stdout + done.stderr[-2000:]
    )
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000002"]
    train_sft(sft_config(data, untrained_folder, out, max_steps=6, save_every=2))
    assert sorted(losses(out)) == [0, 1, 2, 3, 4, 5, 6]


def test_an_unusable_output_folder_is_named(untrained_folder, tmp_path):
    data = write_data(tmp_path / "data")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=f"output_dir {blocked} is a file"):
        train_sft(sft_config(data, untrained_folder, blocked))
    with pytest.raises(OSError, match=f"cannot write {blocked}/run: Not a directory"):
        train_sft(sft_config(data, untrained_folder, blocked / "run"))
