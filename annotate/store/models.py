"""What the store takes and gives beyond the records of a snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from annotate.schema import Outcome, Pick, Question, Record

ROLE_LEVEL = {"annotator": 0, "reviewer": 1, "lead": 2, "engineer": 2, "admin": 3}


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
    """Tasks that this annotator could still be given, the one in hand included."""


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


class Submission(Record):
    """One answer as the browser sends it: positions on the screen, not ordinals."""

    idempotency_key: str = Field(min_length=8, max_length=64)
    """Chosen by the client once per answer; sending it again gives the same pick."""
    assignment_id: int
    lease_token: str
    outcome: Outcome
    win_position: int | None = Field(default=None, ge=0)
    lose_position: int | None = Field(default=None, ge=0)
    note: str = Field(default="", max_length=2000)
    """Free text; required for ``flag``."""
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
