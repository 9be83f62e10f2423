"""What each process of a launch runs, of which one is killed; see test_killed_launch.py.

``killed_launch.py DATA MODEL OUT STEP``: SFT of six steps; process 1 dies in step STEP, 0: none.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from killed_run import kill_in_step
from launched_runs import note_held
from run_data import sft_config

from align.cli import leave
from align.offline import train_sft

SETTINGS = {"max_steps": 6, "save_every": 2, "ema": None, "validation": {"every": 0}}

if __name__ == "__main__":
    data, model, out = map(Path, sys.argv[1:4])
    if os.environ["RANK"] == "1" and int(sys.argv[4]):
        kill_in_step(int(sys.argv[4]))
    note_held(out.parent)
    train_sft(sft_config(data, model, out, **SETTINGS))
    leave()
