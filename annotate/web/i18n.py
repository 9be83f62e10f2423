"""The catalogues of the interface's texts; browser and server read the same files."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

LANGUAGES = ("en", "zh")
LOCALES = Path(__file__).parent / "locales"
LANGUAGE_COOKIE = "winsome_language"


@cache
def catalogue(language: str) -> dict[str, str]:
    """Every text of one language by its key."""
    return json.loads((LOCALES / f"{language}.json").read_text(encoding="utf-8"))


def choose_language(configured: str, cookie: str | None, accept: str) -> str:
    """The language of a page: the user's own choice, the server's setting, the browser's wish."""
    if cookie in LANGUAGES:
        return cookie
    if configured in LANGUAGES:
        return configured
    for wish in accept.split(","):
        code = wish.split(";")[0].strip().lower().split("-")[0]
        if code in LANGUAGES:
            return code
    return "en"


def asked_language(headers: Headers) -> str:
    """The language of who sent these headers: the page's own, else the browser's wish."""
    cookie = cookie_parser(headers.get("cookie", "")).get(LANGUAGE_COOKIE)
    # The server's own setting is for a page that nobody has chosen a language for.
    return choose_language("auto", cookie, headers.get("accept-language", ""))
