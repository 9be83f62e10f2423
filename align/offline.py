"""Training on stored data: supervised fine-tuning, and Diffusion-DPO on pairs of images."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from align.config import (
    DPOConfig,
    DPOObjectiveConfig,
    OfflineConfig,
    ResolutionConfig,
    SFTConfig,
)
from align.data.batches import (
    ImageBatches,
    ListBatches,
    PairBatches,
    PreferenceBatches,
    with_negatives,
)
from align.data.buckets import assign_buckets
from align.data.draws import Draws
from align.data.features import Features
from align.data.picks import read_lists, read_pairs, read_thumbs
from align.data.rows import CaptionedImage, Rows, read_captioned_images
from align.data.tasks import by_task, task_of_step
from align.engine import BatchPlan, Engine
from align.mmdit.adapters import Conditioning
from align.objectives.base import finish_parts
from align.objectives.diffusion_dpo import DiffusionDPO
from align.objectives.feedback import Feedback
from align.objectives.listwise import KTO, PlackettLuce
from align.objectives.preferences import implicit_rewards
from align.objectives.sft import SFT, noised, sft_errors
from align.policy import Policy, Reference
from align.preflight import (
    check_accumulation,
    check_batch_size,
    check_margins,
    check_ranks,
    check_weights,
)
from align.reference import measure_tasks, reference_errors
from align.run import RunResult
from align.stopping import Patience
from align.trainer import Trainer
from align.watch_config import ValidationConfig

__all__ = ["train_dpo", "train_sft"]

logger = logging.getLogger(__name__)

REFERENCES: dict[str, Reference] = {"cached": "none", "live": "copy", "streamed": "streamed"}
"""``reference.mode`` to what the policy keeps."""


def train_sft(config: SFTConfig) -> RunResult:
    """Flow matching on good images; continues where a killed run of this configuration stood.

    Raises:
        ValueError, FileNotFoundError: unusable data, model or run folder; names the path.
        OSError: something cannot be written; earlier checkpoints are kept.
    """
    with Trainer(config, "sft") as trainer:
        return _train_sft(config, trainer)


def _train_sft(config: SFTConfig, trainer: Trainer) -> RunResult:
    plan = _plan(config, trainer.engine)
    validation = config.validation
    rows = read_captioned_images(config.data, validation.fraction if validation.every else 0.0)
    train, held_out = rows.train, _held_out(rows, validation)
    if (found := trainer.begin(data=rows.named(train=train, validation=held_out))) is not None:
        return found
    trained, held = _image_batches(config, trainer, plan, train, held_out)
    policy, objective = trainer.policy, SFT()
    first = _parts(config, plan, trained, 1)[0]
    _preflight(trainer, plan, "images", (noised(first), first.sigma, first.cond))

    def train_step(step: int) -> dict[str, float]:
        loss = objective.loss
        parts = _parts(config, plan, trained, step)
        return trainer.engine.train_step(step, parts, lambda batch: loss(policy, batch))

    def validate() -> dict[str, float]:
        def figures(batches: ImageBatches, places: Sequence[int]) -> dict[str, Tensor]:
            return {"loss": sft_errors(policy, batches.at(places))}

        return {"validation/loss": measure_tasks(trainer.engine, held, plan.micro, figures)["loss"]}

    patience = Patience(validation.patience, validation.min_delta)
    return trainer.fit(train_step, validate, validation.every, patience)


def _image_batches(
    config: SFTConfig,
    trainer: Trainer,
    plan: BatchPlan,
    train: list[CaptionedImage],
    held_out: list[CaptionedImage],
) -> tuple[list[ImageBatches], list[ImageBatches]]:
    """Batches to train on and held-out ones, for each bucket that has any; builds the policy.

    A bucket's images have one size, and so have their source images: to draw and to edit are tasks
    of different steps. The prompts are encoded before any image, with one loading of the text
    encoder.
    """
    data, samples = config.data, [*train, *held_out]
    requests = with_negatives([sample.request for sample in samples], data.caption_dropout > 0)
    encoder = trainer.encoder()
    area = data.source_area
    resolutions = [ResolutionConfig(height=h, width=w, source_area=area) for h, w in data.buckets]
    chosen: dict[str, Any] = {}
    if resolutions:
        chosen = assign_buckets([sample.image for sample in samples], data.buckets)
        encoder.encode([], requests, data)
    found = []
    for resolution in resolutions or [data]:
        size = (resolution.height, resolution.width)

        def own(part: list[CaptionedImage], size: Any = size) -> list[CaptionedImage]:
            return [x for x in part if not chosen or chosen[x.image.sha256] == size]

        images = [sample.image for sample in own(samples)]
        if images:
            features = encoder.encode(images, requests, resolution)
            found.append((own(train), own(held_out), features))
    trainer.build_policy(plan.accumulation, plan.micro)
    trained, held = [], []
    for own_train, own_held, features in found:
        draws, count = _draws(config, trainer, features), config.validation.draws
        for task in by_task(own_train, features):
            trained.append(ImageBatches(task, features, draws, data.caption_dropout))
        for task in by_task(own_held, features):
            held.append(ImageBatches(task, features, draws, num_draws=count))
    return trained, held


def train_dpo(config: DPOConfig) -> RunResult:
    """Diffusion-DPO or a relative; continues where a killed run of this configuration stood.

    With cached reference errors (the default) each sample has ``reference.draws`` noises and noise
    levels, used in turn by its epochs, and the reference's errors on them are computed before
    training: no reference model is in memory, whether a LoRA or all parameters are trained.

    Raises:
        ValueError, FileNotFoundError: unusable data, model or run folder; names the path.
        OSError: something cannot be written; earlier checkpoints are kept.
    """
    with Trainer(config, "dpo") as trainer:
        return _train_dpo(config, trainer)


def _train_dpo(config: DPOConfig, trainer: Trainer) -> RunResult:
    plan = _plan(config, trainer.engine)
    validation = config.validation
    rows = _preferences(config)
    train, held_out = rows.train, _held_out(rows, validation)
    aside = rows.annotators[: validation.max_samples] if validation.every else []
    data = rows.named(train=train, validation=held_out, **({"annotators": aside} if aside else {}))
    if (found := trainer.begin(data=data)) is not None:
        return found
    tasks, held = _open_preferences(config, trainer, plan, train, held_out, aside)
    policy = trainer.policy
    feedback = Feedback(config.objective)
    num_elements = math.prod(tasks[0].draws.shape)
    first = _parts(config, plan, tasks, 1)[0]
    checks: dict[str, Any] = {}
    if config.reference.mode == "cached" and trainer.run.checkpoints.latest() is None:
        beta = preference_objective(config.objective, feedback, num_elements).beta
        checks = _check_reference(trainer, policy, tasks[0], first, beta or 0.0)
    _preflight(trainer, plan, "samples", tasks[0].probe(first), checks)

    def train_step(step: int) -> dict[str, float]:
        objective = preference_objective(config.objective, feedback, num_elements)
        parts = _parts(config, plan, tasks, step)
        metrics = finish_parts(
            trainer.engine.train_step(step, parts, lambda batch: objective.loss(policy, batch))
        )
        if config.objective.auto_beta is not None:
            metrics["beta"] = objective.beta or 0.0
        _watch(trainer, feedback, step, metrics)
        return metrics

    def validate() -> dict[str, float]:
        objective = preference_objective(config.objective, feedback, num_elements)
        figures = {}
        for prefix, parts in held.items():
            means = measure_tasks(
                trainer.engine,
                parts,
                plan.micro,
                lambda part, places: part.figures(objective, policy, part.at(places)),
            )
            figures |= {f"{prefix}/{name}": value for name, value in finish_parts(means).items()}
        return figures

    patience = Patience(validation.patience, validation.min_delta)
    return trainer.fit(train_step, validate, validation.every, patience, feedback)


def _open_preferences(
    config: DPOConfig, trainer: Trainer, plan: BatchPlan, train: list, held_out: list, aside: list
) -> tuple[list[PreferenceBatches], dict[str, list[PreferenceBatches]]]:
    """Batches to train on, of each task, and held-out ones by the prefix of their figures.

    Builds the policy, and has the reference's errors where they are cached.
    """
    validation, cached = config.validation, config.reference.mode == "cached"
    samples = [*train, *held_out, *aside]
    features = trainer.encoder().encode(
        [image for sample in samples for image in sample.images],
        [sample.request for sample in samples],
        config.data,
    )
    reference = REFERENCES[config.reference.mode]
    policy = trainer.build_policy(plan.accumulation, plan.micro, reference)
    draws = _draws(config, trainer, features)

    def batches(part: list, num_draws: int | None, prefix: str = "") -> list[PreferenceBatches]:
        return [
            _preference_batches(config, task, features, draws, num_draws, prefix)
            for task in by_task(part, features)
        ]

    training = batches(train, config.reference.draws if cached else None)
    held = {"validation": batches(held_out, validation.draws, "validation/")}
    if aside:
        held["validation/annotators"] = batches(aside, validation.draws, "annotators/")
    if cached:
        _store_reference_errors(trainer, policy, plan.micro, {"train": training, **held})
    return training, held


def preference_objective(
    config: DPOObjectiveConfig, feedback: Feedback, num_elements: int
) -> DiffusionDPO | PlackettLuce | KTO:
    """What the settings describe, for the next step; beta is 2000 on the mean scale by default."""
    start = 2000.0 if config.beta is None else config.beta
    if config.beta_sum is not None:
        start = config.beta_sum * num_elements
    beta = feedback.beta(start)
    if config.loss_type == "plackett_luce":
        return PlackettLuce(beta, config.anchor_weight, config.anchor_tolerance, config.sft_weight)
    if config.loss_type == "kto":
        return KTO(
            beta, feedback.reference_point, config.desirable_weight, config.undesirable_weight
        )
    return DiffusionDPO(
        beta=beta,
        loss_type=config.loss_type,
        label_smoothing=config.label_smoothing,
        tie_threshold=config.tie_threshold,
        rejected_weight=config.rejected_weight,
        anchor_weight=config.anchor_weight,
        anchor_tolerance=config.anchor_tolerance,
        sft_weight=config.sft_weight,
    )


def _preferences(config: DPOConfig) -> Rows:
    fraction = config.validation.fraction if config.validation.every else 0.0
    if config.objective.loss_type == "plackett_luce":
        return read_lists(config.data, fraction)
    if config.objective.loss_type == "kto":
        return read_thumbs(config.data, fraction)
    return read_pairs(config.data, fraction, ties=config.objective.tie_threshold > 0)


def _preference_batches(
    config: DPOConfig,
    samples: list,
    features: Features,
    draws: Draws,
    num_draws: int | None,
    prefix: str,
) -> PreferenceBatches:
    if config.objective.loss_type in ("plackett_luce", "kto"):
        return ListBatches(samples, features, draws, num_draws, prefix)
    return PairBatches(
        samples,
        features,
        draws,
        num_draws,
        prefix,
        noise=config.noise,
        label_smoothing=config.objective.label_smoothing,
        resolution=config.data,
    )


def _store_reference_errors(
    trainer: Trainer, policy: Policy, batch_size: int, parts: dict[str, list[PreferenceBatches]]
) -> None:
    trainer.engine.model.eval()
    if trainer.run.checkpoints.latest() is None:
        # Left by an attempt that may have had another model.
        trainer.forget("reference_errors_*.safetensors")
    for name, tasks in parts.items():
        for number, part in enumerate(tasks):
            label = name.replace("/", "_") + (f"_{number}" if number else "")
            path = trainer.run.path / f"reference_errors_{label}.safetensors"
            part.reference_errors = reference_errors(path, trainer.engine, policy, part, batch_size)


def _check_reference(
    trainer: Trainer, policy: Policy, batches: PreferenceBatches, batch: Any, beta: float
) -> dict[str, Any]:
    """Before the first step the policy must be the reference that was stored."""
    assert isinstance(trainer.config, DPOConfig)
    trainer.engine.model.eval()
    with torch.no_grad():
        errors = batches.errors(policy, batch)
    rewards = implicit_rewards(errors, batch.reference_errors, beta)
    return check_margins(trainer.engine, rewards, trainer.config.reference.tolerance)


def _watch(trainer: Trainer, feedback: Feedback, step: int, metrics: dict[str, float]) -> None:
    """Let the run know its figures; warn once when the chosen images' error has risen."""
    if not feedback.observe(step, metrics):
        return
    rise, limit = feedback.chosen_rise, feedback.config.chosen_alarm
    logger.warning(
        "step %d: the chosen images' error is %.1f %% above the reference's (alarm at %.1f %%): "
        "the policy gets worse at what was preferred. Raise objective.anchor_weight, or lower "
        "optimizer.lr or objective.beta",
        step,
        100 * rise,
        100 * limit,
    )
    if trainer.engine.is_main:
        trainer.run.update(chosen_alarm={"step": step, "rise": rise, "limit": limit})


