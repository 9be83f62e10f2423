"""``/api/review``: what the review pages do, for programs: figures as CSV, disputes, verdicts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from fastapi.responses import Response

from annotate.store import PreferenceStore, Verdict
from annotate.store.errors import NotFoundError
from annotate.web.quality import FigureCache, to_csv
from annotate.web.signed_in import CurrentUser


def review_api_routes(store: PreferenceStore, cache: FigureCache) -> APIRouter:
    """The guard lets nobody below a reviewer come here."""
    router = APIRouter(prefix="/api/review")

    @router.get("/figures")
    def figures() -> dict[str, Any]:
        """Every table, with the digest of the answers and the time they are as of."""
        found = cache.figures()
        return {"digest": found.digest, "made_at": found.made_at, "tables": found.tables}

    @router.get("/figures/{name}.csv")
    def figure(name: str) -> Response:
        found = cache.figures()
        if name not in found.tables:
            raise NotFoundError(f"no table {name!r}; there are {', '.join(found.tables)}")
        headers = {
            "Content-Disposition": f'attachment; filename="{name}-{found.digest[:12]}.csv"',
            "X-Winsome-Digest": found.digest,
            "X-Winsome-Made-At": found.made_at.isoformat(timespec="seconds"),
        }
        return Response(to_csv(found.tables[name]), media_type="text/csv", headers=headers)

    @router.get("/disputes")
    def disputes(
        user: CurrentUser, limit: Annotated[int, Query(ge=1, le=500)] = 50
    ) -> list[dict[str, Any]]:
        """Tasks that wait for a reviewer, each candidate with an address of its image."""
        return [
            {
                **asdict(dispute),
                "images": [
                    f"/media/{store.media_token(user, name)}" for name in dispute.candidate_ids
                ],
            }
            for dispute in store.disputes(limit)
        ]

    @router.post("/tasks/{task_id}")
    def review(
        user: CurrentUser, task_id: str, verdict: Annotated[Verdict, Body()]
    ) -> dict[str, int]:
        """Put a verdict beside the answers to a task."""
        return {"review": store.review(user.id, task_id, verdict)}

    @router.get("/reviews.csv")
    def reviews() -> Response:
        return Response(to_csv(store.reviews()), media_type="text/csv")

    return router
