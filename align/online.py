"""Flow-GRPO: draw images, score them, and raise the probability of the better ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from align.advantage import Advantages, decoupled_rewards, group_advantages
from align.config import GRPOConfig, RewardModelConfig, load_config, resolve_model
from align.data.batches import with_negatives
from align.data.features import Features
from align.data.rows import Request, iterate_requests, sample_id
from align.data.tasks import by_task, task_of_step
from align.data_config import ResolutionConfig
from align.decoding import Decoder
from align.engine import BatchPlan
from align.learners import Learner, learner_class
from align.mmdit.adapters import load_adapter
from align.preflight import (
    check_accumulation,
    check_batch_size,
    check_groups,
    check_ranks,
    check_rewards,
    check_weights,
)
from align.rollout import Group, Rollout, draw_rollout
from align.run import RunResult
from align.trainer import Trainer
from rewards.base import RewardItem, Score, Scorer
from rewards.contact_sheets import SHEETS, Picture, choose_groups, write_sheet
from rewards.failures import RewardSource
from rewards.monitors import HackingAlarm
from rewards.scorers.config import RewardMixConfig

__all__ = ["train_grpo"]

MIX_FILES = (".yaml", ".yml")


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
        HackingAlarm: the reward's monitor stopped the run; run.json says why.
        OSError: something cannot be written; earlier checkpoints are kept.
    """
    with Trainer(config, "grpo") as trainer:
        return _train_grpo(config, trainer, scorer)


def _train_grpo(
    config: GRPOConfig, trainer: Trainer, scorer: Scorer | RewardSource | None
) -> RunResult:
    asked = iterate_requests(config.prompts, config.splits)
    groups = [Group(p, 0, config.group_size, request.sources) for p, request in asked]
    content = sample_id(*(group.prompt.model_dump_json() for group in groups))
    facts: dict[str, Any] = {}
    _refuse_gold_that_trains(config)
    if scorer is None:
        requests = [group.request for group in groups]
        scorer, facts = open_reward(config.reward, str(trainer.engine.device), requests)
    source = scorer if isinstance(scorer, RewardSource) else RewardSource(scorer)
    spec = source.scorer.spec
    found = trainer.begin(
        data={"path": str(config.prompts), "prompts": len(groups), "content": content},
        reward={"name": spec.name, "version": spec.version, **facts},
    )
    if found is not None:
        return found
    if source.monitor is not None:
        source.monitor.keep_baseline(config.output_dir / f"monitor-{trainer.engine.rank}.json")
    loop = GRPOLoop(config, trainer, source, groups)
    try:
        return trainer.fit(loop.train_step, resumable_every=config.updates_per_rollout)
    except HackingAlarm as alarm:
        # Each process watches its own rollouts: whichever stops the run says why.
        trainer.run.update(status="stopped", hacking_alarm=str(alarm))
        raise


def _refuse_gold_that_trains(config: GRPOConfig) -> None:
    gold = config.samples.gold if config.samples else None
    if gold is None or config.reward is None:
        return
    path = config.reward.path
    trains = getattr(gold, "path", None) == path
    if path.suffix in MIX_FILES:
        mix = load_config(RewardMixConfig, path)
        trains = any(part.scorer == gold for part in mix.training)
    if trains:
        raise ValueError(
            f"samples.gold is what the run is rewarded by, {path}: what it learns to please cannot "
            "say when to stop; take a scorer that measures only"
        )


def open_reward(
    config: RewardModelConfig | None, device: str, requests: Sequence[Request]
) -> tuple[Scorer | RewardSource, dict[str, Any]]:
    """The reward of ``requests`` that the settings name, past its gate, and facts for run.json."""
    if config is None:
        raise ValueError("GRPO needs a reward: give reward.path, the folder of a reward model")
    if config.path.suffix in MIX_FILES:
        from rewards.scorers.build import open_mix

        if config.weights:
            raise ValueError(
                f"the weights of {config.path} are in it; reward.weights must be empty"
            )
        source, _ = open_mix(config.path)
        return source, {"path": str(config.path)}
    from rewards.evaluate import require_accuracy
    from rewards.models.diffusion import DiffusionEncoder
    from rewards.scorers import load_scorer

    report = require_accuracy(config.path, config.min_accuracy)
    base = None if config.base is None else resolve_model(config.base)
    scorer = load_scorer(config.path, base=base, device=device)
    unknown = sorted(config.weights.keys() - set(scorer.spec.components))
    if unknown:
        raise ValueError(
            f"reward.weights names {unknown}; {config.path} scores {list(scorer.spec.components)}"
        )
    if isinstance(scorer.encoder, DiffusionEncoder):
        unique = {request.identity: request for request in requests}
        scorer.encoder.prepare((r.prompt, r.pictures()) for r in unique.values())
    return scorer, {"path": str(config.path), "accuracy": report["accuracy"]}


