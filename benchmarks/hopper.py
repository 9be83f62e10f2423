"""Full-depth Qwen-Image of random weights on one Hopper card, beside diffusers as commonly run.

    python -m benchmarks.hopper                        all parts, each in a process of its own
    python -m benchmarks.hopper pair memory            some of them
    python -m benchmarks.hopper pair --layers 20       less depth, where a card is small
    python -m benchmarks.hopper --toy --device cpu     a CPU, TRITON_INTERPRET=1; means nothing

Needs torch, diffusers, peft, accelerate and this package; no hub and no data. A part measures the
card's ceilings, shows that its variants compute what float32 does, times them, and writes
``OUT/PART.json`` after every figure. It ends within eight minutes; what fails, or is late, is
written down, and the rest runs. ``python -m benchmarks.record BAR OUT/BAR.json --command "..."``
makes a figure a line of the results.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.hopper_bench import PART_SECONDS, TOY, Bench, Results, Sizes, run_part
from benchmarks.hopper_parts import PARTS, measure_ceilings
from benchmarks.record import versions


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measure full-depth Qwen-Image on one card.")
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/hopper"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, help="blocks of the model (default: all 60)")
    parser.add_argument("--toy", action="store_true", help="a toy's size, to try the program")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--here", action="store_true", help="in this process, as it stands")
    args = parser.parse_args(arguments)
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"unknown part {', '.join(unknown)} (choose from {', '.join(PARTS)})")
    parts = args.part or list(PARTS)
    run = run_here if args.here else run_apart
    if failed := [line for part in parts for line in run(part, args)]:
        raise SystemExit("\n".join(failed))


def run_here(name: str, args: argparse.Namespace) -> list[str]:
    """Measure one part in this process; what failed."""
    device = torch.device(args.device)
    sizes = TOY if args.toy else Sizes()
    if args.layers:
        sizes = replace(sizes, layers=args.layers)
    bench = Bench(device, sizes, args.repeats, args.compile)
    about = {
        "device": platform.machine(),
        "versions": versions(),
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "sizes": vars(sizes),
        "compile": args.compile,
    }
    if bench.is_cuda:
        if device.index is not None:  # events are those of the current device
            torch.cuda.set_device(device)
        about |= {
            "device": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    results = Results(args.out, name, about)
    print(f"{name} ...", flush=True)
    measure_ceilings(bench, results)
    run_part(PARTS[name], bench, results)
    print(f"{name}: {results.content['bars'] or results.content['facts']}", flush=True)
    return [f"{name}: {what}: {why}" for what, why in results.content["failed"].items()]


def run_apart(name: str, args: argparse.Namespace) -> list[str]:
    """Measure one part in a process of its own: a card that it leaves in a bad state, or with a
    fragmented memory, is not what the next one finds."""
    command = [sys.executable, "-m", "benchmarks.hopper", name, "--here", "--out", str(args.out)]
    command += ["--device", args.device, "--repeats", str(args.repeats)]
    command += ["--layers", str(args.layers)] if args.layers else []
    command += ["--toy"] if args.toy else []
    command += [] if args.compile else ["--no-compile"]
    # A full card has no room for a fragmented pool.
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} | os.environ
    # Ended from outside, it must not leave a part at work beside whatever is measured next.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    status: int | str
    try:
        status = subprocess.run(
            command, env=environment, check=False, timeout=PART_SECONDS + 60
        ).returncode
    except subprocess.TimeoutExpired:
        status = "killed, it did not answer its own alarm"
    return [f"{name}: {status} (see {args.out / name}.json)"] if status else []


if __name__ == "__main__":
    main()
