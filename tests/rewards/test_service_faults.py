"""Whatever a server does, a score is the true one or an error."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from red_scorer import HEALTH, ITEMS, Red, hasty, truth

from rewards.service.client import ClientSettings, RemoteScorer, ServiceError
from rewards.service.schema import ScoreRequest, parse
from rewards.service.server import RewardServer


class Misbehaving:
    """A server that does the next thing of its script on each request, then behaves."""

    def __init__(self):
        self.script: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def close(self):
        self._socket.close()

    def _answer(self, connection):
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                part = connection.recv(65536)
                if not part:
                    return
                head += part
            head, _, body = head.partition(b"\r\n\r\n")
            if head.startswith(b"GET"):
                health = {**HEALTH, "scorers": [{**HEALTH["scorers"][0], "backbone": "pixels"}]}
                return reply(connection, 200, json.dumps(health))
            length = int(head.lower().split(b"content-length:")[1].split()[0])
            while len(body) < length:
                body += connection.recv(65536)
            with self._lock:
                deed = self.script.pop(0) if self.script else "behave"
            request = parse(ScoreRequest, body)
            scores = [
                {"sample_id": each.sample_id, "value": truth(each.unpack()).value}
                for each in request.items
            ]
            DEEDS[deed](connection, scores)


def reply(connection, status, text, cut=None):
    body = text.encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    connection.sendall((head.encode() + body)[:cut])


def respond(connection, scores, **changes):
    tree = {"wire": 3, "scorer": "red", "version": "1", "scores": scores} | changes
    reply(connection, 200, json.dumps(tree))


def drip(connection, scores):
    for _ in range(40):
        connection.sendall(b"H")
        time.sleep(0.02)


DEEDS = {
    "behave": respond,
    "vanish": lambda c, s: None,
    "hang": lambda c, s: time.sleep(0.8),
    "drip": drip,
    "cut": lambda c, s: reply(c, 200, json.dumps({"wire": 3}), cut=60),
    "garbage": lambda c, s: c.sendall(b"\x00\x01garbage\r\n\r\n"),
    "not json": lambda c, s: reply(c, 200, "<html>0</html>"),
    "zero": lambda c, s: reply(c, 200, "0"),
    "empty": lambda c, s: reply(c, 200, ""),
    "nan": lambda c, s: reply(c, 200, '{"wire":3,"scorer":"red","version":"1","scores":[NaN]}'),
    "overloaded": lambda c, s: reply(c, 429, '{"error": "busy"}'),
    "500 with zeros": lambda c, s: reply(c, 500, json.dumps([0.0] * len(s))),
    "unauthorised": lambda c, s: reply(c, 401, "{}"),
    "no scores": lambda c, s: respond(c, []),
    "too few": lambda c, s: respond(c, s[:-1]),
    "other order": lambda c, s: respond(c, [*s[1:], {**s[0], "sample_id": "other"}]),
    "other version": lambda c, s: respond(c, s, version="2"),
    "no values": lambda c, s: respond(c, [{"sample_id": each["sample_id"]} for each in s]),
    "zeros and errors": lambda c, s: respond(
        c, [{**each, "value": 0.0, "error": "x"} for each in s]
    ),
    "errors": lambda c, s: respond(c, [{**each, "value": None, "error": "x"} for each in s]),
}


@pytest.fixture(scope="module")
def misbehaving():
    server = Misbehaving()
    yield server
    server.close()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(script=st.lists(st.sampled_from(sorted(DEEDS)), max_size=6), attempts=st.integers(1, 3))
def test_no_reward_is_ever_made_up(misbehaving, script, attempts):
    misbehaving.script = []
    remote = hasty(misbehaving.url, 0.3, attempts=attempts, backoff=0.005, batch_size=2)
    misbehaving.script = list(script)
    scores = remote.score(ITEMS)
    assert len(scores) == len(ITEMS)
    for each, score in zip(ITEMS, scores, strict=True):
        if score.error is None:
            assert score.value == truth(each).value
        else:
            assert score.value is None
            assert not score.components


@pytest.mark.parametrize("deed", sorted(set(DEEDS) - {"behave"}))
def test_each_fault_is_told_apart_from_a_score(misbehaving, deed):
    misbehaving.script = []
    remote = hasty(misbehaving.url, 0.3, attempts=1)
    misbehaving.script = [deed]
    assert all(score.value is None and score.error for score in remote.score(ITEMS))


@pytest.mark.parametrize("deed", ["vanish", "cut", "garbage", "overloaded", "500 with zeros"])
def test_what_may_pass_is_tried_again(misbehaving, deed):
    misbehaving.script = []
    remote = RemoteScorer(misbehaving.url, settings=ClientSettings(attempts=3, backoff=0.01))
    misbehaving.script = [deed, deed]
    assert [score.value for score in remote.score(ITEMS)] == [truth(each).value for each in ITEMS]


def test_a_killed_server_is_an_error():
    settings = ClientSettings(attempts=2, backoff=0.01)
    with RewardServer(lambda: [Red()]) as server:
        server.wait_until_ready()
        remote = RemoteScorer(server.url, settings=settings)
    assert all("after 2 attempts" in str(score.error) for score in remote.score(ITEMS))
    with pytest.raises(ServiceError, match="no answer after 2 attempts"):
        RemoteScorer(server.url, settings=settings)
