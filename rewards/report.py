"""A reward model's report as one HTML page, made of the same numbers as ``report.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["render_report", "write_page"]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1c1e; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #d8d8dc }
th:first-child, td:first-child { text-align: left }
.verdict { font-size: 1.15rem } .note { color: #6b6b70 } svg { background: #fafafc }
@media (prefers-color-scheme: dark) {
  body { color: #ececf0; background: #17171a } th, td { border-color: #3a3a40 }
  svg { background: #1f1f24 } .note { color: #9a9aa2 } }
"""
_SIDE = 260


def write_page(report: Mapping[str, Any], path: Path, minimum: float | None = None) -> None:
    """Write the page; with ``minimum``, it says whether the gate lets the model pass."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(report, minimum), encoding="utf-8")


def render_report(report: Mapping[str, Any], minimum: float | None = None) -> str:
    """The page as HTML; every text from the report is escaped."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Reward model</title>",
        f"<style>{_STYLE}</style><h1>Reward model</h1>",
        _verdict(report, minimum),
        "<h2>By criterion</h2>",
        _criteria(report),
        "<p class=note>With ties: all-equal pairs too, a half where one side alone is a tie. "
        "Interval: 95 %, bootstrap over prompts. Designers: how often one agrees "
        "with another on the same pairs; the model beside it on exactly those pairs. Regret: share "
        "of picks lost by taking the model's best candidate, and by taking any. AUROC: do large "
        "margins tell pairs on which designers agree from those on which they do not?</p>",
        "<h2>Calibration</h2>",
        _reliability(report),
    ]
    if designers := report.get("designers"):
        parts += ["<h2>Each designer left out</h2>", _designers(designers)]
    if audit := report.get("audit"):
        parts += ["<h2>Edits that should change nothing</h2>", _audit(audit)]
    for name, values in sorted(report.get("slices", {}).items()):
        if values:
            rows = [(v, _number(of["accuracy"]), of["num_pairs"]) for v, of in values.items()]
            parts += [f"<h2>By {escape(name)}</h2>", _table((name, "accuracy", "pairs"), rows)]
    if correlation := report.get("head_correlation"):
        rows = [(pair, _number(value)) for pair, value in correlation.items()]
        parts += ["<h2>Correlation of the heads</h2>", _table(("heads", "within prompts"), rows)]
    facts = ("held_out", "snapshot_digest", "model_sha256", "base_sha256", "num_prompts",
             "num_tasks", "num_picks", "num_pairs")  # fmt: skip
    rows = [(name.replace("_", " "), report[name]) for name in facts if name in report]
    parts += ["<h2>Measured on</h2>", _table(("", ""), rows)]
    return "\n".join(parts) + "</html>\n"


def _verdict(report: Mapping[str, Any], minimum: float | None) -> str:
    text = (
        f"{_number(report['accuracy'])} of held-out pairs as designers have them "
        f"({_interval(report)}); "
        f"designers among themselves {_number(report['ceiling'])}."
    )
    if minimum is not None:
        passed = report["accuracy"] >= minimum
        text += f" The gate at {minimum:.3f} is {'open' if passed else 'shut'}."
    return f"<p class=verdict>{escape(text)}</p>"


_MEASURES = ("tau_b", "regret", "regret_random", "auroc_decided", "brier", "nll")


def _criteria(report: Mapping[str, Any]) -> str:
    head = ("criterion", "accuracy", "with ties", "interval", "designers", "model there", "tau-b",
            "regret", "any", "AUROC", "Brier", "NLL", "pairs")  # fmt: skip
    rows = [
        (
            name,
            _number(of["accuracy"]),
            _number(of.get("accuracy_with_ties")),
            _interval(of),
            _number(of["ceiling"]),
            _number(of["accuracy_on_ceiling_pairs"]),
            *(_number(of.get(key)) for key in _MEASURES),
            of["num_pairs"],
        )
        for name, of in report["criteria"].items()
    ]
    return _table(head, rows)


def _designers(designers: Mapping[str, Mapping[str, Any]]) -> str:
    head = ("left out", "model on their picks", "others on their picks", "difference", "interval",
            "pairs")  # fmt: skip
    rows = [
        (
            name,
            *(_number(of[key]) for key in ("accuracy", "ceiling", "ceiling_gap")),
            f"{_number(of['ceiling_gap_low'])} to {_number(of['ceiling_gap_high'])}",
            of["num_pairs"],
        )
        for name, of in designers.items()
    ]
    return _table(head, rows)


def _audit(audit: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Mean change of the score by edit and head, in medians of |margin|."""
    heads = list(next(iter(audit.values())))
    rows = [
        (edit, *(f"{of[h]['shift']:+.2f}{' !' if of[h]['warning'] else ''}" for h in heads))
        for edit, of in audit.items()
    ]
    note = (
        "Mean change of the score, in medians of the margin between two candidates; ! where it is "
        "beyond the tolerance."
    )
    return _table(("edit", *heads), rows) + f"<p class=note>{note}</p>"


def _reliability(report: Mapping[str, Any]) -> str:
    """Accuracy against confidence, both from 0.5 to 1; a circle's area is its pairs."""
    bins = report.get("reliability")
    if not bins:
        return "<p>not measured</p>"
    most = max(count for *_, count in bins)
    dots = "".join(
        f"<circle cx={_at(confidence)} cy={_SIDE - _at(accuracy)} "
        f"r={3 + 7 * (count / most) ** 0.5:.1f} fill=currentColor fill-opacity=.45 />"
        for confidence, accuracy, count in bins
    )
    note = (
        f"Expected calibration error {_number(report['ece'])}; a perfectly calibrated model would "
        f"show {_number(report['ece_expected'])} on as many pairs."
    )
    return (
        f'<svg width={_SIDE} height={_SIDE} role=img aria-label="accuracy against confidence">'
        f"<line x1=0 y1={_SIDE} x2={_SIDE} y2=0 stroke=currentColor stroke-dasharray=4 />"
        f"{dots}</svg>"
        f"<p class=note>{escape(note)} Both axes run from 0.5 to 1; "
        "bins below that lie on the edge.</p>"
    )


def _at(share: float) -> int:
    return round(_SIDE * min(max(2 * share - 1, 0.0), 1.0))


def _table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    def row(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + row(head, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"


def _interval(of: Mapping[str, Any]) -> str:
    if of["ci_low"] is None:
        return "no interval: one prompt"
    return f"{_number(of['ci_low'])} to {_number(of['ci_high'])}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
