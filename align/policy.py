"""The transformer being trained, and the reference it is held to."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from align.mmdit.adapters.base import Conditioning, ModelAdapter
from align.mmdit.blocks import BlockSettings, unwrap
from align.mmdit.streaming import BlockStream, host_copy

__all__ = ["Policy", "Reference", "unwrap"]

STOCK = BlockSettings()
ADAPTER_NAME = "default"
Reference = Literal["copy", "streamed", "none"]


class Policy:
    """A transformer under training, by LoRA or with all its parameters, and its reference.

    The reference is the transformer as it came: with a LoRA, the same weights with the adapter
    off, at no memory; with full parameters a frozen copy (``reference="copy"``), one in host memory
    whose blocks pass over the device (``"streamed"``), or nothing (``"none"``), when the objective
    needs none or reads cached reference errors.

    ``transformer`` may be replaced by a wrapped form of itself (DDP, DeepSpeed, torch.compile).
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        transformer: nn.Module,
        *,
        lora: LoraConfig | None = None,
        reference: Reference = "none",
        blocks: BlockSettings = STOCK,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            adapter: The model family.
            transformer: Bare module; it is changed in place.
            lora: None trains all parameters. Its ``target_modules`` default to the family's own.
            reference: For full parameters alone; a LoRA always has its reference.
            blocks: How the transformer's blocks compute, what they keep for the backward pass.
            seed: Fixes the LoRA's first weights.
            device: Where it will compute; None: where its weights are.
        """
        if reference not in get_args(Reference):
            choices = ", ".join(map(repr, get_args(Reference)))
            raise ValueError(f"reference is {reference!r}; choices: {choices}")
        self.adapter = adapter
        self.transformer = transformer
        self.has_lora = lora is not None
        self._reference: nn.Module | None = None
        self._is_streamed = reference == "streamed"
        self._reference_depth = 0
        if lora is None:
            if reference == "copy":
                self._reference = copy.deepcopy(transformer).requires_grad_(False).eval()
            elif reference == "streamed":
                self._reference = host_copy(transformer)
            transformer.requires_grad_(True)
        else:
            transformer.requires_grad_(False)
            _add_lora(transformer, _with_targets(lora, adapter, transformer), seed)
        self._freeze_dead_parameters()
        kept = blocks.compile and not self._is_streamed  # a stream swaps the weights of its blocks
        self._reference_blocks = replace(blocks, recompute="none", compile=kept)
        if self._reference is not None:
            adapter.install_blocks(self._reference, self._reference_blocks, device)
        self.blocks = adapter.install_blocks(transformer, blocks, device)
        """What computes, in words."""

    def velocity(self, x_t: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Predicted ``noise - x_0``, ``(B, C, h, w)``; the reference's inside `reference`."""
        frozen = self._reference_depth > 0 and self._reference is not None
        transformer = self._reference if frozen else self.transformer
        assert transformer is not None
        return self.adapter.velocity(transformer, x_t, sigma, cond)

    @property
    def has_reference(self) -> bool:
        return self.has_lora or self._reference is not None

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, `velocity` is the reference's, without gradients; blocks may be nested.

        Nothing is left changed: not a weight, not a ``requires_grad``, also after an exception.
        """
        if not self.has_reference:
            raise ValueError(
                "this policy trains all parameters and keeps no reference: build it with "
                "reference='copy', or train from cached reference errors"
            )
        toggle = self.has_lora and self._reference_depth == 0
        self._reference_depth += 1
        try:
            with torch.no_grad():
                if toggle:
                    with _adapters_off(self.transformer):
                        yield
                else:
                    yield
        finally:
            self._reference_depth -= 1

    def move_reference(self, device: torch.device | str) -> None:
        """Bring a frozen copy to where it computes; the trained weights are placed elsewhere.

        A streamed one needs this once, on a CPU too: then its blocks begin to pass over ``device``.
        """
        if self._reference is None:
            return
        if not self._is_streamed:
            self._reference.to(device)
            return
        BlockStream(self._reference, device)
        self.adapter.install_blocks(self._reference, self._reference_blocks)  # for that device

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.transformer.parameters() if p.requires_grad]

    def save_pretrained(
        self, folder: Path | str, state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write what stock diffusers loads: a LoRA folder, or a whole pipeline folder.

        Args:
            folder: For ``pipeline.load_lora_weights`` with a LoRA, else for
                ``DiffusionPipeline.from_pretrained``.
            state_dict: Full weights to write instead of the transformer's own: those gathered
                from shards, or an average. Names are those of the bare transformer; with a LoRA
                it may hold the adapter's weights alone.
        """
        model: Any = unwrap(self.transformer)
        state = dict(model.state_dict() if state_dict is None else state_dict)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.has_lora:
            layers = get_peft_model_state_dict(model, state_dict=state, adapter_name=ADAPTER_NAME)
            metadata = model.peft_config[ADAPTER_NAME].to_dict()
            # By their full names: a loader then expects the layers that are there, and no others.
            adapted = sorted({name.rpartition(".lora_")[0] for name in layers})
            metadata |= {"target_modules": adapted, "exclude_modules": None}
            self.adapter.save_lora(folder, layers, metadata)
        else:
            self.adapter.save_pipeline(folder, model, state)

    def _freeze_dead_parameters(self) -> None:
        prefixes = tuple(f"{name}." for name in self.adapter.dead_modules(self.transformer))
        for name, parameter in self.transformer.named_parameters():
            if name.startswith(prefixes):
                parameter.requires_grad_(False)


def _with_targets(lora: LoraConfig, adapter: ModelAdapter, transformer: nn.Module) -> LoraConfig:
    """The family's targets where none are named; modules that cannot learn get no adapter."""
    lora = copy.copy(lora)
    if lora.target_modules is None:
        lora.target_modules = list(adapter.lora_targets)
    if lora.exclude_modules is None:
        dead = "|".join(map(re.escape, adapter.dead_modules(transformer)))
        lora.exclude_modules = rf"({dead})(\..+)?"
    return lora


def _add_lora(transformer: Any, lora: LoraConfig, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer.add_adapter(lora, ADAPTER_NAME)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            # Steps of 1e-4 vanish in bfloat16; peft casts the activations to the LoRA's dtype.
            parameter.data = parameter.data.float()


@contextmanager
def _adapters_off(module: nn.Module) -> Iterator[None]:
    layers = [m for m in module.modules() if isinstance(m, BaseTunerLayer)]
    # peft sets requires_grad on the way out and in, also on parameters that were frozen.
    flags = [(p, p.requires_grad) for p in module.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
