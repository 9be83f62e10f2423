"""The figures on quality as tables: agreement, annotators, standings, disputes.

They are aggregates over every answer and cost seconds in a large studio. So they are kept for a
while, and say as of when and of which answers they are.
"""

from __future__ import annotations

import csv
import hashlib
import io
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from annotate.agreement import (
    Agreement,
    annotator_agreement,
    annotator_matrix,
    leave_each_out,
    leave_one_out,
    ordinal_alpha,
    reversal_rate,
)
from annotate.consistency import agreement_over_time, position_bias, self_consistency
from annotate.reliability import annotator_reliability
from annotate.snapshot import json_line
from annotate.store import Judged, PreferenceStore
from annotate.win_rates import standings

Row = dict[str, Any]
KEPT_S = 60.0


@dataclass(frozen=True)
class Figures:
    """Tables by name, with what they are made of."""

    digest: str
    """SHA-256 of the answers."""
    made_at: datetime
    tables: Mapping[str, list[Row]]


class FigureCache:
    """The figures of a store, made again when they are older than ``kept_s`` seconds."""

    def __init__(self, store: PreferenceStore, kept_s: float = KEPT_S):
        self._store, self._kept_s = store, kept_s
        self._lock = threading.Lock()
        self._made: tuple[float, Figures] | None = None

    def figures(self) -> Figures:
        """The newest figures; one request makes them, the others wait for it."""
        with self._lock:
            if self._made is None or time.monotonic() - self._made[0] > self._kept_s:
                self._made = time.monotonic(), make_figures(self._store)
            return self._made[1]


def make_figures(store: PreferenceStore) -> Figures:
    """Every table, from one look at the store's answers."""
    judged = store.judged()
    lines = sorted(json_line(pick.model_dump(mode="json")) for pick in judged.picks)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Figures(
        digest=digest,
        made_at=datetime.now(UTC),
        tables={
            "agreement": agreement_rows(judged),
            "annotators": annotator_rows(store, judged),
            "pairs": pair_rows(judged),
            "drift": drift_rows(judged),
            "standings": standing_rows(judged),
        },
    )


def agreement_rows(judged: Judged) -> list[Row]:
    """Each measure of agreement with its interval; those that nothing can be said of are left out.

    Nothing can be said while no task was answered by two.
    """
    tasks, picks = judged.tasks, judged.picks
    counted: dict[str, int] = {}
    for pick in picks:
        if pick.win is not None:
            counted[pick.task_id] = counted.get(pick.task_id, 0) + 1
    if max(counted.values(), default=0) < 2:
        return []
    measures: dict[str, Callable[[], Agreement]] = {
        "alpha of the best": lambda: ordinal_alpha(tasks, picks, "win"),
        "alpha of the worst": lambda: ordinal_alpha(tasks, picks, "lose"),
        "alpha of the outcome": lambda: ordinal_alpha(tasks, picks, "outcome"),
        "reversal rate": lambda: reversal_rate(tasks, picks),
    }
    # Two may order no pair in common, and three are needed for a majority that is not a tie.
    shared = any(row.implied_pairs is not None for row in annotator_matrix(tasks, picks))
    if shared:
        measures["implied pairs"] = lambda: annotator_agreement(tasks, picks)
    if leave_each_out(tasks, picks):
        measures["one against the others"] = lambda: leave_one_out(tasks, picks)
    return [{"measure": name, **_interval(measure())} for name, measure in measures.items()]


def annotator_rows(store: PreferenceStore, judged: Judged) -> list[Row]:
    """One row for each annotator, in the order of their names: this is no race."""
    against = leave_each_out(judged.tasks, judged.picks)
    temperature = {r.annotator: r for r in annotator_reliability(judged.tasks, judged.picks)}
    again = {row.annotator: row for row in self_consistency(store.repeats())}
    accounts = {user.id: user.name for user in store.users()}
    gold = {accounts[row.user_id]: row for row in store.keyed_answers()}
    rows = []
    for pseudonym, name in sorted(judged.names.items(), key=lambda item: item[1]):
        own = [pick for pick in judged.picks if pick.annotator == pseudonym]
        places = [
            (best, len(judged.tasks[pick.task_id].candidate_ids))
            for pick in own
            if pick.id in judged.places and (best := judged.places[pick.id][0]) is not None
        ]
        row: Row = {"annotator": name, "answers": len(own)}
        if pseudonym in against:
            row |= _interval(against[pseudonym], "against others")
        if found := temperature.get(pseudonym):
            row |= {
                "temperature": round(found.temperature, 3),
                "temperature low": round(found.ci_low, 3),
                "temperature high": round(found.ci_high, 3),
            }
        if key := gold.get(name):
            row |= {"gold": key.answered, "gold right": round(key.correct / key.answered, 3)}
        if repeated := again.get(pseudonym):
            row |= {"repeats": repeated.n_repeats, "same best": repeated.same_best}
        if places:
            row["position p"] = round(position_bias(places).p_value, 4)
        rows.append(row)
    return _filled(rows)


def pair_rows(judged: Judged) -> list[Row]:
    """The matrix: every two annotators who share a task."""
    return [
        {
            "first": judged.names[row.first],
            "second": judged.names[row.second],
            "tasks": row.n_tasks,
            "same best": round(row.best, 3),
            "same worst": round(row.worst, 3),
            "pairs alike": None if row.implied_pairs is None else round(row.implied_pairs, 3),
        }
        for row in annotator_matrix(judged.tasks, judged.picks)
    ]


def drift_rows(judged: Judged) -> list[Row]:
    """Each annotator's agreement with the others, fifty of their tasks at a time."""
    return [
        {
            "annotator": name,
            "from": window.start.isoformat(timespec="minutes"),
            "to": window.end.isoformat(timespec="minutes"),
            **_interval(window.agreement),
        }
        for pseudonym, name in sorted(judged.names.items(), key=lambda item: item[1])
        for window in agreement_over_time(judged.tasks, judged.picks, judged.times, pseudonym)
    ]


def standing_rows(judged: Judged) -> list[Row]:
    """Model versions by the lower end of their strength, from tasks that chance queued."""
    picks = [pick for pick in judged.picks if pick.id in judged.by_chance]
    return [
        {
            "model": row.model,
            "strength": round(row.strength, 3),
            "low": round(row.ci_low, 3),
            "high": round(row.ci_high, 3),
            "win rate": round(row.win_rate, 3),
            "comparisons": row.n_comparisons,
        }
        for row in standings(judged.tasks, judged.candidates, picks)
    ]


def to_csv(rows: Sequence[Row]) -> str:
    """A header and a line each. A text that a spreadsheet would run as a formula is quoted."""
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _interval(found: Agreement, name: str = "value") -> Row:
    prefix = "" if name == "value" else f"{name} "
    return {
        name: round(found.value, 4),
        f"{prefix}low": round(found.ci_low, 4),
        f"{prefix}high": round(found.ci_high, 4),
        f"{prefix}n": found.n_pairs,
    }


def _filled(rows: list[Row]) -> list[Row]:
    """Every row with every column, in the order in which they first come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]
