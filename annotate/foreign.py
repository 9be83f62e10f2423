"""Candidates and preferences that were made elsewhere: image folders, Pick-a-Pic, HPDv3.

(ImageReward's rankings are in `annotate.imports`.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from annotate.images import png_of
from annotate.imports import Imported, read_image
from annotate.prompt_files import READERS, TEXT_COLUMNS, parquet_rows, prompt_id
from annotate.schema import Candidate, Outcome, Prompt, Question, Split, faults, language
from annotate.store import Answer, PreferenceStore, StoreError
from annotate.store.content import sha256_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PROMPT_FILE = "prompt.txt"
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
ROWS_AT_ONCE = 64


class PickapicRow(BaseModel):
    """One labelled comparison as Pick-a-Pic publishes it."""

    # Ids are numbers there, and text where they were made elsewhere.
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    caption: str
    image_0_uid: str
    image_1_uid: str
    jpg_0: bytes | None
    jpg_1: bytes | None
    label_0: float
    label_1: float
    user_id: str

    @model_validator(mode="after")
    def _labels_share_a_vote(self) -> Self:
        if self.label_0 + self.label_1 != 1.0:
            raise ValueError(
                f"label_0 and label_1 are 1 and 0, 0 and 1, or 0.5 both; got {self.label_0} and "
                f"{self.label_1}"
            )
        return self


PICKAPIC_COLUMNS = ("has_label", *PickapicRow.model_fields)


class HPDv3Row(BaseModel):
    """One comparison as HPDv3 publishes it: ``path1`` was preferred."""

    model_config = ConfigDict(extra="ignore")

    prompt: str
    path1: str
    path2: str
    confidence: float | None = Field(default=None, allow_inf_nan=False)


def import_image_folder(
    store: PreferenceStore, folder: Path, split: Split | str = Split.TRAIN
) -> Imported:
    """Candidates from image files, their prompts from ``metadata.jsonl`` or ``.csv`` beside them
    (``file_name`` and ``prompt``, as the datasets library has it), or from a ``prompt.txt`` in each
    subfolder.
    """
    metadata = next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)
    named = _from_metadata(metadata) if metadata else _from_subfolders(folder)
    total = Imported()
    while part := list(islice(named, ROWS_AT_ONCE)):
        new = [
            _candidate(text, _file_id(path, folder), read_image(path), split) for text, path in part
        ]
        total += _add(store, new)
    return total


def import_pickapic(
    store: PreferenceStore,
    path: Path,
    question: Question | str = Question.OVERALL,
    split: Split | str = Split.TRAIN,
) -> Imported:
    """Comparisons of two from a Pick-a-Pic Parquet file; 0.5 on both sides is "all equal".

    Every ``user_id`` becomes a closed account ``pickapic-ID``, so that agreement and caps by
    annotator can be told later. Rows without a label are passed over.

    Raises:
        StoreError: a row is wrong; names it. What stands before it may be in the store already.
    """
    rows = _pickapic_rows(path, split)
    total = Imported()
    while part := list(islice(rows, ROWS_AT_ONCE)):
        total += _add(store, [shown for _, pair, _ in part for shown in pair])
        by_user: dict[str, list[Compared]] = {}
        for user_id, (first, second), better in part:
            by_user.setdefault(user_id, []).append(_compared(first, second, better))
        for user_id, compared in by_user.items():
            annotator = store.closed_account(f"pickapic-{user_id}")
            total += _answer(store, annotator.id, compared, question)
    return total


def import_hpdv3(
    store: PreferenceStore,
    path: Path,
    images: Path,
    annotator_id: int,
    question: Question | str = Question.OVERALL,
    min_confidence: float = 0.0,
    split: Split | str = Split.TRAIN,
) -> Imported:
    """Comparisons of two from an HPDv3 JSON file, whose images lie under ``images``.

    The file has one verdict of many people a row; all go to ``annotator_id``. Rows that say a
    ``confidence`` below ``min_confidence`` are passed over.

    Raises:
        StoreError: an entry is wrong; names it. What stands before it may be in the store already.
    """
    if not 0.0 <= min_confidence <= 1.0:
        raise ValueError(f"min_confidence is a share from 0 to 1, got {min_confidence}")
    pairs = _hpdv3_pairs(path, images, min_confidence, split)
    total = Imported()
    while part := list(islice(pairs, ROWS_AT_ONCE)):
        total += _add(store, [shown for pair in part for shown in pair])
        compared = [_compared(better, worse, 1.0) for better, worse in part]
        total += _answer(store, annotator_id, compared, question)
    return total


Shown = tuple[Prompt, Candidate, bytes]
Compared = tuple[str, tuple[str, str], Outcome]


Pair = tuple[Shown, Shown]


def _candidate(text: str, name: str, data: bytes, split: Split | str) -> Shown:
    text = text.strip()
    if not text:
        raise StoreError(f"the prompt of {name} is empty")
    png, (width, height) = png_of(data, name)
    prompt = Prompt(id=prompt_id(text), text=text, lang=language(text), split=Split(split))
    candidate = Candidate(
        id=name, prompt_id=prompt.id, image_sha256=sha256_of(png), width=width, height=height
    )
    return prompt, candidate, png


def _add(store: PreferenceStore, shown: list[Shown]) -> Imported:
    prompts = store.add_prompts({prompt.id: prompt for prompt, _, _ in shown}.values())
    data = {candidate.image_sha256: png for _, candidate, png in shown}
    return Imported(prompts, store.add_candidates((c for _, c, _ in shown), data))


def _compared(first: Shown, second: Shown, better: float) -> Compared:
    """(prompt id, (better, worse) candidates, outcome); equal where ``better`` is 0."""
    ids = first[1].id, second[1].id
    outcome = Outcome.PICKED if better else Outcome.ALL_EQUAL
    return first[0].id, ids if better >= 0 else (ids[1], ids[0]), outcome


def _answer(
    store: PreferenceStore,
    annotator_id: int,
    compared: list[Compared],
    question: Question | str,
) -> Imported:
    tasks = store.add_tasks(
        [(prompt, pair) for prompt, pair, _ in compared], question, kind="ranking"
    )
    # The same pair may stand in several rows, and has one task.
    task_of = {(task.prompt_id, frozenset(task.candidate_ids)): task.id for task in tasks}
    answers = [
        Answer(
            task_id=task_of[prompt, frozenset(pair)],
            outcome=outcome,
            win_id=pair[0] if outcome == Outcome.PICKED else None,
            lose_id=pair[1] if outcome == Outcome.PICKED else None,
        )
        for prompt, pair, outcome in compared
    ]
    added = store.add_answers(annotator_id, answers)
    return Imported(answers=added, repeated=len(answers) - added)


def _from_metadata(path: Path) -> Iterator[tuple[str, Path]]:
    for number, row in READERS[path.suffix](path):
        text = next((row[name] for name in TEXT_COLUMNS if row.get(name)), None)
        name = row.get("file_name")
        if not text or not name:
            raise StoreError(f"{path}, row {number}: needs file_name and prompt, got {dict(row)}")
        yield str(text), _inside(path.parent, str(name))


def _from_subfolders(folder: Path) -> Iterator[tuple[str, Path]]:
    texts = sorted(folder.glob(f"*/{PROMPT_FILE}"))
    if not texts:
        raise FileNotFoundError(
            f"{folder} has neither {' nor '.join(METADATA_FILES)}, nor subfolders with a "
            f"{PROMPT_FILE}"
        )
    for path in texts:
        images = sorted(p for p in path.parent.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        yield from ((path.read_text(encoding="utf-8").strip(), image) for image in images)


def _inside(folder: Path, name: str) -> Path:
    """A file below ``folder``: a list from elsewhere must not read other files."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise StoreError(f"{name!r} leads out of {folder}, the folder that must hold all images")
    return path


