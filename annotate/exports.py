"""A snapshot's preferences in the columns that other tools read.

Annotators are the snapshot's pseudonyms in each of them. Every image is read and must be the one
that was labelled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotate.schema import Outcome, PreferencePair
from annotate.snapshot import Snapshot, json_line

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
ROWS_AT_ONCE = 64


def pair_rows(
    snapshot: Snapshot, pairs: Iterable[PreferencePair], image: Callable[[str], Any]
) -> Iterator[Row]:
    """A row for each pair; ``image`` turns a candidate's id, or the SHA-256 of the picture that a
    prompt asks to edit, into what stands for it.
    """
    for pair in pairs:
        prompt = snapshot.prompt_of[pair.prompt_id]
        source = prompt.source_image
        yield {
            "prompt": prompt.text,
            **({} if source is None else {"source_image": image(source)}),
            "chosen": image(pair.chosen_id),
            "rejected": image(pair.rejected_id),
            "weight": pair.weight,
            "split": prompt.split.value,
            "question": pair.question.value,
            "annotator": pair.annotator,
            "pick_id": pair.pick_id,
        }


def export_jsonl(snapshot: Snapshot, pairs: list[PreferencePair], path: Path) -> int:
    """One pair a line, images as paths relative to the file: what ``winsome dpo`` reads."""
    lines = [json_line(row) + "\n" for row in pair_rows(snapshot, pairs, _relative(snapshot, path))]
    replace_file(path, lambda partial: partial.write_text("".join(lines), encoding="utf-8"))
    return len(lines)


def export_parquet(snapshot: Snapshot, pairs: list[PreferencePair], path: Path) -> int:
    """One pair a row, images as paths relative to the file; ``source_image`` where one has it."""
    import pyarrow

    text = ("prompt", "chosen", "rejected", "split", "question", "annotator", "pick_id")
    if any(prompt.source_image for prompt in snapshot.prompts):
        text = (*text, "source_image")
    schema = pyarrow.schema([*((n, pyarrow.string()) for n in text), ("weight", pyarrow.float64())])
    return _write_parquet(path, schema, pair_rows(snapshot, pairs, _relative(snapshot, path)))


def export_trl(snapshot: Snapshot, pairs: list[PreferencePair], path: Path) -> int:
    """TRL's preference columns ``prompt``, ``chosen``, ``rejected``, the images inside.

    The schema's metadata tells the datasets library that they are images: ``load_dataset`` gives
    decoded ones.
    """
    import pyarrow

    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema(
        [("prompt", pyarrow.string()), ("chosen", image), ("rejected", image)]
    ).with_metadata({"huggingface": json.dumps(_FEATURES)})
    rows = (
        {name: row[name] for name in schema.names}
        for row in pair_rows(snapshot, pairs, lambda c: {"bytes": _bytes(snapshot, c)})
    )
    return _write_parquet(path, schema, rows)


_FEATURES = {
    "info": {
        "features": {
            "prompt": {"dtype": "string", "_type": "Value"},
            "chosen": {"_type": "Image"},
            "rejected": {"_type": "Image"},
        }
    }
}


def export_pickapic(snapshot: Snapshot, pairs: list[PreferencePair], path: Path) -> int:
    """Pick-a-Pic's columns, the images inside (as PNG, whatever the columns' names say).

    Answers "all equal" become rows with 0.5 on both sides. The preferred image stands on either
    side, by its id, so that its place tells nothing.
    """
    import pyarrow

    kinds: dict[str, Any] = {
        "are_different": pyarrow.bool_(), "has_label": pyarrow.bool_(),
        "jpg_0": pyarrow.binary(), "jpg_1": pyarrow.binary(),
        "label_0": pyarrow.float64(), "label_1": pyarrow.float64(),
        "num_example_per_prompt": pyarrow.int64(),
    }  # fmt: skip
    text = (
        "best_image_uid", "caption", "image_0_uid", "image_1_uid", "model_0", "model_1",
        "ranking_id", "user_id",
    )  # fmt: skip
    names = sorted([*kinds, *text])
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in names])
    return _write_parquet(path, schema, _pickapic_rows(snapshot, pairs))


def _pickapic_rows(snapshot: Snapshot, pairs: list[PreferencePair]) -> Iterator[Row]:
    per_prompt: dict[str, int] = {}
    for pair in pairs:
        per_prompt[pair.prompt_id] = per_prompt.get(pair.prompt_id, 0) + 1

    def row(prompt_id: str, ids: tuple[str, str], best: str | None, who: str, pick: str) -> Row:
        models = [snapshot.candidate_of[name].generation for name in ids]
        return {
            "are_different": best is not None,
            "best_image_uid": best or "none",
            "caption": snapshot.prompt_of[prompt_id].text,
            "has_label": True,
            "image_0_uid": ids[0],
            "image_1_uid": ids[1],
            "jpg_0": _bytes(snapshot, ids[0]),
            "jpg_1": _bytes(snapshot, ids[1]),
            "label_0": 0.5 if best is None else float(best == ids[0]),
            "label_1": 0.5 if best is None else float(best == ids[1]),
            "model_0": models[0].model if models[0] else None,
            "model_1": models[1].model if models[1] else None,
            "num_example_per_prompt": per_prompt.get(prompt_id, 0),
            "ranking_id": pick,
            "user_id": who,
        }

    for pair in pairs:
        first, second = sorted((pair.chosen_id, pair.rejected_id))
        yield row(pair.prompt_id, (first, second), pair.chosen_id, pair.annotator, pair.pick_id)
    for pick in snapshot.select(outcome=Outcome.ALL_EQUAL):
        task = snapshot.task_of[pick.task_id]
        for ids in combinations(sorted(task.candidate_ids), 2):
            yield row(task.prompt_id, ids, None, pick.annotator, pick.id)


def export_hpdv3(snapshot: Snapshot, pairs: list[PreferencePair], path: Path) -> int:
    """HPDv3's JSON: ``path1`` is the preferred image, paths relative to the file.

    The same two images judged by several people are one row, of the majority; ``choice_dist`` has
    the votes and ``confidence`` the majority's share. Where they are even there is no row.
    """
    votes: dict[tuple[str, str, str], list[int]] = {}
    for pair in pairs:
        first, second = sorted((pair.chosen_id, pair.rejected_id))
        counted = votes.setdefault((pair.prompt_id, first, second), [0, 0])
        counted[pair.chosen_id != first] += 1
    image = _relative(snapshot, path)
    rows = []
    for (prompt_id, *ids), counted in votes.items():
        if counted[0] == counted[1]:
            continue
        better, worse = ids if counted[0] > counted[1] else ids[::-1]
        models = [snapshot.candidate_of[name].generation for name in (better, worse)]
        rows.append(
            {
                "prompt": snapshot.prompt_of[prompt_id].text,
                "path1": image(better),
                "path2": image(worse),
                "confidence": max(counted) / sum(counted),
                "choice_dist": sorted(counted, reverse=True),
                "model1": models[0].model if models[0] else None,
                "model2": models[1].model if models[1] else None,
            }
        )
    text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return len(rows)


EXPORTS: dict[str, Callable[[Snapshot, list[PreferencePair], Path], int]] = {
    "jsonl": export_jsonl,
    "parquet": export_parquet,
    "trl": export_trl,
    "pickapic": export_pickapic,
    "hpdv3": export_hpdv3,
}
"""Format -> what writes it; each returns the number of rows."""


def _relative(snapshot: Snapshot, path: Path) -> Callable[[str], str]:
    @cache
    def name(image: str) -> str:
        candidate = snapshot.candidate_of.get(image, image)
        # Who reads the file has no digests to check the images by.
        snapshot.read_image(candidate)
        return Path(os.path.relpath(snapshot.image_path(candidate), path.parent)).as_posix()

    return name


def _bytes(snapshot: Snapshot, image: str) -> bytes:
    return snapshot.read_image(snapshot.candidate_of.get(image, image))


def _write_parquet(path: Path, schema: pyarrow.Schema, rows: Iterable[Row]) -> int:
    """Rows in batches: the images of a whole data set do not fit in memory."""
    import pyarrow
    from pyarrow import parquet

    count = 0

    def write(partial: Path) -> None:
        nonlocal count
        batch: list[Row] = []
        with parquet.ParquetWriter(partial, schema) as writer:
            for row in rows:
                batch.append(row)
                count += 1
                if len(batch) == ROWS_AT_ONCE:
                    writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))
                    batch = []
            if batch:
                writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))

    replace_file(path, write)
    return count


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file, and the folders that it lies in: readers see the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
