"""Rows of JSONL files and of snapshots: what to train on, and what is held out."""

from __future__ import annotations

import codecs
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from align.config import SFTDataConfig
from align.data.images import ImageFile, MarkedRegion
from annotate.records import Prompt, Split, faults, language

__all__ = [
    "CaptionedImage",
    "FileName",
    "ImageList",
    "ImagePair",
    "Number",
    "Request",
    "Row",
    "Rows",
    "digest",
    "iterate_prompts",
    "iterate_requests",
    "read_captioned_images",
    "read_jsonl",
    "sample_id",
    "split_rows",
]

R = TypeVar("R", bound=BaseModel)
S = TypeVar("S")


@dataclass(frozen=True)
class Request:
    """What a model is asked: words, and the images to which they refer."""

    prompt: str
    sources: tuple[ImageFile, ...] = ()

    @property
    def identity(self) -> tuple[str, ...]:
        """The words, then the digest of each source image."""
        return (self.prompt, *(source.sha256 for source in self.sources))

    def pictures(self) -> tuple[Image.Image, ...]:
        """The source images, read anew: upright, in RGB, at their own sizes; raises as
        `ImageFile.picture`."""
        return tuple(source.picture() for source in self.sources)

    def without_words(self, words: str) -> Request:
        """The same images under other ``words``, for guidance."""
        return Request(words, self.sources)


@dataclass(frozen=True)
class CaptionedImage:
    """One sample of SFT."""

    id: str
    prompt: str
    image: ImageFile
    sources: tuple[ImageFile, ...] = ()

    @property
    def request(self) -> Request:
        return Request(self.prompt, self.sources)

    @property
    def files(self) -> tuple[ImageFile, ...]:
        return (self.image, *self.sources)


@dataclass(frozen=True)
class ImagePair:
    """One sample of DPO."""

    id: str
    prompt: str
    chosen: ImageFile
    rejected: ImageFile
    weight: float = 1.0
    annotator: str = ""
    label_smoothing: float | None = None
    """Chance that the pair is the wrong way round; None: as the objective has it."""
    is_tie: bool = False
    """Neither was preferred: which is called chosen means nothing."""
    region: ImageFile | MarkedRegion | None = None
    """Greyscale: where the images are compared, white counts in full; None: everywhere."""
    noise_keys: tuple[str, str] | None = None
    """``seed/name/draw`` of the noises that chosen and rejected were generated from."""
    sources: tuple[ImageFile, ...] = ()

    @property
    def request(self) -> Request:
        return Request(self.prompt, self.sources)

    @property
    def images(self) -> tuple[ImageFile, ImageFile]:
        return self.chosen, self.rejected

    @property
    def files(self) -> tuple[ImageFile | MarkedRegion, ...]:
        """The images, the region if there is one, and the source images."""
        region = () if self.region is None else (self.region,)
        return (*self.images, *region, *self.sources)


@dataclass(frozen=True)
class ImageList:
    """One sample of Plackett-Luce, or a single image with a thumb."""

    id: str
    prompt: str
    images: tuple[ImageFile, ...]
    """The best first, the worst last."""
    weight: float = 1.0
    annotator: str = ""
    is_complete: bool = False
    """The whole order is known, not its ends alone."""
    is_equal: bool = False
    """No image was preferred."""
    is_desirable: bool = True
    """Of a single image: a thumb up."""
    sources: tuple[ImageFile, ...] = ()

    @property
    def request(self) -> Request:
        return Request(self.prompt, self.sources)

    @property
    def files(self) -> tuple[ImageFile, ...]:
        return (*self.images, *self.sources)


@dataclass(frozen=True)
class Rows(Generic[S]):
    """Samples to train on, samples held out, and what names their source in run.json."""

    train: list[S]
    validation: list[S]
    source: dict[str, Any]
    annotators: list[S] = field(default_factory=list)
    """Samples of the held-out annotators, on the prompts to train on."""

    def named(self, **parts: Sequence[CaptionedImage | ImagePair | ImageList]) -> dict[str, Any]:
        """Names by content what a run takes of these rows: the source, and of each part the count
        and the digest of its prompts and images."""
        names = [
            f"{part}/{sample.id}/{'/'.join(file.sha256 for file in sample.files)}"
            for part, samples in parts.items()
            for sample in samples
        ]
        counts = {part: len(samples) for part, samples in parts.items()}
        return {**self.source, **counts, "content": sample_id(*names)}


FileName = Annotated[str, Field(min_length=1)]
Number = Annotated[float, Field(strict=True)]
"""No word, nor ``true``, stands for it."""


