"""The guideline: read by everybody who labels, written by leads, every version kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, HTTPException
from pydantic import Field

from annotate.schema import Question, Record
from annotate.store import PreferenceStore
from annotate.store.models import (
    GUIDELINE_AUTHORS,
    Example,
    Guideline,
    GuidelineText,
    GuidelineVersion,
    Number,
    Sent,
)
from annotate.web.signed_in import CurrentUser

Language = Literal["en", "zh"]
Token = Annotated[str, Field(max_length=500)]


class ShownExample(Record):
    """A worked example as the browser knows it: images by their tokens."""

    question: Question
    win: Token
    lose: Token
    why: dict[Language, Annotated[str, Field(max_length=2000)]]


class Draft(Sent):
    """The next version, and the one that its author started from."""

    replaces: Number | None
    texts: dict[Language, dict[Literal["general"] | Question, GuidelineText]]
    examples: tuple[ShownExample, ...] = Field(default=(), max_length=60)


def guideline_routes(store: PreferenceStore) -> APIRouter:
    """``/api/guideline``."""
    router = APIRouter()

    @router.get("/api/guideline")
    def read(user: CurrentUser, version: Number | None = None) -> dict[str, Any]:
        """A version, by default the newest; version null for a studio that has written none."""
        return _answer(store, user.id, store.guideline(version))

    @router.post("/api/guideline")
    def write(user: CurrentUser, draft: Annotated[Draft, Body()]) -> dict[str, Any]:
        if user.role not in GUIDELINE_AUTHORS:
            raise HTTPException(403, "guideline_role")
        examples = tuple(
            Example(
                question=example.question,
                win_id=store.candidate_of_token(user.id, example.win),
                lose_id=store.candidate_of_token(user.id, example.lose),
                why={**example.why},
            )
            for example in draft.examples
        )
        guideline = Guideline(texts=draft.texts, examples=examples)
        return _answer(store, user.id, store.add_guideline(user.id, guideline, draft.replaces))

    return router


def _answer(
    store: PreferenceStore, user_id: int, stored: GuidelineVersion | None
) -> dict[str, Any]:
    if stored is None:
        return {"version": None, "texts": {}, "examples": []}
    return {
        "version": stored.version,
        "author": stored.author,
        "created_at": stored.created_at,
        "texts": stored.guideline.texts,
        "examples": [
            {
                "question": example.question,
                "win": store.example_token(user_id, example.win_id),
                "lose": store.example_token(user_id, example.lose_id),
                "why": example.why,
            }
            for example in stored.guideline.examples
        ],
    }
