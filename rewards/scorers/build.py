"""Scorers from their settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from annotate.records import Snapshot
from annotate.settings import load_config
from rewards.base import RewardItem, Scorer
from rewards.composition import (
    Calibration,
    CompositeScorer,
    Gate,
    Part,
    warn_of_shared_backbones,
)
from rewards.failures import RewardSource
from rewards.scorers.config import (
    JudgeScorerConfig,
    PreferenceScorerConfig,
    RemoteScorerConfig,
    RewardMixConfig,
    ScorerConfig,
    TextScorerConfig,
)

__all__ = ["BUILDERS", "build_mix", "build_scorer", "open_mix", "read_token", "snapshot_items"]


def build_scorer(config: ScorerConfig) -> Scorer:
    """The scorer that the settings describe.

    Raises:
        OSError, ValueError: what it needs is missing, or its gate is shut.
        rewards.service.client.ServiceError: its server does not answer.
    """
    return BUILDERS[config.type](config)


def open_mix(path: Path) -> tuple[RewardSource, list[Scorer]]:
    """The reward in a YAML file of `RewardMixConfig`, and the scorers that only measure."""
    return build_mix(load_config(RewardMixConfig, path), path.parent)


def build_mix(config: RewardMixConfig, folder: Path) -> tuple[RewardSource, list[Scorer]]:
    """As `open_mix`; ``folder`` is what calibration paths are relative to."""
    parts = [
        Part(
            build_scorer(part.scorer),
            _read_calibration(folder / part.calibration),
            part.weight,
            part.category_weights,
        )
        for part in config.training
    ]
    gates = [Gate(gate.scorer, gate.minimum, gate.cap, gate.component) for gate in config.gates]
    composite = CompositeScorer(parts, config.rule, gates)
    evaluation = [build_scorer(scorer) for scorer in config.evaluation]
    warn_of_shared_backbones([part.scorer for part in parts], evaluation)
    monitor = None
    if config.monitor is not None:
        from rewards.monitors import MonitorSettings, RewardMonitor

        gold = evaluation[0] if evaluation else None
        monitor = RewardMonitor(MonitorSettings(**config.monitor.model_dump()), gold)
    source = RewardSource(composite, config.on_failure, config.max_failure_rate, monitor)
    return source, evaluation


def snapshot_items(snapshot: Snapshot, limit: int | None = None) -> list[RewardItem]:
    """A snapshot's candidates as items to score, in the order of their ids."""
    from rewards.images import SourcePictures, open_candidate

    items, pictures = [], SourcePictures(snapshot)
    for candidate in sorted(snapshot.candidates, key=lambda candidate: candidate.id)[:limit]:
        prompt = snapshot.prompt_of[candidate.prompt_id]
        items.append(
            RewardItem(
                sample_id=candidate.id,
                group_id=prompt.id,
                prompt=prompt.text,
                image=open_candidate(snapshot, candidate),
                metadata={"category": prompt.category, **prompt.metadata},
                source_images=pictures.of(prompt),
            )
        )
    return items


def read_token(path: Path | None) -> str | None:
    """The token in a file.

    Raises:
        ValueError: the file holds none.
    """
    if path is None:
        return None
    token = path.read_text(encoding="utf-8").strip()
    if not token:
        raise ValueError(f"token_file {path} is empty")
    return token


def _read_calibration(path: Path) -> Calibration:
    if not path.is_file():
        raise FileNotFoundError(
            f"no calibration at {path}: `winsome reward calibrate` writes one for a scorer"
        )
    return Calibration.load(path)


def _preference(config: PreferenceScorerConfig) -> Scorer:
    from rewards.evaluate import require_accuracy
    from rewards.scorers import load_scorer

    require_accuracy(config.path, config.min_accuracy)
    return load_scorer(config.path, base=config.base, device=config.device)


def _text(config: TextScorerConfig) -> Scorer:
    from rewards.scorers.text_rendering import TextRenderingConfig, TextRenderingScorer
    from rewards.text.engines import open_engine

    settings = config.model_dump(exclude={"type", "engine"})
    return TextRenderingScorer(open_engine(config.engine), TextRenderingConfig(**settings))


def _clip(config: Any) -> Scorer:
    from rewards.scorers import clip

    open_scorer = {
        "pickscore": clip.open_pickscore,
        "hpsv2": clip.open_hpsv2,
        "clip_score": clip.open_clip_score,
        "laion_aesthetic": clip.open_aesthetic,
    }
    return open_scorer[config.type](config)


def _remote(config: RemoteScorerConfig) -> Scorer:
    from rewards.service.cache import ScoreCache
    from rewards.service.client import ClientSettings, RemoteScorer

    settings = config.model_dump(exclude={"type", "url", "scorer", "token_file", "cache"})
    return RemoteScorer(
        config.url,
        config.scorer,
        ClientSettings(token=read_token(config.token_file), **settings),
        ScoreCache(path=config.cache),
    )


def _judge(config: JudgeScorerConfig) -> Scorer:
    from rewards.scorers.judge import JudgeScorer, JudgeSettings
    from rewards.scorers.rubrics import Rubric
    from rewards.service.cache import ScoreCache
    from rewards.service.client import ClientSettings

    asked = {"model", "criteria", "mode", "language", "scale", "min_mass"}
    sent = {"deadline", "attempts", "backoff", "concurrency"}
    return JudgeScorer(
        config.url,
        JudgeSettings(**config.model_dump(include=asked)),
        ClientSettings(token=read_token(config.token_file), **config.model_dump(include=sent)),
        name=config.name,
        rubrics={name: Rubric(**of.model_dump()) for name, of in config.rubrics.items()},
        extra=config.extra,
        cache=ScoreCache(path=config.cache),
    )


BUILDERS: dict[str, Callable[[Any], Scorer]] = {
    "preference": _preference,
    "text_rendering": _text,
    "pickscore": _clip,
    "hpsv2": _clip,
    "clip_score": _clip,
    "laion_aesthetic": _clip,
    "judge": _judge,
    "remote": _remote,
}
