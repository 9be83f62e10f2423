"""Flow-GRPO: draw images, score them, and raise the probability of the better ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from align.advantage import Advantages, group_advantages
from align.config import GRPOConfig, RewardModelConfig, resolve_model
from align.data.batches import EMPTY_PROMPT
from align.data.features import Features
from align.data.order import step_positions
from align.data.rows import iterate_prompts
from align.engine import BatchPlan
from align.mmdit.adapters import ModelAdapter, image_to_uint8, load_adapter
from align.objectives.flow_grpo import FlowGRPO, TransitionBatch
from align.preflight import check_kl, check_replay, check_rewards
from align.rollout import Group, Rollout, draw_rollout
from align.run import RunResult
from align.trainer import Trainer
from annotate.records import Prompt
from rewards.base import RewardItem, Score, Scorer
from rewards.failures import RewardSource

__all__ = ["train_grpo"]


def train_grpo(config: GRPOConfig, scorer: Scorer | RewardSource | None = None) -> RunResult:
    """Flow-GRPO; continues where a killed run of this configuration stood.

    Args:
        scorer: gives the rewards instead of ``config.reward``; a `RewardSource` also says what is
            done about samples that could not be scored, a plain scorer stops the run.

    Raises:
        ValueError, FileNotFoundError: unusable prompts, model, run folder, or a reward model whose
            held-out accuracy is below the gate; names the path.
        PreflightError: the first rollout is not fit to learn from.
        ScoringError: the scorer failed; names the sample.
        OSError: something cannot be written; earlier checkpoints are kept.
    """
    trainer = Trainer(config, "grpo")
    if trainer.run.is_finished:
        return trainer.run.result()
    prompts = list(iterate_prompts(config.prompts, config.splits))
    if not prompts:
        raise ValueError(f"{config.prompts} has no prompts of the splits {list(config.splits)}")
    facts: dict[str, Any] = {}
    if scorer is None:
        scorer, facts = open_reward(config.reward, str(trainer.engine.device))
    source = scorer if isinstance(scorer, RewardSource) else RewardSource(scorer)
    spec = source.scorer.spec
    trainer.begin(
        data={"path": str(config.prompts), "prompts": len(prompts)},
        reward={"name": spec.name, "version": spec.version, **facts},
    )
    loop = GRPOLoop(config, trainer, source, prompts)
    return trainer.fit(loop.train_step)


def open_reward(
    config: RewardModelConfig | None, device: str
) -> tuple[Scorer | RewardSource, dict[str, Any]]:
    """The reward that the settings name, once it has passed its gate, and facts for run.json."""
    if config is None:
        raise ValueError("GRPO needs a reward: give reward.path, the folder of a reward model")
    if config.path.suffix in (".yaml", ".yml"):
        from rewards.scorers.build import open_mix

        if config.weights:
            raise ValueError(
                f"the weights of {config.path} are in it; reward.weights must be empty"
            )
        source, _ = open_mix(config.path)
        return source, {"path": str(config.path)}
    from rewards.evaluate import require_accuracy
    from rewards.scorers import load_scorer

    report = require_accuracy(config.path, config.min_accuracy)
    base = None if config.base is None else resolve_model(config.base)
    scorer = load_scorer(config.path, base=base, device=device)
    unknown = sorted(config.weights.keys() - set(scorer.spec.components))
    if unknown:
        raise ValueError(
            f"reward.weights names {unknown}; {config.path} scores {list(scorer.spec.components)}"
        )
    return scorer, {"path": str(config.path), "accuracy": report["accuracy"]}


class GRPOLoop:
    """One rollout, then ``updates_per_rollout`` optimizer steps on it, again and again.

    Each process draws, scores and trains whole groups of its own, so that advantages need no
    exchange between processes.
    """

    def __init__(
        self, config: GRPOConfig, trainer: Trainer, source: RewardSource, prompts: Sequence[Prompt]
    ) -> None:
        self.config = config
        self.trainer = trainer
        self.engine = trainer.engine
        self.source = source
        self.scorer = source.scorer
        self.prompts = prompts
        images = config.prompts_per_step * config.group_size // config.updates_per_rollout
        if config.prompts_per_step % self.engine.world:
            raise ValueError(
                f"prompts_per_step {config.prompts_per_step} cannot be shared by "
                f"{self.engine.world} processes"
            )
        self.plan = BatchPlan.make(
            images * config.rollout.window,
            config.micro_batch_size,
            self.engine.world,
            self.engine.rank,
        )
        self.features: Features = trainer.encoder().encode(
            [], [EMPTY_PROMPT, *(prompt.text for prompt in prompts)]
        )
        self.policy = trainer.build_policy(
            self.plan.accumulation,
            self.plan.micro,
            reference="copy" if config.objective.beta else "none",
        )
        self.objective = FlowGRPO(
            noise_level=config.rollout.noise_level,
            clip_range=config.objective.clip_range,
            beta=config.objective.beta,
        )
        self.is_checked = False
        self._rollout: Rollout
        self._advantages: Tensor
        self._log_prob: Tensor

    def train_step(self, step: int) -> dict[str, float]:
        """Optimizer step ``step`` (from 1), after a new rollout where one is due."""
        iteration, update = divmod(step - 1, self.config.updates_per_rollout)
        figures = self._roll(iteration + 1) if update == 0 else {}
        batches = list(self._batches(update))
        metrics = self.engine.train_step(
            step, batches, lambda batch: self.objective.loss(self.policy, batch)
        )
        return metrics | figures

    def _roll(self, iteration: int) -> dict[str, float]:
        """Draw and score; returns the rewards' figures over all processes."""
        self.engine.model.eval()
        rollout = draw_rollout(
            self.policy,
            self.features,
            self._groups(iteration),
            self.config.rollout,
            self.config.seed,
            iteration,
        )
        scores = self._score(rollout)
        known = torch.tensor([score is not None for score in scores])
        rewards = torch.tensor([self._reward(s) if s is not None else torch.nan for s in scores])
        objective = self.config.objective
        advantages = group_advantages(
            rewards.view(len(rollout.groups), -1),
            min_std=objective.min_reward_std,
            clip=objective.advantage_clip,
            known=known.view(len(rollout.groups), -1),
        )
        self._rollout = rollout
        self._advantages = advantages.values.flatten().to(self.engine.device)
        self._log_prob = rollout.log_prob
        if self.config.recompute_log_probs or self.config.rollout.guidance_scale > 1:
            self._recompute_log_prob()
        figures = self._figures(scores, advantages)
        if not self.is_checked:
            self._preflight(advantages, figures["frac_reward_zero_std"])
        return figures

    def _groups(self, iteration: int) -> list[Group]:
        """This process's groups of an iteration."""
        config = self.config
        positions = step_positions(
            config.seed, len(self.prompts), config.prompts_per_step, iteration
        )
        share = config.prompts_per_step // self.engine.world
        own = positions[self.engine.rank * share :][:share]
        return [Group(self.prompts[p.item], p.epoch, config.group_size) for p in own]

    # Training on a rollout ------------------------------------------------------------------------

    def _places(self, update: int) -> list[tuple[int, int]]:
        """(image, step of the window) of one update: an equal part of every group."""
        updates, size = self.config.updates_per_rollout, self.config.group_size
        images = [
            image
            for image in range(len(self._rollout.sample_ids))
            if image % size % updates == update
        ]
        return [(image, w) for image in images for w in range(self.config.rollout.window)]

    def _batches(self, update: int) -> Iterator[TransitionBatch]:
        places = self._places(update)
        for start in range(0, len(places), self.plan.micro):
            images, steps = zip(*places[start : start + self.plan.micro], strict=True)
            yield self._rollout.transitions(images, steps, self._advantages, self._log_prob)

    @torch.no_grad()
    def _recompute_log_prob(self) -> None:
        """Log-probabilities under the policy that trains, in the batches in which it trains."""
        recomputed = torch.empty_like(self._rollout.log_prob)
        for update in range(self.config.updates_per_rollout):
            places = iter(self._places(update))
            for batch in self._batches(update):
                for value in self.objective.log_prob(self.policy, batch):
                    recomputed[next(places)] = value
        self._log_prob = recomputed

    def _preflight(self, advantages: Advantages, fraction_equal: float) -> None:
        batch = next(self._batches(0))
        figures = check_rewards(advantages, fraction_equal)
        figures |= check_replay(self.objective, self.policy, batch, self.config.ratio_tolerance)
        if self.objective.beta > 0:
            figures |= check_kl(self.objective, self.policy, batch, self.engine)
        if self.engine.is_main:
            self.trainer.run.update(preflight=figures)
        self.is_checked = True

    # Rewards --------------------------------------------------------------------------------------

    def _score(self, rollout: Rollout) -> list[Score | None]:
        """One score an image; None for an image that is to be left out."""
        latents = rollout.latents.float().cpu()
        images: Sequence[Any] = [None] * len(latents)
        if "latents" not in self.scorer.spec.needs:
            images, latents = self._decode(rollout.latents), [None] * len(latents)
        groups = [group for group in rollout.groups for _ in range(group.size)]
        items = [
            RewardItem(
                sample_id=sample_id,
                group_id=group.id,
                prompt=group.prompt.text,
                image=image,
                latents=row,
                metadata=group.prompt.metadata,
            )
            for sample_id, group, image, row in zip(
                rollout.sample_ids, groups, images, latents, strict=True
            )
        ]
        return self.source.score(items)

    def _reward(self, score: Score) -> float:
        weights = self.config.reward.weights if self.config.reward else {}
        if not weights:
            assert score.value is not None
            return score.value
        total = sum(weight * score.components[name] for name, weight in weights.items())
        return total / sum(weights.values())

    def _figures(self, scores: Sequence[Score | None], advantages: Advantages) -> dict[str, float]:
        found = [score for score in scores if score is not None]
        figures = {
            "reward/frac_failed": 1 - len(found) / len(scores),
            "reward": advantages.reward,
            "reward_std": advantages.reward_std,
            "frac_reward_zero_std": advantages.frac_reward_zero_std,
        }
        for name in self.scorer.spec.components:
            values = [score.components[name] for score in found if name in score.components]
            if len(values) == len(found):
                figures[f"reward/{name}"] = sum(values) / len(values)
        return self.engine.mean(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
        )

    @cached_property
    def _decoder(self) -> ModelAdapter:
        config = self.config
        dtype = getattr(torch, config.dtype)
        device = self.engine.device
        return load_adapter(self.trainer.model, dtype=dtype, device=device, parts=("vae",))

    @torch.no_grad()
    def _decode(self, latents: Tensor) -> list[Any]:
        from PIL import Image

        images = []
        for part in latents.split(16):
            pixels = image_to_uint8(self._decoder.decode_latents(part))
            images.extend(Image.fromarray(array) for array in pixels.numpy())
        return images
