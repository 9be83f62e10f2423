"""What travels between client and server: JSON, images as PNG. No pickle on any wire.

The types are the contract: both sides parse with them, and both refuse another `SCHEMA`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from PIL import Image
from PIL.Image import Image as PILImage
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from rewards.base import RewardItem, Score, ScorerSpec

__all__ = [
    "SCHEMA",
    "Health",
    "SchemaError",
    "ScoreRequest",
    "ScoreResponse",
    "ScorerInfo",
    "WireItem",
    "WireScore",
    "encode_png",
    "encode_sources",
    "parse",
]

SCHEMA = 3
"""Raised with every change that an older side would misread."""

M = TypeVar("M", bound=BaseModel)


class SchemaError(ValueError):
    """A body that is not what this version of the schema says."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class WireItem(_Message):
    sample_id: str
    group_id: str
    prompt: str
    metadata: dict[str, Any] = Field(default_factory=dict)
    png: str
    """Base64; lossless, because JPEG changes detail scores."""
    source_pngs: list[str] = Field(default_factory=list)
    """The same of each picture that the prompt edits, in its order."""

    @classmethod
    def pack(cls, item: RewardItem, png: bytes, source_pngs: Sequence[bytes] = ()) -> WireItem:
        return cls(
            sample_id=item.sample_id,
            group_id=item.group_id,
            prompt=item.prompt,
            metadata=dict(item.metadata),
            png=base64.b64encode(png).decode("ascii"),
            source_pngs=[base64.b64encode(source).decode("ascii") for source in source_pngs],
        )

    def unpack(self, sources: dict[str, PILImage] | None = None) -> RewardItem:
        """The item, decoded.

        Args:
            sources: source images of other items by their Base64, which this one adds to: what
                items share is decoded once.

        Raises:
            SchemaError: an image is no PNG; names the sample.
        """
        known = {} if sources is None else sources
        for number, png in enumerate(self.source_pngs, start=1):
            if png not in known:
                known[png] = self._decode(png, f"source image {number}")
        return RewardItem(
            sample_id=self.sample_id,
            group_id=self.group_id,
            prompt=self.prompt,
            image=self._decode(self.png, "the image"),
            metadata=self.metadata,
            source_images=tuple(known[png] for png in self.source_pngs),
        )

    def _decode(self, png: str, what: str) -> PILImage:
        try:
            image = Image.open(io.BytesIO(base64.b64decode(png, validate=True)), formats=["PNG"])
            image.load()
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise SchemaError(f"{what} of sample {self.sample_id!r} is no PNG: {error}") from None
        return image


class ScoreRequest(_Message):
    wire: Literal[3] = SCHEMA
    scorer: str
    items: Annotated[list[WireItem], Field(max_length=4096)]


class WireScore(_Message):
    sample_id: str
    value: FiniteFloat | None
    components: dict[str, FiniteFloat] = Field(default_factory=dict)
    sigma: FiniteFloat | None = None
    error: str | None = None
    truncated: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _an_error_has_no_value(self) -> WireScore:
        if self.error is not None and self.value is not None:
            raise ValueError("a score with an error has no value")
        return self

    @classmethod
    def pack(cls, sample_id: str, score: Score) -> WireScore:
        return cls(
            sample_id=sample_id,
            value=score.value,
            components=dict(score.components),
            sigma=score.sigma,
            error=score.error,
            truncated=score.truncated,
        )

    def unpack(self) -> Score:
        return Score(self.value, dict(self.components), self.sigma, self.error, self.truncated)


class ScoreResponse(_Message):
    wire: Literal[3] = SCHEMA
    scorer: str
    version: str
    scores: list[WireScore]


class ScorerInfo(_Message):
    name: str
    version: str
    components: list[str]
    backbone: str = ""
    groupwise: bool = False

    @classmethod
    def of(cls, spec: ScorerSpec) -> ScorerInfo:
        return cls(
            name=spec.name,
            version=spec.version,
            components=list(spec.components),
            backbone=spec.backbone,
            groupwise=spec.groupwise,
        )


class Health(_Message):
    wire: Literal[3] = SCHEMA
    ready: bool
    """False until every scorer is loaded."""
    scorers: list[ScorerInfo]


def parse(cls: type[M], body: bytes) -> M:
    """Parse a body strictly: NaN and infinity, unknown keys and other schemas are refused.

    Raises:
        SchemaError: with what is wrong and where.
    """
    try:
        tree = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"not JSON: {error}") from None
    wire = tree.get("wire") if isinstance(tree, dict) else None
    if wire != SCHEMA:
        raise SchemaError(f"schema version {wire!r}, expected {SCHEMA}")
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise SchemaError(f"{cls.__name__}.{where}: {first['msg']}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def encode_png(image: PILImage) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def encode_sources(items: Sequence[RewardItem]) -> list[tuple[bytes, ...] | str]:
    """Of each item its source images as PNG, or why one cannot be read; a picture that several
    items share is encoded once."""
    pngs: dict[int, bytes] = {}
    found: list[tuple[bytes, ...] | str] = []
    for item in items:
        try:
            for image in item.source_images:
                if id(image) not in pngs:
                    pngs[id(image)] = encode_png(image)
        except (OSError, SyntaxError) as error:
            number = 1 + [id(image) in pngs for image in item.source_images].index(False)
            found.append(f"source image {number} cannot be read: {error}")
        else:
            found.append(tuple(pngs[id(image)] for image in item.source_images))
    return found
