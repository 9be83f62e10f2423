"""``winsome dpo``."""

from __future__ import annotations

import argparse

from align.commands import add_config_arguments, print_result
from align.config import DPOConfig, load_config

HELP = "Diffusion-DPO on a snapshot's picks, or on a JSONL of image pairs."
EXAMPLE = "winsome dpo configs/tiny/dpo.yaml data.path=runs/demo/snapshot"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "objective.beta=1000")


def run(args: argparse.Namespace) -> None:
    config = load_config(DPOConfig, args.config, args.overrides)
    from align.offline import train_dpo

    print_result(train_dpo(config))
