"""Latents and prompt embeddings, encoded once and kept by content.

A key names everything that an encoding depends on: the image's bytes and size, or the prompt's
words and the images they refer to, and the files of the encoder. With all of them in the cache
neither the autoencoder nor the text encoder is loaded at all, and while a policy trains they are
never in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from align.checkpoint import write_error
from align.config import ResolutionConfig
from align.data.images import ImageFile, load_images
from align.data.rows import Request
from align.engine import Engine
from align.mmdit.adapters import Conditioning, load_adapter

__all__ = ["FeatureEncoder", "Features", "TensorCache"]

MEMORY_BYTES = 4 << 30
"""Encodings beyond this are read from the disk each time they are needed."""
IMAGE_BATCH = 16
PROMPT_BATCH = 32


class TensorCache:
    """A folder of tensors by key; writers may be many, and may be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._memory: dict[str, Tensor] = {}
        self._memory_left = MEMORY_BYTES

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return key in self._memory or self._path(key).is_file()

    def __getitem__(self, key: str) -> Tensor:
        """The tensor, on the CPU; ``ValueError`` names a damaged file."""
        if key in self._memory:
            return self._memory[key]
        path = self._path(key)
        try:
            tensor = load_file(path)["value"]
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged, remove it: {error}") from error
        return self._remember(key, tensor)

    def put(self, key: str, tensor: Tensor) -> None:
        """Write aside, then rename: a reader finds a whole file or none.

        Raises:
            OSError: the cache cannot be written; names the file.
        """
        path = self._path(key)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({"value": tensor.contiguous()}, temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise write_error(path, error) from error
        self._remember(key, tensor)

    def _remember(self, key: str, tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        if size <= self._memory_left:
            self._memory_left -= size
            self._memory[key] = tensor
        return tensor


@dataclass(frozen=True)
class Features:
    """Encodings of a fixed list of images and prompts."""

    cache: TensorCache
    image_keys: dict[str, str]
    """SHA-256 of the image file -> key."""
    prompt_keys: dict[tuple[str, ...], str]
    """`Request.identity` -> key."""
    device: torch.device
    source_keys: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the file of a source image -> key."""

    def latents(self, images: Sequence[ImageFile]) -> Tensor:
        """``(B, C, h, w)`` float32 on the device."""
        rows = [self.cache[self.image_keys[image.sha256]] for image in images]
        return torch.stack(rows).to(self.device, non_blocking=True)

    def source_shapes(self, request: Request) -> tuple[tuple[int, ...], ...]:
        """``(C, h, w)`` of the latents of each source image; requests of one batch share them."""
        return tuple(tuple(self._source(source).shape) for source in request.sources)

    def conditioning(self, requests: Sequence[Request]) -> Conditioning:
        """Padded to the longest of ``requests``; no mask when all are equally long."""
        rows = [self.cache[self.prompt_keys[request.identity]] for request in requests]
        lengths = [len(row) for row in rows]
        embeds = pad_sequence(rows, batch_first=True)
        mask = None
        if min(lengths) < max(lengths):
            mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        sources = zip(*(request.sources for request in requests), strict=True)
        latents = tuple(torch.stack([self._source(image) for image in row]) for row in sources)
        return Conditioning(embeds, mask, latents).to(self.device)

    def _source(self, image: ImageFile) -> Tensor:
        return self.cache[self.source_keys[image.sha256]]


class FeatureEncoder:
    """Fills a cache with the encodings that a run needs; the processes share the work.

    Args:
        model: pipeline folder or Hub id.
        folder: where the cache lies.
        engine: tells device, rank and number of processes.
        dtype: in which the encoders run.
    """

    def __init__(
        self, model: str, folder: Path, engine: Engine, dtype: torch.dtype = torch.float32
    ) -> None:
        self.model = model
        self.engine = engine
        self.dtype = dtype
        self.cache = TensorCache(folder)
        self.bare = load_adapter(model, parts=())

    def encode(
        self,
        images: Sequence[ImageFile],
        requests: Sequence[Request],
        resolution: ResolutionConfig | None = None,
    ) -> Features:
        """Encode what the cache lacks; the encoders are loaded only if something is.

        Raises:
            ValueError: an image is damaged, sizes differ, or the model takes no source images;
                names the files.
            OSError: the cache cannot be written; names the file.
        """
        resolution = resolution or ResolutionConfig()
        self._check_sources(requests)
        asked = {request.identity: request for request in requests}
        image_keys = self._image_keys(images, resolution)
        prompt_keys = self._prompt_keys(asked, resolution.source_area)
        unique = list({image.sha256: image for image in images}.values())
        sources = list({s.sha256: s for r in asked.values() for s in r.sources}.values())
        source_keys = self._source_keys(sources, resolution.source_area)
        # Shared out before looking into the cache, which other processes fill meanwhile.
        lacking = [i for i in self._share(unique) if image_keys[i.sha256] not in self.cache]
        unseen = [s for s in self._share(sources) if source_keys[s.sha256] not in self.cache]
        if lacking or unseen:
            self._encode_images(lacking, image_keys, unseen, source_keys, resolution)
        unknown = [p for p in self._share(list(prompt_keys)) if prompt_keys[p] not in self.cache]
        if unknown:
            self._encode_prompts([asked[p] for p in unknown], prompt_keys, resolution.source_area)
        self.engine.barrier()
        features = Features(self.cache, image_keys, prompt_keys, self.engine.device, source_keys)
        _check_sizes(unique, features)
        return features

    def _share(self, items: list) -> list:
        return items[self.engine.rank :: self.engine.world]

    def _image_keys(
        self, images: Sequence[ImageFile], resolution: ResolutionConfig
    ) -> dict[str, str]:
        if not images:
            return {}
        size = f"{resolution.height}x{resolution.width}"
        part = f"latents/{self._part_sha256('vae')}/{self.dtype}/{size}"
        return {image.sha256: _key(part, image.sha256) for image in images}

    def _source_keys(self, sources: Sequence[ImageFile], area: int) -> dict[str, str]:
        if not sources:
            return {}
        part = f"source/{self._part_sha256('vae')}/{self.dtype}/{area}"
        return {source.sha256: _key(part, source.sha256) for source in sources}

    def _prompt_keys(
        self, asked: Mapping[tuple[str, ...], Request], area: int
    ) -> dict[tuple[str, ...], str]:
        if not asked:
            return {}
        encoder = "".join(self._part_sha256(part) for part in self.bare.text_parts)
        part, seen = f"prompt/{encoder}/{self.dtype}", f"{type(self.bare).__name__}/{area}"
        return {
            identity: _key(part, "\0".join([*identity, *([seen] if request.sources else [])]))
            for identity, request in asked.items()
        }

    def _check_sources(self, requests: Sequence[Request]) -> None:
        # The empty prompts of guidance come last: theirs is not the row to look for.
        for request in sorted(requests, key=lambda request: not request.prompt.strip()):
            try:
                self.bare.check_sources(len(request.sources))
            except ValueError as error:
                files = ", ".join(str(source.path) for source in request.sources)
                raise ValueError(
                    f"the prompt {request.prompt!r} comes with {files}, but {self.model} cannot "
                    f"take that: {error}"
                ) from error

    def _part_sha256(self, part: str) -> str:
        folder = self.bare.folder
        assert folder is not None
        digest = hashlib.sha256()
        for path in sorted((folder / part).iterdir()):
            if path.suffix in (".safetensors", ".json", ".txt"):
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                digest.update(f"{path.name}:{content}\n".encode())
        return digest.hexdigest()

    @torch.no_grad()
    def _encode_images(
        self,
        images: list[ImageFile],
        image_keys: dict[str, str],
        sources: list[ImageFile],
        source_keys: dict[str, str],
        resolution: ResolutionConfig,
    ) -> None:
        adapter = load_adapter(
            self.model, dtype=self.dtype, device=self.engine.device, parts=("vae",)
        )
        for start in range(0, len(images), IMAGE_BATCH):
            batch = images[start : start + IMAGE_BATCH]
            pixels = load_images(batch, resolution)
            try:
                adapter.latent_shape(*pixels.shape[-2:])
            except ValueError as error:
                raise ValueError(
                    f"the image {batch[0].path} does not fit the model: {error}; set data.height "
                    "and data.width to bring all images to one size"
                ) from error
            latents = adapter.encode_images(pixels).float().cpu()
            for image, row in zip(batch, latents, strict=True):
                self.cache.put(image_keys[image.sha256], row.clone())
        for source in sources:
            row = adapter.encode_source(source.picture(), resolution.source_area)
            self.cache.put(source_keys[source.sha256], row.float().cpu())

    @torch.no_grad()
    def _encode_prompts(
        self, requests: list[Request], keys: dict[tuple[str, ...], str], area: int
    ) -> None:
        adapter = load_adapter(
            self.model, dtype=self.dtype, device=self.engine.device, parts=("text_encoder",)
        )
        for start in range(0, len(requests), PROMPT_BATCH):
            batch = requests[start : start + PROMPT_BATCH]
            pictures = [request.pictures() for request in batch]
            cond = adapter.encode_prompts([r.prompt for r in batch], pictures, area).to("cpu")
            for i, request in enumerate(batch):
                row = cond.prompt_embeds[i]
                real = row if cond.mask is None else row[cond.mask[i]]
                self.cache.put(keys[request.identity], real.clone())


def _key(part: str, content: str) -> str:
    return hashlib.sha256(f"{part}/{content}".encode()).hexdigest()


def _check_sizes(images: Sequence[ImageFile], features: Features) -> None:
    """Batches mix images freely, so all must have latents of one shape."""
    first: tuple[ImageFile, torch.Size] | None = None
    for image in images:
        shape = features.cache[features.image_keys[image.sha256]].shape
        first = first or (image, shape)
        if shape != first[1]:
            raise ValueError(
                f"images have different sizes: the latents of {first[0].path} are "
                f"{tuple(first[1])}, of {image.path} {tuple(shape)}; set data.height and "
                "data.width to bring them to one size"
            )
