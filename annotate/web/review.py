"""The pages for reviewers, leads and engineers: label throughput, runs and their curves.

They hold no state of their own: every view is read from the store and the run folders when it is
opened or refreshed. The guard lets nobody below a reviewer reach them or their endpoints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from annotate.store import PreferenceStore
from annotate.store.errors import NotFoundError
from annotate.web.figures import (
    answers_by_day,
    answers_by_person,
    answers_by_question,
    curve_table,
    headline,
    metric_names,
    run_table,
    snapshot_table,
)
from annotate.web.pages import STATIC
from annotate.web.quality import FigureCache
from annotate.web.review_api import review_api_routes

SHOWN_RUNS = 4
"""Runs whose curves are drawn before anybody chooses."""

# A report is a page of its own with scripts inside; the sandbox gives it an origin of its own, so
# that it can neither read this server nor call it.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data:; font-src data:; frame-ancestors 'none'"
)
_START = 'import("/static/js/review.js").then((review) => review.start(element));'


def report_path(store: PreferenceStore) -> Path:
    """Where `winsome demo` leaves its report: beside the studio's folder."""
    return store.images.parent.parent / "report.html"


def report_routes(store: PreferenceStore) -> APIRouter:
    """``/api/review``, and ``/review/report``: the demo's report, when there is one."""
    router = APIRouter()
    router.include_router(review_api_routes(store, FigureCache(store)))

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


def review_blocks(store: PreferenceStore) -> gr.Blocks:
    """The Blocks of ``/review``."""
    top = (STATIC / "review.html").read_text(encoding="utf-8")
    with gr.Blocks(title="Review · Winsome", analytics_enabled=False) as blocks:
        gr.HTML(html_template=top, js_on_load=_START, apply_default_css=False)
        refresh = gr.Button("Refresh", size="sm", elem_classes="ws-refresh")
        with gr.Tab("Labelling"):
            labelling = _labelling_tab()
        with gr.Tab("Runs"):
            table, chosen, metric, plot = _runs_tab()
        with gr.Tab("Snapshots"):
            snapshots = _table("Snapshots cut from this studio")

        def show_labelling() -> list[Any]:
            events = store.label_events()
            return [
                headline(store, events),
                answers_by_day(events),
                answers_by_question(events),
                answers_by_person(events),
            ]

        def show_runs() -> list[Any]:
            runs = store.runs()
            names = [run.id for run in runs]
            shown = runs[:SHOWN_RUNS]
            metrics = metric_names(shown)
            first = metrics[0] if metrics else None
            return [
                run_table(runs),
                gr.Dropdown(choices=names, value=[run.id for run in shown]),
                gr.Dropdown(choices=metrics, value=first),
                curve_table(shown, first),
            ]

        def choose_runs(names: list[str], current: str | None) -> list[Any]:
            runs = [run for run in store.runs() if run.id in names]
            metrics = metric_names(runs)
            kept = current if current in metrics else next(iter(metrics), None)
            return [gr.Dropdown(choices=metrics, value=kept), curve_table(runs, kept)]

        def choose_metric(names: list[str], current: str | None) -> Any:
            return curve_table([run for run in store.runs() if run.id in names], current)

        fast: dict[str, Any] = {"queue": False, "api_visibility": "private"}
        for start in (blocks.load, refresh.click):
            start(show_labelling, outputs=labelling, show_progress="hidden", **fast)
            start(show_runs, outputs=[table, chosen, metric, plot], **fast)
            start(lambda: snapshot_table(store), outputs=snapshots, **fast)
        # `input` is a person's choice alone; `change` would fire for our own updates too.
        chosen.input(choose_runs, inputs=[chosen, metric], outputs=[metric, plot], **fast)
        metric.input(choose_metric, inputs=[chosen, metric], outputs=plot, **fast)
    return blocks


def _labelling_tab() -> list[gr.components.Component]:
    line = gr.Markdown(elem_classes="ws-headline")
    by_day = gr.BarPlot(
        x="day", y="answers", color="question", title="Answers a day", height=260, y_aggregate="sum"
    )
    return [line, by_day, _table("Answers by question"), _table("People")]


def _runs_tab() -> tuple[gr.Dataframe, gr.Dropdown, gr.Dropdown, gr.LinePlot]:
    with gr.Row():
        chosen = gr.Dropdown(label="Runs", multiselect=True, scale=3)
        metric = gr.Dropdown(label="Metric", scale=1)
    plot = gr.LinePlot(x="step", y="value", color="run", height=360)
    return _table("All runs, newest first"), chosen, metric, plot


def _table(label: str) -> gr.Dataframe:
    # "str" shows text as text: a run's or a person's name is never read as HTML or Markdown.
    return gr.Dataframe(label=label, datatype="str", interactive=False, wrap=True)
