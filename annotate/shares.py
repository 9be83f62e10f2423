"""Shares of blind comparisons that were won, and what is certain of them. No numpy: it travels with
the records of a snapshot."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

__all__ = ["WinRate", "wilson", "win_rate"]


@dataclass(frozen=True)
class WinRate:
    """Share of blind comparisons that were won, a tie being half."""

    value: float
    """The mean over prompts of their own shares: one compared often counts once."""
    ci_low: float
    ci_high: float
    """Of the 95 % interval over prompts (`wilson`)."""


def win_rate(outcomes: Iterable[tuple[str, float]]) -> WinRate:
    """Of (prompt, 1 where won, a half where tied, else 0), in any order; at least one."""
    of_prompt: dict[str, list[float]] = defaultdict(list)
    for prompt, outcome in outcomes:
        of_prompt[prompt].append(outcome)
    value = fmean(fmean(shares) for shares in of_prompt.values())
    return WinRate(value, *wilson(value, len(of_prompt)))


def wilson(share: float, trials: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share of ``trials`` independent trials.

    E. B. Wilson, "Probable inference" (JASA 1927). It keeps its width where all was won or lost. A
    trial may be a mean in [0, 1], such as a prompt's: its variance is at most a coin's, and so the
    interval is rather too wide than too narrow.
    """
    squared = 1.959963984540054**2
    centre = (share + squared / (2 * trials)) / (1 + squared / trials)
    spread = math.sqrt(squared * (share * (1 - share) + squared / (4 * trials)) / trials)
    half = spread / (1 + squared / trials)
    return max(0.0, centre - half), min(1.0, centre + half)
