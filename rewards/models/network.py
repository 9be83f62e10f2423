"""Encoders that are networks over pixels and tokens: what they share, frozen or trained."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from PIL.Image import Image as PILImage
from torch import Tensor, nn

from rewards.base import RewardItem
from rewards.encoder_config import EXECUTION, NetworkConfig, PixelsEncoderConfig
from rewards.folder import read_json
from rewards.models.features import Features, Inputs, collate

__all__ = [
    "NetworkEncoder",
    "check_family",
    "files_sha256",
    "find_base",
    "pool_grid",
    "prepare",
]

_FILES = (".safetensors", ".json", ".txt")
_NUM_SCORED = 256


class NetworkEncoder(ABC):
    """Reads one candidate to tensors, and has a network that makes of many what heads read.

    Args:
        reader: the network. Where it trains, it is `network` and joins the preference model.
        base_sha256: names the weights that it was made of; empty where it was made of nothing.
    """

    head = "tokens"
    needs = frozenset({"image"})

    def __init__(
        self,
        config: NetworkConfig | PixelsEncoderConfig,
        reader: nn.Module,
        tokenizer: Any,
        base_sha256: str,
        *,
        is_frozen: bool,
    ):
        self._reader = reader.eval()
        self._read_at_once = config.batch_size
        self.network = None if is_frozen else reader
        self.batch_size = _NUM_SCORED if is_frozen else config.batch_size
        self.tokenizer = tokenizer
        self.identity = {
            **config.model_dump(mode="json", exclude=EXECUTION),
            "base_sha256": base_sha256,
        }

    @abstractmethod
    def read(
        self, image: PILImage, prompt: str, sources: Sequence[PILImage] = ()
    ) -> dict[str, Tensor]:
        """What the network reads of an RGB image, its prompt, and, if it can look at several
        pictures, those that the prompt edits."""

    @abstractmethod
    def stack(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Arguments of the network for several candidates."""

    @abstractmethod
    def left_out(self, prompts: Sequence[str]) -> list[int]: ...

    def source_fault(self, count: int) -> None:
        """None: any number of source images is read, or none is looked at."""
        return None

    def encode(self, items: Sequence[RewardItem]) -> list[Inputs]:
        """See `rewards.models.features.CandidateEncoder`.

        Raises:
            ValueError: an item has no image; the message names it.
        """
        found: list[Inputs] = []
        for start in range(0, len(items), self._read_at_once):
            read = [self._read_item(item) for item in items[start : start + self._read_at_once]]
            found += self._features(read) if self.network is None else read
        return found

    def collate(self, inputs: Sequence[Any]) -> dict[str, Tensor]:
        return collate(inputs).as_dict() if self.network is None else self.stack(inputs)

    def fingerprint(self) -> list[float]:
        """Norms of what the network makes of a fixed image and prompt, before it is trained."""
        ramp = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3) * 41 % 251
        probe = self.read(Image.fromarray(ramp.astype(np.uint8)), "a red circle")
        found = self._run([probe])
        return [float(of.float().norm()) for name, of in found.items() if name != "text_mask"]

    def check_fingerprint(self, expected: Sequence[float]) -> None:
        """Refuse a base that computes otherwise than the one trained on.

        Raises:
            ValueError: naming both fingerprints.
        """
        got = self.fingerprint()
        tolerance = 3e-2 if self.identity.get("dtype") == "bfloat16" else 1e-3
        if len(got) != len(expected) or not np.allclose(got, expected, rtol=tolerance):
            raise ValueError(
                "the base model computes other features than in training: its fingerprint is "
                f"{got}, expected {list(expected)}"
            )

    def _read_item(self, item: RewardItem) -> dict[str, Tensor]:
        if item.image is None:
            raise ValueError(f"sample {item.sample_id!r} has no image")
        sources = [source.convert("RGB") for source in item.source_images]
        return self.read(item.image.convert("RGB"), item.prompt, sources)

    @torch.no_grad()
    def _run(self, inputs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        device = next(self._reader.parameters()).device
        batch = {name: of.to(device) for name, of in self.stack(inputs).items()}
        return {name: of.cpu() for name, of in self._reader(**batch).items()}

    def _features(self, inputs: Sequence[dict[str, Tensor]]) -> list[Inputs]:
        found = self._run(inputs)
        return [
            Features(
                image=found["image"][row].clone(),
                text=found["text"][row][found["text_mask"][row]],
                stats=found["stats"][row].clone(),
            )
            for row in range(len(inputs))
        ]


def find_base(base: str | None, kind: str, patterns: Sequence[str]) -> Path:
    """The folder of a base: one on disk, or a hub id whose files are fetched or cached.

    Args:
        kind: the encoder's type, for messages.
        patterns: the files that are needed of a hub id.

    Raises:
        ValueError: there is no base named.
        FileNotFoundError: it is in neither place.
    """
    if base is None:
        raise ValueError(f"encoder type {kind!r} needs a base: a folder or a hub id")
    if Path(base).is_dir():
        return Path(base)
    try:
        return Path(snapshot_download(base, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"no base for encoder type {kind!r} at {base!r}: expected a folder, or a model id that "
            f"the hub or its local cache has ({error})"
        ) from error


def check_family(folder: Path, base: str | None, families: Sequence[str]) -> None:
    """Refuse a folder that holds no model of these ``model_type``s.

    Raises:
        FileNotFoundError: it holds no model.
        ValueError: it is one of another type; names both.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no model of transformers at {base!r}: there is no {path}")
    family = read_json(path).get("model_type")
    if family not in families:
        raise ValueError(f"{base!r} is of type {family!r}, expected one of {list(families)}")


def files_sha256(*folders: Path) -> str:
    """Digest over the weights, configurations and vocabularies in folders."""
    digest = hashlib.sha256()
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        if path.suffix in _FILES:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.name}:{content}\n".encode())
    return digest.hexdigest()


def prepare(model: Any, config: NetworkConfig, targets: str) -> None:
    """Freeze the base, or all of it but adapters, or none.

    Args:
        targets: regular expression of the layers that a LoRA adapts.
    """
    model.requires_grad_(config.tune == "full")
    if config.tune == "lora":
        lora = config.lora
        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # pyright: ignore
            lora_dropout=lora.dropout,
            target_modules=targets,
        )
        inject_adapter_in_model(settings, model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if config.gradient_checkpointing and config.tune != "frozen":
        model.activation_checkpointing_enable({"use_reentrant": False})


def pool_grid(plane: Tensor, grid: int) -> Tensor:
    """Average tokens (B, D, H, W) to (B, grid * grid, D), row by row."""
    return nn.functional.adaptive_avg_pool2d(plane, grid).flatten(2).transpose(1, 2)
