"""``winsome snapshot``: cuts snapshots, verifies them, writes their pairs."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotate.commands.actions import Action, add_actions, writing
from annotate.commands.store import open_studio
from annotate.pairs import PAIR_POLICIES
from annotate.schema import Question, Split

if TYPE_CHECKING:
    from annotate.snapshot import Snapshot

HELP = "Cut an immutable snapshot of a studio's picks; verify one; write its pairs."
EXAMPLE = "winsome snapshot cut studio runs/snapshot"
RANKING = "ranking"
EXPORT_FORMATS = ("jsonl", "parquet", "trl", "pickapic", "hpdv3")
WITHOUT_QUESTION = ("trl", "pickapic", "hpdv3")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> None:
    ACTIONS[args.action].run(args)


def _cut_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("studio", help="folder of the studio, or a database URL")
    parser.add_argument("folder", type=Path, help="new folder to write")
    parser.add_argument("--images", metavar="PLACE", help="folder or URL where the images lie")
    parser.add_argument(
        "--without-images", action="store_true", help="only name the images, by their hashes"
    )
    parser.add_argument(
        "--question",
        action="append",
        choices=[word.value for word in Question],
        help="keep only this; may be repeated",
    )
    parser.add_argument(
        "--split",
        action="append",
        choices=[word.value for word in Split],
        help="keep only this; may be repeated",
    )
    parser.add_argument("--kind", action="append", help="keep only these tasks; may be repeated")


def _cut(args: argparse.Namespace) -> None:
    from annotate.snapshot import cut_snapshot

    with open_studio(args.studio, args.images) as store, writing(args.folder):
        snapshot = cut_snapshot(
            store,
            args.folder,
            with_images=not args.without_images,
            questions=args.question,
            kinds=args.kind,
            splits=args.split,
        )
    _describe(snapshot)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of the snapshot")
    parser.add_argument("--images", metavar="PLACE", help="folder or URL to look for images too")
    parser.add_argument("--without-images", action="store_true", help="do not read the images")


def _verify(args: argparse.Namespace) -> None:
    from annotate.snapshot import load_snapshot

    snapshot = load_snapshot(args.folder, images=args.images)
    if not args.without_images:
        snapshot.verify_images()
    _describe(snapshot)


def _pairs_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of the snapshot")
    parser.add_argument(
        "--policy",
        choices=[*PAIR_POLICIES, RANKING],
        default="win_lose",
        help="win_lose: best against worst (default); implied_all: all pairs that follow; "
        "ranking: best, middle and worst in one line",
    )
    parser.add_argument(
        "--question", choices=[word.value for word in Question], help="only tasks that asked this"
    )
    parser.add_argument(
        "--split", choices=[word.value for word in Split], help="only prompts of this split"
    )
    parser.add_argument("--images", metavar="PLACE", help="folder or URL to look for images too")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="JSONL file (default: standard output)"
    )


def _pairs(args: argparse.Namespace) -> None:
    from annotate.exports import replace_file
    from annotate.snapshot import json_line, load_snapshot

    snapshot = load_snapshot(args.folder, images=args.images)
    rows = _ranking_rows if args.policy == RANKING else _pair_rows
    lines = [json_line(row) + "\n" for row in rows(snapshot, args)]
    if args.output is None:
        sys.stdout.writelines(lines)
        return
    with writing(args.output):
        replace_file(args.output, lambda partial: partial.write_text("".join(lines), "utf-8"))
    print(f"{len(lines)} lines in {args.output}")


def _pair_rows(snapshot: Snapshot, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows as ``winsome dpo`` reads them: image paths relative to the file's folder."""
    from annotate.exports import pair_rows

    pairs = snapshot.pairs(args.policy, args.question, args.split)
    return pair_rows(snapshot, pairs, _image_namer(snapshot, args))


