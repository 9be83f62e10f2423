"""The trained preference model as a `Scorer`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from align.mmdit.adapters.base import ModelAdapter
from rewards.base import RewardItem, Score, ScorerSpec
from rewards.folder import WEIGHTS_FILE, file_sha256
from rewards.models import open_encoder
from rewards.models.features import CandidateEncoder, Inputs
from rewards.models.preference import PreferenceConfig, PreferenceModel

__all__ = ["PreferenceScorer"]


class PreferenceScorer:
    """Scores images, or latents where its encoder reads them; ``value`` is the overall score,
    ``components`` the criteria.

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
            needs=encoder.needs,
            # The network that it looks through, or that it was made of.
            backbone=str(encoder.identity["base_sha256"] or encoder.identity["type"]),
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
        place = base or config.base
        encoder = open_encoder(
            config.encoder,
            str(place) if place else None,
            device,
            criteria=config.criteria,
            adapter=adapter,
        )
        encoder.check_fingerprint(config.encoder_fingerprint)
        model = PreferenceModel.open(folder, encoder.network)
        model.to(device=torch.device(device))  # pyright: ignore[reportCallIssue]
        # The configuration counts too: it holds the temperatures and the base's hash.
        hashes = [file_sha256(folder / name) for name in (WEIGHTS_FILE, "config.json")]
        return cls(model, encoder, hashlib.sha256("/".join(hashes).encode()).hexdigest()[:16])

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """One score per item, in order; see `rewards.base.Scorer`."""
        faults = [
            _fault(item, self.spec.needs) or self.encoder.source_fault(len(item.source_images))
            for item in items
        ]
        usable = [item for item, fault in zip(items, faults, strict=True) if fault is None]
        scores = iter(self._scores(usable))
        return [next(scores) if fault is None else Score(None, error=fault) for fault in faults]

    @torch.inference_mode()
    def score_inputs(self, inputs: Iterable[Inputs]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over members, (N, C) each, columns as ``outputs``.

        Where the model gives each score a variance (loss ``gaussian``), its mean over members is
        added to that between them.
        """
        means, deviations = [], []
        every = iter(inputs)
        while some := list(islice(every, self.encoder.batch_size)):
            batch = self.encoder.collate(some)
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

    def score_candidates(self, inputs: Mapping[str, Inputs]) -> dict[str, dict[str, float]]:
        """Scores by candidate id and output."""
        ids = sorted(inputs)
        means, _ = self.score_inputs(inputs[candidate_id] for candidate_id in ids)
        return {
            candidate_id: dict(zip(self.outputs, row, strict=True))
            for candidate_id, row in zip(ids, means.tolist(), strict=True)
        }

    def _scores(self, items: Sequence[RewardItem]) -> list[Score]:
        if not items:
            return []
        means, deviations = self.score_inputs(self.encoder.encode(items))
        cut = self.encoder.left_out([item.prompt for item in items])
        rows = zip(means.tolist(), deviations[:, -1].tolist(), cut, strict=True)
        return [self._as_score(*row) for row in rows]

    def _as_score(self, row: Sequence[float], spread: float, truncated: int) -> Score:
        if not all(map(math.isfinite, [*row, spread])):
            return Score(None, error=f"the score is not finite: {row}")
        components = dict(zip(self.spec.components, row, strict=False))
        return Score(row[-1], components, sigma=spread, truncated=truncated)


def _fault(item: RewardItem, needs: Set[str]) -> str | None:
    """Why an item cannot be scored, or None."""
    for number, source in enumerate(item.source_images, start=1):
        if fault := _unreadable(source):
            return f"source image {number} cannot be read: {fault}"
    if item.latents is not None and "latents" in needs:
        if item.latents.ndim != 3:
            return f"latents must be (C, h, w), got {tuple(item.latents.shape)}"
        return None if bool(torch.isfinite(item.latents).all()) else "latents are not finite"
    if item.image is None:
        return "there is neither an image nor latents" if len(needs) > 1 else "there is no image"
    fault = _unreadable(item.image)
    return f"the image cannot be read: {fault}" if fault else None


def _unreadable(image: Image) -> str | None:
    try:
        image.load()
    except (OSError, SyntaxError) as error:
        return str(error) or type(error).__name__
    return None
