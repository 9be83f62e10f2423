"""What the parts of `benchmarks.hopper` do and time, and how they know that it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImagePipeline
from torch import Tensor

from align.ledger import ModelShape, Tokens
from align.mmdit.blocks import BlockSettings
from align.mmdit.tokens import pack
from align.objectives.diffusion_dpo import DiffusionDPO, PairBatch, pair_errors
from align.optim import ReducedOptimizer, make_optimizer
from align.optim_config import OptimizerConfig
from align.policy import Policy
from align.sampling import Trajectory, sample, sample_sde
from benchmarks.hopper_bench import Bench

NOISE_LEVEL, WINDOW = 0.7, 2
OBJECTIVE = DiffusionDPO(beta=2000.0)
LR = 1e-9
"""Steps of real arithmetic that leave the margin near 0. At 1e-6 one step of 20B parameters
saturates the loss; gradients are then zeros, which a card multiplies faster."""


def pair_batch(bench: Bench) -> PairBatch:
    chosen, rejected, noise = (bench.latents(1, bench.sizes.large, seed) for seed in range(3))
    sigma = torch.tensor([0.5], device=bench.device)
    return PairBatch(chosen, rejected, bench.prompts([bench.sizes.text]), noise, sigma)


def free_gradients(policy: Policy) -> None:
    """Time the backward pass without a place for 38 GiB of gradients: each goes as it comes."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in policy.trainable_parameters():
        parameter.register_post_accumulate_grad_hook(drop)


def optimizer_for(policy: Policy, rule: str, release: bool = True) -> ReducedOptimizer:
    config = OptimizerConfig(
        type=rule,  # type: ignore[arg-type]
        weights="stochastic",
        lr=LR,
        gradient_release=release,
        max_grad_norm=0,
    )
    optimizer = make_optimizer(config, policy.trainable_parameters())
    assert isinstance(optimizer, ReducedOptimizer)
    if release:
        optimizer.release_gradients()
    return optimizer


def useful_flops(bench: Bench, side: int, text: int) -> float:
    """Three forward passes of one sample."""
    sizes = bench.sizes
    shape = ModelShape(sizes.layers, sizes.heads, sizes.head_dim, sizes.joint_dim)
    image: Tokens = shape.tokens(side, side, text)
    return 3.0 * sum(shape.forward_flops(image))


# Drawing ------------------------------------------------------------------------------------------


def roll(
    bench: Bench, policy: Policy, count: int, guidance: float = 1.0, as_trained: bool = False
) -> Trajectory:
    """Draw ``count`` latents of one prompt, two steps of them stochastic."""
    sizes = bench.sizes
    cond = bench.prompts([sizes.text]).select([0] * count)
    noise = bench.latents(count, sizes.small)
    step_noise = torch.stack([bench.latents(count, sizes.small, 10 + i) for i in range(WINDOW)])
    return sample_sde(
        policy.adapter,
        policy.transformer,
        cond,
        noise,
        sizes.steps,
        noise_level=NOISE_LEVEL,
        sde_steps=range(1, 1 + WINDOW),
        step_noise=step_noise,
        guidance_scale=guidance,
        negative=bench.prompts([4]).select([0] * count) if guidance > 1 else None,
        as_trained=as_trained,
    )


def stock_pipeline(policy: Policy) -> Any:
    """diffusers' own pipeline around the transformer; prompts come encoded, latents stay so."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler
    absent: dict[str, Any] = {"vae": None, "text_encoder": None, "tokenizer": None}
    pipeline = QwenImagePipeline(
        scheduler=scheduler.from_config(dict(policy.adapter.scheduler_config)),
        transformer=policy.transformer,  # type: ignore[arg-type]
        **absent,
    )
    pipeline.vae_scale_factor = policy.adapter.scale_factor
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_stock(bench: Bench, pipeline: Any, count: int, guidance: float = 1.0) -> Tensor:
    """Packed latents of ``count`` images of one prompt by the pipeline's loop."""
    sizes, dtype = bench.sizes, pipeline.transformer.dtype
    given: dict[str, Any] = {}
    if guidance > 1:
        negative = bench.prompts([4]).prompt_embeds.to(dtype)
        given["negative_prompt_embeds"] = negative.expand(count, -1, -1)
    embeds = bench.prompts([sizes.text]).prompt_embeds.to(dtype)
    return pipeline(
        prompt_embeds=embeds.expand(count, -1, -1),
        latents=pack(bench.latents(count, sizes.small)),
        num_inference_steps=sizes.steps,
        true_cfg_scale=guidance,
        height=sizes.small,
        width=sizes.small,
        output_type="latent",
        **given,
    ).images


