"""SFT that stops in step 7 until it is killed: ``busy_run.py DATA MODEL OUT``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from killed_run import kill_in_step
from run_data import sft_config

from align.offline import train_sft


def wait() -> None:
    print("busy", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    data, model, out = map(Path, sys.argv[1:])
    kill_in_step(7, wait)
    train_sft(sft_config(data, model, out))
