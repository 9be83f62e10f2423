"""What browsers get as HTML: the login form, and Gradio's page with our head and policy."""

from __future__ import annotations

import re
import secrets
from html import escape
from pathlib import Path
from string import Template

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from annotate.web.i18n import LANGUAGES, asked_language, catalogue

STATIC = Path(__file__).parent / "static"
GRADIO_ROOTS = ("/annotate", "/review")

# Gradio compiles the canvas's template and its start-up line in the browser, hence unsafe-eval;
# its components write style elements, hence unsafe-inline for styles. Scripts need the nonce.
_GRADIO_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_HEAD = """
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
{sheets}
<script type="module" src="/static/js/theme.js"></script>
"""
# In the order of the cascade: what adapts to narrow screens comes last.
_SHEETS = {
    "/annotate": ("tokens", "canvas", "top", "stage", "dialogs", "narrow"),
    "/review": ("tokens", "review_charts", "review", "review_work"),
}
# Cards for social networks with addresses elsewhere, and a manifest that is not served.
_UNWANTED = re.compile(
    rb'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>|<link rel="manifest"[^>]*>'
)


def login_page(language: str, next_path: str, error: str = "", given: str = "") -> str:
    """The login form; ``given`` is the name that was tried. All are plain text."""
    words = catalogue(language)
    other = next(code for code in LANGUAGES if code != language)
    values = {key.removeprefix("login."): escape(words[key]) for key in words if "login." in key}
    return Template((STATIC / "login.html").read_text(encoding="utf-8")).substitute(
        values,
        language="zh-CN" if language == "zh" else language,
        other_language=other,
        error=escape(error),
        error_hidden="" if error else "hidden",
        next=escape(next_path),
        given=escape(given),
        name_focus="" if given else "autofocus",
        password_focus="autofocus" if given else "",
    )


def refused_page(language: str, text: str) -> str:
    """What a person sees who opens a page that is not for them, or is not there."""
    words = catalogue(language)
    values = {key.removeprefix("refused."): escape(words[key]) for key in words if "refused" in key}
    return Template((STATIC / "refused.html").read_text(encoding="utf-8")).substitute(
        values, language="zh-CN" if language == "zh" else language, text=escape(text)
    )


class GradioPages:
    """ASGI middleware: gives each page that Gradio makes our head, policy and script nonce."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root = scope["path"].rstrip("/") if scope["type"] == "http" else ""
        if root not in GRADIO_ROOTS or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        # The page is rewritten as text, so it must not come compressed.
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        start: Message | None = None
        body = b""

        async def collect(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body") or start is None:
                return
            content = _rewrite(start, body, root, Headers(scope=scope))
            await send(start)
            await send({"type": "http.response.body", "body": content})

        await self._app({**scope, "headers": headers}, receive, collect)


def _rewrite(start: Message, body: bytes, root: str, asked: Headers) -> bytes:
    """The page's new text; ``start`` gets the headers that belong to it."""
    if not Headers(raw=start["headers"]).get("content-type", "").startswith("text/html"):
        return body
    nonce = secrets.token_urlsafe(16)
    sheets = [f'<link rel="stylesheet" href="/static/{name}.css">' for name in _SHEETS[root]]
    head = _HEAD.format(sheets="\n".join(sheets)).encode()
    body = _UNWANTED.sub(b"", body).replace(b"</head>", head + b"</head>", 1)
    body = body.replace(b"<script", f'<script nonce="{nonce}"'.encode())
    body = body.replace(b"<gradio-app", _boot(asked) + b"<gradio-app", 1)
    headers = MutableHeaders(scope=start)
    headers["Content-Length"] = str(len(body))
    headers["Content-Security-Policy"] = _GRADIO_POLICY.format(nonce=nonce)
    return body


def _boot(asked: Headers) -> bytes:
    """What stands on the page until its script has begun; `tokens.css` hides it then."""
    language = asked_language(asked)
    lines = [escape(catalogue(language)[key]) for key in ("boot.loading", "boot.slow")]
    tag = "zh-CN" if language == "zh" else language
    return (
        f'<div class="ws-boot" role="status" lang="{tag}"><p>{lines[0]}</p><p>{lines[1]}</p></div>'
    ).encode()
