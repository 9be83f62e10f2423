"""Which of two posters a person puts first: only where one has every fault of the other, and more.

``order.json`` beside this file was written by ``python -m benchmarks.text.order`` and committed
before there was a scorer to be judged by it.
"""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

from benchmarks.text.briefs import BRIEFS
from benchmarks.text.draw import FAULTS

__all__ = ["ORDER_FILE", "dominates", "read_order", "variants"]

ORDER_FILE = Path(__file__).with_name("order.json")

COMBINATIONS = (
    {"wrong_character": 1, "junk": 1},
    {"missing_line": 1, "garbled_english": 1},
    {"repeated_headline": 1, "wrong_price": 1},
    {"blurred": 1, "garbled_english": 2},
    {"wrong_character": 2, "wrong_price": 1},
)
"""Faults that do not hide each other."""

Faults = dict[str, int]


def variants() -> list[Faults]:
    """The posters drawn of each brief: without fault, each fault at each level, combinations."""
    single = [{name: level + 1} for name, levels in FAULTS.items() for level in range(len(levels))]
    return [{}, *single, *COMBINATIONS]


def dominates(better: Faults, worse: Faults) -> bool:
    """Whether ``worse`` has each fault of ``better`` at no lower level, and is not the same."""
    return better != worse and all(worse.get(name, 0) >= level for name, level in better.items())


def read_order() -> list[tuple[str, Faults, Faults]]:
    """(name of the brief, faults of the better, faults of the worse)."""
    pairs = json.loads(ORDER_FILE.read_text(encoding="utf-8"))["pairs"]
    return [(brief.name, better, worse) for brief in BRIEFS for better, worse in pairs]


def main() -> None:
    pairs = []
    for first, second in combinations(variants(), 2):
        if dominates(first, second):
            pairs.append([first, second])
        elif dominates(second, first):
            pairs.append([second, first])
    lines = ",\n".join(f"  {json.dumps(pair)}" for pair in pairs)
    ORDER_FILE.write_text(f'{{"pairs": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{len(pairs)} pairs of each of {len(BRIEFS)} posters")


if __name__ == "__main__":
    main()
