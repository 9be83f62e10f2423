"""``winsome compare``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from annotate.records import Candidate
    from annotate.store import PreferenceStore

HELP = "Ask people blindly which of two evaluated models is better, and read what they said."
EXAMPLE = "winsome compare runs/eval base dpo --studio studio --annotators 3"
KIND = "blind-ab"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="output folder of winsome eval")
    parser.add_argument("first", help="name of a model there")
    parser.add_argument("second", help="name of the model whose wins are told")
    parser.add_argument("--studio", required=True, help="folder of the studio, or a database URL")
    parser.add_argument("--images", metavar="FOLDER", help="where its images lie, for a URL")
    parser.add_argument(
        "--annotators", type=int, default=1, help="people who answer each task (default: 1)"
    )


def run(args: argparse.Namespace) -> None:
    from annotate.commands.store import open_studio

    with open_studio(args.studio, args.images) as store:
        found = compare(store, args.folder, args.first, args.second, args.annotators)
    alike = f" ({found.alike} pairs of one image are ties and were not asked)" * bool(found.alike)
    print(f"{found.tasks} blind tasks of {args.first} and {args.second}{alike}")
    if found.win_rate is None:
        print("no answers yet: run this command again when people have answered")
        return
    low, high = found.interval
    print(
        f"{args.second} wins {100 * found.win_rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of "
        f"{found.answers} answers, a tie being half; mean and 95 % interval (Wilson) over prompts"
    )


@dataclass(frozen=True)
class HumanComparison:
    """What people said of two models so far."""

    tasks: int
    answers: int
    """Picks and ties; skips, flags and all-bad answers say nothing."""
    alike: int
    """Pairs of the very same image: ties that nobody is asked about."""
    win_rate: float | None
    """Of the second model, a tie being half; None before the first answer."""
    interval: tuple[float, float] = (0.0, 1.0)
    """95 %, over prompts."""


def compare(
    store: PreferenceStore, folder: Path, first: str, second: str, annotators: int
) -> HumanComparison:
    """Make a blind task of each two images that two models drew from one noise, where it is not
    there yet, and tell what was answered.

    Raises:
        FileNotFoundError: ``folder`` has no images of such a model.
        ValueError: the models drew other prompts.
    """
    from annotate.imports import import_folder
    from annotate.schema import Outcome
    from annotate.shares import win_rate

    if first == second:
        raise ValueError(f"first and second are both {first!r}: name two models")
    drawn = [_drawn(folder, name) for name in (first, second)]
    if drawn[0].keys() != drawn[1].keys():
        raise ValueError(f"{first} and {second} did not draw the same prompts from the same noise")
    for name in (first, second):
        import_folder(store, folder / "models" / name)
    pairs = [(drawn[0][key], drawn[1][key]) for key in drawn[0]]
    different = [(a, b) for a, b in pairs if a.image_sha256 != b.image_sha256]
    asked = [(a.prompt_id, [a.id, b.id]) for a, b in different]
    tasks = {t.id: t for t in store.add_tasks(asked, annotators_per_task=annotators, kind=KIND)}
    seconds = {b.id for _, b in different}
    rows = [(a.prompt_id, 0.5) for a, b in pairs if a.image_sha256 == b.image_sha256]
    alike = len(rows)
    for pick in store.labelled(kinds=[KIND])[3]:
        task = tasks.get(pick.task_id)
        if task is None:
            continue
        if pick.win is not None:
            rows.append((task.prompt_id, float(task.candidate_ids[pick.win] in seconds)))
        elif pick.outcome == Outcome.ALL_EQUAL:
            rows.append((task.prompt_id, 0.5))
    answers = len(rows) - alike
    if not rows or (different and not answers):
        return HumanComparison(len(tasks), answers, alike, None)
    rate = win_rate(rows)
    return HumanComparison(len(tasks), answers, alike, rate.value, (rate.ci_low, rate.ci_high))


def _drawn(folder: Path, name: str) -> dict[str, Candidate]:
    """Candidates of a model by what they were drawn from: seed, prompt and number."""
    from annotate.records import Candidate

    path = folder / "models" / name / "candidates.jsonl"
    if not path.is_file():
        models: Sequence[str] = sorted(p.name for p in folder.glob("models/*"))
        choices = ", ".join(models) or "none: winsome eval fills such a folder"
        raise FileNotFoundError(f"{folder} has no images of a model {name!r}; models: {choices}")
    found = {}
    for line in path.read_bytes().splitlines():
        candidate = Candidate.model_validate_json(line)
        assert candidate.generation is not None
        found[candidate.generation.noise_key] = candidate
    return found