def _file_id(path: Path, folder: Path) -> str:
    return f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}"


def _pickapic_rows(path: Path, split: Split | str) -> Iterator[tuple[str, Pair, float]]:
    """(user, both images, above 0 where the first is preferred) of each labelled row."""
    for number, values in enumerate(parquet_rows(path, PICKAPIC_COLUMNS), start=1):
        if not values["has_label"]:
            continue
        with _named(f"{path}, row {number}"):
            row = PickapicRow.model_validate(values)
            shown = []
            for side, uid in enumerate((row.image_0_uid, row.image_1_uid)):
                data = values[f"jpg_{side}"]
                if not data:
                    raise StoreError(
                        f"image {uid} has no bytes in column jpg_{side}; the file must carry its "
                        "images"
                    )
                shown.append(_candidate(row.caption, uid, data, split))
            pair = _pair(*shown)
        yield row.user_id, pair, row.label_0 - row.label_1


def _hpdv3_pairs(
    path: Path, images: Path, min_confidence: float, split: Split | str
) -> Iterator[Pair]:
    """(better, worse) of each entry that is sure enough."""
    for number, entry in enumerate(_json_list(path)):
        with _named(f"{path}, entry {number}"):
            row = HPDv3Row.model_validate(entry)
            if row.confidence is not None and row.confidence < min_confidence:
                continue
            shown = [
                _candidate(row.prompt, name, read_image(_inside(images, name)), split)
                for name in (row.path1, row.path2)
            ]
            pair = _pair(*shown)
        yield pair


def _pair(first: Shown, second: Shown) -> Pair:
    if first[1].id == second[1].id:
        raise StoreError(f"both sides are the image {first[1].id!r}")
    return first, second


@contextmanager
def _named(where: str) -> Iterator[None]:
    """What is wrong inside is told with its place in the file."""
    try:
        yield
    except ValidationError as error:
        raise StoreError(f"{where}: {faults(error)}") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{where}: {error}") from error


def _json_list(path: Path) -> list[Any]:
    try:
        entries: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise StoreError(f"{path} must hold a list of comparisons, got {type(entries).__name__}")
    return entries
