"""What the review pages show, as plain tables: label throughput, runs and their curves."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import pandas as pd

from annotate.records import Question
from annotate.schema import Outcome, Run
from annotate.store import PreferenceStore
from annotate.store.models import LabelEvent

MAX_POINTS = 800
"""Points of one curve; more of them only slow the browser down."""
PREFERRED_METRICS = ("loss", "reward", "rewards/accuracies", "kl")
KEY_METRICS = 4


def headline(store: PreferenceStore, events: Sequence[LabelEvent]) -> str:
    """One line of counts (numbers alone, so that it is safe as Markdown)."""
    status = store.status()
    times = [e.active_ms / 1000 for e in events if e.active_ms is not None]
    parts = [
        f"**{len(events)}** answers",
        f"**{status.slots.get('open', 0) + status.slots.get('leased', 0)}** still to give",
        f"**{status.tasks}** tasks on **{status.prompts}** prompts",
        f"**{len({e.annotator for e in events})}** people",
    ]
    if times:
        parts.append(f"median **{median(times):.0f} s** of looking")
    return " &nbsp;·&nbsp; ".join(parts)


def answers_by_question(events: Sequence[LabelEvent]) -> pd.DataFrame:
    """A row for each question, a column for each outcome."""
    counts = Counter((event.question, event.outcome) for event in events)
    rows = [
        {
            "question": question.value,
            **{outcome.value: counts[question, outcome] for outcome in Outcome},
            "all": sum(counts[question, outcome] for outcome in Outcome),
        }
        for question in Question
    ]
    return pd.DataFrame(rows)


def answers_by_day(events: Sequence[LabelEvent]) -> pd.DataFrame:
    """Answers of each UTC day and question."""
    counts = Counter((event.submitted_at.date(), event.question) for event in events)
    rows = [
        {"day": day.isoformat(), "question": question.value, "answers": count}
        for (day, question), count in sorted(counts.items())
    ]
    return pd.DataFrame(rows, columns=["day", "question", "answers"])


def answers_by_person(events: Sequence[LabelEvent]) -> pd.DataFrame:
    """How much each person did, in the order of names: this is no race."""
    by_person: dict[str, list[LabelEvent]] = defaultdict(list)
    for event in events:
        by_person[event.annotator].append(event)
    rows = []
    for name, own in sorted(by_person.items()):
        outcomes = Counter(event.outcome for event in own)
        times = [e.active_ms / 1000 for e in own if e.active_ms is not None]
        rows.append(
            {
                "name": name,
                "answers": len(own),
                **{outcome.value: outcomes[outcome] for outcome in Outcome},
                "median s": round(median(times), 1) if times else None,
                "last": max(e.submitted_at for e in own).strftime("%Y-%m-%d %H:%M UTC"),
            }
        )
    columns = ["name", "answers", *(o.value for o in Outcome), "median s", "last"]
    return pd.DataFrame(rows, columns=columns)


def run_table(runs: Sequence[Run]) -> pd.DataFrame:
    """The runs, newest first, with what they learned from and how they ended."""
    rows = [
        {
            "run": run.id,
            "kind": run.kind,
            "status": run.status,
            "started": run.created_at.strftime("%Y-%m-%d %H:%M UTC") if run.created_at else "",
            "snapshot": (run.snapshot_digest or "")[:12],
            "result": ", ".join(
                f"{name} {value:.4g}" for name, value in list(run.metrics.items())[:KEY_METRICS]
            ),
            "folder": run.folder,
        }
        for run in runs
    ]
    columns = ["run", "kind", "status", "started", "snapshot", "result", "folder"]
    return pd.DataFrame(rows, columns=columns)


def snapshot_table(store: PreferenceStore) -> pd.DataFrame:
    """The snapshots that were cut here, newest first."""
    rows = [
        {
            "digest": entry.digest,
            "cut": entry.created_at.strftime("%Y-%m-%d %H:%M UTC"),
            "counts": ", ".join(f"{count} {noun}" for noun, count in entry.counts.items()),
            "folder": entry.folder,
        }
        for entry in store.snapshots()
    ]
    return pd.DataFrame(rows, columns=["digest", "cut", "counts", "folder"])


def read_curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Metric name -> (step, value) from the run folder's ``metrics.jsonl``.

    A run that has written nothing yet, or whose folder is gone, has no curves; a line that is
    being written just now is left out.
    """
    try:
        text = (Path(run.folder) / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return {}
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        step = row.get("step") if isinstance(row, dict) else None
        if not isinstance(step, int):
            continue
        for name, value in row.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and is_number and math.isfinite(value):
                curves[name].append((step, float(value)))
    return dict(curves)


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Every metric that one of the runs has, the ones looked at most first."""
    found = {name for run in runs for name in read_curves(run)}
    first = [name for name in PREFERRED_METRICS if name in found]
    return first + sorted(found.difference(first))


def curve_table(runs: Sequence[Run], metric: str | None) -> pd.DataFrame:
    """One metric of several runs: a row for each point."""
    rows = []
    for run in runs:
        points = read_curves(run).get(metric or "", [])
        stride = math.ceil(len(points) / MAX_POINTS) or 1
        # The last point is always there: it is the one that is read off.
        kept = points[:-1:stride] + points[-1:]
        rows += [{"step": step, "value": value, "run": run.id} for step, value in kept]
    return pd.DataFrame(rows, columns=["step", "value", "run"])
