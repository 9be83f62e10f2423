"""Qwen2.5-VL as an encoder: image, prompt, then one token for each criterion, in one forward pass.

Where the prompt edits pictures, these stand before the image, all under their names.

The criterion tokens do as the reward tokens of VideoReward (arXiv 2501.13918) do, but stand beside
one another: each reads the image and the prompt and itself alone, at one and the same position. So
no head depends on which others there are, or on their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image as PILImage
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rewards.encoder_config import QwenVLEncoderConfig
from rewards.models.network import (
    NetworkEncoder,
    check_family,
    files_sha256,
    find_base,
    pool_grid,
    prepare,
)

__all__ = ["QwenVLEncoder", "QwenVLNetwork"]

FAMILY = "qwen2_5_vl"
_TURN = "<|im_start|>user\n"
_OPEN, _CLOSE = "<|vision_start|>", "<|vision_end|>"
_SOURCE, _EDITED = "Source image: ", "Edited image: "
_AFTER = "<|im_end|>\n<|im_start|>assistant\n"
_LINEAR = r".*language_model\.layers\.\d+\..*\.(q|k|v|o|gate|up|down)_proj"
_PATTERNS = ("*.json", "*.txt", "model.safetensors", "model-*.safetensors", "text_encoder/*")


class QwenVLEncoder(NetworkEncoder):
    """Reads images at their own aspect, between ``min_pixels`` and ``max_pixels``."""

    def __init__(
        self,
        config: QwenVLEncoderConfig,
        model: Any,
        tokenizer: Any,
        base_sha256: str,
        criteria: Sequence[str],
    ):
        is_frozen = config.tune == "frozen"
        tokens = None if is_frozen else _start_embeds(model, tokenizer, criteria)
        network = QwenVLNetwork(model, tokens, config.grid)
        super().__init__(config, network, tokenizer, base_sha256, is_frozen=is_frozen)
        self.head = "tokens" if is_frozen else "states"
        vision = model.config.vision_config
        self._merged: int = vision.spatial_merge_size**2
        self._image_token: int = model.config.image_token_id
        self._max_tokens = config.max_prompt_tokens
        # The image processor alone: the family's whole processor has one for video, which needs
        # torchvision.
        self._processor = Qwen2VLImageProcessorPil(
            size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
        )
        self._chat = {
            text: tokenizer(text)["input_ids"]
            for text in (
                _TURN + _OPEN, _TURN + _SOURCE + _OPEN, _CLOSE + _SOURCE + _OPEN,
                _CLOSE + _EDITED + _OPEN, _CLOSE, _AFTER,
            )
        }  # fmt: skip

    @classmethod
    def open(
        cls,
        config: QwenVLEncoderConfig,
        base: str | None,
        device: str,
        *,
        criteria: Sequence[str] = (),
        adapter: Any = None,
    ) -> QwenVLEncoder:
        """On a folder or hub id with a Qwen2.5-VL and its tokenizer, or a diffusers pipeline that
        has one as its text encoder.

        Raises:
            ValueError: it is a model of another family, or of no criterion.
            OSError: it is not there, or a part of it.
        """
        folder = find_base(base, config.type, [*_PATTERNS, "tokenizer/*"])
        weights, words = folder, folder
        if (folder / "model_index.json").is_file():
            weights, words = folder / "text_encoder", folder / "tokenizer"
        model = _load(weights, str(base), getattr(torch, config.dtype))
        tokenizer = AutoTokenizer.from_pretrained(words)
        prepare(model, config, _LINEAR)
        sha256 = files_sha256(*dict.fromkeys([weights, words]))
        encoder = cls(config, model, tokenizer, sha256, criteria)
        encoder._reader.to(device)
        return encoder

    def read(
        self, image: PILImage, prompt: str, sources: Sequence[PILImage] = ()
    ) -> dict[str, Tensor]:
        found = self._processor(images=[*sources, image], return_tensors="pt")
        grids = found["image_grid_thw"]
        ids: list[int] = []
        for place, grid in enumerate(grids):
            ids += self._chat[_opening(place, len(sources))]
            ids += [self._image_token] * (int(grid.prod()) // self._merged)
        ids += [*self._chat[_CLOSE], *self._words(prompt)[: self._max_tokens], *self._chat[_AFTER]]
        return {
            "pixel_values": found["pixel_values"],
            "image_grid_thw": grids,
            "input_ids": torch.tensor(ids),
        }

    def stack(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids = [of["input_ids"] for of in inputs]
        lengths = torch.tensor([len(of) for of in ids])
        pad = self.tokenizer.pad_token_id or 0
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=pad)
        return {
            "pixel_values": torch.cat([of["pixel_values"] for of in inputs]),
            "image_grid_thw": torch.cat([of["image_grid_thw"] for of in inputs]),
            "num_images": torch.tensor([len(of["image_grid_thw"]) for of in inputs]),
            "input_ids": padded,
            "attention_mask": torch.arange(padded.shape[1])[None] < lengths[:, None],
        }

    def left_out(self, prompts: Sequence[str]) -> list[int]:
        return [max(0, len(self._words(prompt)) - self._max_tokens) for prompt in prompts]

    def _words(self, prompt: str) -> list[int]:
        """A prompt's tokens; what looks like a special token in it is text."""
        return self.tokenizer(prompt, split_special_tokens=True)["input_ids"]


