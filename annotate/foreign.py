"""Candidates and preferences that were made elsewhere: image folders, Pick-a-Pic, HPDv3.

(ImageReward's rankings are in `annotate.imports`.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from annotate.images import png_of
from annotate.imports import Imported, read_image
from annotate.prompt_files import READERS, TEXT_COLUMNS, parquet_rows, prompt_id
from annotate.schema import Candidate, Outcome, Prompt, Question, language
from annotate.store import Answer, PreferenceStore, StoreError
from annotate.store.content import sha256_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PROMPT_FILE = "prompt.txt"
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
ROWS_AT_ONCE = 64

PICKAPIC_COLUMNS = (
    "caption", "image_0_uid", "image_1_uid", "jpg_0", "jpg_1", "label_0", "label_1", "has_label",
    "user_id",
)  # fmt: skip


class HPDv3Row(BaseModel):
    """One comparison as HPDv3 publishes it: ``path1`` was preferred."""

    model_config = ConfigDict(extra="ignore")

    prompt: str
    path1: str
    path2: str
    confidence: float | None = None


def import_image_folder(store: PreferenceStore, folder: Path) -> Imported:
    """Candidates from image files, their prompts from ``metadata.jsonl`` or ``.csv`` beside them
    (``file_name`` and ``prompt``, as the datasets library has it), or from a ``prompt.txt`` in each
    subfolder.
    """
    metadata = next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)
    named = _from_metadata(metadata) if metadata else _from_subfolders(folder)
    prompts = candidates = 0
    while part := list(islice(named, ROWS_AT_ONCE)):
        new = [_candidate(text, _file_id(path, folder), read_image(path)) for text, path in part]
        added = _add(store, new)
        prompts, candidates = prompts + added.prompts, candidates + added.candidates
    return Imported(prompts, candidates)


def import_pickapic(
    store: PreferenceStore, path: Path, question: Question | str = Question.OVERALL
) -> Imported:
    """Comparisons of two from a Pick-a-Pic Parquet file; 0.5 on both sides is "all equal".

    Every ``user_id`` becomes a closed account ``pickapic-ID``, so that agreement and caps by
    annotator can be told later. Rows without a label are passed over.
    """
    rows = (row for row in parquet_rows(path, PICKAPIC_COLUMNS) if row["has_label"])
    total = Imported()
    while part := list(islice(rows, ROWS_AT_ONCE)):
        shown, by_user = [], {}
        for row in part:
            pair = []
            for side in "01":
                data = row[f"jpg_{side}"]
                if not data:
                    raise StoreError(
                        f"{path}: image {row[f'image_{side}_uid']} has no bytes in column "
                        f"jpg_{side}; the file must carry its images"
                    )
                pair.append(_candidate(row["caption"], str(row[f"image_{side}_uid"]), data))
            shown += pair
            better = row["label_0"] - row["label_1"]
            by_user.setdefault(row["user_id"], []).append(_compared(pair[0], pair[1], better))
        total = _sum(total, _add(store, shown))
        for user_id, compared in by_user.items():
            annotator = store.closed_account(f"pickapic-{user_id}")
            total = _sum(total, _answer(store, annotator.id, compared, question))
    return total


def import_hpdv3(
    store: PreferenceStore,
    path: Path,
    images: Path,
    annotator_id: int,
    question: Question | str = Question.OVERALL,
    min_confidence: float = 0.0,
) -> Imported:
    """Comparisons of two from an HPDv3 JSON file, whose images lie under ``images``.

    The file has one verdict of many people a row; all go to ``annotator_id``. Rows that say a
    ``confidence`` below ``min_confidence`` are passed over.
    """
    total = Imported()
    rows = (
        row for row in _hpdv3_rows(path)
        if row.confidence is None or row.confidence >= min_confidence
    )  # fmt: skip
    while part := list(islice(rows, ROWS_AT_ONCE)):
        pairs = [
            [
                _candidate(row.prompt, name, read_image(_inside(images, name)))
                for name in (row.path1, row.path2)
            ]
            for row in part
        ]
        total = _sum(total, _add(store, [shown for pair in pairs for shown in pair]))
        compared = [_compared(better, worse, 1.0) for better, worse in pairs]
        total = _sum(total, _answer(store, annotator_id, compared, question))
    return total


Shown = tuple[Prompt, Candidate, bytes]
Compared = tuple[str, tuple[str, str], Outcome]


def _candidate(text: str, name: str, data: bytes) -> Shown:
    text = text.strip()
    png, (width, height) = png_of(data, name)
    prompt = Prompt(id=prompt_id(text), text=text, lang=language(text))
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
    return Imported(answers=store.add_answers(annotator_id, answers))


def _sum(a: Imported, b: Imported) -> Imported:
    return Imported(a.prompts + b.prompts, a.candidates + b.candidates, a.answers + b.answers)


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
        raise StoreError(f"{name!r} leads out of {folder}")
    return path


def _file_id(path: Path, folder: Path) -> str:
    return f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}"


def _hpdv3_rows(path: Path) -> Iterable[HPDv3Row]:
    try:
        entries: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(entries, list):
        raise StoreError(f"{path} must hold a list of comparisons, got {type(entries).__name__}")
    for number, entry in enumerate(entries):
        try:
            yield HPDv3Row.model_validate(entry)
        except ValidationError as error:
            raise StoreError(f"{path}, entry {number}: {error}") from error
