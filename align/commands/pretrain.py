"""``winsome pretrain``: make the tiny pipeline again."""

from __future__ import annotations

import argparse

HELP = "Train the tiny Qwen-Image: autoencoder, then flow matching in a four-stage curriculum."
EXAMPLE = "winsome pretrain configs/tiny/pretrain.yaml output=runs/pretrain/pipeline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="YAML file of PretrainConfig")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="dotted overrides"
    )


def run(args: argparse.Namespace) -> None:
    from align.pretrain.config import PretrainConfig
    from annotate.settings import load_config

    config = load_config(PretrainConfig, args.config, args.overrides)
    from align.pretrain.run import pretrain

    pretrain(config)
    print(f"pipeline written to {config.output}")
