"""What a block keeps for its backward pass, and what it computes again.

``selective`` keeps the outputs of matrix products and of attention and computes only elementwise
work again: 11 numbers a token instead of 28, in units of the model's width, at no extra matrix
product. ``full`` keeps the block's input alone and computes everything again: a third more FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import flop_registry

__all__ = ["SAVED_OPS", "Recompute", "check_saved_ops", "recomputing"]

Recompute = Literal["none", "selective", "full"]

_SAVED = (
    "mm",  # linear layers without a bias, and LoRA's
    "addmm",  # linear layers with one: all of Qwen-Image's
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
)
SAVED_OPS = frozenset(getattr(torch.ops.aten, name).default for name in _SAVED)
"""Operators whose outputs ``selective`` keeps. Lists written for other models miss some of them
(Qwen-Image's layers have biases, and cuDNN's attention has a name of its own): what is missing is
silently computed twice."""


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in SAVED_OPS else CheckpointPolicy.PREFER_RECOMPUTE


def recomputing(mode: Recompute) -> Callable[..., Any]:
    """A function that calls ``f(*args)`` and keeps for the backward pass what ``mode`` says.

    It is what diffusers' ``enable_gradient_checkpointing`` takes; "none" calls ``f`` as it is.
    """
    if mode == "none":
        return lambda function, *args: function(*args)
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return partial(checkpoint, **options)


def check_saved_ops(ops: set[Any]) -> None:
    """Every operator with FLOPs that ran must be one that ``selective`` keeps.

    Args:
        ops: operator overloads of one forward pass, as `attention.OpRecorder` sees them.

    Raises:
        ValueError: names the operators that would be computed twice.
    """
    attention = {op for op in ops if "attention" in str(op) or "attn" in str(op)}
    heavy = attention | {op for op in ops if op._overloadpacket in flop_registry}
    missed = sorted(str(op) for op in heavy - SAVED_OPS)
    if not attention and torch.ops.aten.bmm.default not in heavy:
        missed.append("attention that is no operator of torch")
    if missed:
        kept = ", ".join(sorted(str(op) for op in SAVED_OPS))
        raise ValueError(
            f"selective saving would compute {', '.join(missed)} twice: it keeps {kept}; "
            "choose gradient_checkpointing true, or another attention path"
        )
