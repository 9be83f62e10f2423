"""The parts of `benchmarks.hopper`: each measures some bars, and keeps what it has when one of its
variants fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from align.mmdit.blocks import BlockSettings
from align.objectives.diffusion_dpo import pair_errors
from align.objectives.flow_grpo import FlowGRPO, TransitionBatch
from align.sampling import Trajectory
from benchmarks.hopper_bench import STOCK, Bench, Results
from benchmarks.hopper_work import (
    NOISE_LEVEL,
    OBJECTIVE,
    WINDOW,
    check_drawing,
    check_variant,
    draw_stock,
    free_gradients,
    mixed_loss,
    optimizer_for,
    pair_batch,
    pair_loss,
    roll,
    stock_pipeline,
    useful_flops,
)

__all__ = ["PARTS", "measure_ceilings"]


def measure_ceilings(bench: Bench, results: Results) -> None:
    """What the card gives: a square matrix product in bfloat16, and a copy."""
    side = bench.sizes.matmul
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = bench.seconds(lambda: a @ b, warm_up=5)
    source = torch.ones(bench.sizes.copy_bytes, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    copies = bench.seconds(lambda: target.copy_(source), warm_up=5)
    bench.ceilings = {
        "matmul_flops": 2 * side**3 / sorted(seconds)[len(seconds) // 2],
        "copy_bytes_per_s": 2 * bench.sizes.copy_bytes / sorted(copies)[len(copies) // 2],
    }
    results.fact("ceilings", bench.ceilings)


def measure_pair(bench: Bench, results: Results) -> None:
    """The forward and backward pass of one DPO pair."""
    results.fact("baseline", "diffusers eager, full checkpointing, live reference")
    batch = pair_batch(bench)
    found: dict[str, list[float]] = {}
    # What fits on the smallest card comes first.
    for name, blocks, is_live in (
        ("cached", bench.joint(), False),
        ("live", bench.joint(), True),
        ("baseline", STOCK, True),
    ):
        with results.attempt(name):
            results.fact(f"errors.{name}", check_variant(bench, blocks, pair_loss(bench)))
            policy = bench.policy(blocks, "copy" if is_live else "none")
            free_gradients(policy)
            own = batch
            if not is_live:
                with torch.no_grad():
                    own = replace(batch, reference_errors=pair_errors(policy, batch))
            found[name] = bench.seconds(
                lambda p=policy, o=own: OBJECTIVE.loss(p, o).loss.backward()
            )
            results.fact(f"seconds.{name}", found[name])
            results.fact(f"peak_bytes.{name}", bench.peak_bytes())
        policy = None
        bench.free()
    if "cached" in found:
        flops = 2 * useful_flops(bench, bench.sizes.large, bench.sizes.text)
        ceiling = bench.ceilings["matmul_flops"]
        results.bar(
            "useful_rate", useful_flops=flops, seconds=found["cached"], matmul_flops=ceiling
        )
    for name, bar in (("cached", "dpo_pair_speedup"), ("live", "dpo_pair_speedup_live_ref")):
        compare(results, bar, found.get("baseline"), found.get(name))
    policy = bench.policy(bench.joint("none"))
    with torch.no_grad():
        seconds = bench.seconds(lambda: pair_errors(policy, batch))
    results.fact("reference_cache_seconds_a_pair_and_draw", seconds)


def compare(
    results: Results, bar: str, baseline: list[float] | None, ours: list[float] | None
) -> None:
    """The bar of a ratio, where both were measured."""
    if baseline and ours:
        results.bar(bar, baseline_ms=[1e3 * x for x in baseline], ms=[1e3 * x for x in ours])


def measure_memory(bench: Bench, results: Results) -> None:
    """Peaks of full-parameter DPO with a real optimizer step, and that step's rate."""
    batch = pair_batch(bench)
    for name, rule, recompute in (
        ("adafactor", "adafactor", "full"),
        ("full_recompute", "adam8bit", "full"),
        ("no_recompute", "adam8bit", "selective"),
    ):
        with results.attempt(name):
            blocks = bench.joint(recompute)
            results.fact(f"errors.{name}", check_variant(bench, blocks, pair_loss(bench)))
            policy = bench.policy(blocks)
            with torch.no_grad():
                own = replace(batch, reference_errors=pair_errors(policy, batch))
            optimizer = optimizer_for(policy, rule)
            seconds = bench.seconds(lambda p=policy, o=own: OBJECTIVE.loss(p, o).loss.backward())
            optimizer.released_norm()
            output = OBJECTIVE.loss(policy, own)
            output.loss.backward()
            results.fact(f"seconds.{name}", seconds)
            # Not zeros: the steps before have not saturated the loss.
            results.fact(f"gradient_norm.{name}", optimizer.released_norm())
            results.fact(f"margin.{name}", float(output.metrics["rewards/margins"]))
            if bench.is_cuda:
                results.bar(f"peak_gib.{name}", peak_bytes=bench.peak_bytes())
            if name == "no_recompute":
                results.bar(
                    "useful_rate_with_optimizer",
                    useful_flops=2 * useful_flops(bench, bench.sizes.large, bench.sizes.text),
                    seconds=seconds,
                    matmul_flops=bench.ceilings["matmul_flops"],
                )
        policy = own = optimizer = output = None
        bench.free()


