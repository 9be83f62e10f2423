"""Peak memory of a run's own steps at the 20B model's real sizes, counted on tensors without data.

What is built, in the trainers' order: the transformer in the weights' type, the policy and its
reference, the optimizer; the preflight's nudge, the reference's errors, two steps on one pair, and
the optimizer's state taken up again. Only what the allocator rounds up and what lies inside single
kernels is not seen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.config import DPOConfig
from align.ema import changed
from align.mmdit.adapters.base import Conditioning
from align.mmdit.blocks import BlockSettings
from align.objectives.diffusion_dpo import DiffusionDPO, PairBatch, pair_errors
from align.optim import ReducedOptimizer, make_optimizer
from align.optim_states import dequantize, quantize
from align.policy import Policy
from benchmarks.hopper_bench import Bench, Sizes

__all__ = ["measure_peaks"]

SMALL = 2**16
"""Bytes of storages that are not followed."""


class PeakBytes(TorchDispatchMode):
    """Follows the storages that operators made inside; `peak` is the most that was held."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        is_new = False
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.device.type != "meta":
                storage = value.untyped_storage()
                known = self._made.get(storage._cdata)
                if storage.nbytes() > SMALL and (known is None or known[0].expired()):
                    self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                    is_new = True
        if is_new:
            self.peak = max(self.peak, self.held())
        return result

    def held(self) -> int:
        """Bytes held now."""
        self._made = {k: v for k, v in self._made.items() if not v[0].expired()}
        return sum(size for _, size in self._made.values())

    def phase(self) -> int:
        """The peak since the last call."""
        found, self.peak = self.peak, self.held()
        return found


def measure_peaks(config: DPOConfig, layers: int = 60) -> dict[str, Any]:
    """Peak bytes of the phases of a run of ``config``, whose reference is cached, on one device;
    a step is one pair.

    ``nudge`` holds the weights once more, which lie in host memory in a run.
    """
    quantize(torch.zeros(256), True)  # the codes' tables must have data
    dequantize(*quantize(torch.zeros(256), False), False)
    raw: dict[str, Any] = {"layers": layers}
    sizes, side = Sizes(), config.data.height or 1024
    with torch.device("meta"):
        model = QwenImageTransformer2DModel(num_layers=layers)
    model.pos_embed = QwenEmbedRope(10000, [16, 56, 56], scale_rope=True)
    with FakeTensorMode(allow_non_fake_inputs=True), PeakBytes() as bytes_:
        bench = Bench(torch.device("cpu"), sizes, compile=False)
        weights = config.optimizer.weights
        dtype = torch.float32 if weights == "float32" else torch.bfloat16
        blocks = BlockSettings(config.blocks, config.recompute)
        model = _materialize(model, dtype)
        policy = Policy(bench.adapter(), model, blocks=blocks)  # type: ignore[arg-type]
        optimizer = make_optimizer(config.optimizer, policy.trainable_parameters())
        if config.optimizer.gradient_release:
            assert isinstance(optimizer, ReducedOptimizer)
            optimizer.release_gradients()
        raw["build"] = bytes_.phase()
        named = {n: p for n, p in policy.transformer.named_parameters() if p.requires_grad}
        with changed(named, lambda _, shard: shard.add_(1e-3)):
            pass
        raw["nudge"] = bytes_.phase()
        latents = torch.zeros(1, *bench.adapter().latent_shape(side, side))
        cond = Conditioning(torch.zeros(1, sizes.text, sizes.joint_dim))
        batch = PairBatch(latents, latents.clone(), cond, latents.clone(), torch.zeros(1))
        with torch.no_grad():
            errors = pair_errors(policy, batch)
        own = replace(batch, reference_errors=errors)
        raw["reference"] = bytes_.phase()
        for step in ("first_step", "step"):
            _step(policy, optimizer, own)
            raw[step] = bytes_.phase()
        raw["rest"] = bytes_.held()
        optimizer.load_state_dict(optimizer.state_dict())
        raw["resume"] = bytes_.phase()
    return raw


def _materialize(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype)))
    return model.requires_grad_(False)


def _step(policy: Policy, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    DiffusionDPO().loss(policy, batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
