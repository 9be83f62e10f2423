"""How much was answered: exact counts by SQL, and the newest answers with their times."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from annotate.schema import Outcome, Question
from annotate.store.engine import StoreBase
from annotate.tables import PickRow, TaskRow, UserRow


@dataclass(frozen=True)
class AnswerCount:
    """Current answers of one person, day, question and outcome."""

    day: str
    """UTC, ``YYYY-MM-DD``."""
    annotator: str
    """The account's name: for those who run the studio, never for a snapshot."""
    question: Question
    outcome: Outcome
    answers: int


class ThroughputStore(StoreBase):
    """The part of a store that the page on throughput reads."""

    def answer_counts(self) -> list[AnswerCount]:
        """Every current answer, counted by the database; oldest day first."""
        if self.is_sqlite:
            day = func.strftime("%Y-%m-%d", PickRow.submitted_at)
        else:
            day = func.to_char(func.timezone("UTC", PickRow.submitted_at), "YYYY-MM-DD")
        parts = (day, UserRow.name, TaskRow.question, PickRow.outcome)
        query = (
            select(*parts, func.count())
            .join(UserRow, UserRow.id == PickRow.annotator_id)
            .join(TaskRow, TaskRow.id == PickRow.task_id)
            .where(PickRow.status == "current")
            .group_by(*parts)
        )
        with self._read() as session:
            found = [
                AnswerCount(on, name, Question(question), Outcome(outcome), count)
                for on, name, question, outcome, count in session.execute(query)
            ]
        # Sorted here and not in SQL, where the order of text follows the server's locale.
        return sorted(found, key=lambda row: (row.day, row.annotator, row.question, row.outcome))
