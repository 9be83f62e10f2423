"""The pages for reviewers, leads and engineers: one `gr.HTML` over ``/api/review``.

They hold no state: every view is read from the store and the run folders. The guard lets nobody
below a reviewer reach them or what they ask for.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from annotate.store import PreferenceStore
from annotate.store.errors import NotFoundError
from annotate.web.aggregates import FigureCache
from annotate.web.pages import STATIC
from annotate.web.review_api import review_api_routes
from annotate.web.run_api import run_api_routes

# A report is a page of its own with scripts inside; the sandbox gives it an origin of its own, so
# that it can neither read this server nor call it.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; font-src data:; frame-ancestors 'none'"
)
# The template is static: Gradio evaluates ${...} in what it renders, so no text of a person may
# enter it. The script fills the page in through textContent.
_START = 'import("/static/js/review.js").then((review) => review.start(element));'


def report_path(store: PreferenceStore) -> Path:
    """Where `winsome demo` leaves its report: beside the studio's folder."""
    return store.images.folder.parent.parent / "report.html"


def report_routes(store: PreferenceStore) -> APIRouter:
    """``/api/review*``, and ``/review/report``: the demo's report, when there is one."""
    router = APIRouter()
    router.include_router(review_api_routes(store, FigureCache(store)))
    router.include_router(run_api_routes(store))

    @router.get("/api/review")
    def summary() -> dict[str, bool]:
        return {"has_report": report_path(store).is_file()}

    @router.get("/review/report")
    def report() -> Response:
        path = report_path(store)
        if not path.is_file():
            raise NotFoundError("there is no report beside this studio; `winsome demo` writes one")
        headers = {"Content-Security-Policy": REPORT_POLICY}
        return FileResponse(path, media_type="text/html", headers=headers)

    return router


def review_blocks() -> gr.Blocks:
    """The Blocks of ``/review``."""
    template = (STATIC / "review.html").read_text(encoding="utf-8")
    with gr.Blocks(title="Review · Winsome", analytics_enabled=False) as blocks:
        gr.HTML(html_template=template, js_on_load=_START, apply_default_css=False)
    return blocks
