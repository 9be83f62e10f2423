"""What a run draws while it trains: the same prompts from the same noise, and a gold scorer's word.

``samples/step-00000050/`` in the run folder holds what ``winsome generate`` writes (prompts.jsonl,
candidates.jsonl, images/), so that the studio shows it and asks people about it, and ``grid.png``.
"""

from __future__ import annotations

import hashlib
import io
import math
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from align.checkpoint import atomic_folder, read_json
from align.config import ResolutionConfig
from align.data.batches import EMPTY_PROMPT, with_negatives
from align.data.features import FeatureEncoder
from align.data.rows import iterate_requests
from align.draw import as_candidate
from align.engine import Engine
from align.mmdit.adapters import ModelAdapter, image_to_uint8, load_adapter
from align.mmdit.flow import seeded_noise_batch
from align.policy import Policy
from align.sampling import sample
from align.watch_config import SamplesConfig
from annotate.records import Candidate, Generation, Prompt
from rewards.base import RewardItem, Scorer, complete_scores

__all__ = ["Samples"]


class Samples:
    """Made by all processes before the transformer is loaded; the main one writes and scores.

    Raises:
        FileNotFoundError, ValueError: prompts or gold scorer are missing or unfit; named.
    """

    def __init__(
        self, config: SamplesConfig, engine: Engine, encoder: FeatureEncoder, folder: Path
    ) -> None:
        self.config = config
        self.engine = engine
        self.folder = folder / "samples"
        asked = list(iterate_requests(config.prompts, config.splits))
        self.cells = [(p, index) for p, _ in asked for index in range(config.candidates)]
        self._requests = {prompt.id: request for prompt, request in asked}
        self._features = encoder.encode(
            [],
            with_negatives([r for _, r in asked], config.guidance_scale > 1),
            ResolutionConfig(source_area=config.source_area),
        )
        if len({self._features.source_shapes(request) for _, request in asked}) > 1:
            raise ValueError(
                f"{config.prompts} mixes prompts with and without source images, or images of "
                "several sizes; a batch of samples has one kind: keep one in samples.prompts"
            )
        self._encoder = encoder
        self._decoder: ModelAdapter | None = None
        self._gold: Scorer | None = None
        if config.gold is not None and engine.is_main:
            from rewards.scorers.build import build_scorer

            self._gold = build_scorer(config.gold)

    def is_due(self, step: int, max_steps: int) -> bool:
        return step % self.config.every == 0 or step == max_steps

    @torch.no_grad()
    def draw(self, policy: Policy, step: int) -> dict[str, float]:
        """Draw with the weights as they are; returns the gold scorer's mean, on all processes.

        All make equally many passes of equal size, as shards demand: places beyond the end are
        drawn and left out.
        """
        engine, count = self.engine, len(self.cells)
        share = range(engine.rank, math.ceil(count / engine.world) * engine.world, engine.world)
        places = [min(place, count - 1) for place in share]
        size = self.config.batch_size
        rows = [self._pixels(policy, places[i : i + size]) for i in range(0, len(places), size)]
        # Rank r drew the places r, r + world, ...: interleave what was gathered rank by rank.
        gathered = engine.gather(torch.cat(rows)).unflatten(0, (engine.world, len(places)))
        pixels = gathered.transpose(0, 1).flatten(0, 1)[:count].cpu().numpy()
        figures: list[dict[str, float]] = []
        if engine.is_main:
            images = [Image.fromarray(row) for row in pixels]
            self._write(step, images)
            figures.append(self._measure(images))
        return engine.gather_objects(figures)[0]

    def _pixels(self, policy: Policy, places: Sequence[int]) -> Tensor:
        """``(B, H, W, 3)`` uint8."""
        config, adapter, device = self.config, policy.adapter, self.engine.device
        cells = [self.cells[place] for place in places]
        noise = seeded_noise_batch(
            config.seed,
            [prompt.id for prompt, _ in cells],
            [index for _, index in cells],
            adapter.latent_shape(config.height, config.width),
        )
        requests, negative = [self._requests[prompt.id] for prompt, _ in cells], None
        if config.guidance_scale > 1:
            empty = [request.without_words(EMPTY_PROMPT) for request in requests]
            negative = self._features.conditioning(empty)
        latents = sample(
            adapter,
            policy.transformer,
            self._features.conditioning(requests),
            noise.to(device),
            config.num_steps,
            config.guidance_scale,
            negative,
        )
        return image_to_uint8(self._vae().decode_latents(latents)).to(device)

    def _vae(self) -> ModelAdapter:
        if self._decoder is None:
            encoder, device = self._encoder, self.engine.device
            self._decoder = load_adapter(
                encoder.model, dtype=encoder.dtype, device=device, parts=("vae",)
            )
        return self._decoder

    # On the main process --------------------------------------------------------------------------

    def _write(self, step: int, images: Sequence[Image.Image]) -> None:
        self.folder.mkdir(exist_ok=True)
        weights = self._name_weights(step)
        with atomic_folder(self.folder / f"step-{step:08d}") as folder:
            (folder / "images").mkdir()
            lines = []
            for (prompt, index), image in zip(self.cells, images, strict=True):
                buffer = io.BytesIO()
                image.save(buffer, format="PNG")
                candidate = self._candidate(prompt, index, buffer.getvalue(), step, weights)
                (folder / f"images/{candidate.image_sha256}.png").write_bytes(buffer.getvalue())
                lines.append(candidate.model_dump_json() + "\n")
            for source in {s for request in self._requests.values() for s in request.sources}:
                shutil.copyfile(source.path, folder / f"images/{source.sha256}.png")
            prompts = dict.fromkeys(prompt.model_dump_json() + "\n" for prompt, _ in self.cells)
            (folder / "prompts.jsonl").write_text("".join(prompts), encoding="utf-8")
            (folder / "candidates.jsonl").write_text("".join(lines), encoding="utf-8")
            _grid(images, self.config.candidates).save(folder / "grid.png")

    def _name_weights(self, step: int) -> str:
        """No file holds these weights: they are named by what they come from."""
        run = self.folder.parent
        base = read_json(run / "run.json")["base"]["sha256"]
        text = f"{base}/{(run / 'config.yaml').read_text(encoding='utf-8')}/{step}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _candidate(
        self, prompt: Prompt, index: int, png: bytes, step: int, weights: str
    ) -> Candidate:
        config = self.config
        generation = Generation(
            model=f"{self.folder.parent}, step {step}",
            model_sha256=weights,
            seed=str(config.seed),
            noise_key=f"{config.seed}/{prompt.id}/{index}",
            steps=config.num_steps,
            guidance_scale=config.guidance_scale,
            height=config.height,
            width=config.width,
            dtype=str(self._encoder.dtype).removeprefix("torch."),
            device=str(self.engine.device),
            versions={n: metadata.version(n) for n in ("winsome", "torch", "diffusers")},
        )
        return as_candidate(prompt, generation, png)

    def _measure(self, images: Sequence[Image.Image]) -> dict[str, float]:
        if self._gold is None:
            return {}
        pictures = {name: request.pictures() for name, request in self._requests.items()}
        items = [
            RewardItem(
                sample_id=f"{prompt.id}/{index}",
                group_id=prompt.id,
                prompt=prompt.text,
                image=image,
                metadata={"category": prompt.category, **prompt.metadata},
                source_images=pictures[prompt.id],
            )
            for (prompt, index), image in zip(self.cells, images, strict=True)
        ]
        values = [s.value for s in complete_scores(self._gold, items) if s.value is not None]
        if not values:
            raise ValueError(
                f"the gold scorer {self._gold.spec.name!r} applies to none of the prompts of "
                f"{self.config.prompts}"
            )
        return {"samples/gold": sum(values) / len(values)}


def _grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """A row for each prompt."""
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, len(images) // columns * height))
    for place, image in enumerate(images):
        grid.paste(image, (place % columns * width, place // columns * height))
    return grid
