"""``winsome plan``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.commands import add_config_arguments
from align.config import DPOConfig, GRPOConfig, SFTConfig, load_config

if TYPE_CHECKING:
    from align.plan import Plan

HELP = "Memory, step time, GPU-hours and money of a run before it starts; refuses what cannot fit."
EXAMPLE = "winsome plan configs/dpo/qwen_image_full.yaml --gpu h800-80gb --count 8"

KINDS: dict[str, type[SFTConfig | DPOConfig | GRPOConfig]] = {
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "grpo": GRPOConfig,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "micro_batch_size=1")
    parser.add_argument("--gpu", required=True, help="a card's name; a wrong one lists them")
    parser.add_argument("--count", type=int, default=1, help="GPUs (default: 1)")
    parser.add_argument(
        "--sharding",
        choices=("none", "zero2", "zero3", "fsdp2", "hsdp"),
        help="default: zero3 for all parameters on several GPUs",
    )
    parser.add_argument("--kind", choices=tuple(KINDS), help="default: told from the file")
    parser.add_argument(
        "--text-tokens", type=int, default=512, help="of a prompt's words (default: 512)"
    )
    parser.add_argument(
        "--sources",
        type=int,
        help="square pictures that each prompt edits (default: 1 for a model that edits, else 0)",
    )
    parser.add_argument("--size", type=int, help="side in pixels where the file names none")
    parser.add_argument("--price", type=float, help="of one GPU for one hour, in any currency")
    parser.add_argument("--curve", action="store_true", help="also 2, 4 ... times the GPUs, to 128")


def run(args: argparse.Namespace) -> int:
    from align.plan import GPUS, make_plan, scaling_curve, workload_of

    if args.gpu not in GPUS:
        raise ValueError(f"unknown gpu {args.gpu!r} (choose from {', '.join(GPUS)})")
    for name in ("count", "text_tokens", "size", "price"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name.replace('_', '-')} must be above 0, got {value}")
    if args.sources is not None and args.sources < 0:
        raise ValueError(f"sources must be 0 or more, got {args.sources}")
    gpu, size = GPUS[args.gpu], None if args.size is None else (args.size, args.size)
    kind = KINDS[args.kind or kind_of(args.config)]

    def plan_with(
        overrides: Sequence[str] = (), count: int = args.count, sharding: Any = args.sharding
    ) -> Plan:
        config = load_config(kind, args.config, [*args.overrides, *overrides])
        workload = workload_of(config, args.text_tokens, size, args.sources)
        return make_plan(workload, gpu, count, sharding)

    plan = plan_with()
    print(describe(plan, args.gpu, args.price))
    if not plan.fits:
        print(refusal(plan, plan_with))
        return 1
    if args.curve:
        print(curve(list(scaling_curve(plan.workload, gpu, args.count, args.sharding))))
    return 0


def kind_of(path: Path) -> str:
    """The kind of run that a file describes, by the settings that only this kind has."""
    from annotate.settings import find_config, read_settings

    settings = read_settings(find_config(path))
    data = settings.get("data")
    if settings.keys() & {"prompts", "rollout", "reward", "group_size"}:
        return "grpo"
    if settings.keys() & {"objective", "reference"} or (isinstance(data, dict) and "type" in data):
        return "dpo"
    return "sft"


def describe(plan: Plan, gpu: str, price: float | None) -> str:
    """The plan in lines of text, with what it assumes."""
    from align.plan import ASSUMPTIONS, GIB

    work = plan.workload
    tokens = work.tokens
    lines = [
        f"{work.kind} of {work.config.model} on {plan.count} x {gpu}, sharding {plan.sharding}",
        f"  {work.shape.parameters:,} parameters, {work.trained:,} trained",
        f"  {tokens.image} image and {tokens.text} text tokens a sample"
        + (f", sources ({work.sources} a prompt) among them" if work.sources else "")
        + f", {sum(work.shape.forward_flops(tokens)) / 1e12:.3g} TFLOP forward",
        "memory of one GPU, GiB:",
        *(f"  {size / GIB:8.2f}  {name}" for name, size in plan.memory.items()),
        f"  {plan.peak_bytes / GIB:8.2f}  in all, of {plan.gpu.gib:g}",
        f"  {plan.host_bytes / GIB:8.2f}  of host memory a machine, while its processes load",
        "one optimizer step:",
        f"  {plan.step_seconds:.4g} s: computing {plan.compute_seconds:.4g}, collectives "
        f"{plan.communication_seconds:.4g}, optimizer {plan.optimizer_seconds:.4g}, drawing "
        f"{plan.drawing_seconds:.4g}",
        f"  {plan.tokens_per_second:,.0f} trained tokens/s, MFU {plan.mfu:.1%}",
        f"{work.config.max_steps} steps: {plan.gpu_hours:,.4g} GPU-hours"
        + (f", {plan.gpu_hours * price:,.2f} at {price:g} an hour" if price is not None else ""),
        "predicted, not measured. Assumed:",
        *(f"  - {text}" for text in ASSUMPTIONS),
    ]
    return "\n".join(lines)


def curve(plans: Sequence[Plan]) -> str:
    """Weak scaling: as many samples a GPU everywhere."""
    first = plans[0]
    lines = ["scaling, as many samples a GPU:", "  GPUs   s/step  tokens/s  efficiency"]
    for plan in plans:
        share = first.step_seconds / plan.step_seconds
        lines.append(
            f"  {plan.count:4d} {plan.step_seconds:8.4g} {plan.tokens_per_second:9.4g} {share:9.1%}"
        )
    if any(first.step_seconds > plan.step_seconds for plan in plans):
        lines.append("  above 100 %: more GPUs share the optimizer's own work")
    return "\n".join(lines)


_RELEASE = ("optimizer.gradient_release=true", "optimizer.max_grad_norm=0")
_JOINT = ("blocks=joint", "mixed_precision=no", "dtype=bfloat16")
_LORA = (
    "optimizer.weights=float32",
    "dtype=bfloat16",
    "gradient_checkpointing=true",
    "micro_batch_size=1",
)
RUNGS: tuple[tuple[str, ...], ...] = (
    ("gradient_checkpointing=selective",),
    ("gradient_checkpointing=true",),
    ("gradient_checkpointing=true", "micro_batch_size=1"),
    *(
        (f"optimizer.type={rule}", f"optimizer.weights={form}", *release, *_JOINT, *saving)
        for rule, form, release in (
            ("adam8bit", "split", ()),
            ("adam8bit", "stochastic", ()),
            ("adam8bit", "split", _RELEASE),
            ("adam8bit", "stochastic", _RELEASE),
            ("adafactor", "stochastic", ()),
            ("adafactor", "split", _RELEASE),
            ("adafactor", "stochastic", _RELEASE),
        )
        for saving in (
            ("gradient_checkpointing=selective", "micro_batch_size=1"),
            ("gradient_checkpointing=true", "micro_batch_size=1"),
        )
    ),
    *(
        (f"lora.rank={rank}", *base, *_LORA)
        for rank, base in ((64, ()), (64, ("quantize=fp8",)), (16, ("quantize=nf4",)))
    ),
)
"""Overrides from the least change to the greatest."""
REFERENCES = ((), ("reference.mode=streamed",), ("reference.mode=cached",))
"""Instead of one in memory; each is tried with a rung before the next rung."""


def refusal(plan: Plan, plan_with: Callable[..., Plan]) -> str:
    """Why the plan cannot run, and the nearest that can.

    Args:
        plan_with: the plan under other ``overrides``, ``count`` or ``sharding``; `ValueError` where
            they do not go together.
    """
    from align.plan import GIB

    found = []
    for rung in _rungs(plan):
        if _fits(plan_with, overrides=rung):
            found.append("set " + " ".join(rung))
            break
    if plan.count > 1:
        others = (kind for kind in ("zero2", "zero3", "fsdp2") if kind != plan.sharding)
        other = next((kind for kind in others if _fits(plan_with, sharding=kind)), None)
        found += [f"launch with --sharding {other}"] if other else []
    counts = (n for n in (2, 4, 8, 16, 32, 64, 128) if n > plan.count)
    enough = next((n for n in counts if _fits(plan_with, count=n)), None)
    found += [f"take --count {enough}"] if enough else []
    need = f"does not fit: {plan.peak_bytes / GIB:.1f} GiB of {plan.gpu.gib:g}"
    if not found:
        return f"{need}; no settings and no number of this card that are known do"
    return "\n".join([need, *(f"next that fits: {text}" for text in found)])


def _rungs(plan: Plan) -> Iterator[tuple[str, ...]]:
    references = REFERENCES if plan.workload.reference == "live" else ((),)
    for rung in ((), *RUNGS):
        # Gradient release knows no accumulation.
        one = ("batch_size=1",) if "release=true" in str(rung) else ()
        if plan.workload.kind == "grpo":
            one = ()
        yield from ((*rung, *reference, *one) for reference in references)


def _fits(plan_with: Callable[..., Plan], **changes: Any) -> bool:
    try:
        return plan_with(**changes).fits
    except ValueError:
        return False
