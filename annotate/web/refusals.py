"""Refusals as people read them: in the language of the page that asked."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, Response

from annotate.web.i18n import LANGUAGE_COOKIE, catalogue, choose_language


def refusal(
    headers: Headers,
    status: int,
    code: str,
    detail: str = "",
    answer_headers: dict[str, str] | None = None,
) -> Response:
    """``{"error": text, "code": code}``; ``detail`` where the catalogues have no such code."""
    return JSONResponse(
        {"error": say(headers, code, detail), "code": code},
        status_code=status,
        headers=answer_headers,
    )


def say(headers: Headers, code: str, detail: str = "") -> str:
    """The text of ``error.<code>`` in the reader's language, else ``detail``."""
    cookie = cookie_parser(headers.get("cookie", "")).get(LANGUAGE_COOKIE)
    # The server's own setting is for a page that nobody has chosen a language for.
    language = choose_language("auto", cookie, headers.get("accept-language", ""))
    return catalogue(language).get(f"error.{code}", detail or code).replace("{detail}", detail)
