"""What a run learns about itself while it trains: a beta that adapts, a reference point, an alarm.

Each is a running mean over finished steps of a figure that is the mean over the step's whole batch.
So a step's loss depends on earlier steps alone: not on the micro-batch, nor on the process. The
numbers are part of the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from align.config import AutoBetaConfig, DPOObjectiveConfig

__all__ = ["Feedback", "RunningMean", "adapted_beta"]


@dataclass
class RunningMean:
    """Exponential moving average whose first values weigh as if the past had been like them."""

    decay: float = 0.95
    total: float = 0.0
    weight: float = 0.0

    def observe(self, value: float) -> None:
        self.total = self.decay * self.total + (1 - self.decay) * value
        self.weight = self.decay * self.weight + (1 - self.decay)

    @property
    def value(self) -> float | None:
        """None before the first observation."""
        return self.total / self.weight if self.weight else None


def adapted_beta(config: AutoBetaConfig, start: float, margin_abs: float | None) -> float:
    """beta, on the mean scale, at which the mean margin pulls with a wanted part of the gradient.

    DPO's gradient has the factor ``sigmoid(-m)``, 1/2 at the start and less for what is learnt.
    With ``m = (beta / 2) margin_abs`` it is ``target`` for ``beta = -2 logit(target) /
    margin_abs``, as in SimpleTuner's Flow-DPO. A mean margin near 0, where every run starts, would
    ask for an endless beta: the bounds hold it.

    Args:
        start: beta before the first step.
        margin_abs: mean of ``|(e_w - e_w_ref) - (e_l - e_l_ref)|``; None before the first step.
    """
    beta = start
    if margin_abs is not None:
        wanted = -2 * math.log(config.target / (1 - config.target))
        beta = wanted / margin_abs if margin_abs > 0 else math.inf
    return min(max(beta, config.lowest), config.highest)


@dataclass
class Feedback:
    """The running means of a preference run."""

    config: DPOObjectiveConfig
    margin_abs: RunningMean = field(default_factory=RunningMean)
    rewards: RunningMean = field(default_factory=RunningMean)
    chosen_delta: RunningMean = field(default_factory=RunningMean)
    chosen_reference: RunningMean = field(default_factory=RunningMean)
    alarm_step: int = 0
    """The step at which the chosen's error had risen too far; 0: it has not."""

    def beta(self, start: float) -> float:
        """On the mean scale, for the next step; ``start`` is the setting."""
        if self.config.auto_beta is None:
            return start
        return adapted_beta(self.config.auto_beta, start, self.margin_abs.value)

    @property
    def reference_point(self) -> float:
        """z of KTO: the mean implicit reward so far, not below 0 as the KL that it stands for."""
        return max(0.0, self.rewards.value or 0.0)

    @property
    def chosen_rise(self) -> float:
        """Mean change of the chosen's error, as a part of the reference's error."""
        reference = self.chosen_reference.value
        return (self.chosen_delta.value or 0.0) / reference if reference else 0.0

    def observe(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take up a step's metrics; True at the one step where the alarm goes off."""
        for name, mean in (
            ("error/margin_abs", self.margin_abs),
            ("rewards/mean", self.rewards),
            ("error/chosen_delta", self.chosen_delta),
            ("error/chosen_reference", self.chosen_reference),
        ):
            if name in metrics:
                mean.observe(metrics[name])
        limit = self.config.chosen_alarm
        if not limit or self.alarm_step or self.chosen_rise <= limit:
            return False
        self.alarm_step = step
        return True

    def state_dict(self) -> dict[str, Any]:
        state = asdict(self)
        del state["config"]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, RunningMean(**value) if isinstance(value, dict) else value)
