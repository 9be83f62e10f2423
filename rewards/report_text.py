"""A reward model's report for a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["describe_audit", "describe_designers", "describe_report"]

HALO = 0.9
"""Correlation from which two heads are one impression."""


def describe_report(report: dict[str, Any]) -> str:
    """A report as a small table."""
    lines = [f"{'':12} {'accuracy':>8}  {'95 % interval':^14}  {'designers':>9}  {'pairs':>6}"]
    for name, row in [*report["criteria"].items(), ("mean", report)]:
        ceiling = "-" if row["ceiling"] is None else f"{row['ceiling']:.3f}"
        # The prompts of one cannot be drawn anew.
        is_known = row["ci_low"] is not None
        interval = f"{row['ci_low']:.3f} - {row['ci_high']:.3f}" if is_known else "none: 1 prompt"
        lines.append(
            f"{name:12} {row['accuracy']:8.3f}  {interval:^14}  {ceiling:>9}  {row['num_pairs']:>6}"
        )
    lines.append(
        f"{report['num_picks']} picks on {report['num_prompts']} held-out prompts "
        f"({report['held_out']}); mean over {json.dumps(_averaged(report))}"
    )
    if report.get("num_not_applicable"):
        lines.append(f"it does not apply to {report['num_not_applicable']} more sets")
    if report.get("truncated"):
        lines.append(
            f"it read only the start of the prompt for {report['truncated']:.0%} of images"
        )
    for pair, value in report.get("head_correlation", {}).items():
        if value >= HALO:
            lines.append(
                f"{pair} go together within prompts at {value:.2f}: one impression, not two "
                "criteria"
            )
    return "\n".join(lines)


def describe_audit(audit: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Shift of each head by edit, in medians of the margin between two candidates of a prompt.

    ``!`` where it is beyond the tolerance.
    """
    heads = list(next(iter(audit.values())))
    width = max(map(len, audit))
    lines = [
        "edits that should change nothing: shift in medians of the margin, 95 % interval",
        " ".join([" " * width, *(f"{head:>22}" for head in heads)]),
    ]
    for edit, of in audit.items():
        cells = [
            f"{of[h]['shift']:+.2f} [{of[h]['low']:+.2f}, {of[h]['high']:+.2f}]"
            + ("!" if of[h]["warning"] else " ")
            for h in heads
        ]
        lines.append(" ".join([f"{edit:{width}}", *(f"{cell:>22}" for cell in cells)]))
    return "\n".join(lines)


def describe_designers(designers: Mapping[str, Mapping[str, Any]]) -> str:
    """Each designer left out of training: the model on their picks, and the others on them."""
    lines = [f"{'left out':16} {'model':>6}  {'95 % interval':^14}  {'others':>6}  {'pairs':>6}"]
    for name, of in designers.items():
        low, high = of["accuracy_low"], of["accuracy_high"]
        interval = "none: 1 prompt" if low is None else f"{low:.3f} - {high:.3f}"
        others = "-" if of["ceiling"] is None else f"{of['ceiling']:.3f}"
        lines.append(
            f"{name:16} {of['accuracy']:6.3f}  {interval:^14}  {others:>6}  {of['num_pairs']:>6}"
        )
    return "\n".join(lines)


def _averaged(report: dict[str, Any]) -> list[str]:
    return [name for name in report["criteria"] if name != "overall"] or ["overall"]
