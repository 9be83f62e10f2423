"""The trained preference model as a `Scorer`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from align.mmdit.adapters.base import ModelAdapter
from rewards.base import RewardItem, Score, ScorerSpec
from rewards.folder import WEIGHTS_FILE, file_sha256
from rewards.models import build_encoder, load_encoder
from rewards.models.features import CandidateEncoder, Features, collate
from rewards.models.preference import PreferenceConfig, PreferenceModel

__all__ = ["PreferenceScorer"]

_BATCH_SIZE = 256


class PreferenceScorer:
    """Scores latents or images; ``value`` is the overall score, ``components`` the criteria.

    Scores are in log-odds: where one candidate scores d above another, the model holds that a
    designer prefers it with probability s(d).
    """

    def __init__(self, model: PreferenceModel, encoder: CandidateEncoder, version: str):
        self.model = model.eval().requires_grad_(False)
        self.encoder = encoder
        self.outputs = model.config.outputs
        temperatures = [model.config.temperatures.get(name, 1.0) for name in self.outputs]
        self._temperatures = torch.tensor(temperatures, device=model.device)
        self.spec = ScorerSpec(
            name="preference",
            version=version,
            components=tuple(model.config.criteria),
            needs=frozenset({"image", "latents"}),
            # The frozen network that its features come from.
            backbone=str(encoder.identity.get("base_sha256", "")),
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        adapter: ModelAdapter | None = None,
        base: str | Path | None = None,
        device: str = "cpu",
    ) -> PreferenceScorer:
        """See `rewards.scorers.load_scorer`."""
        folder = Path(folder)
        if not (folder / WEIGHTS_FILE).is_file():
            raise FileNotFoundError(f"no reward model in {folder}: {WEIGHTS_FILE} is missing")
        config = PreferenceConfig.from_pretrained(folder)
        if adapter is None:
            encoder = load_encoder(config.encoder, str(base or config.base), device)
        else:
            encoder = build_encoder(config.encoder, adapter)
        encoder.check_fingerprint(config.encoder_fingerprint)
        model = PreferenceModel.from_pretrained(folder, dtype=torch.float32)
        model.to(device=torch.device(device))  # pyright: ignore[reportCallIssue]
        # The configuration counts too: it holds the temperatures and the base's hash.
        hashes = [file_sha256(folder / name) for name in (WEIGHTS_FILE, "config.json")]
        return cls(model, encoder, hashlib.sha256("/".join(hashes).encode()).hexdigest()[:16])

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """One score per item, in order; see `rewards.base.Scorer`."""
        faults = [_fault(item) for item in items]
        usable = [item for item, fault in zip(items, faults, strict=True) if fault is None]
        scores = iter(self._scores(usable))
        return [next(scores) if fault is None else Score(None, error=fault) for fault in faults]

    @torch.inference_mode()
    def score_features(self, features: Sequence[Features]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over members, (N, C) each, columns as ``outputs``.

        Where the model gives each score a variance (loss ``gaussian``), its mean over members is
        added to that between them.
        """
        means, deviations = [], []
        for start in range(0, len(features), _BATCH_SIZE):
            batch = collate(features[start : start + _BATCH_SIZE]).as_dict()
            batch = {name: value.to(self.model.device) for name, value in batch.items()}
            output = self.model(**batch)
            logits = output.logits / self._temperatures
            means.append(logits.mean(dim=1).cpu())
            deviation = logits.std(dim=1, unbiased=False)
            if output.variance is not None:
                own = output.variance.mean(dim=1) / self._temperatures.square()
                deviation = (deviation.square() + own).sqrt()
            deviations.append(deviation.cpu())
        return torch.cat(means), torch.cat(deviations)

    def score_candidates(self, features: Mapping[str, Features]) -> dict[str, dict[str, float]]:
        """Scores by candidate id and output."""
        ids = sorted(features)
        means, _ = self.score_features([features[candidate_id] for candidate_id in ids])
        return {
            candidate_id: dict(zip(self.outputs, row, strict=True))
            for candidate_id, row in zip(ids, means.tolist(), strict=True)
        }

    def _scores(self, items: Sequence[RewardItem]) -> list[Score]:
        if not items:
            return []
        means, deviations = self.score_features(self.encoder.encode(items))
        scores = []
        for row, spread in zip(means.tolist(), deviations[:, -1].tolist(), strict=True):
            if all(map(_is_finite, [*row, spread])):
                components = dict(zip(self.spec.components, row, strict=False))
                scores.append(Score(row[-1], components, sigma=spread))
            else:
                scores.append(Score(None, error=f"the score is not finite: {row}"))
        return scores


def _is_finite(number: float) -> bool:
    return number - number == 0.0


def _fault(item: RewardItem) -> str | None:
    """Why an item cannot be scored, or None."""
    if item.latents is not None:
        if item.latents.ndim != 3:
            return f"latents must be (C, h, w), got {tuple(item.latents.shape)}"
        return None if bool(torch.isfinite(item.latents).all()) else "latents are not finite"
    if item.image is None:
        return "there is neither an image nor latents"
    try:
        item.image.load()
    except (OSError, SyntaxError) as error:
        return f"the image cannot be read: {error}"
    return None
