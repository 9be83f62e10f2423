"""What an annotator sees of their own work, and of what comes next."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select

from annotate.assignment import display_order
from annotate.schema import Outcome, Question
from annotate.store.models import OwnPick
from annotate.store.work import WorkStore
from annotate.tables import PickRow, PromptRow, TaskRow


class HistoryStore(WorkStore):
    """The part of a store that shows annotators their own work."""

    def peek(self, user_id: int, now: datetime | None = None) -> tuple[str, ...]:
        """Media tokens of the task that the next claim gives, a source last; () for none.

        A browser loads its images ahead. The task is kept for this user for the time of a lease,
        and goes to another only when nothing else is left for them. It may be a hidden check: what
        was loaded ahead says nothing about that.
        """
        now = now or datetime.now(UTC)
        with self._write() as session:
            self._lock_user(session, user_id)
            task_id = self._look_ahead(session, user_id, now)
            if task_id is None:
                return ()
            task = session.get_one(TaskRow, task_id)
            source = session.get_one(PromptRow, task.prompt_id).source_image
            shown = task.n_candidates
        order = display_order(self._secret, task_id, user_id, shown)
        tokens = [self._shown_token(user_id, task_id, ordinal) for ordinal in order]
        return (*tokens, *([] if source is None else [self._source_token(user_id, task_id)]))

    def history(self, user_id: int, limit: int = 50, before: int | None = None) -> list[OwnPick]:
        """The user's own current answers, newest first; ``before`` is the last one's number."""
        query = (
            select(PickRow, TaskRow.question, PromptRow.text, PromptRow.lang)
            .join(TaskRow, TaskRow.id == PickRow.task_id)
            .join(PromptRow, PromptRow.id == TaskRow.prompt_id)
            .where(PickRow.annotator_id == user_id, PickRow.status == "current")
            .order_by(PickRow.id.desc())
            .limit(limit)
        )
        if before is not None:
            query = query.where(PickRow.id < before)
        with self._read() as session:
            rows = session.execute(query).all()
        return [
            OwnPick(
                number=pick.id,
                submitted_at=pick.submitted_at,
                outcome=Outcome(pick.outcome),
                question=Question(question),
                prompt=text,
                lang=lang,
                win=self._own_image(pick, pick.win),
                lose=self._own_image(pick, pick.lose),
                active_ms=pick.active_ms,
            )
            for pick, question, text, lang in rows
        ]

    def _own_image(self, pick: PickRow, ordinal: int | None) -> str | None:
        if ordinal is None:
            return None
        return self._shown_token(pick.annotator_id, pick.task_id, ordinal)