def measure_rollout(bench: Bench, results: Results) -> None:
    """Drawing a group: the transformer's loop, without encoding and decoding."""
    group, found = bench.sizes.group, {}
    results.fact("baseline", "QwenImagePipeline of diffusers, eager, encoded prompts, to latents")
    results.fact("latents_differ", {f"{g:g}": check_drawing(bench, g) for g in (1.0, 4.0)})
    bench.free()
    results.fact("errors", check_variant(bench, bench.joint("none"), pair_loss(bench)))
    ours, cases = ("group", group, 1.0), (("group", group, 1.0), ("one", 1, 1.0))
    with results.attempt("joint"):
        policy = bench.policy(bench.joint("none"))
        for name, count, guidance in (*cases, ("guided", group, 4.0)):
            torch._dynamo.reset()  # a graph for these very sizes
            found["joint", name] = bench.seconds(
                lambda p=policy, n=count, g=guidance: roll(bench, p, n, g), warm_up=1
            )
            results.fact(f"seconds.joint.{name}", found["joint", name])
        results.bar("rollout_ips.no_cfg", images=group, seconds=found["joint", ours[0]])
        results.bar("rollout_ips.cfg", images=group, seconds=found["joint", "guided"])
    policy = None
    bench.free()
    with results.attempt("stock"):
        pipeline = stock_pipeline(bench.policy(BlockSettings()))
        for name, count, guidance in cases:
            found["stock", name] = bench.seconds(
                lambda p=pipeline, n=count, g=guidance: draw_stock(bench, p, n, g), warm_up=1
            )
            results.fact(f"seconds.stock.{name}", found["stock", name])
    pipeline = None
    for bar, name in (("same_batch", "group"), ("batch1", "one")):
        bar = f"rollout_vs_diffusers.{bar}"
        compare(results, bar, found.get(("stock", name)), found.get(("joint", name)))


def measure_grpo(bench: Bench, results: Results) -> None:
    """A rollout and one optimizer step on its window, in batches of the rollout's own shape."""
    group, blocks = bench.sizes.group, bench.joint("full")
    results.fact("errors", check_variant(bench, blocks, pair_loss(bench)))
    policy = bench.policy(blocks)
    optimizer = optimizer_for(policy, "adam8bit", release=False)
    objective = FlowGRPO(NOISE_LEVEL)
    advantages = torch.linspace(-1, 1, group, device=bench.device)
    cond = bench.prompts([bench.sizes.text]).select([0] * group)

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
        for batch in batches(roll(bench, policy, group, as_trained=True)):
            output = objective.loss(policy, batch)
            (output.loss / WINDOW).backward()
        optimizer.step()
        optimizer.zero_grad()

    gaps = []
    for batch in batches(roll(bench, policy, group, as_trained=True)):
        with torch.enable_grad():
            again = objective.log_prob(policy, batch).detach()
        gaps.append(float((again - batch.old_log_prob).abs().max()))
    results.bar("logprob_gap", max_abs_difference=max(gaps))
    results.bar("grpo_ips", images=group, seconds=bench.seconds(step, warm_up=1))
    results.fact("peak_bytes", bench.peak_bytes())


def measure_mixed(bench: Bench, results: Results) -> None:
    """Four prompts of different lengths: unpadded, against padded with a mask; both selective."""
    results.fact("lengths", bench.sizes.mixed)
    variants = {
        "joint": bench.joint(),
        "stock": BlockSettings(recompute="selective"),
    }
    for bar, side in (("512", bench.sizes.small), ("1024", bench.sizes.large)):
        found = {}
        for name, blocks in variants.items():
            with results.attempt(f"{name}.{bar}"):
                loss_of = mixed_loss(bench, side)
                results.fact(f"errors.{name}.{bar}", check_variant(bench, blocks, loss_of))
                policy = bench.policy(blocks)
                free_gradients(policy)
                found[name] = bench.seconds(lambda p=policy, f=loss_of: f(p).backward())
                results.fact(f"seconds.{name}.{bar}", found[name])
            policy = None
            bench.free()
        compare(results, f"mixed_length_speedup.{bar}", found.get("stock"), found.get("joint"))


