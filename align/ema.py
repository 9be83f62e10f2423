"""Exponential moving average of trained weights, kept on the shards that this process owns.

`torch.optim.swa_utils` has the arithmetic; its `AveragedModel` and diffusers' `EMAModel` would keep
a whole float32 copy on every rank of a ZeRO-3 run, or gather each parameter at every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from align.config import EMAConfig

__all__ = ["ShardedEMA"]


def _shard(parameter: nn.Parameter) -> Tensor:
    """The part of a parameter that lies on this process: DeepSpeed's partition, FSDP2's rows, or
    all of it."""
    tensor: Tensor = parameter
    if isinstance(tensor, DTensor):
        return tensor.to_local().detach()
    return getattr(parameter, "ds_tensor", parameter).data


class ShardedEMA:
    """``average = decay * average + (1 - decay) * weight`` in float32, after each step."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], config: EMAConfig, offset: float = 0.0
    ) -> None:
        """``offset`` is added to the weights that the average starts from."""
        self.config = config
        self.num_updates = 0
        self._parameters = dict(parameters)
        self._average = {n: _shard(p).float().clone() for n, p in self._parameters.items()}
        if offset:
            torch._foreach_add_(list(self._average.values()), offset)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.num_updates += 1
        decay = self.config.decay
        if self.config.warmup:
            decay = min(decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = [_shard(p).float() for p in self._parameters.values()]
        get_ema_multi_avg_fn(decay)(list(self._average.values()), weights, self.num_updates)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the shards hold the average; afterwards the very weights they held before."""
        with torch.no_grad():
            weights = {n: _shard(p).clone() for n, p in self._parameters.items()}
            for name, parameter in self._parameters.items():
                _shard(parameter).copy_(self._average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    _shard(parameter).copy_(weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        return {**self._average, "num_updates": torch.tensor(self.num_updates)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.num_updates = int(state["num_updates"])
        for name, average in self._average.items():
            average.copy_(state[name])
