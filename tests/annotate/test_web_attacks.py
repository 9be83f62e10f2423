"""What an attacker tries: Gradio's own endpoints, forged names, hostile files, many passwords."""

from __future__ import annotations

import io
import re
import resource
import select
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from browser_tools import served
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from starlette.routing import Mount
from studio import sha256
from web_studio import HOST, PASSWORD, PEOPLE, SAME_ORIGIN, make_studio, sign_in

from annotate.records import Candidate, Prompt
from annotate.store import PreferenceStore, StoreError
from annotate.web.app import create_app
from annotate.web.config import LoginThrottle, ServeConfig
from annotate.web.throttle import MAX_KEYS, FailureLog

TARGETS = (
    "/etc/passwd",
    "../../../../../../etc/passwd",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "%252e%252e%252fetc%252fpasswd",
    "winsome.db",
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/",
    "https://example.com/",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreferenceStore]:
    with make_studio(tmp_path_factory.mktemp("attack") / "studio", counts=(4, 3)) as store:
        yield store


@pytest.fixture(scope="module")
def app(store: PreferenceStore) -> FastAPI:
    return create_app(store)


def gradio_routes(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path) of every route that the installed Gradio brings along."""
    found = set()
    for mount in app.routes:
        if not isinstance(mount, Mount) or mount.path not in ("/annotate", "/review"):
            continue
        for route in mount.routes:
            for method in getattr(route, "methods", None) or ():
                found.add((method, mount.path + route.path))
    return sorted(found)


def test_no_endpoint_of_gradio_gives_a_file_or_fetches_an_address(app, store):
    routes = gradio_routes(app)
    assert len(routes) > 30
    client = sign_in(app, "mei")  # signed in: the worst case for all but /review
    secrets = (b"root:", b"SQLite format 3", b"ami-id", b"Example Domain")
    asked = 0
    for method, path in routes:
        holes = re.findall(r"\{[^}]+\}", path)
        for target in TARGETS if holes else TARGETS[:1]:
            address = path
            for hole in holes:
                address = address.replace(hole, target)
            payload = {"data": [target], "path": target, "url": target, "session_hash": "a"}
            body = {"json": payload} if method in ("POST", "PUT", "PATCH") else {}
            if "/queue/data" in path or "heartbeat" in path:
                continue  # streams without an end, fed by events that no page of ours makes
            answer = client.request(method, address, **body)
            asked += 1
            assert answer.status_code != 500, (method, address)
            text = answer.content
            assert not any(secret in text for secret in secrets), (method, address)
            assert str(store.images.folder.parent).encode() not in text, (method, address)
            if path.startswith("/review"):
                assert answer.status_code in (403, 404), (method, address)
    assert asked > 100


def test_nothing_of_gradio_can_be_changed_from_another_site(app):
    client = sign_in(app, "ada")
    evil = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    for method, path in gradio_routes(app):
        if method in ("GET", "HEAD", "OPTIONS"):
            continue
        answer = client.request(method, path.replace("{", "").replace("}", ""), headers=evil)
        assert answer.status_code in (403, 404), (method, path)
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "token", ["", "x", "%2e%2e%2fwinsome.db", "A" * 64, "A" * 5000, "é" * 20, "\u202e" * 9]
)
def test_a_forged_media_token_opens_nothing(app, token):
    answer = sign_in(app, "mei").get(f"/media/{token}")
    assert answer.status_code == 404
    assert answer.json()["code"] in ("no_image", "no_page")


def test_forged_ids_and_leases_are_refused(app, store):
    mei, jonas = sign_in(app, "mei"), sign_in(app, "jonas")
    task, other = (c.post("/api/claim").json()["task"] for c in (mei, jonas))
    assert store.public_number(store.assignment_of(task["assignment_id"])) == task["assignment_id"]
    body = {
        "idempotency_key": "forged-0001",
        "assignment_id": task["assignment_id"],
        "lease_token": task["lease_token"],
        "outcome": "all_bad",
    }
    forged = [
        {"lease_token": other["lease_token"]},
        {"lease_token": task["lease_token"][:-1]},
        {"lease_token": "1." + "0" * 32},
        {"assignment_id": other["assignment_id"]},
        {"assignment_id": 2**62},
        {"assignment_id": -1},
    ]
    for change in forged:
        answer = mei.post("/api/submit", json={**body, **change})
        assert answer.status_code == 409, change
        assert answer.json()["code"] == "lease_forged"
    jonas_answer = jonas.post("/api/submit", json=body)  # a whole body, stolen
    assert jonas_answer.json()["code"] == "lease_forged"
    wrong_kind = [{"assignment_id": 2**80}, {"outcome": "win"}, {"extra": 1}, {"marks": [{}]}]
    for change in wrong_kind:
        assert mei.post("/api/submit", json={**body, **change}).status_code in (409, 422), change
    assert store.labelled()[3] == []
    for cookie in ("", "x", "0" * 43, "' OR 1=1 --"):
        stranger = TestClient(app, base_url=HOST, headers=SAME_ORIGIN)
        stranger.cookies.set("winsome_session", cookie)
        assert stranger.post("/api/claim").status_code == 401


def test_a_huge_body_is_refused_before_it_is_read(app):
    client = sign_in(app, "mei")
    headers = {"Content-Length": str(200 << 20)}
    for path in ("/api/submit", "/login", "/annotate/gradio_api/queue/join"):
        answer = client.post(path, content=b"{}", headers=headers)
        assert answer.status_code == 413, path
    for path in ("/annotate/gradio_api/upload", "/review/gradio_api/upload"):
        assert client.post(path, content=b"{}", headers=headers).status_code == 404, path
    unsaid = client.post("/api/submit", content=iter([b"{}"]))
    assert unsaid.status_code == 411
    assert client.post("/api/claim", headers={"Content-Length": "-1"}).status_code == 411


def test_ten_thousand_wrong_passwords_are_stopped_and_bounded(app):
    log = FailureLog(LoginThrottle(max_failures=5, max_failures_per_address=30))
    tried = 0
    for number in range(10_000):
        if log.wait_s("203.0.113.9", f"user-{number}") == 0:
            log.add("203.0.113.9", f"user-{number}")
            tried += 1
    assert tried == 30
    for number in range(3 * MAX_KEYS):  # each from another address
        log.add(f"2001:db8::{number:x}", "mei")
    assert len(log) == MAX_KEYS
    client = TestClient(app, base_url=HOST, headers=SAME_ORIGIN, follow_redirects=False)
    wrong = [client.post("/login", data={"name": "rita", "password": "x"}) for _ in range(8)]
    assert [answer.status_code for answer in wrong] == [401] * 5 + [429] * 3


def test_an_office_signs_in_at_once_behind_one_address(store):
    limits = LoginThrottle(max_failures_per_address=4)
    app = create_app(store, ServeConfig(login=limits))

    def attempt(login: tuple[str, str]) -> int:
        client = TestClient(app, base_url=HOST, headers=SAME_ORIGIN, follow_redirects=False)
        return client.post("/login", data={"name": login[0], "password": login[1]}).status_code

    with ThreadPoolExecutor(12) as pool:
        right = [*pool.map(attempt, [(name, PASSWORD) for name in PEOPLE] * 2)]
        assert right == [303] * 12
        wrong = [*pool.map(attempt, [(f"guess-{number}", "x") for number in range(12)])]
    assert Counter(wrong) == {401: 4, 429: 8}


def test_two_hundred_megabytes_are_refused_while_they_are_sent(app):
    cookie = sign_in(app, "mei").cookies["winsome_session"]
    size = 200 << 20
    with served(app) as url:
        host = url.removeprefix("http://")
        name, _, port = host.partition(":")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with socket.create_connection((name, int(port)), timeout=30) as connection:
            head = (
                f"POST /api/submit HTTP/1.1\r\nHost: {host}\r\nOrigin: {url}\r\n"
                f"Cookie: winsome_session={cookie}\r\nContent-Length: {size}\r\n\r\n"
            )
            connection.sendall(head.encode())
            sent, answer, block = 0, b"", bytes(1 << 16)
            while sent < size and not answer:
                readable, writable, _ = select.select([connection], [connection], [], 30)
                if readable:
                    answer = connection.recv(4096)
                elif writable:
                    sent += connection.send(block)
            answer = answer or connection.recv(4096)
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert answer.startswith(b"HTTP/1.1 413 "), answer
    assert sent < size / 2
    assert grown_kib < 64 << 10


def png_bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few hundred bytes."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png_bomb(), "900000000 pixels"),
        (encoded("PNG")[:-20], "cannot be decoded"),
        (encoded("JPEG"), "is JPEG, expected PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>", "cannot be decoded"),
        (b"", "cannot be decoded"),
    ],
)
def test_hostile_images_are_not_taken_in(store, data, message):
    store.add_prompts([Prompt(id="hostile", text="x")])
    digest = sha256(data)
    candidate = Candidate(id="bomb", prompt_id="hostile", image_sha256=digest, width=8, height=6)
    before = {path.name for path in store.images.folder.iterdir()}
    with pytest.raises(StoreError, match=message):
        store.add_candidates([candidate], {digest: data})
    assert {path.name for path in store.images.folder.iterdir()} == before


HOSTILE = '"><img src=x onerror=alert(1)> ${alert(2)} {{alert(3)}}'


def test_hostile_names_and_notes_come_back_as_data_only(store):
    user = store.add_user(HOSTILE, PASSWORD)
    app = create_app(store)
    client = TestClient(app, base_url=HOST, headers=SAME_ORIGIN, follow_redirects=False)
    form = {"name": HOSTILE, "password": "wrong", "next": HOSTILE}
    page = client.post("/login", data=form)
    assert "<img src=x" not in page.text
    assert client.post("/login", data={**form, "password": PASSWORD}).status_code == 303
    me = client.get("/api/me")
    assert me.headers["content-type"] == "application/json"
    assert me.json()["name"] == user.name
    assert HOSTILE not in client.get("/annotate/").text
