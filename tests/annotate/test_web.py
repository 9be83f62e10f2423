"""The web app's routes: who may do what, from where, and what they learn."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from web_studio import HOST, PASSWORD, PEOPLE, SAME_ORIGIN, make_studio, secrets_of, sign_in

from annotate.store import PreferenceStore
from annotate.web.app import create_app
from annotate.web.config import LoginThrottle, ServeConfig
from annotate.web.images import strip_metadata
from annotate.web.throttle import FailureLog


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreferenceStore]:
    folder = tmp_path_factory.mktemp("web") / "studio"
    with make_studio(folder, counts=(4, 3), annotators=len(PEOPLE)) as store:
        yield store


@pytest.fixture(scope="module")
def app(shared_store: PreferenceStore) -> FastAPI:
    return create_app(shared_store)


@pytest.fixture(scope="module")
def fresh_studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web") / "fresh"
    make_studio(folder, counts=(4, 3, 2)).close()
    return folder


@pytest.fixture
def store(fresh_studio: Path, tmp_path: Path) -> Iterator[PreferenceStore]:
    """A store of the test's own."""
    with PreferenceStore.open(shutil.copytree(fresh_studio, tmp_path / "studio")) as store:
        yield store


def answer_body(task: dict, **changes) -> dict:
    return {
        "idempotency_key": f"key-{task['assignment_id']:08}",
        "assignment_id": task["assignment_id"],
        "lease_token": task["lease_token"],
        "outcome": "picked",
        "win_position": 0,
        "lose_position": 1,
        **changes,
    }


# ── who may come in ──────────────────────────────────────────────────────────────────────────


def test_session_cookie_is_not_for_scripts_nor_other_sites(app):
    client = TestClient(app, base_url=HOST, headers=SAME_ORIGIN, follow_redirects=False)
    answer = client.post("/login", data={"name": "mei", "password": PASSWORD, "next": "/annotate"})
    cookie = answer.headers["set-cookie"].lower()
    assert answer.headers["location"] == "/annotate"
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie


def test_session_cookie_is_secure_over_tls(app):
    client = TestClient(app, base_url="https://testserver", follow_redirects=False)
    headers = {"Origin": "https://testserver"}
    answer = client.post("/login", data={"name": "mei", "password": PASSWORD}, headers=headers)
    assert "secure" in answer.headers["set-cookie"].lower()


def test_signing_out_ends_the_session_on_the_server(app):
    client = sign_in(app, "mei")
    cookie = client.cookies["winsome_session"]
    assert client.get("/api/me").status_code == 200
    client.post("/logout")
    client.cookies.set("winsome_session", cookie)
    assert client.get("/api/me").status_code == 401


@pytest.mark.parametrize("path", ["//evil.example", "/\\evil.example", "https://evil.example"])
def test_login_leads_to_this_server_alone(app, path):
    client = TestClient(app, base_url=HOST, headers=SAME_ORIGIN, follow_redirects=False)
    answer = client.post("/login", data={"name": "mei", "password": PASSWORD, "next": path})
    assert answer.headers["location"] == "/"


def test_the_name_stays_in_the_form_after_a_wrong_password(store):
    client = TestClient(create_app(store), base_url=HOST, headers=SAME_ORIGIN)
    assert 'name="name" value="" ' in client.get("/login").text
    wrong = {"name": '"><b>mei', "password": "wrong-password"}
    page = client.post("/login", data=wrong).text
    assert 'name="name" value="&quot;&gt;&lt;b&gt;mei" ' in page
    assert 'type="password" autocomplete="current-password" required autofocus ' in page
    assert "wrong-password" not in page


def test_wrong_passwords_are_throttled(store):
    app = create_app(store, ServeConfig(login=LoginThrottle(max_failures=2)))
    client = TestClient(app, base_url=HOST, headers=SAME_ORIGIN)
    wrong = {"name": "mei", "password": "wrong"}
    assert [client.post("/login", data=wrong).status_code for _ in range(3)] == [401, 401, 429]
    right = client.post("/login", data={"name": "MEI", "password": PASSWORD})
    assert right.status_code == 429
    assert int(right.headers["retry-after"]) > 200
    other = client.post(
        "/login", data={"name": "jonas", "password": PASSWORD}, follow_redirects=False
    )
    assert other.status_code == 303


def test_failures_are_forgotten_after_the_window():
    now = [0.0]
    limits = LoginThrottle(max_failures=2, max_failures_per_address=3, window_s=100)
    log = FailureLog(limits, clock=lambda: now[0])
    for name in ("a", "a", "b"):
        log.add("1.2.3.4", name)
    assert log.wait_s("1.2.3.4", "A") == 100
    assert log.wait_s("1.2.3.4", "c") == 100  # the address has failed three times
    assert log.wait_s("5.6.7.8", "a") == 0
    for _ in range(5):  # right passwords count for nothing
        log.add("5.6.7.8", "a")
        log.clear("5.6.7.8", "a")
    assert log.wait_s("5.6.7.8", "b") == 0
    now[0] = 99.5
    assert log.wait_s("1.2.3.4", "a") == 1
    now[0] = 101
    assert log.wait_s("1.2.3.4", "a") == 0


