"""Samples to batches: latents, conditioning, and the noise and noise level of each draw."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from align.config import ResolutionConfig
from align.data.draws import Draws
from align.data.features import Features
from align.data.images import ImageFile, MarkedRegion
from align.data.order import Position
from align.data.rows import CaptionedImage, ImageList, ImagePair, Request
from align.mmdit.adapters import Conditioning
from align.mmdit.flow import interpolate, seeded_noise, seeded_uniform
from align.objectives.diffusion_dpo import (
    DiffusionDPO,
    PairBatch,
    pair_errors,
    pair_reference_errors,
)
from align.objectives.listwise import (
    KTO,
    ListBatch,
    PlackettLuce,
    list_errors,
    list_reference_errors,
)
from align.objectives.sft import SFTBatch
from align.policy import Policy

__all__ = [
    "EMPTY_PROMPT",
    "ImageBatches",
    "ListBatches",
    "PairBatches",
    "PreferenceBatches",
    "with_negatives",
]

S = TypeVar("S", ImagePair, ImageList)
B = TypeVar("B", PairBatch, ListBatch)

EMPTY_PROMPT = " "
"""What stands for no caption, as in the pipeline's own negative prompt."""


def with_negatives(requests: Sequence[Request], wanted: bool) -> list[Request]:
    """Also those without words; the one without source images is always there."""
    empty = [request.without_words(EMPTY_PROMPT) for request in requests if wanted]
    return [Request(EMPTY_PROMPT), *empty, *requests]


