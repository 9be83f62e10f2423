"""How the labelling goes, as tables: answers by day and question, by person, and by how tired."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import timedelta
from statistics import median
from typing import Any

from annotate.schema import Outcome, Question
from annotate.store.models import LabelEvent
from annotate.store.throughput import AnswerCount

Row = dict[str, Any]
BREAK = timedelta(minutes=5)
"""So long without an answer is a break: the next answer begins a sitting."""
SITTING_MINUTES = (0, 15, 30, 45, 60)
"""Where each part of a sitting begins; the last has no end."""


def day_rows(counts: Sequence[AnswerCount]) -> list[Row]:
    """Answers of each UTC day, by question."""
    found = Counter[tuple[str, Question]]()
    for row in counts:
        found[row.day, row.question] += row.answers
    days = sorted({day for day, _ in found})
    return [
        {"day": day, **{question.value: found[day, question] for question in Question}}
        for day in days
    ]


def outcome_rows(counts: Sequence[AnswerCount]) -> list[Row]:
    """A row for each question, a column for each outcome."""
    found = Counter[tuple[Question, Outcome]]()
    for row in counts:
        found[row.question, row.outcome] += row.answers
    return [
        {
            "question": question.value,
            **{outcome.value: found[question, outcome] for outcome in Outcome},
            "all": sum(found[question, outcome] for outcome in Outcome),
        }
        for question in Question
    ]


def person_rows(counts: Sequence[AnswerCount], events: Sequence[LabelEvent]) -> list[Row]:
    """How much each person did, in the order of names: this is no race.

    Args:
        events: the newest answers, whose median time is given.
    """
    found = Counter[tuple[str, Outcome]]()
    last: dict[str, str] = {}
    for row in counts:
        found[row.annotator, row.outcome] += row.answers
        last[row.annotator] = max(row.day, last.get(row.annotator, ""))
    times = defaultdict(list)
    for event in events:
        if event.active_ms is not None:
            times[event.annotator].append(event.active_ms / 1000)
    return [
        {
            "name": name,
            "answers": sum(found[name, outcome] for outcome in Outcome),
            **{outcome.value: found[name, outcome] for outcome in Outcome},
            "median s": round(median(times[name]), 1) if times[name] else None,
            "last": last[name],
        }
        for name in sorted(last)
    ]


def fatigue_rows(events: Sequence[LabelEvent]) -> list[Row]:
    """By minutes since a sitting began: speed, and the share of answers that judge nothing.

    Args:
        events: oldest first.
    """
    begun: dict[str, Any] = {}
    before: dict[str, Any] = {}
    parts: dict[int, list[LabelEvent]] = {start: [] for start in SITTING_MINUTES}
    for event in events:
        who, at = event.annotator, event.submitted_at
        if who not in before or at - before[who] > BREAK:
            begun[who] = at
        before[who] = at
        minutes = (at - begun[who]).total_seconds() / 60
        parts[max(start for start in SITTING_MINUTES if start <= minutes)].append(event)
    rows = []
    for start, own in parts.items():
        if own:
            times = [event.active_ms / 1000 for event in own if event.active_ms is not None]
            idle = sum(event.outcome in (Outcome.SKIP, Outcome.FLAG) for event in own)
            rows.append(
                {
                    "minutes from": start,
                    "answers": len(own),
                    "median s": round(median(times), 1) if times else None,
                    "skipped or flagged": round(idle / len(own), 3),
                }
            )
    return rows
