"""What each process of a launch runs; see test_distributed.py.

``launched_runs.py DATA MODEL OUT``: SFT of all parameters, the same continued from a checkpoint,
DPO and GRPO by LoRA, GRPO with weights that differ between the processes, and the golden
trajectories.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from golden_cases import (
    CASES,
    HAVE_STORED_ERRORS,
    LR,
    WEIGHT_DECAY,
    launched_trajectory,
    live,
)
from run_data import FirstChannel, dpo_config, grpo_config, sft_config
from torch.distributed.tensor import DTensor

import align.online
from align.cli import leave
from align.engine import Engine
from align.mmdit.adapters import qwen_image
from align.offline import train_dpo, train_sft
from align.online import train_grpo
from align.policy import Policy
from align.preflight import PreflightError
from align.rollout import Rollout
from benchmarks.modulation import Traffic

DPO = {
    "lora": {"rank": 4},
    "objective": {"beta": 50},
    "max_steps": 3,
    "micro_batch_size": 1,
    "save_every": 0,
}
"""beta multiplies the errors' rounding: at 2000 a margin is known to 1e-4 only."""
GRPO = {"max_steps": 2, "save_every": 0}


def samples(data: Path) -> dict[str, Any]:
    """Twelve images and a batch of five: two processes have six each."""
    shown = {"prompts": data / "prompts.txt", "every": 10, "batch_size": 5}
    return shown | {"height": 32, "width": 32, "num_steps": 2}


def main(data: Path, model: Path, out: Path) -> None:
    note_held(out)
    note_unread(out)
    if "fsdp2" in out.name:
        note_traffic(out)
    sft = sft_config(data, model, out / "sft", keep_checkpoints=5, samples=samples(data))
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
    follow_golden(data, model, out, state)
    if "zero" not in out.name:
        try:
            changes = {"shard_modulation": True, "gradient_checkpointing": True}
            train_sft(sft.model_copy(update=changes | {"output_dir": out / "split"}))
        except ValueError as error:
            (out / "split-refused.txt").write_text(str(error))
    if "zero3" not in out.name and "fsdp2" not in out.name:
        start_unequal(data, model, out, state)
    leave()


def note_unread(out: Path) -> None:
    """From now on a process that leaves the weights to others says so."""
    load_structure = qwen_image.load_structure

    def load_and_note(*args: Any) -> torch.nn.Module:
        (out / f"unread-{PartialState().process_index}").touch()
        return load_structure(*args)

    qwen_image.load_structure = load_and_note


def note_held(out: Path) -> None:
    """From now on each process writes what it holds of an engine's weights and moments."""
    save = Engine.save

    def save_and_note(self: Engine, folder: Path) -> None:
        save(self, folder)
        weights = self.model.parameters()
        optimizer = self.optimizer.optimizer
        states = getattr(optimizer, "optimizer", optimizer).state.values()
        held = {
            "trained": self.num_trained,
            "type": type(next(iter(self.model.parameters())).data).__name__,
            "weights": sum(map(local_size, weights)),
            "moments": sum(local_size(s["exp_avg"]) for s in states if "exp_avg" in s),
        }
        if self.ema is not None:
            held["average"] = sum(x.numel() for x in self.ema.state_dict().values()) - 1
        (out / f"held-{self.config.output_dir.name}-{self.rank}.json").write_text(json.dumps(held))

    Engine.save = save_and_note


def follow_golden(data: Path, model: Path, out: Path, state: PartialState) -> None:
    """Ten steps of every objective, with micro-batches of one or of four, recomputed activations
    or kept ones, a stored reference or a live one.

    A launch has all of these, and an objective meets them in one launch or another. DeepSpeed's
    hooks take seconds a micro-batch: it accumulates for one objective alone.
    """
    launch = out.name.removesuffix("0")  # pytest numbers its folders
    optimizer = {"lr": LR, "weight_decay": WEIGHT_DECAY, "max_grad_norm": 1e6}
    config = sft_config(data, model, out / "golden", optimizer=optimizer, ema=None)
    found = {}
    for place, (name, (objective, make)) in enumerate(CASES.items()):
        choice = place + len(launch)
        ones = name == "dpo_anchored" if launch.startswith("zero") else choice % 2 == 0
        if name in HAVE_STORED_ERRORS and choice % 3 == 0:
            make = live(make)
        rows = launched_trajectory(config, objective, make, 1 if ones else 4, choice // 2 % 2 == 1)
        found[name] = rows
    if state.is_main_process:
        (out / "golden.json").write_text(json.dumps(found))


def note_traffic(out: Path) -> None:
    """From now on each process writes what it receives in a run's last step."""
    train_step = Engine.train_step

    def count_and_step(self: Engine, *args: Any) -> dict[str, float]:
        with Traffic() as traffic:
            metrics = train_step(self, *args)
        path = out / f"traffic-{self.config.output_dir.name}-{self.rank}.json"
        path.write_text(json.dumps({"bytes": traffic.bytes}))
        return metrics

    Engine.train_step = count_and_step


def local_size(tensor: Any) -> int:
    """Elements on this process; DeepSpeed keeps its part in ``ds_tensor``, and no other."""
    if isinstance(tensor, DTensor):
        return tensor.to_local().numel()
    return getattr(tensor, "ds_tensor", tensor).numel()


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