def _ranking_rows(snapshot: Snapshot, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    image = _image_namer(snapshot, args)
    for ranking in snapshot.rankings(args.question, args.split):
        prompt = snapshot.prompt_of[ranking.prompt_id]
        yield {
            "prompt": prompt.text,
            "win": image(ranking.win_id),
            "middle": [image(candidate_id) for candidate_id in ranking.middle_ids],
            "lose": image(ranking.lose_id),
            "split": prompt.split.value,
            "question": ranking.question.value,
            "annotator": ranking.annotator,
            "pick_id": ranking.pick_id,
        }


def _image_namer(snapshot: Snapshot, args: argparse.Namespace) -> Callable[[str], str]:
    folder = Path.cwd() if args.output is None else args.output.parent

    def name(candidate_id: str) -> str:
        return os.path.relpath(snapshot.image_path(snapshot.candidate_of[candidate_id]), folder)

    return name


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of the snapshot")
    parser.add_argument("file", type=Path, help="file to write")
    parser.add_argument(
        "--format",
        choices=EXPORT_FORMATS,
        required=True,
        help="jsonl, parquet: one pair a row, images as paths; trl: prompt, chosen, rejected with "
        "the images inside; pickapic: its Parquet columns; hpdv3: its JSON",
    )
    parser.add_argument("--policy", choices=[*PAIR_POLICIES], default="win_lose")
    parser.add_argument(
        "--question", choices=[word.value for word in Question], help="only tasks that asked this"
    )
    parser.add_argument(
        "--split", choices=[word.value for word in Split], help="only prompts of this split"
    )
    parser.add_argument("--images", metavar="PLACE", help="folder or URL to look for images too")


def _export(args: argparse.Namespace) -> None:
    from annotate.exports import EXPORTS
    from annotate.snapshot import load_snapshot

    snapshot = load_snapshot(args.folder, images=args.images)
    # Ties are no pairs: Pick-a-Pic's are read from the picks, which must be the asked ones too.
    asked = replace(snapshot, picks=tuple(snapshot.select(args.question, args.split)))
    pairs = asked.pairs(args.policy)
    with writing(args.file):
        count = EXPORTS[args.format](asked, pairs, args.file)
    print(f"{count} rows in {args.file}")
    questions = {snapshot.task_of[pair.task_id].question.value for pair in pairs}
    if args.format in WITHOUT_QUESTION and len(questions) > 1:
        mixed = ", ".join(sorted(questions))
        print(
            f"{args.format} has no column for the question: the answers to {mixed} stand there as "
            "one preference; --question keeps one",
            file=sys.stderr,
        )


def _describe(snapshot: Snapshot) -> None:
    questions = Counter(snapshot.task_of[pick.task_id].question.value for pick in snapshot.picks)
    outcomes = Counter(pick.outcome.value for pick in snapshot.picks)
    annotators = len({pick.annotator for pick in snapshot.picks})
    print(f"digest      {snapshot.digest}")
    print(f"folder      {snapshot.folder}")
    print(f"prompts     {len(snapshot.prompts)}")
    print(f"candidates  {len(snapshot.candidates)}")
    print(f"tasks       {len(snapshot.tasks)}")
    print(f"picks       {len(snapshot.picks)} by {annotators} annotators")
    for title, counts in (("questions", questions), ("outcomes", outcomes)):
        print(f"{title:<10}  {', '.join(f'{n} {name}' for name, n in sorted(counts.items()))}")


ACTIONS = {
    "cut": Action(
        "Cut a snapshot of the current picks into a new folder.",
        "winsome snapshot cut studio runs/snapshot --split train --split validation",
        _cut_arguments,
        _cut,
    ),
    "verify": Action(
        "Verify a snapshot against its digest, images included.",
        "winsome snapshot verify runs/snapshot",
        _verify_arguments,
        _verify,
    ),
    "pairs": Action(
        "Write the preference pairs of a snapshot as JSONL.",
        "winsome snapshot pairs runs/snapshot --policy implied_all --output runs/pairs.jsonl",
        _pairs_arguments,
        _pairs,
    ),
    "export": Action(
        "Write a snapshot's preferences in the columns of other tools.",
        "winsome snapshot export runs/snapshot pairs.parquet --format trl",
        _export_arguments,
        _export,
    ),
}
