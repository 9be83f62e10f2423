"""``winsome grpo``."""

from __future__ import annotations

import argparse

from align.commands import add_config_arguments, print_result
from align.config import GRPOConfig, load_config

HELP = "Flow-GRPO against a reward model that has passed its gate."
EXAMPLE = "winsome grpo configs/tiny/grpo.yaml reward.min_accuracy=0.7"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "group_size=16")


def run(args: argparse.Namespace) -> None:
    config = load_config(GRPOConfig, args.config, args.overrides)
    from align.online import train_grpo
    from rewards.base import ScoringError

    try:
        result = train_grpo(config)
    except ScoringError as error:
        raise ValueError(str(error)) from error
    print_result(result)
