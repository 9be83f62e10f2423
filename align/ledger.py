"""Parameters, FLOPs and bytes of a Qwen-Image transformer, counted without building it.

Torch-free. Everything here is exact arithmetic of the model's shape, held to counted parameters,
FLOPs and bytes by tests; what is assumed about a GPU is in `align.plan`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.mmdit.source_sizes import (
    CONDITION_AREA,
    MAX_SOURCES,
    check_count,
    seen_tokens,
    source_size,
)
from align.optim_config import OptimizerConfig

__all__ = ["ModelShape", "Tokens", "state_bytes_per_parameter"]

TIME_CHANNELS = 256
PATCH = 2
HUB = {
    "Qwen/Qwen-Image": "QwenImagePipeline",
    "Qwen/Qwen-Image-2512": "QwenImagePipeline",
    "Qwen/Qwen-Image-Edit": "QwenImageEditPipeline",
    "Qwen/Qwen-Image-Edit-2509": "QwenImageEditPlusPipeline",
    "Qwen/Qwen-Image-Edit-2511": "QwenImageEditPlusPipeline",
}
"""Models of one shape, and their pipelines."""


@dataclass(frozen=True)
class Tokens:
    """Sizes of one sample."""

    image: int
    """Of the drawn image and of the source pictures that follow it."""
    text: int

    @property
    def total(self) -> int:
        return self.image + self.text


@dataclass(frozen=True)
class ModelShape:
    """What the arithmetic needs to know of `QwenImageTransformer2DModel` and its autoencoder."""

    num_layers: int = 60
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    joint_attention_dim: int = 3584
    in_channels: int = 64
    out_channels: int = 16
    scale_factor: int = 8
    """Pixels per latent along a side."""
    pipeline: str = "QwenImagePipeline"

    @classmethod
    def of(cls, model: str) -> ModelShape:
        """The shape of a model that ``HUB`` names, or of a pipeline folder.

        Raises:
            ValueError: another Hub id: nothing is downloaded.
        """
        if model in HUB:
            return cls(pipeline=HUB[model])
        folder = Path(model)
        if not (folder / "transformer" / "config.json").is_file():
            raise ValueError(
                f"model is {model!r}: planning needs one of {', '.join(HUB)}, tiny, or a pipeline "
                "folder with transformer/config.json"
            )
        config = _read(folder / "transformer" / "config.json")
        vae = folder / "vae" / "config.json"
        down = _read(vae)["temperal_downsample"] if vae.is_file() else [False, True, True]
        fields = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        index = folder / "model_index.json"
        if index.is_file():
            fields["pipeline"] = _read(index)["_class_name"]
        return cls(**fields, scale_factor=2 ** len(down))

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def patch_values(self) -> int:
        return PATCH * PATCH * self.out_channels

    @property
    def max_sources(self) -> int | None:
        return MAX_SOURCES.get(self.pipeline, 0)

    def tokens(
        self, height: int, width: int, text: int, sources: int = 0, source_area: int = 1024 * 1024
    ) -> Tokens:
        """Of an image of ``height`` x ``width`` pixels under ``text`` tokens of words.

        Args:
            sources: square pictures that the prompt edits, each brought to ``source_area`` pixels.

        Raises:
            ValueError: more sources than the pipeline takes.
        """
        check_count(sources, self.max_sources)
        side = PATCH * self.scale_factor
        size = source_size((1, 1), source_area)
        # One picture is shown to the text encoder as it is encoded, several are shown smaller.
        seen = size if self.max_sources == 1 else source_size((1, 1), CONDITION_AREA)
        return Tokens(
            (height // side) * (width // side) + sources * (size[0] // side) * (size[1] // side),
            text + sources * seen_tokens(seen),
        )

    # Parameters -----------------------------------------------------------------------------------

    @property
    def block_parameters(self) -> int:
        """Of one block."""
        d = self.width
        attention = 8 * _linear(d, d) + 4 * self.attention_head_dim
        mlps = 2 * (_linear(d, 4 * d) + _linear(4 * d, d))
        return attention + mlps + 2 * _linear(d, 6 * d)

    @property
    def modulation_parameters(self) -> int:
        """Of the layers that make shift, scale and gate: a third of the 20B model."""
        return self.num_layers * 2 * _linear(self.width, 6 * self.width)

    @property
    def linear_weights(self) -> int:
        """Of the blocks' linear layers without biases: what is quantised."""
        return self.num_layers * 36 * self.width**2

    def frozen_bytes(self, size: int, quantize: str | None = None) -> float:
        """Of all weights at ``size`` bytes each, or with the blocks' in codes and scales."""
        wide = self.parameters if quantize is None else self.parameters - self.linear_weights
        rows = self.num_layers * 30 * self.width
        codes = {
            None: 0.0,
            "fp8": self.linear_weights + 4 * rows,
            "nf4": self.linear_weights * (1 / 2 + 4 / 64),
        }[quantize]
        return codes + size * wide

    @property
    def parameters(self) -> int:
        d = self.width
        ends = self.joint_attention_dim + _linear(self.joint_attention_dim, d)
        ends += _linear(self.in_channels, d) + _linear(TIME_CHANNELS, d) + _linear(d, d)
        ends += _linear(d, 2 * d) + _linear(d, self.patch_values)
        return self.num_layers * self.block_parameters + ends

    @property
    def dead_parameters(self) -> int:
        """Of the last block's text output, which nothing reads; they are frozen."""
        d = self.width
        return 2 * _linear(d, d) + self.attention_head_dim + _linear(d, 4 * d) + _linear(4 * d, d)

    def trained_parameters(self, lora_rank: int | None) -> int:
        """With all parameters trained, or with a LoRA on the family's own targets."""
        if lora_rank is None:
            return self.parameters - self.dead_parameters
        d = self.width
        attention, mlp, modulation = 2 * d, 10 * d, 7 * d
        block = 8 * attention + 2 * mlp + 2 * modulation
        dead = 2 * attention + mlp
        return lora_rank * (self.num_layers * block - dead)

    # Arithmetic -----------------------------------------------------------------------------------

    def forward_flops(self, tokens: Tokens) -> tuple[int, int]:
        """Of one sample: matrix products of linear layers, and of attention."""
        d = self.width
        blocks = self.num_layers * (24 * d * d * tokens.total + 24 * d * d)
        ends = 2 * d * (self.joint_attention_dim * tokens.text + self.in_channels * tokens.image)
        ends += 2 * d * (TIME_CHANNELS + d + 2 * d) + 2 * d * self.patch_values * tokens.image
        return blocks + ends, self.num_layers * 4 * tokens.total**2 * d

    def backward_flops(self, tokens: Tokens, lora: bool = False) -> tuple[int, int]:
        """Of one sample: two products for one of the forward pass, one without weight gradients;
        five for attention's two, whose scores are computed again.

        What feeds the last block's text output alone has no backward pass, and the two input
        layers have no gradient of their input.
        """
        d = self.width
        linear, attention = self.forward_flops(tokens)
        live = linear - 18 * d * d * tokens.text - 2 * d * d * tokens.text
        inputs = 2 * d * (self.joint_attention_dim * tokens.text + self.in_channels * tokens.image)
        return (live if lora else 2 * live) - inputs, attention * 5 // 2

    # Bytes ----------------------------------------------------------------------------------------

    def saved_bytes(self, tokens: Tokens, recompute: str, element_size: int = 2) -> int:
        """Activations that one sample keeps for its backward pass.

        Args:
            recompute: "none", "selective" or "full"; see `align.mmdit.activations`.
        """
        unit = tokens.total * self.width * element_size
        return int(self.num_layers * SAVED_UNITS[recompute] * unit)

    def peak_bytes(self, tokens: Tokens, recompute: str, element_size: int = 2) -> int:
        """The same at its highest, while one block is computed again."""
        unit = tokens.total * self.width * element_size
        again = SAVED_UNITS["none"] - SAVED_UNITS[recompute]
        return self.saved_bytes(tokens, recompute, element_size) + int(again * unit)


SAVED_UNITS = {"none": 28.07, "selective": 11.05, "full": 1.0}
"""Kept for each token and block, in units of the model's width (counted: `benchmarks.cpu`)."""


def state_bytes_per_parameter(optimizer: OptimizerConfig) -> dict[str, float]:
    """Bytes at rest of one trained parameter by part, gradients in the weights' own type."""
    weights = {"float32": 4.0, "split": 2.0, "stochastic": 2.0}[optimizer.weights]
    return {
        "weights": weights,
        "master's low bits": 2.0 if optimizer.weights == "split" else 0.0,
        "gradients": 0.0 if optimizer.gradient_release else weights,
        "moments": {"adamw": 8.0, "adam8bit": 2 + 2 * 4 / 256, "adafactor": 0.0}[optimizer.type],
    }


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
