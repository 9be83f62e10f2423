"""``winsome store import``: prompts, candidates and preferences from files and folders."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotate.commands.actions import Action, add_studio_arguments
from annotate.schema import Question, Split

if TYPE_CHECKING:
    from annotate.imports import Imported
    from annotate.store import PreferenceStore

_ANSWERS = ("annotator", "source_images", "question", "split")
TAKES = {
    "generated": (),
    "images": ("split",),
    "prompts": ("split",),
    "imagereward": _ANSWERS,
    "hpdv3": (*_ANSWERS, "min_confidence"),
    "pickapic": ("question", "split"),
}
"""Format -> the options that say something of it."""


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    add_studio_arguments(parser)
    parser.add_argument("source", type=Path, help="file or folder to take in")
    parser.add_argument(
        "--format",
        choices=TAKES,
        help="generated: folder of winsome generate, or a snapshot; images: folder of image files "
        "with metadata.jsonl, metadata.csv or prompt.txt; prompts: .txt, .csv, .jsonl, .parquet; "
        "imagereward, hpdv3: JSON of rankings and of comparisons; pickapic: Parquet. "
        "(default: generated or images for a folder, prompts for a file, imagereward for .json)",
    )
    parser.add_argument(
        "--split",
        choices=[word.value for word in Split],
        help="of the prompts that name none (default: train)",
    )
    foreign = parser.add_argument_group("answers that were given elsewhere")
    foreign.add_argument("--annotator", metavar="NAME", help="account that the answers go to")
    foreign.add_argument(
        "--source-images", type=Path, metavar="FOLDER", help="folder of the image files"
    )
    foreign.add_argument(
        "--question",
        choices=[word.value for word in Question],
        help="what was judged (default: overall)",
    )
    foreign.add_argument(
        "--min-confidence", type=float, metavar="SHARE", help="for hpdv3, 0 to 1 (default: 0)"
    )


def _import(args: argparse.Namespace, store: PreferenceStore) -> None:
    if not args.source.exists():
        raise FileNotFoundError(f"there is no {args.source} to import")
    chosen = args.format or _guess_format(args.source)
    done = _importers()[chosen](store, args.source, **_given(args, chosen, store))
    print(f"New: {done.prompts} prompts, {done.candidates} candidates, {done.answers} answers.")
    if done.repeated:
        print(
            f"Passed over: {done.repeated} answers about images on which the same annotator has "
            "one already, in an earlier row or from before."
        )


def _given(args: argparse.Namespace, chosen: str, store: PreferenceStore) -> dict[str, Any]:
    """The options that were given, as keywords; ValueError for one that ``chosen`` ignores."""
    names = dict.fromkeys(name for taken in TAKES.values() for name in taken)
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    for name in given:
        if name not in TAKES[chosen]:
            option = f"--{name.replace('_', '-')}"
            takers = ", ".join(word for word, taken in TAKES.items() if name in taken)
            raise ValueError(f"{option} says nothing of {chosen}; it is for {takers}")
    if "annotator" in TAKES[chosen]:
        if not {"annotator", "source_images"} <= given.keys():
            raise ValueError(
                f"to import {args.source} as {chosen} give --annotator and --source-images too"
            )
        given["annotator_id"] = store.user(given.pop("annotator")).id
        given["images"] = given.pop("source_images")
    return given


def _importers() -> dict[str, Callable[..., Imported]]:
    from annotate import foreign, imports

    return {
        "generated": imports.import_folder,
        "images": foreign.import_image_folder,
        "prompts": imports.import_prompts,
        "imagereward": imports.import_rankings,
        "hpdv3": foreign.import_hpdv3,
        "pickapic": foreign.import_pickapic,
    }


def _guess_format(source: Path) -> str:
    if source.is_dir():
        generated = any((source / f"{name}.jsonl").is_file() for name in ("prompts", "candidates"))
        return "generated" if generated else "images"
    return "imagereward" if source.suffix == ".json" else "prompts"


IMPORT_ACTIONS = {
    "import": Action(
        "Take in prompts, candidates, and preferences that were given elsewhere.",
        "winsome store import studio runs/generate\n"
        "  winsome store import studio prompts.csv --split test\n"
        "  winsome store import studio pairs.parquet --format pickapic\n"
        "  winsome store import studio rankings.json --source-images images --annotator ada",
        _import_arguments,
        _import,
    ),
}
