"""What each process of a launch runs; see test_distributed.py.

``launched_runs.py DATA MODEL OUT``: SFT of all parameters, the same continued from a checkpoint,
DPO and GRPO by LoRA, and GRPO with weights that differ between the processes.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from run_data import FirstChannel, dpo_config, grpo_config, sft_config

import align.online
from align.cli import leave_process_group
from align.offline import train_dpo, train_sft
from align.online import train_grpo
from align.policy import Policy
from align.preflight import PreflightError
from align.rollout import Rollout

DPO = {"lora": {"rank": 4}, "objective": {"beta": 50}, "max_steps": 4, "save_every": 0}
"""beta multiplies the errors' rounding: at 2000 a margin is known to 1e-4 only."""
GRPO = {"max_steps": 3, "save_every": 0}


def main(data: Path, model: Path, out: Path) -> None:
    sft = sft_config(data, model, out / "sft", keep_checkpoints=5)
    train_sft(sft)
    state = PartialState()
    assert state.num_processes == 2, state
    if state.is_main_process:
        shutil.copytree(out / "sft", out / "continued")
        shutil.rmtree(out / "continued" / "final")
        shutil.rmtree(out / "continued" / "checkpoints" / "step-00000010")
    state.wait_for_everyone()
    train_sft(sft.model_copy(update={"output_dir": out / "continued"}))
    train_dpo(dpo_config(data, model, out / "dpo", **DPO))
    train_grpo(grpo_config(data, model, out / "grpo", **GRPO), FirstChannel())
    if AcceleratorState().deepspeed_plugin is None:
        start_unequal(data, model, out, state)
    leave_process_group()


def start_unequal(data: Path, model: Path, out: Path, state: PartialState) -> None:
    """Each process must refuse to start when one of them holds other weights."""
    draw = align.online.draw_rollout

    def draw_otherwise(policy: Policy, *args: Any) -> Rollout:
        if not state.is_main_process:
            with torch.no_grad():
                policy.trainable_parameters()[0].add_(0.01)
        return draw(policy, *args)

    align.online.draw_rollout = draw_otherwise
    try:
        train_grpo(grpo_config(data, model, out / "unequal", **GRPO), FirstChannel())
    except PreflightError as error:
        (out / f"refused-{state.process_index}.txt").write_text(str(error))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
