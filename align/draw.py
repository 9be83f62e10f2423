"""A loaded pipeline that draws candidates."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from PIL import Image

from align.config import GenerateConfig, resolve_model
from align.data.rows import Request
from align.mmdit.adapters import Conditioning, image_to_uint8, load_adapter
from align.mmdit.flow import seeded_noise_batch
from align.mmdit.source_sizes import source_size
from align.sampling import sample
from annotate.records import Candidate, Generation, Prompt

__all__ = ["Cell", "Drawer", "as_candidate", "check_model"]


@dataclass(frozen=True)
class Cell:
    """One image to draw."""

    prompt: Prompt
    index: int
    request: Request

    @property
    def key(self) -> tuple[str, int]:
        return self.prompt.id, self.index


class Drawer:
    """The loaded model.

    Raises:
        ValueError: images already in the folder were drawn by other weights.
    """

    def __init__(self, config: GenerateConfig, known_models: set[str]) -> None:
        self.config = config
        self.images = config.output_dir / "images"
        self.device = _device()
        self.dtype = getattr(torch, config.dtype)
        self.adapter: Any = load_adapter(
            resolve_model(config.model), dtype=self.dtype, device=self.device
        )
        self.model_sha256 = check_model(config, known_models, self.adapter)
        if config.lora is not None:
            self.adapter.transformer.load_lora_adapter(str(config.lora), prefix="transformer")
        self.shape = self.adapter.latent_shape(config.height, config.width)
        self.versions = {n: metadata.version(n) for n in ("winsome", "torch", "diffusers")}

    def draw(self, cells: Sequence[Cell]) -> list[bytes]:
        """PNG files of ``cells``; at most 1/255 from what the stock pipeline draws."""
        sizes = [self._source_sizes(cell.request) for cell in cells]
        files: dict[int, bytes] = {}
        for size in dict.fromkeys(sizes):
            places = [place for place, own in enumerate(sizes) if own == size]
            files |= zip(places, self._draw_alike([cells[p] for p in places]), strict=True)
        return [files[place] for place in range(len(cells))]

    def _source_sizes(self, request: Request) -> tuple[tuple[int, int], ...]:
        """What cells that are drawn together have in common."""
        area = self.config.source_area
        return tuple(source_size(source.size(), area) for source in request.sources)

    def _draw_alike(self, cells: Sequence[Cell]) -> list[bytes]:
        config = self.config
        requests = [cell.request for cell in cells]
        with torch.no_grad():
            cond, negative = self._encode(requests), None
            if config.guidance_scale > 1:
                empty = [r.without_words(config.negative_prompt) for r in requests]
                negative = self._encode(empty)
            noise = seeded_noise_batch(
                config.seed, [c.prompt.id for c in cells], [c.index for c in cells], self.shape
            )
            latents = sample(
                self.adapter,
                self.adapter.transformer,
                cond,
                noise.to(self.device),
                config.num_steps,
                config.guidance_scale,
                negative,
            )
            pixels = image_to_uint8(self.adapter.decode_latents(latents)).cpu().numpy()
        files = []
        for array in pixels:
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, format="PNG")
            files.append(buffer.getvalue())
        return files

    def _encode(self, requests: Sequence[Request]) -> Conditioning:
        """Of each request; what several of them share is encoded once."""
        area = self.config.source_area
        unique = {request.identity: request for request in requests}
        pictures = [request.pictures() for request in unique.values()]
        cond = self.adapter.encode_prompts([r.prompt for r in unique.values()], pictures, area)
        latents = tuple(
            torch.stack([self.adapter.encode_source(picture, area) for picture in column])
            for column in zip(*pictures, strict=True)
        )
        names = list(unique)
        rows = [names.index(request.identity) for request in requests]
        return replace(cond, sources=latents).select(rows)

    def record(self, cell: Cell, png: bytes) -> Candidate:
        """The candidate's line, with everything that draws it again."""
        config = self.config
        generation = Generation(
            model=config.model if config.lora is None else f"{config.model} + {config.lora}",
            model_sha256=self.model_sha256,
            seed=str(config.seed),
            noise_key=f"{config.seed}/{cell.prompt.id}/{cell.index}",
            steps=config.num_steps,
            guidance_scale=config.guidance_scale,
            height=config.height,
            width=config.width,
            dtype=config.dtype,
            device=str(self.device),
            versions=self.versions,
        )
        return as_candidate(cell.prompt, generation, png)


def as_candidate(prompt: Prompt, generation: Generation, png: bytes) -> Candidate:
    """The record of an image of ``prompt``, under an id that follows from it."""
    image_sha256 = hashlib.sha256(png).hexdigest()
    # The image is part of it: another machine or batch may draw the same cell with other last
    # bits, and a store takes no second content under one id.
    recipe = generation.model_dump(exclude={"device", "versions", "model"})
    identity = json.dumps([prompt.id, recipe, image_sha256])
    return Candidate(
        id=hashlib.sha256(identity.encode()).hexdigest()[:24],
        prompt_id=prompt.id,
        image_sha256=image_sha256,
        width=generation.width,
        height=generation.height,
        generation=generation,
    )


def _device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def check_model(config: GenerateConfig, known: set[str], adapter: Any = None) -> str:
    """The digest of the model, of base and LoRA together, which must be that of what was drawn.

    Args:
        known: digests of the models that drew what is in the folder.
        adapter: the base, where it is loaded.

    Raises:
        FileNotFoundError: there is no model, or no LoRA; names it.
        ValueError: images in the folder were drawn by other weights.
    """
    adapter = adapter or load_adapter(resolve_model(config.model), parts=())
    found = adapter.model_sha256()
    if config.lora is not None:
        path = config.lora / LORA_WEIGHT_NAME_SAFE
        if not path.is_file():
            raise FileNotFoundError(f"there is no LoRA at {path}")
        lora_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        found = hashlib.sha256(f"{found}+{lora_sha256}".encode()).hexdigest()
    if known - {found}:
        raise ValueError(
            f"{config.output_dir} holds images of a model with digest "
            f"{sorted(known - {found})[0]}, {config.model} has {found}; choose another output_dir"
        )
    return found