# Set-up -------------------------------------------------------------------------------------------


def _preflight(
    trainer: Trainer,
    plan: BatchPlan,
    what: str,
    probe: tuple[Tensor, Tensor, Conditioning],
    checked: dict[str, Any] | None = None,
) -> None:
    """Refuse a new run that would not learn; ``probe`` is what the first micro-batch asks."""
    engine, policy = trainer.engine, trainer.policy
    if trainer.run.checkpoints.latest() is not None:
        return
    engine.model.eval()
    figures = check_ranks(engine, policy) | (checked or {})
    figures |= check_accumulation(engine, plan, plan.total, what)
    figures |= check_weights(engine, policy, *probe)
    figures |= check_batch_size(engine, policy, *probe, trainer.config.batch_tolerance)
    if engine.is_main:
        trainer.run.update(preflight=figures)


def _parts(
    config: OfflineConfig,
    plan: BatchPlan,
    tasks: Sequence[ImageBatches] | Sequence[PreferenceBatches],
    step: int,
) -> list[Any]:
    """This process's micro-batches of one step, which has one task."""
    sizes = [len(task.samples) for task in tasks]
    task, positions = task_of_step(config.seed, config.batch_size, sizes, step)
    return [tasks[task].train(part) for part in plan.split(positions)]


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
