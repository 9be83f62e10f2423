"""The curves of docs/results.md, drawn from the raw record of its figures by `benchmarks.tables`.

A picture has a column for each objective and a row for each metric; a panel has one line for each
seed, with a scale of its own, whose ends are written beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.formulas import Raw

__all__ = ["PICTURES", "picture"]

Grid = tuple[tuple[str, ...], tuple[str, ...]]
PICTURES: dict[str, Grid] = {
    "curves-offline.svg": (
        ("sft", "dpo", "dpo_anchor", "plackett_luce"),
        ("loss", "rewards/accuracies", "error/chosen_delta", "grad_norm"),
    ),
    "curves-online.svg": (
        ("flow_grpo_window", "flow_grpo_full", "nft"),
        ("reward", "reward_std", "kl", "grad_norm"),
    ),
}
"""File of docs/images -> objectives and metrics."""
COLOURS = ("#2f6fb0", "#c2571a", "#3d8a4e")
"""Of the seeds."""
WIDTH, HEIGHT, LEFT, TOP = 220, 110, 46, 34
"""Of a panel, its left margin, and the height of the picture's title."""


def picture(raw: Raw, grid: Grid) -> str:
    """The SVG of one grid; a metric that an objective does not log leaves its place free."""
    objectives, metrics = grid
    width, height = LEFT + WIDTH * len(objectives), TOP + HEIGHT * len(metrics)
    panels = [
        _panel(_curves(raw, objective, metric), LEFT + WIDTH * column, TOP + HEIGHT * row, metric)
        for row, metric in enumerate(metrics)
        for column, objective in enumerate(objectives)
    ]
    titles = [
        f'<text x="{LEFT + WIDTH * column}" y="20" font-weight="bold">{name}</text>'
        for column, name in enumerate(objectives)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" fill="#333">\n'
        '<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join([*titles, *filter(None, panels)])
        + "\n</svg>\n"
    )


def _curves(raw: Raw, objective: str, metric: str) -> list[list[float]]:
    """One curve a seed."""
    runs = [run for run in raw["runs"] if run["objective"] == objective]
    return [run["curves"].get(metric, []) for run in runs]


def _panel(curves: Sequence[Sequence[float]], x: int, y: int, metric: str) -> str:
    values = [value for curve in curves for value in curve]
    if not values:
        return ""
    low, high, steps = min(values) + 0.0, max(values) + 0.0, max(map(len, curves))
    wide, tall = WIDTH - LEFT - 10, HEIGHT - 40

    def place(step: int, value: float) -> str:
        share = (value - low) / (high - low) if high > low else 0.5
        return f"{x + wide * step / max(1, steps - 1):.1f},{y + 16 + tall * (1 - share):.1f}"

    floor = y + 16 + tall
    lines = [
        f'<path d="M{" L".join(place(*point) for point in enumerate(curve))}" fill="none" '
        f'stroke="{colour}" stroke-width="1.2"/>'
        for curve, colour in zip(curves, COLOURS, strict=True)
    ]
    return (
        f'<text x="{x}" y="{y + 9}">{metric}</text>'
        f'<text x="{x - 4}" y="{y + 24}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{x - 4}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{x + wide}" y="{floor + 13}" text-anchor="end">step {steps}</text>'
        f'<path d="M{x},{floor} h{wide}" stroke="#bbb"/>' + "".join(lines)
    )