ROUTES = {
    # (method, path) -> status for: nobody, annotator, reviewer and above
    ("GET", "/healthz"): (200, 200, 200),
    ("GET", "/login"): (200, 303, 303),
    ("GET", "/static/tokens.css"): (200, 200, 200),
    ("GET", "/static/locales/zh.json"): (200, 200, 200),
    ("GET", "/api/me"): (401, 200, 200),
    ("GET", "/api/progress"): (401, 200, 200),
    ("GET", "/api/ahead"): (401, 200, 200),
    ("GET", "/api/history"): (401, 200, 200),
    ("GET", "/api/guideline"): (401, 200, 200),
    ("GET", "/api/guideline?version=9"): (401, 404, 404),
    ("POST", "/api/heartbeat"): (401, 422, 422),
    ("POST", "/api/claim"): (401, 200, 200),
    ("POST", "/api/submit"): (401, 422, 422),
    ("GET", "/media/guess"): (401, 404, 404),
    ("GET", "/annotate/"): (401, 200, 200),
    ("GET", "/annotate/config"): (401, 200, 200),
    ("GET", "/annotate/gradio_api/info"): (401, 200, 200),
    ("GET", "/review/"): (401, 403, 200),
    ("GET", "/review/config"): (401, 403, 200),
    ("GET", "/review/gradio_api/info"): (401, 403, 200),
    ("POST", "/review/gradio_api/queue/join"): (401, 403, 422),
    ("GET", "/api/review"): (401, 403, 200),
    ("GET", "/api/review/figures"): (401, 403, 200),
    ("POST", "/api/review/figures"): (401, 403, 200),
    ("GET", "/api/review/figures/agreement.csv"): (401, 403, 200),
    ("GET", "/api/review/disputes"): (401, 403, 200),
    ("POST", "/api/review/tasks/none"): (401, 403, 422),
    ("DELETE", "/api/review/reviews/1"): (401, 403, 404),
    ("GET", "/api/review/reviews.csv"): (401, 403, 200),
    ("GET", "/api/review/snapshots"): (401, 403, 200),
    ("GET", "/api/review/runs"): (401, 403, 200),
    ("GET", "/api/review/curves"): (401, 403, 200),
    ("GET", "/api/review/run?run=none"): (401, 403, 404),
    ("GET", "/api/review/run/image?run=none&set=a&image=b"): (401, 403, 404),
    ("POST", "/api/review/run/blind"): (401, 403, 422),
    ("GET", "/annotate/gradio_api/file=http://example.com"): (404, 404, 404),
    ("GET", "/annotate/gradio_api/file%3Dhttp://example.com"): (404, 404, 404),
    ("GET", "/annotate/gradio_api/file=/etc/passwd"): (404, 404, 404),
    ("GET", "/review/gradio_api/proxy=http://example.com"): (404, 404, 404),
    ("POST", "/annotate/gradio_api/upload"): (404, 404, 404),
    ("GET", "/openapi.json"): (401, 404, 404),
    ("GET", "/api/openapi.json"): (401, 200, 200),
    ("GET", "/docs"): (401, 404, 404),
}


def test_each_role_reaches_its_own_routes(app):
    nobody = TestClient(app, base_url=HOST, headers=SAME_ORIGIN, follow_redirects=False)
    people = {name: sign_in(app, name) for name in PEOPLE}
    for (method, path), (none, annotator, above) in ROUTES.items():
        assert nobody.request(method, path).status_code == none, path
        for name, client in people.items():
            expected = annotator if PEOPLE[name] == "annotator" else above
            assert client.request(method, path).status_code == expected, (path, name)


def test_a_page_leads_a_stranger_to_the_login_and_back(app):
    client = TestClient(app, base_url=HOST, follow_redirects=False)
    answer = client.get("/annotate/", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/annotate/")


def test_a_closed_account_is_out_at_once(store):
    client = sign_in(create_app(store), "mei")
    assert client.get("/api/me").status_code == 200
    store.update_user(store.user("mei").id, is_active=False)
    assert client.get("/api/me").status_code == 401


# ── from where ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": HOST.replace("http:", "https:")},
        {"Origin": HOST, "Sec-Fetch-Site": "cross-site"},
        {"Origin": HOST, "Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {},
    ],
)
def test_changes_are_taken_from_our_own_pages_alone(app, headers):
    client = sign_in(app, "mei")
    client.headers.pop("Origin")
    client.headers.pop("Sec-Fetch-Site")
    for path in ("/api/claim", "/api/undo", "/login", "/logout", "/annotate/gradio_api/queue/join"):
        assert client.post(path, headers=headers).status_code == 403, path


def test_public_url_is_the_origin_behind_a_proxy(store):
    app = create_app(store, ServeConfig(public_url="https://label.example.com:443"))
    client = TestClient(app, base_url="http://backend:7860", follow_redirects=False)
    form = {"name": "mei", "password": PASSWORD}
    ours = client.post("/login", data=form, headers={"Origin": "https://label.example.com"})
    assert ours.status_code == 303
    assert "secure" in ours.headers["set-cookie"].lower()
    for other in ("http://backend:7860", "http://label.example.com"):
        assert client.post("/logout", headers={"Origin": other}).status_code == 403, other


