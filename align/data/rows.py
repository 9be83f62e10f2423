"""Rows of JSONL files and of snapshots: what to train on, and what is held out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from align.config import JsonlPairsConfig, PairsConfig, SFTDataConfig, SnapshotPairsConfig
from align.data.images import ImageFile
from annotate.records import Prompt, Split, load_snapshot

__all__ = [
    "CaptionedImage",
    "ImagePair",
    "Rows",
    "iterate_prompts",
    "read_captioned_images",
    "read_pairs",
]

R = TypeVar("R", bound=BaseModel)
S = TypeVar("S")


@dataclass(frozen=True)
class CaptionedImage:
    """One sample of SFT."""

    id: str
    prompt: str
    image: ImageFile


@dataclass(frozen=True)
class ImagePair:
    """One sample of DPO."""

    id: str
    prompt: str
    chosen: ImageFile
    rejected: ImageFile
    weight: float = 1.0


@dataclass(frozen=True)
class Rows(Generic[S]):
    """Samples to train on, samples held out, and what names their source in run.json."""

    train: list[S]
    validation: list[S]
    source: dict[str, Any]


class _Row(BaseModel):
    """A line of a file written by others: keys that are not ours are let through."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str
    split: Split | None = None


class _ImageRow(_Row):
    image: str
    score: float | None = None


class _PairRow(_Row):
    chosen: str
    rejected: str
    weight: float = Field(default=1.0, gt=0)


def read_captioned_images(config: SFTDataConfig, fraction: float) -> Rows[CaptionedImage]:
    """Rows of ``{"prompt", "image", "score"}`` with at least ``min_score``.

    Args:
        fraction: part of the prompts to hold out where the rows name no split.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: a line is not such a row, or no row is left; names file and line.
    """
    rows = list(_read_jsonl(config.path, _ImageRow))
    good = [
        row
        for row in rows
        if config.min_score is None or (row.score is not None and row.score >= config.min_score)
    ]
    if not good:
        rule = "" if config.min_score is None else f" with a score of at least {config.min_score}"
        raise ValueError(f"{config.path} has no image{rule} ({len(rows)} rows)")
    folder = config.path.parent

    def sample(row: _ImageRow) -> CaptionedImage:
        image = ImageFile(folder / row.image)
        return CaptionedImage(_sample_id(row.prompt, image.sha256), row.prompt, image)

    return _split(good, sample, fraction, {"path": str(config.path), **_digest(config.path)})


def read_pairs(config: PairsConfig, fraction: float) -> Rows[ImagePair]:
    """Pairs of images from a snapshot or from a JSONL file.

    Raises:
        FileNotFoundError: the file or folder, or one of the images, is missing.
        ValueError: a line is not as it should be, or there is no pair; names the file.
    """
    if isinstance(config, SnapshotPairsConfig):
        return _read_snapshot_pairs(config)
    return _read_jsonl_pairs(config, fraction)


def _read_jsonl_pairs(config: JsonlPairsConfig, fraction: float) -> Rows[ImagePair]:
    rows = list(_read_jsonl(config.path, _PairRow))
    if not rows:
        raise ValueError(f"{config.path} has no pairs")
    folder = config.path.parent

    def sample(row: _PairRow) -> ImagePair:
        chosen, rejected = ImageFile(folder / row.chosen), ImageFile(folder / row.rejected)
        identity = _sample_id(row.prompt, chosen.sha256, rejected.sha256)
        return ImagePair(identity, row.prompt, chosen, rejected, row.weight)

    return _split(rows, sample, fraction, {"path": str(config.path), **_digest(config.path)})


def _read_snapshot_pairs(config: SnapshotPairsConfig) -> Rows[ImagePair]:
    snapshot = load_snapshot(config.path, images=config.images)

    def pairs(splits: Iterable[Split]) -> list[ImagePair]:
        return [
            ImagePair(
                f"{pair.pick_id}/{pair.chosen_id}/{pair.rejected_id}",
                snapshot.prompt_of[pair.prompt_id].text,
                ImageFile(snapshot.image_path(snapshot.candidate_of[pair.chosen_id])),
                ImageFile(snapshot.image_path(snapshot.candidate_of[pair.rejected_id])),
                pair.weight,
            )
            for split in splits
            for question in config.questions
            for pair in snapshot.pairs(config.policy, question, split)
        ]

    train = pairs(config.splits)
    if not train:
        raise ValueError(
            f"the snapshot {config.path} has no win-and-lose pick for the questions "
            f"{', '.join(config.questions)} in the splits {', '.join(config.splits)}"
        )
    held_out = [] if Split.VALIDATION in config.splits else pairs([Split.VALIDATION])
    return Rows(train, held_out, {"path": str(config.path), "snapshot_digest": snapshot.digest})


def iterate_prompts(path: Path, splits: Sequence[Split] = tuple(Split)) -> Iterator[Prompt]:
    """Prompts of a text file (one a line), a JSONL file of `Prompt`, or a snapshot folder.

    A line of text gets the digest of its words as id. The file is read as it is iterated.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a prompt, an id stands twice, or there is no prompt of ``splits``.
    """
    file = path / "prompts.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"there is no prompts file at {file}")
    seen: set[str] = set()
    for prompt in _read_jsonl(file, Prompt) if file.suffix == ".jsonl" else _read_lines(file):
        if prompt.id in seen:
            raise ValueError(f"{file}: the prompt id {prompt.id!r} stands twice")
        seen.add(prompt.id)
        if prompt.split in splits:
            yield prompt
    if not seen:
        raise ValueError(f"{file} has no prompts")


def _read_lines(path: Path) -> Iterator[Prompt]:
    seen: set[str] = set()
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            text = line.strip()
            if text and text not in seen:
                seen.add(text)
                yield Prompt(id=_sample_id(text), text=text, lang="en" if text.isascii() else "zh")


def _read_jsonl(path: Path, model: type[R]) -> Iterator[R]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield model.model_validate_json(line)
            except ValidationError as error:
                detail = error.errors()[0]
                where = ".".join(map(str, detail["loc"]))
                fault = f"{where}: {detail['msg']}" if where else detail["msg"]
                raise ValueError(f"{path}, line {number}: {fault}") from error


def _split(
    rows: Sequence[_Row], sample: Callable[[Any], S], fraction: float, source: dict[str, Any]
) -> Rows[S]:
    """Rows that name a split follow it; of the other prompts a part, chosen by hash, is held out.

    Whole prompts are held out: the same words never stand on both sides.
    """
    unsplit = {row.prompt for row in rows if row.split is None}
    ranked = sorted(unsplit, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())
    held_out = set(ranked[: math.ceil(fraction * len(ranked))] if len(ranked) > 1 else ())
    parts: dict[Split, list[S]] = {split: [] for split in Split}
    for row in rows:
        split = row.split or (Split.VALIDATION if row.prompt in held_out else Split.TRAIN)
        parts[split].append(sample(row))
    if not parts[Split.TRAIN]:
        raise ValueError(f"{source['path']} has no rows to train on: all are held out")
    return Rows(parts[Split.TRAIN], parts[Split.VALIDATION], source)


def _sample_id(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _digest(path: Path) -> dict[str, str]:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
