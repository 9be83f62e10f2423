"""``/api/review/run*``: the run pages. A run is named by its id, as the store knows it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, HTTPException, Query
from fastapi.responses import Response
from pydantic import Field

from annotate.records import Question
from annotate.schema import Record
from annotate.store import PreferenceStore
from annotate.web import runs, samples
from annotate.web.api import MEDIA_CACHE
from annotate.web.images import strip_metadata
from annotate.web.quality import Row, to_csv
from annotate.web.signed_in import CurrentUser

BLIND_SENDERS = ("lead", "engineer", "admin")
RunId = Annotated[str, Query(max_length=500)]
RunIds = Annotated[tuple[str, ...], Query(max_length=20)]


class BlindRequest(Record):
    """Which two sets of a run's samples annotators shall compare."""

    run: str = Field(max_length=500)
    first: str = Field(max_length=200)
    second: str = Field(max_length=200)
    question: Question = Question.OVERALL
    annotators: int = Field(default=3, ge=1, le=50)
    """How many shall judge each pair."""


def run_api_routes(store: PreferenceStore) -> APIRouter:
    """The guard lets nobody below a reviewer come here."""
    router = APIRouter(prefix="/api/review")
    _add_tables(router, store)

    @router.get("/runs")
    def all_runs() -> list[dict[str, Any]]:
        """Every run, newest first, without its configuration."""
        return [run.model_dump(mode="json", exclude={"config", "folder"}) for run in store.runs()]

    @router.get("/run")
    def one(user: CurrentUser, run: RunId) -> dict[str, Any]:
        """Its charts, alarms, calibration and sample grid."""
        found = store.run(run)
        unreadable = runs.Unreadable()
        curves = runs.read_curves(found, unreadable)
        parts = {
            "alarms": [asdict(alarm) for alarm in runs.alarms(found, curves, unreadable)],
            "reliability": runs.reliability(found, unreadable),
            "grid": samples.grid(found, unreadable=unreadable),
        }
        return {
            **found.model_dump(mode="json", exclude={"folder"}),
            "is_there": Path(found.folder).is_dir(),
            "charts": runs.charts(curves),
            **parts,
            "unreadable": unreadable,
            "is_watched": runs.is_watched(curves),
            "may_send": user.role in BLIND_SENDERS,
        }

    @router.get("/curves")
    def compared(run: RunIds = (), metric: str = "") -> dict[str, Any]:
        """One metric of several runs; the one looked at most where none is named."""
        metrics, chosen, curves = _side_by_side(store, run, metric)
        series = [{**each, "points": runs.thinned(each["points"])} for each in curves]
        return {"metrics": metrics, "metric": chosen, "series": series}

    @router.get("/run/image")
    def image(run: RunId, set: str, image: str) -> Response:
        """A sample, without anything that says where it comes from."""
        data = samples.sample_image(store.run(run), set, image).read_bytes()
        return Response(
            strip_metadata(data), media_type="image/png", headers={"Cache-Control": MEDIA_CACHE}
        )

    @router.post("/run/blind")
    def blind(user: CurrentUser, asked: Annotated[BlindRequest, Body()]) -> dict[str, int]:
        """Put two checkpoints' samples before annotators as blind tasks of two."""
        if user.role not in BLIND_SENDERS:
            raise HTTPException(403, "role")
        tasks, same = samples.send_blind(
            store, store.run(asked.run), asked.first, asked.second, asked.annotators, asked.question
        )
        return {"tasks": len(tasks), "same": same}

    return router


def _add_tables(router: APIRouter, store: PreferenceStore) -> None:
    """What the run pages show, as CSV."""

    @router.get("/curves.csv")
    def compared_csv(run: RunIds = (), metric: str = "") -> Response:
        """The same, every point."""
        _, chosen, curves = _side_by_side(store, run, metric)
        rows = [
            {"run": each["name"], "step": step, "metric": chosen, "value": value}
            for each in curves
            for step, value in each["points"]
        ]
        return Response(to_csv(rows), media_type="text/csv", headers=_attachment("curves"))

    @router.get("/run/grid.csv")
    def grid(run: RunId) -> Response:
        """Every cell of the sample grid: prompt, noise, and each set's image by its hash."""
        found = samples.grid(store.run(run), rows=None)
        rows = [
            {
                "prompt": row["prompt"],
                "noise": row["noise"],
                **dict(zip(found["sets"], row["images"], strict=True)),
            }
            for row in found["rows"]
        ]
        return Response(to_csv(rows), media_type="text/csv", headers=_attachment("samples"))

    @router.get("/run/curves.csv")
    def curves(run: RunId) -> Response:
        """Every metric at every step."""
        rows = runs.curve_rows(runs.read_curves(store.run(run)))
        return Response(to_csv(rows), media_type="text/csv", headers=_attachment("curves"))

    @router.get("/run/reliability.csv")
    def reliability(run: RunId) -> Response:
        """The calibration's bins."""
        found = runs.reliability(store.run(run)) or {"bins": []}
        names = ("confidence", "accuracy", "pairs")
        rows: list[Row] = [dict(zip(names, row, strict=True)) for row in found["bins"]]
        return Response(to_csv(rows), media_type="text/csv", headers=_attachment("reliability"))


def _side_by_side(
    store: PreferenceStore, run: tuple[str, ...], metric: str
) -> tuple[list[str], str, list[dict[str, Any]]]:
    """Every metric that one of the runs has, the chosen one, and its curve in each run."""
    found = {run_id: runs.read_curves(store.run(run_id)) for run_id in run}
    metrics = sorted({name for curves in found.values() for name in curves})
    first = next((m for m in runs.LOOKED_AT_MOST if m in metrics), "")
    chosen = metric if metric in metrics else first or next(iter(metrics), "")
    curves = [{"name": run_id, "points": of.get(chosen, [])} for run_id, of in found.items()]
    return metrics, chosen, curves


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}.csv"'}
