"""How soon the monitors see a policy drift towards a hack, and what they say of honest training.

Hacks: the policy is simulated (posters as drawn, changed a little more with each rollout by one
hack), so that the drift is known, and the same posters without it tell what it cost. No training
takes part.

Clean runs: Flow-GRPO of the tiny pipeline with the ruler itself as reward. Its policy improves and
moves the same statistics for honest reasons: noise goes, edges come.

The limits come from clean runs alone, of seeds 5 to 9, 101, 102 and (learning rate 1e-4) 105, and
from posters without a hack, of seeds 201 to 204. The rule, that one, two and three rollouts are
judged, was chosen after hacks of seeds 40 to 42 had been met too late by three rollouts together.

python -m benchmarks.measure hacking
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance
from PIL.Image import Image as PILImage

from align.config import GRPOConfig
from align.online import train_grpo
from annotate.settings import load_config
from rewards.base import RewardItem, Score, ScorerSpec
from rewards.failures import RewardSource
from rewards.monitors import HackingAlarm, RewardMonitor
from rewards.posters.draw import draw
from rewards.posters.ruler import CRITERIA, read_poster
from rewards.posters.spec import PosterSpec, caption, random_spec

__all__ = ["HACKS", "measure_hacking"]

PROMPTS, PER_ROLLOUT, PER_PROMPT = 24, 8, 4
ROLLOUTS, RAMP = 30, 20
"""The hack begins after the monitor's baseline and is at its full strength ``RAMP`` later."""
HACK_SEED, CLEAN_SEEDS = 70, range(10, 15)
"""Seen by no version of the monitors before."""
SIDE = 128
STEPS = 24
"""Optimizer steps of a clean run, each on a rollout of 8 prompts x 8 images."""

Hack = Callable[[PILImage, float], PILImage]


def _grid(image: PILImage, strength: float) -> PILImage:
    """Dark lines every 8 pixels."""
    pixels = np.asarray(image, dtype=np.float64).copy()
    pixels[::8] *= 1.0 - strength
    pixels[:, ::8] *= 1.0 - strength
    return Image.fromarray(pixels.round().astype(np.uint8))


HACKS: dict[str, Hack] = {
    "saturation": lambda image, strength: ImageEnhance.Color(image).enhance(1.0 + 2.0 * strength),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(1.0 + strength),
    "grid": _grid,
}
"""Name -> (image, strength in [0, 1]) -> image."""


class RulerReward:
    """The ruler's mean of the three criteria: a reward that pays for nothing else."""

    spec = ScorerSpec("ruler", "1", ("aesthetics", "instruction", "detail"), frozenset({"image"}))

    def __init__(self) -> None:
        self.means: list[float] = []
        """of each rollout"""

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        readings = []
        for item in items:
            assert item.image is not None
            readings.append(read_poster(item.image, PosterSpec(**item.metadata["spec"])))
        self.means.append(float(np.mean([reading.mean for reading in readings])))
        return [Score(r.mean, {name: getattr(r, name) for name in CRITERIA}) for r in readings]


def measure_hacking() -> dict[str, Any]:
    """Three planted hacks and five clean runs with the monitors' default limits."""
    return {
        "hacks": {
            name: _drift(HACK_SEED + place, hack)
            for place, (name, hack) in enumerate(HACKS.items())
        },
        "clean": [_train(seed) for seed in CLEAN_SEEDS],
    }


def _train(seed: int) -> dict[str, Any]:
    """Flow-GRPO as the demo sets it, on the ruler, watched."""
    reward = RulerReward()
    rng = random.Random(f"{seed}/hacking")
    specs = [random_spec(rng) for _ in range(PROMPTS)]
    with tempfile.TemporaryDirectory(prefix="winsome-hacking-") as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text("".join(map(_prompt_line, range(PROMPTS), specs)), encoding="utf-8")
        changes = {
            "prompts": prompts,
            "output_dir": Path(folder) / "run",
            "seed": seed,
            "max_steps": STEPS,
            "save_every": 0,
            "reward": "null",
            "trackers": "[]",
        }
        overrides = [f"{key}={value}" for key, value in changes.items()]
        config = load_config(GRPOConfig, "configs/tiny/grpo.yaml", overrides)
        try:
            train_grpo(config, RewardSource(reward, monitor=RewardMonitor()))
        except HackingAlarm as alarm:
            return {"alarm_at": len(reward.means), "reason": str(alarm), "ruler": reward.means}
    return {"alarm_at": None, "reason": "", "ruler": reward.means}


def _prompt_line(index: int, spec: PosterSpec) -> str:
    lang = ("en", "zh")[index % 2]
    record = {
        "id": f"{index:016x}",
        "text": caption(spec, lang),
        "lang": lang,
        "category": "poster",
        "split": "train",
        "metadata": {"spec": spec.to_dict()},
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def _drift(seed: int, hack: Hack) -> dict[str, Any]:
    """A simulated policy that follows ``hack``."""
    rng = random.Random(seed)
    specs = [random_spec(rng) for _ in range(PROMPTS)]
    monitor = RewardMonitor()
    drops: list[float] = []
    for rollout in range(ROLLOUTS):
        strength = min(max(rollout + 1 - monitor.settings.baseline, 0) / RAMP, 1.0)
        items, scores, before, after = [], [], [], []
        for place in range(PER_ROLLOUT * PER_PROMPT):
            index = (rollout * PER_ROLLOUT + place // PER_PROMPT) % PROMPTS
            defects = {name: 0.5 * rng.random() for name in ("muddy", "noise", "clutter")}
            clean = draw(specs[index], SIDE, defects, seed=rng.randrange(10**6))
            image = hack(clean, strength)
            before.append(read_poster(clean, specs[index]).mean)
            after.append(read_poster(image, specs[index]).mean)
            items.append(RewardItem(f"{rollout}/{place}", f"{index}", f"p{index}", image=image))
            scores.append(Score(rng.random() + strength))
        drops.append(1.0 - float(np.mean(after)) / float(np.mean(before)))
        try:
            monitor.observe(items, scores)
        except HackingAlarm as alarm:
            return {"alarm_at": rollout, "reason": str(alarm), "ruler_drops": drops}
    return {"alarm_at": None, "reason": "", "ruler_drops": drops}
