"""The diffusion-native encoder: the first blocks of the frozen base MMDiT, read at a small noise.

The base already knows what captions mean and where things lie, and it reads latents: scoring a
rollout needs neither a decoder nor a second image model.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.mmdit.adapters import load_adapter
from align.mmdit.adapters.base import Conditioning, ModelAdapter
from align.mmdit.flow import interpolate, seeded_noise
from rewards.base import RewardItem
from rewards.encoder_config import EXECUTION, DiffusionEncoderConfig
from rewards.images import picture_sha256
from rewards.models.features import Features, collate

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DiffusionEncoder"]

_MEMORY_BYTES = 4 << 30
"""Encoded prompts beyond this are encoded anew when they come back. By bytes, not by number: a
picture to edit may be more than a thousand tokens."""
_PROMPT_BATCH = 32

_Asked = tuple[str, ...]
"""A prompt's words, then the digest of each picture that it edits."""


class DiffusionEncoder:
    """Image and text tokens after ``num_blocks`` blocks, beside the latents themselves.

    A base that edits reads what the prompt edits as its trainers do: the text encoder looks at the
    pictures, and their latents are further frames, of which no feature is made. A base that only
    draws refuses them.

    Args:
        adapter: the base model. Its first blocks are copied: training the adapter's transformer
            afterwards does not change the features.
    """

    network = None
    head = "tokens"
    needs = frozenset({"image", "latents"})

    def __init__(self, adapter: ModelAdapter, config: DiffusionEncoderConfig):
        transformer: Any = adapter.transformer
        available = len(transformer.transformer_blocks)
        if config.num_blocks > available:
            raise ValueError(
                f"encoder.num_blocks is {config.num_blocks}, but the base has {available} blocks"
            )
        self._adapter = adapter
        self._config = config
        self._transformer = _first_blocks(transformer, config.num_blocks)
        self._device = next(self._transformer.parameters()).device
        self.tokenizer = adapter.tokenizer
        self.batch_size = 256
        self._conditionings: dict[_Asked, Conditioning] = {}
        self._prepared: set[_Asked] = set()
        self.identity = {
            **config.model_dump(mode="json", exclude=EXECUTION),
            "base_sha256": adapter.model_sha256(),
        }

    @classmethod
    def open(
        cls,
        config: DiffusionEncoderConfig,
        base: str | None,
        device: str,
        *,
        criteria: Sequence[str] = (),
        adapter: ModelAdapter | None = None,
    ) -> DiffusionEncoder:
        """On ``adapter``, or on a base that is loaded for it alone: of its blocks, only those that
        are needed come to ``device``."""
        if adapter is not None:
            return cls(adapter, config)
        if base is None:
            raise ValueError("encoder type 'diffusion' needs a base: a pipeline folder or a hub id")
        adapter = load_adapter(base, dtype=getattr(torch, config.dtype))
        encoder = cls(adapter, config)
        adapter.transformer = None
        return encoder.to(device)

    def collate(self, inputs: Sequence[Features]) -> dict[str, Tensor]:
        return collate(inputs).as_dict()

    def left_out(self, prompts: Sequence[str]) -> list[int]:
        return [0] * len(prompts)

    def to(self, device: torch.device | str) -> DiffusionEncoder:
        """Bring all that it computes with to ``device``; returns itself."""
        adapter: Any = self._adapter
        for module in (self._transformer, adapter.vae, adapter.text_encoder):
            module.to(device)
        self._device = torch.device(device)
        return self

    def source_fault(self, count: int) -> str | None:
        try:
            self._adapter.check_sources(count)
        except ValueError as error:
            return (
                f"the reward model's base cannot read its source images: {error}; or an encoder of "
                "type 'qwen_vl', which looks at any number"
            )
        return None

    @torch.inference_mode()
    def prepare(self, prompts: Iterable[tuple[str, Sequence[Image]]]) -> None:
        """Encode prompts with their source images now and lay the text encoder into host memory:
        beside a 20B model that trains there is no room for it. Other prompts are encoded there
        later, slowly.

        Raises:
            ValueError: the base cannot read the source images of a prompt; names it.
        """
        every = iter(prompts)
        while batch := list(islice(every, _PROMPT_BATCH)):
            for prompt, sources in batch:
                if fault := self.source_fault(len(sources)):
                    raise ValueError(f"the prompt {prompt!r}: {fault}")
            asked = _name(batch)
            self._remember(dict(zip(asked, (sources for _, sources in batch), strict=True)))
            self._prepared.update(asked)
        cast(Any, self._adapter).text_encoder.to("cpu")

    @torch.inference_mode()
    def encode(self, items: Sequence[RewardItem]) -> list[Features]:
        """Features of items that carry latents or an image.

        Raises:
            ValueError: an item has neither, or source images that the base cannot read; the message
                names it.
        """
        for item in items:
            if fault := self.source_fault(len(item.source_images)):
                raise ValueError(f"sample {item.sample_id!r}: {fault}")
        latents = self._latents(items)
        asked = _name([(item.prompt, item.source_images) for item in items])
        unique = dict(zip(asked, (item.source_images for item in items), strict=True))
        self._remember(unique)
        self._forget(self._prepared.union(unique))
        alike: dict[tuple[torch.Size, ...], list[int]] = defaultdict(list)
        for index, x_0 in enumerate(latents):
            sources = self._conditionings[asked[index]].sources
            alike[x_0.shape, *(source.shape for source in sources)].append(index)
        found: dict[int, Features] = {}
        for indices in alike.values():
            for start in range(0, len(indices), self._config.batch_size):
                batch = indices[start : start + self._config.batch_size]
                stacked = torch.stack([latents[index] for index in batch])
                features = self._encode_batch(stacked, [asked[index] for index in batch])
                found.update(zip(batch, features, strict=True))
        return [found[index] for index in range(len(items))]

    @torch.inference_mode()
    def fingerprint(self) -> list[float]:
        """Features of a fixed probe, in a few numbers: what the blocks in memory really compute.

        The base's hash is that of its files; weights that were trained after loading, or carry a
        LoRA, keep it and show here.
        """
        adapter, config = self._adapter, self._config
        shape = adapter.latent_shape(*[16 * adapter.scale_factor] * 2)
        width = self._transformer.config.joint_attention_dim
        embeds = seeded_noise(config.noise_seed, "reward-probe-text", 0, (1, 8, width))
        x_t = seeded_noise(config.noise_seed, "reward-probe", 0, (1, *shape)).to(self._device)
        sigma = torch.full((1,), config.sigmas[0], device=self._device)
        cond = Conditioning(embeds.to(self._device))
        image, text, _ = adapter.features(self._transformer, x_t, sigma, cond, config.num_blocks)
        parts = [part.float().flatten() for part in (*image.chunk(4, dim=1), *text.chunk(4, dim=1))]
        return [float(part.norm()) for part in parts]

    def check_fingerprint(self, expected: Sequence[float]) -> None:
        """Refuse a base that computes other features than the one trained on.

        Raises:
            ValueError: naming both fingerprints.
        """
        got = self.fingerprint()
        tolerance = 1e-3 if next(self._transformer.parameters()).dtype == torch.float32 else 3e-2
        if len(got) != len(expected) or not np.allclose(got, expected, rtol=tolerance):
            raise ValueError(
                "the base model was changed after loading (trained, or with a LoRA): its features "
                f"have the fingerprint {got}, expected {list(expected)}"
            )

    def _latents(self, items: Sequence[RewardItem]) -> list[Tensor]:
        """Latents (C, h, w) of every item; a picture that several items share is encoded once."""
        pictures: dict[int, Image] = {}
        for item in items:
            if item.latents is None and item.image is None:
                raise ValueError(f"sample {item.sample_id!r} has neither an image nor latents")
            if item.latents is None and item.image is not None:
                pictures[id(item.image)] = item.image
        encoded = self._encode_pictures(pictures)
        return [
            encoded[id(item.image)]
            if item.latents is None
            else item.latents.to(self._device, torch.float32)
            for item in items
        ]

    def _encode_pictures(self, pictures: Mapping[int, Image]) -> dict[int, Tensor]:
        """Latents of images by their key; those of one size go through together."""
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        for key, picture in pictures.items():
            by_size[picture.size].append(key)
        latents: dict[int, Tensor] = {}
        for keys in by_size.values():
            for start in range(0, len(keys), self._config.batch_size):
                batch = keys[start : start + self._config.batch_size]
                pixels = torch.stack([_to_tensor(pictures[key]) for key in batch])
                encoded = self._adapter.encode_images(pixels.to(self._device))
                latents.update(zip(batch, encoded.float(), strict=True))
        return latents

    def _remember(self, asked: Mapping[_Asked, Sequence[Image]]) -> None:
        """Encode what is not known yet."""
        unknown = sorted(name for name in asked if name not in self._conditionings)
        for start in range(0, len(unknown), _PROMPT_BATCH):
            batch = unknown[start : start + _PROMPT_BATCH]
            pictures = [[source.convert("RGB") for source in asked[name]] for name in batch]
            self._encode_prompts(batch, pictures)

    def _encode_prompts(self, asked: Sequence[_Asked], pictures: Sequence[Sequence[Image]]) -> None:
        adapter, area = self._adapter, self._config.source_area
        encoded = adapter.encode_prompts([prompt for prompt, *_ in asked], pictures, area)
        latents: dict[str, Tensor] = {}
        for row, (name, sources) in enumerate(zip(asked, pictures, strict=True)):
            for digest, source in zip(name[1:], sources, strict=True):
                if digest not in latents:
                    latents[digest] = adapter.encode_source(source, area)[None].float()
            frames = tuple(latents[digest] for digest in name[1:])
            cond = replace(encoded.select([row]).trim(), sources=frames)
            # On the CPU: thousands of long prompts would fill a GPU.
            self._conditionings[name] = cond.to("cpu")

    def _forget(self, needed: Collection[_Asked]) -> None:
        """Drop the oldest of what is not needed, until the rest fits into the memory."""
        sizes = {name: _num_bytes(cond) for name, cond in self._conditionings.items()}
        total = sum(sizes.values())
        for name, size in sizes.items():
            if total > _MEMORY_BYTES and name not in needed:
                del self._conditionings[name]
                total -= size

    def _encode_batch(self, x_0: Tensor, asked: Sequence[_Asked]) -> list[Features]:
        cond = Conditioning.cat([self._conditionings[name] for name in asked])
        cond = cond.to(self._device)
        grid = self._config.grid
        images: list[Tensor] = [_latent_tokens(x_0, grid)]
        texts: list[Tensor] = []
        mask: Tensor | None = None
        for draw, value in enumerate(self._config.sigmas):
            # One noise for all candidates: common random numbers, and no dependence on ids.
            noise = seeded_noise(self._config.noise_seed, "reward-encoder", draw, x_0.shape[1:])
            sigma = torch.full((len(x_0),), value, device=self._device)
            x_t = interpolate(x_0, noise.to(self._device)[None], sigma)
            image, text, mask = self._adapter.features(
                self._transformer, x_t, sigma, cond, self._config.num_blocks
            )
            images.append(_to_grid(image.float(), x_0.shape, grid))
            texts.append(text.float())
        image, text, stats = torch.cat(images, -1).cpu(), torch.cat(texts, -1).cpu(), _stats(x_0)
        lengths = [text.shape[1]] * len(x_0) if mask is None else mask.sum(dim=1).tolist()
        return [
            Features(image=image[i], text=text[i, : int(lengths[i])].clone(), stats=stats[i].cpu())
            for i in range(len(x_0))
        ]


