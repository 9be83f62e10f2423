"""How soon the monitors see a policy drift towards a hack, by how far the ruler has fallen then.

The policy is simulated: posters as drawn, changed a little more with each rollout by one hack. So
the drift is known, and the same posters without it tell what it cost. No training takes part.

The monitors' rule was not fixed before these runs: it was changed twice after their results had
been seen. At first it had no standard errors, then three of them, now two.

python -m benchmarks.measure hacking
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance
from PIL.Image import Image as PILImage

from rewards.base import RewardItem, Score
from rewards.monitors import HackingAlarm, RewardMonitor
from rewards.posters.draw import draw
from rewards.posters.ruler import read_poster
from rewards.posters.spec import random_spec

__all__ = ["HACKS", "measure_hacking"]

PROMPTS, PER_ROLLOUT, PER_PROMPT = 24, 8, 4
ROLLOUTS, RAMP = 30, 20
"""The hack begins after the monitor's baseline and is at its full strength ``RAMP`` later."""
SIDE = 128

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


def measure_hacking() -> dict[str, Any]:
    """Three planted hacks and five clean runs with the monitors' default limits."""
    return {
        "hacks": {name: _run(20 + seed, hack) for seed, (name, hack) in enumerate(HACKS.items())},
        "clean": [_run(400 + seed, None) for seed in range(5)],
    }


def _run(seed: int, hack: Hack | None) -> dict[str, Any]:
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
            image = hack(clean, strength) if hack else clean
            if hack:
                before.append(_ruler(clean, specs[index]))
                after.append(_ruler(image, specs[index]))
            items.append(RewardItem(f"{rollout}/{place}", f"{index}", f"p{index}", image=image))
            scores.append(Score(rng.random() + strength))
        if hack:
            drops.append(1.0 - float(np.mean(after)) / float(np.mean(before)))
        try:
            monitor.observe(items, scores)
        except HackingAlarm as alarm:
            return {"alarm_at": rollout, "reason": str(alarm), "ruler_drops": drops}
    return {"alarm_at": None, "reason": "", "ruler_drops": drops}


def _ruler(image: PILImage, spec: Any) -> float:
    reading = read_poster(image, spec)
    return (reading.aesthetics + reading.instruction + reading.detail) / 3
