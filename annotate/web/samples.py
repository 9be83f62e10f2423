"""Samples of a run: the same prompts and noise drawn by several checkpoints, side by side.

A run folder's ``samples/NAME`` is what ``winsome generate`` writes (``prompts.jsonl``,
``candidates.jsonl``, ``images/``), one for each checkpoint, with the same prompts and seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from annotate.schema import Candidate, Prompt, Question, Record, Run, Task
from annotate.store import PreferenceStore
from annotate.store.errors import NotFoundError, StoreError
from annotate.web.runs import Unreadable
from annotate.win_rates import BLIND

MAX_ROWS = 24
"""Rows of a grid that a page shows; blind tasks are made of all."""
Kind = TypeVar("Kind", bound=Record)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SampleSet:
    """What one checkpoint drew."""

    name: str
    folder: Path
    unreadable: Unreadable = field(default_factory=Unreadable)
    """Files and lines that were left out: half written, or damaged."""

    @cached_property
    def prompts(self) -> dict[str, Prompt]:
        return {p.id: p for p in self._records("prompts.jsonl", Prompt)}

    @cached_property
    def cells(self) -> dict[tuple[str, str], Candidate]:
        """(prompt, what names its noise) -> candidate; without its origin it is in no grid."""
        return {
            (c.prompt_id, c.generation.noise_key or c.generation.seed): c
            for c in self._records("candidates.jsonl", Candidate)
            if c.generation
        }

    def _records(self, name: str, kind: type[Kind]) -> Iterator[Kind]:
        path = self.folder / name
        try:
            lines = path.read_bytes().splitlines()
        except OSError:
            self.unreadable.note(path)
            return
        for number, line in enumerate(lines, 1):
            try:
                yield kind.model_validate_json(line)
            except ValueError:
                self.unreadable.note(path, number)


def sample_sets(run: Run) -> dict[str, SampleSet]:
    """The run's finished sample folders by name, in the order of the numbers in their names."""
    root = Path(run.folder) / "samples"
    folders = [path.parent for path in root.glob("*/candidates.jsonl")]
    return {
        folder.name: SampleSet(folder.name, folder)
        for folder in sorted(folders, key=lambda folder: _natural(folder.name))
    }


def _natural(name: str) -> list[tuple[int, str]]:
    """step-2 before step-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def grid(
    run: Run, rows: int | None = MAX_ROWS, unreadable: Unreadable | None = None
) -> dict[str, Any]:
    """Rows of (prompt, noise) and, for each set, the hash of its image there, or None.

    Args:
        rows: how many at most; None is all.
    """
    sets = sample_sets(run)
    prompts = {key: prompt for each in sets.values() for key, prompt in each.prompts.items()}
    keys = sorted({key for each in sets.values() for key in each.cells})
    listed = [
        {
            "prompt": prompts[prompt_id].text if prompt_id in prompts else prompt_id,
            "lang": prompts[prompt_id].lang if prompt_id in prompts else "",
            "noise": noise,
            "images": [
                None if (found := each.cells.get((prompt_id, noise))) is None
                else found.image_sha256
                for each in sets.values()
            ],
        }
        for prompt_id, noise in keys[:rows]
    ]  # fmt: skip
    if unreadable is not None:
        unreadable += [text for each in sets.values() for text in each.unreadable]
    return {"sets": list(sets), "rows": listed, "all_rows": len(keys)}


def sample_image(run: Run, set_name: str, sha256: str) -> Path:
    """The image of a set. Names are looked up, never joined to a path as they come.

    Raises:
        NotFoundError: no such set or image, or the file lies outside the run's samples.
    """
    refused = NotFoundError("this run has no such image", code="no_image")
    found = sample_sets(run).get(set_name)
    if found is None or not _SHA256.fullmatch(sha256):
        raise refused
    path = (found.folder / "images" / f"{sha256}.png").resolve()
    if not path.is_relative_to(found.folder.resolve()) or not path.is_file():
        raise refused
    return path


def send_blind(
    store: PreferenceStore,
    run: Run,
    first: str,
    second: str,
    annotators: int,
    question: Question,
) -> tuple[list[Task], int]:
    """Ask annotators which of two sets' images they prefer, without saying whose they are.

    Returns:
        The tasks, one for each prompt and noise that both drew, and how many cells were left out
        because both drew the very same image.

    Raises:
        NotFoundError: no such set.
        StoreError: the sets have no cell in common that differs, or the store refuses an image.
    """
    sets = sample_sets(run)
    missing = [name for name in (first, second) if name not in sets]
    if missing:
        raise NotFoundError(f"this run has no samples {missing}; there are {', '.join(sets)}")
    ours, theirs = sets[first], sets[second]
    shared = sorted(ours.cells.keys() & theirs.cells.keys())
    pairs = [(ours.cells[key], theirs.cells[key]) for key in shared]
    differ = [(a, b) for a, b in pairs if a.image_sha256 != b.image_sha256]
    if not differ:
        raise StoreError(
            f"{first!r} and {second!r} share {len(pairs)} prompts and seeds, and differ in none",
            code="same_samples",
        )
    wanted = {a.prompt_id for a, _ in differ}
    prompts = [prompt for key, prompt in ours.prompts.items() if key in wanted]
    store.add_prompts(prompts, ours.folder / "images")
    for each, drawn in ((ours, [a for a, _ in differ]), (theirs, [b for _, b in differ])):
        store.add_candidates(drawn, each.folder / "images")
    groups = [(a.prompt_id, (a.id, b.id)) for a, b in differ]
    tasks = store.add_tasks(groups, question, annotators, kind=BLIND)
    return tasks, len(pairs) - len(differ)
