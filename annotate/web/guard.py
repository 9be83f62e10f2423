"""The gate before every route, Gradio's included: who asks, from which page, for what.

It is plain ASGI and stands before the mounted apps, because Gradio's own login, CORS and "private"
endpoints are no access boundary. Whatever is not listed as public needs a session.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from urllib.parse import quote, unquote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from annotate.store.errors import StoreAccessError
from annotate.store.models import User
from annotate.web.refusals import refusal

_log = logging.getLogger(__name__)
RETRY_AFTER_S = 5

SESSION_COOKIE = "winsome_session"
USER_KEY = "winsome.user"
"""Where the ASGI scope carries the signed-in `User`."""

DEFAULT_PORTS = {"http": 80, "https": 443}
PUBLIC = ("/login", "/static/", "/healthz", "/favicon.ico")
REVIEW = ("/review", "/api/review")
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))

# Routes of Gradio that nothing here uses. ``file=`` and ``proxy=`` fetch any public address for a
# signed-in user; uploads, shared links and saved runs would fill the disk.
_UNUSED_ROUTES = re.compile(
    r"/gradio_api/(?:file[=/]|proxy=|stream/|upload|deep_link|component_server|runs|dev/|vibe)",
    re.IGNORECASE,
)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)


class Guard:
    """ASGI middleware: same-origin check, session, role, size limit, security headers."""

    def __init__(
        self,
        app: ASGIApp,
        find_user: Callable[[str], User | None],
        public_url: str | None,
        max_body_bytes: int,
    ):
        self._app = app
        self._find_user = find_user
        self._public_origin = _origin(public_url) if public_url else None
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # No route speaks WebSocket; lifespan passes.
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            refused = await self._refusal(scope)
            await (refused or self._app)(scope, receive, send_with_headers)
        except Exception as error:
            if started:
                raise
            # Told here, not by the server around us: its bare text would lack our headers.
            failed = _failure(Headers(scope=scope), error)
            await failed(scope, receive, send_with_headers)

    async def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that must not pass, or None. Notes the user in the scope."""
        headers = Headers(scope=scope)
        path = scope["path"]
        if _UNUSED_ROUTES.search(path) or _UNUSED_ROUTES.search(unquote(path)):
            return refusal(headers, 404, "no_page")
        if scope["method"] not in SAFE_METHODS:
            if not self._is_same_origin(scope["scheme"], headers):
                return refusal(headers, 403, "origin")
            if "transfer-encoding" in headers:
                return refusal(headers, 411, "no_length")
            length = headers.get("content-length", "0")
            if not (length.isascii() and length.isdigit()):
                return refusal(headers, 411, "no_length")
            if int(length) > self._max_body_bytes:
                return refusal(headers, 413, "too_large")
        token = cookie_parser(headers.get("cookie", "")).get(SESSION_COOKIE)
        user = await run_in_threadpool(self._find_user, token) if token else None
        scope[USER_KEY] = user
        if _is_below(path, PUBLIC):
            return None
        if user is None:
            return _ask_to_sign_in(scope, headers)
        if _is_below(path, REVIEW) and not user.at_least("reviewer"):
            return refusal(headers, 403, "role")
        return None

    def _is_same_origin(self, scheme: str, headers: Headers) -> bool:
        """Whether a page of ours sent this. A browser always says; silence is refused."""
        site = headers.get("sec-fetch-site")
        origin = headers.get("origin")
        if site not in (None, "same-origin"):
            return False
        if origin is None:
            return site == "same-origin"
        # The scheme is that which a trusted proxy names, else the connection's own.
        expected = self._public_origin or (scheme, headers.get("host", "").lower())
        try:
            return _origin(origin) == _with_port(*expected)
        except ValueError:  # no address at all
            return False


def _origin(url: str) -> tuple[str, str]:
    """(scheme, host with port) of an address; ValueError for what is none."""
    parts = urlsplit(url)
    return _with_port(parts.scheme, parts.netloc)


def _with_port(scheme: str, host: str) -> tuple[str, str]:
    """Browsers leave out the scheme's own port; who writes an address may not."""
    scheme, host = scheme.lower(), host.lower()
    return scheme, host.removesuffix(f":{DEFAULT_PORTS.get(scheme, '')}")


def _failure(headers: Headers, error: Exception) -> Response:
    """The answer to what no route foresaw; its details go to the log alone."""
    if isinstance(error, StoreAccessError):
        _log.warning("the store did not answer: %s", error)
        retry = {"Retry-After": str(RETRY_AFTER_S)}
        return refusal(headers, 503, error.code, answer_headers=retry)
    _log.error("a request failed", exc_info=error)
    return refusal(headers, 500, "internal")


def _is_below(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots)


def _ask_to_sign_in(scope: Scope, headers: Headers) -> Response:
    """A page leads to the login form and back; a call from a page is answered 401."""
    wants_page = "text/html" in headers.get("accept", "")
    if scope["method"] == "GET" and wants_page:
        return RedirectResponse(f"/login?next={quote(scope['path'])}", status_code=303)
    return refusal(headers, 401, "not_signed_in")
