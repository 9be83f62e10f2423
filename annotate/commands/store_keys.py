"""The right answers of gold and qualification tasks, from a file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from annotate.commands.actions import Action, add_studio_arguments
from annotate.schema import Question, faults

if TYPE_CHECKING:
    from annotate.store import PreferenceStore


class KeyLine(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(extra="forbid")

    best: list[str] = []
    worst: list[str] = []
    question: Question | None = None
    """None: whatever the tasks ask."""


def _key_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument(
        "keys",
        type=Path,
        help='JSONL of {"best": [candidate, ...], "worst": [...], "question": "detail"}: one '
        "of best must be named the best and one of worst the worst, in each gold and qualification "
        "task that shows them all; an empty list accepts any, no question means every one",
    )


def _key(args: argparse.Namespace, store: PreferenceStore) -> None:
    """All lines are read and matched before the first key is set."""
    from annotate.store.checks import KEYED_KINDS

    tasks = [task for task in store.tasks() if task.kind in KEYED_KINDS]
    keys: dict[str, tuple[int, KeyLine]] = {}
    for number, line in _lines(args.keys):
        where = f"{args.keys}, line {number}"
        named = {*line.best, *line.worst}
        if not named:
            raise ValueError(f"{where}: a key names at least one candidate in best or worst")
        if both := sorted({*line.best} & {*line.worst}):
            raise ValueError(f"{where}: {both[0]!r} is both the best and the worst")
        found = [
            task.id
            for task in tasks
            if named <= {*task.candidate_ids} and line.question in (None, task.question)
        ]
        if not found:
            raise ValueError(
                f"{where}: no task of kind {' or '.join(KEYED_KINDS)} shows {sorted(named)}"
                + (f" and asks about {line.question}" if line.question else "")
            )
        for task_id in found:
            if task_id in keys:
                raise ValueError(f"{where}: line {keys[task_id][0]} has a key for {task_id} too")
            keys[task_id] = number, line
    for task_id, (_, line) in keys.items():
        store.set_key(task_id, line.best, line.worst)
    print(f"{len(keys)} tasks have their key.")
    warn_of_keyless(store)


def warn_of_keyless(store: PreferenceStore) -> None:
    """Say how many tasks wait for a key."""
    if count := store.count_keyless():
        print(f"{count} gold or qualification tasks have no key and are shown to nobody yet; "
              "winsome store key sets them.")  # fmt: skip


def _lines(path: Path) -> Iterator[tuple[int, KeyLine]]:
    for number, text in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            yield number, KeyLine.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(f"{path}, line {number}: {faults(error)}") from error


KEY_ACTIONS = {
    "key": Action(
        "Say which answers to gold and qualification tasks are right.",
        "winsome store key studio keys.jsonl",
        _key_arguments,
        _key,
    ),
}
