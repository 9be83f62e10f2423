"""Training on stored data: supervised fine-tuning, and Diffusion-DPO on pairs of images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.checkpoint import atomic_file
from align.config import DPOConfig, DPOObjectiveConfig, OfflineConfig, SFTConfig, ValidationConfig
from align.data.batches import EMPTY_PROMPT, ImageBatches, PairBatches
from align.data.draws import Draws
from align.data.features import Features
from align.data.order import step_positions
from align.data.rows import Rows, read_captioned_images, read_pairs
from align.engine import BatchPlan, Engine
from align.objectives.diffusion_dpo import DiffusionDPO, PairBatch, implicit_rewards, pair_errors
from align.objectives.sft import SFT, sft_errors
from align.policy import Policy
from align.run import RunResult
from align.trainer import Patience, Trainer

__all__ = ["train_dpo", "train_sft"]


def train_sft(config: SFTConfig) -> RunResult:
    """Flow matching on good images; continues where a killed run of this configuration stood.

    Raises:
        ValueError, FileNotFoundError: unusable data, model or run folder; names the path.
        OSError: something cannot be written; earlier checkpoints are kept.
    """
    trainer = Trainer(config, "sft")
    if trainer.run.is_finished:
        return trainer.run.result()
    plan = _plan(config, trainer.engine)
    validation = config.validation
    rows = read_captioned_images(config.data, validation.fraction if validation.every else 0.0)
    train, held_out = rows.train, _held_out(rows, validation)
    trainer.begin(data={**rows.source, "train": len(train), "validation": len(held_out)})
    samples = [*train, *held_out]
    features = trainer.encoder().encode(
        [sample.image for sample in samples],
        [EMPTY_PROMPT, *(sample.prompt for sample in samples)],
        config.data,
    )
    policy = trainer.build_policy(plan.accumulation, plan.micro)
    draws = _draws(config, trainer, features)
    batches = ImageBatches(train, features, draws, config.data.caption_dropout)
    held = ImageBatches(held_out, features, draws, num_draws=validation.draws)
    objective = SFT()

    def train_step(step: int) -> dict[str, float]:
        positions = step_positions(config.seed, len(train), config.batch_size, step)
        parts = [batches.train(part) for part in plan.split(positions)]
        return trainer.engine.train_step(step, parts, lambda batch: objective.loss(policy, batch))

    def validate() -> dict[str, float]:
        return measure(
            trainer.engine,
            held.num_places,
            plan.micro,
            lambda places: {"validation/loss": sft_errors(policy, held.at(places))},
        )

    patience = Patience(validation.patience, validation.min_delta)
    return trainer.fit(train_step, validate, validation.every, patience)


def train_dpo(config: DPOConfig) -> RunResult:
    """Diffusion-DPO on pairs; continues where a killed run of this configuration stood.

    With cached reference errors (the default) each pair has ``reference.draws`` noises and noise
    levels, used in turn by its epochs, and the reference's errors on them are computed before
    training: no reference model is in memory, whether a LoRA or all parameters are trained.

    Raises:
        ValueError, FileNotFoundError: unusable data, model or run folder; names the path.
        OSError: something cannot be written; earlier checkpoints are kept.
    """
    trainer = Trainer(config, "dpo")
    if trainer.run.is_finished:
        return trainer.run.result()
    plan = _plan(config, trainer.engine)
    validation, cached = config.validation, config.reference.mode == "cached"
    rows = read_pairs(config.data, validation.fraction if validation.every else 0.0)
    train, held_out = rows.train, _held_out(rows, validation)
    trainer.begin(data={**rows.source, "train": len(train), "validation": len(held_out)})
    pairs = [*train, *held_out]
    features = trainer.encoder().encode(
        [image for pair in pairs for image in (pair.chosen, pair.rejected)],
        [pair.prompt for pair in pairs],
        config.data,
    )
    policy = trainer.build_policy(plan.accumulation, plan.micro, "none" if cached else "copy")
    draws = _draws(config, trainer, features)
    batches = PairBatches(train, features, draws, config.reference.draws if cached else None)
    held = PairBatches(held_out, features, draws, validation.draws, prefix="validation/")
    if cached:
        trainer.engine.model.eval()
        if trainer.run.checkpoints.latest() is None:
            # Left by an attempt that may have had another model.
            trainer.forget("reference_errors_*.safetensors")
        for name, part in (("train", batches), ("validation", held)):
            path = trainer.run.path / f"reference_errors_{name}.safetensors"
            part.reference_errors = reference_errors(path, trainer.engine, policy, part, plan.micro)
    objective = dpo_objective(config.objective)

    def train_step(step: int) -> dict[str, float]:
        positions = step_positions(config.seed, len(train), config.batch_size, step)
        parts = [batches.train(part) for part in plan.split(positions)]
        return trainer.engine.train_step(step, parts, lambda batch: objective.loss(policy, batch))

    def validate() -> dict[str, float]:
        return measure(
            trainer.engine,
            held.num_places,
            plan.micro,
            lambda places: dpo_figures(objective, policy, held.at(places)),
        )

    patience = Patience(validation.patience, validation.min_delta)
    return trainer.fit(train_step, validate, validation.every, patience)


def dpo_objective(config: DPOObjectiveConfig) -> DiffusionDPO:
    """The objective that the settings describe; beta is 2000 on the mean scale if none is given."""
    fields = config.model_dump()
    if config.beta is None and config.beta_sum is None:
        fields["beta"] = 2000.0
    return DiffusionDPO(**fields)


# Measuring without training -----------------------------------------------------------------------


def measure(
    engine: Engine,
    count: int,
    batch_size: int,
    figures: Callable[[Sequence[int]], Mapping[str, Tensor]],
) -> dict[str, float]:
    """Means of ``figures`` over the places 0 to ``count - 1``, shared out over the processes.

    Args:
        figures: takes places, returns a value for each of them, ``(B,)``, by name.

    All processes make equally many calls of equal size, as ZeRO-3 demands: the places beyond the
    end are computed and left out.
    """
    places = range(engine.rank, math.ceil(count / engine.world) * engine.world, engine.world)
    sums: dict[str, Tensor] = {}
    for start in range(0, len(places), batch_size):
        part = places[start : start + batch_size]
        is_real = torch.tensor([place < count for place in part], device=engine.device)
        for name, values in figures([min(place, count - 1) for place in part]).items():
            total = values.double()[is_real].sum()
            sums[name] = sums[name] + total if name in sums else total
    return engine.mean({name: total * engine.world / count for name, total in sums.items()})


def dpo_figures(objective: DiffusionDPO, policy: Policy, batch: PairBatch) -> dict[str, Tensor]:
    """Loss, implicit accuracy, margin and change of the chosen's error for each pair, ``(B,)``."""
    errors = pair_errors(policy, batch)
    reference = batch.reference_errors
    if reference is None:
        with policy.reference():
            reference = pair_errors(policy, batch)
    rewards = implicit_rewards(errors, reference, objective.mean_beta(batch.chosen[0].numel()))
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "validation/loss": objective.losses(errors, rewards),
        "validation/rewards/accuracies": (margins > 0).float(),
        "validation/rewards/margins": margins,
        "validation/error/chosen_delta": errors[:, 0] - reference[:, 0],
    }


