"""A scorer that lives in another process."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from rewards.base import RewardItem, Score, ScorerSpec
from rewards.service.cache import ScoreCache, cache_key
from rewards.service.schema import (
    Health,
    SchemaError,
    ScoreRequest,
    ScoreResponse,
    WireItem,
    encode_png,
    parse,
)

__all__ = ["ClientSettings", "RemoteScorer", "ServiceError"]

RETRIED = frozenset({408, 429, *range(500, 600)})
"""Statuses after which the same request may succeed. Other answers are final."""
_MAX_ANSWER = 64 * 2**20


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


class RemoteScorer:
    """Scores by a reward server.

    A batch that got no usable answer within its deadline is an error on each of its items, with the
    cause; it is never a number. Retried are connections that fail and the statuses in `RETRIED`;
    an answer that breaks the contract (no JSON, NaN, another scorer or version, other samples) is
    a failure at once, since the same server would say the same again.

    Args:
        url: of the server, e.g. ``http://127.0.0.1:8100``.
        scorer: the scorer's name there; None takes the only one.
        cache: scores that are known already are not asked for.

    Raises:
        ServiceError: the server cannot be reached, is not ready in time, or has no such scorer.
    """

    def __init__(
        self,
        url: str,
        scorer: str | None = None,
        settings: ClientSettings | None = None,
        cache: ScoreCache | None = None,
    ):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"the server's URL must be http://HOST:PORT or https://..., got {url!r}"
            )
        self.url, self._parts = url, parts
        self.settings = settings or ClientSettings()
        self._cache = cache
        self._random = random.Random()
        info = self._find(scorer)
        self.spec = ScorerSpec(
            name=info.name,
            version=info.version,
            components=tuple(info.components),
            needs=frozenset({"image"}),
            backbone=info.backbone,
        )

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """One score per item, in order; see `rewards.base.Scorer`."""
        scores: list[Score | None] = [None] * len(items)
        keys: list[str] = [""] * len(items)
        asked: list[tuple[int, WireItem]] = []
        for index, item in enumerate(items):
            if item.image is None:
                scores[index] = Score(None, error="a remote scorer needs an image, there is none")
                continue
            try:
                png = encode_png(item.image)
            except (OSError, SyntaxError) as error:
                scores[index] = Score(None, error=f"the image cannot be read: {error}")
                continue
            if self._cache is not None:
                keys[index] = cache_key(item, png, self.spec.name, self.spec.version)
                scores[index] = self._cache.get(keys[index])
            if scores[index] is None:
                asked.append((index, WireItem.pack(item, png)))
        size = self.settings.batch_size
        batches = [asked[start : start + size] for start in range(0, len(asked), size)]
        for batch, answers in zip(batches, self._ask_all(batches), strict=True):
            for (index, _), score in zip(batch, answers, strict=True):
                scores[index] = score
                if self._cache is not None:
                    self._cache.put(keys[index], score)
        answered = [score for score in scores if score is not None]
        assert len(answered) == len(items)
        return answered

    def _ask_all(self, batches: Sequence[Sequence[tuple[int, WireItem]]]) -> list[list[Score]]:
        if not batches:
            return []
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            return list(pool.map(lambda batch: self._ask([item for _, item in batch]), batches))

    def _ask(self, items: list[WireItem]) -> list[Score]:
        """The scores of one batch, or the same error for each of its items."""
        request = ScoreRequest(scorer=self.spec.name, items=items)
        try:
            body = self._call("POST", "/v1/score", request.model_dump_json().encode())
            return self._read(body, [item.sample_id for item in items])
        except (ServiceError, SchemaError) as error:
            return [Score(None, error=f"{self.url}: {error}") for _ in items]

    def _read(self, body: bytes, sample_ids: list[str]) -> list[Score]:
        response = parse(ScoreResponse, body)
        if (response.scorer, response.version) != (self.spec.name, self.spec.version):
            raise SchemaError(
                f"answered as {response.scorer!r} version {response.version}, the run began with "
                f"{self.spec.name!r} version {self.spec.version}"
            )
        if [score.sample_id for score in response.scores] != sample_ids:
            raise SchemaError("answered for other samples than those asked for")
        return [score.unpack() for score in response.scores]

    def _find(self, name: str | None) -> Any:
        """The scorer's entry in ``/v1/health``, once the server is ready."""
        end = time.monotonic() + self.settings.deadline
        while True:
            try:
                health = parse(Health, self._call("GET", "/v1/health", None))
            except SchemaError as error:
                raise ServiceError(f"{self.url}/v1/health: {error}") from None
            if health.ready:
                break
            if time.monotonic() > end:
                raise ServiceError(f"{self.url} was not ready in {self.settings.deadline:g} s")
            time.sleep(0.2)
        found = [info for info in health.scorers if name in (None, info.name)]
        if len(found) != 1:
            names = [info.name for info in health.scorers]
            raise ServiceError(
                f"{self.url} has the scorers {names}, wanted {name or 'the only one'}"
            )
        return found[0]

    # One call: attempts, each in time -------------------------------------------------------------

    def _call(self, method: str, path: str, body: bytes | None) -> bytes:
        """The body of a 200 answer.

        Raises:
            ServiceError: a final answer of another kind, or the attempts or the time are used up.
        """
        end = time.monotonic() + self.settings.deadline
        attempt, problem = 0, ""
        send = partial(self._send, method=method, path=path, body=body)
        for attempt in range(1, self.settings.attempts + 1):
            try:
                status, answer = _within(end - time.monotonic(), send, self._connect)
                if status == 200:
                    return answer
                problem = f"status {status}: {_message(answer)}"
                if status not in RETRIED:
                    raise ServiceError(problem)
            except _Retry as failure:
                problem = str(failure)
            pause = min(self.settings.backoff * 2.0 ** (attempt - 1), self.settings.max_backoff)
            pause *= self._random.uniform(0.5, 1.5)
            if attempt == self.settings.attempts or time.monotonic() + pause >= end:
                break
            time.sleep(pause)
        raise ServiceError(f"no answer after {attempt} attempts; the last: {problem}")

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        host = self._parts.hostname
        assert host is not None
        return kind[self._parts.scheme](host, self._parts.port, timeout=timeout)

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None
    ) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        if self.settings.token:
            headers["Authorization"] = f"Bearer {self.settings.token}"
        connection.request(method, self._parts.path.rstrip("/") + path, body, headers)
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
    if isinstance(tree, dict) and isinstance(tree.get("error"), str):
        return tree["error"]
    return repr(answer[:200])
