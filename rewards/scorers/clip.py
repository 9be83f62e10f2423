"""Published scorers on CLIP: PickScore, HPSv2.1, CLIPScore and LAION's aesthetic predictor.

They read at most 77 tokens of the prompt. What does not fit is counted in `Score.truncated`: of a
long design brief such a scorer knows the beginning alone.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image as PILImage
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from rewards.base import RewardItem, Score, ScorerSpec
from rewards.scorers import clip_weights
from rewards.scorers.clip_images import Pixels, crop_openai, crop_transformers, pad_hps
from rewards.scorers.config import (
    AestheticScorerConfig,
    ClipScoreConfig,
    HPSConfig,
    PickScoreConfig,
)

__all__ = [
    "ClipRecipe",
    "ClipScorer",
    "clean_openai",
    "open_aesthetic",
    "open_clip_score",
    "open_hpsv2",
    "open_pickscore",
]

LAION_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Where PickScore's processor and HPSv2's tokenizer are published."""

Measure = Callable[[Tensor, Tensor | None], Tensor]
"""Unit embeddings of images (N, D) and of their prompts (N, D) -> scores (N,), all float32."""


@dataclass(frozen=True, slots=True)
class ClipRecipe:
    """How one published scorer looks and what it says; its name is the scorer's."""

    name: str
    pixels: Pixels
    text: Callable[[str], str] | None
    """The prompt as the tokenizer gets it; None for a scorer that reads no prompt."""


class ClipScorer:
    """Scores images by CLIP embeddings, in float32 whatever the towers run in.

    Args:
        model: with its published weights; it is frozen.
        tokenizer: None where the recipe reads no prompt.
        measure: what the embeddings are worth.
        head: trained part of ``measure``, which then moves with the model.
        settings: what else the scores depend on; part of the version.
    """

    def __init__(
        self,
        recipe: ClipRecipe,
        model: CLIPModel,
        tokenizer: CLIPTokenizer | None,
        measure: Measure,
        head: nn.Module | None = None,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 32,
        settings: str = "",
    ):
        if (recipe.text is None) != (tokenizer is None):
            raise ValueError(f"{recipe.name} needs a tokenizer if, and only if, it reads prompts")
        modules = [model] if head is None else [model, head]
        version = clip_weights.weights_digest(
            [recipe.name, settings, dtype], *modules, tokenizer=tokenizer
        )
        self.recipe, self.tokenizer, self.measure = recipe, tokenizer, measure
        self.batch_size = batch_size
        self.model = model.eval().requires_grad_(False)
        self.model.to(device=torch.device(device), dtype=getattr(torch, dtype))  # pyright: ignore
        if head is not None:
            head.eval().requires_grad_(False).to(device)
        # transformers types these as configurations, dictionaries or nothing.
        vision: Any = model.config.vision_config
        text: Any = model.config.text_config
        self._side: int = vision.image_size
        self._room: int = text.max_position_embeddings
        self.spec = ScorerSpec(
            name=recipe.name,
            version=version,
            components=(),
            needs=frozenset({"image"}),
            backbone=(
                f"clip-vit-{vision.num_hidden_layers}x{vision.hidden_size}-{vision.patch_size}"
            ),
        )

    def score(self, items: Sequence[RewardItem]) -> list[Score]:
        """One score per item, in order; see `rewards.base.Scorer`."""
        scores: list[Score] = []
        for start in range(0, len(items), self.batch_size):
            scores += self._score_batch(items[start : start + self.batch_size])
        return scores

    @torch.inference_mode()
    def _score_batch(self, items: Sequence[RewardItem]) -> list[Score]:
        pictures = [_open(item) for item in items]
        seen = [
            (item, picture)
            for item, picture in zip(items, pictures, strict=True)
            if not isinstance(picture, str)
        ]
        values: list[float] = []
        cut: list[int] = []
        if seen:
            images = self._embed_images([picture for _, picture in seen])
            texts, cut = self._embed_texts([item.prompt for item, _ in seen])
            values = self.measure(images, texts).tolist()
        found = iter(zip(values, cut, strict=True))
        return [
            Score(None, error=picture) if isinstance(picture, str) else _finite(*next(found))
            for picture in pictures
        ]

    def _embed_images(self, images: Sequence[PILImage]) -> Tensor:
        """(N, D), of length 1."""
        pixels = torch.stack([self.recipe.pixels(image, self._side) for image in images])
        found: Any = self.model.get_image_features(pixels.to(self.model.device, self.model.dtype))
        return _unit(found.pooler_output)

    def _embed_texts(self, prompts: Sequence[str]) -> tuple[Tensor | None, list[int]]:
        """(N, D), of length 1, and how many tokens of each prompt were left out."""
        if self.tokenizer is None or self.recipe.text is None:
            return None, [0] * len(prompts)
        # The images of a group share their prompt.
        place = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        texts = [self.recipe.text(prompt) for prompt in place]
        whole = self.tokenizer(texts)["input_ids"]
        ids = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self._room, return_tensors="pt"
        )["input_ids"]
        # Without a mask: what follows the end of text is behind it, and attention looks forward.
        found: Any = self.model.get_text_features(ids.to(self.model.device))
        order = [place[prompt] for prompt in prompts]
        lengths = [max(0, len(of) - self._room) for of in whole]
        return _unit(found.pooler_output)[order], [lengths[index] for index in order]


