"""What an encoder tells a preference model about a candidate, and a cache of it on disk.

Any encoder can stand behind a preference model: it turns `RewardItem`s into `Features`, or, when it
trains, into what its network reads, and has an ``identity`` that names everything these depend on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from annotate.records import Snapshot
from rewards.base import RewardItem
from rewards.images import SourcePictures, open_candidate
from rewards.judgements import CandidateSet

__all__ = [
    "Bank",
    "CandidateEncoder",
    "FeatureBatch",
    "FeatureCache",
    "Features",
    "Inputs",
    "collate",
    "extract_features",
    "open_bank",
    "own_features",
    "own_prompts",
]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """One candidate: tokens in the encoder's dtype, on the CPU."""

    image: Tensor
    """(T, D) tokens on a fixed grid, row by row; T is the same for all candidates."""
    text: Tensor
    """(L, E) tokens of the prompt, without padding."""
    stats: Tensor
    """(S,) float32 statistics of the whole image."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBatch:
    """``N`` candidates, float32."""

    image: Tensor
    """(N, T, D)"""
    text: Tensor
    """(N, L, E), zero where padded"""
    text_mask: Tensor
    """(N, L), true where there is a token"""
    stats: Tensor
    """(N, S)"""

    def as_dict(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


Inputs = Features | dict[str, Tensor]
"""What an encoder makes of one candidate: features, or what its network reads as it trains."""

Bank = Mapping[tuple[str, str], Inputs]
"""By (candidate id, prompt). What a candidate's own prompt edits is read with it."""


class CandidateEncoder(Protocol):
    """Turns candidates into what the preference model reads."""

    network: nn.Module | None
    """What trains with the heads: collated inputs to the head's arguments. None: frozen, the inputs
    are features that can be kept."""
    head: str
    """The heads that read it, of `rewards.models.heads.HEADS`."""
    needs: frozenset[str]
    """The item fields that it reads, of ``image`` and ``latents``; any one of them is enough."""
    batch_size: int
    """Candidates that the model scores at a time."""
    tokenizer: Any
    """A tokenizer with a padding token."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON data that names everything the inputs depend on, the base by ``base_sha256`` (empty
        where there is none); part of the scorer's identity."""
        ...

    def encode(self, items: Sequence[RewardItem]) -> list[Inputs]:
        """One for each item, in order, the same in any batch."""
        ...

    def collate(self, inputs: Sequence[Any]) -> dict[str, Tensor]:
        """Inputs of several candidates as one batch, padded where need be."""
        ...

    def left_out(self, prompts: Sequence[str]) -> list[int]:
        """Tokens at the end of each prompt that are not read, for want of room."""
        ...

    def source_fault(self, count: int) -> str | None:
        """Why a prompt with so many source images cannot be read, and what can read it; None where
        it can, or where the encoder looks at the drawn image alone."""
        ...

    def fingerprint(self) -> list[float]:
        """A few numbers that tell what the base's weights in memory compute."""
        ...

    def check_fingerprint(self, expected: Sequence[float]) -> None:
        """``ValueError`` when the encoder's fingerprint is not the one expected."""
        ...


def collate(features: Sequence[Features]) -> FeatureBatch:
    """Stack candidates, padding the text tokens on the right."""
    lengths = torch.tensor([len(f.text) for f in features])
    text = torch.nn.utils.rnn.pad_sequence([f.text.float() for f in features], batch_first=True)
    return FeatureBatch(
        image=torch.stack([f.image for f in features]).float(),
        text=text,
        text_mask=torch.arange(text.shape[1])[None] < lengths[:, None],
        stats=torch.stack([f.stats for f in features]),
    )


