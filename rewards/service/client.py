"""A scorer that lives in another process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rewards.base import RewardItem, Score, ScorerSpec, batch_places
from rewards.service.cache import ScoreCache, cache_key
from rewards.service.calls import ClientSettings, ServiceError, call, split_url
from rewards.service.schema import (
    Health,
    SchemaError,
    ScoreRequest,
    ScoreResponse,
    WireItem,
    encode_png,
    encode_sources,
    parse,
)

__all__ = ["ClientSettings", "RemoteScorer", "ServiceError"]


class RemoteScorer:
    """Scores by a reward server.

    A batch that got no usable answer within its deadline is an error on each of its items, with the
    cause; it is never a number. What may pass is tried again (see `rewards.service.calls`);
    an answer that breaks the contract (no JSON, NaN, another scorer or version, other samples) is
    a failure at once, since the same server would say the same again.

    Args:
        url: of the server, e.g. ``http://127.0.0.1:8100``.
        scorer: the scorer's name there; None takes the only one.
        cache: scores that are known already are not asked for; without effect on a scorer that
            scores by group, whose groups also stay together in one request.

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
        self.url, self._server = url, split_url(url)
        self.settings = settings or ClientSettings()
        self._cache = cache
        info = self._find(scorer)
        self.spec = ScorerSpec(
            name=info.name,
            version=info.version,
            components=tuple(info.components),
            needs=frozenset({"image"}),
            backbone=info.backbone,
            groupwise=info.groupwise,
        )
        if info.groupwise:  # a score then depends on more than the cache's key names
            self._cache = None

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """One score per item, in order; see `rewards.base.Scorer`."""
        scores: list[Score | None] = [None] * len(items)
        keys: list[str] = [""] * len(items)
        asked: list[tuple[int, WireItem]] = []
        for index, (item, sources) in enumerate(zip(items, encode_sources(items), strict=True)):
            if isinstance(sources, str):
                scores[index] = Score(None, error=sources)
                continue
            if item.image is None:
                scores[index] = Score(None, error="a remote scorer needs an image, there is none")
                continue
            try:
                png = encode_png(item.image)
            except (OSError, SyntaxError) as error:
                scores[index] = Score(None, error=f"the image cannot be read: {error}")
                continue
            if self._cache is not None:
                keys[index] = cache_key(item, png, self.spec.name, self.spec.version, sources)
                scores[index] = self._cache.get(keys[index])
            if scores[index] is None:
                asked.append((index, WireItem.pack(item, png, sources)))
        rows = [items[index] for index, _ in asked]
        places = batch_places(rows, self.settings.batch_size, self.spec.groupwise)
        batches = [[asked[place] for place in batch] for batch in places]
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
            content = request.model_dump_json().encode()
            body = call(self._server, "POST", "/v1/score", content, self.settings)
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
                answer = call(self._server, "GET", "/v1/health", None, self.settings)
                health = parse(Health, answer)
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
