"""Measure what this machine can, and record it.

    python -m benchmarks.measure                     the quick areas
    python -m benchmarks.measure circle --seeds 1 2  one `winsome demo` a seed, minutes each

The tables and curves in the documents are made anew at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import tables
from benchmarks.bars import BARS
from benchmarks.record import record

CLI_RUNS = 15


def measure_cli(args: argparse.Namespace) -> None:
    """CPU seconds of ``winsome --help`` in fresh processes, the files in the disk cache."""
    command = [sys.executable, "-m", "align.cli", "--help"]
    seconds = []
    for _ in range(CLI_RUNS + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    record(["cli.help_seconds"], {"seconds": seconds[1:]}, "winsome --help")


def measure_tiny(args: argparse.Namespace) -> None:
    """Drawing with the tiny pipeline, beside stock diffusers."""
    from align import tiny_pipeline
    from benchmarks.tiny import measure_drawing

    bars = [name for name, bar in BARS.items() if bar.area == "tiny"]
    record(bars, measure_drawing(tiny_pipeline()), "python -m benchmarks.measure tiny")


def measure_cpu(args: argparse.Namespace) -> None:
    """What is counted, not timed: activations, FLOPs, optimizer states and collectives."""
    from benchmarks.cpu import measure_compiled, measure_optimizer, measure_pair, measure_recompute
    from benchmarks.modulation import measure_modulation

    command = "python -m benchmarks.measure cpu"
    record(["cpu.saved_bytes_ratio", "cpu.recompute_flops_ratio"], measure_recompute(), command)
    record(["cpu.compiled_traffic_ratio"], measure_compiled(), command)
    record(["cpu.dpo_forwards_ratio"], measure_pair(), command)
    record(["cpu.optimizer_bytes_per_param"], measure_optimizer(), command)
    record(["cpu.modulation_traffic_ratio"], measure_modulation(), command)


def measure_app(args: argparse.Namespace) -> None:
    """The labelling app: its page in Chromium, and its server under 50 annotators."""
    from benchmarks.app import measure_next_images, measure_submit

    command = "python -m benchmarks.measure app"
    record(["app.next_images_p95_ms"], measure_next_images(), command)
    record(["app.submit_p95_ms_50_annotators"], measure_submit(), command)


def measure_circle(args: argparse.Namespace) -> None:
    """The whole circle, once for every seed, each in a folder of its own."""
    reports = []
    with tempfile.TemporaryDirectory(prefix="winsome-bench-") as folder:
        for seed in args.seeds:
            out = Path(folder) / f"seed{seed}"
            subprocess.run(
                [sys.executable, "-m", "align.cli", "demo", "--seed", str(seed), f"folder={out}"],
                check=True,
            )
            reports.append(json.loads((out / "report.json").read_text(encoding="utf-8")))
    seeds = " ".join(map(str, args.seeds))
    circle = [name for name, bar in BARS.items() if bar.area == "circle"]
    record(circle, {"reports": reports}, f"winsome demo --seed N, N in {seeds}")


def measure_text(args: argparse.Namespace) -> None:
    """The graded posters, and clean characters by each engine; ``runs/`` keeps what was read."""
    from benchmarks.text.measure import CachedEngine, read_level, score_order
    from rewards.text.engines import ENGINES, open_engine

    command = "python -m benchmarks.measure text"
    engines = {
        name: CachedEngine(open_engine(name), Path(f"runs/benchmarks/text/{name}.json"))
        for name in ENGINES
    }
    record(
        ["text.order_agreement", "text.order_agreement_first_quote"],
        score_order(engines["ppocr_v6"]),
        command,
    )
    for name, engine in engines.items():
        for level in (1, 2):
            record([f"text.accuracy.level{level}.{name}"], read_level(engine, level), command)


def measure_hacking(args: argparse.Namespace) -> None:
    """Planted hacks and clean runs under the reward monitors."""
    from benchmarks import hacking

    record(
        ["rewards.hacking_caught_at_ruler_drop", "rewards.hacking_false_alarms"],
        hacking.measure_hacking(),
        "python -m benchmarks.measure hacking",
    )


def measure_rewards(args: argparse.Namespace) -> None:
    """The reward model beside the designers; ``runs/`` keeps its posters, picks and weights."""
    from benchmarks.reward_model import measure_reward_model

    bars = [n for n, bar in BARS.items() if bar.area == "rewards" and "hacking" not in n]
    raw = measure_reward_model(Path("runs/benchmarks/rewards"))
    record(bars, raw, "python -m benchmarks.measure rewards")


def measure_objectives(args: argparse.Namespace) -> None:
    """Each objective from one SFT model; ``runs/`` keeps finished cells, a stop loses one."""
    from benchmarks import objectives
    from benchmarks.objective_bars import OBJECTIVES, forwards_to_gain

    raw = objectives.measure_objectives(Path("runs/benchmarks/objectives"))
    bars = [
        f"align.{what}.{name}"
        for name in OBJECTIVES
        for what in ("gain_over_sft", "gain_over_sft_low", "gain_over_sft_high")
    ]
    for name in ("flow_grpo_window", "nft"):
        try:
            forwards_to_gain(raw, name)
        except ValueError as reason:
            print(f"no line for align.forwards_to_grpo_gain.{name}: {reason}", flush=True)
        else:
            bars.append(f"align.forwards_to_grpo_gain.{name}")
    record(bars, raw, "python -m benchmarks.measure objectives")


def measure_edit(args: argparse.Namespace) -> None:
    """Held-out edits by the model that `configs/tiny/sft_edit.yaml` trains, in two rounds."""
    from benchmarks.edit import FOLDER, MODEL, by_kind, measure_edits

    raw = measure_edits(MODEL, FOLDER / "benchmark")
    print(f"met by kind: {by_kind(raw['edits'])}", flush=True)
    bars = [name for name, bar in BARS.items() if bar.area == "edit"]
    record(bars, raw, "python -m benchmarks.measure edit")


QUICK: dict[str, Callable[[argparse.Namespace], None]] = {
    "cli": measure_cli,
    "tiny": measure_tiny,
    "cpu": measure_cpu,
}
SLOW: dict[str, Callable[[argparse.Namespace], None]] = {
    "app": measure_app,
    "circle": measure_circle,
    "edit": measure_edit,
    "hacking": measure_hacking,
    "objectives": measure_objectives,
    "rewards": measure_rewards,
    "text": measure_text,
}


def main() -> None:
    measures = QUICK | SLOW
    parser = argparse.ArgumentParser(description="Measure what this machine can, and record it.")
    parser.add_argument(
        "area", nargs="*", help=f"of {', '.join(measures)}; default: the quick ones"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="for circle")
    args = parser.parse_args()
    if unknown := set(args.area) - set(measures):
        parser.error(f"unknown area {', '.join(unknown)} (choose from {', '.join(measures)})")
    for area in args.area or QUICK:
        print(f"measuring {area}", flush=True)
        measures[area](args)
    for path in tables.rewrite():
        print(f"rewrote {path}")


if __name__ == "__main__":
    main()
