"""What comes back into a studio: blind win rates of its A/B tasks, and runs for its pages."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotate.commands.actions import Action, add_studio_arguments
from annotate.schema import Question

if TYPE_CHECKING:
    from annotate.store import PreferenceStore

ALL = "(all)"


def _wins_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument(
        "--question",
        action="append",
        choices=[word.value for word in Question],
        help="only tasks that asked this; may be given again (default: all)",
    )
    parser.add_argument(
        "--kind",
        action="append",
        help="only tasks made with this --kind; may be given again (default: all but checks)",
    )
    parser.add_argument(
        "--with-chosen",
        action="store_true",
        help="count tasks too that a reward's uncertainty put in the queue: they are the hard ones",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows as CSV too")


def _wins(args: argparse.Namespace, store: PreferenceStore) -> None:
    from annotate.web.quality import to_csv
    from annotate.win_rates import pairings, standings

    judged = store.judged(args.kind)
    asked = [
        pick
        for pick in judged.picks
        if not args.question or judged.tasks[pick.task_id].question in args.question
    ]
    picks = [pick for pick in asked if args.with_chosen or pick.id in judged.by_chance]
    ranked = standings(judged.tasks, judged.candidates, picks)
    if not ranked:
        raise ValueError(
            f"no answer compares two model versions: {len(picks)} answers looked at; a comparison "
            "needs a task whose candidates were drawn by different models"
        )
    rows = [
        {
            "model": row.model, "against": ALL, "wins": row.n_wins, "losses": row.n_losses,
            "ties": row.n_ties, "win rate": row.win_rate, "strength": row.strength,
            "low": row.ci_low, "high": row.ci_high, "prompts": "",
        }
        for row in ranked
    ]  # fmt: skip
    rows += [
        {
            "model": row.model, "against": row.against, "wins": row.n_wins, "losses": row.n_losses,
            "ties": row.n_ties, "win rate": row.win_rate, "strength": "",
            "low": row.ci_low, "high": row.ci_high, "prompts": row.n_prompts,
        }
        for row in pairings(judged.tasks, judged.candidates, picks)
    ]  # fmt: skip
    rounded = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        for row in rows
    ]
    if args.csv is not None:
        args.csv.write_text(to_csv(rounded), encoding="utf-8")
    print("Model versions by the lower end of their Bradley-Terry strength (95 %):")
    columns = ["model", "wins", "losses", "ties", "win rate", "strength", "low", "high"]
    _print_table(rounded[: len(ranked)], columns)
    print("\nOne against another, the win rate with its 95 % interval over prompts:")
    columns = ["model", "against", "wins", "losses", "ties", "win rate", "low", "high", "prompts"]
    _print_table(rounded[len(ranked) :], columns)
    if len(picks) < len(asked):
        left_out = len(asked) - len(picks)
        print(f"\nLeft out: {left_out} answers to tasks that scores, not chance, put in the queue.")


def _print_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    cells = [list(columns), *([str(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument("folder", type=Path, help="output_dir of a training run or a reward model")
    parser.add_argument("--id", metavar="NAME", help="its name (default: the folder's)")


def _add_run(args: argparse.Namespace, store: PreferenceStore) -> None:
    from annotate.runs import read_run

    run = read_run(args.folder, args.id)
    known = {found.id: found.folder for found in store.runs()}
    if known.get(run.id, run.folder) != run.folder:
        raise ValueError(
            f"run {run.id!r} is there already, of {known[run.id]}; name this one with --id"
        )
    store.add_run(run)
    word = "Updated" if run.id in known else "Added"
    print(f"{word} {run.kind} run {run.id}, {run.status}; its curves are read from {run.folder}.")


RESULT_ACTIONS = {
    "wins": Action(
        "Rank model versions by the blind comparisons that people made.",
        "winsome store wins studio --question overall --csv wins.csv",
        _wins_arguments,
        _wins,
    ),
    "add-run": Action(
        "List a run's folder on the Runs page, or bring it up to date.",
        "winsome store add-run studio runs/dpo --id dpo-2",
        _add_run_arguments,
        _add_run,
    ),
}