class GRPOLoop:
    """One rollout, then ``updates_per_rollout`` optimizer steps on it, again and again.

    Each process draws, scores and trains whole groups of its own, so that advantages need no
    exchange between processes.
    """

    def __init__(
        self, config: GRPOConfig, trainer: Trainer, source: RewardSource, groups: Sequence[Group]
    ) -> None:
        self.config = config
        self.trainer = trainer
        self.engine = trainer.engine
        self.source = source
        self.scorer = source.scorer
        if config.prompts_per_step % self.engine.world:
            raise ValueError(
                f"prompts_per_step {config.prompts_per_step} cannot be shared by "
                f"{self.engine.world} processes"
            )
        learner = learner_class(config.objective)
        units = learner.units(config)
        plan = BatchPlan.make(units, config.micro_batch_size, self.engine.world, self.engine.rank)
        self.features: Features = trainer.encoder().encode(
            [],
            with_negatives([g.request for g in groups], config.rollout.guidance_scale > 1),
            ResolutionConfig(source_area=config.rollout.source_area),
        )
        self.tasks = by_task(groups, self.features)
        self.policy = trainer.build_policy(
            plan.accumulation,
            plan.micro,
            reference="copy" if config.objective.needs_reference else "none",
            replica=config.rollout.replica,
        )
        self.plan = plan
        self.learner: Learner[Any] = learner(config, self.policy, self.engine, plan)
        self.is_checked = False

    def train_step(self, step: int) -> dict[str, float]:
        """Optimizer step ``step`` (from 1), after a new rollout where one is due."""
        iteration, update = divmod(step - 1, self.config.updates_per_rollout)
        figures = self._roll(iteration + 1) if update == 0 else {}
        batches = list(self.learner.batches(update))
        metrics = self.engine.train_step(step, batches, self.learner.loss)
        return self.learner.finish(metrics) | figures

    def _roll(self, iteration: int) -> dict[str, float]:
        """Draw and score; returns the rewards' figures over all processes."""
        self.engine.model.eval()
        with self._old_policy():
            rollout = self._draw(iteration)
            scores = self._score(rollout, iteration)
            shape = (len(rollout.groups), self.config.group_size)
            rewards = [self._reward(s) if s is not None else torch.nan for s in scores]
            known = torch.tensor([score is not None for score in scores]).view(shape)
            # Scores that differ little for their size are alike in float32.
            rewards = torch.tensor(rewards, dtype=torch.float64).view(shape)
            advantages = self._advantages(rewards, known, scores)
            self.learner.take(
                rollout,
                advantages.values.flatten().to(self.engine.device),
                (advantages.keep[:, None] & known).flatten().to(self.engine.device),
                rewards,
            )
        figures = self._figures(scores, advantages)
        if not self.is_checked:
            self._preflight(advantages, figures["frac_reward_zero_std"])
        return figures

    def _draw(self, iteration: int) -> Rollout:
        replica = self.trainer.replica
        with nullcontext() if replica is None else replica.drawing():
            return draw_rollout(
                self.policy,
                self.features,
                self._groups(iteration),
                self.config.rollout,
                self.config.seed,
                iteration,
                self.config.objective.trains_steps,
                # DeepSpeed and FSDP2 expect a backward pass after one with a gradient.
                self.learner.plan.micro if self.engine.layout.has_graph_of_parameters else 0,
                self._decoder.put if self._needs_images else None,
            )

    def _old_policy(self) -> AbstractContextManager[None]:
        """Within, the weights are those of the policy that draws."""
        if self.config.objective.old_policy == "average":
            return self.engine.averaged()
        return nullcontext()

    def _advantages(
        self, rewards: Tensor, known: Tensor, scores: Sequence[Score | None]
    ) -> Advantages:
        """Of ``rewards (groups, group_size)``, where ``known`` says which there are."""
        objective = self.config.objective
        settings: dict[str, Any] = {
            "min_std": objective.min_reward_std,
            "clip": objective.advantage_clip,
            "known": known,
            "min_range": objective.min_reward_range,
        }
        if objective.advantage == "global":
            settings["scale"] = self._deviation(rewards, known)
        advantages = group_advantages(rewards, **settings)
        if objective.advantage != "gdpo":
            return advantages
        assert self.config.reward is not None
        weights = self.config.reward.weights
        parts = {
            name: torch.tensor(
                [torch.nan if score is None else score.components[name] for score in scores],
                dtype=torch.float64,
            ).view_as(rewards)
            for name in weights
        }
        # The rewards themselves say which groups are dropped, and are what is logged.
        decoupled = decoupled_rewards(parts, weights, known) * advantages.keep[:, None]
        scale = self._deviation(decoupled, known)
        settings |= {"min_std": 1e-12, "min_range": 0.0, "scale": scale}
        return replace(advantages, values=group_advantages(decoupled, **settings).values)

    def _deviation(self, rewards: Tensor, known: Tensor) -> float:
        """Standard deviation of all known rewards of the step, over all processes."""
        rewards, count = rewards.double(), known.double().sum()

        def mean(values: Tensor) -> float:
            total = values.masked_fill(~known, 0.0).sum()
            sums = self.engine.mean({"total": total, "count": count})
            return sums["total"] / sums["count"]

        center = mean(rewards)
        return mean((rewards - center).square()) ** 0.5

    def _groups(self, iteration: int) -> list[Group]:
        """This process's groups of an iteration."""
        config = self.config
        sizes = [len(task) for task in self.tasks]
        task, positions = task_of_step(config.seed, config.prompts_per_step, sizes, iteration)
        share = config.prompts_per_step // self.engine.world
        own = positions[self.engine.rank * share :][:share]
        return [replace(self.tasks[task][p.item], epoch=p.epoch) for p in own]

    def _preflight(self, advantages: Advantages, fraction_equal: float) -> None:
        engine, policy, learner = self.engine, self.policy, self.learner
        figures: dict[str, Any] = check_ranks(engine, policy)
        # What the rollout brings, not what was reckoned when the accumulation was set.
        units = len(learner.places(0)) * engine.world
        figures |= check_accumulation(engine, self.plan, units, learner.what)
        figures |= check_groups(learner.rollout)
        figures |= check_rewards(advantages, fraction_equal)
        figures |= learner.check()
        probe = learner.probe(next(learner.batches(0)))
        figures |= check_weights(engine, policy, *probe)
        figures |= check_batch_size(engine, policy, *probe, self.config.batch_tolerance)
        if engine.is_main:
            self.trainer.run.update(preflight=figures)
        self.is_checked = True

    # Rewards --------------------------------------------------------------------------------------

    def _score(self, rollout: Rollout, iteration: int) -> list[Score | None]:
        """One score an image; None for an image that is to be left out."""
        latents = rollout.latents.float().cpu()
        images: Sequence[Any] = [None] * len(latents)
        if self._needs_images:
            images = self._decoder.take()
        if self._scores_images:
            latents = [None] * len(latents)
        groups = [group for group in rollout.groups for _ in range(group.size)]
        pictures = {group.id: group.request.pictures() for group in rollout.groups}
        items = [
            RewardItem(
                sample_id=sample_id,
                group_id=group.id,
                prompt=group.prompt.text,
                image=image,
                latents=row,
                metadata={"category": group.prompt.category, **group.prompt.metadata},
                source_images=pictures[group.id],
            )
            for sample_id, group, image, row in zip(
                rollout.sample_ids, groups, images, latents, strict=True
            )
        ]
        try:
            scores = self.source.score(items)
        except HackingAlarm as alarm:
            self._keep_sheet(rollout, iteration, items, self.source.kept, str(alarm))
            raise
        every = self.config.contact_sheet_every
        if every and iteration % every == 0:
            self._keep_sheet(rollout, iteration, items, scores)
        return scores

    def _keep_sheet(
        self,
        rollout: Rollout,
        iteration: int,
        items: Sequence[RewardItem],
        scores: Sequence[Score | None],
        alarm: str = "",
    ) -> None:
        """Keep what the reward likes best, for people to look at; at an alarm, of every prompt."""
        rewards = [None if score is None else self._reward(score) for score in scores]
        count = None if alarm else self.config.contact_sheet_prompts
        groups = choose_groups(items, rewards, count)
        places = [place for group in groups for place in group]
        images: list[Any] = [items[place].image for place in places]
        if None in images:
            self._decoder.put(rollout.latents[places])
            images = list(self._decoder.take())
        drawn_for = [group for group in rollout.groups for _ in range(group.size)]
        found: dict[int, Picture] = {}
        for place, image in zip(places, images, strict=True):
            reward = rewards[place]
            assert reward is not None
            group = drawn_for[place]
            source = group.sources[0].path if group.sources else None
            found[place] = Picture(group.prompt, image, reward, source)
        write_sheet(
            self.config.output_dir / SHEETS / f"rollout-{iteration:06d}-{self.engine.rank}",
            iteration,
            alarm,
            [[found[place] for place in group] for group in groups],
        )

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
            "reward/frac_truncated": sum(score.truncated > 0 for score in found) / len(scores),
            "reward": advantages.reward,
            "reward_std": advantages.reward_std,
            "frac_reward_zero_std": advantages.frac_reward_zero_std,
        }
        for name in self.scorer.spec.components:
            values = [score.components[name] for score in found if name in score.components]
            if len(values) == len(found):
                figures[f"reward/{name}"] = sum(values) / len(values)
        # Whether a drift is known may differ between processes, and means need equal names.
        alone = self.engine.world == 1
        watched = self.source.figures.items()
        figures |= {name: value for name, value in watched if alone or "/drift" not in name}
        return self.engine.mean(
            {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
        )

    @property
    def _scores_images(self) -> bool:
        reward = self.config.reward
        sees_images = reward is not None and reward.sees == "images"
        return sees_images or "latents" not in self.scorer.spec.needs

    @property
    def _needs_images(self) -> bool:
        return self._scores_images or self.source.monitor is not None

    @cached_property
    def _decoder(self) -> Decoder:
        dtype, device = getattr(torch, self.config.dtype), self.engine.device
        adapter = load_adapter(self.trainer.model, dtype=dtype, device=device, parts=("vae",))
        return Decoder(adapter, device)
