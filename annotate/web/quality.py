"""The figures on quality as tables: agreement, annotators, places on the screen, standings."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
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
from annotate.consistency import (
    PositionBias,
    agreement_over_time,
    position_bias,
    self_consistency,
)
from annotate.reliability import annotator_reliability
from annotate.schema import Pick
from annotate.store import Judged, PreferenceStore
from annotate.win_rates import BLIND, pairings, standings

Row = dict[str, Any]


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
        if bias := _bias(judged, own, 0):
            row["position p"] = round(bias.p_value, 4)
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


def position_rows(judged: Judged) -> list[Row]:
    """How often each place on the screen was the best and the worst, and how often by chance."""
    rows = []
    for which, side in enumerate(("best", "worst")):
        if bias := _bias(judged, judged.picks, which):
            rows += [
                {
                    "side": side,
                    "position": place + 1,
                    "chosen": count,
                    "expected": round(expected, 1),
                    "p": round(bias.p_value, 4),
                }
                for place, (count, expected) in enumerate(
                    zip(bias.counts, bias.expected, strict=True)
                )
            ]
    return rows


def _bias(judged: Judged, picks: Sequence[Pick], which: int) -> PositionBias | None:
    """Of the best (0) or the worst (1); None where no pick names a place."""
    places = [
        (place, len(judged.tasks[pick.task_id].candidate_ids))
        for pick in picks
        if pick.id in judged.places and (place := judged.places[pick.id][which]) is not None
    ]
    return position_bias(places) if places else None


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


def blind_rows(judged: Judged) -> list[Row]:
    """Every two model versions that blind tasks set against each other, by their names."""
    picks = [pick for pick in judged.picks if judged.tasks[pick.task_id].kind == BLIND]
    return [
        {
            "first": row.model,
            "second": row.against,
            "win rate": round(row.win_rate, 3),
            "low": round(row.ci_low, 3),
            "high": round(row.ci_high, 3),
            "wins": row.n_wins,
            "losses": row.n_losses,
            "ties": row.n_ties,
            "prompts": row.n_prompts,
        }
        for row in pairings(judged.tasks, judged.candidates, picks)
        if row.model < row.against
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
