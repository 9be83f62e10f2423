"""``winsome reward train``: from a snapshot to a reward model with its report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import EarlyStoppingCallback, PrinterCallback, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.utils import logging as transformers_logging
from trl import RewardConfig

from annotate.records import Question, Snapshot, load_snapshot
from annotate.settings import changed_settings, dump_config, load_config
from rewards.agreement import fit_temperature, scored_pairs
from rewards.by_time import split_by_time
from rewards.checkpoints import last_whole_checkpoint
from rewards.components import check_snapshot
from rewards.config import RewardTrainConfig
from rewards.evaluate import evaluate_model, read_report, register
from rewards.folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    FEATURES,
    INPUTS_FILE,
    METRICS_FILE,
    TRAINED_ON_FILE,
    read_json,
    write_json,
    write_text,
)
from rewards.judgements import (
    CandidateSet,
    Division,
    count_questions,
    divide,
    keep_training,
)
from rewards.lock import FolderLock
from rewards.models import open_encoder
from rewards.models.features import (
    Bank,
    CandidateEncoder,
    FeatureCache,
    Inputs,
    open_bank,
    own_features,
    own_prompts,
)
from rewards.models.preference import OVERALL, PreferenceConfig, PreferenceModel
from rewards.scorers.preference import PreferenceScorer
from rewards.splits import prompt_digest
from rewards.supervision import supervise
from rewards.trainer import CandidateTrainer, DigestCallback, SetCollator, to_dataset

__all__ = ["RewardResult", "open_snapshot", "train_reward"]

CRITERIA = (Question.AESTHETICS, Question.INSTRUCTION, Question.DETAIL)
"""The questions that have a head, in this order; "overall" combines them."""

_NUM_SAMPLES = 64
"""Training candidates by which the features of an encoder that trains are standardised."""


@dataclass(frozen=True, slots=True)
class RewardResult:
    folder: Path
    """What `rewards.scorers.load_scorer` opens."""
    report: dict[str, Any]


def train_reward(config: RewardTrainConfig) -> RewardResult:
    """Train a preference model, measure it on held-out prompts, and save both.

    An interrupted run in ``config.output_dir`` is continued exactly: the weights are those of a run
    without interruption, bit for bit on a CPU with a fixed number of threads.

    In a launch by several processes each takes its share of every batch; an epoch's last batch is
    then filled up from its first sets where ``batch_size`` does not divide them.

    Raises:
        ValueError: prompts leak between splits, a part of the snapshot has no picks, the output
            folder holds a run with other settings or on other data, or its checkpoints are damaged.
        FolderInUseError: another process trains there.
        OSError: a missing snapshot, base or image; an unwritable folder.
    """
    snapshot = open_snapshot(config)
    division = divide(snapshot, config.held_out, config.development_fraction, config.seed)
    if config.check_alike != "off":
        check_snapshot(snapshot, images=config.check_alike == "text_and_images")
    division = keep_training(division, config.train_share, config.leave_out, config.seed)
    # Of the processes of a launch, the first holds the folder for all.
    with FolderLock(config.output_dir) if _is_first() else nullcontext():
        return _train(config, snapshot, division)


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def open_snapshot(config: RewardTrainConfig) -> Snapshot:
    """What a run learns from and is measured on.

    Raises:
        ValueError: a split by time leaves nothing to learn from, or nothing to measure on.
        OSError: a snapshot is missing.
    """
    snapshot = load_snapshot(config.snapshot, images=config.images)
    if config.older is None:
        return snapshot
    images = config.check_alike == "text_and_images"
    return split_by_time(snapshot, load_snapshot(config.older), images)


def _train(config: RewardTrainConfig, snapshot: Snapshot, division: Division) -> RewardResult:
    _claim_settings(config)
    lessons = supervise(
        snapshot, division.train, config.reasons, config.all_bad, config.annotator_weights
    )
    # Adapters are drawn as the encoder is made.
    set_seed(config.seed)
    settings = config.encoder.model_dump(mode="json")
    device = _own_device(config.device)
    encoder = open_encoder(settings, config.base, device, criteria=_criteria(lessons))
    _claim_inputs(config, snapshot.digest, encoder.identity["base_sha256"])
    cache = FeatureCache(config.cache_dir or config.output_dir / FEATURES, encoder.identity)
    seen = (*lessons, *division.development)
    bank = open_bank(snapshot, own_prompts(seen), encoder, cache)
    model = _build_model(config, lessons, encoder, bank)
    trainer = _build_trainer(config, model, lessons, division, bank, encoder)
    state = PartialState()
    with _without_save_bars():
        with state.main_process_first():
            last = last_whole_checkpoint(config.output_dir / CHECKPOINTS)
        trainer.train(resume_from_checkpoint=last)
    # Or transformers would share out every model that is loaded from now on, too.
    unset_hf_deepspeed_config()
    report: dict[str, Any] = {}
    weights: Any = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if state.is_main_process:
        _save(config, model, weights, trainer.state.log_history, seen)
        if trainer.model_wrapped is not model:
            # Under DeepSpeed this process's model holds a part of the weights.
            scorer = PreferenceScorer.from_pretrained(config.output_dir, device=device)
            model, encoder = scorer.model, scorer.encoder
        report = _measure(config, snapshot, division, model, encoder, bank, cache)
        report |= {
            "best_step": trainer.state.best_global_step,
            "seed": config.seed,
            "trained_on": {
                "num_prompts": len({candidates.prompt.id for candidates in division.train}),
                "num_picks": sum(len(candidates.judgements) for candidates in division.train),
                "questions": count_questions(lessons),
            },
        }
        register(config.output_dir, report)
    state.wait_for_everyone()
    if not state.is_main_process:
        report = read_report(config.output_dir)
    return RewardResult(config.output_dir, report)


def _measure(
    config: RewardTrainConfig,
    snapshot: Snapshot,
    division: Division,
    model: PreferenceModel,
    encoder: CandidateEncoder,
    bank: Bank,
    cache: FeatureCache,
) -> dict[str, Any]:
    """Fit the temperatures, which join the saved configuration, and evaluate."""
    model.config.temperatures = _fit_temperatures(model, encoder, division.development, bank)
    model.config.save_pretrained(config.output_dir)
    scorer = PreferenceScorer(model, encoder, version="")
    alike = config.check_alike != "off"
    return {
        **evaluate_model(config.output_dir, scorer, snapshot, config.held_out, cache, alike),
        "temperatures": model.config.temperatures,
        "overall_weights": model.overall_weights(),
    }


def _criteria(lessons: Sequence[CandidateSet]) -> list[str]:
    """A head for each criterion that training picks ask for or name."""
    asked = count_questions(lessons)
    return [question.value for question in CRITERIA if question.value in asked] or [OVERALL]


def _own_device(device: str) -> str:
    """``device``, or in a launch on GPUs the one that is this process's."""
    if torch.device(device).type == "cuda" and _num_processes() > 1:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return device


