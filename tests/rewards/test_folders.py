"""A folder has one writer, and its files are as they were written or named as damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.digests import DIGESTS_FILE, damage, digest_files, write_digests
from rewards.lock import FolderInUseError, FolderLock

HOLDER = """
import os, sys, time
from pathlib import Path
from rewards.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(600)
"""
"""Holds the folder, and has a forked child that outlives it."""


def test_a_second_process_is_told_who_is_writing_and_a_kill_frees_the_folder(tmp_path):
    folder = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(FolderInUseError) as caught:
            FolderLock(folder)
        assert f"{folder} is in use by process {holder.pid} on " in str(caught.value)
        assert "name another output folder" in str(caught.value)
        holder.send_signal(signal.SIGKILL)
        assert holder.wait() == -signal.SIGKILL
        os.kill(child, 0)  # it lives on, and has let go of the lock
        FolderLock(folder).release()
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


def test_one_process_may_lock_a_folder_again_after_its_release(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(FolderInUseError, match=f"in use by process {os.getpid()} on "):
            FolderLock(tmp_path)
        # The refusal must not have touched the lock.
        with pytest.raises(FolderInUseError):
            FolderLock(tmp_path)
    first = FolderLock(tmp_path)
    first.release()
    with FolderLock(tmp_path):
        first.release()  # without effect on who holds it now
        with pytest.raises(FolderInUseError):
            FolderLock(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*/file/run: Not a directory"):
        FolderLock(tmp_path / "file" / "run")


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    (tmp_path / "part" / "state.json").write_text("{}")
    # Two processes have each taken their share.
    write_digests(tmp_path, digest_files(tmp_path, 0, 2) | digest_files(tmp_path, 1, 2))
    assert damage(tmp_path) is None
    return tmp_path


def test_each_kind_of_damage_names_the_file_and_what_is_wrong(listed):
    weights = listed / "weights.bin"
    weights.write_bytes(bytes(999))
    assert damage(listed) == f"{weights} has 999 bytes, 1000 were written"
    weights.write_bytes(bytes(999) + b"\1")
    assert damage(listed).startswith(f"{weights} was changed: its SHA-256 is ")
    # Each of two processes looks at its own share.
    shares = [damage(listed, rank, 2) for rank in (0, 1)]
    assert [share is None for share in shares] == [True, False]
    weights.unlink()
    assert damage(listed) == f"{weights} is missing"


@pytest.mark.parametrize("text", ["", "[1]", '{"weights.bin": 3}', '{"weights.bin": {"bytes": 1'])
def test_a_damaged_list_is_damage_and_so_is_none(listed, text):
    (listed / DIGESTS_FILE).write_text(text)
    assert damage(listed).startswith(f"{listed / DIGESTS_FILE} is no list of digests")
    (listed / DIGESTS_FILE).unlink()
    assert damage(listed) == f"{listed / DIGESTS_FILE} is missing"
