"""Trains the tiny autoencoder on single frames."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from torch import Tensor
from tqdm import tqdm

from align.mmdit.vae import decode_frame, encode_frame
from align.pretrain.config import AutoencoderConfig
from align.pretrain.data import draw_crops
from align.pretrain.state import load_state, save_state

_SIZES = (64, 96, 128, 128, 128)
"""Poster sizes the crops come from: the curriculum's, the largest the most often."""


def edge_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean L1 distance of the horizontal and vertical pixel differences of (B, 3, H, W) images."""
    across = (a[..., :, 1:] - a[..., :, :-1]) - (b[..., :, 1:] - b[..., :, :-1])
    down = (a[..., 1:, :] - a[..., :-1, :]) - (b[..., 1:, :] - b[..., :-1, :])
    return across.abs().mean() + down.abs().mean()


def train_autoencoder(
    vae: AutoencoderKLQwenImage,
    config: AutoencoderConfig,
    folder: Path,
    seed: int,
    save_every: int,
    autocast: Callable[[], torch.autocast],
) -> None:
    """Train ``vae`` in place: encoder and decoder, then the decoder alone on fixed latents.

    Resumes from the state in ``folder``. The latents' mean and deviation are fixed into the
    configuration when the encoder is done (`fix_statistics`).
    """
    joint = _Phase("joint", config.steps, config.lr, list(vae.parameters()))
    decoder = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for phase in (joint, _Phase("decoder", config.decoder_steps, config.decoder_lr, decoder)):
        path = folder / f"autoencoder-{phase.name}.pt"
        optimizer = torch.optim.AdamW(
            phase.parameters, lr=phase.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        start = load_state(path, vae=vae, optimizer=optimizer)
        progress = tqdm(
            range(start, phase.steps), initial=start, total=phase.steps, desc=phase.name
        )
        for step in progress:
            for group in optimizer.param_groups:
                group["lr"] = phase.lr * _decay(step, phase.steps)
            rng = random.Random(f"{seed}/autoencoder/{phase.name}/{step}")
            images = draw_crops(rng, config.batch_size, config.crop, _SIZES, config.min_quality)
            with torch.random.fork_rng(devices=[]), autocast():
                torch.manual_seed(rng.getrandbits(62))
                loss, l1 = _loss(vae, images, config, frozen=phase.name == "decoder")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(phase.parameters, 1.0)
            optimizer.step()
            if step % 20 == 0:
                progress.set_postfix(loss=f"{loss.item():.4f}", l1=f"{l1.item():.4f}")
            if (step + 1) % save_every == 0 or step + 1 == phase.steps:
                save_state(path, step + 1, vae=vae, optimizer=optimizer)
        if phase.name == "joint":
            fix_statistics(vae, config, seed)


class _Phase:
    def __init__(self, name: str, steps: int, lr: float, parameters: list[torch.nn.Parameter]):
        self.name, self.steps, self.lr, self.parameters = name, steps, lr, parameters


def _decay(step: int, steps: int) -> float:
    """Warm up over 100 steps, then fall linearly to a twentieth."""
    return min(1.0, (step + 1) / 100) * max(0.05, 1.0 - step / steps)


def _loss(
    vae: AutoencoderKLQwenImage, images: Tensor, config: AutoencoderConfig, frozen: bool
) -> tuple[Tensor, Tensor]:
    with torch.set_grad_enabled(not frozen):
        posterior = encode_frame(vae, images)
        latents = posterior.sample()
    if frozen:
        latents = posterior.mode() + 0.05 * posterior.mode().std() * torch.randn_like(latents)
    decoded = decode_frame(vae, latents, clamp=False).float()
    l1 = F.l1_loss(decoded, images)
    loss = l1 + F.mse_loss(decoded, images) + config.edge_weight * edge_loss(decoded, images)
    if not frozen:
        loss = loss + config.kl_weight * posterior.kl().mean() / latents[0].numel()
    return loss, l1.detach()


@torch.no_grad()
def fix_statistics(vae: AutoencoderKLQwenImage, config: AutoencoderConfig, seed: int) -> None:
    """Write the latents' mean and deviation per channel into the configuration of ``vae``."""
    rng = random.Random(f"{seed}/statistics")
    images = draw_crops(rng, 256, 128, (128,), config.min_quality)
    latents = torch.cat([encode_frame(vae, chunk).mode() for chunk in images.split(32)])
    vae.register_to_config(
        latents_mean=latents.mean(dim=(0, 2, 3)).tolist(),
        latents_std=latents.std(dim=(0, 2, 3)).tolist(),
    )