# Correctness --------------------------------------------------------------------------------------


def pair_loss(bench: Bench) -> Callable[[Policy], Tensor]:
    return lambda policy: pair_errors(policy, pair_batch(bench)).sum()


def mixed_loss(bench: Bench, side: int) -> Callable[[Policy], Tensor]:
    """Of a batch of prompts of different lengths."""
    cond = bench.prompts(bench.sizes.mixed)
    x_t = bench.latents(len(cond), side)
    sigma = torch.full((len(cond),), 0.5, device=bench.device)
    return lambda policy: policy.velocity(x_t, sigma, cond).float().square().mean()


def check_variant(
    bench: Bench, blocks: BlockSettings, loss_of: Callable[[Policy], Tensor]
) -> dict[str, float]:
    """Loss and gradients of two layers of the real width, against stock blocks in float32.

    Returns:
        relative errors of the variant and of the stock blocks in bfloat16.

    Raises:
        ValueError: the variant errs by more than twice what bfloat16 itself does.
    """

    def compute(settings: BlockSettings, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        policy = bench.policy(settings, layers=2)
        torch.nn.Module.to(policy.transformer, dtype)
        loss = loss_of(policy)
        return loss.detach().double(), [*torch.autograd.grad(loss, policy.trainable_parameters())]

    exact_loss, exact = compute(STOCK_PLAIN, torch.float32)
    norm = sum(float(g.square().sum(dtype=torch.float64)) for g in exact)

    def errors(settings: BlockSettings) -> tuple[float, float]:
        loss, gradients = compute(settings, torch.bfloat16)
        square = 0.0
        for found, wanted in zip(gradients, exact, strict=True):
            square += float((found.float() - wanted).square().sum(dtype=torch.float64))
        bench.free()
        return float((loss - exact_loss).abs() / exact_loss), (square / norm) ** 0.5

    (loss_error, error), (stock_loss, stock) = errors(blocks), errors(STOCK_PLAIN)
    if not (error <= 2 * stock and loss_error <= 2 * stock_loss + 1e-3):
        raise ValueError(
            f"{blocks} errs by {error:.3g} in the gradients and {loss_error:.3g} in the loss; "
            f"stock bfloat16 by {stock:.3g} and {stock_loss:.3g}"
        )
    return {"loss": loss_error, "gradients": error, "stock_loss": stock_loss, "stock": stock}


STOCK_PLAIN = BlockSettings()


@torch.no_grad()
def check_drawing(bench: Bench, guidance: float) -> float:
    """Relative difference of what the pipeline's loop and ours draw, two layers in float32.

    Raises:
        ValueError: it is above 1e-3: the two loops do not do the same work.
    """
    policy = bench.policy(STOCK_PLAIN, layers=2)
    torch.nn.Module.to(policy.transformer, torch.float32)
    stock = draw_stock(bench, stock_pipeline(policy), 2, guidance)
    policy.adapter.install_blocks(policy.transformer, BlockSettings("joint"))
    negative = bench.prompts([4]).select([0, 0]) if guidance > 1 else None
    cond = bench.prompts([bench.sizes.text]).select([0, 0])
    noise = bench.latents(2, bench.sizes.small)
    steps = bench.sizes.steps
    ours = pack(sample(policy.adapter, policy.transformer, cond, noise, steps, guidance, negative))
    difference = float((ours - stock).norm() / stock.norm())
    if not difference <= 1e-3:
        raise ValueError(
            f"our loop draws latents that differ by {difference:.3g} from the pipeline's at "
            f"guidance {guidance:g}; at most 1e-3 is rounding"
        )
    return difference
