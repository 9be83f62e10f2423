"""``winsome demo``."""

from __future__ import annotations

import argparse

HELP = "Run the whole circle on this machine: picks, reward model, SFT, DPO, GRPO, measured gain."
EXAMPLE = "winsome demo --seed 1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="configs/tiny/demo.yaml", help="YAML file of DemoConfig"
    )
    parser.add_argument("--seed", type=int, default=None, help="another world (default: 0)")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="e.g. test_prompts=60"
    )


def run(args: argparse.Namespace) -> None:
    from align.demo.config import DemoConfig
    from annotate.settings import load_config

    overrides = [*args.overrides]
    if args.seed is not None:
        overrides.append(f"seed={args.seed}")
    config = load_config(DemoConfig, args.config, overrides)
    from align.demo.circle import run_demo

    run_demo(config)
