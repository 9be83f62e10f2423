"""What the store takes and gives beyond the records of a snapshot."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from annotate.schema import Criterion, Outcome, Pick, Question, Reason, Record

Number = Annotated[int, Field(ge=0, lt=2**31)]
"""An id, a count or a version from outside: what both engines' integers hold."""

_UNSTORABLE = re.compile("[\\x00\\ud800-\\udfff]")

ROLE_LEVEL = {"annotator": 0, "reviewer": 1, "lead": 2, "engineer": 2, "admin": 3}
GUIDELINE_AUTHORS = ("lead", "admin")


@dataclass(frozen=True)
class User:
    id: int
    name: str
    role: str
    """One of `annotate.tables.ROLES`."""
    is_active: bool = True

    def at_least(self, role: str) -> bool:
        """Whether this user may do what ``role`` may."""
        return ROLE_LEVEL[self.role] >= ROLE_LEVEL[role]


@dataclass(frozen=True)
class Progress:
    """How far one annotator is."""

    done: int
    """Tasks answered, skips not counted."""
    skipped: int
    remaining: int
    """Tasks that this annotator could still be given, the one in hand included; beyond
    `annotate.store.work.PROGRESS_LIMIT` they are not counted."""


@dataclass(frozen=True)
class Claim:
    """A task in an annotator's hands until ``lease_until``.

    ``display_order`` and the ordinals stay on the server: the browser gets positions alone.
    """

    assignment_id: int
    task_id: str
    lease_token: str
    lease_until: datetime
    prompt: str
    lang: str
    question: Question
    display_order: tuple[int, ...]
    media: tuple[str, ...]
    """One opaque token per display position, for `PreferenceStore.media`."""
    sizes: tuple[tuple[int, int], ...]
    """(width, height) in pixels per display position."""
    progress: Progress
    reference_position: int | None = None
    """Where the gold image of reference mode stands: it wins, only the worst is chosen."""
    source: str | None = None
    """Opaque token of the picture that the candidates edit; None where they are new pictures."""
    previous: ShownAnswer | None = None
    """The answer that this annotator took back, to go on from."""


class Sent(Record):
    """A record that a browser sent and the store keeps: both engines can hold its texts."""

    @model_validator(mode="before")
    @classmethod
    def _can_be_stored(cls, values: Any) -> Any:
        # Not by recursion: what is sent may be nested as deep as the JSON parser goes.
        waiting = [("", values)]
        while waiting:
            field, value = waiting.pop()
            if isinstance(value, Mapping):
                waiting += [(field or str(key), part) for key, part in value.items()]
                waiting += [(field, key) for key in value]
            elif isinstance(value, list | tuple):
                waiting += [(field, part) for part in value]
            elif isinstance(value, str) and _UNSTORABLE.search(value):
                raise ValueError(f"{field!a} has a NUL character or half a surrogate pair")
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field!a} must be finite, got {value}")
        return values


class ShownRegion(Record):
    """A faulty rectangle of the candidate at ``position``, in pixels of the stored image."""

    position: Number
    x: Number
    y: Number
    width: int = Field(ge=1, lt=2**31)
    height: int = Field(ge=1, lt=2**31)
    criterion: Criterion | None = None


class ShownMark(Record):
    """A rating or a thumb, or both, for the candidate at ``position``."""

    position: Number
    rating: int | None = Field(default=None, ge=1, le=5)
    thumb: Literal["up", "down"] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.rating is None and self.thumb is None:
            raise ValueError("a mark has a rating or a thumb")
        return self


