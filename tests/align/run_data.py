"""Small data and configurations for the trainers' tests: images of 32 x 32 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from align.config import DPOConfig, GRPOConfig, SFTConfig
from annotate.settings import parse_config
from rewards.base import RewardItem, Score, ScorerSpec

CAPTIONS = tuple(
    f"a {size} {colour} {shape} on a white background"
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square")
)


def write_data(folder: Path) -> Path:
    """Write images, sft.jsonl, pairs.jsonl, lists.jsonl and prompts.txt."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i, caption in enumerate(CAPTIONS):
        pixels = np.full((32, 32, 3), rng.integers(0, 255, 3), dtype=np.uint8)
        pixels[8:24, 8:24] = rng.integers(0, 255, 3)
        name = f"images/{i}.png"
        Image.fromarray(pixels).save(folder / name)
        rows.append({"prompt": caption, "image": name, "score": 3.0 if i == 5 else 5.0})
    pairs = [
        {"prompt": caption, "chosen": f"images/{i}.png", "rejected": f"images/{(i + 1) % 12}.png"}
        for i, caption in enumerate(CAPTIONS)
    ]
    lists = [
        {"prompt": caption, "images": [f"images/{(i + k) % 12}.png" for k in range(2 + i % 2)]}
        for i, caption in enumerate(CAPTIONS)
    ]
    for name, lines in (("sft.jsonl", rows), ("pairs.jsonl", pairs), ("lists.jsonl", lists)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "prompts.txt").write_text("\n".join(CAPTIONS))
    return folder


def sft_config(data: Path, model: Path, output: Path, /, **changes: Any) -> SFTConfig:
    settings = {
        "model": str(model),
        "output_dir": output,
        "data": {"path": data / "sft.jsonl"},
        "optimizer": {"lr": 1e-3},
        "ema": {"decay": 0.9},
        "max_steps": 10,
        "batch_size": 4,
        "save_every": 5,
        "cache_dir": data / "cache",
        "validation": {"every": 5, "draws": 2, "fraction": 0.2},
        "trackers": [],
    }
    return parse_config(SFTConfig, settings | changes)


def dpo_config(data: Path, model: Path, output: Path, /, **changes: Any) -> DPOConfig:
    settings = {
        "model": str(model),
        "output_dir": output,
        "data": {"type": "jsonl", "path": data / "pairs.jsonl"},
        "optimizer": {"lr": 1e-4},
        "reference": {"draws": 2},
        "max_steps": 10,
        "batch_size": 4,
        "save_every": 5,
        "cache_dir": data / "cache",
        "trackers": [],
    }
    return parse_config(DPOConfig, settings | changes)


def lists_config(data: Path, model: Path, output: Path, /, **changes: Any) -> DPOConfig:
    """Plackett-Luce with a beta that adapts: a state beside the weights."""
    settings = {
        "data": {"type": "jsonl", "path": data / "lists.jsonl"},
        "objective": {
            "loss_type": "plackett_luce",
            "beta": 500,
            "anchor_weight": 0.5,
            "auto_beta": {"lowest": 50},
        },
        "optimizer": {"lr": 2e-5},
    }
    return dpo_config(data, model, output, **settings, **changes)


def nft_config(data: Path, model: Path, output: Path, /, **changes: Any) -> GRPOConfig:
    """DiffusionNFT that draws with the moving average, two updates a rollout."""
    settings = {
        "objective": {"algorithm": "nft", "old_policy": "average", "beta": 0.01},
        "ema": {"decay": 0.5},
        "updates_per_rollout": 2,
        "save_every": 4,
    }
    return grpo_config(data, model, output, **settings, **changes)


def grpo_config(data: Path, model: Path, output: Path, /, **changes: Any) -> GRPOConfig:
    settings = {
        "model": str(model),
        "output_dir": output,
        "prompts": data / "prompts.txt",
        "rollout": {"height": 32, "width": 32, "num_steps": 4, "window": 2},
        "objective": {"beta": 0.01},
        "lora": {"rank": 4},
        "group_size": 4,
        "prompts_per_step": 2,
        "optimizer": {"lr": 1e-3},
        "max_steps": 10,
        "save_every": 5,
        "cache_dir": data / "cache",
        "trackers": [],
    }
    return parse_config(GRPOConfig, settings | changes)


class FirstChannel:
    """Scores latents by the mean of their first channel."""

    spec = ScorerSpec("first-channel", "1", ("mean",), frozenset({"latents"}))

    def score(self, items: list[RewardItem]) -> list[Score]:
        values = [float(item.latents[0].mean()) for item in items]
        return [Score(value, {"mean": value}) for value in values]


def losses(run: Path) -> dict[int, dict[str, float]]:
    """The rows of metrics.jsonl by step, without the clock; no step may stand twice."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps)), steps
    return {row.pop("step"): {k: v for k, v in row.items() if k != "seconds"} for row in rows}
