"""Elementwise work of a joint block: eager twins, and the same in fused Triton kernels."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["KERNELS", "Kernels", "load_kernels"]

KERNELS = {"joint": "align.mmdit.kernels.eager", "fused": "align.mmdit.kernels.fused"}
"""Kind of blocks -> the module whose functions they call."""


@dataclass(frozen=True)
class Kernels:
    """The functions of one module; `align.mmdit.kernels.eager` says their shapes."""

    qk_norm_rope: Callable[..., Tensor]
    add_norm_modulate: Callable[..., tuple[Tensor, Tensor]]


def load_kernels(blocks: Literal["joint", "fused"]) -> Kernels:
    """The functions of a kind of blocks.

    Raises:
        ValueError: the fused ones need triton, which is not installed.
    """
    try:
        module = importlib.import_module(KERNELS[blocks])
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise ValueError(
            "blocks 'fused' need triton: pip install 'winsome[kernels]', or take blocks 'joint'"
        ) from error
    return Kernels(module.qk_norm_rope, module.add_norm_modulate)
