"""Refusals as people read them: in the language of the page that asked."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response

from annotate.web.i18n import asked_language, catalogue
from annotate.web.pages import refused_page


def refusal(
    headers: Headers,
    status: int,
    code: str,
    detail: str = "",
    answer_headers: dict[str, str] | None = None,
    value: object = "",
) -> Response:
    """``{"error": text, "code": code}``, or a page with that text for who opens one in a browser.

    ``detail`` is the text where the catalogues have no such code.
    """
    text = say(headers, code, detail).replace("{value}", str(value))
    if "text/html" in headers.get("accept", ""):
        page = refused_page(asked_language(headers), text)
        return HTMLResponse(page, status_code=status, headers=answer_headers)
    return JSONResponse({"error": text, "code": code}, status_code=status, headers=answer_headers)


def say(headers: Headers, code: str, detail: str = "") -> str:
    """The text of ``error.<code>`` in the reader's language, else ``detail``."""
    words = catalogue(asked_language(headers))
    return words.get(f"error.{code}", detail or code).replace("{detail}", detail)
