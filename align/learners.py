"""What an online objective makes of a rollout: batches to train on, their loss, their preflight.

`StepLearner` trains the stochastic steps (Flow-GRPO, GRPO-Guard, Flow-DPPO), `ImageLearner` the
drawn images (DiffusionNFT, AWM), `PairLearner` the best and the worst of each group (online DPO).
All see whole groups of one process, and the same number of units on each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from align.config import DPOObjectiveConfig, GRPOConfig, GRPOObjectiveConfig
from align.data.draws import Draws
from align.engine import BatchPlan, Engine
from align.mmdit.adapters import Conditioning
from align.mmdit.flow import interpolate
from align.objectives.base import LossOutput, finish_parts
from align.objectives.diffusion_dpo import DiffusionDPO, PairBatch
from align.objectives.flow_grpo import FlowGRPO, TransitionBatch
from align.objectives.matching import AWM, DiffusionNFT, SampleBatch, sample_velocity
from align.policy import Policy
from align.preflight import check_kl, check_replay
from align.rollout import Rollout

__all__ = [
    "ImageLearner",
    "Learner",
    "PairLearner",
    "StepLearner",
    "learner_class",
    "online_objective",
]

B = TypeVar("B", TransitionBatch, SampleBatch, PairBatch)
Place = tuple[int, int]
VARIANTS = {"flow_grpo": "grpo", "grpo_guard": "guard", "flow_dppo": "dppo"}
"""The objective of each algorithm that trains steps."""


class Learner(ABC, Generic[B]):
    """Takes a rollout with its advantages, then gives the batches of its updates."""

    what: str
    """What a unit of training is, for messages."""

    def __init__(self, config: GRPOConfig, policy: Policy, engine: Engine, plan: BatchPlan) -> None:
        self.config = config
        self.policy = policy
        self.engine = engine
        self.plan = plan
        self.rollout: Rollout
        self._advantages: Tensor
        self._keep: Tensor

    @classmethod
    @abstractmethod
    def units(cls, config: GRPOConfig) -> int:
        """What one optimizer step trains on, over all processes."""

    def take(self, rollout: Rollout, advantages: Tensor, keep: Tensor, rewards: Tensor) -> None:
        """Train on this rollout from now on.

        Args:
            advantages: ``(N,)``, on the device.
            keep: ``(N,)`` bool, False in dropped groups and for images without a reward.
            rewards: ``(groups, group_size)``, NaN where there is none.
        """
        self.rollout, self._advantages, self._keep = rollout, advantages, keep

    @abstractmethod
    def places(self, update: int) -> list[Place]:
        """Names of the units of one update on this process, in order."""

    @abstractmethod
    def batch(self, places: Sequence[Place]) -> B: ...

    @abstractmethod
    def loss(self, batch: B) -> LossOutput: ...

    @abstractmethod
    def probe(self, batch: B) -> tuple[Tensor, Tensor, Conditioning]:
        """``x_t, sigma, cond`` at which a batch asks the policy."""

    def check(self) -> dict[str, Any]:
        """The preflight of this objective's own; raises `PreflightError`."""
        return {}

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics of a step as they are logged."""
        return metrics

    def batches(self, update: int) -> Iterator[B]:
        """The micro-batches of one update."""
        places = self.places(update)
        for start in range(0, len(places), self.plan.micro):
            yield self.batch(places[start : start + self.plan.micro])

    def _images(self, update: int) -> list[int]:
        """Images of one update: an equal part of every group."""
        updates, size = self.config.updates_per_rollout, self.config.group_size
        return [i for i in range(len(self.rollout.sample_ids)) if i % size % updates == update]


# Steps --------------------------------------------------------------------------------------------


class StepLearner(Learner[TransitionBatch]):
    what = "sampling steps"

    def __init__(self, config: GRPOConfig, policy: Policy, engine: Engine, plan: BatchPlan) -> None:
        super().__init__(config, policy, engine, plan)
        self.objective = step_objective(config)

    @classmethod
    def units(cls, config: GRPOConfig) -> int:
        images = config.prompts_per_step * config.group_size // config.updates_per_rollout
        return images * config.rollout.window

    def take(self, rollout: Rollout, advantages: Tensor, keep: Tensor, rewards: Tensor) -> None:
        super().take(rollout, advantages, keep, rewards)
        if self.config.recompute_log_probs or self.config.rollout.guidance_scale > 1:
            self._recompute()

    def places(self, update: int) -> list[Place]:
        """Step after step: a micro-batch as large as a batch of the rollout has its very rows."""
        window = range(self.config.rollout.window)
        return [(image, step) for step in window for image in self._images(update)]

    def batch(self, places: Sequence[Place]) -> TransitionBatch:
        images, steps = zip(*places, strict=True)
        return self.rollout.transitions(images, steps, self._advantages)

    def loss(self, batch: TransitionBatch) -> LossOutput:
        return self.objective.loss(self.policy, batch)

    def probe(self, batch: TransitionBatch) -> tuple[Tensor, Tensor, Conditioning]:
        return batch.x_t, batch.sigma, batch.cond

    def check(self) -> dict[str, Any]:
        places, batches, seen = self.places(0), [], set[int]()
        for start in range(0, len(places), self.plan.micro):
            part = places[start : start + self.plan.micro]
            steps = {step for _, step in part}
            if not steps <= seen:  # the first micro-batch with each step of the window
                batches.append(self.batch(part))
                seen |= steps
        tolerance = self.config.ratio_tolerance
        figures = check_replay(self.objective, self.policy, batches, self.engine, tolerance)
        if self.objective.beta > 0:
            figures |= check_kl(self.objective, self.policy, batches[0], self.engine)
        return figures

    @torch.no_grad()
    def _recompute(self) -> None:
        """Log-probabilities and means under the policy that trains, in its own batches."""
        for update in range(self.config.updates_per_rollout):
            places = iter(self.places(update))
            for batch in self.batches(update):
                for log_prob, mean in zip(*self.objective.replay(self.policy, batch), strict=True):
                    image, step = next(places)
                    self.rollout.log_prob[image, step] = log_prob
                    self.rollout.mean[image, step] = mean


# Images -------------------------------------------------------------------------------------------


class ImageLearner(Learner[SampleBatch]):
    what = "noised images"

    def __init__(self, config: GRPOConfig, policy: Policy, engine: Engine, plan: BatchPlan) -> None:
        super().__init__(config, policy, engine, plan)
        self.objective = image_objective(config.objective)
        self._draws = _draws(config, policy)
        self._old: dict[Place, Tensor] = {}

    @classmethod
    def units(cls, config: GRPOConfig) -> int:
        images = config.prompts_per_step * config.group_size // config.updates_per_rollout
        return images * config.objective.draws

    @torch.no_grad()
    def take(self, rollout: Rollout, advantages: Tensor, keep: Tensor, rewards: Tensor) -> None:
        """The velocities of the policy that drew are kept; it must be the one that computes now."""
        super().take(rollout, advantages, keep, rewards)
        self._old = {}
        for update in range(self.config.updates_per_rollout):
            places = self.places(update)
            for start in range(0, len(places), self.plan.micro):
                part = places[start : start + self.plan.micro]
                velocity = sample_velocity(self.policy, self.batch(part))
                self._old |= dict(zip(part, velocity, strict=True))

    def places(self, update: int) -> list[Place]:
        draws = range(self.config.objective.draws)
        return [(image, draw) for image in self._images(update) for draw in draws]

    def batch(self, places: Sequence[Place]) -> SampleBatch:
        images, draws = (list(column) for column in zip(*places, strict=True))
        ids = [f"train/{self.rollout.sample_ids[image]}" for image in images]
        latents = self.rollout.latents[images]
        device = latents.device
        noise = self._draws.noise(ids, draws).to(device)
        known = [self._old.get(place) for place in places]
        stored = [row for row in known if row is not None]
        return SampleBatch(
            latents=latents,
            cond=self.rollout.cond.select(images),
            noise=noise,
            sigma=self._draws.spread_sigma(ids, draws, self.config.objective.draws).to(device),
            advantages=self._advantages[images],
            keep=self._keep[images],
            old_velocity=torch.stack(stored) if stored else torch.zeros_like(noise),
        )

    def loss(self, batch: SampleBatch) -> LossOutput:
        return self.objective.loss(self.policy, batch)

    def probe(self, batch: SampleBatch) -> tuple[Tensor, Tensor, Conditioning]:
        return interpolate(batch.latents, batch.noise, batch.sigma), batch.sigma, batch.cond


# Pairs --------------------------------------------------------------------------------------------


class PairLearner(Learner[PairBatch]):
    what = "noised pairs"

    def __init__(self, config: GRPOConfig, policy: Policy, engine: Engine, plan: BatchPlan) -> None:
        super().__init__(config, policy, engine, plan)
        self.objective = pair_objective(config.objective.dpo)
        self._draws = _draws(config, policy)
        self._pairs: list[Place] = []

    @classmethod
    def units(cls, config: GRPOConfig) -> int:
        return config.prompts_per_step * config.objective.draws

    def take(self, rollout: Rollout, advantages: Tensor, keep: Tensor, rewards: Tensor) -> None:
        """The best and the worst of each group; a dropped group has neither, and weighs 0."""
        super().take(rollout, advantages, keep, rewards)
        size = self.config.group_size
        best = rewards.nan_to_num(-torch.inf).argmax(1).tolist()
        worst = rewards.nan_to_num(torch.inf).argmin(1).tolist()
        ends = zip(best, worst, strict=True)
        self._pairs = [(g * size + best, g * size + worst) for g, (best, worst) in enumerate(ends)]

    def places(self, update: int) -> list[Place]:
        draws = range(self.config.objective.draws)
        return [(group, draw) for group in range(len(self.rollout.groups)) for draw in draws]

    def batch(self, places: Sequence[Place]) -> PairBatch:
        groups, draws = (list(column) for column in zip(*places, strict=True))
        best, worst = (list(c) for c in zip(*(self._pairs[g] for g in groups), strict=True))
        ids = [f"train/{self.rollout.groups[group].id}" for group in groups]
        device = self.rollout.latents.device
        return PairBatch(
            chosen=self.rollout.latents[best],
            rejected=self.rollout.latents[worst],
            cond=self.rollout.cond.select(best),
            noise=self._draws.noise(ids, draws).to(device),
            sigma=self._draws.spread_sigma(ids, draws, self.config.objective.draws).to(device),
            weights=self._keep[best].float(),
        )

    def loss(self, batch: PairBatch) -> LossOutput:
        return self.objective.loss(self.policy, batch)

    def probe(self, batch: PairBatch) -> tuple[Tensor, Tensor, Conditioning]:
        return interpolate(batch.chosen, batch.noise, batch.sigma), batch.sigma, batch.cond

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        return finish_parts(metrics)


# Objectives ---------------------------------------------------------------------------------------


def online_objective(config: GRPOConfig) -> FlowGRPO | DiffusionNFT | AWM | DiffusionDPO:
    """What the settings describe."""
    if config.objective.trains_steps:
        return step_objective(config)
    if config.objective.algorithm == "online_dpo":
        return pair_objective(config.objective.dpo)
    return image_objective(config.objective)


def step_objective(config: GRPOConfig) -> FlowGRPO:
    return FlowGRPO(
        noise_level=config.rollout.noise_level,
        clip_range=config.objective.clip_range,
        beta=config.objective.beta,
        sde=config.rollout.sde,
        variant=VARIANTS[config.objective.algorithm],
    )


def image_objective(config: GRPOObjectiveConfig) -> DiffusionNFT | AWM:
    if config.algorithm == "nft":
        return DiffusionNFT(config.strength, config.advantage_clip, config.beta)
    return AWM(config.clip_range, config.beta, config.weighting)


def pair_objective(dpo: DPOObjectiveConfig) -> DiffusionDPO:
    return DiffusionDPO(
        beta=dpo.beta if dpo.beta or dpo.beta_sum else 2000.0,
        beta_sum=dpo.beta_sum,
        loss_type=dpo.loss_type,
        label_smoothing=dpo.label_smoothing,
        rejected_weight=dpo.rejected_weight,
        anchor_weight=dpo.anchor_weight,
        anchor_tolerance=dpo.anchor_tolerance,
        sft_weight=dpo.sft_weight,
    )


def learner_class(config: GRPOObjectiveConfig) -> type[Learner[Any]]:
    if config.trains_steps:
        return StepLearner
    return PairLearner if config.algorithm == "online_dpo" else ImageLearner


def _draws(config: GRPOConfig, policy: Policy) -> Draws:
    shape = policy.adapter.latent_shape(config.rollout.height, config.rollout.width)
    return Draws.for_latents(config.seed, shape, policy.adapter, config.timesteps)
