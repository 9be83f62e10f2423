"""The tables of checks, reviews and the audit trail; a part of `annotate.tables`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from annotate.columns import Base, RowId, UTCDateTime, one_of
from annotate.schema import Outcome

KEY_ROLES = ("win", "lose")
DECISIONS = ("confirm", "override", "discard", "return")
CAUSES = ("hard", "unclear_prompt", "guideline_gap", "careless", "broken_image", "other")


class TaskKeyRow(Base):
    """An answer that a gold task accepts: this candidate as the best, or as the worst."""

    __tablename__ = "task_key"
    __table_args__ = (
        ForeignKeyConstraint(
            ["task_id", "ordinal"], ["task_candidate.task_id", "task_candidate.ordinal"]
        ),
        CheckConstraint(one_of("role", KEY_ROLES), name="role"),
    )

    task_id: Mapped[str] = mapped_column(primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    role: Mapped[str] = mapped_column(primary_key=True)


class ReviewRow(Base):
    """A reviewer's word on a task; rows are only ever added, and the newest holds."""

    __tablename__ = "review"
    __table_args__ = (
        ForeignKeyConstraint(
            ["task_id", "win"], ["task_candidate.task_id", "task_candidate.ordinal"]
        ),
        ForeignKeyConstraint(
            ["task_id", "lose"], ["task_candidate.task_id", "task_candidate.ordinal"]
        ),
        CheckConstraint(one_of("decision", DECISIONS), name="decision"),
        CheckConstraint(one_of("cause", CAUSES), name="cause"),
        CheckConstraint(one_of("outcome", Outcome), name="outcome"),
        CheckConstraint("(decision = 'override') = (outcome IS NOT NULL)", name="override"),
        CheckConstraint(
            "(outcome = 'picked' AND win IS NOT NULL AND lose IS NOT NULL AND win <> lose) OR "
            "((outcome IS NULL OR outcome <> 'picked') AND win IS NULL AND lose IS NULL)",
            name="win_lose",
        ),
    )

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), index=True)
    reviewer_id: Mapped[int] = mapped_column(ForeignKey("user_account.id"))
    decision: Mapped[str]
    outcome: Mapped[str | None]
    win: Mapped[int | None]
    lose: Mapped[int | None]
    cause: Mapped[str]
    note: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)


class AuditRow(Base):
    """Who did what; triggers refuse to change or remove a row, and each actor's rows are a chain.

    A chain for each actor, not one for all: one's requests follow each other anyway, so that
    nobody waits for anybody else.
    """

    __tablename__ = "audit_event"
    __table_args__ = (UniqueConstraint("actor", "number"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    actor: Mapped[str]
    """``user:ID``, or ``system`` for those who write to the studio itself."""
    number: Mapped[int]
    """1, 2, 3 ... within the actor's chain."""
    at: Mapped[str]
    """UTC in ISO format, as text: it is covered by the hash to the letter."""
    action: Mapped[str]
    subject: Mapped[str] = mapped_column(index=True)
    detail: Mapped[str]
    """JSON with sorted keys."""
    previous_sha256: Mapped[str]
    """Of the actor's row before; empty for the first."""
    sha256: Mapped[str]
