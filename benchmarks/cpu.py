"""What a processor can prove about a step's memory and arithmetic: counted, not timed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import (
    QwenEmbedRope,
    QwenImageTransformerBlock,
)
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch._inductor import metrics
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from align.mmdit.activations import Recompute
from align.mmdit.blocks import BlockSettings, install_blocks
from align.objectives.diffusion_dpo import pair_errors
from align.optim import make_optimizer, state_bytes
from align.optim_config import OptimizerConfig
from benchmarks.hopper_bench import STOCK, TOY, Bench
from benchmarks.hopper_work import OBJECTIVE, pair_batch

BlockCall = Callable[[], tuple[Tensor, Tensor]]


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators made inside and that are still held.

    Args:
        existing: tensors from before, whose views are not new memory.
    """

    def __init__(self, existing: list[Tensor]) -> None:
        super().__init__()
        self._existing = {tensor.untyped_storage()._cdata for tensor in existing}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._existing:
                    self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result

    def count(self) -> int:
        """Bytes held now."""
        return sum(size for made, size in self._made.values() if not made.expired())


class Traffic(TorchDispatchMode):
    """Counts the kernels beside matrix products and attention, and the bytes they read and write.

    A broadcast operand counts as it lies in memory; views move nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if func.is_view or name in PRODUCTS or name.startswith(("_scaled_dot", "empty")):
            return result
        moved = [x for x in (*tree_leaves((args, kwargs)), *tree_leaves(result))
                 if isinstance(x, Tensor)]  # fmt: skip
        if name not in ("detach", "_unsafe_view"):
            self.launches += 1
            self.bytes += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in moved)
        return result


PRODUCTS = ("mm", "addmm", "bmm")


def _flash_for_cpu(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _flash_for_cpu_backward(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


CPU_ATTENTION_FLOPS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flash_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_for_cpu_backward,
}
"""FlopCounterMode knows attention on GPUs alone."""


def flop_counter() -> FlopCounterMode:
    """Counts matrix products and attention, on CPU too."""
    return FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION_FLOPS)


class _OneBlock(nn.Module):
    """One block and its position embedding: as much of the transformer as `install_blocks` sees."""

    def __init__(self, heads: int, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner_dim = heads * head_dim
        axes = [16, (head_dim - 16) // 2, (head_dim - 16) // 2]
        self.pos_embed: nn.Module = QwenEmbedRope(10000, axes, scale_rope=True)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            block = QwenImageTransformerBlock(self.inner_dim, heads, head_dim).to(dtype)
        self.transformer_blocks = nn.ModuleList([block])

    def call(self, recompute: Recompute, text: int, side: int) -> tuple[BlockCall, list[Tensor]]:
        """A call of the block on one sample and the tensors that exist before it."""
        if recompute != "none":
            install_blocks(self, BlockSettings("joint", recompute))
        return self.inputs(text, side)

    def inputs(self, text: int, side: int) -> tuple[BlockCall, list[Tensor]]:
        """The same of the block as it is."""
        dtype, generator = next(self.parameters()).dtype, torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

        image_x, text_x = draw(1, side * side, self.inner_dim), draw(1, text, self.inner_dim)
        temb = draw(1, self.inner_dim)
        rope = self.pos_embed([[(1, side, side)]], max_txt_seq_len=text, device=image_x.device)
        block = self.transformer_blocks[0]
        existing = [*self.parameters(), image_x, text_x, temb, *rope]
        return lambda: block(image_x, text_x, None, temb, rope), existing


def measure_recompute(
    heads: int = 24, head_dim: int = 128, text: int = 16, side: int = 8
) -> dict[str, Any]:
    """Bytes that a block keeps and FLOPs of its forward and backward pass, and its gradients.

    Three ways: stock diffusers without checkpointing, joint blocks with selective saving, joint
    blocks that compute all again; in bfloat16, on one sample of ``text`` and ``side ** 2`` tokens.
    """
    raw: dict[str, Any] = {"tokens": text + side * side, "width": heads * head_dim}
    modes: dict[str, Recompute] = {"stock": "none", "selective": "selective", "full": "full"}
    for name, mode in modes.items():
        module = _OneBlock(heads, head_dim, torch.bfloat16)
        call, existing = module.call(mode, text, side)
        with LiveBytes(existing) as live:
            outputs = call()
        raw[f"{name}_bytes"] = live.count()
        del outputs
        with flop_counter() as counter:
            losses = [output.float().square().mean() for output in call()]
            torch.autograd.backward(losses)
        raw[f"{name}_flops"] = counter.get_total_flops()
    return raw


def measure_traffic(
    heads: int = 2, head_dim: int = 128, text: int = 64, side: int = 16
) -> dict[str, Any]:
    """Elementwise kernels of one block in eager torch and the bytes they move, stock and joint."""
    unit = (text + side * side) * heads * head_dim * 2
    raw: dict[str, Any] = {"unit_bytes": unit}
    for name in ("stock", "joint"):
        module = _OneBlock(heads, head_dim, torch.bfloat16)
        if name == "joint":
            install_blocks(module, BlockSettings("joint"))
        call, _ = module.call("none", text, side)
        with Traffic() as forward:
            outputs = call()
        with Traffic() as backward:
            torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
        for way, found in (("forward", forward), ("backward", backward)):
            raw[f"{name}_{way}_bytes"] = found.bytes
            raw[f"{name}_{way}_launches"] = found.launches
    return raw


def measure_compiled(
    heads: int = 2, head_dim: int = 128, text: int = 64, side: int = 16
) -> dict[str, Any]:
    """Bytes that the kernels move which Inductor generates for a joint block, beside the products
    and the attention that it calls, for each way of recomputation; and those of the eager block.

    Inductor plans for the processor here; on a GPU it may fuse otherwise.
    """
    raw: dict[str, Any] = measure_traffic(heads, head_dim, text, side)
    modes: tuple[Recompute, ...] = ("none", "selective", "full")
    with _inductor_counts() as taken, inductor_config.patch(force_disable_caches=True):
        for mode in modes:
            torch.compiler.reset()
            module = _OneBlock(heads, head_dim, torch.bfloat16)
            install_blocks(module, BlockSettings("joint", mode, compile=True))
            call, _ = module.inputs(text, side)
            outputs = call()
            raw[f"{mode}_forward_bytes"], raw[f"{mode}_forward_launches"] = taken()
            torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
            raw[f"{mode}_backward_bytes"], raw[f"{mode}_backward_launches"] = taken()
    return raw


@contextmanager
def _inductor_counts() -> Iterator[Callable[[], tuple[int, int]]]:
    """A function that says how many bytes the generated kernels move of what was compiled since it
    was last asked, and how many these are."""
    # Inductor counts where this logger would print.
    logger = logging.getLogger("torch._inductor.compile_fx.__inductor_metrics")
    level, spreads = logger.level, logger.propagate

    def take() -> tuple[int, int]:
        moved = [4 * size for node, size in metrics.nodes_num_elem if size and not node.is_extern()]
        metrics.reset()
        return sum(moved), len(moved)

    logger.setLevel(logging.INFO)
    logger.propagate = False
    metrics.reset()
    try:
        yield take
    finally:
        logger.setLevel(level)
        logger.propagate = spreads


def measure_pair(layers: int = 8) -> dict[str, Any]:
    """FLOPs of one DPO pair's step, a live reference against cached errors, and of those errors."""
    bench = Bench(torch.device("cpu"), replace(TOY, layers=layers), compile=False)
    batch = pair_batch(bench)
    raw: dict[str, Any] = {"layers": layers}
    for name, blocks, reference in (
        ("live", STOCK, "copy"),
        ("cached", bench.joint("selective"), "none"),
    ):
        policy = bench.policy(blocks, reference)
        with torch.no_grad(), flop_counter() as counter:
            errors = pair_errors(policy, batch)
        raw["reference_flops"] = counter.get_total_flops()
        own = batch if name == "live" else replace(batch, reference_errors=errors)
        with flop_counter() as counter:
            OBJECTIVE.loss(policy, own).loss.backward()
        raw[f"{name}_flops"] = counter.get_total_flops()
    raw["forward_flops"] = raw["reference_flops"] // 2
    return raw


def measure_optimizer(width: int = 256) -> dict[str, Any]:
    """Bytes held after a step of 8-bit Adam that released its gradients, and parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = QwenImageTransformerBlock(width, width // 64, 64).bfloat16()
    config = OptimizerConfig(
        type="adam8bit", weights="stochastic", gradient_release=True, max_grad_norm=0
    )
    optimizer = make_optimizer(config, block.parameters())
    optimizer.release_gradients()  # pyright: ignore[reportAttributeAccessIssue]
    sum(p.float().square().sum() for p in block.parameters()).backward()  # type: ignore[union-attr]
    parameters = sum(p.numel() for p in block.parameters())
    return {"bytes": state_bytes(optimizer), "parameters": parameters, "width": width}
