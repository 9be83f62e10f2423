"""The audit trail: who did what, each actor's events in a chain of hashes.

Changing, removing or slipping in an event breaks its actor's chain; changing a pick contradicts the
event that recorded it. Cutting off the newest events of an actor leaves a whole, shorter chain:
`audit_heads` are kept with each backup to hold against that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from annotate.store.engine import StoreBase
from annotate.tables import AuditRow, PickRow

SYSTEM = "system"
_CHAIN_LOCK = 0x61756469745F6F66
"""PostgreSQL's advisory lock for the chain of those who write to the studio itself."""


@dataclass(frozen=True)
class AuditEvent:
    """One event as it was recorded."""

    actor: str
    number: int
    at: str
    action: str
    subject: str
    detail: dict[str, Any]


def append_event(
    session: Session,
    actor_id: int | None,
    action: str,
    subject: str,
    detail: dict[str, Any],
    now: datetime | None = None,
) -> None:
    """Add an event in the transaction of what it tells.

    Args:
        actor_id: the user, whose row the transaction has locked; None for the command line.
    """
    actor = SYSTEM if actor_id is None else f"user:{actor_id}"
    if actor_id is None and session.get_bind().dialect.name != "sqlite":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _CHAIN_LOCK})
    last = session.execute(
        select(AuditRow.number, AuditRow.sha256)
        .where(AuditRow.actor == actor)
        .order_by(AuditRow.number.desc())
        .limit(1)
    ).first()
    row = AuditRow(
        actor=actor,
        number=last.number + 1 if last else 1,
        at=(now or datetime.now(UTC)).astimezone(UTC).isoformat(),
        action=action,
        subject=subject,
        detail=json.dumps(detail, sort_keys=True, ensure_ascii=False, allow_nan=False),
        previous_sha256=last.sha256 if last else "",
    )
    row.sha256 = _sha256(row)
    session.add(row)


def pick_facts(row: PickRow) -> dict[str, Any]:
    """What the trail says of a pick."""
    return {
        "task": row.task_id,
        "assignment": row.assignment_id,
        "annotator": row.annotator_id,
        "revision": row.revision,
        "outcome": row.outcome,
        "win": row.win,
        "lose": row.lose,
        "body_sha256": row.body_sha256,
    }


class AuditStore(StoreBase):
    """The part of a store that reads its audit trail."""

    def audit_events(self, subject: str | None = None, limit: int = 200) -> list[AuditEvent]:
        """The newest events, or those about one subject (``pick:7``), newest first."""
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
        if subject is not None:
            query = query.where(AuditRow.subject == subject)
        with self._read() as session:
            return [
                AuditEvent(r.actor, r.number, r.at, r.action, r.subject, json.loads(r.detail))
                for r in session.scalars(query)
            ]

    def audit_heads(self) -> dict[str, tuple[int, str]]:
        """Each actor's newest event: (number, SHA-256)."""
        query = select(AuditRow.actor, AuditRow.number, AuditRow.sha256).order_by(AuditRow.number)
        with self._read() as session:
            return {actor: (number, sha) for actor, number, sha in session.execute(query)}

    def verify_audit(self, heads: dict[str, tuple[int, str]] | None = None) -> list[str]:
        """What is wrong with the trail, and with the picks that it tells of; [] when nothing is.

        Args:
            heads: `audit_heads` of an earlier time: the trail must still contain them.
        """
        with self._read() as session:
            return [
                *_broken_chains(session, heads or {}),
                *_changed_picks(session),
            ]


def _sha256(row: AuditRow) -> str:
    fields = ("actor", "number", "at", "action", "subject", "detail", "previous_sha256")
    body = json.dumps([getattr(row, name) for name in fields], ensure_ascii=False)
    return hashlib.sha256(body.encode()).hexdigest()


def _broken_chains(session: Session, heads: dict[str, tuple[int, str]]) -> Iterator[str]:
    wanted = dict(heads)
    actor, number, previous = "", 0, ""
    rows = select(AuditRow).order_by(AuditRow.actor, AuditRow.number)
    for row in session.scalars(rows.execution_options(yield_per=1000)):
        name = f"audit event {row.number} of {row.actor}"
        if row.actor != actor:
            actor, number, previous = row.actor, 0, ""
        if row.number != number + 1:
            yield f"{name} follows number {number}: events are missing"
        elif row.previous_sha256 != previous:
            yield f"{name} does not follow the event before it"
        if row.sha256 != _sha256(row):
            yield f"{name} was changed: its hash does not fit its content"
        if row.actor in wanted and row.number == wanted[row.actor][0]:
            if row.sha256 != wanted[row.actor][1]:
                yield f"{name} is not the one that the earlier head names"
            del wanted[row.actor]
        number, previous = row.number, row.sha256
    for actor, (number, _) in wanted.items():
        yield f"audit event {number} of {actor} is gone"


def _changed_picks(session: Session) -> Iterator[str]:
    """Picks that are not as the trail has them, in either direction."""
    told: dict[int, dict[str, Any]] = {}
    query = select(AuditRow.action, AuditRow.subject, AuditRow.detail)
    for action, subject, detail in session.execute(
        query.where(AuditRow.action.in_(["pick", "undo"])).order_by(AuditRow.id)
    ):
        pick_id = int(subject.removeprefix("pick:"))
        if action == "pick":
            told[pick_id] = json.loads(detail)
        elif pick_id in told:
            told[pick_id]["status"] = "withdrawn"
    if not told:
        return
    # Picks from before the trail began, and those taken over from elsewhere, are not in it.
    rows = select(PickRow).where(PickRow.id >= min(told)).order_by(PickRow.id)
    for row in session.scalars(rows.execution_options(yield_per=1000)):
        expected = told.pop(row.id, None)
        if expected is None:
            if not row.idempotency_key.startswith("import-"):
                yield f"pick {row.id} is not in the audit trail"
            continue
        found = {**pick_facts(row), "status": row.status}
        changed = [name for name in expected if found.get(name) != expected[name]]
        if changed:
            yield f"pick {row.id} was changed: {', '.join(changed)} differ from the audit trail"
    for pick_id in told:
        yield f"pick {pick_id} is gone"