class ImageBatches:
    """Batches of captioned images.

    Args:
        caption_dropout: part of the samples that get `EMPTY_PROMPT`, drawn anew each epoch; they
            keep their source images, as the pipelines' negative prompt does.
        num_draws: if given, the samples have so many fixed draws: batches are made by `at`.
    """

    def __init__(
        self,
        samples: Sequence[CaptionedImage],
        features: Features,
        draws: Draws,
        caption_dropout: float = 0.0,
        num_draws: int = 1,
    ) -> None:
        self.samples = samples
        self.features = features
        self.draws = draws
        self.caption_dropout = caption_dropout
        self.num_draws = num_draws

    @property
    def num_places(self) -> int:
        return len(self.samples) * self.num_draws

    def train(self, positions: Sequence[Position]) -> SFTBatch:
        """A training batch; a sample's draw is the number of its epoch."""
        epochs = [position.epoch for position in positions]
        samples = [self.samples[position.item] for position in positions]
        ids = [sample.id for sample in samples]
        requests = [
            sample.request.without_words(EMPTY_PROMPT)
            if self._is_dropped(sample.id, epoch)
            else sample.request
            for sample, epoch in zip(samples, epochs, strict=True)
        ]
        sigma = self.draws.sigma(ids, epochs)
        return self._batch(samples, requests, self.draws.noise(ids, epochs), sigma)

    def at(self, places: Sequence[int]) -> SFTBatch:
        """A validation batch; place ``num_draws * i + k`` is draw k of sample i."""
        samples = [self.samples[place // self.num_draws] for place in places]
        draws = [place % self.num_draws for place in places]
        ids = [f"validation/{sample.id}" for sample in samples]
        sigma = self.draws.spread_sigma(ids, draws, self.num_draws)
        requests = [sample.request for sample in samples]
        return self._batch(samples, requests, self.draws.noise(ids, draws), sigma)

    def _is_dropped(self, sample_id: str, epoch: int) -> bool:
        if not self.caption_dropout:
            return False
        uniform = seeded_uniform(self.draws.seed, f"caption/{sample_id}", epoch)
        return uniform.item() < self.caption_dropout

    def _batch(
        self,
        samples: Sequence[CaptionedImage],
        requests: Sequence[Request],
        noise: Tensor,
        sigma: Tensor,
    ) -> SFTBatch:
        device = self.features.device
        return SFTBatch(
            latents=self.features.latents([sample.image for sample in samples]),
            cond=self.features.conditioning(requests),
            noise=noise.to(device),
            sigma=sigma.to(device),
        )


class PreferenceBatches(ABC, Generic[S, B]):
    """Batches of samples that have several fixed draws each, or a new one in each epoch.

    Args:
        num_draws: so many fixed draws a sample, used in turn by its epochs; None draws anew in
        each. prefix: keeps the draws of held-out samples apart.
    """

    def __init__(
        self,
        samples: Sequence[S],
        features: Features,
        draws: Draws,
        num_draws: int | None,
        prefix: str = "",
    ) -> None:
        self.samples = samples
        self.features = features
        self.draws = draws
        self.num_draws = num_draws
        self.prefix = prefix
        self.reference_errors: Tensor | None = None
        """``(samples, num_draws, K)`` float32 on the CPU, once they are known."""

    @property
    def num_places(self) -> int:
        return len(self.samples) * (self.num_draws or 1)

    def train(self, positions: Sequence[Position]) -> B:
        """A training batch; a sample's draw is the number of its epoch, modulo ``num_draws``."""
        epochs = [position.epoch for position in positions]
        draws = [e % self.num_draws for e in epochs] if self.num_draws else epochs
        return self._batch([position.item for position in positions], draws)

    def at(self, places: Sequence[int]) -> B:
        """Place ``num_draws * i + k`` is draw k of sample i."""
        num_draws = self.num_draws or 1
        return self._batch([p // num_draws for p in places], [p % num_draws for p in places])

    @abstractmethod
    def errors(self, policy: Policy, batch: B) -> Tensor:
        """The policy's errors ``(B, K)`` on a batch: what a reference's are stored of."""

    @abstractmethod
    def probe(self, batch: B) -> tuple[Tensor, Tensor, Conditioning]:
        """``x_t, sigma, cond`` of one image of each sample, for the preflight."""

    @abstractmethod
    def figures(self, objective: Any, policy: Policy, batch: B) -> dict[str, Tensor]:
        """The objective's figures of each sample, ``(B,)``, without training."""

    def digest(self) -> bytes:
        """Names the samples and draws that stored errors belong to."""
        names = (sample.id for sample in self.samples)
        text = "\n".join([repr(self.draws), str(self.num_draws), *self._facts(), *names])
        return hashlib.sha256(text.encode()).digest()

    def _facts(self) -> list[str]:
        """What else the errors depend on."""
        return []

    @abstractmethod
    def _batch(self, indices: Sequence[int], draws: Sequence[int]) -> B:
        """The samples at ``indices``, each with one of its draws."""

    def _ids(self, indices: Sequence[int]) -> list[str]:
        return [f"{self.prefix}{self.samples[index].id}" for index in indices]

    def _sigma(self, ids: Sequence[str], draws: Sequence[int]) -> Tensor:
        if self.num_draws is None:
            return self.draws.sigma(ids, draws)
        return self.draws.spread_sigma(ids, draws, self.num_draws)

    def _reference(self, indices: Sequence[int], draws: Sequence[int]) -> Tensor | None:
        known = self.reference_errors
        return None if known is None else known[indices, draws].to(self.features.device)


class PairBatches(PreferenceBatches[ImagePair, PairBatch]):
    """Batches of preference pairs; the images of a pair share noise and noise level.

    Args:
        noise: ``prior`` takes the noise that each image was generated from.
        label_smoothing: of pairs that bring none of their own.
        resolution: to which the images were brought, and regions are.

    Raises:
        ValueError: ``prior`` noise of an image is not known; names the image.
    """

    def __init__(
        self,
        samples: Sequence[ImagePair],
        features: Features,
        draws: Draws,
        num_draws: int | None,
        prefix: str = "",
        noise: str = "fresh",
        label_smoothing: float = 0.0,
        resolution: ResolutionConfig | None = None,
    ) -> None:
        super().__init__(samples, features, draws, num_draws, prefix)
        self.label_smoothing = label_smoothing
        self.noise = noise
        self.resolution = resolution or ResolutionConfig()
        for pair in samples:
            if noise == "prior" and pair.noise_keys is None:
                raise ValueError(
                    f"noise 'prior' needs the noise that every image was generated from; that of "
                    f"{pair.chosen.path} or {pair.rejected.path} is not known"
                )

    def errors(self, policy: Policy, batch: PairBatch) -> Tensor:
        return pair_errors(policy, batch)

    def probe(self, batch: PairBatch) -> tuple[Tensor, Tensor, Conditioning]:
        return interpolate(batch.chosen, batch.noise, batch.sigma), batch.sigma, batch.cond

    def figures(
        self, objective: DiffusionDPO, policy: Policy, batch: PairBatch
    ) -> dict[str, Tensor]:
        reference = pair_reference_errors(policy, batch)
        return objective.figures(batch, pair_errors(policy, batch), reference)

    def _facts(self) -> list[str]:
        facts = [] if self.noise == "fresh" else [self.noise]
        regions = (pair.region.sha256 if pair.region else "" for pair in self.samples)
        return facts + [f"{i} {region}" for i, region in enumerate(regions) if region]

    def _batch(self, indices: Sequence[int], draws: Sequence[int]) -> PairBatch:
        pairs = [self.samples[index] for index in indices]
        ids = self._ids(indices)
        device = self.features.device
        noise, rejected_noise = self._noise(pairs, ids, draws)
        return PairBatch(
            chosen=self.features.latents([pair.chosen for pair in pairs]),
            rejected=self.features.latents([pair.rejected for pair in pairs]),
            cond=self.features.conditioning([pair.request for pair in pairs]),
            noise=noise.to(device),
            sigma=self._sigma(ids, draws).to(device),
            reference_errors=self._reference(indices, draws),
            weights=torch.tensor([pair.weight for pair in pairs], device=device),
            rejected_noise=None if rejected_noise is None else rejected_noise.to(device),
            region=self._regions(pairs),
            label_smoothing=self._smoothing(pairs),
            ties=self._ties(pairs),
        )

    def _noise(
        self, pairs: Sequence[ImagePair], ids: Sequence[str], draws: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        if self.noise == "fresh":
            return self.draws.noise(ids, draws), None
        keys = [pair.noise_keys or ("", "") for pair in pairs]
        chosen, rejected = (
            torch.stack([named_noise(key[side], self.draws.shape) for key in keys])
            for side in (0, 1)
        )
        return chosen, rejected

    def _regions(self, pairs: Sequence[ImagePair]) -> Tensor | None:
        if all(pair.region is None for pair in pairs):
            return None
        size = self.draws.shape[-2:]
        rows = [
            torch.ones(1, *size) if p.region is None else _region(p.region, self.resolution, size)
            for p in pairs
        ]
        return torch.stack(rows).to(self.features.device)

    # Of a batch without any, the plain loss is computed, to the bit.

    def _smoothing(self, pairs: Sequence[ImagePair]) -> Tensor | None:
        known = [pair.label_smoothing for pair in pairs]
        if all(smoothing is None for smoothing in known):
            return None
        values = [self.label_smoothing if s is None else s for s in known]
        return torch.tensor(values, device=self.features.device)

    def _ties(self, pairs: Sequence[ImagePair]) -> Tensor | None:
        if not any(pair.is_tie for pair in pairs):
            return None
        return torch.tensor([pair.is_tie for pair in pairs], device=self.features.device)


class ListBatches(PreferenceBatches[ImageList, ListBatch]):
    """Batches of lists of images; those of a list share noise and noise level."""

    @property
    def length(self) -> int:
        """K: images of the longest list, which every batch's tensors are wide."""
        return max((len(sample.images) for sample in self.samples), default=1)

    def errors(self, policy: Policy, batch: ListBatch) -> Tensor:
        return list_errors(policy, batch)

    def probe(self, batch: ListBatch) -> tuple[Tensor, Tensor, Conditioning]:
        first = batch.mask.sum(1).cumsum(0) - batch.mask.sum(1)
        x_t = interpolate(batch.latents[first], batch.noise, batch.sigma)
        return x_t, batch.sigma, batch.cond

    def figures(
        self, objective: PlackettLuce | KTO, policy: Policy, batch: ListBatch
    ) -> dict[str, Tensor]:
        reference = list_reference_errors(policy, batch)
        return objective.figures(batch, list_errors(policy, batch), reference)

    def _batch(self, indices: Sequence[int], draws: Sequence[int]) -> ListBatch:
        samples = [self.samples[index] for index in indices]
        ids = self._ids(indices)
        device = self.features.device
        counts = torch.tensor([len(sample.images) for sample in samples])

        def flags(values: Sequence[bool]) -> Tensor:
            return torch.tensor(values, device=device)

        return ListBatch(
            latents=self.features.latents([image for s in samples for image in s.images]),
            mask=(torch.arange(self.length) < counts[:, None]).to(device),
            cond=self.features.conditioning([sample.request for sample in samples]),
            noise=self.draws.noise(ids, draws).to(device),
            sigma=self._sigma(ids, draws).to(device),
            complete=flags([sample.is_complete for sample in samples]),
            equal=flags([sample.is_equal for sample in samples]),
            desirable=flags([sample.is_desirable for sample in samples]),
            reference_errors=self._reference(indices, draws),
            weights=torch.tensor([sample.weight for sample in samples], device=device),
        )


def named_noise(key: str, shape: Sequence[int]) -> Tensor:
    """The noise that a record names ``seed/name/draw``; the name may hold slashes itself.

    Raises:
        ValueError: the key is not of that form; names it.
    """
    seed, _, rest = key.partition("/")
    name, _, draw = rest.rpartition("/")
    if not (seed.isdecimal() and name and draw.isdecimal()):
        raise ValueError(f"noise key {key!r} is not of the form seed/name/draw")
    return seeded_noise(int(seed), name, int(draw), shape)


def _region(
    file: ImageFile | MarkedRegion, resolution: ResolutionConfig, size: Sequence[int]
) -> Tensor:
    """``(1, h, w)`` weights in [0, 1] at the latents' ``size``."""
    grey = (file.load(resolution).mean(0, keepdim=True) + 1) / 2
    weights = F.interpolate(grey[None], tuple(size), mode="area")[0]
    if not weights.sum() > 0:
        raise ValueError(f"the region {file.path} is black everywhere: nothing would be compared")
    return weights