@pytest.mark.parametrize("path", ["/api/me", "/annotate/", "/annotate/config", "/login"])
def test_no_other_site_may_read(app, path):
    client = sign_in(app, "mei")
    headers = {"Origin": "https://evil.example", "Host": "label.example.com"}
    for method in ("GET", "OPTIONS"):
        preflight = {**headers, "Access-Control-Request-Method": "GET"}
        answer = client.request(method, path, headers=preflight if method == "OPTIONS" else headers)
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-credentials" not in answer.headers


def test_pages_carry_a_policy_that_names_no_other_host(app):
    client = sign_in(app, "lea")
    for path in ("/annotate/", "/review/", "/static/tokens.css", "/api/me"):
        answer = client.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'")
        assert "http" not in policy
    page = client.get("/annotate/")
    nonce = page.headers["content-security-policy"].split("'nonce-")[1].split("'")[0]
    assert page.text.count("<script") == page.text.count(f'<script nonce="{nonce}"') > 3
    assert "githubusercontent" not in page.text
    assert client.get("/annotate/").headers["content-security-policy"] != policy


def test_a_large_body_is_refused(app):
    client = sign_in(app, "mei")
    assert client.post("/api/submit", content=b"x" * (2 << 20)).status_code == 413


# ── labelling ────────────────────────────────────────────────────────────────────────────────


def test_claim_submit_undo(store):
    client = sign_in(create_app(store), "mei")
    first = client.post("/api/claim").json()
    assert first["progress"] == {"done": 0, "skipped": 0, "remaining": 3}
    task = first["task"]
    assert set(task) == {
        "assignment_id", "lease_token", "question", "prompt", "candidates", "reference", "source",
            "previous",
    }  # fmt: skip
    assert client.post("/api/claim").json()["task"] == task  # a reload shows the same task
    hold = {key: task[key] for key in ("assignment_id", "lease_token")}
    assert client.post("/api/heartbeat", json=hold).status_code == 200

    body = answer_body(task, win_position=2, lose_position=0, active_ms=1500)
    sent = client.post("/api/submit", json=body).json()
    assert sent["progress"]["done"] == 1
    assert sent["task"]["assignment_id"] != task["assignment_id"]
    assert client.post("/api/submit", json=body).json() == sent  # sent twice, stored once
    changed = client.post("/api/submit", json={**body, "win_position": 1})
    assert changed.status_code == 409
    (pick,) = store.labelled()[3]
    assert pick.outcome == "picked"

    back = client.post("/api/undo").json()
    assert back["task"]["candidates"] == task["candidates"]
    assert back["progress"]["done"] == 0
    assert store.labelled()[3] == []


def test_faults_are_told_in_one_line(app):
    client = sign_in(app, "jonas")
    task = client.post("/api/claim").json()["task"]
    same = client.post("/api/submit", json=answer_body(task, lose_position=0))
    assert (same.status_code, "same position" in same.json()["error"]) == (422, True)
    outside = client.post("/api/submit", json=answer_body(task, win_position=8))
    assert (outside.status_code, list(outside.json())) == (400, ["error", "code"])
    forged = client.post("/api/submit", json=answer_body(task, lease_token="x" * 40))
    assert forged.status_code == 409


# ── images, and what they give away ──────────────────────────────────────────────────────────


def test_images_open_for_their_annotator_alone(app):
    mei, jonas = sign_in(app, "mei"), sign_in(app, "jonas")
    sources = [c["src"] for c in mei.post("/api/claim").json()["task"]["candidates"]]
    answer = mei.get(sources[0])
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"].startswith("private,")
    assert "immutable" in answer.headers["cache-control"]
    assert "content-disposition" not in answer.headers
    assert "etag" not in answer.headers
    for client in (jonas, sign_in(app, "ada")):
        assert client.get(sources[0]).status_code == 404


def test_pixels_are_exact_and_metadata_is_gone(shared_store):
    path = next(shared_store.images.folder.glob("*.png"))
    data = path.read_bytes()
    assert b"drawn by" in data
    clean = strip_metadata(data + b"after the end")
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(clean)) as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))
        assert after.info == {}
    for broken in (data[:-30], b"GIF89a" + data):
        with pytest.raises(ValueError, match="PNG"):
            strip_metadata(broken)


def test_nothing_an_annotator_can_fetch_names_the_origin_of_an_image(store):
    client = sign_in(create_app(store), "mei")
    bodies = [client.get(path) for path in ("/annotate/", "/annotate/config", "/api/me", "/login")]
    bodies.append(client.get("/annotate/gradio_api/info"))
    answer = client.post("/api/claim")
    while answer.json()["task"]:
        task = answer.json()["task"]
        bodies += [answer, *(client.get(c["src"]) for c in task["candidates"])]
        answer = client.post("/api/submit", json=answer_body(task))
    assert len(bodies) > 12
    for secret in secrets_of(store):
        for body in bodies:
            assert secret.encode() not in body.content, (secret, body.url)
            assert secret not in str(body.headers)
