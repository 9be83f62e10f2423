"""`create_app`: the whole server as one ASGI application."""

from __future__ import annotations

import os
from pathlib import Path

# Read by Gradio when it is imported: no reports to anybody, no record of calls in the browser.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from annotate.store import PreferenceStore
from annotate.store.errors import ConflictError, LeaseError, NotFoundError, StoreError
from annotate.web.api import api_routes
from annotate.web.canvas import canvas_blocks
from annotate.web.config import ServeConfig
from annotate.web.guard import USER_KEY, Guard
from annotate.web.guideline import guideline_routes
from annotate.web.i18n import LOCALES
from annotate.web.login import login_routes
from annotate.web.pages import STATIC, GradioPages
from annotate.web.refusals import refusal
from annotate.web.review import report_routes, review_blocks

FONTS = Path(gr.__file__).parent / "templates" / "frontend" / "static" / "fonts"
ERROR_STATUS: tuple[tuple[type[StoreError], int], ...] = (
    (NotFoundError, 404),
    (ConflictError, 409),
    (LeaseError, 409),
    (StoreError, 400),
)


def create_app(store: PreferenceStore, config: ServeConfig | None = None) -> FastAPI:
    """The labelling server over an open store.

    ``/annotate`` is the designers' canvas and ``/review`` the pages for reviewers, leads and
    engineers, both Gradio apps; ``/login``, ``/api`` and ``/media`` are plain routes. No page asks
    anything of another host.
    """
    config = config or ServeConfig()
    # The description is for those who are signed in; FastAPI's viewers would fetch their scripts.
    app = FastAPI(title="Winsome", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    _add_error_answers(app)
    app.include_router(login_routes(store, config))
    app.include_router(api_routes(store, config))
    app.include_router(guideline_routes(store))
    app.include_router(report_routes(store))

    @app.get("/healthz")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/favicon.ico")
    def icon() -> Response:
        return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml")

    app.mount("/static/locales", StaticFiles(directory=LOCALES))
    app.mount("/static/fonts", StaticFiles(directory=FONTS))
    app.mount("/static", StaticFiles(directory=STATIC))
    # The last added is the outermost. Gradio sees this CORSMiddleware and adds none of its own.
    app.add_middleware(GradioPages)
    app.add_middleware(
        Guard,
        find_user=store.session_user,
        public_url=config.public_url,
        max_body_bytes=config.max_body_bytes,
    )
    app.add_middleware(CORSMiddleware, allow_origins=[])
    _mount(app, canvas_blocks(), "/annotate")
    _mount(app, review_blocks(), "/review")
    return app


def _mount(app: FastAPI, blocks: gr.Blocks, path: str) -> None:
    gr.mount_gradio_app(
        app,
        blocks,
        path=path,
        auth_dependency=_gradio_user,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        # Without chroma, as all the chrome; a theme of the hub or a web font would be fetched.
        theme=gr.themes.Default(primary_hue="neutral", neutral_hue="neutral"),
        enable_monitoring=False,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )


def _gradio_user(request: Request) -> str | None:
    """Who Gradio thinks is there. None, never an empty name: that would count as signed in."""
    user = request.scope.get(USER_KEY)
    return user.name if user else None


def _add_error_answers(app: FastAPI) -> None:
    """Every refusal is ``{"error": text, "code": name}`` with its status."""

    @app.exception_handler(StoreError)
    def refuse(request: Request, error: StoreError) -> Response:
        status = next(code for kind, code in ERROR_STATUS if isinstance(error, kind))
        return refusal(request.headers, status, error.code, str(error), value=error.value)

    @app.exception_handler(RequestValidationError)
    def refuse_body(request: Request, error: RequestValidationError) -> Response:
        faults = [f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in error.errors()]
        return refusal(request.headers, 422, "invalid", "; ".join(faults))

    @app.exception_handler(HTTPException)
    def refuse_route(request: Request, error: HTTPException) -> Response:
        code = "no_page" if error.status_code == 404 else str(error.detail)
        headers = dict(error.headers or {})
        return refusal(request.headers, error.status_code, code, str(error.detail), headers)
