"""``/api/review``: what the review pages do, for programs too: figures, disputes, verdicts."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from fastapi.responses import Response

from annotate.store import Dispute, PreferenceStore, Verdict
from annotate.store.errors import NotFoundError
from annotate.store.models import Number
from annotate.tables import CAUSES
from annotate.web.aggregates import FigureCache, Figures
from annotate.web.quality import to_csv
from annotate.web.signed_in import CurrentUser

QUEUE_KEPT_S = 60.0
MAX_QUEUE = 500


class DisputeQueue:
    """The tasks that wait for a reviewer, looked for once a minute at most."""

    def __init__(self, store: PreferenceStore, kept_s: float = QUEUE_KEPT_S):
        self._store, self._kept_s = store, kept_s
        self._lock = threading.Lock()
        self._found: list[Dispute] = []
        self._looked: float | None = None
        self.made_at = datetime.now(UTC)

    def waiting(self, again: bool = False) -> list[Dispute]:
        """The queue; ``again`` looks for it now."""
        with self._lock:
            now = time.monotonic()
            if again or self._looked is None or now - self._looked > self._kept_s:
                self._found = self._store.disputes(MAX_QUEUE)
                self._looked, self.made_at = now, datetime.now(UTC)
            return self._found

    def settle(self, task_id: str) -> None:
        """A verdict was given: the task waits no more."""
        with self._lock:
            self._found = [dispute for dispute in self._found if dispute.task_id != task_id]


def review_api_routes(store: PreferenceStore, cache: FigureCache) -> APIRouter:
    """The guard lets nobody below a reviewer come here."""
    router = APIRouter(prefix="/api/review")
    _add_figures(router, cache)
    _add_disputes(router, store)

    @router.get("/snapshots")
    def snapshots() -> list[dict[str, Any]]:
        """The snapshots that were cut here, newest first; not where they lie."""
        return [
            {"digest": each.digest, "counts": each.counts, "created_at": each.created_at}
            for each in store.snapshots()
        ]

    return router


def _add_figures(router: APIRouter, cache: FigureCache) -> None:
    def answer(found: Figures) -> dict[str, Any]:
        return {**asdict(found), "is_renewing": cache.is_renewing, "fault": cache.fault}

    @router.get("/figures")
    def figures() -> dict[str, Any]:
        """Every table, with the digest of the answers and the time they are as of."""
        return answer(cache.figures())

    @router.post("/figures")
    def renew() -> dict[str, Any]:
        """Make every table again, now."""
        return answer(cache.renew())

    @router.get("/figures/{name}.csv")
    def figure(name: str) -> Response:
        found = cache.figures()
        if name not in found.tables:
            raise NotFoundError(f"no table {name!r}; there are {', '.join(found.tables)}")
        digest = found.digest_of(name)
        headers = {
            "Content-Disposition": f'attachment; filename="{name}-{digest[:12]}.csv"',
            "X-Winsome-Digest": digest,
            "X-Winsome-Made-At": found.made_at.isoformat(timespec="seconds"),
        }
        return Response(to_csv(found.tables[name]), media_type="text/csv", headers=headers)


def _add_disputes(router: APIRouter, store: PreferenceStore) -> None:
    queue = DisputeQueue(store)

    @router.get("/disputes")
    def disputes(
        user: CurrentUser,
        limit: Annotated[int, Query(ge=1, le=MAX_QUEUE)] = 50,
        again: bool = False,
    ) -> dict[str, Any]:
        """Tasks that wait for a reviewer, each candidate with an address of its image."""
        waiting = queue.waiting(again)
        return {
            "made_at": queue.made_at,
            "waiting": len(waiting),
            "causes": CAUSES,
            "disputes": [
                {
                    **asdict(dispute),
                    "images": [
                        f"/media/{store.media_token(user, name)}" for name in dispute.candidate_ids
                    ],
                }
                for dispute in waiting[:limit]
            ],
        }

    @router.post("/tasks/{task_id}")
    def review(
        user: CurrentUser, task_id: str, verdict: Annotated[Verdict, Body()]
    ) -> dict[str, int]:
        """Put a verdict beside the answers to a task."""
        number = store.review(user.id, task_id, verdict)
        queue.settle(task_id)
        return {"review": number}

    @router.delete("/reviews/{number}")
    def withdraw(user: CurrentUser, number: Number) -> dict[str, str]:
        """Take one's own verdict back."""
        task_id = store.withdraw_review(user.id, number)
        queue.waiting(again=True)
        return {"task": task_id}

    @router.get("/reviews.csv")
    def reviews() -> Response:
        return Response(to_csv(store.reviews()), media_type="text/csv")
