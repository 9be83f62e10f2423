"""``winsome generate``."""

from __future__ import annotations

import argparse
import os

from align.commands import add_config_arguments
from align.config import GenerateConfig, load_config

HELP = "Draw candidates for prompts: resumable, by several processes."
EXAMPLE = "winsome generate configs/tiny/generate.yaml prompts=my_prompts.txt --processes 2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, "candidates=6")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="worker processes on this machine"
    )


def run(args: argparse.Namespace) -> None:
    overrides = list(args.overrides)
    if args.processes is not None:
        overrides.append(f"processes={args.processes}")
    config = load_config(GenerateConfig, args.config, overrides)
    from align.generate import generate

    result = generate(config)
    if not int(os.environ.get("RANK", "0")):
        print(f"{result.folder}: {result.candidates} images of {result.prompts} prompts")
        print(f"label them: winsome store import STUDIO {result.folder}")
