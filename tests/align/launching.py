"""A script of this folder, run by two processes over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from annotate.settings import configs_folder

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def launch(launcher: str, script: str, *arguments: Any) -> None:
    """By ``configs/accelerate/LAUNCHER_cpu.yaml``; it must succeed."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", configs_folder() / f"accelerate/{launcher}_cpu.yaml"),
        *("--main_process_port", "0"),
        *(HERE / script, *arguments),
    ]
    paths = os.pathsep.join([str(ROOT), str(HERE)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-4000:]
