"""Brings content into a store from files: folders of candidates, and rankings by other people."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError, model_validator

from annotate.images import png_of
from annotate.pairs import compare_ranks
from annotate.prompt_files import read_prompts
from annotate.schema import Candidate, Outcome, Prompt, Question, Record, Split, faults
from annotate.store import Answer, PreferenceStore, StoreError
from annotate.store.content import sha256_of

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Imported:
    """How many of each were new."""

    prompts: int = 0
    candidates: int = 0
    answers: int = 0
    repeated: int = 0
    """Answers that were passed over: this annotator has answered about these images already, in an
    earlier row or before."""

    def __add__(self, other: Imported) -> Imported:
        return Imported(
            self.prompts + other.prompts,
            self.candidates + other.candidates,
            self.answers + other.answers,
            self.repeated + other.repeated,
        )


class RankedImages(Record):
    """One prompt's images in the order of preference, as ImageReward publishes them."""

    id: str
    prompt: str
    generations: tuple[str, ...]
    """Image files, relative to the folder of images."""
    ranking: tuple[int, ...]
    """Of each image, 1 for the best; equal numbers are ties."""

    @model_validator(mode="after")
    def _one_rank_each(self) -> RankedImages:
        if len(self.generations) != len(self.ranking):
            raise ValueError(f"{len(self.generations)} images have {len(self.ranking)} ranks")
        return self


def read_records(path: Path, record: type[R]) -> list[R]:
    """The records of a JSONL file, one a line; an error names the file and the line."""
    records = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                records.append(record.model_validate_json(text))
            except ValidationError as error:
                raise StoreError(f"{path}, line {number}: {faults(error)}") from error
    return records


def import_folder(store: PreferenceStore, folder: Path) -> Imported:
    """Take in ``prompts.jsonl``, and ``candidates.jsonl``, where they are there, with ``images/``.

    Such folders come from ``winsome generate``; the content of a snapshot can be taken in too.
    """
    prompts, candidates = folder / "prompts.jsonl", folder / "candidates.jsonl"
    if not (prompts.is_file() or candidates.is_file()):
        raise FileNotFoundError(f"{folder} has neither {prompts.name} nor {candidates.name}")
    images = folder / "images"
    added = store.add_prompts(read_records(prompts, Prompt), images) if prompts.is_file() else 0
    if not candidates.is_file():
        return Imported(prompts=added)
    records = read_records(candidates, Candidate)
    return Imported(added, store.add_candidates(records, images))


def import_prompts(
    store: PreferenceStore, path: Path, split: Split | str = Split.TRAIN
) -> Imported:
    """The prompts of a file, as `annotate.prompt_files.read_prompts` has them."""
    images: dict[str, bytes] = {}
    prompts = read_prompts(path, split, images)
    return Imported(prompts=store.add_prompts(prompts, images))


def import_rankings(
    store: PreferenceStore,
    path: Path,
    images: Path,
    annotator_id: int,
    question: Question | str = Question.OVERALL,
    split: Split | str = Split.TRAIN,
) -> Imported:
    """Take over rankings with ties, such as ImageReward's JSON, as answers of ``annotator_id``.

    Best and worst cannot say all that a ranking says, so each pair of images becomes a task of
    two: picked where one ranks higher, all equal where they tie. Pixels are kept; the files
    become PNG.
    """
    total = Imported()
    for item in _read_rankings(path):
        prompts = store.add_prompts([Prompt(id=item.id, text=item.prompt, split=Split(split))])
        files = [png_of(read_image(images / name), name) for name in item.generations]
        shown = [
            Candidate(
                id=f"{item.id}/{index}",
                prompt_id=item.id,
                image_sha256=sha256_of(data),
                width=size[0],
                height=size[1],
            )
            for index, (data, size) in enumerate(files)
        ]
        data_of = {sha256_of(data): data for data, _ in files}
        total += Imported(prompts, store.add_candidates(shown, data_of))
        ordered, ties = compare_ranks(item.ranking)
        total += _answer(store, item.id, ordered, Outcome.PICKED, annotator_id, question)
        total += _answer(store, item.id, ties, Outcome.ALL_EQUAL, annotator_id, question)
    return total


def _answer(
    store: PreferenceStore,
    prompt_id: str,
    pairs: Iterable[tuple[int, int]],
    outcome: Outcome,
    annotator_id: int,
    question: Question | str,
) -> Imported:
    """A task and its answer for each pair, (better, worse) where ``outcome`` is picked."""
    ids = [(f"{prompt_id}/{a}", f"{prompt_id}/{b}") for a, b in pairs]
    tasks = store.add_tasks([(prompt_id, pair) for pair in ids], question, kind="ranking")
    picked = outcome == Outcome.PICKED
    answers = [
        Answer(
            task_id=task.id,
            outcome=outcome,
            win_id=win if picked else None,
            lose_id=lose if picked else None,
        )
        for task, (win, lose) in zip(tasks, ids, strict=True)
    ]
    added = store.add_answers(annotator_id, answers)
    return Imported(answers=added, repeated=len(answers) - added)


def _read_rankings(path: Path) -> list[RankedImages]:
    try:
        entries = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise StoreError(f"{path} must hold a list of rankings, got {type(entries).__name__}")
    rankings = []
    for number, entry in enumerate(entries):
        try:
            rankings.append(RankedImages.model_validate(entry))
        except ValidationError as error:
            raise StoreError(f"{path}, entry {number}: {faults(error)}") from error
    return rankings


def read_image(path: Path) -> bytes:
    """The bytes of an image file; FileNotFoundError names it."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no image {path}")
    return path.read_bytes()
