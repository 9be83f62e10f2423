"""How work is distributed: the studio's policy, as one setting."""

from __future__ import annotations

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from sqlalchemy.orm import Session

from annotate.schema import Record
from annotate.store.audit import append_event
from annotate.store.engine import StoreBase
from annotate.store.errors import StoreError
from annotate.tables import SettingRow

KEY = "work_policy"


class WorkPolicy(Record):
    """What annotators are given besides the next task of the queue; all of it is off by default."""

    gold_rate: float = Field(default=0.0, ge=0, le=0.5)
    """Share of tasks that are hidden gold tasks with a known answer; 3-5 % is usual."""
    repeat_rate: float = Field(default=0.0, ge=0, le=0.5)
    """Share of tasks that the same annotator has answered before, in another order."""
    repeat_gap: int = Field(default=20, ge=1)
    """Answers of the annotator between the first and the repeat, at least."""
    random_share: float = Field(default=0.2, ge=0, le=1)
    """Share of tasks from those in random order, once reward scores rank the others: win rates and
    calibration count these alone."""
    annotator_cap: int = Field(default=0, ge=0)
    """Answers that one annotator may give in this studio, checks included; 0 is no cap."""
    max_extra_slots: int = Field(default=0, ge=0, le=6)
    """Further annotators, one after the other, for a task whose annotators do not agree."""
    qualification_tasks: int = Field(default=0, ge=0)
    """Tasks of kind ``qualification`` that an annotator answers before any other; 0 is none."""
    qualification_accuracy: float = Field(default=0.8, ge=0, le=1)
    """Share of them that must be right."""


def load_policy(session: Session) -> WorkPolicy:
    """The policy as of this transaction."""
    row = session.get(SettingRow, KEY)
    return WorkPolicy() if row is None else WorkPolicy.model_validate_json(row.value)


def _said(fault: ErrorDetails) -> str:
    return "there is no such field" if fault["type"] == "extra_forbidden" else fault["msg"]


class PolicyStore(StoreBase):
    """The part of a store that says how work is distributed."""

    def policy(self) -> WorkPolicy:
        """The policy that claims follow."""
        with self._read() as session:
            return load_policy(session)

    def set_policy(self, actor_id: int | None = None, **changes: object) -> WorkPolicy:
        """Change some fields of the policy, from the next claim on; the new policy.

        Raises:
            StoreError: a field is unknown or out of its range.
        """
        with self._write() as session:
            try:
                policy = WorkPolicy.model_validate(load_policy(session).model_dump() | changes)
            except ValidationError as error:
                faults = "; ".join(
                    f"{'.'.join(map(str, fault['loc']))} = {fault['input']!r}: {_said(fault)}"
                    for fault in error.errors()
                )
                choices = ", ".join(WorkPolicy.model_fields)
                raise StoreError(f"not a policy: {faults}\nfields are: {choices}") from error
            row = session.get(SettingRow, KEY)
            if row is None:
                row = SettingRow(key=KEY)
                session.add(row)
            row.value = policy.model_dump_json()
            append_event(session, actor_id, "policy", KEY, policy.model_dump())
            return policy
