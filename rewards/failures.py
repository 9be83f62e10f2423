"""What a run does about an item that could not be scored. It never becomes a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from rewards.base import RewardItem, Score, Scorer, ScoringError

if TYPE_CHECKING:
    from rewards.monitors import RewardMonitor

__all__ = ["OnFailure", "RewardSource"]

OnFailure = Literal["raise", "drop_sample", "drop_group"]

_FEW = 50
"""Items before which a rate of failures says little."""


@dataclass
class RewardSource:
    """A scorer and what is done when it fails.

    - ``raise``: the run stops at the first failure and names the sample.
    - ``drop_sample``: the sample is masked out of its group's mean and deviation.
    - ``drop_group``: so is its whole group.

    With the last two the run stops when more than ``max_failure_rate`` of all items have failed.
    """

    scorer: Scorer
    on_failure: OnFailure = "raise"
    max_failure_rate: float = 0.02
    monitor: RewardMonitor | None = None
    """Looks at what is scored; its items need images."""
    figures: dict[str, float] = field(default_factory=dict, init=False)
    """What the monitor made of the last rollout."""
    kept: list[Score | None] = field(default_factory=list, init=False)
    """What the last `score` returns, or would have, had the monitor not stopped the run."""
    num_items: int = field(default=0, init=False)
    num_failed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.on_failure not in get_args(OnFailure):
            choices = ", ".join(get_args(OnFailure))
            raise ValueError(f"on_failure must be one of {choices}, got {self.on_failure!r}")
        if not 0.0 <= self.max_failure_rate < 1.0:
            raise ValueError(
                f"max_failure_rate must be at least 0 and below 1, got {self.max_failure_rate}"
            )

    def score(self, items: Sequence[RewardItem]) -> list[Score | None]:
        """One score with a value per item, or None for an item that must be left out.

        Raises:
            ScoringError: the scorer broke its contract, does not apply to an item, failed on one
                under ``raise``, or has failed too often; the message names the sample.
            rewards.monitors.HackingAlarm: the monitor stops the run.
        """
        name = self.scorer.spec.name
        scores = self.scorer.score(items)
        if len(scores) != len(items):
            raise ScoringError(
                f"scorer {name!r} returned {len(scores)} scores for {len(items)} items"
            )
        failed: dict[int, str] = {}
        for index, (item, score) in enumerate(zip(items, scores, strict=True)):
            if score.error is not None:
                failed[index] = score.error
            elif score.value is None:
                raise ScoringError(
                    f"scorer {name!r} says that it does not apply to sample {item.sample_id!r} "
                    f"({item.prompt!r}): a reward is needed for every image"
                )
        self._count(items, failed)
        dropped = {items[index].group_id for index in failed}
        kept: list[Score | None] = [
            None
            if index in failed or (self.on_failure == "drop_group" and item.group_id in dropped)
            else score
            for index, (item, score) in enumerate(zip(items, scores, strict=True))
        ]
        if failed and not any(kept):
            first = items[min(failed)].sample_id
            raise ScoringError(
                f"no sample of {len(items)} is left after scorer {name!r} failed; the first was "
                f"{first!r}: {failed[min(failed)]}"
            )
        self.kept = kept
        if self.monitor is not None:
            self.figures = self.monitor.observe(items, kept)
        return kept

    def _count(self, items: Sequence[RewardItem], failed: dict[int, str]) -> None:
        self.num_items += len(items)
        self.num_failed += len(failed)
        if not failed:
            return
        index, error = next(iter(failed.items()))
        said = (
            f"scorer {self.scorer.spec.name!r} failed on sample {items[index].sample_id!r}: {error}"
        )
        if self.on_failure == "raise":
            raise ScoringError(said)
        rate = self.num_failed / self.num_items
        if self.num_items >= _FEW and rate > self.max_failure_rate:
            raise ScoringError(
                f"{self.num_failed} of {self.num_items} items failed, which is more than "
                f"max_failure_rate {self.max_failure_rate:g} allows; the last: {said}"
            )