def _num_processes() -> int:
    """Of this launch, before torch knows of it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _build_model(
    config: RewardTrainConfig,
    lessons: Sequence[CandidateSet],
    encoder: CandidateEncoder,
    bank: Bank,
) -> PreferenceModel:
    """An untrained model with a head for each criterion of `_criteria`."""
    features = _sample_features(encoder, own_features(lessons, bank))
    sizes = {f"{name}_dim": of.shape[-1] for name, of in features.items() if of.is_floating_point()}
    if "image" in features:
        sizes["num_image_tokens"] = features["image"].shape[1]
    set_seed(config.seed)
    model = PreferenceModel(
        PreferenceConfig(
            criteria=_criteria(lessons),
            base=config.base or "",
            encoder=dict(encoder.identity),
            encoder_fingerprint=encoder.fingerprint(),
            loss=config.loss,
            head=encoder.head,
            **sizes,
            **config.head.model_dump(),
        ),
        encoder.network,
    )
    model.standardise_by(features)
    return model


@torch.no_grad()
def _sample_features(
    encoder: CandidateEncoder, inputs: Mapping[str, Inputs]
) -> Mapping[str, Tensor]:
    """What the heads read of the training candidates; where the encoder trains, of some of them."""
    if encoder.network is None:
        return encoder.collate(list(inputs.values()))
    names = sorted(inputs)
    some = [inputs[name] for name in names[:: max(1, len(names) // _NUM_SAMPLES)]]
    device = next(encoder.network.parameters()).device
    batch = {name: of.to(device) for name, of in encoder.collate(some[:_NUM_SAMPLES]).items()}
    features = encoder.network.eval()(**batch)
    return {name: of.cpu() for name, of in features.items()}


def _build_trainer(
    config: RewardTrainConfig,
    model: PreferenceModel,
    lessons: Sequence[CandidateSet],
    division: Division,
    bank: Bank,
    encoder: CandidateEncoder,
) -> CandidateTrainer:
    outputs, keep_ties = model.config.outputs, config.ties == "uniform"
    trainer = CandidateTrainer(
        model=model,
        args=_trainer_settings(config, 256 if encoder.network is None else None),
        train_dataset=to_dataset(lessons, outputs, keep_ties),
        eval_dataset=to_dataset(division.development, outputs, keep_ties),
        data_collator=SetCollator(bank, encoder.collate),
        processing_class=encoder.tokenizer,
        callbacks=[
            EarlyStoppingCallback(early_stopping_patience=config.patience),
            DigestCallback(),
        ],
        loss=config.loss,
        encoder_rate=getattr(config.encoder, "learning_rate", None),
    )
    # Without a terminal the Trainer would print a dict every epoch; metrics.jsonl has them.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trainer_settings(config: RewardTrainConfig, eval_batch_size: int | None) -> RewardConfig:
    own, rest = divmod(config.batch_size, _num_processes())
    if rest:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be shared by {_num_processes()} processes"
        )
    on_cpu = torch.device(config.device).type == "cpu"
    return RewardConfig(
        output_dir=str(config.output_dir / CHECKPOINTS),
        per_device_train_batch_size=own,
        per_device_eval_batch_size=eval_batch_size or own,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_fraction,
        lr_scheduler_type="cosine",
        max_grad_norm=config.max_grad_norm,
        center_rewards_coefficient=config.centring,
        disable_dropout=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_nll",
        greater_is_better=False,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        bf16=False,
        activation_checkpointing=False,
        max_length=None,
        remove_unused_columns=False,
        report_to="none",
        # While the first process measures, the others wait.
        ddp_timeout=24 * 3600,
        disable_tqdm=not sys.stderr.isatty(),
    )


@contextmanager
def _without_save_bars() -> Iterator[None]:
    """transformers draws a bar for each file that it writes: one an epoch here."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _fit_temperatures(
    model: PreferenceModel,
    encoder: CandidateEncoder,
    development: Sequence[CandidateSet],
    bank: Bank,
) -> dict[str, float]:
    """Per question, the temperature at which development margins are log-odds."""
    scorer = PreferenceScorer(model, encoder, version="")
    scores = scorer.score_candidates(own_features(development, bank))
    pairs = scored_pairs(development, scores)
    margins = {
        name: np.array([pair.margin for pair in pairs if pair.question == name])
        for name in scorer.outputs
    }
    return {name: fit_temperature(values) for name, values in margins.items() if len(values)}


