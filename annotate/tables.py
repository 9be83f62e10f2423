"""The tables of a preference store, for SQLite and PostgreSQL alike.

The invariants that matter live here, not in the code that writes: k slots a task exist as rows,
one annotator never holds two slots of a task nor two leases, a pick can only name a candidate
that its task shows, and at most one pick of a slot is current.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from annotate.columns import Base, ExactJSON, QueryJSON, RowId, UTCDateTime, one_of
from annotate.review_tables import (
    CAUSES,
    DECISIONS,
    KEY_ROLES,
    AuditRow,
    ReviewRow,
    TaskKeyRow,
)
from annotate.schema import Criterion, Outcome, Question, Split

__all__ = [
    "CAUSES", "DECISIONS", "KEY_ROLES", "MAX_CANDIDATES", "PICK_STATUSES", "REASON_TARGETS",
    "ROLES", "RUN_STATUSES", "SLOT_STATES", "THUMBS", "AssignmentRow", "AuditRow", "Base",
    "CandidateRow", "ExactJSON", "GuidelineRow", "NextTaskRow", "PickMarkRow", "PickReasonRow",
    "PickRegionRow", "PickRow", "PromptRow", "QueryJSON", "ReviewRow", "RowId", "RunRow",
    "SessionRow", "SettingRow", "SnapshotRow", "TaskCandidateRow", "TaskKeyRow", "TaskRow",
    "UTCDateTime", "UserRow", "one_of",
]  # fmt: skip

MAX_CANDIDATES = 9
ROLES = ("annotator", "reviewer", "lead", "engineer", "admin")
SLOT_STATES = ("open", "leased", "done", "skipped", "void")
PICK_STATUSES = ("current", "withdrawn", "void")
REASON_TARGETS = ("win", "lose")
THUMBS = ("up", "down")
RUN_STATUSES = ("running", "finished", "failed", "stopped")


class SettingRow(Base):
    """Facts about the store itself: its signing secret and its pseudonym key."""

    __tablename__ = "setting"

    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class UserRow(Base):
    __tablename__ = "user_account"
    __table_args__ = (CheckConstraint(one_of("role", ROLES), name="role"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    name: Mapped[str]
    name_norm: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    password_hash: Mapped[str]
    is_active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)


class SessionRow(Base):
    __tablename__ = "auth_session"

    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"), index=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    expires_at: Mapped[datetime] = mapped_column(UTCDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class PromptRow(Base):
    __tablename__ = "prompt"
    __table_args__ = (CheckConstraint(one_of("split", Split), name="split"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]
    lang: Mapped[str]
    category: Mapped[str] = mapped_column(index=True)
    split: Mapped[str]
    source_image: Mapped[str | None]
    """SHA-256 of the picture that the text asks to edit."""
    metadata_json: Mapped[dict[str, Any]] = mapped_column("metadata", ExactJSON)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)


class CandidateRow(Base):
    __tablename__ = "candidate"
    __table_args__ = (
        UniqueConstraint("id", "prompt_id"),
        CheckConstraint("width > 0 AND height > 0", name="size"),
        CheckConstraint("length(image_sha256) = 64", name="image_sha256"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompt.id"), index=True)
    image_sha256: Mapped[str] = mapped_column(index=True)
    width: Mapped[int]
    height: Mapped[int]
    generation: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)


class TaskRow(Base):
    __tablename__ = "task"
    __table_args__ = (
        UniqueConstraint("id", "prompt_id"),
        CheckConstraint(one_of("question", Question), name="question"),
        CheckConstraint(f"n_candidates BETWEEN 2 AND {MAX_CANDIDATES}", name="n_candidates"),
        CheckConstraint("k_required >= 0", name="k_required"),
        CheckConstraint("reference BETWEEN 0 AND n_candidates - 1", name="reference"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompt.id"), index=True)
    question: Mapped[str]
    kind: Mapped[str]
    n_candidates: Mapped[int]
    k_required: Mapped[int]
    reference: Mapped[int | None]
    """Ordinal of the gold image in reference mode."""
    repeats_id: Mapped[str | None] = mapped_column(ForeignKey("task.id"), index=True)
    """The task whose candidates this one shows to the same annotator again."""
    closed_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    """When a review or a snapshot closed it: from then on no answer is taken back."""
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)


class TaskCandidateRow(Base):
    __tablename__ = "task_candidate"
    __table_args__ = (
        ForeignKeyConstraint(["task_id", "prompt_id"], ["task.id", "task.prompt_id"]),
        # A task shows candidates of its own prompt and of no other.
        ForeignKeyConstraint(
            ["candidate_id", "prompt_id"], ["candidate.id", "candidate.prompt_id"]
        ),
        UniqueConstraint("task_id", "candidate_id"),
        CheckConstraint(f"ordinal BETWEEN 0 AND {MAX_CANDIDATES - 1}", name="ordinal"),
    )

    task_id: Mapped[str] = mapped_column(primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    candidate_id: Mapped[str] = mapped_column(index=True)
    prompt_id: Mapped[str]


class AssignmentRow(Base):
    """One slot of a task: the place for one annotator's answer."""

    __tablename__ = "assignment"
    __table_args__ = (
        UniqueConstraint("task_id", "slot"),
        UniqueConstraint("task_id", "annotator_id"),
        UniqueConstraint("id", "task_id"),
        CheckConstraint(one_of("state", SLOT_STATES), name="state"),
        CheckConstraint(
            "(state IN ('open', 'void') AND annotator_id IS NULL AND lease_until IS NULL) OR "
            "(state = 'leased' AND annotator_id IS NOT NULL AND lease_until IS NOT NULL) OR "
            "(state IN ('done', 'skipped') AND annotator_id IS NOT NULL)",
            name="holder",
        ),
        # The queue: what a claim scans, in the order in which it hands out.
        Index(
            "ix_assignment_queue",
            "lane",
            "rank",
            "id",
            sqlite_where=text("state IN ('open', 'leased')"),
            postgresql_where=text("state IN ('open', 'leased')"),
        ),
        # What progress counts.
        Index(
            "ix_assignment_open",
            "task_id",
            sqlite_where=text("state = 'open'"),
            postgresql_where=text("state = 'open'"),
        ),
        Index(
            "uq_assignment_one_lease",
            "annotator_id",
            unique=True,
            sqlite_where=text("state = 'leased'"),
            postgresql_where=text("state = 'leased'"),
        ),
        # What progress counts of one annotator. Partial: statistics taken while most slots are open
        # would tell SQLite's planner that one annotator's are nearly all rows, and it would scan.
        Index(
            "ix_assignment_annotator",
            "annotator_id",
            "state",
            "lane",
            sqlite_where=text("annotator_id IS NOT NULL"),
            postgresql_where=text("annotator_id IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"))
    slot: Mapped[int]
    rank: Mapped[int] = mapped_column(BigInteger)
    """Place in the queue: small is early (`annotate.assignment.queue_rank`)."""
    lane: Mapped[int] = mapped_column(server_default="1")
    """0: reward scores gave it its rank; 1: chance did, which win rates may count; 2: a hidden
    check of the annotator who holds it, in no queue."""
    is_extra: Mapped[bool] = mapped_column(server_default=false())
    """Whether disagreement asked for this slot, beyond the task's ``k_required``."""
    state: Mapped[str] = mapped_column(default="open")
    annotator_id: Mapped[int | None] = mapped_column(ForeignKey("user_account.id"))
    attempt: Mapped[int] = mapped_column(default=0)
    """How often the slot was leased; part of the lease token."""
    lease_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    opened_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    display_order: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    """``display_order[position]`` is the ordinal shown there."""
    replaces_id: Mapped[int | None] = mapped_column(ForeignKey("assignment.id"), unique=True)
    """The skipped slot that this one stands in for."""


class NextTaskRow(Base):
    """The task that an annotator was shown ahead: what the next claim gives, where it still can."""

    __tablename__ = "next_task"
    __table_args__ = (
        ForeignKeyConstraint(["assignment_id", "task_id"], ["assignment.id", "assignment.task_id"]),
    )

    user_id: Mapped[int] = mapped_column(
        RowId, ForeignKey("user_account.id"), primary_key=True, autoincrement=False
    )
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"))
    assignment_id: Mapped[int | None] = mapped_column(RowId, index=True)
    """A slot of the queue; None for a check, whose slot the claim makes."""
    until: Mapped[datetime] = mapped_column(UTCDateTime)
    """Others are given another slot until then, where there is one."""


class PickRow(Base):
    """One answer; rows are only ever added, and change in ``status`` alone."""

    __tablename__ = "pick"
    __table_args__ = (
        ForeignKeyConstraint(["assignment_id", "task_id"], ["assignment.id", "assignment.task_id"]),
        # Only a candidate that the task shows can be picked.
        ForeignKeyConstraint(
            ["task_id", "win"], ["task_candidate.task_id", "task_candidate.ordinal"]
        ),
        ForeignKeyConstraint(
            ["task_id", "lose"], ["task_candidate.task_id", "task_candidate.ordinal"]
        ),
        UniqueConstraint("annotator_id", "idempotency_key"),
        UniqueConstraint("task_id", "annotator_id", "revision"),
        UniqueConstraint("id", "task_id"),
        CheckConstraint(one_of("outcome", Outcome), name="outcome"),
        CheckConstraint(one_of("status", PICK_STATUSES), name="status"),
        CheckConstraint(
            "(outcome = 'picked' AND win IS NOT NULL AND lose IS NOT NULL AND win <> lose) OR "
            "(outcome <> 'picked' AND win IS NULL AND lose IS NULL)",
            name="win_lose",
        ),
        Index(
            "uq_pick_current_assignment",
            "assignment_id",
            unique=True,
            sqlite_where=text("status = 'current'"),
            postgresql_where=text("status = 'current'"),
        ),
        Index(
            "uq_pick_current_annotator",
            "task_id",
            "annotator_id",
            unique=True,
            sqlite_where=text("status = 'current'"),
            postgresql_where=text("status = 'current'"),
        ),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    idempotency_key: Mapped[str]
    body_sha256: Mapped[str]
    assignment_id: Mapped[int] = mapped_column(RowId, index=True)
    task_id: Mapped[str]
    annotator_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    revision: Mapped[int]
    status: Mapped[str]
    outcome: Mapped[str]
    win: Mapped[int | None]
    lose: Mapped[int | None]
    note: Mapped[str] = mapped_column(default="")
    active_ms: Mapped[int | None]
    wall_ms: Mapped[int | None]
    first_action_ms: Mapped[int | None]
    telemetry: Mapped[dict[str, Any]] = mapped_column(QueryJSON)
    submitted_at: Mapped[datetime] = mapped_column(UTCDateTime)
    guideline_version: Mapped[int | None] = mapped_column(ForeignKey("guideline.version"))
    """The guideline that the annotator had; None where the studio has written none."""


class PickReasonRow(Base):
    """Why the best won, or the worst lost."""

    __tablename__ = "pick_reason"
    __table_args__ = (
        CheckConstraint(one_of("target", REASON_TARGETS), name="target"),
        CheckConstraint(one_of("criterion", Criterion), name="criterion"),
    )

    pick_id: Mapped[int] = mapped_column(RowId, ForeignKey("pick.id"), primary_key=True)
    target: Mapped[str] = mapped_column(primary_key=True)
    criterion: Mapped[str] = mapped_column(primary_key=True)


class PickRegionRow(Base):
    """A faulty rectangle of a candidate, in pixels of the stored image."""

    __tablename__ = "pick_region"
    __table_args__ = (
        ForeignKeyConstraint(["pick_id", "task_id"], ["pick.id", "pick.task_id"]),
        ForeignKeyConstraint(
            ["task_id", "ordinal"], ["task_candidate.task_id", "task_candidate.ordinal"]
        ),
        CheckConstraint("x >= 0 AND y >= 0 AND width > 0 AND height > 0", name="box"),
        CheckConstraint(one_of("criterion", Criterion), name="criterion"),
    )

    pick_id: Mapped[int] = mapped_column(RowId, primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[str]
    ordinal: Mapped[int]
    x: Mapped[int]
    y: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    criterion: Mapped[str | None]


class PickMarkRow(Base):
    """What a pick says of one candidate by itself: a rating, a thumb."""

    __tablename__ = "pick_mark"
    __table_args__ = (
        ForeignKeyConstraint(["pick_id", "task_id"], ["pick.id", "pick.task_id"]),
        ForeignKeyConstraint(
            ["task_id", "ordinal"], ["task_candidate.task_id", "task_candidate.ordinal"]
        ),
        CheckConstraint("rating BETWEEN 1 AND 5", name="rating"),
        CheckConstraint(one_of("thumb", THUMBS), name="thumb"),
        CheckConstraint("rating IS NOT NULL OR thumb IS NOT NULL", name="says_something"),
    )

    pick_id: Mapped[int] = mapped_column(RowId, primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    task_id: Mapped[str]
    rating: Mapped[int | None]
    thumb: Mapped[str | None]


class GuidelineRow(Base):
    """One version of the labelling guideline; a version is never changed."""

    __tablename__ = "guideline"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    content: Mapped[dict[str, Any]] = mapped_column(ExactJSON)
    """An `annotate.store.models.Guideline`."""
    author_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)


class SnapshotRow(Base):
    """A snapshot that was cut from this store."""

    __tablename__ = "snapshot"

    digest: Mapped[str] = mapped_column(primary_key=True)
    folder: Mapped[str]
    counts: Mapped[dict[str, Any]] = mapped_column(QueryJSON)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)


class RunRow(Base):
    __tablename__ = "run"
    __table_args__ = (CheckConstraint(one_of("status", RUN_STATUSES), name="status"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    folder: Mapped[str]
    # No foreign key: a run may have learned from a snapshot of another store.
    snapshot_digest: Mapped[str | None] = mapped_column(index=True)
    config: Mapped[dict[str, Any]] = mapped_column(QueryJSON)
    status: Mapped[str]
    metrics: Mapped[dict[str, Any]] = mapped_column(QueryJSON)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)
