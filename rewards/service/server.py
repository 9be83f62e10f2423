"""The reward server: scorers behind HTTP, one request scored at a time.

A scorer holds a device and is not to be entered by two threads, so requests wait in a queue of
bounded length; beyond it the answer is 429 and the client comes back. Handlers only parse and wait:
``/v1/health`` answers while a scorer works.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL.Image import Image as PILImage

from rewards.base import RewardItem, Scorer
from rewards.service.schema import (
    Health,
    SchemaError,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    WireScore,
    parse,
)

__all__ = ["RewardServer", "ServerSettings"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    host: str = "127.0.0.1"
    """Loopback unless another address is given; then a token is required."""
    port: int = 0
    """0 takes any free port."""
    token: str | None = None
    """What ``Authorization: Bearer`` must carry; None asks for none."""
    max_queue: int = 16
    """Requests that wait at most."""
    max_body_mib: float = 256.0
    request_timeout: float = 120.0
    """Seconds that a request may wait and be scored; shorter than the client's deadline, so that
    the server's own answer arrives first."""

    def __post_init__(self) -> None:
        if self.host not in ("127.0.0.1", "::1", "localhost") and not self.token:
            raise ValueError(
                f"host {self.host!r} can be reached from other machines: a token is required"
            )
        if self.max_queue < 1:
            raise ValueError(f"max_queue must be at least 1, got {self.max_queue}")


@dataclass(eq=False)
class _Job:
    scorer: Scorer
    items: list[RewardItem]
    deadline: float
    done: threading.Event = field(default_factory=threading.Event)
    response: ScoreResponse | None = None
    error: str = ""


class _Refused(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


class RewardServer:
    """Serves scorers over HTTP until closed.

        with RewardServer(lambda: [scorer], ServerSettings()) as server:
            server.url

    Args:
        load: gives the scorers. It runs in the background; until it has ended every request but
            ``/v1/health`` is answered with 503.
    """

    def __init__(
        self, load: Callable[[], Sequence[Scorer]], settings: ServerSettings | None = None
    ):
        self.settings = settings or ServerSettings()
        self._load = load
        self._scorers: dict[str, Scorer] | None = None
        self._load_error: BaseException | None = None
        self._loaded = threading.Event()
        self._jobs: queue.Queue[_Job | None] = queue.Queue(self.settings.max_queue)
        handler = type("Handler", (_Handler,), {"server_of_rewards": self})
        self._http = ThreadingHTTPServer((self.settings.host, self.settings.port), handler)
        self._http.daemon_threads = True
        self._threads = [
            threading.Thread(target=target, name=f"reward-{name}", daemon=True)
            for name, target in (("http", self._http.serve_forever), ("scoring", self._work))
        ]

    @property
    def url(self) -> str:
        host, port = self._http.server_address[:2]
        return f"http://{host}:{port}"

    def __enter__(self) -> RewardServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        with contextlib.suppress(queue.Full):
            self._jobs.put_nowait(None)  # what waits is scored, then the scoring thread ends

    def wait_until_ready(self) -> None:
        """Return when the scorers are loaded; raise what their loading raised."""
        self._loaded.wait()
        if self._load_error is not None:
            raise self._load_error

    def wait(self) -> None:
        """Serve until the process is interrupted."""
        self._threads[0].join()

    # The scoring thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._scorers = {scorer.spec.name: scorer for scorer in self._load()}
        except BaseException as error:
            self._load_error = error
            return
        finally:
            self._loaded.set()
        while (job := self._jobs.get()) is not None:
            if time.monotonic() < job.deadline:
                self._run(job)
            job.done.set()

    def _run(self, job: _Job) -> None:
        """Score a job. Whatever a scorer raises is that job's answer, and the server goes on."""
        spec = job.scorer.spec
        try:
            scores = job.scorer.score(job.items)
            if len(scores) != len(job.items):
                raise ValueError(f"{len(scores)} scores for {len(job.items)} items")
            job.response = ScoreResponse(
                scorer=spec.name,
                version=spec.version,
                scores=[
                    WireScore.pack(item.sample_id, score)
                    for item, score in zip(job.items, scores, strict=True)
                ],
            )
        except Exception as error:
            logger.exception("scorer %r failed", spec.name)
            job.error = f"scorer {spec.name!r} failed: {type(error).__name__}: {error}"

    # The handlers' threads ------------------------------------------------------------------------

    def health(self) -> Health:
        scorers = self._scorers
        infos = [ScorerInfo.of(scorer.spec) for scorer in (scorers or {}).values()]
        return Health(ready=scorers is not None, scorers=infos)

    def answer(self, request: ScoreRequest) -> ScoreResponse:
        """Queue a request and wait for its scores.

        Raises:
            _Refused: with the status to answer.
        """
        if self._scorers is None:
            raise _Refused(503, f"the scorers are not loaded: {self._load_error or 'wait'}")
        scorer = self._scorers.get(request.scorer)
        if scorer is None:
            raise _Refused(404, f"no scorer {request.scorer!r}; there is {sorted(self._scorers)}")
        sources: dict[str, PILImage] = {}
        items = [item.unpack(sources) for item in request.items]
        job = _Job(scorer, items, time.monotonic() + self.settings.request_timeout)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            raise _Refused(429, f"{self.settings.max_queue} requests are waiting") from None
        if not job.done.wait(self.settings.request_timeout):
            raise _Refused(504, f"not scored within {self.settings.request_timeout:g} s")
        if job.response is None:
            raise _Refused(500 if job.error else 504, job.error or "waited too long in the queue")
        return job.response


class _Handler(BaseHTTPRequestHandler):
    server_of_rewards: RewardServer
    protocol_version = "HTTP/1.1"
    timeout = 60
    """Seconds of silence after which a connection is closed."""

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def _get(self) -> Health:
        if self.path != "/v1/health":
            raise _Refused(404, f"nothing at {self.path}")
        return self.server_of_rewards.health()

    def _post(self) -> ScoreResponse:
        if self.path != "/v1/score":
            raise _Refused(404, f"nothing at {self.path}")
        settings = self.server_of_rewards.settings
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise _Refused(411, "Content-Length is required")
        if int(length) > settings.max_body_mib * 2**20:
            raise _Refused(413, f"{length} bytes, at most {settings.max_body_mib:g} MiB are taken")
        body = self.rfile.read(int(length))
        try:
            return self.server_of_rewards.answer(parse(ScoreRequest, body))
        except SchemaError as error:
            raise _Refused(400, str(error)) from None

    def _respond(self, act: Callable[[], Health | ScoreResponse]) -> None:
        try:
            self._authorise()
            self._send(200, act().model_dump_json().encode())
        except _Refused as refused:
            # The body may not have been read: what follows on this connection is no request.
            self.close_connection = True
            self._send(refused.status, json.dumps({"error": refused.message}).encode())

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError as error:
            logger.debug("a client left before its answer: %s", error)

    def _authorise(self) -> None:
        token = self.server_of_rewards.settings.token
        given = self.headers.get("Authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise _Refused(401, "the token is missing or wrong")

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status in (429, 503):
            self.send_header("Retry-After", "1")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
