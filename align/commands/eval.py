"""``winsome eval``."""

from __future__ import annotations

import argparse

from align.commands import add_config_arguments
from align.config import EvalConfig, load_config

HELP = "Draw the same prompts and noise with several models and score them side by side."
EXAMPLE = "winsome eval configs/tiny/eval.yaml prompts=my_prompts.txt candidates=2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "candidates=8")


def run(args: argparse.Namespace) -> None:
    config = load_config(EvalConfig, args.config, args.overrides)
    from align.scoreboard import describe, evaluate_models

    print(describe(evaluate_models(config)))
    print(f"page: {config.output_dir / 'report.html'}")
