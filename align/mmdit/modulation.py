"""Modulation layers split over processes: a third of the model that need not be gathered.

In Qwen-Image `img_mod` and `txt_mod` hold a third of all parameters, and each sees one vector a
sample. Sharded data parallelism gathers their weights for every pass and reduces their gradients;
here each process keeps its own rows, the processes exchange the vectors, and each gives back to the
others what its rows make of theirs. Results are the same; 6.8 billion parameters stay where they
are, and for each sample and layer 6 D numbers move instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

__all__ = [
    "ModulationTables",
    "ShardedModulation",
    "modulation_tables",
    "shard_modulation",
]

LAYERS = ("img_mod", "txt_mod")


class ShardedModulation(nn.Module):
    """The rows ``rank * out / n`` and on of a linear layer, for the samples of all n processes.

    All processes call it together, each with as many samples. Gradients of the rows are means over
    the processes, as data parallelism makes those of other weights. Weight and bias are `DTensor`
    under the layer's own names: gathered, saved and stepped as those of FSDP2 are.
    """

    def __init__(self, linear: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__()
        world, rank = mesh.size(), mesh.get_local_rank()
        if linear.out_features % world:
            raise ValueError(
                f"{linear.out_features} rows of modulation cannot be shared by {world} processes"
            )
        self.group = mesh.get_group()
        rows = slice(rank * linear.out_features // world, (rank + 1) * linear.out_features // world)
        for name in ("weight", "bias"):
            whole = getattr(linear, name)
            own = DTensor.from_local(whole.detach()[rows].clone(), mesh, [Shard(0)])
            setattr(self, name, nn.Parameter(own, requires_grad=whole.requires_grad))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, D)`` of this process's samples to ``(B, 6 D)``."""
        world = dist.get_world_size(self.group)
        everyone = _Gather.apply(x, self.group)
        weight, bias = (
            _Mean.apply(cast(DTensor, p).to_local(), world).to(x.dtype)
            for p in (self.weight, self.bias)
        )
        return _Return.apply(F.linear(everyone, weight, bias), self.group)


def shard_modulation(transformer: nn.Module, mesh: DeviceMesh) -> list[ShardedModulation]:
    """Replace the blocks' modulation layers by this process's rows, on the mesh's device.

    Args:
        mesh: one-dimensional, of the processes that share the rows.

    Returns:
        the new layers: what wraps the transformer must leave their parameters out
        (``fully_shard(..., ignored_params=...)``).
    """
    found = []
    for block in cast(Any, transformer).transformer_blocks:
        for name in LAYERS:
            layer = getattr(block, name)
            layer[1] = ShardedModulation(layer[1], mesh)
            found.append(layer[1])
    return found


def _exchange(parts: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Part i of ``parts (n, ...)`` goes to process i; what came from process i is part i."""
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts.contiguous(), group=group)
    return received


class _Gather(torch.autograd.Function):
    """``(B, D)`` of each process to ``(n B, D)`` on all; gradients go back to their process."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        everyone = x.new_empty(dist.get_world_size(group) * x.shape[0], *x.shape[1:])
        dist.all_gather_single(everyone, x.contiguous(), group=group)
        return everyone

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        world = dist.get_world_size(ctx.group)
        parts = grad.view(world, -1, *grad.shape[1:])
        return _exchange(parts, ctx.group).sum(0), None


class _Return(torch.autograd.Function):
    """``(n B, R)``, own rows of all samples, to ``(B, n R)``, all rows of own samples."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        world = dist.get_world_size(group)
        received = _exchange(own.view(world, -1, own.shape[1]), group)
        return received.transpose(0, 1).flatten(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        world = dist.get_world_size(ctx.group)
        parts = grad.unflatten(1, (world, -1)).transpose(0, 1)
        return _exchange(parts.contiguous(), ctx.group).flatten(0, 1), None


class _Mean(torch.autograd.Function):
    """A weight whose gradient is divided by the number of processes."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, world: int) -> Tensor:
        ctx.world = world
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] / ctx.world, None


# Tables -------------------------------------------------------------------------------------------


class ModulationTables:
    """Shift, scale and gate of every block by sampling step, kept while weights stand still.

    They depend on the timestep alone: `at` names the step that the next passes compute, whose
    samples must all have that step's timestep. Batches of another size are kept apart, because
    kernels may round them otherwise; so a table gives the very bits that its layer would.
    """

    def __init__(self) -> None:
        self._step: int | None = None
        self._rows: dict[tuple[nn.Module, int, int], Tensor] = {}

    def at(self, step: int) -> None:
        self._step = step

    def read(self, layer: nn.Module, compute: Any, temb: Tensor) -> Tensor:
        """``(B, 6 D)`` of ``temb (B, D)``; computed where the step and the size are new."""
        if self._step is None:
            return compute(temb)
        key = (layer, self._step, len(temb))
        if key not in self._rows:
            out = compute(temb).detach()
            same = torch.equal(out[:1].expand_as(out), out)
            self._rows[key] = out[:1].clone() if same else out
        return self._rows[key].expand(len(temb), -1)


@contextmanager
def modulation_tables(transformer: nn.Module) -> Iterator[ModulationTables]:
    """Within, the blocks read their modulation from tables; weights must not change meanwhile.

    For sampling without a gradient, and blocks that are not compiled.
    """
    tables = ModulationTables()
    layers = [getattr(b, n) for b in cast(Any, transformer).transformer_blocks for n in LAYERS]
    try:
        for layer in layers:
            layer.forward = partial(tables.read, layer, layer.forward)
        yield tables
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
