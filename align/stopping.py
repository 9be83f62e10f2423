"""When a run stops before its last step: it gets no better, or it leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from align.watch_config import DivergenceConfig

__all__ = ["Divergence", "Patience"]


@dataclass
class Patience:
    """Early stopping on a loss that is measured now and then; part of the checkpoint."""

    patience: int = 0
    """Measurements without a new lowest loss after which to stop; 0: never."""
    min_delta: float = 0.0
    """A new lowest loss is lower by at least this part of the old one."""
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    """Measurements since the lowest."""

    def observe(self, step: int, loss: float) -> None:
        if self.best is None or loss < self.best * (1 - self.min_delta):
            self.best, self.best_step, self.stale = loss, step, 0
        else:
            self.stale += 1

    @property
    def is_exhausted(self) -> bool:
        return 0 < self.patience <= self.stale


@dataclass
class Divergence:
    """Looks at the gradient norm of every step, before clipping.

    One large norm is a spike, which clipping takes care of; ``config.steps`` of them in a row are a
    run that leaves. The norm is the same on all processes, so all find the same.
    """

    config: DivergenceConfig
    norms: list[float] = field(default_factory=list)
    """Of the last ``config.window`` steps."""
    above: int = 0
    """Steps in a row, up to now, whose norm was above the limit."""

    def observe(self, norm: float) -> float | None:
        """Take up a step's norm; the limit, once it was exceeded too often in a row."""
        limit = self._limit()
        self.above = self.above + 1 if norm > limit else 0
        if norm > 0:  # a step from which nothing is learnt has no size to compare with
            self.norms = [*self.norms, norm][-self.config.window :]
        return limit if self.config.factor and self.above >= self.config.steps else None

    def _limit(self) -> float:
        if not self.config.factor or len(self.norms) < self.config.window // 2:
            return math.inf
        return self.config.factor * median(self.norms)

    def state_dict(self) -> dict[str, Any]:
        return {"norms": self.norms, "above": self.above}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.norms, self.above = list(state["norms"]), state["above"]
