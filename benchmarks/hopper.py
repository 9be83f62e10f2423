"""Full-depth Qwen-Image of random weights on one Hopper card, beside diffusers as commonly run.

    python -m benchmarks.hopper                       all parts, none repeated past 8 minutes
    python -m benchmarks.hopper pair memory           some of them
    python -m benchmarks.hopper --toy --device cpu    a CPU, TRITON_INTERPRET=1; means nothing

Needs torch, diffusers, peft, accelerate and this package; no hub and no data. A part first shows
that its variants compute what float32 does, then times them, and writes ``OUT/PART.json`` after
every figure. ``python -m benchmarks.record BAR OUT/BAR.json --command "..."`` makes a figure a line
of the results. A part that fails says why in its file, and the others run.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.ledger import ModelShape, Tokens
from align.mmdit.blocks import BlockSettings
from align.objectives.diffusion_dpo import DiffusionDPO, PairBatch, pair_errors
from align.objectives.flow_grpo import FlowGRPO, TransitionBatch
from align.optim import ReducedOptimizer, make_optimizer
from align.optim_config import OptimizerConfig
from align.policy import Policy
from align.sampling import Trajectory, sample_sde
from benchmarks.hopper_bench import STOCK, TOY, Bench, Results, Sizes, run_part

NOISE_LEVEL, WINDOW = 0.7, 2
OBJECTIVE = DiffusionDPO(beta=2000.0)


# Work ---------------------------------------------------------------------------------------------


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
        lr=1e-6,
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


def check_variant(bench: Bench, blocks: BlockSettings) -> dict[str, float]:
    """Loss and gradients of two layers of the real width, against stock blocks in float32.

    Returns:
        relative errors of the variant and of the stock blocks in bfloat16.

    Raises:
        ValueError: the variant errs by more than twice what bfloat16 itself does.
    """
    found = {}
    for name, settings, dtype in (
        ("exact", BlockSettings(), torch.float32),
        ("stock", BlockSettings(), torch.bfloat16),
        ("variant", blocks, torch.bfloat16),
    ):
        policy = bench.policy(settings, layers=2, dtype=torch.bfloat16)
        torch.nn.Module.to(policy.transformer, dtype)
        loss = pair_errors(policy, pair_batch(bench)).sum()
        parameters = policy.trainable_parameters()
        gradients = torch.autograd.grad(loss, parameters)
        found[name] = (loss.detach().double(), [g.double().cpu() for g in gradients])
        del policy, loss, parameters, gradients
        bench.free()

    def errors(name: str) -> tuple[float, float]:
        (loss, gradients), (exact_loss, exact) = found[name], found["exact"]
        square = sum(float((a - b).square().sum()) for a, b in zip(gradients, exact, strict=True))
        norm = sum(float(b.square().sum()) for b in exact)
        return float((loss - exact_loss).abs() / exact_loss), (square / norm) ** 0.5

    (loss_error, error), (stock_loss, stock) = errors("variant"), errors("stock")
    if error > 2 * stock or loss_error > 2 * stock_loss + 1e-3:
        raise ValueError(
            f"{blocks} errs by {error:.3g} in the gradients and {loss_error:.3g} in the loss; "
            f"stock bfloat16 by {stock:.3g} and {stock_loss:.3g}"
        )
    return {"loss": loss_error, "gradients": error, "stock_loss": stock_loss, "stock": stock}


# Parts --------------------------------------------------------------------------------------------


def part_ceilings(bench: Bench, results: Results) -> None:
    """What the card gives: a square matrix product in bfloat16, and a copy."""
    side = bench.sizes.matmul
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = bench.seconds(lambda: a @ b, warm_up=5)
    source = torch.empty(bench.sizes.copy_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    copies = bench.seconds(lambda: target.copy_(source), warm_up=5)
    bench.ceilings = {
        "matmul_flops": 2 * side**3 / sorted(seconds)[len(seconds) // 2],
        "copy_bytes_per_s": 2 * bench.sizes.copy_bytes / sorted(copies)[len(copies) // 2],
    }
    results.fact("ceilings", bench.ceilings)


def part_pair(bench: Bench, results: Results) -> None:
    """The forward and backward pass of one DPO pair."""
    results.fact("errors", check_variant(bench, bench.joint()))
    batch = pair_batch(bench)

    def measure(blocks: BlockSettings, is_live: bool) -> list[float]:
        policy = bench.policy(blocks, "copy" if is_live else "none")
        free_gradients(policy)
        own = batch
        if not is_live:
            with torch.no_grad():
                own = replace(batch, reference_errors=pair_errors(policy, batch))
        seconds = bench.seconds(lambda: OBJECTIVE.loss(policy, own).loss.backward())
        results.fact(f"peak_bytes.{blocks.blocks}.{'live' if is_live else 'cached'}",
                     bench.peak_bytes())  # fmt: skip
        return seconds

    baseline = [1e3 * each for each in measure(STOCK, True)]
    bench.free()
    results.fact("baseline", "diffusers eager, full checkpointing, live reference")
    cached = measure(bench.joint(), False)
    bench.free()
    results.bar("dpo_pair_speedup", baseline_ms=baseline, ms=[1e3 * each for each in cached])
    flops = 2 * useful_flops(bench, bench.sizes.large, bench.sizes.text)
    ceiling = bench.ceilings["matmul_flops"]
    results.bar("useful_rate", useful_flops=flops, seconds=cached, matmul_flops=ceiling)
    live = measure(bench.joint(), True)
    bench.free()
    results.bar("dpo_pair_speedup_live_ref", baseline_ms=baseline, ms=[1e3 * x for x in live])
    policy = bench.policy(bench.joint("none"))
    with torch.no_grad():
        seconds = bench.seconds(lambda: pair_errors(policy, batch))
    results.fact("reference_cache_seconds_a_pair_and_draw", seconds)


def part_memory(bench: Bench, results: Results) -> None:
    """Peaks of full-parameter DPO with a real optimizer step, and that step's rate."""
    batch = pair_batch(bench)
    for name, rule, recompute in (
        ("no_recompute", "adam8bit", "selective"),
        ("full_recompute", "adam8bit", "full"),
        ("adafactor", "adafactor", "full"),
    ):
        policy = bench.policy(bench.joint(recompute))
        with torch.no_grad():
            own = replace(batch, reference_errors=pair_errors(policy, batch))
        optimizer = optimizer_for(policy, rule)

        def step(policy: Policy = policy, own: PairBatch = own) -> None:
            OBJECTIVE.loss(policy, own).loss.backward()

        seconds = bench.seconds(step)
        results.fact(f"gradient_norm.{name}", optimizer.released_norm())
        if bench.is_cuda:
            results.bar(f"peak_gib.{name}", peak_bytes=bench.peak_bytes())
        if name == "no_recompute":
            flops = 2 * useful_flops(bench, bench.sizes.large, bench.sizes.text)
            results.bar(
                "useful_rate_with_optimizer",
                useful_flops=flops,
                seconds=seconds,
                matmul_flops=bench.ceilings["matmul_flops"],
            )
        del policy, optimizer, own, step
        bench.free()