class Row(BaseModel):
    """A line of a file written by others: keys that are not ours are let through."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    prompt: str
    split: Split | None = None
    source_image: FileName | None = None
    reference_images: tuple[FileName, ...] = ()
    _line: int = PrivateAttr(default=0)

    @property
    def source_names(self) -> tuple[str, ...]:
        """What the prompt refers to: the image to edit, then the references."""
        edited = () if self.source_image is None else (self.source_image,)
        return (*edited, *self.reference_images)

    def sources(self, folder: Path) -> tuple[ImageFile, ...]:
        return tuple(ImageFile(folder / name) for name in self.source_names)

    @property
    def held_out_with(self) -> str:
        """Rows of one such key are held out together. One instruction may edit many images."""
        return "\0".join([self.prompt, *self.source_names])


class _ImageRow(Row):
    image: FileName
    score: Number | None = None
    style: str | None = None
    layout: str | None = None
    colour: str | None = None

    @property
    def instruction(self) -> str:
        """The prompt with its instructions, in this order, a line each."""
        extra = (("Style", self.style), ("Layout", self.layout), ("Colour", self.colour))
        return "\n".join([self.prompt, *(f"{name}: {text}" for name, text in extra if text)])


def read_captioned_images(config: SFTDataConfig, fraction: float) -> Rows[CaptionedImage]:
    """Rows of ``{"prompt", "image", "score"}`` with at least ``min_score``.

    Args:
        fraction: part of the prompts to hold out where the rows name no split.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: a line is not such a row, or no row is left; names file and line.
    """
    rows = list(read_jsonl(config.path, _ImageRow))
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
        image, request = (
            ImageFile(folder / row.image),
            Request(row.instruction, row.sources(folder)),
        )
        identity = sample_id(request.prompt, image.sha256, *request.identity[1:])
        return CaptionedImage(identity, request.prompt, image, request.sources)

    return split_rows(good, sample, fraction, {"path": str(config.path), **digest(config.path)})


def iterate_prompts(path: Path, splits: Sequence[Split] = tuple(Split)) -> Iterator[Prompt]:
    """The prompts of `iterate_requests` alone."""
    return (prompt for prompt, _ in iterate_requests(path, splits))


class _PromptLine(Prompt):
    source_image: FileName | None = None


def iterate_requests(
    path: Path, splits: Sequence[Split] = tuple(Split)
) -> Iterator[tuple[Prompt, Request]]:
    """Prompts of a text file (one a line), a JSONL file of `Prompt`, or a snapshot folder.

    A line of text gets the digest of its words as id. A source image is named by its SHA-256, and
    lies in ``images/`` beside the file, or by its path from there. The file is read as it is
    iterated.

    Raises:
        FileNotFoundError: there is no such file, or no source image; names it.
        ValueError: the file is of another kind, a line is not a prompt, an id stands twice, or
            there is no prompt of ``splits``; names the file.
    """
    file = path / "prompts.jsonl" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"there is no prompts file at {file}")
    if file.suffix not in ("", ".txt", ".jsonl"):
        # The lines of a table, its head first, would be drawn as prompts.
        raise ValueError(
            f"prompts come from .txt (one a line), .jsonl (id and text) and snapshots, got {file}"
        )
    seen: dict[str, Split] = {}
    for prompt in read_jsonl(file, _PromptLine) if file.suffix == ".jsonl" else _read_lines(file):
        if prompt.id in seen:
            raise ValueError(f"{file}: the prompt id {prompt.id!r} stands twice")
        seen[prompt.id] = prompt.split
        if prompt.split in splits:
            yield _with_source(prompt, file.parent)
    if not seen:
        raise ValueError(f"{file} has no prompts")
    if not set(seen.values()) & set(splits):
        raise ValueError(
            f"{file} has no prompts of the splits {', '.join(splits) or '(none)'}; it has some of "
            f"{', '.join(sorted(set(seen.values())))}"
        )


def _with_source(line: Prompt, folder: Path) -> tuple[Prompt, Request]:
    name = line.source_image
    if name is None:
        return Prompt.model_validate(line.model_dump()), Request(line.text)
    known = re.fullmatch("[0-9a-f]{64}", name)
    file = ImageFile(folder / "images" / f"{name}.png", name) if known else ImageFile(folder / name)
    try:
        prompt = Prompt.model_validate(line.model_dump() | {"source_image": file.sha256})
        file.require_png()
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"the source image of prompt {line.id!r}: {error}") from error
    return prompt, Request(line.text, (file,))


def _read_lines(path: Path) -> Iterator[Prompt]:
    seen: set[str] = set()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = _without_mark(number, line).decode().strip()
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 ({error.reason}: byte "
                    f"0x{line[error.start]:02x}); save the file as UTF-8"
                ) from error
            if text and text not in seen:
                seen.add(text)
                yield Prompt(id=sample_id(text), text=text, lang=language(text))


def _without_mark(number: int, line: bytes) -> bytes:
    """Without the byte order mark that some editors put before the first line."""
    return line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def read_jsonl(path: Path, model: type[R]) -> Iterator[R]:
    """Rows of a JSONL file.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: a line is not such a row; names the file, the line and the field.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            line = _without_mark(number, line)
            if not line.strip():
                continue
            try:
                row = model.model_validate_json(line)
            except ValidationError as error:
                raise ValueError(f"{path}, line {number}: {faults(error)}") from error
            if isinstance(row, Row):
                row._line = number
            yield row


def split_rows(
    rows: Sequence[Row], sample: Callable[[Any], S], fraction: float, source: dict[str, Any]
) -> Rows[S]:
    """Rows that name a split follow it; of the other prompts a part, chosen by hash, is held out.

    Whole prompts are held out: the same words, about the same images, never stand on both sides.

    Args:
        sample: makes a sample of a row; what it raises is told with the row's line.
    """
    unsplit = {row.held_out_with for row in rows if row.split is None}
    ranked = sorted(unsplit, key=lambda prompt: hashlib.sha256(prompt.encode()).digest())
    held_out = set(ranked[: math.ceil(fraction * len(ranked))] if len(ranked) > 1 else ())
    parts: dict[Split, list[S]] = {split: [] for split in Split}
    for row in rows:
        split = row.split or (Split.VALIDATION if row.held_out_with in held_out else Split.TRAIN)
        try:
            parts[split].append(sample(row))
        except (FileNotFoundError, ValueError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{source['path']}, line {row._line}: {error}") from error
    if not parts[Split.TRAIN]:
        raise ValueError(f"{source['path']} has no rows to train on: all are held out")
    return Rows(parts[Split.TRAIN], parts[Split.VALIDATION], source)


def sample_id(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def digest(path: Path) -> dict[str, str]:
    return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
