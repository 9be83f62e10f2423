"""Who asks, as the routes see it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, HTTPException, Request

from annotate.store.models import User
from annotate.web.guard import USER_KEY


def current_user(request: Request) -> User:
    """The signed-in user; the guard lets nobody else come this far."""
    user = request.scope.get(USER_KEY)
    if user is None:
        raise HTTPException(401, "not_signed_in")
    return user


CurrentUser = Annotated[User, Depends(current_user)]
