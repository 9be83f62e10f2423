"""The policy that a configuration describes."""

from __future__ import annotations

from typing import Any

import torch

from align.config import LoraConfig, TrainConfig, resolve_model
from align.mmdit.adapters import load_adapter
from align.mmdit.blocks import BlockSettings
from align.mmdit.quantized import quantize_blocks
from align.policy import Policy, Reference

__all__ = ["load_policy"]


def load_policy(
    config: TrainConfig,
    device: torch.device | str,
    reference: Reference = "none",
    keeps_masters: bool = False,
    computes_on: torch.device | None = None,
    reads_weights: bool = True,
) -> Policy:
    """The transformer of ``config.model`` with what is trained of it, before any training.

    Args:
        keeps_masters: the optimizer has float32 masters of its own, as DeepSpeed's.
        computes_on: where it will be brought before it computes; None: it stays on ``device``.
        reads_weights: without, the base's are unset: another process will send them.
    """
    # AdamW's steps vanish in bfloat16 weights.
    dtype = getattr(torch, config.dtype)
    if config.lora is None and not keeps_masters:
        kept = config.optimizer.weights
        dtype = torch.float32 if kept == "float32" else torch.bfloat16
    model = resolve_model(config.model)
    place = "cpu" if config.quantize else device
    adapter = load_adapter(
        model, dtype=dtype, device=place, parts=("transformer",), reads_weights=reads_weights
    )
    assert adapter.transformer is not None
    if config.quantize:
        quantize_blocks(adapter.transformer, config.quantize, device)
    return Policy(
        adapter,
        adapter.transformer,
        lora=None if config.lora is None else _peft_config(config.lora),
        reference=reference,
        blocks=_block_settings(config),
        seed=config.seed,
        device=computes_on,
    )


def _block_settings(config: TrainConfig) -> BlockSettings:
    return BlockSettings(config.blocks, config.recompute, config.compile, config.attention)


def _peft_config(lora: LoraConfig) -> Any:
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or lora.rank,  # pyright: ignore[reportArgumentType]
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or None,
        init_lora_weights=True,
    )