class FeatureCache:
    """Features on disk, one file per (encoder, image, prompt, source image): never stale, safe to
    share. A source is named by its SHA-256; None: the prompt draws."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self._identity = json.dumps(identity, sort_keys=True)
        name = hashlib.sha256(self._identity.encode()).hexdigest()[:16]
        self.folder = folder / name

    def path(self, image_sha256: str, prompt: str, source: str | None = None) -> Path:
        sources = [] if source is None else [source]
        key = json.dumps([self._identity, image_sha256, prompt, *sources])
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def load(self, image_sha256: str, prompt: str, source: str | None = None) -> Features | None:
        """The stored features; None when there are none, or when the file is damaged."""
        try:
            return Features(**load_file(self.path(image_sha256, prompt, source)))
        except FileNotFoundError:
            return None
        except (SafetensorError, TypeError):
            # Written again by the caller.
            return None

    def store(
        self, image_sha256: str, prompt: str, features: Features, source: str | None = None
    ) -> None:
        path = self.path(image_sha256, prompt, source)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a reader, or a run that is killed, never sees half a file.
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        tensors = {f.name: getattr(features, f.name).contiguous() for f in fields(features)}
        save_file(tensors, temporary)
        temporary.replace(path)


def extract_features(
    snapshot: Snapshot,
    wanted: Iterable[tuple[str, str]],
    encoder: CandidateEncoder,
    cache: FeatureCache | None = None,
    chunk: int = 64,
) -> dict[tuple[str, str], Any]:
    """Features of each (candidate id, prompt) of ``wanted``, from the cache where it has them.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: an image was changed or cannot be read, named by its file; or the encoder cannot
            read a candidate's source image, named by the candidate.
    """
    reader = _ItemReader(snapshot)
    bank: dict[tuple[str, str], Any] = {}
    missing: list[tuple[str, str]] = []
    for candidate_id, prompt in sorted(set(wanted)):
        image, source = reader.digests(candidate_id)
        found = cache.load(image, prompt, source) if cache else None
        if found is None:
            missing.append((candidate_id, prompt))
        else:
            bank[candidate_id, prompt] = found
    with tqdm(total=len(missing), desc="features", unit="image", disable=None) as progress:
        for start in range(0, len(missing), chunk):
            part = missing[start : start + chunk]
            items = reader.items(part)
            for (cid, prompt), features in zip(part, encoder.encode(items), strict=True):
                bank[cid, prompt] = features
                if cache and isinstance(features, Features):
                    image, source = reader.digests(cid)
                    cache.store(image, prompt, features, source)
            progress.update(len(part))
    return bank


def own_prompts(sets: Iterable[CandidateSet]) -> list[tuple[str, str]]:
    """(candidate id, the prompt it was drawn for) of every candidate."""
    return [
        (cid, candidates.prompt.text) for candidates in sets for cid in candidates.candidate_ids
    ]


def open_bank(
    snapshot: Snapshot,
    wanted: Iterable[tuple[str, str]],
    encoder: CandidateEncoder,
    cache: FeatureCache | None = None,
) -> Bank:
    """What the model reads of each (candidate id, prompt) of ``wanted``.

    Features of a frozen encoder are computed once, as by `extract_features`. For one that trains,
    an image is read when it is asked for: pixels of a whole snapshot would fill the memory.
    """
    if encoder.network is None:
        return extract_features(snapshot, wanted, encoder, cache)
    return _LazyBank(snapshot, sorted(set(wanted)), encoder)


def own_features(sets: Iterable[CandidateSet], bank: Bank) -> Mapping[str, Inputs]:
    """What the model reads of every candidate under its own prompt, by candidate id."""
    return _Renamed(bank, {cid: (cid, prompt) for cid, prompt in own_prompts(sets)})


class _ItemReader:
    """Candidates of a snapshot as items, with what their own prompts edit."""

    def __init__(self, snapshot: Snapshot):
        self._snapshot, self._sources = snapshot, SourcePictures(snapshot)

    def digests(self, candidate_id: str) -> tuple[str, str | None]:
        """SHA-256 of a candidate's image, and of the source image of its prompt if it has one."""
        candidate = self._snapshot.candidate_of[candidate_id]
        return candidate.image_sha256, self._snapshot.prompt_of[candidate.prompt_id].source_image

    def items(self, keys: Sequence[tuple[str, str]]) -> list[RewardItem]:
        """Of each (candidate id, prompt)."""
        candidates = {name: self._snapshot.candidate_of[name] for name, _ in keys}
        # One picture object for all its prompts: the encoder then encodes it once.
        images = {name: open_candidate(self._snapshot, of) for name, of in candidates.items()}
        return [
            RewardItem(
                sample_id=name,
                group_id=(own := self._snapshot.prompt_of[candidates[name].prompt_id]).id,
                prompt=prompt,
                image=images[name],
                source_images=self._sources.of(own),
            )
            for name, prompt in keys
        ]


class _LazyBank(Mapping[tuple[str, str], Inputs]):
    def __init__(
        self, snapshot: Snapshot, keys: Sequence[tuple[str, str]], encoder: CandidateEncoder
    ):
        self._reader, self._keys, self._encoder = _ItemReader(snapshot), keys, encoder

    def __getitem__(self, key: tuple[str, str]) -> Inputs:
        return self._encoder.encode(self._reader.items([key]))[0]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class _Renamed(Mapping[str, Inputs]):
    def __init__(self, bank: Bank, keys: Mapping[str, tuple[str, str]]):
        self._bank, self._keys = bank, keys

    def __getitem__(self, name: str) -> Inputs:
        return self._bank[self._keys[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
