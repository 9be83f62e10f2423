"""The types of a snapshot: what travels from the store to the training machines.

Other packages import them through `annotate.records`. They need pydantic alone.
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails


class Record(BaseModel):
    """Base of every record: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def faults(error: ValidationError) -> str:
    """What is wrong with a record: ``field: what is expected (got value)``, joined by ``; ``."""
    return "; ".join(map(_fault, error.errors(include_url=False)))


def _fault(detail: ErrorDetails) -> str:
    where, got = ".".join(map(str, detail["loc"])), detail["input"]
    is_short = isinstance(got, int | float) or (isinstance(got, str) and len(got) <= 100)
    message = detail["msg"].removeprefix("Value error, ")
    return (f"{where}: " if where else "") + message + (f" (got {got!r})" if is_short else "")


class Question(StrEnum):
    """What a task asks its annotator to judge."""

    OVERALL = "overall"
    AESTHETICS = "aesthetics"
    INSTRUCTION = "instruction"
    DETAIL = "detail"


class Criterion(StrEnum):
    """What a reason, or a region of an image, is about."""

    AESTHETICS = "aesthetics"
    INSTRUCTION = "instruction"
    DETAIL = "detail"


class Outcome(StrEnum):
    """How a task ended for one annotator."""

    PICKED = "picked"
    ALL_BAD = "all_bad"
    ALL_EQUAL = "all_equal"
    SKIP = "skip"
    FLAG = "flag"
    CANNOT_JUDGE = "cannot_judge"
    """An image is broken or missing, or this annotator cannot tell (a language, a place)."""


class Split(StrEnum):
    """Which part of the data a prompt belongs to; every row of a prompt follows it."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


def language(text: str) -> str:
    """``zh`` for a text with Han characters, else ``en``: of a prompt that names none."""
    return "zh" if _HAN.search(text) else "en"


class Prompt(Record):
    id: str
    text: str
    lang: str = "en"
    """BCP 47 tag, e.g. ``en`` or ``zh``."""
    category: str = ""
    split: Split = Split.TRAIN
    source_image: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the PNG file that ``text`` asks to edit; None where it asks for a new picture."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Free structured data, e.g. the specification a poster caption was made from."""


class Generation(Record):
    """Everything that draws a candidate again."""

    model: str
    """Name or path of the model as the engineer knows it; never shown to annotators."""
    model_sha256: str
    seed: str
    """Decimal text: torch seeds reach 2**64 - 1, more than an SQL integer holds."""
    noise_key: str = ""
    """Names the prior noise, ``seed/sample_id/draw`` of `align.mmdit.flow.seeded_noise`."""
    sampler: str = "flow-euler"
    steps: int
    guidance_scale: float
    height: int
    width: int
    dtype: str
    device: str
    versions: dict[str, str] = Field(default_factory=dict)


class Candidate(Record):
    id: str
    prompt_id: str
    image_sha256: str
    """SHA-256 of the PNG file's bytes; the image lies at ``images/<sha256>.png``."""
    width: int
    height: int
    generation: Generation | None = None
    """None for an imported image of unknown origin."""


class Task(Record):
    id: str
    prompt_id: str
    question: Question = Question.OVERALL
    candidate_ids: tuple[str, ...] = Field(min_length=2, max_length=9)
    """In canonical order: the index here is the candidate's ordinal."""
    kind: str = "standard"
    reference: int | None = Field(default=None, ge=0)
    """Ordinal of the gold image in reference mode: it wins, only the worst is chosen."""

    @model_validator(mode="after")
    def _reference_is_shown(self) -> Self:
        if self.reference is not None and self.reference >= len(self.candidate_ids):
            raise ValueError(
                f"reference {self.reference} is not one of the {len(self.candidate_ids)} candidates"
            )
        return self


class Reason(Record):
    """Why the best won, or why the worst lost."""

    target: Literal["win", "lose"]
    criterion: Criterion


class Region(Record):
    """A rectangle of a candidate that is faulty, in pixels of the stored image."""

    ordinal: int = Field(ge=0)
    x: int = Field(ge=0)
    """Left edge."""
    y: int = Field(ge=0)
    """Upper edge."""
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    criterion: Criterion | None = None


class Mark(Record):
    """What a pick says of one candidate by itself."""

    ordinal: int = Field(ge=0)
    rating: int | None = Field(default=None, ge=1, le=5)
    """5 is the best."""
    thumb: Literal["up", "down"] | None = None


class Pick(Record):
    id: str
    task_id: str
    annotator: str
    """A pseudonym, stable within a project."""
    revision: int = 1
    outcome: Outcome
    win: int | None = None
    """Ordinal of the best candidate; set exactly when the outcome is ``picked``."""
    lose: int | None = None
    """Ordinal of the worst candidate; set exactly when the outcome is ``picked``."""
    reasons: tuple[Reason, ...] = ()
    """Sorted by target and criterion."""
    regions: tuple[Region, ...] = ()
    """Sorted by ordinal and place."""
    marks: tuple[Mark, ...] = ()
    """At most one of each candidate, sorted by ordinal."""

    @model_validator(mode="after")
    def _ordinals_follow_outcome(self) -> Self:
        named = self.win is not None and self.lose is not None and self.win != self.lose
        unnamed = self.win is None and self.lose is None
        if not (named if self.outcome == Outcome.PICKED else unnamed):
            raise ValueError(
                "outcome 'picked' has a win and another lose, every other outcome has neither; "
                f"got outcome {self.outcome.value!r}, win {self.win}, lose {self.lose}"
            )
        return self


class PreferencePair(Record):
    """One chosen-against-rejected comparison derived from a pick by a pair policy."""

    pick_id: str
    task_id: str
    prompt_id: str
    question: Question
    annotator: str
    chosen_id: str
    rejected_id: str
    weight: float = 1.0


class Ranking(Record):
    """One pick as a partial order: best, undecided middle, worst."""

    pick_id: str
    task_id: str
    prompt_id: str
    question: Question
    annotator: str
    win_id: str
    middle_ids: tuple[str, ...]
    """The candidates between best and worst, in canonical order; empty for a task of two."""
    lose_id: str


class Run(Record):
    """One training or evaluation run, as the web app lists it."""

    id: str
    kind: str
    """What ran: ``reward``, ``sft``, ``dpo``, ``grpo`` or ``eval``."""
    folder: str
    """The run folder; its ``metrics.jsonl`` holds the curves."""
    snapshot_digest: str | None = None
    """The snapshot it learned from; None for a run without preferences."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The resolved configuration."""
    status: Literal["running", "finished", "failed", "stopped"] = "running"
    metrics: dict[str, float] = Field(default_factory=dict)
    """The summary at the end, e.g. ``{"rewards/accuracies": 0.71}``."""
    created_at: datetime | None = None
    """Aware UTC; set by the store when None."""
