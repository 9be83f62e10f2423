"""Scores that are known already, in memory and, where a folder is given, on disk."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from rewards.base import RewardItem, Score
from rewards.service.schema import WireScore

__all__ = ["ScoreCache", "cache_key"]


def cache_key(
    item: RewardItem, png: bytes, scorer: str, version: str, source_pngs: Sequence[bytes] = ()
) -> str:
    """Names a score by all that it depends on.

    That is the prompt, the metadata, the bytes of the image and of each source image in its order,
    and the scorer's name and version; the version holds its weights and configuration.
    """
    metadata = json.dumps(dict(item.metadata), sort_keys=True, ensure_ascii=False, default=str)
    image, *sources = (hashlib.sha256(data).hexdigest() for data in (png, *source_pngs))
    parts = (item.prompt, metadata, image, scorer, version, *sources)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class ScoreCache:
    """Least recently used scores by `cache_key`. Errors are never kept.

    Args:
        max_entries: in memory.
        path: SQLite file that several runs of one machine may share; None keeps nothing.
    """

    def __init__(self, max_entries: int = 100_000, path: Path | None = None):
        if max_entries < 1:
            raise ValueError(f"max_entries must be at least 1, got {max_entries}")
        self._max_entries = max_entries
        self._scores: OrderedDict[str, Score] = OrderedDict()
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, check_same_thread=False, timeout=30)
            with self._database:
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, score TEXT NOT NULL)"
                )

    def get(self, key: str) -> Score | None:
        with self._lock:
            if key in self._scores:
                self._scores.move_to_end(key)
                return self._scores[key]
            if self._database is None:
                return None
            row = self._database.execute("SELECT score FROM scores WHERE key = ?", [key]).fetchone()
            if row is None:
                return None
            try:
                score = WireScore.model_validate_json(row[0]).unpack()
            except ValidationError:
                return None  # written by another version: it is scored again and replaced
            self._remember(key, score)
            return score

    def put(self, key: str, score: Score) -> None:
        if score.error is not None:
            return
        with self._lock:
            self._remember(key, score)
            if self._database is not None:
                text = WireScore.pack("", score).model_dump_json()
                with self._database:
                    self._database.execute(
                        "INSERT OR REPLACE INTO scores VALUES (?, ?)", [key, text]
                    )

    def _remember(self, key: str, score: Score) -> None:
        self._scores[key] = score
        self._scores.move_to_end(key)
        if len(self._scores) > self._max_entries:
            self._scores.popitem(last=False)
