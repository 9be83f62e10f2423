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
from rewards.images import open_candidate
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
"""By (candidate id, prompt)."""


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
    """Features on disk, one file per (encoder, image, prompt): never stale, safe to share."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self._identity = json.dumps(identity, sort_keys=True)
        name = hashlib.sha256(self._identity.encode()).hexdigest()[:16]
        self.folder = folder / name

    def path(self, image_sha256: str, prompt: str) -> Path:
        key = json.dumps([self._identity, image_sha256, prompt])
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def load(self, image_sha256: str, prompt: str) -> Features | None:
        """The stored features; None when there are none, or when the file is damaged."""
        try:
            return Features(**load_file(self.path(image_sha256, prompt)))
        except FileNotFoundError:
            return None
        except (SafetensorError, TypeError):
            # Written again by the caller.
            return None

    def store(self, image_sha256: str, prompt: str, features: Features) -> None:
        path = self.path(image_sha256, prompt)
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
        ValueError: an image was changed or cannot be read; the message names the file.
    """
    sha256 = {candidate.id: candidate.image_sha256 for candidate in snapshot.candidates}
    bank: dict[tuple[str, str], Any] = {}
    missing: list[tuple[str, str]] = []
    for candidate_id, prompt in sorted(set(wanted)):
        found = cache.load(sha256[candidate_id], prompt) if cache else None
        if found is None:
            missing.append((candidate_id, prompt))
        else:
            bank[candidate_id, prompt] = found
    with tqdm(total=len(missing), desc="features", unit="image", disable=None) as progress:
        for start in range(0, len(missing), chunk):
            part = missing[start : start + chunk]
            ids = {candidate_id for candidate_id, _ in part}
            # One picture object for all its prompts: the encoder then encodes it once.
            images = {cid: open_candidate(snapshot, snapshot.candidate_of[cid]) for cid in ids}
            items = [RewardItem(cid, "", prompt, image=images[cid]) for cid, prompt in part]
            for (cid, prompt), features in zip(part, encoder.encode(items), strict=True):
                bank[cid, prompt] = features
                if cache and isinstance(features, Features):
                    cache.store(sha256[cid], prompt, features)
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


class _LazyBank(Mapping[tuple[str, str], Inputs]):
    def __init__(
        self, snapshot: Snapshot, keys: Sequence[tuple[str, str]], encoder: CandidateEncoder
    ):
        self._snapshot, self._keys, self._encoder = snapshot, keys, encoder

    def __getitem__(self, key: tuple[str, str]) -> Inputs:
        candidate_id, prompt = key
        image = open_candidate(self._snapshot, self._snapshot.candidate_of[candidate_id])
        return self._encoder.encode([RewardItem(candidate_id, "", prompt, image=image)])[0]

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