def measure_kernels(bench: Bench, results: Results) -> None:
    """Bytes a second of the fused kernels, each of them read and written once, and their twins'."""

    sizes = bench.sizes
    # A whole group, so that a launch is nothing beside its work, and no cache holds it.
    batch, tokens, width = sizes.group, (sizes.large // 16) ** 2, sizes.heads * sizes.head_dim
    like: dict[str, Any] = {"device": bench.device, "dtype": torch.bfloat16}
    x, update = (torch.randn(batch, tokens, width, **like) for _ in range(2))
    gate, shift, scale = (torch.randn(batch, width, **like) for _ in range(3))
    heads = (sizes.heads, sizes.head_dim)
    text = torch.randn(batch, sizes.text, *heads, **like)
    image = torch.randn(batch, tokens, *heads, **like)
    weight = torch.randn(sizes.head_dim, **like)
    table = torch.rand(tokens + sizes.text, sizes.head_dim // 2, 2, device=bench.device)
    tables = (table[: sizes.text], table[sizes.text :])
    bytes_moved = {
        "add_norm_modulate": 4 * x.nbytes,
        "qk_norm_rope": 2 * (text.nbytes + image.nbytes) + table.nbytes,
    }
    arguments = {
        "add_norm_modulate": (x, update, gate, shift, scale, 1e-6),
        "qk_norm_rope": (text, image, weight, weight, *tables, 1e-6),
    }
    seconds = _time_kernels(bench, results, arguments)
    results.fact("twins", "compiled" if bench.compile else "eager")
    results.fact("bytes", bytes_moved)
    pairs = zip(*(seconds[f"{name}.fused"] for name in arguments), strict=True)
    results.bar(
        "kernel_bandwidth_share",
        bytes=sum(bytes_moved.values()),
        seconds=[sum(pair) for pair in pairs],
        copy_bytes_per_s=bench.ceilings["copy_bytes_per_s"],
    )
    del x, update, text, image, arguments
    bench.free()
    with results.attempt("fused pair"):
        measure_fused_pair(bench, results)


def _time_kernels(
    bench: Bench, results: Results, arguments: Mapping[str, tuple[Any, ...]]
) -> dict[str, list[float]]:
    """Seconds of each kernel and of its twin, by ``name.kind``; raises where they differ."""
    from align.mmdit.kernels import load_kernels

    seconds: dict[str, list[float]] = {}
    for name, given in arguments.items():
        outputs: dict[str, Tensor | tuple[Tensor, ...]] = {}
        for kind in ("fused", "joint"):
            function = getattr(load_kernels(kind), name)
            if kind == "joint" and bench.compile:
                function = torch.compile(function)
            outputs[kind] = function(*given)
            key = f"{name}.{kind}"
            seconds[key] = bench.seconds(lambda f=function, g=given: f(*g))
            results.fact(f"seconds.{key}", seconds[key])
        require_equal(name, outputs["fused"], outputs["joint"])
    return seconds


def require_equal(name: str, fused: Any, twin: Any) -> None:
    """Raises `ValueError` where a kernel differs from its twin by more than bfloat16 rounds."""
    for found, expected in zip(tree_leaves(fused), tree_leaves(twin), strict=True):
        difference = float((found.float() - expected.float()).norm() / expected.float().norm())
        if not difference <= 0.01:
            raise ValueError(f"the fused {name} differs from its twin by {difference:.3g}")


def measure_fused_pair(bench: Bench, results: Results) -> None:
    """The DPO pair with blocks that call the kernels, to set beside those that are compiled."""
    blocks, batch = BlockSettings("fused", "selective"), pair_batch(bench)
    results.fact("errors.fused", check_variant(bench, blocks, pair_loss(bench)))
    policy = bench.policy(blocks)
    free_gradients(policy)
    with torch.no_grad():
        own = replace(batch, reference_errors=pair_errors(policy, batch))
    seconds = bench.seconds(lambda: OBJECTIVE.loss(policy, own).loss.backward())
    results.fact("seconds.pair.fused", seconds)


PARTS: dict[str, Callable[[Bench, Results], None]] = {
    "pair": measure_pair,
    "memory": measure_memory,
    "rollout": measure_rollout,
    "grpo": measure_grpo,
    "mixed": measure_mixed,
    "kernels": measure_kernels,
}
