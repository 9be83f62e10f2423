"""The soak: its runs are ones that the trainers take, and growth is told from noise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from align.data.rows import iterate_prompts, read_captioned_images
from annotate.settings import parse_config
from benchmarks.soak import KINDS, Growth, _held, process_ids, settings, write_data


@pytest.mark.parametrize("kind", KINDS)
def test_each_run_is_one_that_its_trainer_takes(kind, tmp_path):
    config = parse_config(KINDS[kind], settings(kind, tmp_path, tmp_path / "run", 60))
    assert config.max_steps == 60
    assert config.save_every == 3


def test_the_data_are_read(tmp_path):
    write_data(tmp_path)
    assert len(list(iterate_prompts(tmp_path / "prompts.txt"))) == 8
    config = parse_config(KINDS["sft"], settings("sft", tmp_path, tmp_path / "run", 60))
    assert len(read_captioned_images(config.data, 0.0).train) == 8


@pytest.mark.parametrize(
    ("rss", "files", "fault"),
    [
        ((500.0, 520.0), (10.0, 10.5), None),
        ((500.0, 400.0), (10.0, 3.0), None),
        ((500.0, 530.0), (10.0, 10.0), "resident memory rose from 500 to 530 MiB"),
        ((500.0, 500.0), (10.0, 14.0), "open files rose from 10.0 to 14.0"),
    ],
)
def test_what_grows_is_a_fault(rss, files, fault):
    assert Growth(rss, files, (1.0, 1.0)).fault == fault


def test_a_process_is_watched_by_its_number(tmp_path):
    (tmp_path / "run.pid-0").write_text(str(os.getpid()))
    (tmp_path / "run.pid-1").write_text("")  # just being written
    assert process_ids(tmp_path / "run") == [os.getpid()]
    found = _held(os.getpid())
    assert found is not None
    assert found[0] > 1
    assert found[1] >= 3
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert _held(gone.pid) is None
