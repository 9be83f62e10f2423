"""``winsome replay``."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "Compute the kept batch of a step that spoilt a run again, micro-batch by micro-batch."
EXAMPLE = "winsome replay runs/dpo/diverged-step-00000120-0.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="diverged-step-N-RANK.pt in its run folder")


def run(args: argparse.Namespace) -> None:
    if not args.path.is_file():
        raise FileNotFoundError(f"there is no kept batch at {args.path}")
    from align.replay import replay

    step, checkpoint, rows = replay(args.path)
    weights = f"of checkpoint {checkpoint}" if checkpoint else "of the base model"
    print(f"step {step}, {len(rows)} micro-batches, weights {weights}")
    for number, row in enumerate(rows):
        print(f"{number:4} " + "  ".join(f"{name} {value:.6g}" for name, value in row.items()))
