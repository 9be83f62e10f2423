"""Settings of what a run learns from: images, pairs, lists, single images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from annotate.records import Question, Split
from annotate.settings import Config

__all__ = [
    "Bucket",
    "Fraction",
    "JsonlPairsConfig",
    "NonNegative",
    "PairsConfig",
    "Positive",
    "ResolutionConfig",
    "SFTDataConfig",
    "Side",
    "SnapshotPairsConfig",
    "SourceConfig",
]

Positive = Annotated[int, Field(gt=0, lt=2**31)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(gt=0, lt=2**16, multiple_of=16)]
"""Of an image, in pixels: a latent has one for 8, and a token two of these."""


class SourceConfig(Config):
    """How a model that edits reads the images that prompts refer to."""

    source_area: Annotated[int, Field(ge=32 * 32, lt=2**31)] = 1024 * 1024
    """Pixels that a source image is brought to, in its own shape; the stock pipelines' number."""


class ResolutionConfig(SourceConfig):
    """The size images are brought to: scaled to cover it, then cut at the centre."""

    height: Side | None = None
    width: Side | None = None
    """Null for both: images keep their size and must all have the same."""

    @model_validator(mode="after")
    def _both_or_none(self) -> ResolutionConfig:
        if (self.height is None) != (self.width is None):
            raise ValueError(f"give height and width or none, got {self.height} x {self.width}")
        return self


Bucket = tuple[Side, Side]
"""Height and width of an aspect-ratio bucket, in pixels."""


class SFTDataConfig(ResolutionConfig):
    """Rows of ``{"prompt", "image", "score"}``, and optionally ``"split"``, the instructions
    ``"style"``, ``"layout"`` and ``"colour"``, which follow the prompt, and what the prompt asks to
    edit: ``"source_image"``, and after it ``"reference_images"``."""

    path: Path
    """JSONL file; image paths are relative to its folder."""
    min_score: float | None = 4.8
    """Rows below this score (of 5) are left out, as are rows without a score; null: all enter."""
    caption_dropout: Fraction = 0.1
    """Part of the samples trained with the empty caption, for classifier-free guidance."""
    buckets: tuple[Bucket, ...] = ()
    """Sizes ``[height, width]`` instead of one: each image is brought to the one of the nearest
    aspect ratio, and each step trains on images of one size."""

    @model_validator(mode="after")
    def _buckets_are_sizes(self) -> SFTDataConfig:
        if self.buckets and self.height is not None:
            raise ValueError("give height and width, or buckets, not both")
        if len(set(self.buckets)) < len(self.buckets):
            raise ValueError(f"a bucket stands twice: {self.buckets}")
        return self


class SnapshotPairsConfig(ResolutionConfig):
    """(win, lose) of each pick in a snapshot folder with images."""

    type: Literal["snapshot"] = "snapshot"
    path: Path
    images: str | None = None
    """Folder or fsspec URL of ``<sha256>.png``; null: the snapshot's own ``images/``."""
    questions: tuple[Question, ...] = tuple(Question)
    """Only picks that answer one of these."""
    policy: Literal["win_lose", "implied_all"] = "win_lose"
    """Pairs of a pick: the best against the worst, or all that best and worst imply."""
    splits: tuple[Split, ...] = (Split.TRAIN,)
    """Prompts to train on; those marked ``validation`` are held out."""
    held_out_annotators: tuple[str, ...] = ()
    """Pseudonyms whose picks are measured and never trained on."""
    compare: Literal["image", "faulty_regions"] = "image"
    """``faulty_regions``: where a pick marks faults on the image that it rejects, the pair is
    compared there alone."""
    smoothing_from_agreement: bool = False
    """Make one pair of all picks on the same two images, the way the majority has it, with the
    share of dissent as its label smoothing; shares from few picks lean to that of the whole
    snapshot."""


class JsonlPairsConfig(ResolutionConfig):
    """Rows of ``{"prompt", "chosen", "rejected"}``, and optionally ``"weight"``, ``"split"``,
    ``"annotator"``, ``"label_smoothing"``, ``"tie"``, ``"region"`` (a greyscale image: white
    counts), ``"noise_keys"`` (of chosen and rejected, ``seed/name/draw``), and ``"source_image"``
    and ``"reference_images"`` as SFT has them.

    With ``loss_type: kto`` rows of ``{"prompt", "image", "desirable"}``, with ``plackett_luce`` of
    ``{"prompt", "images"}``, the best image first.
    """

    type: Literal["jsonl"] = "jsonl"
    path: Path
    """JSONL file; image paths are relative to its folder."""
    held_out_annotators: tuple[str, ...] = ()
    """Names in ``annotator`` whose rows are measured and never trained on."""


PairsConfig = Annotated[SnapshotPairsConfig | JsonlPairsConfig, Field(discriminator="type")]