def roll(bench: Bench, policy: Policy, count: int, guidance: float) -> Trajectory:
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
    )


def part_rollout(bench: Bench, results: Results) -> None:
    """Drawing a group: the transformer's loop, without encoding and decoding."""
    group, milliseconds = bench.sizes.group, {}
    for name, blocks in (("stock", BlockSettings()), ("joint", bench.joint("none"))):
        policy = bench.policy(blocks)
        for count in (group, 1):
            milliseconds[name, count] = bench.milliseconds(
                lambda n=count, p=policy: roll(bench, p, n, 1.0), warm_up=1
            )
        if name == "joint":
            seconds = [each / 1e3 for each in milliseconds[name, group]]
            results.bar("rollout_ips.no_cfg", images=group, seconds=seconds)
            guided = bench.seconds(lambda p=policy: roll(bench, p, group, 4.0), warm_up=1)
            results.bar("rollout_ips.cfg", images=group, seconds=guided)
        del policy
        bench.free()
    for name, count in (("same_batch", group), ("batch1", 1)):
        results.bar(
            f"rollout_vs_diffusers.{name}",
            baseline_ms=milliseconds["stock", count],
            ms=milliseconds["joint", count],
        )


def part_grpo(bench: Bench, results: Results) -> None:
    """A rollout and one optimizer step on its window, in batches of the rollout's own shape."""
    group = bench.sizes.group
    policy = bench.policy(bench.joint("full"))
    optimizer = optimizer_for(policy, "adam8bit", release=False)
    objective = FlowGRPO(NOISE_LEVEL)
    advantages = torch.linspace(-1, 1, group, device=bench.device)
    cond = bench.prompts([bench.sizes.text]).select([0] * group)
    gaps: list[float] = []

    def batches(drawn: Trajectory) -> list[TransitionBatch]:
        return [
            TransitionBatch(
                drawn.x_t[w],
                drawn.x_next[w],
                drawn.sigma[w].expand(group),
                drawn.sigma_next[w].expand(group),
                cond,
                drawn.log_prob[w],
                advantages,
            )
            for w in range(WINDOW)
        ]

    def step() -> None:
        for batch in batches(roll(bench, policy, group, 1.0)):
            output = objective.loss(policy, batch)
            (output.loss / WINDOW).backward()
        optimizer.step()
        optimizer.zero_grad()

    drawn = roll(bench, policy, group, 1.0)
    for batch in batches(drawn):
        with torch.enable_grad():
            again = objective.log_prob(policy, batch)
        gaps.append(float((again.detach() - batch.old_log_prob).abs().max()))
    results.bar("logprob_gap", max_abs_difference=max(gaps))
    results.bar("grpo_ips", images=group, seconds=bench.seconds(step, warm_up=1))
    results.fact("peak_bytes", bench.peak_bytes())


