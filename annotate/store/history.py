"""What an annotator sees of their own work, and of what comes next."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select

from annotate.assignment import display_order
from annotate.schema import Outcome, Question
from annotate.store.models import OwnPick
from annotate.store.policy import load_policy
from annotate.store.queue import RANDOM_LANE
from annotate.store.work import WorkStore
from annotate.tables import PickRow, PromptRow, TaskRow


class HistoryStore(WorkStore):
    """The part of a store that shows annotators their own work."""

    def peek(self, user_id: int, now: datetime | None = None) -> tuple[str, ...]:
        """Media tokens of the task that a claim would probably give next; () for none.

        Nothing is leased: another annotator may be faster, and a hidden check may come instead. A
        browser uses it to load images ahead.
        """
        now = now or datetime.now(UTC)
        with self._read() as session:
            given = self._count_slots(session, user_id, "done", "skipped", "leased")
            draw = self._draw(user_id, given, "lane")
            lane = RANDOM_LANE if draw < load_policy(session).random_share else None
            found = session.execute(self._next_free(user_id, now, lane)).first()
            if found is None and lane is not None:
                found = session.execute(self._next_free(user_id, now)).first()
        if found is None:
            return ()
        _, task_id, shown = found
        order = display_order(self._secret, task_id, user_id, shown)
        return tuple(self._shown_token(user_id, task_id, ordinal) for ordinal in order)

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
