"""Every objective from one SFT model on the poster world, judged by the ruler.

The circle's first half makes the SFT model, the designers' picks and the reward model once. From
there each objective trains with three seeds: the offline ones on as many stored picks, the online
ones on as many drawn images. Each (seed, objective) is a cell that leaves ``cell.json``; a stopped
measurement continues with the next cell, and a full seed comes before the next one.

python -m benchmarks.measure objectives
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from align.config import DPOConfig, GenerateConfig, GRPOConfig, SFTConfig, TrainConfig
from align.demo.circle import Circle
from align.demo.config import DemoConfig
from align.demo.settings import circle_settings
from align.demo.studio import make_prompts, read_candidates, write_prompts
from align.evaluation import measure
from align.generate import generate
from align.learners import learner_class
from align.metrics import read_metrics
from align.offline import train_dpo, train_sft
from align.online import train_grpo
from annotate.records import Split
from annotate.settings import load_config

__all__ = ["CURVES", "RECIPES", "measure_objectives"]

WORLD = 1
"""Seed of the references, the picks, the reward model and the test prompts."""
SEEDS = (1, 2, 3)
TEST_PROMPTS, TEST_IMAGES, NUM_STEPS = 64, 2, 8
OFFLINE_STEPS = 150
"""Of 16 picks (SFT: images) each."""
ROLLOUTS = 8
"""Of 64 images each, one optimizer step on each."""


@dataclass(frozen=True)
class Recipe:
    """How one objective trains: a file of configs/tiny and what differs from it."""

    config: type[TrainConfig]
    file: str
    changes: tuple[str, ...] = ()


def _online(*changes: str) -> Recipe:
    steps = f"max_steps={ROLLOUTS}"
    return Recipe(GRPOConfig, "configs/tiny/grpo.yaml", (steps, "save_every=0", *changes))


def _offline(*changes: str) -> Recipe:
    steps = f"max_steps={OFFLINE_STEPS}"
    return Recipe(DPOConfig, "configs/tiny/dpo.yaml", (steps, "save_every=0", *changes))


FULL = "flow_grpo_full"
RECIPES: dict[str, Recipe] = {
    "sft": Recipe(
        SFTConfig,
        "configs/tiny/sft.yaml",
        (f"max_steps={OFFLINE_STEPS}", "save_every=0", "validation.patience=0"),
    ),
    "dpo": _offline("objective.anchor_weight=0"),
    "dpo_anchor": _offline(),
    "plackett_luce": _offline("objective.loss_type=plackett_luce"),
    "flow_grpo_window": _online("optimizer.lr=3e-5"),
    "nft": _online("optimizer.lr=3e-5", "objective.algorithm=nft", "objective.beta=0"),
    FULL: _online("optimizer.lr=1e-4", "rollout.window=8", "rollout.window_range=[0,8]"),
}
"""Name -> recipe, in the order of measuring."""

CURVES: dict[str, tuple[str, ...]] = {
    "sft": ("loss", "grad_norm"),
    "dpo": ("loss", "rewards/accuracies", "rewards/margins", "error/chosen_delta", "grad_norm"),
    "grpo": ("reward", "reward_std", "kl", "clip_ratio", "grad_norm"),
}
"""Metrics kept of each kind of run, by the name of its file."""


def measure_objectives(
    folder: Path, seeds: Sequence[int] = SEEDS, names: Sequence[str] = tuple(RECIPES)
) -> dict[str, Any]:
    """The raw record; ``folder`` keeps what was drawn and trained, and finished cells."""
    torch.set_num_threads(1)
    world = folder / "world"
    _prepare(world)
    baseline = _cell(folder / "start", lambda out: _judge(world / "sft/final", out))
    runs = [
        _cell(folder / f"seed{seed}" / name, lambda out, n=name, s=seed: _train(n, s, world, out))
        for seed in seeds
        for name in names
    ]
    return {"world": WORLD, "start": baseline, "runs": runs}


def _prepare(world: Path) -> None:
    """SFT model, picks and reward model, as the demo makes them."""
    done = world / "prepared"
    if done.is_file():
        return
    config = load_config(DemoConfig, "configs/tiny/demo.yaml", [f"folder={world}", f"seed={WORLD}"])
    world.mkdir(parents=True, exist_ok=True)
    circle = Circle(config, circle_settings(config))
    circle.fine_tune()
    circle.fill_studio()
    circle.label()
    circle.train_reward()
    write_prompts(circle.settings.prompts, circle.prompts[Split.TRAIN])
    circle.store.close()
    done.touch()


def _cell(folder: Path, make: Any) -> dict[str, Any]:
    """The cell's record, made unless it is there."""
    path = folder / "cell.json"
    if not path.is_file():
        record = make(folder)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(record), encoding="utf-8")
        partial.rename(path)
        print(f"{folder}: mean {record['mean']:.4f}", flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def _train(name: str, seed: int, world: Path, out: Path) -> dict[str, Any]:
    recipe = RECIPES[name]
    config: Any = load_config(recipe.config, recipe.file, _settings(recipe, seed, world, out))
    before, started = time.process_time(), time.monotonic()
    train: Any = {SFTConfig: train_sft, DPOConfig: train_dpo, GRPOConfig: train_grpo}
    result = train[recipe.config](config)
    spent = {
        "cpu_seconds": round(time.process_time() - before, 1),
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    rows = read_metrics(result.folder / "metrics.jsonl")
    curves = {
        metric: [round(row[metric], 6) for row in rows if metric in row]
        for metric in CURVES[Path(recipe.file).stem]
    }
    facts = {"objective": name, "seed": seed, **spent, **_forwards(config), "curves": curves}
    return facts | _judge(result.export, out)


def _settings(recipe: Recipe, seed: int, world: Path, out: Path) -> list[str]:
    data = {
        SFTConfig: [f"data.path={world / 'references/references.jsonl'}"],
        DPOConfig: [f"data.path={world / 'snapshot'}"],
        GRPOConfig: [
            f"prompts={world / 'grpo-prompts.jsonl'}",
            f"reward.path={world / 'reward'}",
            "reward.base=tiny",
        ],
    }[recipe.config]
    # bfloat16 is the faster half only where the processor multiplies in it.
    precision = "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"
    return [
        *data,
        f"model={world / 'sft/final'}",
        f"output_dir={out / 'run'}",
        f"seed={seed}",
        f"mixed_precision={precision}",
        "trackers=[]",
        "progress=false",
        *recipe.changes,
    ]


def _forwards(config: Any) -> dict[str, int]:
    """Of an online run: images drawn, forward passes of one to draw them, and to train on them."""
    if not isinstance(config, GRPOConfig):
        return {}
    rollouts = config.max_steps // config.updates_per_rollout
    images = rollouts * config.prompts_per_step * config.group_size
    return {
        "images": images,
        "rollout_forwards": images * config.rollout.num_steps,
        "training_forwards": learner_class(config.objective).units(config) * config.max_steps,
    }


def _judge(model: Path, out: Path) -> dict[str, Any]:
    """The ruler's readings of the test prompts, by prompt; the same noise for every model."""
    prompts = make_prompts(TEST_PROMPTS, Split.TEST, WORLD)
    drawn = out / "test"
    generate(
        GenerateConfig(
            model=str(model),
            prompts=write_prompts(out / "test-prompts.jsonl", prompts),
            output_dir=drawn,
            candidates=TEST_IMAGES,
            seed=WORLD,
            num_steps=NUM_STEPS,
            batch_size=64,
            progress=False,
        )
    )
    readings = measure(prompts, read_candidates(drawn), drawn / "images")
    by_prompt = [round(float(row.mean()), 6) for row in readings.by_prompt()]
    return {**readings.means(), "by_prompt": by_prompt}
