"""``winsome sft``."""

from __future__ import annotations

import argparse

from align.commands import add_config_arguments, print_result
from align.config import SFTConfig, load_config

HELP = "Supervised fine-tuning on good images, with a held-out loss."
EXAMPLE = "winsome sft configs/tiny/sft.yaml max_steps=50"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "optimizer.lr=1e-5")


def run(args: argparse.Namespace) -> None:
    config = load_config(SFTConfig, args.config, args.overrides)
    from align.offline import train_sft

    print_result(train_sft(config))
