"""Settings of what a run watches while it trains."""

from __future__ import annotations

from pydantic import Field

from align.data_config import Positive
from annotate.settings import Config

__all__ = ["DivergenceConfig"]


class DivergenceConfig(Config):
    """Stops a run whose gradients have grown, with the batch kept for ``winsome replay``. A loss
    that is not finite always does."""

    factor: float = Field(default=100.0, ge=0)
    """A gradient norm this many times the median of the last steps is too large; 0: none is."""
    steps: Positive = 3
    """So many too large ones in a row stop the run: a single spike is what clipping is for."""
    window: Positive = 50
    """Steps of which the median is; before half as many there is no limit."""
