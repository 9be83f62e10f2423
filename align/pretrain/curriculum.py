"""Flow matching in a four-stage curriculum: transformer and text encoder from nothing to posters.

Sizes grow, texts get harder and the data purer from stage to stage, as in Qwen-Image's pretraining
scaled down. The text encoder learns along with the transformer; alignment later freezes it.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from align.mmdit import flow
from align.mmdit.adapters import image_to_uint8
from align.mmdit.adapters.qwen_image import QwenImageAdapter
from align.pretrain.config import PretrainConfig, StageConfig
from align.pretrain.data import Pool, draw_pool, to_unit
from align.pretrain.state import load_state, save_state
from align.sampling import sample

PREVIEW_PROMPTS = (
    "a cream poster, a red circle on the left, headline “TEA”, a blue button",
    "a navy banded poster, a yellow star on the right, headline “山水”, a red button",
    "粉色边框海报，中间绿色圆环，标题“NEW”，黄色按钮",
    "薄荷海报，左边紫色心形，标题“大吉”",
)


class WeightAverage:
    """Exponential moving average of parameters, warmed up as (1 + n) / (10 + n)."""

    def __init__(self, parameters: Iterable[Tensor], decay: float):
        self.parameters: list[Tensor] = list(parameters)
        self.decay, self.updates = decay, 0
        self.averages = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and weights; a second call restores them."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)

    def state_dict(self) -> dict[str, object]:
        return {"updates": self.updates, "averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        self.updates = state["updates"]
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)


def train_curriculum(
    adapter: QwenImageAdapter,
    config: PretrainConfig,
    autocast: Callable[[], torch.autocast],
) -> None:
    """Train the adapter's transformer and text encoder in place, ending on their averages.

    Resumes from ``config.run``; writes metrics.jsonl and a preview grid per checkpoint there.
    """
    transformer, text_encoder = adapter.transformer, adapter.text_encoder
    assert transformer is not None
    assert text_encoder is not None
    frozen = adapter.dead_modules(transformer)
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    text_encoder.model.language_model.requires_grad_(True)
    modules = nn.ModuleList([transformer, text_encoder])
    parameters = [p for p in modules.parameters() if p.requires_grad]
    average = WeightAverage(parameters, config.ema_decay)
    optimizer = MuonAdamW(modules, config.weight_decay)
    path = config.run / "curriculum.pt"
    done = load_state(path, modules=modules, optimizer=optimizer, average=average)
    first = 0
    for stage in config.stages:
        last = first + stage.steps
        if done < last:
            trainer = _StageTrainer(adapter, config, stage, parameters, optimizer, autocast)
            steps = range(max(done, first), last)
            progress = tqdm(steps, initial=steps.start - first, total=stage.steps, desc=stage.name)
            for step in progress:
                loss = trainer.step(step - first)
                average.update()
                if (step + 1) % 50 == 0:
                    progress.set_postfix(loss=f"{loss:.4f}")
                    _log(config.run, stage.name, step + 1, loss)
                if (step + 1) % config.save_every == 0 or step + 1 == last:
                    save_state(
                        path, step + 1, modules=modules, optimizer=optimizer, average=average
                    )
                    average.swap()
                    preview(adapter, config.run / "previews" / f"{step + 1:06d}.png", stage.size)
                    average.swap()
        first = last
    average.swap()


class MuonAdamW:
    """Muon on the matrices of the blocks, AdamW on everything else, one learning rate for both.

    Muon's update is scaled to AdamW's root mean square, so the rates are comparable. In one trial
    of 160 steps the loss fell to 0.28 with it (rate 2e-3) and to 0.44 with AdamW alone (1e-3).
    """

    def __init__(self, modules: nn.Module, weight_decay: float):
        matrices, rest = [], []
        for name, parameter in modules.named_parameters():
            if parameter.requires_grad:
                in_block = "transformer_blocks." in name or "layers." in name
                (matrices if in_block and parameter.ndim == 2 else rest).append(parameter)
        self.optimizers = (
            torch.optim.Muon(
                matrices, lr=1.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(
                rest, lr=1.0, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True
            ),
        )

    def step(self, lr: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, object]:
        muon, adamw = self.optimizers
        return {"muon": muon.state_dict(), "adamw": adamw.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        muon, adamw = self.optimizers
        muon.load_state_dict(state["muon"])
        adamw.load_state_dict(state["adamw"])


class _StageTrainer:
    """One stage: its encoded posters, and a step on a batch of them."""

    def __init__(
        self,
        adapter: QwenImageAdapter,
        config: PretrainConfig,
        stage: StageConfig,
        parameters: list[nn.Parameter],
        optimizer: MuonAdamW,
        autocast: Callable[[], torch.autocast],
    ):
        self.adapter, self.config, self.stage = adapter, config, stage
        assert adapter.transformer is not None
        self.transformer = adapter.transformer
        self.parameters, self.optimizer, self.autocast = parameters, optimizer, autocast
        self.latents, self.captions = encoded_pool(adapter, config, stage, autocast)
        self.mu = adapter.mu(stage.size, stage.size)

    def step(self, index: int) -> float:
        """Optimizer step ``index`` of the stage; its randomness depends on nothing else."""
        config, stage = self.config, self.stage
        rng = random.Random(f"{config.seed}/{stage.name}/{index}")
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        batch = torch.randint(len(self.latents), (stage.batch_size,), generator=generator)
        drop = torch.rand(stage.batch_size, generator=generator) < config.caption_dropout
        x_0 = self.latents[batch]
        noise = torch.randn(x_0.shape, generator=generator)
        normal = torch.randn(stage.batch_size, generator=generator)
        sigma = torch.sigmoid(config.logit_mean + config.logit_std * normal)
        sigma = flow.shift(sigma, self.mu)
        prompts = ["" if d else self.captions[i] for i, d in zip(batch, drop, strict=True)]
        with self.autocast():
            cond = self.adapter.encode_prompts(prompts)
            x_t = flow.interpolate(x_0, noise, sigma)
            velocity = self.adapter.velocity(self.transformer, x_t, sigma, cond)
        loss = flow.velocity_error(velocity, x_0, noise).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, config.grad_clip)
        self.optimizer.step(stage.lr * _schedule(index, stage.steps))
        return loss.item()


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warmup) * (0.05 + 0.95 * cosine)


@torch.no_grad()
def encoded_pool(
    adapter: QwenImageAdapter,
    config: PretrainConfig,
    stage: StageConfig,
    autocast: Callable[[], torch.autocast],
) -> tuple[Tensor, list[str]]:
    """Latents ``(N, C, h, w)`` and captions of a stage's posters, kept in the run folder."""
    path = config.run / f"pool-{stage.name}.pt"
    if path.is_file():
        held = torch.load(path, weights_only=True)
        return held["latents"], held["captions"]
    pool: Pool = draw_pool(stage, config.seed)
    chunks = tqdm(pool.images.split(64), desc=f"encode {stage.name}", leave=False)
    with autocast():
        latents = torch.cat([adapter.encode_images(to_unit(chunk)).float() for chunk in chunks])
    partial = path.with_suffix(".partial")
    torch.save({"latents": latents, "captions": pool.captions}, partial)
    partial.replace(path)
    return latents, pool.captions


@torch.no_grad()
def preview(adapter: Any, path: Path, size: int) -> None:
    """Draw the preview prompts with two noises each as one grid."""
    prompts = [prompt for prompt in PREVIEW_PROMPTS for _ in range(2)]
    shape = adapter.latent_shape(size, size)
    ids = [f"preview/{i}" for i in range(len(prompts))]
    noise = flow.seeded_noise_batch(0, ids, [0] * len(ids), shape)
    cond = adapter.encode_prompts(prompts)
    latents = sample(adapter, adapter.transformer, cond, noise, num_steps=12)
    pixels = image_to_uint8(adapter.decode_latents(latents)).cpu().numpy()
    grid = Image.new("RGB", (size * len(prompts), size))
    for i, image in enumerate(pixels):
        grid.paste(Image.fromarray(image), (i * size, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)


def _log(run: Path, stage: str, step: int, loss: float) -> None:
    line = {"stage": stage, "step": step, "loss": loss, "time": time.time()}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
