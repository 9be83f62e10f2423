"""A training that ends by ``kill -9``."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from rewards.folder import CHECKPOINTS


def kill_at_first_checkpoint(settings: dict[str, Any]) -> None:
    """Train by the command line until a checkpoint begins to be written."""
    output = Path(settings["output_dir"])
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "align.cli", "reward", "train", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    while not list((output / CHECKPOINTS).glob("checkpoint-*/trainer_state.json")):
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1].decode()[-4000:])
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
