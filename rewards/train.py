"""``winsome reward train``: from a snapshot to a reward model with its report."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, set_seed
from transformers.utils import logging as transformers_logging
from trl import RewardConfig

from annotate.records import Question, Snapshot, load_snapshot
from annotate.settings import changed_settings, dump_config, load_config
from rewards.agreement import fit_temperature, scored_pairs
from rewards.by_time import split_by_time
from rewards.components import check_snapshot
from rewards.config import RewardTrainConfig
from rewards.digests import DIGESTS_FILE, damage
from rewards.evaluate import evaluate_model, register
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
from rewards.models import load_encoder
from rewards.models.features import (
    Bank,
    CandidateEncoder,
    FeatureCache,
    collate,
    extract_features,
    own_features,
    own_prompts,
)
from rewards.models.preference import OVERALL, PreferenceConfig, PreferenceModel
from rewards.scorers.preference import PreferenceScorer
from rewards.splits import prompt_digest
from rewards.supervision import supervise
from rewards.trainer import CandidateTrainer, DigestCallback, SetCollator, to_dataset

__all__ = ["RewardResult", "open_snapshot", "train_reward"]

logger = logging.getLogger(__name__)

CRITERIA = (Question.AESTHETICS, Question.INSTRUCTION, Question.DETAIL)
"""The questions that have a head, in this order; "overall" combines them."""


@dataclass(frozen=True, slots=True)
class RewardResult:
    folder: Path
    """What `rewards.scorers.load_scorer` opens."""
    report: dict[str, Any]


def train_reward(config: RewardTrainConfig) -> RewardResult:
    """Train a preference model, measure it on held-out prompts, and save both.

    An interrupted run in ``config.output_dir`` is continued exactly: the weights are those of a run
    without interruption, bit for bit on a CPU with a fixed number of threads.

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
    is_first = int(os.environ.get("RANK", "0")) == 0
    with FolderLock(config.output_dir) if is_first else nullcontext():
        return _train(config, snapshot, division)


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
    settings = config.encoder.model_dump(mode="json")
    encoder = load_encoder(settings, config.base, config.device)
    _claim_inputs(config, snapshot.digest, encoder.identity["base_sha256"])
    cache = FeatureCache(config.cache_dir or config.output_dir / FEATURES, encoder.identity)
    seen = (*lessons, *division.development)
    bank = extract_features(snapshot, own_prompts(seen), encoder, cache)
    model = _build_model(config, lessons, encoder, bank)
    trainer = _build_trainer(config, model, lessons, division, bank, encoder.tokenizer)
    with _without_save_bars():
        last = _last_whole_checkpoint(config.output_dir / CHECKPOINTS)
        trainer.train(resume_from_checkpoint=last)
    model.config.temperatures = _fit_temperatures(model, encoder, division.development, bank)
    _save(config, model, trainer.state.log_history, seen)
    scorer = PreferenceScorer(model, encoder, version="")
    alike = config.check_alike != "off"
    report = {
        **evaluate_model(config.output_dir, scorer, snapshot, config.held_out, cache, alike),
        "temperatures": model.config.temperatures,
        "overall_weights": model.overall_weights(),
        "best_step": trainer.state.best_global_step,
        "seed": config.seed,
        "trained_on": {
            "num_prompts": len({candidates.prompt.id for candidates in division.train}),
            "num_picks": sum(len(candidates.judgements) for candidates in division.train),
            "questions": count_questions(lessons),
        },
    }
    register(config.output_dir, report)
    return RewardResult(config.output_dir, report)


