"""The tiny Qwen-Image on this processor, beside the stock diffusers pipeline in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImagePipeline

from align.mmdit.adapters import load_adapter
from align.mmdit.flow import seeded_noise
from align.sampling import sample

PROMPTS = (
    "a poster with a red circle on the left and the headline SALE",
    "a blue square on a white background with a button",
)
SIDE = 128
STEPS = 12
REPEATS = 5


@torch.no_grad()
def measure_drawing(folder: Path, images: int = 16) -> dict[str, Any]:
    """Seconds to draw a batch and to decode its latents, and the largest difference in pixels.

    Both draw from the same noise and the same encoded prompts, without guidance; their turns
    alternate.
    """
    adapter: Any = load_adapter(folder)
    stock: Any = QwenImagePipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    cond = adapter.encode_prompts([PROMPTS[index % 2] for index in range(images)])
    shape = adapter.latent_shape(SIDE, SIDE)
    noise = torch.stack([seeded_noise(0, f"image-{i}", 0, shape) for i in range(images)])
    packed = stock._pack_latents(noise[:, :, None], images, *shape)

    def draw() -> torch.Tensor:
        latents = sample(adapter, adapter.transformer, cond, noise, STEPS)
        return adapter.decode_latents(latents)

    def draw_stock() -> torch.Tensor:
        return stock(
            prompt_embeds=cond.prompt_embeds,
            prompt_embeds_mask=cond.mask,
            latents=packed,
            height=SIDE,
            width=SIDE,
            num_inference_steps=STEPS,
            true_cfg_scale=1.0,
            output_type="pt",
        ).images

    decoded: dict[str, Callable[[], Any]] = {
        "decode_seconds": lambda: adapter.decode_latents(noise),
        "stock_decode_seconds": lambda: stock.vae.decode(noise[:, :, None]),
    }
    seconds = timed({"seconds": draw, "stock_seconds": draw_stock, **decoded})
    difference = float((draw() - draw_stock()).abs().max()) * 255
    return {"images": images, "side": SIDE, "steps": STEPS, "max_difference": difference, **seconds}


def timed(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Wall seconds of each call, ``REPEATS`` times in turn after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(REPEATS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds
