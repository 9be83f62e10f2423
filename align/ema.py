"""Exponential moving average of trained weights, kept on the shards that this process owns.

torch's `AveragedModel` and diffusers' `EMAModel` would keep a whole float32 copy on every rank of a
ZeRO-3 run, or gather each parameter at every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from align.config import EMAConfig

__all__ = ["ShardedEMA", "changed"]


def _shard(parameter: nn.Parameter) -> Tensor:
    """The part of a parameter that lies on this process: DeepSpeed's partition, FSDP2's rows, or
    all of it."""
    tensor: Tensor = parameter
    if isinstance(tensor, DTensor):
        return tensor.to_local().detach()
    return getattr(parameter, "ds_tensor", parameter).data


@contextlib.contextmanager
def changed(
    parameters: Mapping[str, nn.Parameter], change: Callable[[str, Tensor], object]
) -> Iterator[None]:
    """Within, the shards hold what ``change(name, shard)`` makes of them in place; afterwards the
    very bits that they held before.

    Those lie in host memory meanwhile: a card that trains all parameters has no room for a copy.
    """
    shards = {name: _shard(parameter) for name, parameter in parameters.items()}
    with torch.no_grad():
        kept = {name: shard.to("cpu", copy=True) for name, shard in shards.items()}
        for name, shard in shards.items():
            change(name, shard)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, shard in shards.items():
                shard.copy_(kept[name])


class ShardedEMA:
    """``average = decay * average + (1 - decay) * weight`` in float32, after each step."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: EMAConfig) -> None:
        self.config = config
        self.num_updates = 0
        self._parameters = dict(parameters)
        self._average = {n: _shard(p).float().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.num_updates += 1
        decay = self.config.decay
        if self.config.warmup:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        for name, parameter in self._parameters.items():  # one by one: each is cast to float32
            self._average[name].lerp_(_shard(parameter).float(), 1 - decay)

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """Within, the shards hold the average."""
        return changed(self._parameters, lambda name, shard: shard.copy_(self._average[name]))

    def state_dict(self) -> dict[str, Tensor]:
        return {**self._average, "num_updates": torch.tensor(self.num_updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.num_updates = int(state["num_updates"])
        for name, average in self._average.items():
            average.copy_(state[name])