def _build_model(
    config: RewardTrainConfig,
    lessons: Sequence[CandidateSet],
    encoder: CandidateEncoder,
    bank: Bank,
) -> PreferenceModel:
    """An untrained model with a head for each criterion that training picks ask for or name."""
    asked = count_questions(lessons)
    criteria = [question.value for question in CRITERIA if question.value in asked] or [OVERALL]
    batch = collate(list(own_features(lessons, bank).values()))
    set_seed(config.seed)
    model = PreferenceModel(
        PreferenceConfig(
            criteria=criteria,
            base=config.base,
            encoder=dict(encoder.identity),
            encoder_fingerprint=encoder.fingerprint(),
            num_image_tokens=batch.image.shape[1],
            image_dim=batch.image.shape[2],
            text_dim=batch.text.shape[2],
            stats_dim=batch.stats.shape[1],
            loss=config.loss,
            **config.head.model_dump(),
        )
    )
    model.standardise_by(batch)
    return model


def _build_trainer(
    config: RewardTrainConfig,
    model: PreferenceModel,
    lessons: Sequence[CandidateSet],
    division: Division,
    bank: Bank,
    tokenizer: Any,
) -> CandidateTrainer:
    outputs, keep_ties = model.config.outputs, config.ties == "uniform"
    trainer = CandidateTrainer(
        model=model,
        args=_trainer_settings(config),
        train_dataset=to_dataset(lessons, outputs, keep_ties),
        eval_dataset=to_dataset(division.development, outputs, keep_ties),
        data_collator=SetCollator(bank),
        processing_class=tokenizer,
        callbacks=[
            EarlyStoppingCallback(early_stopping_patience=config.patience),
            DigestCallback(),
        ],
        loss=config.loss,
    )
    # Without a terminal the Trainer would print a dict every epoch; metrics.jsonl has them.
    trainer.remove_callback(PrinterCallback)
    return trainer


def _trainer_settings(config: RewardTrainConfig) -> RewardConfig:
    on_cpu = torch.device(config.device).type == "cpu"
    return RewardConfig(
        output_dir=str(config.output_dir / CHECKPOINTS),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=256,
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
        free = {"cache_dir", "device", "encoder.batch_size"}
        changed = changed_settings(load_config(RewardTrainConfig, path), config, free)
        _refuse(config.output_dir, changed, "with other settings")
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
    write_json(path, inputs)


def _refuse(folder: Path, changed: Sequence[str], what: str) -> None:
    if changed:
        listed = "\n  ".join(changed)
        raise ValueError(
            f"{folder} holds a run {what}; name another output_dir, or remove the folder:"
            f"\n  {listed}"
        )


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint whose files, and those of the best one that it names, are whole.

    One that was not written to its end is removed; a damaged one is renamed, and the run continues
    from one before it with the same numbers.

    Raises:
        ValueError: all are damaged; names a file.
    """
    faults: dict[Path, str] = {}
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        if not (path / DIGESTS_FILE).is_file():
            logger.warning("removing %s: it was not written to its end", path)
            shutil.rmtree(path)
            continue
        fault = damage(path) or _damaged_best(path)
        if fault is None:
            _set_aside(faults)
            return str(path)
        faults[path] = fault
    if faults:
        raise ValueError(
            f"the checkpoint is damaged: {next(iter(faults.values()))}. There is no whole one "
            f"before it: put the file back as it was, or remove {folder} to begin anew"
        )
    return None


def _damaged_best(path: Path) -> str | None:
    """What is wrong with the checkpoint that a run continued from ``path`` would end on."""
    best = read_json(path / "trainer_state.json")["best_model_checkpoint"]
    return damage(path.parent / Path(best).name) if best else None


def _set_aside(faults: Mapping[Path, str]) -> None:
    for path, fault in faults.items():
        place = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(place, ignore_errors=True)
        path.rename(place)
        logger.error("the checkpoint is damaged: %s. It was renamed to %s", fault, place)


def _save(
    config: RewardTrainConfig,
    model: PreferenceModel,
    history: Sequence[Mapping[str, Any]],
    seen: Sequence[CandidateSet],
) -> None:
    with _without_save_bars():
        model.save_pretrained(config.output_dir)
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_text(config.output_dir / METRICS_FILE, lines)
    digests = sorted({prompt_digest(candidates.prompt.text) for candidates in seen})
    write_json(config.output_dir / TRAINED_ON_FILE, digests)
