"""Write a measured figure: its raw record as a file, its line in ``results/AREA.jsonl``.

python -m benchmarks.record cli.help_seconds raw.json --command "winsome --help"
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.bars import BARS
from benchmarks.formulas import Raw
from benchmarks.hopper_sizes import Sizes

RESULTS = Path(__file__).parent / "results"
FIELDS = (
    "bar", "value", "unit", "against", "device", "versions", "commit", "date", "command", "raw"
)  # fmt: skip
PACKAGES = (
    "winsome", "torch", "diffusers", "transformers", "trl", "peft", "accelerate", "deepspeed",
    "gradio", "fastapi", "sqlalchemy",
)  # fmt: skip


def device(gpu: bool) -> str:
    """The machine in words: its first GPU where the figure needs one, else processor and cores."""
    if gpu:
        import torch

        return torch.cuda.get_device_name(0)
    cores = len(os.sched_getaffinity(0))
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores} cores"


def versions() -> dict[str, str]:
    """Installed versions of what a figure may depend on; a package that is absent has no key."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The revision that was measured, ``+changes`` added when the checkout differs from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    # Results and documents change with each figure and change no figure.
    unrelated = [":(top,exclude)benchmarks/results", ":(top,exclude)*.md"]
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/", *unrelated)
    return git("rev-parse", "HEAD") + ("+changes" if changes else "")


def record(
    bar_names: Sequence[str], raw: Raw, command: str, results: Path = RESULTS
) -> list[dict[str, Any]]:
    """Compute bars from one raw record, write it and their lines under ``results``.

    Returns:
        The new lines, in the order of ``bar_names``.

    Args:
        raw: where it has a field ``measured``, that names device, versions and date; else they are
            those of this machine, now.

    Raises:
        ValueError: there is no bar of such a name, or the card measured a smaller model than the
            bar speaks of; nothing was written.
    """
    if unknown := [name for name in bar_names if name not in BARS]:
        raise ValueError(f"unknown bar {unknown[0]!r} (choose from {', '.join(sorted(BARS))})")
    bars = [BARS[name] for name in bar_names]
    measured = raw.get("measured", {})
    _check_whole(measured)
    now = datetime.now(UTC)
    raw_path = results / "raw" / f"{bars[0].name}.{now:%Y%m%dT%H%M%SZ}.json"
    lines = [
        {
            "bar": bar.name,
            "value": bar.formula(raw),
            "unit": bar.unit,
            "against": bar.against,
            "device": measured.get("device") or device(gpu=bar.needs != "cpu"),
            "versions": measured.get("versions") or versions(),
            "commit": commit(),
            "date": measured.get("date") or f"{now:%Y-%m-%dT%H:%M:%SZ}",
            "command": command,
            "raw": raw_path.relative_to(results).as_posix(),
        }
        for bar in bars
    ]
    raw_path.parent.mkdir(parents=True, exist_ok=True)
    raw_path.write_text(json.dumps(raw, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for bar, line in zip(bars, lines, strict=True):
        with (results / f"{bar.area}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return lines


def _check_whole(measured: Mapping[str, Any]) -> None:
    sizes = measured.get("sizes")
    whole = json.loads(json.dumps(vars(Sizes())))
    if sizes is not None and sizes != whole:
        different = [f"{k} {v} (full: {whole[k]})" for k, v in sizes.items() if v != whole[k]]
        raise ValueError(f"the bars are of the whole model; this was measured with {different}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Record one measured figure.")
    parser.add_argument("bar", choices=sorted(BARS), metavar="BAR", help="name of the bar")
    parser.add_argument("raw", type=Path, help="JSON file with the raw record")
    parser.add_argument("--command", required=True, help="what was run to get it")
    args = parser.parse_args()
    [line] = record([args.bar], json.loads(args.raw.read_text(encoding="utf-8")), args.command)
    print(f"{line['bar']} = {line['value']:.4g} {line['unit']} (against {line['against']})")


if __name__ == "__main__":
    main()
