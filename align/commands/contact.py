"""``winsome contact``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from annotate.records import Pick, Task
    from annotate.store import PreferenceStore
    from rewards.contact_sheets import Sheet

HELP = "Show designers blindly what an RL run is paid for, and read whether they agree."
EXAMPLE = "winsome contact runs/grpo --studio studio --annotators 2"
KIND = "contact-sheet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder of winsome grpo")
    parser.add_argument("--studio", required=True, help="folder of the studio, or a database URL")
    parser.add_argument("--images", metavar="FOLDER", help="where its images lie, for a URL")
    parser.add_argument(
        "--annotators", type=int, default=1, help="people who answer each task (default: 1)"
    )


def run(args: argparse.Namespace) -> None:
    from annotate.commands.store import open_studio

    with open_studio(args.studio, args.images) as store:
        found = send_sheets(store, args.run, args.annotators)
    for sheet in found:
        line = f"{sheet.name}: {sheet.tasks} blind tasks, {sheet.answers} answers"
        if sheet.agreement is not None:
            low, high = sheet.interval
            line += (
                f"; designers order best and worst as the reward does in "
                f"{100 * sheet.agreement:.0f} % [{100 * low:.0f}, {100 * high:.0f}], and call its "
                f"favourite the worst in {100 * sheet.favourite_worst:.0f} %"
            )
        if sheet.all_bad:
            line += f"; {sheet.all_bad} all bad"
        print(line + f"   ({sheet.reason})" * bool(sheet.reason))


@dataclass(frozen=True)
class SheetAnswers:
    """What people said of one contact sheet so far."""

    name: str
    reason: str
    """The alarm that it was kept for, or nothing."""
    tasks: int
    answers: int
    """Skips and flags left out."""
    all_bad: int
    agreement: float | None
    """Share of picks whose best was paid more than their worst; None before the first."""
    interval: tuple[float, float] = (0.0, 1.0)
    """95 %, whole prompts drawn again."""
    favourite_worst: float = 0.0
    """Share of picks that call the image with the highest reward the worst."""


def send_sheets(store: PreferenceStore, run: Path, annotators: int) -> list[SheetAnswers]:
    """Make a blind task of each prompt of each contact sheet of a run, where it is not there yet,
    and tell what was answered.

    Raises:
        FileNotFoundError: the run has no sheets.
    """
    from annotate.imports import import_folder
    from rewards.contact_sheets import read_sheets

    sheets = read_sheets(run)
    tasks: dict[str, list[Task]] = {}
    for folder, sheet in sheets.items():
        import_folder(store, folder)
        asked = [(task.prompt_id, sorted(task.rewards)) for task in sheet.tasks]
        tasks[folder.name] = store.add_tasks(asked, annotators_per_task=annotators, kind=KIND)
    picks = store.labelled(kinds=[KIND])[3]
    return [
        _answers(folder.name, sheet, tasks[folder.name], picks) for folder, sheet in sheets.items()
    ]


def _answers(name: str, sheet: Sheet, tasks: Sequence[Task], picks: Iterable[Pick]) -> SheetAnswers:
    from annotate.schema import Outcome
    from rewards.metrics import paired_difference

    paid = {name: reward for task in sheet.tasks for name, reward in task.rewards.items()}
    task_of = {task.id: task for task in tasks}
    own = [(task_of[pick.task_id], pick) for pick in picks if pick.task_id in task_of]
    alike: list[tuple[str, float]] = []
    worst = 0
    for task, pick in own:
        if pick.win is None or pick.lose is None:
            continue
        rewards = [paid[candidate_id] for candidate_id in task.candidate_ids]
        win, lose = rewards[pick.win], rewards[pick.lose]
        alike.append((task.prompt_id, 0.5 if win == lose else float(win > lose)))
        worst += lose == max(rewards)
    outcomes = [pick.outcome for _, pick in own]
    answers = sum(outcome not in (Outcome.SKIP, Outcome.FLAG) for outcome in outcomes)
    told = SheetAnswers(
        name, sheet.reason, len(tasks), answers, outcomes.count(Outcome.ALL_BAD), None
    )
    if not alike:
        return told
    prompts, values = [row[0] for row in alike], [row[1] for row in alike]
    rate = paired_difference(prompts, values, [0.0] * len(values))
    return replace(
        told,
        agreement=rate.difference,
        interval=(rate.low, rate.high),
        favourite_worst=worst / len(alike),
    )
