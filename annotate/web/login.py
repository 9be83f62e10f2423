"""Signing in and out."""

from __future__ import annotations

import threading
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from annotate.store import PreferenceStore, User
from annotate.store.users import SESSION_LIFETIME
from annotate.web.config import ServeConfig
from annotate.web.guard import SESSION_COOKIE, USER_KEY
from annotate.web.i18n import LANGUAGE_COOKIE, LANGUAGES, catalogue, choose_language
from annotate.web.pages import login_page
from annotate.web.throttle import FailureLog

MAX_PASSWORD = 1024
CHECKED_AT_ONCE = 2
"""Passwords in the making. A check in hand counts as a failure until it is done: an office that
signs in at one moment behind one address takes turns and is not taken for an attack."""


def login_routes(store: PreferenceStore, config: ServeConfig) -> APIRouter:
    """``/``, ``/login`` and ``/logout``."""
    router = APIRouter()
    failures = FailureLog(config.login)
    turn = threading.BoundedSemaphore(CHECKED_AT_ONCE)

    def check(address: str, name: str, password: str) -> tuple[User | None, int]:
        """(who this is, seconds to wait before another try)."""
        with turn:
            wait = failures.wait_s(address, name)
            if wait > 0:
                return None, wait
            # Noted before the check, so that attempts at the same moment count each other.
            failures.add(address, name)
            user = store.authenticate(name, password)
            if user is not None:
                failures.clear(address, name)
            return user, 0

    @router.get("/")
    def home() -> Response:
        return RedirectResponse("/annotate/", status_code=303)

    @router.get("/login")
    def form(request: Request, next: str = "/", lang: str = "") -> Response:
        if request.scope[USER_KEY] is not None:
            return RedirectResponse(_local(next), status_code=303)
        language = lang if lang in LANGUAGES else _language(request, config)
        page = HTMLResponse(login_page(language, _local(next)))
        if lang in LANGUAGES:
            page.set_cookie(LANGUAGE_COOKIE, lang, max_age=31_536_000, samesite="lax")
        return page

    @router.post("/login")
    async def sign_in(
        request: Request,
        name: Annotated[str, Form(max_length=200)],
        password: Annotated[str, Form(max_length=MAX_PASSWORD)],
        next: Annotated[str, Form(max_length=2000)] = "/",
    ) -> Response:
        language = _language(request, config)
        address = request.client.host if request.client else ""
        user, wait = await run_in_threadpool(check, address, name, password)
        if wait > 0:
            return _wait_page(language, next, name, wait)
        if user is None:
            text = catalogue(language)["login.wrong"]
            return HTMLResponse(login_page(language, _local(next), text, name), status_code=401)
        token = await run_in_threadpool(store.create_session, user.id)
        answer = RedirectResponse(_local(next), status_code=303)
        answer.set_cookie(
            SESSION_COOKIE,
            token,
            max_age=int(SESSION_LIFETIME.total_seconds()),
            httponly=True,
            samesite="lax",
            secure=_is_secure(request, config),
        )
        return answer

    @router.post("/logout")
    async def sign_out(request: Request) -> Response:
        token = request.cookies.get(SESSION_COOKIE)
        if token:
            await run_in_threadpool(store.revoke_session, token)
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(SESSION_COOKIE)
        return answer

    return router


def _wait_page(language: str, next: str, name: str, seconds: int) -> Response:
    text = catalogue(language)["login.wait"].replace("{seconds}", str(seconds))
    page = HTMLResponse(login_page(language, _local(next), text, name), status_code=429)
    page.headers["Retry-After"] = str(seconds)
    return page


def _local(path: str) -> str:
    """``path`` where it stays on this server, else the start page (no open redirect)."""
    is_local = path.startswith("/") and not path.startswith(("//", "/\\"))
    return path if is_local and path.isprintable() else "/"


def _language(request: Request, config: ServeConfig) -> str:
    cookie = request.cookies.get(LANGUAGE_COOKIE)
    return choose_language(config.language, cookie, request.headers.get("accept-language", ""))


def _is_secure(request: Request, config: ServeConfig) -> bool:
    public = config.public_url or ""
    return (
        config.secure_cookie == "always"
        or request.url.scheme == "https"
        or public.startswith("https:")
    )
