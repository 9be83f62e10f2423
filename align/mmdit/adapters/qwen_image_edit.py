"""Qwen-Image-Edit: `QwenImageEditPipeline` and `QwenImageEditPlusPipeline`, number for number.

The text encoder looks at the source images beside the words, and their latents follow the drawn
image's as further frames of the transformer's sequence. A prompt without source images is encoded
as Qwen-Image does, so that one model learns to draw and to edit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from align.mmdit.adapters.base import SOURCE_AREA, Conditioning
from align.mmdit.adapters.qwen_image import QwenImageAdapter
from align.mmdit.source_sizes import CONDITION_AREA, MAX_SOURCES
from align.mmdit.sources import resize_source

EDIT_TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, "
    "texture, objects, background), then explain how the user's text instruction should alter or "
    "modify the image. Generate a new image that meets the user's requirements while maintaining "
    "consistency with the original input where appropriate.<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
NUM_EDIT_TEMPLATE_TOKENS = 64
"""Leading tokens of the template, dropped after encoding."""
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
_PAD = "<|image_pad|>"


class QwenImageEditAdapter(QwenImageAdapter):
    """One source image a prompt (Qwen-Image-Edit).

    Its image processor is transformers' for Pillow: with torchvision installed the stock pipeline
    takes another, whose pixels differ by rounding.
    """

    max_sources: int | None = MAX_SOURCES["QwenImageEditPipeline"]
    text_parts = ("text_encoder", "tokenizer", "processor")
    image_processor: Qwen2VLImageProcessorPil | None = None

    @classmethod
    def from_pretrained(cls, path_or_id: Any, **options: Any) -> QwenImageEditAdapter:
        adapter = super().from_pretrained(path_or_id, **options)
        assert isinstance(adapter, QwenImageEditAdapter)
        if adapter.tokenizer is not None:
            assert adapter.folder is not None
            folder = adapter.folder / "processor"
            adapter.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
        return adapter

    def encode_prompts(
        self,
        prompts: Sequence[str],
        sources: Sequence[Sequence[Image.Image]] = (),
        source_area: int = SOURCE_AREA,
    ) -> Conditioning:
        """Last hidden states of the text encoder, of the images' tokens and of the words.

        Prompts with and without source images may mix; these are encoded as Qwen-Image does.
        """
        sources = sources or [()] * len(prompts)
        if len(sources) != len(prompts):
            raise ValueError(f"got {len(prompts)} prompts and the sources of {len(sources)}")
        seeing = [i for i, row in enumerate(sources) if row]
        if not seeing:
            return super().encode_prompts(prompts)
        blind = [i for i, row in enumerate(sources) if not row]
        parts = [
            self._encode_seeing(
                [prompts[i] for i in seeing], [sources[i] for i in seeing], source_area
            )
        ]
        if blind:
            parts.append(super().encode_prompts([prompts[i] for i in blind]))
        order = sorted(range(len(prompts)), key=[*seeing, *blind].__getitem__)
        return Conditioning.cat(parts).select(order)

    def _encode_seeing(
        self, prompts: Sequence[str], sources: Sequence[Sequence[Image.Image]], area: int
    ) -> Conditioning:
        """Of prompts that all have source images."""
        self.check_sources(max(map(len, sources)))
        processor = self._need("image_processor")
        seen = [self._seen(image, area) for row in sources for image in row]
        pictures = processor(images=seen, return_tensors="pt")
        grids = pictures["image_grid_thw"]
        lengths = iter((grids.prod(1) // processor.merge_size**2).tolist())
        texts = [
            EDIT_TEMPLATE.format(
                "".join(
                    self._picture(i).replace(_PAD, _PAD * next(lengths)) for i in range(len(row))
                )
                + self.clean_prompt(prompt)
            )
            for prompt, row in zip(prompts, sources, strict=True)
        ]
        tokens = self._need("tokenizer")(texts, padding=True, return_tensors="pt")
        rows = self._hidden_rows(
            tokens,
            NUM_EDIT_TEMPLATE_TOKENS,
            pixel_values=pictures["pixel_values"],
            image_grid_thw=grids,
        )
        return Conditioning.cat([Conditioning(row[None]) for row in rows])

    def _seen(self, source: Image.Image, area: int) -> Image.Image:
        """The image as the text encoder's processor gets it."""
        return resize_source(source, area)

    def _picture(self, place: int) -> str:
        """What stands for the source image at ``place`` in the template."""
        return PICTURE


class QwenImageEditPlusAdapter(QwenImageEditAdapter):
    """Any number of source images a prompt (Qwen-Image-Edit-2509 and -2511)."""

    max_sources: int | None = MAX_SOURCES["QwenImageEditPlusPipeline"]

    def _seen(self, source: Image.Image, area: int) -> Image.Image:
        return resize_source(source, CONDITION_AREA)

    def _picture(self, place: int) -> str:
        return f"Picture {place + 1}: {PICTURE}"
