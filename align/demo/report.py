"""The demo's report: one self-contained HTML page and the same figures as JSON."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from align.demo.config import DemoConfig
from align.demo.studio import candidates_by_prompt, read_candidates
from align.evaluation import CRITERIA
from align.metrics import read_metrics
from align.run import RunResult
from annotate.records import Prompt

GRID_PROMPTS = 8
"""Held-out prompts shown in the grid, with one image of each model."""
SHOWN = ("base", "sft", "dpo", "grpo")
CURVES = {
    "sft": ("loss", "validation/loss"),
    "dpo": ("loss", "rewards/accuracies", "rewards/margins", "error/chosen_delta", "grad_norm"),
    "grpo": ("reward", "reward_std", "kl", "clip_ratio", "grad_norm"),
}


def write_report(
    folder: Path, config: DemoConfig, report: Mapping[str, Any], runs: Mapping[str, RunResult]
) -> Path:
    """Write ``report.json`` and ``report.html`` into ``folder``; returns the page's path."""
    (folder / "report.json").write_text(
        json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    sections = [
        _summary(report),
        _criteria_table(report),
        _grid(folder, config),
        _reward_table(report["reward_model"]),
        *(_curves(name, runs[name].folder) for name in CURVES),
        _chain(report, runs),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Winsome demo</title><style>{style}</style></head><body>"
        + "\n".join(sections)
        + "</body></html>\n"
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def headline(report: Mapping[str, Any]) -> str:
    """What came out, in one line of plain text."""
    gain, wins = report["gain_over_sft"]["grpo"], report["win_rate"]
    low, high = (f"{100 * gain[end]:+.1f}" for end in ("ci_low", "ci_high"))
    return (
        f"the final model gains {_percent(gain['mean'])} [{low}, {high}] over SFT by the ruler and "
        f"wins {100 * wins['value']:.0f} % of blind comparisons by the simulated designers"
    )


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def _range(figure: Mapping[str, float], form: str = "{:.3f}") -> str:
    low, high = form.format(figure["ci_low"]), form.format(figure["ci_high"])
    return f'<span class="soft">[{low}, {high}]</span>'


def _summary(report: Mapping[str, Any]) -> str:
    gain, wins = report["gain_over_sft"]["grpo"], report["win_rate"]
    return f"""<h1>From picks to a better model</h1>
<p class="lead">The final model gains <b>{_percent(gain["mean"])}</b>
{_range({k: 100 * gain[k] for k in ("ci_low", "ci_high")}, "{:+.1f}")} over the SFT baseline on the
mean of the three criteria, and the simulated designers prefer it blindly in
<b>{100 * wins["value"]:.0f} %</b>
{_range({k: 100 * wins[k] for k in ("ci_low", "ci_high")}, "{:.0f}")} of comparisons.</p>
<p class="soft">Seed {report["seed"]} · {report["picks"]} picks · {report["seconds"]:.0f} s,
{report["cpu_seconds"]:.0f} CPU-seconds, {report["peak_rss_gib"]:.1f} GiB at the peak. Intervals are
95 %, over prompts: bootstrapped, and Wilson's of comparisons won. The baseline is the better of SFT
and SFT continued for as many optimizer steps as DPO and GRPO took. The ruler that measures was
never a reward.</p>"""


def _criteria_table(report: Mapping[str, Any]) -> str:
    intervals = report["criteria_intervals"]
    names = (*CRITERIA, "mean")
    titles = {"base": "base", "sft": "SFT", "sft_continued": "SFT continued", "dpo": "DPO",
              "grpo": "DPO, then GRPO"}  # fmt: skip
    rows = []
    for model, title in titles.items():
        cells = "".join(
            f'<td class="n">{intervals[model][n]["value"]:.3f} {_range(intervals[model][n])}</td>'
            for n in names
        )
        rows.append(f"<tr><td>{title}</td>{cells}</tr>")
    head = "".join(f'<th class="n">{name}</th>' for name in names)
    gains = "".join(
        f"<li>{titles[model]}: gain {_percent(figure['mean'])} "
        f"{_range({k: 100 * figure[k] for k in ('ci_low', 'ci_high')}, '{:+.1f}')}, closes "
        f"{100 * report['headroom_closed'][model]:.0f} % of what the baseline lacks to 1; by "
        f"criterion {_by_criterion(report['gain_by_criterion'][model])}</li>"
        for model, figure in report["gain_over_sft"].items()
    )
    return f"""<h2>The three criteria, by the ruler on held-out prompts</h2>
<table><tr><th></th>{head}</tr>{"".join(rows)}</table><ul>{gains}</ul>"""


def _by_criterion(figures: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(
        f"{name} {figure['value']:+.3f} {_range(figure, '{:+.3f}')}"
        for name, figure in figures.items()
    )


def _grid(folder: Path, config: DemoConfig) -> str:
    prompts = [
        Prompt.model_validate_json(line)
        for line in (folder / "evaluation" / "base-prompts.jsonl").read_bytes().splitlines()
    ][:GRID_PROMPTS]
    images = {}
    for model in SHOWN:
        candidates = read_candidates(folder / "evaluation" / model)
        by_id = {candidate.id: candidate for candidate in candidates}
        for prompt_id, ids in candidates_by_prompt(candidates).items():
            sha256 = by_id[ids[0]].image_sha256
            images[model, prompt_id] = folder / "evaluation" / model / "images" / f"{sha256}.png"
    rows = []
    for prompt in prompts:
        cells = "".join(f"<td>{_image(images[model, prompt.id])}</td>" for model in SHOWN)
        rows.append(f'<tr><td class="p">{html.escape(prompt.text)}</td>{cells}</tr>')
    head = "".join(f"<th>{name.upper() if name != 'base' else name}</th>" for name in SHOWN)
    return f"""<h2>The same prompts and noise</h2>
<table class="grid"><tr><th></th>{head}</tr>{"".join(rows)}</table>"""


def _image(path: Path) -> str:
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'


def _reward_table(report: Mapping[str, Any]) -> str:
    rows = [("mean of the criteria", report), *report["criteria"].items()]
    body = "".join(
        f'<tr><td>{name}</td><td class="n">{figures["accuracy"]:.3f} {_range(figures)}</td>'
        f'<td class="n">{_or_dash(figures["ceiling"])}</td></tr>'
        for name, figures in rows
    )
    return f"""<h2>The reward model on prompts it never saw</h2>
<table><tr><th></th><th class="n">accuracy</th><th class="n">designers' own agreement</th></tr>
{body}</table>
<p class="soft">Accuracy: the share of implied pairs that it orders as the designers did. Agreement:
how often one designer orders a pair as another did.</p>"""


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _curves(name: str, run: Path) -> str:
    lines = read_metrics(run / "metrics.jsonl")
    figures = []
    for metric in CURVES[name]:
        points = [(line["step"], line[metric]) for line in lines if metric in line]
        if len(points) > 1:
            figures.append(f"<figure>{_plot(points)}<figcaption>{metric}</figcaption></figure>")
    return f'<h2>{name.upper()}: curves</h2><div class="curves">{"".join(figures)}</div>'


def _plot(points: Sequence[tuple[float, float]], width: int = 280, height: int = 120) -> str:
    """A line chart as SVG, with the extremes written at the axes."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    low, high = min(ys), max(ys)
    span_x, span_y = max(xs) - min(xs) or 1, high - low or 1

    def place(x: float, y: float) -> str:
        across = 44 + (width - 50) * (x - min(xs)) / span_x
        return f"{across:.1f},{8 + (height - 28) * (1 - (y - low) / span_y):.1f}"

    path = "M" + " L".join(place(x, y) for x, y in points)
    floor = height - 20
    return (
        f'<svg width="{width}" height="{height}" role="img">'
        f'<line x1="44" y1="{floor}" x2="{width - 6}" y2="{floor}"/>'
        f'<text x="0" y="14">{high:.3g}</text><text x="0" y="{floor}">{low:.3g}</text>'
        f'<text x="44" y="{height - 6}">{xs[0]:g}</text>'
        f'<text x="{width - 6}" y="{height - 6}" text-anchor="end">{xs[-1]:g}</text>'
        f'<path d="{path}"/></svg>'
    )


def _chain(report: Mapping[str, Any], runs: Mapping[str, RunResult]) -> str:
    rows = "".join(
        f"<tr><td>{name}</td><td class='n'>{run.steps}</td><td><code>{html.escape(str(run.folder))}"
        f"</code></td></tr>"
        for name, run in runs.items()
    )
    return f"""<h2>The chain</h2>
<p>{report["picks"]} picks → snapshot <code>{report["snapshot_digest"]}</code> → reward model, DPO →
GRPO. Ruler <code>{report["ruler_sha256"]}</code>.</p>
<table><tr><th>run</th><th class="n">optimizer steps</th><th>folder</th></tr>{rows}</table>"""
