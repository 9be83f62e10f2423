"""One call to a server: attempts, pauses between them, and one deadline over all."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from urllib.parse import SplitResult, urlsplit

__all__ = ["RETRIED", "ClientSettings", "ServiceError", "call", "split_url"]

RETRIED = frozenset({408, 429, *range(500, 600)})
"""Statuses after which the same request may succeed. Other answers are final."""
_MAX_ANSWER = 64 * 2**20
_RANDOM = random.Random()
"""Its own: pauses must not move the random numbers of a run."""


class ServiceError(RuntimeError):
    """The server gave no usable answer."""


class _Retry(Exception):
    """An attempt failed in a way that may pass."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    deadline: float = 180.0
    """Seconds for one batch with all its attempts; longer than the server's own limit."""
    attempts: int = 4
    backoff: float = 0.5
    """Seconds before the second attempt; doubled for each further one, times a random half to
    one and a half, so that many clients do not return together."""
    max_backoff: float = 10.0
    """Seconds at most, before that factor."""
    batch_size: int = 8
    """Images per request."""
    concurrency: int = 4
    """Requests under way at a time."""
    token: str | None = None

    def __post_init__(self) -> None:
        for name in ("deadline", "attempts", "batch_size", "concurrency"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")


def split_url(url: str) -> SplitResult:
    """The parts of a server's URL; ValueError where it is none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"the server's URL must be http://HOST:PORT or https://..., got {url!r}")
    return parts


def call(
    server: SplitResult, method: str, path: str, body: bytes | None, settings: ClientSettings
) -> bytes:
    """The body of a 200 answer.

    Retried are connections that fail and the statuses in `RETRIED`; any other answer is final.

    Raises:
        ServiceError: a final answer of another kind, or the attempts or the time are used up.
    """
    end = time.monotonic() + settings.deadline
    attempt, problem = 0, ""
    target = server.path.rstrip("/") + path
    send = partial(_send, method=method, target=target, body=body, token=settings.token)
    for attempt in range(1, settings.attempts + 1):
        try:
            status, answer = _within(end - time.monotonic(), send, partial(_connect, server))
            if status == 200:
                return answer
            problem = f"status {status}: {_message(answer)}"
            if status not in RETRIED:
                raise ServiceError(problem)
        except _Retry as failure:
            problem = str(failure)
        pause = min(settings.backoff * 2.0 ** (attempt - 1), settings.max_backoff)
        pause *= _RANDOM.uniform(0.5, 1.5)
        if attempt == settings.attempts or time.monotonic() + pause >= end:
            break
        time.sleep(pause)
    raise ServiceError(f"no answer after {attempt} attempts; the last: {problem}")


def _connect(server: SplitResult, timeout: float) -> http.client.HTTPConnection:
    kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    assert server.hostname is not None
    return kind[server.scheme](server.hostname, server.port, timeout=timeout)


def _send(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: bytes | None,
    token: str | None,
) -> tuple[int, bytes]:
    headers = {"Content-Type": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    connection.request(method, target, body, headers)
    response = connection.getresponse()
    answer = response.read(_MAX_ANSWER + 1)
    if len(answer) > _MAX_ANSWER:
        raise ServiceError(f"the answer is longer than {_MAX_ANSWER} bytes")
    if response.length:  # read(n) takes a broken connection for the end
        raise http.client.IncompleteRead(answer, response.length)
    return response.status, answer


def _within(
    seconds: float,
    act: Callable[[http.client.HTTPConnection], tuple[int, bytes]],
    connect: Callable[[float], http.client.HTTPConnection],
) -> tuple[int, bytes]:
    """``act`` in a thread of its own, abandoned when time is up.

    A socket's timeout is for one read: a server that sends a byte now and then would never meet it.
    """
    if seconds <= 0:
        raise _Retry("out of time")
    connection = connect(seconds)
    outcome: list[tuple[int, bytes] | Exception] = []

    def run() -> None:
        try:
            outcome.append(act(connection))
        except (OSError, http.client.HTTPException, ServiceError) as error:
            outcome.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=run, name="reward-request", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        connection.close()
        raise _Retry(f"no answer within {seconds:.3g} s")
    result = outcome[0]
    if isinstance(result, ServiceError):
        raise result
    if isinstance(result, Exception):
        raise _Retry(f"{type(result).__name__}: {result}")
    return result


def _message(answer: bytes) -> str:
    """The server's own words in an error answer."""
    try:
        tree = json.loads(answer)
    except ValueError:
        tree = None
    said = tree.get("error") if isinstance(tree, dict) else None
    if isinstance(said, dict):  # as OpenAI's protocol has it
        said = said.get("message")
    if isinstance(said, str):
        return said
    return repr(answer[:200])