def _claim_settings(config: RewardTrainConfig) -> None:
    """Check that the run in the folder, if any, has these settings, and write them."""
    path = config.output_dir / CONFIG_FILE
    if path.is_file():
        # Where features are cached and computed does not change what is trained.
        free = {"cache_dir", "device", "encoder.batch_size", "encoder.gradient_checkpointing"}
        changed = changed_settings(load_config(RewardTrainConfig, path), config, free)
        _refuse(config.output_dir, changed, "with other settings")
    if _is_first():
        write_text(path, dump_config(config))


def _claim_inputs(config: RewardTrainConfig, snapshot_digest: str, base_sha256: str) -> None:
    """Check that the run in the folder, if any, learns from the same, and write what that is."""
    path = config.output_dir / INPUTS_FILE
    inputs = {"snapshot_digest": snapshot_digest, "base_sha256": base_sha256}
    if path.is_file():
        there = read_json(path)
        changed = [
            f"{name}: {there.get(name)!r} there, {value!r} now"
            for name, value in inputs.items()
            if there.get(name) != value
        ]
        _refuse(config.output_dir, changed, "on other data")
    if _is_first():
        write_json(path, inputs)


def _refuse(folder: Path, changed: Sequence[str], what: str) -> None:
    if changed:
        listed = "\n  ".join(changed)
        raise ValueError(
            f"{folder} holds a run {what}; name another output_dir, or remove the folder:"
            f"\n  {listed}"
        )


def _save(
    config: RewardTrainConfig,
    model: PreferenceModel,
    weights: dict[str, Any],
    history: Sequence[Mapping[str, Any]],
    seen: Sequence[CandidateSet],
) -> None:
    with _without_save_bars():
        model.save_pretrained(config.output_dir, state_dict=weights)
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_text(config.output_dir / METRICS_FILE, lines)
    digests = sorted({prompt_digest(candidates.prompt) for candidates in seen})
    write_json(config.output_dir / TRAINED_ON_FILE, digests)