class QwenVLNetwork(nn.Module):
    """The hidden states of the criterion tokens, or, without these, tokens for the heads to pool.

    Args:
        criterion_embeds: (C, D) what the tokens' embeddings start from; None: there are none.
    """

    def __init__(self, model: Any, criterion_embeds: Tensor | None, grid: int):
        super().__init__()
        self.model = model
        self.grid = grid
        self.criterion_embeds = None if criterion_embeds is None else nn.Parameter(criterion_embeds)

    def forward(
        self,
        pixel_values: Tensor,
        image_grid_thw: Tensor,
        num_images: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
    ) -> dict[str, Tensor]:
        """N candidates: patches (P, F) of all images, grids (I, 3) in patches, how many of the
        images are each candidate's (N,), the drawn one its last, tokens (N, L) padded on the right,
        their mask (N, L)."""
        is_image = input_ids == self.model.config.image_token_id
        embeds = self.model.get_input_embeddings()(input_ids)
        found = self.model.get_image_features(pixel_values, image_grid_thw, return_dict=True)
        pictures = torch.cat(found.pooler_output).to(embeds.dtype)
        embeds = embeds.masked_scatter(is_image[..., None], pictures)
        places, _ = self.model.get_rope_index(
            input_ids,
            mm_token_type_ids=is_image.int(),
            image_grid_thw=image_grid_thw,
            attention_mask=attention_mask,
        )
        if self.criterion_embeds is None:
            hidden = self._run(embeds, places, _mask(attention_mask, 0))
            drawn = image_grid_thw[num_images.cumsum(0) - 1]
            return self._tokens(hidden.float(), is_image, attention_mask, drawn)
        count = len(self.criterion_embeds)
        own = self.criterion_embeds.to(embeds.dtype).expand(len(embeds), -1, -1)
        after = places.masked_fill(~attention_mask, 0).amax(dim=(0, 2)) + 1
        places = torch.cat([places, after[None, :, None].expand(3, -1, count)], dim=2)
        hidden = self._run(torch.cat([embeds, own], dim=1), places, _mask(attention_mask, count))
        return {"states": hidden[:, -count:].float()}

    def _run(self, embeds: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """(N, L, D) last hidden states."""
        return self.model.language_model(
            inputs_embeds=embeds, position_ids=places, attention_mask=mask, use_cache=False
        ).last_hidden_state

    def _tokens(
        self, hidden: Tensor, is_image: Tensor, attention_mask: Tensor, grids: Tensor
    ) -> dict[str, Tensor]:
        """As `rewards.models.features.FeatureBatch`, the image tokens those of the drawn images, of
        ``grids (N, 3)``; the statistics are the last token's state."""
        merge = self.model.config.vision_config.spatial_merge_size
        images, texts = [], []
        for row, marked, real, (_, height, width) in zip(
            hidden, is_image, attention_mask, grids.tolist(), strict=True
        ):
            sides = (height // merge, width // merge)
            plane = row[marked][-sides[0] * sides[1] :].T.unflatten(1, sides)
            images.append(pool_grid(plane[None], self.grid)[0])
            texts.append(row[real & ~marked])
        text = nn.utils.rnn.pad_sequence(texts, batch_first=True)
        lengths = torch.tensor([len(of) for of in texts], device=text.device)
        return {
            "image": torch.stack(images),
            "text": text,
            "text_mask": torch.arange(text.shape[1], device=text.device) < lengths[:, None],
            "stats": torch.stack([of[-1] for of in texts]),
        }


def _opening(place: int, num_sources: int) -> str:
    """What stands before the image at ``place``, the drawn one being the last."""
    before = _CLOSE if place else _TURN
    if not num_sources:
        return before + _OPEN
    return before + (_SOURCE if place < num_sources else _EDITED) + _OPEN


def _mask(attention_mask: Tensor, count: int) -> Tensor:
    """(N, 1, L + C, L + C): tokens see those before them; each of ``count`` more at the end sees
    all of these and itself."""
    rows, length = attention_mask.shape
    mask = attention_mask.new_zeros(rows, length + count, length + count)
    causal = attention_mask.new_ones(length, length).tril()
    mask[:, :length, :length] = causal & attention_mask[:, None]
    mask[:, length:, :length] = attention_mask[:, None]
    mask[:, length:, length:] = torch.eye(count, dtype=torch.bool, device=mask.device)
    return mask[:, None]


def _start_embeds(model: Any, tokenizer: Any, criteria: Sequence[str]) -> Tensor:
    """(C, D): the mean embedding of each criterion's name."""
    if not criteria:
        raise ValueError("encoder type 'qwen_vl' needs at least one criterion, got none")
    table = model.get_input_embeddings().weight.detach()
    return torch.stack([table[tokenizer(name)["input_ids"]].float().mean(0) for name in criteria])


def _load(folder: Path, base: str, dtype: torch.dtype) -> Any:
    check_family(folder, base, [FAMILY])
    # Attention that takes a mask of its own.
    loaded: Any = Qwen2_5_VLModel.from_pretrained(
        folder, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
    )
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{base!r} is no Qwen2.5-VL of its configuration: it lacks {missing[0]}")
    return model