def part_mixed(bench: Bench, results: Results) -> None:
    """Four prompts of different lengths: unpadded, against padded with a mask; both selective."""
    lengths = bench.sizes.mixed
    cond = bench.prompts(lengths)
    for bar, side in (("1024", bench.sizes.large), ("512", bench.sizes.small)):
        x_t, milliseconds = bench.latents(len(lengths), side), []
        sigma = torch.full((len(lengths),), 0.5, device=bench.device)
        for blocks in (
            BlockSettings(recompute="selective"),
            BlockSettings("joint", "selective"),
        ):
            policy = bench.policy(blocks)
            free_gradients(policy)
            milliseconds.append(
                bench.milliseconds(
                    lambda p=policy, x=x_t, s=sigma: (
                        p.velocity(x, s, cond).float().square().mean().backward()
                    )
                )
            )
            del policy
            bench.free()
        baseline, ours = milliseconds
        results.bar(f"mixed_length_speedup.{bar}", baseline_ms=baseline, ms=ours)
    results.fact("lengths", lengths)


def part_kernels(bench: Bench, results: Results) -> None:
    """Bytes a second of the fused kernels, each of them read and written once, and their twins'."""
    from align.mmdit.kernels import load_kernels

    sizes = bench.sizes
    tokens, width = (sizes.large // 16) ** 2, sizes.heads * sizes.head_dim
    like: dict[str, Any] = {"device": bench.device, "dtype": torch.bfloat16}
    x, update = (torch.randn(1, tokens, width, **like) for _ in range(2))
    gate, shift, scale = (torch.randn(1, width, **like) for _ in range(3))
    heads = (1, tokens, sizes.heads, sizes.head_dim)
    text, image = torch.randn(1, sizes.text, *heads[2:], **like), torch.randn(heads, **like)
    weight = torch.randn(sizes.head_dim, **like)
    table = torch.rand(tokens + sizes.text, sizes.head_dim // 2, 2, device=bench.device)
    seconds: dict[str, list[float]] = {}
    outputs = {}
    for name in ("fused", "joint"):
        kernels = load_kernels(name)  # type: ignore[arg-type]
        functions = [kernels.add_norm_modulate, kernels.qk_norm_rope]
        if name == "joint" and bench.compile:
            functions = [torch.compile(f) for f in functions]
        norm, rope = functions

        def both(norm: Any = norm, rope: Any = rope) -> tuple[Tensor, ...]:
            joint = rope(
                text, image, weight, weight, table[: sizes.text], table[sizes.text :], 1e-6
            )
            return (*norm(x, update, gate, shift, scale, 1e-6), joint)

        outputs[name] = both()
        seconds[name] = bench.seconds(both)
    for found, twin in zip(outputs["fused"], outputs["joint"], strict=True):
        torch.testing.assert_close(found, twin, atol=0.06, rtol=0.02)  # two roundings of bfloat16
    moved = 4 * x.nbytes + 2 * (text.nbytes + image.nbytes) + table.nbytes
    ceiling = bench.ceilings["copy_bytes_per_s"]
    results.bar(
        "kernel_bandwidth_share", bytes=moved, seconds=seconds["fused"], copy_bytes_per_s=ceiling
    )
    results.fact("twin_seconds", {"compiled": bench.compile, "seconds": seconds["joint"]})


PARTS: dict[str, Callable[[Bench, Results], None]] = {
    "pair": part_pair,
    "memory": part_memory,
    "rollout": part_rollout,
    "grpo": part_grpo,
    "mixed": part_mixed,
    "kernels": part_kernels,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure full-depth Qwen-Image on one card.")
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/hopper"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--toy", action="store_true", help="a toy's size, to try the program")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args()
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"unknown part {', '.join(unknown)} (choose from {', '.join(PARTS)})")
    device = torch.device(args.device)
    bench = Bench(device, TOY if args.toy else Sizes(), args.repeats, args.compile)
    about = {
        "device": torch.cuda.get_device_name(device) if bench.is_cuda else platform.machine(),
        "torch": torch.__version__,
        "sizes": vars(bench.sizes),
        "compile": args.compile,
    }
    parts = {"ceilings": part_ceilings} | {name: PARTS[name] for name in args.part or PARTS}
    failed: list[str] = []
    for name, part in parts.items():
        print(f"{name} ...", flush=True)
        results = Results(args.out, name, about)
        run_part(part, bench, results)
        print(f"{name}: {results.content['bars'] or results.content['facts']}", flush=True)
        failed += [f"{name}: {each}" for each in [results.content.get("failed")] if each]
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
