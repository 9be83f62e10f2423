"""What travels between client and server: JSON, images as PNG. No pickle on any wire.

The types are the contract: both sides parse with them, and both refuse another `SCHEMA`.
"""

from __future__ import annotations

import base64
import io
import json
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
    "parse",
]

SCHEMA = 2
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

    @classmethod
    def pack(cls, item: RewardItem, png: bytes) -> WireItem:
        return cls(
            sample_id=item.sample_id,
            group_id=item.group_id,
            prompt=item.prompt,
            metadata=dict(item.metadata),
            png=base64.b64encode(png).decode("ascii"),
        )

    def unpack(self) -> RewardItem:
        """Raises SchemaError for what is no PNG."""
        try:
            image = Image.open(
                io.BytesIO(base64.b64decode(self.png, validate=True)), formats=["PNG"]
            )
            image.load()
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise SchemaError(
                f"the image of sample {self.sample_id!r} is no PNG: {error}"
            ) from None
        return RewardItem(
            sample_id=self.sample_id,
            group_id=self.group_id,
            prompt=self.prompt,
            image=image,
            metadata=self.metadata,
        )


class ScoreRequest(_Message):
    wire: Literal[2] = SCHEMA
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
    wire: Literal[2] = SCHEMA
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
    wire: Literal[2] = SCHEMA
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