def open_pickscore(config: PickScoreConfig) -> ClipScorer:
    """PickScore (arXiv 2305.01569): ``exp(logit_scale) * cos``, as its authors publish it."""
    model = clip_weights.load_clip(config.type, config.path or "yuvalkirstain/PickScore_v1")
    scale = model.logit_scale.detach().float().exp()

    def measure(images: Tensor, texts: Tensor | None) -> Tensor:
        assert texts is not None
        return scale.to(images.device) * (images * texts).sum(dim=1)

    recipe = ClipRecipe(config.type, crop_transformers, str)
    tokenizer = clip_weights.load_tokenizer(config.type, config.tokenizer or LAION_H)
    return ClipScorer(recipe, model, tokenizer, measure, **_placed(config))


def open_hpsv2(config: HPSConfig) -> ClipScorer:
    """HPSv2.1 (arXiv 2306.09341): the cosine. Its file has open_clip's names; none of open_clip is
    needed."""
    path = clip_weights.find_file(config.type, config.path, "xswu/HPSv2", "HPS_v2.1_compressed.pt")
    model = clip_weights.from_open_clip(
        clip_weights.read_checkpoint(path), config.vision_head, config.text_head
    )
    recipe = ClipRecipe(config.type, pad_hps, clean_openai)
    tokenizer = clip_weights.load_tokenizer(config.type, config.tokenizer or LAION_H)
    return ClipScorer(recipe, model, tokenizer, _cosine, **_placed(config))


def open_clip_score(config: ClipScoreConfig) -> ClipScorer:
    """CLIPScore (Hessel et al. 2021): ``2.5 * max(cos, 0)`` of "A photo depicts" and the prompt."""
    source = config.path or "openai/clip-vit-base-patch32"
    model = clip_weights.load_clip(config.type, source)
    recipe = ClipRecipe(config.type, crop_openai, lambda text: clean_openai(config.prefix + text))

    def measure(images: Tensor, texts: Tensor | None) -> Tensor:
        return 2.5 * _cosine(images, texts).clamp(min=0.0)

    tokenizer = clip_weights.load_tokenizer(config.type, config.tokenizer or source)
    return ClipScorer(recipe, model, tokenizer, measure, settings=config.prefix, **_placed(config))


def open_aesthetic(config: AestheticScorerConfig) -> ClipScorer:
    """LAION's aesthetic predictor on CLIP ViT-L/14: about 1 to 10, whatever the prompt says."""
    model = clip_weights.load_clip(config.type, config.path or "openai/clip-vit-large-patch14")
    path = clip_weights.find_file(
        config.type, config.head, "trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth"
    )
    head = clip_weights.aesthetic_head(clip_weights.read_checkpoint(path))
    width, wanted = model.config.projection_dim, next(head.parameters()).shape[1]
    if width != wanted:
        raise ValueError(f"{path} reads embeddings of width {wanted}, {config.path} has {width}")

    def measure(images: Tensor, texts: Tensor | None) -> Tensor:
        return head(images)[:, 0]

    recipe = ClipRecipe(config.type, crop_openai, None)
    return ClipScorer(recipe, model, None, measure, head, **_placed(config))


def clean_openai(text: str) -> str:
    """A prompt as OpenAI's and open_clip's tokenizers clean it: HTML unescaped twice, full-width
    forms, curly quotes and ligatures made plain.

    Those call ``ftfy``, which also mends text that was decoded wrongly; prompts here were not.
    Blanks and case are the tokenizer's own matter.
    """
    plain = unicodedata.normalize("NFC", html.unescape(html.unescape(text)).translate(_PLAIN))
    return plain.strip()


_PLAIN = {
    code: plain
    for code in (*range(0xFB00, 0xFB07), *range(0xFF01, 0xFFF0), 0x3000)
    if (plain := unicodedata.normalize("NFKC", chr(code))) != chr(code)
}
_PLAIN |= dict.fromkeys((0x02BC, *range(0x2018, 0x201C)), "'")
_PLAIN |= dict.fromkeys(range(0x201C, 0x2020), '"')


def _placed(
    config: PickScoreConfig | HPSConfig | ClipScoreConfig | AestheticScorerConfig,
) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("device", "dtype", "batch_size")}


def _cosine(images: Tensor, texts: Tensor | None) -> Tensor:
    assert texts is not None
    return (images * texts).sum(dim=1)


def _unit(embeds: Tensor) -> Tensor:
    return nn.functional.normalize(embeds.float(), dim=-1)


def _open(item: RewardItem) -> PILImage | str:
    """The picture in RGB, or why there is none."""
    if item.image is None:
        return "there is no image"
    try:
        return item.image.convert("RGB")
    except (OSError, SyntaxError) as error:
        return f"the image cannot be read: {error}"


def _finite(value: float, truncated: int) -> Score:
    if value - value != 0.0:
        return Score(None, error=f"the score is not finite: {value}")
    return Score(value, truncated=truncated)
