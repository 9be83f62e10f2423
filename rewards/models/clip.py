"""CLIP and SigLIP as encoders: tokens of both towers, and their embeddings side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image as PILImage
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from rewards.encoder_config import ClipEncoderConfig
from rewards.models.network import (
    NetworkEncoder,
    check_family,
    files_sha256,
    find_base,
    pool_grid,
    prepare,
)

__all__ = ["ClipEncoder", "ClipNetwork"]

FAMILIES = ("clip", "siglip")
"""``model_type`` of the models whose towers are read alike."""
_LINEAR = r".*\.layers\.\d+\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


class ClipEncoder(NetworkEncoder):
    """Reads images by the model's own processor and as much of the prompt as its window has; it
    looks at one picture, and at no source image."""

    def __init__(
        self,
        config: ClipEncoderConfig,
        model: Any,
        processor: Any,
        tokenizer: Any,
        base_sha256: str,
    ):
        network = ClipNetwork(model, config.grid)
        is_frozen = config.tune == "frozen"
        super().__init__(config, network, tokenizer, base_sha256, is_frozen=is_frozen)
        self._processor = processor
        self._room: int = model.config.text_config.max_position_embeddings

    @classmethod
    def open(
        cls, config: ClipEncoderConfig, base: str | None, device: str, **_: Any
    ) -> ClipEncoder:
        """On a folder or hub id with a CLIP or SigLIP, its image processor and tokenizer.

        Raises:
            ValueError: it is a model of another family.
            OSError: it is not there, or a part of it.
        """
        folder = find_base(base, config.type, ["*.safetensors", "*.json", "*.txt", "*.model"])
        check_family(folder, base, FAMILIES)
        dtype = getattr(torch, config.dtype)
        model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
        # Of Pillow: a score must not depend on whether torchvision is installed.
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        prepare(model, config, _LINEAR)
        for scale in ("logit_scale", "logit_bias"):
            if hasattr(model, scale):  # they scale the model's own scores, which are not read
                getattr(model, scale).requires_grad_(False)
        return cls(config, model.to(device), processor, tokenizer, files_sha256(folder))

    def read(
        self, image: PILImage, prompt: str, sources: Sequence[PILImage] = ()
    ) -> dict[str, Tensor]:
        pixels = self._processor(images=[image], return_tensors="pt")["pixel_values"][0]
        # Always the whole window, as both families were trained; SigLIP has no mask at all.
        ids = self.tokenizer(prompt, padding="max_length", truncation=True, max_length=self._room)[
            "input_ids"
        ]
        length = min(self._room, len(self.tokenizer(prompt)["input_ids"]))
        return {"pixel_values": pixels, "input_ids": torch.tensor(ids), "length": _int(length)}

    def stack(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([of[name] for of in inputs]) for name in inputs[0]}

    def left_out(self, prompts: Sequence[str]) -> list[int]:
        cut = {p: max(0, len(self.tokenizer(p)["input_ids"]) - self._room) for p in set(prompts)}
        return [cut[prompt] for prompt in prompts]


class ClipNetwork(nn.Module):
    """Both towers; see `rewards.models.features.FeatureBatch` for what it gives."""

    def __init__(self, model: Any, grid: int):
        super().__init__()
        self.model = model
        self.grid = grid
        vision = model.config.vision_config
        self.side: int = vision.image_size // vision.patch_size

    def forward(self, pixel_values: Tensor, input_ids: Tensor, length: Tensor) -> dict[str, Tensor]:
        """pixel_values (N, 3, S, S), input_ids (N, L), length (N,) of the prompt in tokens."""
        found = self.model(input_ids=input_ids, pixel_values=pixel_values.to(self.model.dtype))
        # Patches are last; before them a CLIP has its class token.
        patches = found.vision_model_output.last_hidden_state[:, -(self.side**2) :]
        plane = patches.transpose(1, 2).unflatten(2, (self.side, self.side))
        image, text = found.image_embeds.float(), found.text_embeds.float()
        product = image * text
        text_mask = torch.arange(input_ids.shape[1], device=length.device) < length[:, None]
        tokens = found.text_model_output.last_hidden_state.float()
        return {
            "image": pool_grid(plane.float(), self.grid),
            "text": tokens * text_mask[..., None],
            "text_mask": text_mask,
            "stats": torch.cat([image, text, product, product.sum(dim=1, keepdim=True)], dim=1),
        }


def _int(value: int) -> Tensor:
    return torch.tensor(value)