def _name(prompts: Sequence[tuple[str, Sequence[Image]]]) -> list[_Asked]:
    """What names each prompt with its source images; a picture that several share is read once."""
    pictures = {id(picture): picture for _, sources in prompts for picture in sources}
    digests = {key: picture_sha256(picture) for key, picture in pictures.items()}
    return [(prompt, *(digests[id(of)] for of in sources)) for prompt, sources in prompts]


def _num_bytes(cond: Conditioning) -> int:
    return sum(of.numel() * of.element_size() for of in (cond.prompt_embeds, *cond.sources))


def _first_blocks(transformer: Any, num_blocks: int) -> Any:
    """A frozen copy of the transformer with its first blocks alone."""
    blocks = transformer.transformer_blocks
    try:
        # The blocks that are not needed are left out before copying, or 20B would be copied whole.
        transformer.transformer_blocks = nn.ModuleList(blocks[:num_blocks])
        frozen = copy.deepcopy(transformer)
    finally:
        transformer.transformer_blocks = blocks
    return frozen.requires_grad_(False).eval()


def _to_tensor(image: Image) -> Tensor:
    """(3, H, W) float32 in [-1, 1]."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1.0


def _to_grid(tokens: Tensor, latent_shape: torch.Size, grid: int) -> Tensor:
    """Average image tokens (B, N, D), in rows of patches, to (B, grid * grid, D)."""
    _, _, height, width = latent_shape
    patch = round((height * width / tokens.shape[1]) ** 0.5)
    plane = tokens.transpose(1, 2).unflatten(2, (height // patch, width // patch))
    return F.adaptive_avg_pool2d(plane, grid).flatten(2).transpose(1, 2)


def _latent_tokens(x_0: Tensor, grid: int) -> Tensor:
    """The latents themselves as (B, grid * grid, 4 C) tokens: 2 x 2 samples a token."""
    plane = F.pixel_unshuffle(F.adaptive_avg_pool2d(x_0, 2 * grid), 2)
    return plane.flatten(2).transpose(1, 2)


def _stats(x_0: Tensor) -> Tensor:
    """(B, 4 C): per channel mean, standard deviation and mean absolute slope down and across."""
    down = (x_0[:, :, 1:] - x_0[:, :, :-1]).abs().mean(dim=(2, 3))
    across = (x_0[:, :, :, 1:] - x_0[:, :, :, :-1]).abs().mean(dim=(2, 3))
    return torch.cat([x_0.mean(dim=(2, 3)), x_0.std(dim=(2, 3)), down, across], dim=1)