class Submission(Sent):
    """One answer as the browser sends it: positions on the screen, not ordinals."""

    idempotency_key: str = Field(min_length=8, max_length=64)
    """Chosen by the client once per answer; sending it again gives the same pick."""
    assignment_id: int
    lease_token: str = Field(max_length=500)
    outcome: Outcome
    win_position: Number | None = None
    lose_position: Number | None = None
    note: str = Field(default="", max_length=2000)
    """Free text; required for ``flag``."""
    reasons: tuple[Reason, ...] = Field(default=(), max_length=6)
    """Why the best won and the worst lost; for ``picked`` alone."""
    regions: tuple[ShownRegion, ...] = Field(default=(), max_length=32)
    marks: tuple[ShownMark, ...] = Field(default=(), max_length=9)
    guideline_version: Number | None = None
    """The guideline that the annotator had on the page."""
    active_ms: int | None = Field(default=None, ge=0, lt=2**31)
    wall_ms: int | None = Field(default=None, ge=0, lt=2**31)
    first_action_ms: int | None = Field(default=None, ge=0, lt=2**31)
    telemetry: dict[str, Any] = Field(default_factory=dict)
    """Zooms, flips, input mode, client version; outside every digest."""

    @model_validator(mode="after")
    def _positions_follow_outcome(self) -> Self:
        positions = (self.win_position, self.lose_position)
        if self.outcome == Outcome.PICKED:
            if None in positions:
                raise ValueError("outcome 'picked' needs both win_position and lose_position")
            if self.win_position == self.lose_position:
                raise ValueError(f"win and lose are the same position, {self.win_position}")
        elif positions != (None, None):
            raise ValueError(f"outcome {self.outcome.value!r} takes no positions, got {positions}")
        if self.outcome == Outcome.FLAG and not self.note.strip():
            raise ValueError("outcome 'flag' needs a note that says what is wrong")
        return self

    @model_validator(mode="after")
    def _details_are_single(self) -> Self:
        if self.reasons and self.outcome != Outcome.PICKED:
            raise ValueError(f"outcome {self.outcome.value!r} takes no reasons")
        if len(set(self.reasons)) != len(self.reasons):
            raise ValueError("a reason stands twice")
        positions = [mark.position for mark in self.marks]
        if len(set(positions)) != len(positions):
            raise ValueError("a candidate has two marks")
        return self


@dataclass(frozen=True)
class ShownAnswer:
    """An answer by positions on the screen, as the browser shows it again."""

    outcome: Outcome
    win_position: int | None
    lose_position: int | None
    reasons: tuple[Reason, ...] = ()
    regions: tuple[ShownRegion, ...] = ()
    marks: tuple[ShownMark, ...] = ()


@dataclass(frozen=True)
class OwnPick:
    """One of an annotator's own answers, as their history shows it."""

    number: int
    """Grows with time; for paging."""
    submitted_at: datetime
    outcome: Outcome
    question: Question
    prompt: str
    lang: str
    win: str | None
    """A media token."""
    lose: str | None
    active_ms: int | None


class Example(Record):
    """A worked example of a guideline: the better of two images, and why."""

    question: Question
    win_id: str
    lose_id: str
    why: dict[str, str]
    """The explanation by language."""


GuidelineText = Annotated[str, Field(max_length=20_000)]


class Guideline(Sent):
    """How to judge: a text for each question and language, and worked examples."""

    texts: dict[Literal["en", "zh"], dict[Literal["general"] | Question, GuidelineText]]
    examples: tuple[Example, ...] = Field(default=(), max_length=60)


@dataclass(frozen=True)
class GuidelineVersion:
    """One version as it was stored."""

    version: int
    guideline: Guideline
    author: str
    """The account's name."""
    created_at: datetime


class Answer(Record):
    """An answer from elsewhere, by candidate ids, for `PreferenceStore.add_answers`."""

    task_id: str
    outcome: Outcome
    win_id: str | None = None
    lose_id: str | None = None


class StoredPick(Pick):
    """A pick with its fate in the store."""

    status: Literal["current", "withdrawn", "void"]
    """``void``: kept, but it came after the lease was lost and the slot was given away."""
    submitted_at: datetime


@dataclass(frozen=True)
class LabelEvent:
    """One current answer as the leads' pages count it."""

    submitted_at: datetime
    annotator: str
    """The account's name: for those who run the studio, never for a snapshot."""
    question: Question
    outcome: Outcome
    active_ms: int | None


@dataclass(frozen=True)
class StoreStatus:
    """Row counts of a store."""

    prompts: int
    candidates: int
    tasks: int
    slots: dict[str, int]
    """Slots by state."""
    picks: dict[str, int]
    """Current picks by outcome."""
    users: dict[str, int]
    """Active users by role."""
    snapshots: int
    runs: int


@dataclass(frozen=True)
class SnapshotEntry:
    """A snapshot that was cut from a store."""

    digest: str
    folder: str
    counts: dict[str, int]
    created_at: datetime
