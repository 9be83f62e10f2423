"""Figures without training: means over held-out samples, and a reference's errors, stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.checkpoint import atomic_file
from align.data.batches import ImageBatches, PreferenceBatches
from align.engine import Engine
from align.policy import Policy

__all__ = ["measure", "measure_tasks", "reference_errors"]

T = TypeVar("T", ImageBatches, PreferenceBatches)


def measure(
    engine: Engine,
    count: int,
    batch_size: int,
    figures: Callable[[Sequence[int]], Mapping[str, Tensor]],
) -> dict[str, float]:
    """Means of ``figures`` over the places 0 to ``count - 1``, shared out over the processes.

    Args:
        figures: takes places, returns a value for each of them, ``(B,)``, by name.

    All processes make equally many calls of equal size, as ZeRO-3 demands: the places beyond the
    end are computed and left out.
    """
    places = range(engine.rank, math.ceil(count / engine.world) * engine.world, engine.world)
    sums: dict[str, Tensor] = {}
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        is_real = torch.tensor([place < count for place in part], device=engine.device)
        for name, values in figures([min(place, count - 1) for place in part]).items():
            total = values.double()[is_real].sum()
            sums[name] = sums[name] + total if name in sums else total
    return engine.mean({name: total * engine.world / count for name, total in sums.items()})


def measure_tasks(
    engine: Engine,
    tasks: Sequence[T],
    batch_size: int,
    figures: Callable[[T, Sequence[int]], Mapping[str, Tensor]],
) -> dict[str, float]:
    """`measure` over the places of all ``tasks``; a call has places of one of them."""
    counts = [task.num_places for task in tasks]
    found = [
        measure(engine, count, batch_size, lambda places, task=task: figures(task, places))
        for task, count in zip(tasks, counts, strict=True)
    ]
    if len(found) == 1:
        return found[0]
    return {
        name: sum(n * row[name] for n, row in zip(counts, found, strict=True)) / sum(counts)
        for name in found[0]
    }


@torch.no_grad()
def reference_errors(
    path: Path, engine: Engine, policy: Policy, batches: PreferenceBatches, batch_size: int
) -> Tensor:
    """Errors ``(samples, draws, K)`` of the untrained policy on every draw of ``batches``.

    Read from ``path`` if they are there for the same samples, else computed and written: they must
    be those from before the first step, so this runs before a checkpoint is taken up.
    """
    count = batches.num_places
    num_draws = batches.num_draws or 1
    if not count:
        return torch.zeros(0, num_draws, 1)
    key = torch.frombuffer(bytearray(batches.digest()), dtype=torch.uint8)
    if path.is_file():
        stored = load_file(path)
        if torch.equal(stored["key"], key):
            return stored["errors"]
    places = range(engine.rank, math.ceil(count / engine.world) * engine.world, engine.world)
    rows = [
        batches.errors(policy, batches.at([min(p, count - 1) for p in places[i : i + batch_size]]))
        for i in range(0, len(places), batch_size)
    ]
    # Rank r holds the places r, r + world, ...: interleave what was gathered rank by rank.
    share = torch.cat(rows)
    width = share.shape[1]
    gathered = engine.gather(share).view(engine.world, len(places), width).transpose(0, 1)
    errors = gathered.reshape(-1, width)[:count].reshape(-1, num_draws, width)
    errors = errors.float().cpu().contiguous()
    if engine.is_main:
        with atomic_file(path) as temporary:
            save_file({"errors": errors, "key": key}, temporary)
    return errors
