"""Bytes that two processes exchange in a training step under FSDP2, with and without their own rows
of the modulation layers.

    python -m benchmarks.modulation OUT.json    starts its two processes itself, over gloo
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.mmdit.modulation import shard_modulation
from benchmarks.hopper_bench import TOY, Bench

PROCESSES = 2


SIZED_BY = {
    "_allgather_base_": 0,
    "_reduce_scatter_base_": 1,
    "alltoall_base_": 0,
    "allreduce_": 0,
}
"""Collective -> its argument that holds the parts of all processes."""


class Traffic(TorchDispatchMode):
    """Bytes that this process receives in collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._opname
            if name not in SIZED_BY:
                raise ValueError(f"a collective that is not counted: {name}")
            wholes: list[Tensor] = tree_leaves(args[SIZED_BY[name]])
            both_ways = 2 if name == "allreduce_" else 1
            nbytes = sum(whole.nbytes for whole in wholes)
            self.bytes += both_ways * nbytes * (PROCESSES - 1) // PROCESSES
        return func(*args, **(kwargs or {}))


def _step(rank: int, is_split: bool) -> tuple[int, float, dict[str, Tensor]]:
    """Bytes, loss and whole gradients of one step on this process's sample."""
    bench = Bench(torch.device("cpu"), TOY, compile=False)
    model: Any = bench.transformer(dtype=torch.float32).requires_grad_(True)
    for name in bench.adapter().dead_modules(model):
        model.get_submodule(name).requires_grad_(False)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    own: set[nn.Parameter] = set()
    if is_split:
        own = {p for layer in shard_modulation(model, mesh) for p in layer.parameters()}
    for block in model.transformer_blocks:
        fully_shard(block, mesh=mesh, ignored_params=own)
    fully_shard(model, mesh=mesh, ignored_params=own)
    latents = bench.latents(1, bench.sizes.small, seed=rank)
    cond = bench.prompts([bench.sizes.text])
    with Traffic() as traffic:
        velocity = bench.adapter().velocity(model, latents, torch.tensor([0.3 + 0.4 * rank]), cond)
        loss = velocity.square().mean()
        loss.backward()
    return traffic.bytes, loss.item(), _whole_gradients(model)


def _whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.full_tensor()
        for name, parameter in model.named_parameters()
        if isinstance(parameter.grad, DTensor)
    }


def _run(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES
    )
    torch.set_num_threads(1)
    whole_bytes, loss, expected = _step(rank, is_split=False)
    split_bytes, split_loss, found = _step(rank, is_split=True)
    assert expected.keys() == found.keys(), expected.keys() ^ found.keys()
    error = max(
        float((found[name] - gradient).abs().max() / gradient.abs().max().clamp_min(1e-30))
        for name, gradient in expected.items()
    )
    raw = {
        "processes": PROCESSES,
        "whole_bytes": whole_bytes,
        "split_bytes": split_bytes,
        "loss_difference": abs(split_loss - loss),
        "gradient_error": error,
    }
    if rank == 0:
        (Path(folder) / "raw.json").write_text(json.dumps(raw), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def measure_modulation() -> dict[str, Any]:
    """Start the processes and give back what the first one counted."""
    with tempfile.TemporaryDirectory(prefix="winsome-modulation-") as folder:
        torch.multiprocessing.spawn(_run, (folder,), nprocs=PROCESSES)  # type: ignore[attr-defined]
        return json.loads((Path(folder) / "raw.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(measure_modulation(), indent=1) + "\n")
