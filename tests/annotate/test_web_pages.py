"""What the routes behind the canvas give: details, history, what comes next, the guideline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from web_studio import make_studio, sign_in

from annotate.store import PreferenceStore
from annotate.store.errors import StoreAccessError
from annotate.web.app import create_app
from annotate.web.i18n import LANGUAGES, catalogue


@pytest.fixture(scope="module")
def fresh_studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "fresh"
    make_studio(folder, counts=(4, 3)).close()
    return folder


@pytest.fixture
def store(fresh_studio: Path, tmp_path: Path) -> Iterator[PreferenceStore]:
    with PreferenceStore.open(shutil.copytree(fresh_studio, tmp_path / "studio")) as store:
        yield store


def body_of(task: dict, **changes) -> dict:
    return {
        "idempotency_key": f"key-{task['assignment_id']:08}",
        "assignment_id": task["assignment_id"],
        "lease_token": task["lease_token"],
        "outcome": "picked",
        "win_position": 2,
        "lose_position": 1,
        **changes,
    }


def test_a_pick_with_its_details_comes_back_on_undo_and_stands_in_the_history(store):
    client = sign_in(create_app(store), "mei")
    task = client.post("/api/claim").json()["task"]
    ahead = client.get("/api/ahead").json()["sources"]
    details = {
        "reasons": [{"target": "lose", "criterion": "detail"}],
        "regions": [
            {"position": 1, "x": 3, "y": 4, "width": 50, "height": 60, "criterion": "detail"}
        ],
        "marks": [{"position": 0, "rating": 4, "thumb": None}],
    }
    answer = client.post("/api/submit", json=body_of(task, **details)).json()
    assert [c["src"] for c in answer["task"]["candidates"]] == ahead
    assert answer["task"]["previous"] is None
    (pick,) = client.get("/api/history").json()["picks"]
    assert pick["win"] == task["candidates"][2]["src"]
    assert pick["prompt"] == task["prompt"]["text"]
    back = client.post("/api/undo").json()["task"]
    assert back["previous"] == {
        "outcome": "picked", "win_position": 2, "lose_position": 1, **details,
    }  # fmt: skip
    assert client.get("/api/history").json() == {"picks": [], "more": False}


def test_leads_write_the_guideline_that_everybody_reads(store):
    app = create_app(store)
    lea, mei, eva = (sign_in(app, name) for name in ("lea", "mei", "eva"))
    assert mei.get("/api/guideline").json()["version"] is None
    task = lea.post("/api/claim").json()["task"]
    lea.post("/api/submit", json=body_of(task))
    (pick,) = lea.get("/api/history").json()["picks"]
    example = {
        "question": pick["question"],
        "win": pick["win"].removeprefix("/media/"),
        "lose": pick["lose"].removeprefix("/media/"),
        "why": {"en": "<b>calm</b> ${1}", "zh": "安静"},
    }
    draft = {"replaces": None, "texts": {"zh": {"general": "先看整体"}}, "examples": [example]}
    for client in (mei, eva):
        assert client.post("/api/guideline", json=draft).status_code == 403
    assert lea.post("/api/guideline", json=draft).json()["version"] == 1
    shown = mei.get("/api/guideline").json()
    assert (shown["texts"], shown["author"]) == (draft["texts"], "lea")
    assert shown["examples"][0]["why"] == example["why"]
    assert mei.get("/api/me").json()["guideline_version"] == 1
    for side in ("win", "lose"):  # the same pictures under the reader's own tokens
        token = shown["examples"][0][side]
        assert token != example[side]
        assert mei.get(f"/media/{token}").content == lea.get(pick[side]).content
        assert eva.get(f"/media/{token}").status_code == 404
    again = lea.post("/api/guideline", json={**shown_as_draft(lea), "replaces": None})
    assert (again.status_code, again.json()["code"]) == (409, "guideline_changed")
    forged = {**draft, "replaces": 1, "examples": [{**example, "win": "x" * 40}]}
    assert lea.post("/api/guideline", json=forged).status_code == 404
    assert lea.post("/api/guideline", json={**shown_as_draft(lea), "replaces": 1}).json()[
        "examples"
    ]


def shown_as_draft(client) -> dict:
    shown = client.get("/api/guideline").json()
    return {"texts": shown["texts"], "examples": shown["examples"]}


def test_refusals_are_said_in_the_language_of_the_page(store):
    app = create_app(store)
    client = sign_in(app, "mei")
    task = client.post("/api/claim").json()["task"]
    client.post("/api/submit", json=body_of(task))
    twice = body_of(task, idempotency_key="another-key")
    english = client.post("/api/submit", json=twice, headers={"Accept-Language": "de"})
    chinese = client.post("/api/submit", json=twice, headers={"Accept-Language": "zh-CN"})
    client.cookies.set("winsome_language", "zh")  # what the page was switched to wins
    switched = client.post("/api/submit", json=twice, headers={"Accept-Language": "en"})
    assert [a.status_code for a in (english, chinese, switched)] == [409] * 3
    assert english.json() == {"error": catalogue("en")["error.answered"], "code": "answered"}
    assert chinese.json() == switched.json()
    assert chinese.json()["error"] == catalogue("zh")["error.answered"]
    foreign = client.post("/api/undo", headers={"Origin": "https://evil.example"})
    assert foreign.json()["error"] == catalogue("zh")["error.origin"]
    assert client.get("/api/nothing").json()["error"] == catalogue("zh")["error.no_page"]


def test_a_browser_gets_a_page_and_not_json_where_it_may_not_go(store):
    client = sign_in(create_app(store), "mei")
    page = {"Accept": "text/html,*/*;q=0.8", "Accept-Language": "zh-CN"}
    refused = client.get("/review/", headers=page)
    assert (refused.status_code, refused.headers["content-type"][:9]) == (403, "text/html")
    words = catalogue("zh")
    for text in (words["error.role"], words["refused.label"], 'href="/annotate"', 'lang="zh-CN"'):
        assert text in refused.text
    assert client.get("/review/").json()["code"] == "role"  # a program still gets JSON
    missing = client.get("/<b>nowhere", headers=page)
    assert (missing.status_code, words["error.no_page"] in missing.text) == (404, True)
    assert "<b>" not in missing.text
    loading = client.get("/annotate/", headers=page).text  # before any script has run
    assert f'role="status" lang="zh-CN"><p>{words["boot.loading"]}' in loading


def test_the_description_of_the_api_names_every_route_and_what_it_takes(store):
    app = create_app(store)
    described = sign_in(app, "mei").get("/api/openapi.json").json()
    served = {route.path for route in app.routes if getattr(route, "path", "").startswith("/api/")}
    assert served - {"/api/openapi.json"} <= described["paths"].keys()
    submit = described["paths"]["/api/submit"]["post"]
    assert "hand out the next task" in submit["description"]
    assert "Submission" in str(submit["requestBody"])
    fields = described["components"]["schemas"]["Submission"]["properties"]
    assert "reasons" in fields
    assert fields["idempotency_key"]["description"].startswith("Chosen by the client")


def test_both_catalogues_say_the_same_things():
    english, chinese = (catalogue(language) for language in LANGUAGES)
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        assert sorted(text.count(f"{{{n}}}") for n in ("key", "letter", "value", "detail")) == (
            sorted(chinese[key].count(f"{{{n}}}") for n in ("key", "letter", "value", "detail"))
        ), key


def test_a_locked_or_broken_store_is_told_in_the_language_of_the_page(store, monkeypatch):
    client = sign_in(create_app(store), "mei")
    monkeypatch.setattr("annotate.store.engine.BUSY_TIMEOUT_S", 0.05)
    headers = {"Accept-Language": "zh"}
    with store._write():
        answer = client.post("/api/claim", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (503, "busy")
    assert answer.json()["error"] == catalogue("zh")["error.busy"]
    faults = ((StoreAccessError("disk full"), 503, "storage"), (KeyError("a"), 500, "internal"))
    for fault, status, code in faults:

        def fail(*_: object, fault: Exception = fault) -> None:
            raise fault

        monkeypatch.setattr(store, "progress", fail)
        answer = client.get("/api/progress", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert "disk full" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_numbers_and_texts_that_no_database_holds_are_refused(store):
    mei, rita = (sign_in(create_app(store), name) for name in ("mei", "rita"))
    huge = "9" * 23
    for path in (f"/api/history?before={huge}", f"/api/guideline?version={huge}"):
        assert mei.get(path).status_code == 422, path
    assert rita.delete(f"/api/review/reviews/{huge}").status_code == 422
    verdict = {"decision": "confirm", "note": "a\0b"}
    assert rita.post("/api/review/tasks/x", json=verdict).status_code == 422
    task = mei.post("/api/claim").json()["task"]
    for change in (
        {"guideline_version": 10**30}, {"win_position": 10**25}, {"note": "a\0b"},
        {"lease_token": "1" * 5000}, {"telemetry": {"a": [{"\0": 1}]}},
        {"telemetry": {"a": "\ud800"}},
    ):  # fmt: skip
        content = json.dumps(body_of(task, **change))
        answer = mei.post("/api/submit", content=content)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), change
    unknown = mei.post("/api/submit", json=body_of(task, guideline_version=77))
    assert (unknown.status_code, unknown.json()["code"]) == (404, "no_guideline")
    assert "77" in unknown.json()["error"]
