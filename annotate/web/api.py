"""The routes behind the labelling canvas: plain POSTs of a few milliseconds, no Gradio queue.

Nothing here names a candidate, its ordinal, a model, a seed or a file: the browser knows display
positions and opaque tokens.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import Field

from annotate.records import Question
from annotate.schema import Record
from annotate.store import PreferenceStore
from annotate.store.errors import NotFoundError
from annotate.store.models import (
    GUIDELINE_AUTHORS,
    Claim,
    Number,
    OwnPick,
    Progress,
    Submission,
    User,
)
from annotate.web.config import ServeConfig
from annotate.web.i18n import LANGUAGE_COOKIE, choose_language
from annotate.web.images import strip_metadata
from annotate.web.signed_in import CurrentUser

HISTORY_PAGE = 30
MEDIA_CACHE = "private, max-age=86400, immutable"


class Hold(Record):
    """Names the task in hand."""

    assignment_id: int
    lease_token: str = Field(max_length=500)


def api_routes(store: PreferenceStore, config: ServeConfig) -> APIRouter:
    """``/api/*`` and ``/media/*``. Each works with the signed-in user's own tasks alone."""
    router = APIRouter()

    @router.get("/api/me")
    def me(user: CurrentUser, request: Request) -> dict[str, Any]:
        cookie = request.cookies.get(LANGUAGE_COOKIE)
        accept = request.headers.get("accept-language", "")
        return {
            "id": user.id,
            "name": user.name,
            "may_review": user.at_least("reviewer"),
            "may_write_guideline": user.role in GUIDELINE_AUTHORS,
            "guideline_version": store.guideline_version(),
            "language": choose_language(config.language, cookie, accept),
        }

    @router.post("/api/claim")
    def claim(user: CurrentUser) -> dict[str, Any]:
        return _answer(store, user, store.claim(user.id))

    @router.post("/api/heartbeat")
    def heartbeat(user: CurrentUser, hold: Annotated[Hold, Body()]) -> dict[str, str]:
        held = store.assignment_of(hold.assignment_id)
        until = store.heartbeat(user.id, held, hold.lease_token)
        return {"lease_until": until.isoformat()}

    @router.post("/api/submit")
    def submit(user: CurrentUser, submission: Annotated[Submission, Body()]) -> dict[str, Any]:
        """Store a pick and hand out the next task, so that it loads at once."""
        own = {"assignment_id": store.assignment_of(submission.assignment_id)}
        store.submit(user.id, submission.model_copy(update=own))
        return _answer(store, user, store.claim(user.id))

    @router.post("/api/undo")
    def undo(user: CurrentUser) -> dict[str, Any]:
        """Take the last pick back; its task is in the user's hands again."""
        return _answer(store, user, store.undo(user.id))

    @router.get("/api/ahead")
    def ahead(user: CurrentUser) -> dict[str, list[str]]:
        """The images of the task that comes next, to be loaded before it is asked for."""
        return {"sources": [f"/media/{token}" for token in store.peek(user.id)]}

    @router.get("/api/history")
    def history(user: CurrentUser, before: Number | None = None) -> dict[str, Any]:
        """The user's own current answers, newest first; ``before`` pages on."""
        picks = store.history(user.id, HISTORY_PAGE, before)
        return {"picks": [_own_pick(pick) for pick in picks], "more": len(picks) == HISTORY_PAGE}

    @router.get("/api/progress")
    def progress(user: CurrentUser) -> dict[str, int]:
        return _progress(store.progress(user.id))

    @router.get("/media/{token}")
    def media(user: CurrentUser, token: str) -> Response:
        return _picture(store, user, token)

    return router


def _picture(store: PreferenceStore, user: User, token: str) -> Response:
    try:
        data = store.media(user.id, token).read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError("there is no such image for this user", code="no_image") from error
    return Response(
        strip_metadata(data), media_type="image/png", headers={"Cache-Control": MEDIA_CACHE}
    )


def _answer(store: PreferenceStore, user: User, claim: Claim | None) -> dict[str, Any]:
    progress = claim.progress if claim else store.progress(user.id)
    task = _task(claim, store.public_number(claim.assignment_id)) if claim else None
    return {"task": task, "progress": _progress(progress)}


def _task(claim: Claim, number: int) -> dict[str, Any]:
    """What the browser may know of a task."""
    return {
        "assignment_id": number,
        "lease_token": claim.lease_token,
        "question": Question(claim.question).value,
        "prompt": {"text": claim.prompt, "lang": claim.lang},
        "reference": claim.reference_position,
        "source": claim.source and f"/media/{claim.source}",
        "previous": claim.previous and asdict(claim.previous),
        "candidates": [
            {"src": f"/media/{token}", "width": width, "height": height}
            for token, (width, height) in zip(claim.media, claim.sizes, strict=True)
        ],
    }


def _own_pick(pick: OwnPick) -> dict[str, Any]:
    return {
        **asdict(pick),
        "win": pick.win and f"/media/{pick.win}",
        "lose": pick.lose and f"/media/{pick.lose}",
    }


def _progress(progress: Progress) -> dict[str, int]:
    return {"done": progress.done, "skipped": progress.skipped, "remaining": progress.remaining}
