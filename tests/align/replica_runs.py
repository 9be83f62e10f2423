"""What each process of a launch runs; see test_replica.py.

``replica_runs.py DATA MODEL OUT PRECISION...``: GRPO of all parameters, drawn from shards and from
a replica; each process leaves what it drew and the bytes that it received while drawing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from run_data import FirstChannel, grpo_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import align.online
import align.replica
from align.cli import leave
from align.online import train_grpo

SETTINGS = {"lora": None, "objective": {"beta": 0.0}, "save_every": 0, "max_steps": 2}
ROLLOUT = {"height": 32, "width": 32, "num_steps": 4, "window": 2}


class Received(TorchDispatchMode):
    """Bytes that gathers bring to this process, of two."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if "c10d" in func.namespace and "gather" in func._opname:
            whole: Tensor = args[0] if func.namespace == "c10d" else made
            self.bytes += whole.nbytes // 2
        return made


def main(data: Path, model: Path, out: Path, precisions: list[str]) -> None:
    draw, drawn, counted = align.online.draw_rollout, [], []

    def draw_and_count(*args: Any) -> Any:
        with Received() as received:
            rollout = draw(*args)
        drawn.append({"latents": rollout.latents, "log_prob": rollout.log_prob})
        counted.append(received.bytes)
        return rollout

    align.online.draw_rollout = draw_and_count
    gather = align.replica.Replica._gather

    def gather_and_count(self: Any) -> Any:
        with Received() as received:
            whole = gather(self)
        counted.append(received.bytes)
        return whole

    align.replica.Replica._gather = gather_and_count
    for precision in precisions:
        for replica in (False, True):
            name = f"{precision}-{replica}"
            settings = SETTINGS | {"mixed_precision": precision, "blocks": "joint"}
            settings |= {"rollout": ROLLOUT | {"replica": replica}}
            if precision == "no":
                settings |= {"ratio_tolerance": 0}
            drawn.clear()
            counted.clear()
            train_grpo(grpo_config(data, model, out / name, **settings), FirstChannel())
            rank = torch.distributed.get_rank()
            torch.save({"drawn": list(drawn), "bytes": sum(counted)}, out / f"{name}-{rank}.pt")
    leave()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]), sys.argv[4:])