@torch.no_grad()
def reference_errors(
    path: Path, engine: Engine, policy: Policy, batches: PairBatches, batch_size: int
) -> Tensor:
    """Errors ``(pairs, draws, 2)`` of the untrained policy on every draw of ``batches``.

    Read from ``path`` if they are there for the same pairs, else computed and written: they must
    be those from before the first step, so this runs before a checkpoint is taken up.
    """
    count = batches.num_places
    num_draws = batches.num_draws or 1
    if not count:
        return torch.zeros(0, num_draws, 2)
    key = torch.frombuffer(bytearray(_draws_digest(batches)), dtype=torch.uint8)
    if path.is_file():
        stored = load_file(path)
        if torch.equal(stored["key"], key):
            return stored["errors"]
    places = range(engine.rank, math.ceil(count / engine.world) * engine.world, engine.world)
    rows = [
        pair_errors(policy, batches.at([min(p, count - 1) for p in places[i : i + batch_size]]))
        for i in range(0, len(places), batch_size)
    ]
    # Rank r holds the places r, r + world, ...: interleave what was gathered rank by rank.
    gathered = engine.gather(torch.cat(rows)).view(engine.world, len(places), 2).transpose(0, 1)
    errors = gathered.reshape(-1, 2)[:count].reshape(-1, num_draws, 2).float().cpu().contiguous()
    if engine.is_main:
        with atomic_file(path) as temporary:
            save_file({"errors": errors, "key": key}, temporary)
    return errors


def _draws_digest(batches: PairBatches) -> bytes:
    text = "\n".join([repr(batches.draws), str(batches.num_draws), *(p.id for p in batches.pairs)])
    return hashlib.sha256(text.encode()).digest()


# Set-up -------------------------------------------------------------------------------------------


def _plan(config: OfflineConfig, engine: Engine) -> BatchPlan:
    return BatchPlan.make(config.batch_size, config.micro_batch_size, engine.world, engine.rank)


def _draws(config: SFTConfig | DPOConfig, trainer: Trainer, features: Features) -> Draws:
    key = next(iter(features.image_keys.values()))
    shape = features.cache[key].shape
    return Draws.for_latents(config.seed, shape, trainer.adapter, config.timesteps)


def _held_out(rows: Rows, validation: ValidationConfig) -> list:
    """The samples to validate on; none when validation is off."""
    if not validation.every:
        return []
    if not rows.validation:
        raise ValueError(
            f"{rows.source['path']} has no held-out prompts to validate on: give rows a split, "
            f"raise validation.fraction (now {validation.fraction}), or set validation.every to 0"
        )
    return rows.validation[: validation.max_samples]
