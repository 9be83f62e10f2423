"""The figures of the review pages, made now and then and never by looking at a page.

They cost seconds in a large studio. So they are kept, say as of when they are and of which answers,
and are made again in the background when they are old, or when a person asks for it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from annotate.snapshot import json_line
from annotate.store import PreferenceStore
from annotate.web import quality, throughput
from annotate.web.quality import Row

logger = logging.getLogger(__name__)

KEPT_S = 600.0
NEWEST = 10_000
"""Answers that agreement, reliability and win rates look at; counts are of all answers."""


COUNTED = ("days", "outcomes", "people")
"""Tables of counts: of all answers."""


@dataclass(frozen=True)
class Figures:
    """Tables by name, with what they are made of."""

    digest: str
    """SHA-256 of the answers that were looked at."""
    counts_digest: str
    """SHA-256 of the counts, which `COUNTED` are made of."""
    made_at: datetime
    seconds: float
    """What making them took."""
    answers: int
    """How many were looked at: the newest, at most `NEWEST`."""
    totals: Mapping[str, int]
    """Of the whole store: answers, slots still to fill, tasks, prompts."""
    tables: Mapping[str, list[Row]]

    def digest_of(self, table: str) -> str:
        """What names the numbers of a table."""
        return self.counts_digest if table in COUNTED else self.digest


class FigureCache:
    """The figures of a store; those older than ``kept_s`` seconds are given, and made again."""

    def __init__(self, store: PreferenceStore, kept_s: float = KEPT_S):
        self._store, self._kept_s = store, kept_s
        self._lock = threading.Lock()
        self._made: tuple[float, Figures] | None = None
        self._renewal: threading.Thread | None = None
        self.fault: str | None = None
        """Why the last making failed; None where it did not."""

    def figures(self) -> Figures:
        """The newest figures. The first request makes them, and the others wait for it."""
        made = self._made
        if made is None:
            return self.renew()
        if time.monotonic() - made[0] > self._kept_s:
            self._renew_behind()
        return made[1]

    def renew(self) -> Figures:
        """Make the figures now; who asks while they are being made gets those."""
        asked = time.monotonic()
        with self._lock:
            if self._made is None or self._made[0] < asked:
                try:
                    made = make_figures(self._store)
                except Exception as error:
                    self.fault = str(error)
                    raise
                self._made, self.fault = (time.monotonic(), made), None
            return self._made[1]

    @property
    def is_renewing(self) -> bool:
        """Whether newer figures are on their way."""
        return self._lock.locked()

    def _renew_behind(self) -> None:
        if self._renewal is None or not self._renewal.is_alive():
            self._renewal = threading.Thread(target=self._renew_and_log, daemon=True)
            self._renewal.start()

    def _renew_and_log(self) -> None:
        try:
            self.renew()
        except Exception:  # the page says it, with the age of the figures that it still shows
            logger.exception("the figures of the review pages could not be made again")


def make_figures(store: PreferenceStore, newest: int = NEWEST) -> Figures:
    """Every table, from one look at the store's newest answers and one at its counts."""
    start = time.monotonic()
    judged = store.judged(newest=newest)
    events = store.label_events(newest=newest)
    counts = store.answer_counts()
    status = store.status()
    tables = {
        "days": throughput.day_rows(counts),
        "outcomes": throughput.outcome_rows(counts),
        "people": throughput.person_rows(counts, events),
        "fatigue": throughput.fatigue_rows(events),
        "agreement": quality.agreement_rows(judged),
        "annotators": quality.annotator_rows(store, judged),
        "pairs": quality.pair_rows(judged),
        "positions": quality.position_rows(judged),
        "drift": quality.drift_rows(judged),
        "standings": quality.standing_rows(judged),
        "blind": quality.blind_rows(judged),
    }
    return Figures(
        digest=_digest(pick.model_dump(mode="json") for pick in judged.picks),
        counts_digest=_digest(map(asdict, counts)),
        made_at=datetime.now(UTC),
        seconds=round(time.monotonic() - start, 3),
        answers=len(judged.picks),
        totals={
            "answers": sum(row.answers for row in counts),
            "waiting": status.slots.get("open", 0) + status.slots.get("leased", 0),
            "tasks": status.tasks,
            "prompts": status.prompts,
        },
        tables=tables,
    )


def _digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """The same in whatever order the rows come."""
    return hashlib.sha256("\n".join(sorted(map(json_line, rows))).encode()).hexdigest()
