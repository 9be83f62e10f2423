"""The subcommands of ``winsome`` that belong to align; what the three trainers' have in common."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.run import RunResult


def add_config_arguments(parser: argparse.ArgumentParser, override: str) -> None:
    """``CONFIG [key=value ...]``; ``override`` is an example of the latter."""
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file of settings")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help=f"settings that replace those of the file, such as {override}",
    )


def print_result(result: RunResult) -> None:
    """Say where the run is and how it ended; the main process of a launch speaks."""
    if int(os.environ.get("RANK", "0")):
        return
    figures = ", ".join(
        f"{name} {value:.4g}"
        for name, value in result.metrics.items()
        if name not in ("step", "seconds") and isinstance(value, float)
    )
    print(f"{result.folder}: {result.steps} steps ({figures})")
    print(f"model: {result.export}")
