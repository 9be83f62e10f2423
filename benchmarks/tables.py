"""Make the tables and curves of the documents from ``results/``.

    python -m benchmarks.tables            rewrite them
    python -m benchmarks.tables --check    exit 1 if one is out of date

A table stands between ``<!-- bars: AREA -->`` and ``<!-- /bars -->``. A bar without a line in the
results reads "not measured". Between ``<!-- costs -->`` and ``<!-- /costs -->`` stands what the
objectives cost, from the raw record of their gains.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.bars import BARS
from benchmarks.curves import PICTURES, picture
from benchmarks.formulas import Raw
from benchmarks.objective_bars import cost_table
from benchmarks.record import RESULTS

ROOT = Path(__file__).parents[1]
SECTION = re.compile(r"(<!-- bars: (\w+) -->\n)(.*?)(<!-- /bars -->)", re.DOTALL)
COSTS = re.compile(r"(<!-- costs -->\n)(.*?)(<!-- /costs -->)", re.DOTALL)


def newest_lines(results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The last line of each measured bar."""
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(results.glob("*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            newest[line["bar"]] = line
    return newest


def table(area: str, results: Path = RESULTS) -> str:
    """The Markdown table of one area, every bar of it in the order of ``BARS``.

    Raises:
        ValueError: there is no such area.
    """
    bars = [bar for bar in BARS.values() if bar.area == area]
    if not bars:
        areas = sorted({bar.area for bar in BARS.values()})
        raise ValueError(f"unknown area {area!r} (choose from {', '.join(areas)})")
    newest = newest_lines(results)
    rows = [
        "| bar | measured | unit | meaning | against | where, when |",
        "|---|---|---|---|---|---|",
    ]
    for bar in bars:
        line = newest.get(bar.name)
        value = f"{line['value']:.4g}" if line else "not measured"
        origin = f"{line['device']}, {line['date'][:10]}, {line['commit'][:7]}" if line else ""
        rows.append(
            f"| `{bar.name}` | {value} | {bar.unit} | {bar.meaning} | {bar.against} | {origin} |"
        )
    return "\n".join(rows) + "\n"


def rendered(text: str, results: Path = RESULTS) -> str:
    """``text`` with every table section made anew."""
    text = SECTION.sub(lambda match: match[1] + table(match[2], results) + match[4], text)
    return COSTS.sub(lambda match: match[1] + cost_table(objectives_record()) + match[3], text)


def objectives_record() -> Raw:
    """What the newest gains of the objectives were computed from."""
    line = newest_lines()["align.gain_over_sft.sft"]
    return json.loads((RESULTS / line["raw"]).read_text(encoding="utf-8"))


def documents() -> list[Path]:
    """The Markdown files that may hold tables."""
    return [
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "benchmarks/README.md",
    ]


def made() -> dict[Path, str]:
    """Every document and picture, as the results have it."""
    raw = objectives_record()
    pictures = {ROOT / "docs/images" / name: picture(raw, grid) for name, grid in PICTURES.items()}
    return {path: rendered(path.read_text("utf-8")) for path in documents()} | pictures


def outdated() -> dict[Path, str]:
    """Those that differ from what they should be."""
    return {
        path: text
        for path, text in made().items()
        if not path.is_file() or path.read_text("utf-8") != text
    }


def rewrite() -> list[Path]:
    """Make all anew; returns what changed."""
    changed = outdated()
    for path, text in changed.items():
        path.write_text(text, encoding="utf-8")
    return list(changed)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the tables and curves in the documents.")
    parser.add_argument("--check", action="store_true", help="change nothing; tell what is old")
    check = parser.parse_args().check
    changed = list(outdated()) if check else rewrite()
    for path in changed:
        print(f"{path.relative_to(ROOT)}: {'out of date' if check else 'rewritten'}")
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
