"""What each part of the circle trains by: the files of configs/tiny, with the demo's own paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from align.config import DPOConfig, GRPOConfig, SFTConfig, resolve_model
from align.demo.config import DemoConfig, Part
from align.mmdit.adapters import load_adapter
from annotate.settings import Config, load_config
from rewards.config import RewardTrainConfig

__all__ = ["CircleSettings", "circle_settings", "continued_settings"]

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class CircleSettings:
    """All that is known before the first step."""

    references: Path
    """Rows for SFT."""
    snapshot: Path
    prompts: Path
    """For GRPO."""
    sft: SFTConfig
    reward: RewardTrainConfig
    dpo: DPOConfig
    grpo: GRPOConfig


def circle_settings(config: DemoConfig) -> CircleSettings:
    """The settings of every part; nothing is written.

    Raises:
        ValueError: one of ``config.settings`` is no setting of its part; names both.
        FileNotFoundError: the model is missing.
    """
    load_adapter(resolve_model(config.model), parts=())
    folder = config.folder
    references = folder / "references" / "references.jsonl"
    snapshot, prompts = folder / "snapshot", folder / "grpo-prompts.jsonl"
    return CircleSettings(
        references,
        snapshot,
        prompts,
        sft=_aligned(SFTConfig, config, "sft", "sft", config.model, {"data.path": references}),
        reward=_part(
            RewardTrainConfig,
            config,
            "reward",
            {
                "snapshot": snapshot,
                "base": config.model,
                "output_dir": folder / "reward",
                "seed": config.seed,
                "held_out": "validation",
            },
        ),
        dpo=_aligned(
            DPOConfig, config, "dpo", "dpo", folder / "sft/final", {"data.path": snapshot}
        ),
        grpo=_aligned(
            GRPOConfig,
            config,
            "grpo",
            "grpo",
            folder / "dpo/final",
            {"prompts": prompts, "reward.path": folder / "reward", "reward.base": config.model},
        ),
    )


def continued_settings(config: DemoConfig, settings: CircleSettings, steps: int) -> SFTConfig:
    """The control: SFT continued for ``steps`` more."""
    changes = {
        "max_steps": steps,
        "data.path": settings.references,
        "validation.patience": 0,
    }
    model = config.folder / "sft/final"
    return _aligned(SFTConfig, config, "sft", "sft_continued", model, changes)


def _aligned(
    cls: type[C],
    config: DemoConfig,
    part: Part,
    name: str,
    model: str | Path,
    changes: Mapping[str, Any],
) -> C:
    fixed = {
        "output_dir": config.folder / name,
        "model": model,
        "seed": config.seed,
        # bfloat16 is the faster half only where the processor multiplies in it.
        "mixed_precision": "bf16" if torch.cpu._is_avx512_bf16_supported() else "no",
        "trackers": "[]",
    }
    return _part(cls, config, part, {**fixed, **changes})


def _part(cls: type[C], config: DemoConfig, part: Part, fixed: Mapping[str, Any]) -> C:
    """The file of a part with the demo's overrides, and over them what the circle fixes."""
    overrides = [f"{key}={value}" for key, value in fixed.items()]
    return load_config(
        cls, f"configs/tiny/{part}.yaml", [*config.settings.get(part, ()), *overrides]
    )
