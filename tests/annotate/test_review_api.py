"""Figures, disputes and verdicts by REST; the guard before them is tested with the whole app."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from studio import add_users, fill
from test_distribution import work

from annotate.store.errors import StoreError
from annotate.web.aggregates import FigureCache
from annotate.web.guard import USER_KEY
from annotate.web.quality import to_csv
from annotate.web.review_api import review_api_routes


@pytest.fixture
def client(make_place):
    """The routes for a reviewer, over two tasks on which ada and bo reverse each other."""
    with make_place("sqlite").open() as store:
        fill(store, tasks=2, each=3, annotators=2)
        ada, bo = add_users(store, "ada", "bo")
        (rita,) = add_users(store, "rita", role="reviewer")
        for _ in range(2):
            work(store, ada.id)
            work(store, bo.id, (2, 0))
        app = FastAPI()

        @app.middleware("http")
        async def as_rita(request: Request, call_next):
            request.scope[USER_KEY] = rita
            return await call_next(request)

        @app.exception_handler(StoreError)
        def refuse(request: Request, error: StoreError):
            return JSONResponse({"error": str(error)}, status_code=400)

        app.include_router(review_api_routes(store, FigureCache(store)))
        with TestClient(app) as client:
            yield client


def test_figures_name_their_answers_and_give_their_csv(client):
    found = client.get("/api/review/figures").json()
    measures = {row["measure"]: row["value"] for row in found["tables"]["agreement"]}
    assert measures["reversal rate"] == 1
    assert measures["implied pairs"] == 0
    assert [row["annotator"] for row in found["tables"]["annotators"]] == ["ada", "bo"]
    table = client.get("/api/review/figures/pairs.csv")
    assert sorted(table.text.splitlines()[1].split(",")[:2]) == ["ada", "bo"]
    assert table.headers["x-winsome-digest"] == found["digest"]
    assert client.get("/api/review/figures/none.csv").status_code == 400


def test_a_verdict_takes_a_task_out_of_the_queue(client):
    disputes = client.get("/api/review/disputes").json()["disputes"]
    assert len(disputes) == 2
    assert all(image.startswith("/media/") for image in disputes[0]["images"])
    route = f"/api/review/tasks/{disputes[0]['task_id']}"
    assert client.post(route, json={"decision": "maybe"}).status_code == 400
    assert client.post(route, json={"decision": "confirm", "cause": "hard"}).json() == {"review": 1}
    assert client.get("/api/review/disputes").json()["waiting"] == 1
    assert "confirm" in client.get("/api/review/reviews.csv").text
    assert client.delete("/api/review/reviews/1").json() == {"task": disputes[0]["task_id"]}
    assert client.get("/api/review/disputes").json()["waiting"] == 2
    assert client.delete("/api/review/reviews/1").status_code == 400


def test_looking_never_makes_the_figures_again_and_asking_does(make_place):
    with make_place("sqlite").open() as store:
        cache = FigureCache(store, kept_s=1e9)
        first = cache.figures()
        fill(store, tasks=1)
        assert cache.figures() is first
        assert (first.totals["tasks"], cache.renew().totals["tasks"]) == (0, 1)
        old = FigureCache(store, kept_s=0)
        made = old.figures()
        assert old.figures() is made  # given at once; newer ones are made behind it
        old._renewal.join(timeout=30)
        assert old._made[1].made_at > made.made_at


def test_a_csv_cell_is_never_a_formula():
    rows = [{"name": "=1+1", "n": -3}, {"name": "ada", "n": None}]
    assert to_csv(rows).splitlines() == ["name,n", "'=1+1,-3", "ada,"]
    assert to_csv([]) == ""
