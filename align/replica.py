"""Whole weights of a sharded transformer, to draw with.

Under ZeRO-3 and FSDP2 every forward pass gathers all weights from all processes. A rollout is many
passes with weights that stand still: here they are gathered once, in the dtype that computes, and
given back when the images are drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from align.policy import Policy

if TYPE_CHECKING:
    from align.engine import Engine

__all__ = ["Replica"]

STEP_BYTES = 12
"""Of an own trained number, that the first optimizer step adds: gradient and two moments."""


class Replica:
    """Takes the place of a policy's sharded transformer while images are drawn."""

    def __init__(self, policy: Policy) -> None:
        """Remember the structure of ``policy``'s bare transformer, before it is wrapped."""
        module = policy.transformer
        known = [*module.parameters(), *module.buffers()]
        memo: dict[int, Any] = {id(x): torch.empty_like(x, device="meta") for x in known}
        for parameter in module.parameters():
            memo[id(parameter)] = nn.Parameter(memo[id(parameter)], requires_grad=False)
        self._structure = copy.deepcopy(module, memo)  # which leaves out what was compiled
        self._compiled = [n for n, m in module.named_modules() if m._compiled_call_impl is not None]
        self._buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self._policy = policy
        self._engine: Engine

    def attach(self, engine: Engine) -> None:
        """Take note of how the transformer was sharded.

        Raises:
            ValueError: it was not.
        """
        if not engine.layout.shards_weights:
            raise ValueError(
                "rollout.replica gathers weights that are sharded, but this launch "
                f"({engine.layout.name}) keeps them whole on each process: set it to false, or "
                "launch with ZeRO-3 or FSDP2"
            )
        self._engine = engine
        self._structure.eval()
        if not self._casts:
            return
        from torch.distributed.fsdp import FSDPModule

        for name, module in engine.model.named_modules():
            if isinstance(module, FSDPModule):
                inner = self._structure.get_submodule(name)
                inner.register_forward_pre_hook(_cast_floats, with_kwargs=True)

    @property
    def _casts(self) -> bool:
        """Whether the sharded transformer computes in bfloat16 on float32 weights."""
        return self._engine.accelerator.native_amp

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within, the policy computes with whole weights, as they are now; all processes enter.

        Raises:
            ValueError: they do not fit beside what is there; names the bytes.
        """
        policy, sharded = self._policy, self._policy.transformer
        policy.transformer = self._gather()
        try:
            yield
        finally:
            policy.transformer = sharded

    @torch.no_grad()
    def _gather(self) -> nn.Module:
        engine = self._engine
        engine.layout.refresh()
        self._check_room()
        weights, stored = dict(self._buffers), torch.float32
        for name, parameter in _bare(engine.model).named_parameters():
            stored = parameter.dtype
            weights[name] = _whole(parameter, torch.bfloat16 if self._casts else stored)
        whole = copy.deepcopy(self._structure)
        whole.load_state_dict(weights, assign=True)
        for name in self._compiled:
            whole.get_submodule(name).compile()
        if not self._casts:
            return whole
        return _Autocast(whole, engine.accelerator, stored)

    def _check_room(self) -> None:
        engine = self._engine
        if engine.device.type != "cuda":
            return
        width = 2 if self._casts else 4
        sizes = [getattr(p, "ds_numel", p.numel()) for p in _bare(engine.model).parameters()]
        needed = sum(sizes) * width
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(engine.device)[0]
        kept = 0 if engine.has_stepped else STEP_BYTES * engine.num_trained // engine.world
        if engine.any(free - kept < needed):
            raise ValueError(
                f"rollout.replica needs {needed / 2**30:.1f} GiB for the whole weights; a process "
                f"has {free / 2**30:.1f} GiB free and will need {kept / 2**30:.1f} more for "
                "gradients and moments: set it to false, or take more GPUs"
            )


class _Autocast(nn.Module):
    """bfloat16 weights that are called, and answer, as the float32 ones they were made of."""

    def __init__(self, module: nn.Module, accelerator: Any, stored: torch.dtype) -> None:
        super().__init__()
        # Callers bring their inputs to the dtype of the first parameter.
        self.stored = nn.Parameter(torch.empty(0, dtype=stored), requires_grad=False)
        self.module = module
        self._accelerator = accelerator

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._accelerator.autocast():
            outputs = self.module(*args, **kwargs)
        return tree_map(lambda x: x.float() if _is_float(x) else x, outputs)


def _whole(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """All of a parameter that is spread over the processes; it travels in ``dtype``."""
    if isinstance(parameter, DTensor):
        return cast(DTensor, parameter.detach().to(dtype)).full_tensor()
    if hasattr(parameter, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().to(dtype, copy=True)
    return parameter.detach().to(dtype, copy=True)


def _bare(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model)


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _cast_floats(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """As FSDP2 does with what a sharded module is given."""
    return tree_map(lambda x: x.bfloat16() if _is_float(x) else x, (args, kwargs))
